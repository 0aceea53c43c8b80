"""What every kind of references has in common.

Shape legend: N rows of a shard, R references of each, L positions.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dlshap_core.sequences import reverse_complement, reverse_complement_bases

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ResolvedReferences:
    """References with nothing left to decide.

    Attributes:
        n: references of each sequence.
        plan: plain values, all that a worker needs.
        fingerprint: what the references depend on, beside the sequences and the seed.
        pool: (P, L) uint8 windows that references are drawn from, which the store keeps.
        notes: lines for the user.
        signature: settings, input and state of the files; None where that is not known.
    """

    n: int
    plan: dict[str, Any]
    fingerprint: dict[str, Any]
    pool: np.ndarray | None = None
    notes: Sequence[str] = ()
    signature: dict[str, Any] | None = None

    def to_store(self) -> dict[str, Any]:
        """Plain values: all but the windows and the notes, which the store keeps elsewhere."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("pool", "notes")}


@dataclass(frozen=True)
class ShardReferences:
    """The references of a shard's rows, as the engine takes them.

    Attributes:
        values: (N, R, L) uint8 codes, which the engine makes one-hot, on the device; or (N, R, 4, L) float32 where they
            are not sequences of bases.
    """

    values: np.ndarray

    @property
    def n(self) -> int:
        return int(self.values.shape[1])

    def __call__(self, rows: slice, ks: slice) -> "Tensor":
        """References ks of the shard's rows: (S, K, L) or (S, K, 4, L)."""
        import torch  # here, so that `verify`, which draws references again, does not wait for it

        return torch.from_numpy(np.array(self.values[rows, ks], order="C"))

    def checksums(self) -> np.ndarray:
        """(N,) uint32: CRC-32 of each row's references, in order."""
        return np.array([zlib.crc32(row.tobytes()) for row in self.values], dtype=np.uint32)

    def reverse_complement(self) -> "ShardReferences":
        """Their reverse complements."""
        are_codes = self.values.ndim == 3
        return ShardReferences((reverse_complement if are_codes else reverse_complement_bases)(self.values))


Draw = Callable[[np.ndarray, int], ShardReferences]
"""(N, L) uint8 codes of a shard, and the number of its first row in the store, to its references."""


def shared(codes: np.ndarray, rows_per_group: int) -> ShardReferences:
    """(G, R, L) references of the first row of each group, for every row of it."""
    return ShardReferences(codes if rows_per_group == 1 else np.repeat(codes, rows_per_group, axis=0))
