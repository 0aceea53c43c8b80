"""Tables in Parquet and Arrow (IPC files, which Feather is, and streams), read in small batches by column."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
