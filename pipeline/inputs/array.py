"""Sequences as numbers in npy, npz or Zarr, read in blocks: see onehot.py for what they mean.

Rows have no names: row 5 is called `row_5`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.config import limits
from pipeline.config.dataset_args import ExtraInput
from pipeline.config.settings import setting
from pipeline.inputs import numeric
from pipeline.inputs.base import Row, RowSource, Source, Values
from pipeline.inputs.file_types import is_zarr, suffix_of
from pipeline.inputs.form import InputForm
from pipeline.inputs.numbers import open_numbers
from pipeline.inputs.onehot import AXES, READ_AS, axes_of, decode, require_codes
from pipeline.messages.errors import UserError


@dataclass
class Array(InputForm):
    """One-hot or codes, in npy, npz or Zarr."""

    is_called: ClassVar[str] = "an array"
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".npz", ".zarr")
    magic: ClassVar[tuple[bytes, ...]] = (b"\x93NUMPY",)
    has_columns: ClassVar[bool] = True

    name: str = "array"
    path: str = setting("npy or npz file, or a Zarr folder", is_file=True, is_plain=True)
    key: str | None = setting("which array of an npz file or Zarr group", None, is_plain=True)
    axes: str | None = setting(
        "N4L, NL4 or NL, where the shape does not tell their order", None, choices=AXES, is_plain=True
    )

    def open(self) -> Source:
        return ArraySource(self.given_path(), self.key, self.axes)

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        return is_zarr(folder) or suffix_of(folder) == ".zarr"

    def values_of(self, entry: ExtraInput) -> Values:
        return numeric.array(entry, self.given_path(), entry.name)


class ArraySource(RowSource):
    """Every row of one array, in order; arguments as in `Array`."""

    def __init__(self, path: Path, key: str | None = None, axes: str | None = None) -> None:
        self.path, self.key, self.axes = path, key, axes
        self.description: dict[str, Any] = {"kind": "array", "path": path.name, "key": key}

    def _rows(self) -> Iterator[Row]:
        with open_numbers(self.path, self.key) as (numbers, where):
            n_rows = numbers.shape[0] if numbers.shape else 0
            axes = axes_of(numbers.shape, numbers.dtype.kind, self.axes, where)
            self.description["axes"] = axes
            named = self.path.name + (f" [{self.key}]" if self.key else "")
            self.description["notes"] = [f"{named}: shape {numbers.shape} read as {READ_AS[axes]}"]
            if n_rows == 0:
                raise UserError(f"{where} has the shape {numbers.shape}: it holds no rows")
            limits.require_sequence(numbers.shape[1 if axes == "NL4" else -1], f"{where}: each row")
            index = 0
            for block in numbers.blocks:
                if index == 0 and axes == "NL" and self.axes is None:
                    require_codes(block, n_rows, where)
                for codes, problem in zip(*decode(block, axes), strict=True):
                    name = f"row_{index}"
                    if problem is None:
                        yield Row(index, codes, None, name)
                    else:
                        yield Row(index, None, f"row {index} ({self.path.name}): {problem}", name)
                    index += 1
