"""Which rows each shard holds, and which shards are left: pure functions of numbers.

Shard i holds rows [i * rows_per_shard, (i + 1) * rows_per_shard), the last one what remains. Shards are named by their
index alone wherever there may be millions of them.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.messages.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Rows [start, stop) of the store, the unit of work."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"shard {self.index} (rows {self.start} to {self.stop - 1})"


def n_shards(n_rows: int, rows_per_shard: int) -> int:
    """How many shards hold n_rows rows."""
    return -(-n_rows // rows_per_shard)


def shard_at(index: int, n_rows: int, rows_per_shard: int) -> Shard:
    """The shard of an index: all of them, in order, tile [0, n_rows)."""
    start = index * rows_per_shard
    if not 0 <= start < n_rows:
        raise IndexError(f"shard {index} of {n_shards(n_rows, rows_per_shard)}")
    return Shard(index, start, min(start + rows_per_shard, n_rows))


def select(n: int, selection: str | None) -> range:
    """The indices that run.shards names: "a-b" or "a", both ends included; all n for None.

    Raises:
        UserError: a range that is empty or leaves the shards that there are.
    """
    if selection is None:
        return range(n)
    first, _, last = selection.partition("-")
    start, stop = int(first), int(last or first)
    if start > stop or stop >= n:
        there_are = "is 1 shard, 0" if n == 1 else f"are {n} shards, 0-{n - 1}"
        raise UserError(f"run.shards={selection}, but there {there_are}")
    return range(start, stop + 1)


def remaining(chosen: range, is_done: np.ndarray) -> np.ndarray:
    """The chosen indices that are not done, ascending; is_done is (n,) bool."""
    return chosen.start + np.flatnonzero(~is_done[chosen.start : chosen.stop])


def shared_order(shards: np.ndarray, rank: int) -> np.ndarray:
    """The shards in the order in which the rank-th of several commands begins them, so that they meet late.

    The first goes up, the second comes down; the others go up from places that lie apart: 1/2, 1/4, 3/4, 1/8, ...
    """
    if rank == 0:
        return shards
    if rank == 1:
        return shards[::-1]
    bits = f"{rank - 1:b}"[::-1]
    return np.roll(shards, -(len(shards) * int(bits, 2) // 2 ** len(bits)))
