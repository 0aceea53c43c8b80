"""Tables of exports, Parquet or TSV, written some rows at a time."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.text import field

Write = Callable[[dict[str, list[Any]]], None]  # given columns by name, of some rows


@contextlib.contextmanager
def _parquet(path: Path, columns: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, columns) as writer:
        yield lambda values: writer.write_table(pa.table(values, schema=columns))


@contextlib.contextmanager
def _tsv(path: Path, columns: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join(columns.names) + "\n")

        def write(values: dict[str, list[Any]]) -> None:
            for row in zip(*(values[name] for name in columns.names), strict=True):
                file.write("\t".join(map(field, row)) + "\n")

        yield write


OPENERS = {"parquet": _parquet, "tsv": _tsv}
