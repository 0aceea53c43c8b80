"""DeepLIFT/SHAP attributions of sequence models, exact by rules on operations; needs torch, numpy and numba alone."""

from dlshap_core.audit import Audit, audit
from dlshap_core.deep_lift_shap import _captum_deep_lift_shap, deep_lift_shap, hypothetical_attributions
from dlshap_core.engine import Attribution, attribute
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.references import dinucleotide_shuffle, shuffle, shuffle_codes

__all__ = [
    "Attribution",
    "Audit",
    "UnsupportedModelError",
    "_captum_deep_lift_shap",
    "attribute",
    "audit",
    "deep_lift_shap",
    "dinucleotide_shuffle",
    "hypothetical_attributions",
    "shuffle",
    "shuffle_codes",
]
