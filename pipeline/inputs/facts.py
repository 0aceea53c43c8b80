"""What the values of a run depend on. Two runs with equal fingerprints write the same bits.

The number of actors, the order of the shards, stops and resumes, and the form of the input are not here: they cannot
change a value.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class InputHash:
    """SHA-256 over the canonical input: codes and row table, row by row, whatever the batches were; and one over each
    further input of the model."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._of_args: list[Any] = []

    def add(self, codes: np.ndarray, source_row: int, name: str, chrom: str, start: int, end: int, strand: str) -> None:
        """Add one row: (L,) uint8 codes and where it comes from."""
        texts = [text.encode() for text in (name, chrom, strand)]
        self._hash.update(struct.pack("<7q", len(codes), source_row, start, end, *(len(text) for text in texts)))
        self._hash.update(codes.tobytes())
        self._hash.update(b"".join(texts))

    def add_args(self, values: Sequence[np.ndarray]) -> None:
        """Add the further inputs of a row: as many, of the same shapes and types, as of the rows before."""
        if not self._of_args:
            self._of_args = [hashlib.sha256(f"{value.shape} {value.dtype.str}\n".encode()) for value in values]
        for digest, value in zip(self._of_args, values, strict=True):
            digest.update(value.tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def of_args(self) -> list[str]:
        """The hash of each further input."""
        return [digest.hexdigest() for digest in self._of_args]


@dataclass(frozen=True)
class InputFacts:
    """What a run depends on of its input.

    Attributes:
        sha256: over the good rows; see InputHash.
        n_rows: good rows.
        length: bases in each.
        base_counts: how often A, C, G and T occur in them.
        args: over the good rows' values of each further input of the model.
    """

    sha256: str
    n_rows: int
    length: int
    base_counts: list[int]
    args: list[str] = field(default_factory=list)


def make_fingerprint(
    *, model: Mapping[str, Any], data: Mapping[str, Any], settings: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """One flat mapping of field to plain value.

    Args:
        model: hashes of weights and code, head, output.
        data: hash of the canonical input, rows, length, and hashes of the model's further inputs.
        settings: references, seed, targets and the engine's settings that reach the values.
        machine: versions of engine and torch, kind of device.
    """
    parts = {"model": model, "input": data, "settings": settings, "machine": machine}
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in sorted(values.items())}


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A phrase for each field in which two fingerprints differ, with both values."""
    return [
        f"{field} is {_short(stored.get(field))} there and {_short(wanted.get(field))} here"
        for field in sorted({*stored, *wanted})
        if stored.get(field) != wanted.get(field)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def auto_batch_size(length: int, n_references: int, device: str, most: int | None = None) -> int:
    """Pairs in a batch where engine.batch_size=auto, from the sequence length (bases) and the kind of device.

    About 2**17 bases on a CPU, where a batch should stay near its caches, and 2**21 on a GPU, where it should keep the
    device busy, if `most` pairs fit its memory; whole sequences where they fit, and at most 64 of them.
    """
    pairs = max(1, (1 << 17 if device == "cpu" else 1 << 21) // length)
    pairs = pairs if most is None else min(pairs, most)
    if pairs < n_references:
        return pairs
    return min(64, pairs // n_references) * n_references
