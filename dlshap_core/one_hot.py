"""One-hot tensors of sequences: (..., A, L) with an all-zero column for an unknown base (see sequences.py).

Shape legend: A alphabet (4), L length.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from dlshap_core.sequences import ALPHABET


def one_hot(codes: np.ndarray | Tensor, dtype: torch.dtype = torch.int8, n_letters: int = len(ALPHABET)) -> Tensor:
    """One-hot encoding of (..., L) codes: (..., n_letters, L) of `dtype`, on the codes' device; unknown is all zero."""
    values = torch.as_tensor(codes)
    letters = torch.arange(n_letters, dtype=torch.uint8, device=values.device)
    return (values.unsqueeze(-2) == letters[:, None]).to(dtype)


def to_codes(encoded: Tensor) -> Tensor:
    """Codes of a one-hot tensor (..., A, L): (..., L) uint8; an all-zero column has the code A (4 where A = 4)."""
    largest, codes = encoded.max(dim=-2)
    unknown = torch.tensor(encoded.shape[-2], dtype=torch.uint8, device=encoded.device)
    return torch.where(largest > 0, codes.to(torch.uint8), unknown)


def validate_one_hot(X: Tensor, name: str, ndim: int = 3, allow_N: bool = False, only_warn: bool = False) -> None:
    """Check that a tensor is one-hot along its last but one axis.

    Args:
        X: (..., A, L).
        name: what to call it in the message.
        ndim: the number of axes it must have.
        allow_N: accept all-zero columns.
        only_warn: warn (RuntimeWarning) about values that are not one-hot instead of raising.

    Raises:
        ValueError: the wrong type, number of axes, or values.
    """
    if not isinstance(X, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, not {type(X).__name__}")
    if X.ndim != ndim:
        raise ValueError(f"{name} has {X.ndim} axes, shape {tuple(X.shape)}; expected {ndim} axes, the last two (A, L)")
    column_sums = X.sum(dim=-2)
    if not bool(((X == 0) | (X == 1)).all()) or not bool((column_sums <= 1).all()):
        _complain(f"{name} must be one-hot encoded: zeros, and at most a single one in each column", only_warn)
    elif not allow_N and not bool((column_sums == 1).all()):
        _complain(f"{name} must be one-hot encoded and holds unknown characters (all-zero columns)", only_warn)


def _complain(message: str, only_warn: bool) -> None:
    if not only_warn:
        raise ValueError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=4)
