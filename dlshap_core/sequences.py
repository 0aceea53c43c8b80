"""Sequences as codes and as one-hot tensors.

Conventions: the alphabet is A, C, G, T in this order; codes are uint8, 0..3 for the bases and 4 for an unknown base
(N); one-hot tensors are (..., A, L) with an all-zero column for an unknown base. Positions are 0-based.

Shape legend: N sequences, A alphabet (4), L length.
"""

import warnings
from typing import overload

import numpy as np
import torch
from torch import Tensor

ALPHABET = "ACGT"
UNKNOWN = 4

_INVALID = 255
_IUPAC_AMBIGUITY = "NRYSWKMBDHV"


def _code_table() -> np.ndarray:
    table = np.full(256, _INVALID, dtype=np.uint8)
    for letters, code in [("A", 0), ("C", 1), ("G", 2), ("TU", 3), (_IUPAC_AMBIGUITY, UNKNOWN)]:
        for letter in letters + letters.lower():
            table[ord(letter)] = code
    return table


_CODE_OF_BYTE = _code_table()
_BYTE_OF_CODE = np.frombuffer(b"ACGTN", dtype=np.uint8)
_COMPLEMENT_OF_CODE = np.array([3, 2, 1, 0, UNKNOWN], dtype=np.uint8)
_COMPLEMENT_OF_LETTER = str.maketrans("ACGTN", "TGCAN")


def encode(text: bytes | str) -> np.ndarray:
    """Codes of a sequence text: (L,) uint8.

    Upper and lower case are the same; U is read as T; N and the IUPAC ambiguity letters become unknown.

    Raises:
        ValueError: a character that is none of these, named with its 0-based position.
    """
    # A character outside of latin-1 becomes one invalid byte, so that positions stay those of the text.
    raw = text.encode("latin-1", errors="replace") if isinstance(text, str) else text
    codes = _CODE_OF_BYTE[np.frombuffer(raw, dtype=np.uint8)]
    invalid = np.flatnonzero(codes == _INVALID)
    if invalid.size:
        position = int(invalid[0])
        character = text[position] if isinstance(text, str) else raw[position : position + 1].decode("latin-1")
        raise ValueError(
            f"character {character!r} at position {position} (0-based) is not a nucleotide; "
            f"expected A, C, G, T, U, N or an IUPAC ambiguity letter"
        )
    return codes


def decode(codes: np.ndarray) -> str:
    """The text of (L,) codes, N for unknown."""
    return _BYTE_OF_CODE[np.asarray(codes, dtype=np.uint8)].tobytes().decode("ascii")


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


# --- the reverse complement: the other strand, read from its own 5' end ----------------------------------------------


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """Of (..., L) codes; unknown stays unknown."""
    return np.ascontiguousarray(_COMPLEMENT_OF_CODE[codes[..., ::-1]])


@overload
def reverse_complement_bases(values: Tensor) -> Tensor: ...
@overload
def reverse_complement_bases(values: np.ndarray) -> np.ndarray: ...
def reverse_complement_bases(values: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Of (..., A, L) values of each base, such as a one-hot: the complements of A, C, G, T are these in reverse."""
    return values.flip(-1, -2) if isinstance(values, Tensor) else values[..., ::-1, ::-1]


def reverse_complement_text(text: str) -> str:
    """Of a text of A, C, G, T and N."""
    return text.translate(_COMPLEMENT_OF_LETTER)[::-1]
