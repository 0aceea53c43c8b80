"""Values of the model's extra inputs, record by record: whole numbers as int64, others as float32, all finite.

Values are read once, in blocks, beside the sequences: those of record 5 belong to record 5 of the input. A bad value is
a problem of its record.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config.dataset_args import ExtraInput
from pipeline.inputs.base import RowBatch
from pipeline.inputs.numbers import open_numbers
from pipeline.messages.errors import UserError
from pipeline.messages.words import counted

_LARGEST = 2.0**63


@dataclass(frozen=True)
class ValueBlock:
    """(m, ...) values of the next m records, and the problems of some, by their index in the block."""

    values: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)


class RecordValues:
    """Values for each record of the input; `shape` and `dtype` are those of one record, `blocks` reads them."""

    def __init__(
        self, entry: ExtraInput, shape: tuple[int, ...], dtype: str, blocks: Callable[[], Iterator[ValueBlock]]
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._entry, self._blocks = entry, blocks()
        self._block, self._start = ValueBlock(np.zeros((0, *shape), dtype)), 0

    def take(self, rows: RowBatch) -> tuple[np.ndarray, list[str | None]]:
        """See `Values`. Raises UserError where the values end before the rows."""
        values, problems = np.zeros((len(rows), *self.shape), self.dtype), []
        for i, record in enumerate(rows.source_row.tolist()):
            if not self._advance(record):
                n = self._start + len(self._block.values)
                raise UserError(f"{self._wrong_number(n)}, and the input has record {record} (counted from 0) too")
            values[i] = self._block.values[record - self._start]
            problems.append(self._block.problems.get(record - self._start))
        return values, problems

    def finish(self, n_records: int) -> None:
        """See `Values`."""
        while self._advance(self._start + len(self._block.values)):
            pass  # to count them
        if (n := self._start + len(self._block.values)) != n_records:
            raise UserError(f"{self._wrong_number(n)}, and the input has {counted(n_records, 'record')}")

    def _advance(self, record: int) -> bool:
        """Go to the block with a record. False where the values end before it."""
        while record >= self._start + len(self._block.values):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._start += len(self._block.values)
            self._block = block
        return True

    def _wrong_number(self, n: int) -> str:
        return (
            f"dataset.args: {self._entry.text} has {counted(n, 'row')}; expected one for each record of the input, "
            f"also for those that are left out"
        )


def dtype_of(kind: str, wanted: str | None, where: str) -> str:
    """The wanted type, else int64 or float32 by numpy's letter `kind`. Raises UserError where that is no number's."""
    if kind not in "biuf":
        what = {"O": "Python objects", "U": "text", "S": "text", "M": "dates"}.get(kind, f"values of kind {kind!r}")
        raise UserError(f"dataset.args: {where} holds {what}; expected numbers")
    return wanted or ("int64" if kind in "iu" else "float32")


def checked(values: np.ndarray, dtype: str, what: Callable[[int], str]) -> ValueBlock:
    """(m, ...) numbers of any type converted to `dtype`, float32 or int64; `what` names those of a record in errors."""
    if dtype == "float32":
        with np.errstate(over="ignore"):
            made = values.astype(np.float32)
        is_bad, expected = ~np.isfinite(made), "expected finite numbers, which float32 can hold"
    else:
        is_bad = np.zeros(values.shape, bool)
        if values.dtype.kind == "f":
            is_bad = (values != np.floor(values)) | ~(np.abs(values) < _LARGEST)
        elif values.dtype == np.uint64:
            is_bad = values >= np.uint64(_LARGEST)
        made, expected = np.where(is_bad, 0, values).astype(np.int64), "expected whole numbers, which int64 can hold"
    problems = {}
    for i in np.flatnonzero(is_bad.reshape(len(values), -1).any(axis=1)).tolist():
        place = tuple(int(index) for index in np.argwhere(is_bad[i])[0])
        at = f" at {place} of it" if values[i].size > 1 else ""
        problems[i] = f"{what(i)} is {values[i][place]}{at}; {expected}"
    return ValueBlock(made, problems)


def array(entry: ExtraInput, path: Path, key: str | None) -> RecordValues:
    """An array with a row for each record: npy, npz or Zarr. Raises UserError where it is none of numbers."""

    def setting(key: str) -> str:
        return f"dataset.args=[{key}]" if entry.name else f"dataset.args=[{path}:{key}]"

    with open_numbers(path, key, setting) as (numbers, where):
        shape = numbers.shape
        if not shape or 0 in shape:
            raise UserError(f"dataset.args: {where} has the shape {shape}; expected a row for each record")
        dtype = dtype_of(numbers.dtype.kind, entry.dtype, where)

    def blocks() -> Iterator[ValueBlock]:
        with open_numbers(path, key, setting) as (numbers, where):
            start = 0
            for block in numbers.blocks:
                yield checked(block, dtype, partial(_row_of, where, start))
                start += len(block)

    return RecordValues(entry, shape[1:], dtype, blocks)


def _row_of(where: str, start: int, i: int) -> str:
    return f"row {start + i} of {where}"
