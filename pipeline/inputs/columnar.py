"""Tables in Parquet and Arrow (IPC files, which Feather is, and streams), read in small batches by column."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.sources.forms import first_bytes

MAGIC = (b"PAR1", b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")
_ROWS = 128  # in a batch: sequences may be long


class Columnar:
    """A Parquet or Arrow file: its columns, their types, and their values.

    Args:
        path: of the file.

    Raises:
        UserError: it is damaged, or of an old format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._magic = first_bytes(path)
        if self._magic.startswith(b"FEA1"):
            raise UserError(f"{path} is Feather version 1; write it again as version 2, which is today's default")
        with self._explained():
            if self._is_parquet:
                with pq.ParquetFile(path, memory_map=True) as file:
                    schema = file.schema_arrow
            else:
                with pa.memory_map(str(path)) as file, self._open(file) as reader:
                    schema = reader.schema
        self.types: dict[str, pa.DataType] = dict(zip(schema.names, schema.types, strict=True))
        self.columns: list[str] = schema.names

    @property
    def _is_parquet(self) -> bool:
        return self._magic.startswith(b"PAR1")

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Some columns, a small batch at a time, in the order of the file."""
        with self._explained():
            if self._is_parquet:
                # buffer_size: a column is decompressed page by page and not a whole row group at once
                with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                    yield from file.iter_batches(_ROWS, columns=columns, use_threads=False)
            else:
                with pa.memory_map(str(self.path)) as file, self._open(file) as reader:
                    for batch in self._record_batches(reader):
                        chosen = batch.select(columns)
                        for start in range(0, len(chosen), _ROWS):
                            yield chosen.slice(start, _ROWS)

    def values(self, column: str) -> Iterator[Any]:
        """The values of a column, one by one; None where a row has none."""
        return (value for batch in self.batches([column]) for value in batch.column(column).to_pylist())

    def _open(self, file: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        return pa.ipc.open_file(file) if self._magic.startswith(b"ARROW1") else pa.ipc.open_stream(file)

    def _record_batches(
        self, reader: pa.RecordBatchFileReader | pa.RecordBatchStreamReader
    ) -> Iterator[pa.RecordBatch]:
        if isinstance(reader, pa.RecordBatchFileReader):
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is truncated or damaged: {reason}; copy or download it again") from error


def list_shape(type_: pa.DataType) -> tuple[int, ...] | None:
    """The shape of each value of a column of fixed-size lists; None for another column."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(type_):
        shape, type_ = (*shape, type_.list_size), type_.value_type
    return shape or None


def kind_of(type_: pa.DataType) -> str:
    """numpy's letter for the values of a column, or for those in its lists."""
    while pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return str(np.dtype(type_.to_pandas_dtype()).kind)


def values_of(column: pa.Array, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column of numbers or of fixed-size lists of them.

    Args:
        column: m values.
        where: for the error.

    Returns:
        (m, size of a list) values, and (m,) bool: which are there, each with all its numbers; the others hold anything.

    Raises:
        UserError: a list within a list is missing.
    """
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    size = math.prod(list_shape(column.type) or ())
    flat = column.drop_null()
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    if len(flat) != size * int(is_there.sum()):
        raise UserError(f"{where}: a list holds an empty place; expected numbers everywhere")
    are_numbers = flat.is_valid().to_numpy(zero_copy_only=False)
    if flat.null_count and not pa.types.is_floating(flat.type):
        flat = flat.fill_null(pa.scalar(0, flat.type))
    found = flat.to_numpy(zero_copy_only=False)
    values = np.zeros((len(column), size), found.dtype)
    values[is_there] = found.reshape(-1, size)
    is_whole = is_there.copy()
    is_whole[is_there] = are_numbers.reshape(-1, size).all(axis=1)
    return values, is_whole
