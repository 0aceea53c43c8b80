"""The table as tab-separated text."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.exports.base import Export
from pipeline.exports.tables import K_OPTION, Columns, export
from pipeline.exports.text import field


def write(path: Path, blocks: Iterator[Columns]) -> None:
    """A text file whose first line has the names of the columns."""
    with path.open("w", encoding="utf-8") as file:
        for number, columns in enumerate(blocks):
            if number == 0:
                file.write("\t".join(map(field, columns)) + "\n")
            for row in zip(*map(_numbers, columns.values()), strict=True):
                file.write("\t".join(map(field, row)) + "\n")


def _numbers(values: Any) -> Any:
    """A column whose numbers are written with the digits that those of a store have, which are float32."""
    is_float64 = isinstance(values, np.ndarray) and values.dtype == np.float64
    return values.astype(np.float32) if is_float64 else values


EXPORT = Export(
    name="tsv",
    help="the table of `parquet` as text",
    write=partial(export, write),
    options=K_OPTION,
    every_target=True,
    purpose="a table, a line for each row or variant",
    suffix=".tsv",
)
