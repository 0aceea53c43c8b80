"""Sequences as codes: numbers that need no torch (see one_hot.py for tensors).

Conventions: the alphabet is A, C, G, T in this order; codes are uint8, 0..3 for the bases and 4 for an unknown base
(N); one-hot tensors are (..., A, L) with an all-zero column for an unknown base. Positions are 0-based.

Shape legend: N sequences, A alphabet (4), L length.
"""

from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
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


def one_hot_array(codes: np.ndarray) -> np.ndarray:
    """One-hot encoding of (..., L) codes: (..., A, L) int8; unknown is all zero. `one_hot.one_hot` makes tensors."""
    return (np.asarray(codes)[..., None, :] == np.arange(len(ALPHABET), dtype=np.uint8)[:, None]).astype(np.int8)


# --- the reverse complement: the other strand, read from its own 5' end ----------------------------------------------


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """Of (..., L) codes; unknown stays unknown."""
    return np.ascontiguousarray(_COMPLEMENT_OF_CODE[codes[..., ::-1]])


@overload
def reverse_complement_bases(values: "Tensor") -> "Tensor": ...
@overload
def reverse_complement_bases(values: np.ndarray) -> np.ndarray: ...
def reverse_complement_bases(values: "Tensor | np.ndarray") -> "Tensor | np.ndarray":
    """Of (..., A, L) values of each base, such as a one-hot: the complements of A, C, G, T are these in reverse."""
    return values[..., ::-1, ::-1] if isinstance(values, np.ndarray) else values.flip(-1, -2)


def reverse_complement_text(text: str) -> str:
    """Of a text of A, C, G, T and N."""
    return text.translate(_COMPLEMENT_OF_LETTER)[::-1]
