"""DeepLIFT/SHAP attributions of sequence models, exact by rules on operations; needs torch, numpy and numba alone.

Names are imported when they are asked for: what only reads sequences does not wait for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlshap_core.attributions import hypothetical_attributions
    from dlshap_core.audit import Audit, audit
    from dlshap_core.deep_lift_shap import _captum_deep_lift_shap, deep_lift_shap
    from dlshap_core.engine import Attribution, attribute
    from dlshap_core.errors import UnsupportedModelError
    from dlshap_core.references import dinucleotide_shuffle, dinucleotide_shuffle_uniform, shuffle, shuffle_with_tracks
    from dlshap_core.shuffles import shuffle_codes

_MODULE_OF = {
    "Attribution": "engine",
    "Audit": "audit",
    "UnsupportedModelError": "errors",
    "_captum_deep_lift_shap": "deep_lift_shap",
    "attribute": "engine",
    "audit": "audit",
    "deep_lift_shap": "deep_lift_shap",
    "dinucleotide_shuffle": "references",
    "dinucleotide_shuffle_uniform": "references",
    "hypothetical_attributions": "attributions",
    "shuffle": "references",
    "shuffle_codes": "shuffles",
    "shuffle_with_tracks": "references",
}
__all__ = [  # in full, for tools that only read
    "Attribution",
    "Audit",
    "UnsupportedModelError",
    "_captum_deep_lift_shap",
    "attribute",
    "audit",
    "deep_lift_shap",
    "dinucleotide_shuffle",
    "dinucleotide_shuffle_uniform",
    "hypothetical_attributions",
    "shuffle",
    "shuffle_codes",
    "shuffle_with_tracks",
]


class _Package(ModuleType):
    """Imports a name when it is asked for. A function stands before the submodule that has its name."""

    def __getattr__(self, name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{self.__name__}.{_MODULE_OF[name]}"), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        hides = isinstance(value, ModuleType) and name in _MODULE_OF
        super().__setattr__(name, getattr(value, name) if hides else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
