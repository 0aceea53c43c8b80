"""An input with the further inputs of the model beside its sequences; see pipeline/entries.py for what they may be."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.entries import Entry, parse
from pipeline.sources import cells, numeric
from pipeline.sources.base import Rows, Source
from pipeline.sources.columnar import MAGIC
from pipeline.sources.forms import first_bytes
from pipeline.sources.text import require_file, require_place, shown
from pipeline.sources.tracks import Tracks

_BYTES_PER_BATCH = 1 << 26  # of further inputs


class WithArgs:
    """A source whose rows have further inputs.

    Args:
        source: gives the rows.
        dataset: says what the further inputs are.

    Raises:
        UserError: one of them is not there, or holds no numbers.
    """

    def __init__(self, source: Source, dataset: DatasetConfig) -> None:
        self._source, self._dataset = source, dataset
        self._entries = [parse(arg) for arg in dataset.args]
        source.description["args"] = [_described(entry) for entry in self._entries]
        self.description: dict[str, Any] = source.description
        self._ready: list[numeric.Values] | None = self._opened()  # what is wrong with them is to be known at once

    def batches(self) -> Iterator[Rows]:
        """The rows with their further inputs; a row without one is a bad one. See `Source`."""
        args, n_records = self._ready or self._opened(), 0
        self._ready = None  # they are read once
        row_bytes = sum(int(np.prod(arg.shape)) * np.dtype(arg.dtype).itemsize for arg in args)
        step = max(1, _BYTES_PER_BATCH // max(1, row_bytes))
        for batch in self._source.batches():
            n_records = max(n_records, int(batch.source_row[-1]) + 1)
            for start in range(0, len(batch), step):
                yield _joined(_rows(batch, start, start + step), args)
        for arg in args:
            arg.finish(self._source.description.get("n_windows", n_records))

    def _opened(self) -> list[numeric.Values]:
        return [_open(entry, self._dataset) for entry in self._entries]


def _joined(rows: Rows, args: Sequence[numeric.Values]) -> Rows:
    """The rows with values of each."""
    found = [arg.take(rows) for arg in args]
    problems = list(rows.problem)
    for i, problem in enumerate(problems):
        own = next((text for _, texts in found if (text := texts[i]) is not None), None)
        if problem is None and own is not None:
            problems[i] = f"row {rows.source_row[i]} {shown(rows.name[i])}: dataset.args: {own}"
    return replace(rows, problem=problems, args=list(zip(*(values for values, _ in found), strict=True)))


def _rows(batch: Rows, start: int, stop: int) -> Rows:
    """Some rows of a batch."""
    if start == 0 and stop >= len(batch):
        return batch
    return Rows(**{item.name: getattr(batch, item.name)[start:stop] for item in fields(batch)})


def _open(entry: Entry, dataset: DatasetConfig) -> numeric.Values:
    """What gives the values of an entry, from the beginning."""
    paths = [require_place(path, "dataset.args") for path in entry.paths]
    if entry.is_track:
        assert dataset.length is not None  # what locates windows needs it
        files = [require_file(path, "dataset.args") for path in paths]
        return Tracks(files, dataset.length, dataset.strand)
    if paths:
        return numeric.array(entry, paths[0], entry.key)
    match dataset.name:
        case "table":
            path = require_file(dataset.path, "dataset.path")
            if first_bytes(path).startswith(MAGIC):
                return cells.columnar(entry, path)
            return cells.delimited(entry, path, dataset.delimiter)
        case "loci":
            return cells.of_loci(entry, require_file(dataset.loci, "dataset.loci"))
    assert dataset.name == "array"  # others with names were refused with the settings
    return numeric.array(entry, require_place(dataset.path, "dataset.path"), entry.name)


def _described(entry: Entry) -> str:
    """An entry for the store, with the names of its files."""
    if not entry.paths:
        return entry.text
    names = [Path(path).name for path in entry.paths]
    return f"{names[0]}:{entry.key}" if entry.key else "+".join(names)
