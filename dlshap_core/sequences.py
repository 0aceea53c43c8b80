"""Sequences as codes and as one-hot tensors.

Conventions: the alphabet is A, C, G, T in this order; codes are uint8, 0..3 for the bases and 4 for an unknown base
(N); one-hot tensors are (..., A, L) with an all-zero column for an unknown base. Positions are 0-based.

Shape legend: N sequences, A alphabet (4), L length.
"""

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
