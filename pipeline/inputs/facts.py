"""What a run depends on of its input: a hash of its rows, whatever the form of the files, their number and length."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class InputHash:
    """SHA-256 over the canonical input: codes and row table, row by row, whatever the batches were; and one over each
    extra input of the model."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._of_args: list[Any] = []

    def add(self, codes: np.ndarray, source_row: int, name: str, chrom: str, start: int, end: int, strand: str) -> None:
        """Add one row: (L,) uint8 codes and where it comes from."""
        texts = [text.encode() for text in (name, chrom, strand)]
        self._hash.update(struct.pack("<7q", len(codes), source_row, start, end, *(len(text) for text in texts)))
        self._hash.update(codes.tobytes())
        self._hash.update(b"".join(texts))

    def add_extra_inputs(self, values: Sequence[np.ndarray]) -> None:
        """Add the extra inputs of a row: as many, of the same shapes and types, as of the rows before."""
        if not self._of_args:
            self._of_args = [hashlib.sha256(f"{value.shape} {value.dtype.str}\n".encode()) for value in values]
        for digest, value in zip(self._of_args, values, strict=True):
            digest.update(value.tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def of_extra_inputs(self) -> list[str]:
        """The hash of each extra input."""
        return [digest.hexdigest() for digest in self._of_args]


@dataclass(frozen=True)
class InputFacts:
    """What a run depends on of its input.

    Attributes:
        sha256: over the good rows; see InputHash.
        n_rows: good rows.
        length: bases in each.
        base_counts: how often A, C, G and T occur in them.
        args: over the good rows' values of each extra input of the model.
    """

    sha256: str
    n_rows: int
    length: int
    base_counts: list[int]
    args: list[str] = field(default_factory=list)
