"""Which rows each shard holds, and which shards are left: pure functions of numbers.

Shard i holds rows [i * rows_per_shard, (i + 1) * rows_per_shard), the last one what remains.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from pipeline.errors import UserError

MAX_BLOCKS = 10_000  # Ray Data takes 0.7 ms for a block: beyond this many, a block holds several shards


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


def plan_shards(n_rows: int, rows_per_shard: int) -> list[Shard]:
    """All shards, in order: they tile [0, n_rows)."""
    return [
        Shard(index, start, min(start + rows_per_shard, n_rows))
        for index, start in enumerate(range(0, n_rows, rows_per_shard))
    ]


def select(shards: list[Shard], selection: str | None) -> list[Shard]:
    """The shards that run.shards names: "a-b" or "a", both ends included; all of them for None.

    Raises:
        UserError: a range that is empty or leaves the shards that there are.
    """
    if selection is None:
        return shards
    first, _, last = selection.partition("-")
    start, stop = int(first), int(last or first)
    if start > stop or stop >= len(shards):
        there_are = "is 1 shard, 0" if len(shards) == 1 else f"are {len(shards)} shards, 0-{len(shards) - 1}"
        raise UserError(f"run.shards={selection}, but there {there_are}")
    return shards[start : stop + 1]


def remaining(shards: Iterable[Shard], done: Container[int]) -> list[Shard]:
    """The shards without a done record, in order."""
    return [shard for shard in shards if shard.index not in done]


def n_blocks(n_descriptors: int) -> int:
    """Into how many blocks Ray Data should put so many shard descriptors."""
    return max(1, min(n_descriptors, MAX_BLOCKS))


def gaps(ranges: Iterable[tuple[int, int]], n_rows: int) -> list[tuple[int, int]]:
    """What keeps [start, stop) ranges from tiling [0, n_rows): what is missing or covered twice; empty if they do."""
    found, position = [], 0
    for start, stop in sorted(ranges):
        if start != position:
            found.append((min(start, position), max(start, position)))
        position = max(position, stop)
    if position != n_rows:
        found.append((min(position, n_rows), max(position, n_rows)))
    return found
