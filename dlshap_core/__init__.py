"""DeepLIFT/SHAP attributions of sequence models: exact by rules on operations, in two passes. Needs torch, numpy, numba."""

from dlshap_core.engine import Attribution, attribute
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.references import dinucleotide_shuffle, shuffle, shuffle_codes

__all__ = [
    "Attribution",
    "UnsupportedModelError",
    "attribute",
    "dinucleotide_shuffle",
    "shuffle",
    "shuffle_codes",
]
