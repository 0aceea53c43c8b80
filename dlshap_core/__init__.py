"""DeepLIFT/SHAP attributions of sequence models, exact by rules on operations; needs torch, numpy and numba alone."""

from dlshap_core.attributions import hypothetical_attributions
from dlshap_core.audit import Audit, audit
from dlshap_core.deep_lift_shap import _captum_deep_lift_shap, deep_lift_shap
from dlshap_core.engine import Attribution, attribute
from dlshap_core.errors import UnsupportedModelError
from dlshap_core.references import (
    dinucleotide_shuffle,
    dinucleotide_shuffle_uniform,
    shuffle,
    shuffle_codes,
    shuffle_with_tracks,
)

__all__ = [
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
