"""From multipliers to attributions."""

import torch
from torch import Tensor


def hypothetical_attributions(multipliers: tuple[Tensor], X: tuple[Tensor], references: tuple[Tensor]) -> tuple[Tensor]:
    """Attributions of every base at every position, from the multipliers of sequence-reference pairs.

    Choosing base c at a position removes the reference's base there: the attribution of c is the contribution of the
    change from the reference, sum_c' (1[c' = c] - r[c']) m[c'] = m[c] - sum_c' r[c'] m[c'].

    Args:
        multipliers: one tensor (P, A, L), in a tuple of one as captum passes it.
        X: one tensor (P, A, L), the one-hot sequences.
        references: one tensor (P, A, L), the one-hot references.

    Returns:
        A tuple of one tensor (P, A, L), of X's dtype.

    Raises:
        ValueError: an input that is not a tuple of one tensor, or shapes that differ.
    """
    for value in (multipliers, X, references):
        if not isinstance(value, tuple) or len(value) != 1 or not isinstance(value[0], Tensor):
            raise ValueError("multipliers, X and references must each be a tuple of one tensor")
        if value[0].shape != multipliers[0].shape:
            raise ValueError(
                f"multipliers, X and references must have the same shape, not {tuple(multipliers[0].shape)} and "
                f"{tuple(value[0].shape)}"
            )
    at_reference = (references[0] * multipliers[0]).sum(dim=1, keepdim=True)
    return ((multipliers[0] - at_reference).to(X[0].dtype),)


def project(hypothetical: Tensor, X: Tensor) -> Tensor:
    """The observed base's attribution, hypothetical times one-hot X, both (..., A, L); 0 at an unknown base."""
    return hypothetical * X.to(hypothetical.dtype)


def observed(hypothetical: Tensor, X: Tensor) -> Tensor:
    """The observed base's attribution at each position: (..., L) from (..., A, L)."""
    return torch.sum(project(hypothetical, X), dim=-2)
