"""What every kind of references has in common.

Shape legend: N rows of a shard, R references of each, L positions.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dlshap_core.sequences import UNKNOWN

COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], dtype=np.uint8)  # of each code


@dataclass(frozen=True)
class Settled:
    """References with nothing left to decide.

    Attributes:
        n: references of each sequence.
        plan: plain values, all that an actor must know.
        fingerprint: what the references depend on, beside the sequences and the seed.
        pool: (P, L) uint8 codes to be kept in the store, where references are drawn from such.
    """

    n: int
    plan: dict[str, Any]
    fingerprint: dict[str, Any]
    pool: np.ndarray | None = None


class ShardReferences(Protocol):
    """The references of a shard's rows, as the engine takes them."""

    @property
    def n(self) -> int: ...

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        """References ks of the shard's rows: (S, K, 4, L), or codes (S, K, L) uint8."""
        ...

    def checksums(self) -> np.ndarray:
        """(N,) uint32: CRC-32 of each row's references, in order."""
        ...

    def turned(self) -> "ShardReferences":
        """Their reverse complements."""
        ...


Draw = Callable[[np.ndarray, int], ShardReferences]
"""(N, L) uint8 codes of a shard, and the number of its first row in the store, to its references."""


@dataclass(frozen=True)
class CodeReferences:
    """References kept as (N, R, L) codes; the engine makes them one-hot, on the device."""

    codes: np.ndarray

    @property
    def n(self) -> int:
        return int(self.codes.shape[1])

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        return torch.from_numpy(self.codes[rows, ks])

    def checksums(self) -> np.ndarray:
        return np.array([zlib.crc32(row.tobytes()) for row in self.codes], dtype=np.uint32)

    def turned(self) -> "CodeReferences":
        return CodeReferences(np.ascontiguousarray(COMPLEMENT[self.codes[..., ::-1]]))


def shared(codes: np.ndarray, rows_per_group: int) -> CodeReferences:
    """(G, R, L) references of the first row of each group, for every row of it."""
    return CodeReferences(codes if rows_per_group == 1 else np.repeat(codes, rows_per_group, axis=0))


@dataclass(frozen=True)
class RowsOf:
    """The references of some of the rows."""

    whole: ShardReferences
    start: int

    @property
    def n(self) -> int:
        return self.whole.n

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        stop = None if rows.stop is None else self.start + rows.stop
        return self.whole(slice(self.start + (rows.start or 0), stop), ks)

    def checksums(self) -> np.ndarray:
        return self.whole.checksums()[self.start :]

    def turned(self) -> "RowsOf":
        return RowsOf(self.whole.turned(), self.start)


@dataclass(frozen=True)
class ValueReferences:
    """References that are not sequences of bases: (N, R, 4, L) float32, or (1, R, 4, L) for all of n_rows."""

    values: np.ndarray
    n_rows: int

    @property
    def n(self) -> int:
        return int(self.values.shape[1])

    def __call__(self, rows: slice, ks: slice) -> Tensor:
        values = torch.from_numpy(self.values)
        return values.expand(self.n_rows, *values.shape[1:])[rows, ks]

    def checksums(self) -> np.ndarray:
        found = np.array([zlib.crc32(row.tobytes()) for row in self.values], dtype=np.uint32)
        return np.broadcast_to(found, self.n_rows).copy()

    def turned(self) -> "ValueReferences":
        return ValueReferences(self.values[..., ::-1, ::-1].copy(), self.n_rows)
