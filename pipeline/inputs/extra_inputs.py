"""An input with extra inputs of the model beside its sequences; see config/dataset_args.py."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.dataset_args import ExtraInput, parse
from pipeline.inputs import numeric
from pipeline.inputs.base import RowBatch, Source, Values
from pipeline.inputs.bigwig import Tracks
from pipeline.inputs.form import InputForm, Windows
from pipeline.inputs.text import require_file, require_path
from pipeline.messages.visible import shown

_BYTES_PER_BATCH = 1 << 26  # of extra inputs


class WithExtraInputs:
    """A source with the extra inputs that `dataset.args` names. Raises UserError for one that cannot be read."""

    def __init__(self, source: Source, dataset: InputForm) -> None:
        self._source, self._dataset = source, dataset
        self._entries = [parse(arg) for arg in dataset.args]
        source.description["args"] = [_described(entry) for entry in self._entries]
        self.description: dict[str, Any] = source.description
        self._ready: list[Values] | None = self._open_all()  # bad files are refused at once

    def batches(self) -> Iterator[RowBatch]:
        """The rows with their extra inputs; a row without one is bad. See `Source`."""
        args, n_records = self._ready or self._open_all(), 0
        self._ready = None  # they are read once
        row_bytes = sum(int(np.prod(arg.shape)) * np.dtype(arg.dtype).itemsize for arg in args)
        step = max(1, _BYTES_PER_BATCH // max(1, row_bytes))
        for batch in self._source.batches():
            n_records = max(n_records, int(batch.source_row[-1]) + 1)
            for start in range(0, len(batch), step):
                yield _joined(_rows(batch, start, start + step), args)
        for arg in args:
            arg.finish(self._source.description.get("n_windows", n_records))
        types, notes = self._types(args), self.description.get("notes", [])
        self.description["notes"] = [*(line for line in notes if line not in types), *types]

    def _types(self, args: Sequence[Values]) -> list[str]:
        """A line with the types and shapes that `dataset.args` does not give."""
        guessed = [(entry, arg) for entry, arg in zip(self._entries, args, strict=True) if entry.dtype is None]
        kinds = [f"{_called(entry)} as {arg.dtype} (N, {', '.join(map(str, arg.shape))})" for entry, arg in guessed]
        return [f"dataset.args gives {', '.join(kinds)}"] if kinds else []

    def _open_all(self) -> list[Values]:
        return [_open(entry, self._dataset) for entry in self._entries]


def _joined(rows: RowBatch, args: Sequence[Values]) -> RowBatch:
    """The rows with values of each."""
    found = [arg.take(rows) for arg in args]
    problems = list(rows.problem)
    for i, problem in enumerate(problems):
        own = next((text for _, texts in found if (text := texts[i]) is not None), None)
        if problem is None and own is not None:
            problems[i] = f"row {rows.source_row[i]} {shown(rows.name[i])}: dataset.args: {own}"
    return replace(rows, problem=problems, extra_inputs=list(zip(*(values for values, _ in found), strict=True)))


def _rows(batch: RowBatch, start: int, stop: int) -> RowBatch:
    """Some rows of a batch."""
    if start == 0 and stop >= len(batch):
        return batch
    return RowBatch(**{item.name: getattr(batch, item.name)[start:stop] for item in fields(batch)})


def _open(entry: ExtraInput, dataset: InputForm) -> Values:
    """What gives the values of an entry, from the beginning."""
    paths = [require_path(path, "dataset.args") for path in entry.paths]
    if entry.is_track:
        assert isinstance(dataset, Windows)  # others were refused with the settings
        files = [require_file(path, "dataset.args") for path in paths]
        return Tracks(files, dataset.width, getattr(dataset, "strand", "ignore"))
    return numeric.array(entry, paths[0], entry.key) if paths else dataset.values_of(entry)


def _called(entry: ExtraInput) -> str:
    return f"{_described(entry)} (0 where it has no value)" if entry.is_track else _described(entry)


def _described(entry: ExtraInput) -> str:
    """An entry for the store, with the names of its files."""
    if not entry.paths:
        return entry.text
    names = [Path(path).name for path in entry.paths]
    return f"{names[0]}:{entry.key}" if entry.key else "+".join(names)
