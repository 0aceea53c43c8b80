"""What every input form gives: batches of parsed rows, bad ones named and kept in their place.

Coordinates are 0-based and half-open. A row that cannot be used is still a row: its codes are None and its problem says
why, so that the caller decides whether to stop or to leave it out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

ROWS_PER_BATCH = 1024
BASES_PER_BATCH = 1 << 24  # whichever is reached first ends a batch, so that long records do not fill the memory


@dataclass(frozen=True)
class Rows:
    """One streamed batch of n parsed rows, in input order.

    Attributes:
        source_row: (n,) int64, the 0-based record or data line in the input.
        codes: per row (L_i,) uint8 codes, or None where the row is bad.
        problem: per row None, or why the row is bad; names the record and the line of the file.
        name: what the input calls the row.
        chrom: chromosome, "" where the input has none.
        start: (n,) int64, 0-based, -1 where the input has none.
        end: (n,) int64, exclusive, -1 where the input has none.
        strand: "+", "-" or "." (not known). Codes are as the input gives them; those of loci are of the plus strand,
            unless `dataset.strand=apply` makes those on the minus strand its reverse complement.
        args: per row the values of the model's further inputs, each of the same shape and type in every row; empty
            where there are none.
    """

    source_row: np.ndarray
    codes: list[np.ndarray | None]
    problem: list[str | None]
    name: list[str]
    chrom: list[str]
    start: np.ndarray
    end: np.ndarray
    strand: list[str]
    args: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.codes)

    def args_of(self, i: int) -> tuple[np.ndarray, ...]:
        """The model's further inputs of one row."""
        return self.args[i] if self.args else ()


class Source(Protocol):
    """An input that can be read from its beginning, any number of times.

    `description` is what the store says of the input; it is whole once the rows have been read.
    """

    description: dict[str, Any]

    def batches(self) -> Iterator[Rows]:
        """The rows in input order. Raises UserError (a ValueError) when the file as a whole cannot be read."""
        ...


@dataclass
class Row:
    """One parsed row, on its way into a batch; the fields are those of `Rows`."""

    source_row: int
    codes: np.ndarray | None
    problem: str | None
    name: str
    chrom: str = ""
    start: int = -1
    end: int = -1
    strand: str = "."


@dataclass
class Batcher:
    """Collects rows until a batch is full."""

    rows: list[Row] = field(default_factory=list)
    n_bases: int = 0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.n_bases += 0 if row.codes is None else len(row.codes)

    @property
    def full(self) -> bool:
        return len(self.rows) >= ROWS_PER_BATCH or self.n_bases >= BASES_PER_BATCH

    def take(self) -> Rows:
        """The batch collected so far; the collection starts again, empty."""
        rows, self.rows, self.n_bases = self.rows, [], 0
        return Rows(
            source_row=np.array([row.source_row for row in rows], dtype=np.int64),
            codes=[row.codes for row in rows],
            problem=[row.problem for row in rows],
            name=[row.name for row in rows],
            chrom=[row.chrom for row in rows],
            start=np.array([row.start for row in rows], dtype=np.int64),
            end=np.array([row.end for row in rows], dtype=np.int64),
            strand=[row.strand for row in rows],
        )


def batched(rows: Iterator[Row]) -> Iterator[Rows]:
    """Group single rows into batches of bounded size."""
    batcher = Batcher()
    for row in rows:
        batcher.add(row)
        if batcher.full:
            yield batcher.take()
    if batcher.rows:
        yield batcher.take()
