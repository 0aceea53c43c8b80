"""Columns of numbers in tables and loci, as extra inputs of the model: see numeric.py."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.config.dataset_args import ExtraInput
from pipeline.inputs.bed import columns, data_lines
from pipeline.inputs.centres import Centring
from pipeline.inputs.columnar import Columnar, kind_of, list_shape, values_of
from pipeline.inputs.columns import require_column
from pipeline.inputs.delimited import Delimited
from pipeline.inputs.numeric import RecordValues, ValueBlock, checked, dtype_of
from pipeline.inputs.text import text_of
from pipeline.messages.errors import UserError
from pipeline.messages.visible import shown
from pipeline.messages.words import one_of

_CELLS = 1024  # of a text in a block
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_BED = {"start": 2, "end": 3, "score": 5}  # columns with numbers, from 1
_PEAK = {**_BED, "signalvalue": 7, "pvalue": 8, "qvalue": 9}
_BED_MORE = {**_BED, "thickstart": 7, "thickend": 8}


def columnar(entry: ExtraInput, path: Path) -> RecordValues:
    """A column of a Parquet or Arrow file, of numbers or of fixed-size lists of them. Raises UserError for another."""
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

    def blocks() -> Iterator[ValueBlock]:
        for batch in table.batches([entry.name]):
            values, is_there = values_of(batch.column(entry.name), where)
            block = checked(values.reshape(-1, *shape), dtype, lambda i: f"column {entry.name!r} of {path.name}")
            empty = f"column {entry.name!r} of {path.name} is empty, or has an empty place; expected numbers"
            yield ValueBlock(block.values, block.problems | dict.fromkeys(np.flatnonzero(~is_there).tolist(), empty))

    return RecordValues(entry, shape, dtype, blocks)


@dataclass(frozen=True)
class Cell:
    """A field of a text (None where its line has none), and its place, for errors."""

    text: str | None
    where: str


def text_column(entry: ExtraInput, cells: Callable[[], Iterator[Cell]]) -> RecordValues:
    """A column of a text, which `cells` reads from its beginning: of the given type, else int64 where all numbers are
    whole, else float32."""
    numbers = (cell.text for cell in cells() if cell.text is not None and _number(cell.text) is not None)
    dtype = entry.dtype or ("int64" if all(_WHOLE.fullmatch(text) for text in numbers) else "float32")

    def blocks() -> Iterator[ValueBlock]:
        found = cells()
        while some := list(islice(found, _CELLS)):
            yield _of_cells(some, dtype)

    return RecordValues(entry, (1,), dtype, blocks)


def _of_cells(cells: list[Cell], dtype: str) -> ValueBlock:
    numbers = [None if cell.text is None else _number(cell.text) for cell in cells]
    are_whole = all(number is None or isinstance(number, int) for number in numbers)
    values = np.array([0 if number is None else number for number in numbers], np.int64 if are_whole else np.float64)
    block = checked(values[:, None], dtype, lambda i: cells[i].where)
    problems = {
        i: f"{cell.where} is {'not there' if cell.text is None else shown(cell.text)}; expected a number"
        for i, (cell, number) in enumerate(zip(cells, numbers, strict=True))
        if number is None
    }
    return ValueBlock(block.values, block.problems | problems)


def _number(text: str) -> int | float | None:
    """The number in a field, or None."""
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return None if "_" in text or math.isnan(number) else number


def delimited(entry: ExtraInput, path: Path, delimiter: str | None) -> RecordValues:
    """A column of a table as text. Raises UserError where there is none of this name."""
    table = Delimited(path, delimiter)
    require_column(entry.name, table.columns, "dataset.args", path)
    place = table.columns.index(entry.name)

    def cells() -> Iterator[Cell]:
        for line in table.lines():
            where = f"column {entry.name!r} of {path.name}, line {line.number},"
            yield Cell(line.fields[place].strip() if line.problem is None else None, where)

    return text_column(entry, cells)


def of_loci(entry: ExtraInput, path: Path) -> RecordValues:
    """A column of BED or narrowPeak, by its name in these formats or its number from 1. Raises UserError for others."""
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
    """The columns with numbers, by the form of all lines, or of the first one and the name of the file."""
    form, n = Centring(path.name), 0
    for _, _, line in data_lines(path):
        fields = columns(text_of(line)[0])
        form.add(fields)
        n = n or len(fields)
    if form.is_narrow_peak:
        return {**_PEAK, "peak": 10}
    return _PEAK if ".broadpeak" in path.name.lower() else {name: i for name, i in _BED_MORE.items() if i <= n}
