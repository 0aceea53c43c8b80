"""What every input form gives: batches of parsed rows, bad ones included.

Coordinates are 0-based and half-open. The codes of a bad row are None and its problem says why; the caller stops, or
leaves the row out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

ROWS_PER_BATCH = 1024
BYTES_PER_BATCH = 1 << 24  # of codes and names; the first limit reached ends a batch: records may be long


@dataclass(frozen=True)
class RowBatch:
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
        extra_inputs: per row the values of the model's extra inputs, each of the same shape and type in every row;
            empty where there are none.
    """

    source_row: np.ndarray
    codes: list[np.ndarray | None]
    problem: list[str | None]
    name: list[str]
    chrom: list[str]
    start: np.ndarray
    end: np.ndarray
    strand: list[str]
    extra_inputs: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.codes)

    def extra_inputs_of(self, i: int) -> tuple[np.ndarray, ...]:
        """The model's extra inputs of one row."""
        return self.extra_inputs[i] if self.extra_inputs else ()


class Source(Protocol):
    """An input that can be read from its beginning, any number of times.

    `description` is what the store says of the input, complete once the rows have been read. Its `notes` are lines
    about choices that change values.
    """

    description: dict[str, Any]

    def batches(self) -> Iterator[RowBatch]:
        """The rows in input order. Raises UserError (a ValueError) when the file as a whole cannot be read."""
        ...


@dataclass
class Row:
    """One parsed row; the fields are those of `RowBatch`."""

    source_row: int
    codes: np.ndarray | None
    problem: str | None
    name: str
    chrom: str = ""
    start: int = -1
    end: int = -1
    strand: str = "."


def _batch(rows: Sequence[Row]) -> RowBatch:
    columns: dict[str, Any] = {item.name: [getattr(row, item.name) for row in rows] for item in fields(Row)}
    return RowBatch(**columns | {name: np.array(columns[name], np.int64) for name in ("source_row", "start", "end")})


def batched(rows: Iterable[Row]) -> Iterator[RowBatch]:
    """Rows in batches of bounded size."""
    some: list[Row] = []
    n_bytes = 0
    for row in rows:
        some.append(row)
        n_bytes += len(row.name) + (0 if row.codes is None else len(row.codes))
        if len(some) >= ROWS_PER_BATCH or n_bytes >= BYTES_PER_BATCH:
            yield _batch(some)
            some, n_bytes = [], 0
    if some:
        yield _batch(some)


class RowSource(ABC):
    """A source that reads row by row; see `Source`."""

    description: dict[str, Any]

    def batches(self) -> Iterator[RowBatch]:
        return batched(self._rows())

    @abstractmethod
    def _rows(self) -> Iterator[Row]:
        """The rows in input order."""


class Values(Protocol):
    """The values of one extra input."""

    shape: tuple[int, ...]
    dtype: str

    def take(self, rows: RowBatch) -> tuple[np.ndarray, list[str | None]]:
        """(n, ...) values of the rows, in the order of the input, and for each None or why it has no value."""
        ...

    def finish(self, n_records: int) -> None:
        """Called after the last row. Raises UserError where the number of values is not that of the records."""
        ...
