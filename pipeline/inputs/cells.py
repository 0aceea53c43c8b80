"""Columns of numbers in tables and loci, as further inputs of the model: see numeric.py."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.entries import Entry
from pipeline.errors import UserError
from pipeline.sources.columnar import Columnar, kind_of, list_shape, values_of
from pipeline.sources.delimited import Delimited
from pipeline.sources.loci import columns, data_lines
from pipeline.sources.numeric import Block, OfRecords, checked, dtype_of
from pipeline.sources.table import require_column
from pipeline.sources.text import shown, text_of
from pipeline.wording import one_of

_CELLS = 1024  # of a text in a block
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_BED = {"start": 2, "end": 3, "score": 5}  # columns with numbers, from 1
_PEAK = {**_BED, "signalvalue": 7, "pvalue": 8, "qvalue": 9}
_BED_MORE = {**_BED, "thickstart": 7, "thickend": 8}


def columnar(entry: Entry, path: Path) -> OfRecords:
    """A column of a Parquet or Arrow file, of numbers or of fixed-size lists of them.

    Raises:
        UserError: it is not there, or holds no numbers.
    """
    table = Columnar(path)
    require_column(entry.name, table.columns, "dataset.args", path)
    type_, where = table.types[entry.name], f"{path}, column {entry.name!r}"
    kind, shape = kind_of(type_), list_shape(type_) or (1,)
    if kind not in "biuf":
        raise UserError(
            f"dataset.args: {where} is {type_}; expected numbers, or fixed-size lists of them "
            f"(pyarrow.list_(pyarrow.float32(), K))"
        )
    dtype = dtype_of(kind, entry.dtype, where)

    def blocks() -> Iterator[Block]:
        for batch in table.batches([entry.name]):
            values, is_there = values_of(batch.column(entry.name), where)
            block = checked(values.reshape(-1, *shape), dtype, lambda i: f"column {entry.name!r} of {path.name}")
            empty = f"column {entry.name!r} of {path.name} is empty, or has an empty place; expected numbers"
            yield Block(block.values, block.problems | dict.fromkeys(np.flatnonzero(~is_there).tolist(), empty))

    return OfRecords(entry, shape, dtype, blocks)


@dataclass(frozen=True)
class Cell:
    """A field of a text, and where it stands; None where its line has none."""

    text: str | None
    where: str


def text_column(entry: Entry, cells: Callable[[], Iterator[Cell]]) -> OfRecords:
    """A column of a text. It is int64 where every field that is a number is a whole one, unless its type is said.

    Args:
        entry: of dataset.args.
        cells: reads the column from its beginning.
    """
    numbers = (cell.text for cell in cells() if cell.text is not None and _number(cell.text) is not None)
    dtype = entry.dtype or ("int64" if all(_WHOLE.fullmatch(text) for text in numbers) else "float32")

    def blocks() -> Iterator[Block]:
        some: list[Cell] = []
        for cell in cells():
            some.append(cell)
            if len(some) == _CELLS:
                yield _of_cells(some, dtype)
                some = []
        if some:
            yield _of_cells(some, dtype)

    return OfRecords(entry, (1,), dtype, blocks)


def _of_cells(cells: list[Cell], dtype: str) -> Block:
    numbers = [None if cell.text is None else _number(cell.text) for cell in cells]
    are_whole = all(number is None or isinstance(number, int) for number in numbers)
    values = np.array([0 if number is None else number for number in numbers], np.int64 if are_whole else np.float64)
    block = checked(values[:, None], dtype, lambda i: cells[i].where)
    problems = {
        i: f"{cell.where} is {'not there' if cell.text is None else shown(cell.text)}; expected a number"
        for i, (cell, number) in enumerate(zip(cells, numbers, strict=True))
        if number is None
    }
    return Block(block.values, block.problems | problems)


def _number(text: str) -> int | float | None:
    """The number that a field holds, None where it is none."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return None if "_" in text or math.isnan(number) else number


def delimited(entry: Entry, path: Path, delimiter: str | None) -> OfRecords:
    """A column of a table as text. Raises UserError where it is not there."""
    table = Delimited(path, delimiter)
    require_column(entry.name, table.columns, "dataset.args", path)
    place = table.columns.index(entry.name)

    def cells() -> Iterator[Cell]:
        for line in table.lines():
            where = f"column {entry.name!r} of {path.name}, line {line.number},"
            yield Cell(line.fields[place].strip() if line.problem is None else None, where)

    return text_column(entry, cells)


def of_loci(entry: Entry, path: Path) -> OfRecords:
    """A column of BED or narrowPeak, by its name in these formats or its number from 1.

    Raises:
        UserError: no column of this name holds numbers.
    """
    names = _loci_columns(path)
    number = int(entry.name) if entry.name.isdecimal() else names.get(entry.name.lower(), 0)
    if number < 1:
        raise UserError(
            f"dataset.args: {path} has no column of numbers {entry.name!r}; expected {one_of(list(names))}, the number "
            f"of a column counted from 1, or a file of values"
        )

    def cells() -> Iterator[Cell]:
        for _, line_number, line in data_lines(path):
            fields = columns(text_of(line)[0])
            where = f"column {number} of {path.name}, line {line_number},"
            yield Cell(fields[number - 1] if number <= len(fields) else None, where)

    return text_column(entry, cells)


def _loci_columns(path: Path) -> dict[str, int]:
    """The columns with numbers, by the form that the first line and the name of the file show."""
    first = next(data_lines(path), None)
    n = 0 if first is None else len(columns(text_of(first[2])[0]))
    if n == 10:
        return {**_PEAK, "peak": 10}
    return _PEAK if ".broadpeak" in path.name.lower() else {name: i for name, i in _BED_MORE.items() if i <= n}
