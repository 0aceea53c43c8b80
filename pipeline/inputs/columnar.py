"""Tables in Parquet and Arrow (IPC files, which Feather is, and streams), read in small batches by column.

Few bytes of such a file may stand for many: a dictionary and runs of its entries, compressed pages and batches. How
many is found before a batch is read, from what the file says, and counted when it has come.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import limits
from pipeline.inputs.compressed import first_bytes, refuse_compressed
from pipeline.inputs.parquet_pages import Page, pages
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line

_STREAM_IN_FILE = 8  # where the messages of an IPC file begin
MAGIC = (b"PAR1", b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")
_ROWS = 128  # in a batch: sequences may be long
_ROW_BYTES = 16  # counted of a row that takes less
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # of Parquet's numbers


class Columnar:
    """A Parquet or Arrow file: its columns, their types, and values. Raises UserError for a damaged or old file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._magic = first_bytes(path)
        refuse_compressed(path, "a Parquet or Arrow file")
        if self._magic.startswith(b"FEA1"):
            raise UserError(f"{path} is Feather version 1; write it again as version 2, which is today's default")
        with self._user_errors():
            if self._is_parquet:
                with pq.ParquetFile(path, memory_map=True) as file:
                    schema = file.schema_arrow
            else:
                with pa.memory_map(str(path)) as file, self._open(file) as reader:
                    schema = reader.schema
                    self._n_batches = getattr(reader, "num_record_batches", None)  # a stream does not say
        self.types: dict[str, pa.DataType] = dict(zip(schema.names, schema.types, strict=True))
        self.columns: list[str] = schema.names

    @property
    def _is_parquet(self) -> bool:
        return self._magic.startswith(b"PAR1")

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Some columns, a small batch at a time, in the order of the file. Raises UserError for a column whose values
        are neither text, numbers nor lists of numbers, and where a row or the whole is beyond the limits."""
        for name in columns:
            if not _is_plain(self.types[name]):
                raise UserError(
                    f"{self.path}, column {name!r} is {self.types[name]}; expected text, numbers or lists of numbers"
                )
        streamed, are_shared = limits.Streamed(self.path), any(_is_shared(self.types[name]) for name in columns)
        with self._user_errors():
            for batch in self._parquet(columns) if self._is_parquet else self._arrow(columns):
                batch.validate(full=True)  # offsets within the values, and UTF-8
                n_bytes = sum(map(_nbytes, batch.columns)) if are_shared else batch.nbytes
                of_cells = sum(map(_cell_bytes, batch.columns)) if are_shared else n_bytes
                streamed.add(max(of_cells, _ROW_BYTES * len(batch)))
                if not are_shared and n_bytes <= limits.record_bytes():
                    yield batch
                    continue
                step = min([len(batch), *(self._step(column, batch.column(column)) for column in columns)])
                yield from (batch.slice(start, step) for start in range(0, len(batch), max(step, 1)))

    def _step(self, name: str, column: pa.Array) -> int:
        """Rows to take at once of a batch. Raises UserError for a cell that is larger than `limits.record_mb`."""
        if not _is_shared(column.type) and column.nbytes <= limits.record_bytes():
            return len(column)
        longest = _longest(column)
        limits.require_record(longest, f"{self.path}: a cell of column {name!r}")
        return max(1, limits.record_bytes() // max(1, longest))

    def _parquet(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        # buffer_size: a column is decompressed page by page and not a whole row group at once
        with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
            n_rows = self._parquet_step(file, columns)
            yield from file.iter_batches(n_rows, columns=columns, use_threads=False)

    def _parquet_step(self, file: pq.ParquetFile, columns: list[str]) -> int:
        """Rows that can be read at once: what is known of the sizes of cells are means, and entries of dictionaries."""
        n_rows, most = _ROWS, limits.record_bytes()
        with self.path.open("rb") as opened:
            chunks = list(_chunks(file.metadata, columns, opened.fileno()))
        for chunk in chunks:
            mean = chunk.n_bytes // max(1, chunk.n_rows)
            limits.require_record(mean, f"{self.path}: the mean cell of {chunk.path!r}")
            n_rows = min(n_rows, max(1, most * chunk.n_rows // max(1, chunk.n_bytes)))
            if any(page.is_delta for page in chunk.pages):  # of a value only what differs from the one before
                n_rows = 1
            elif chunk.is_text and chunk.n_bytes * n_rows > most and any(page.is_dictionary for page in chunk.pages):
                n_rows = min(n_rows, max(1, most // max(1, self._longest_entry(chunk.path, chunk.group))))
        limits.require_streamed(sum(chunk.n_bytes for chunk in chunks), self.path)
        largest = max((page.unpacked for chunk in chunks for page in chunk.pages), default=0)
        limits.require_held(largest, limits.bytes_on_disk(self.path), f"{self.path}: a page")
        return n_rows

    def _longest_entry(self, column: str, group: int) -> int:
        """Bytes of the longest entry in the dictionary of a column of text. Raises UserError where it is too long."""
        with pq.ParquetFile(self.path, read_dictionary=[column], buffer_size=1 << 20, pre_buffer=False) as file:
            first = next(file.iter_batches(1, row_groups=[group], columns=[column], use_threads=False)).column(0)
        longest = _longest(first)
        limits.require_record(longest, f"{self.path}: a cell of column {column!r}")
        return longest

    def _arrow(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        begin, on_disk, n = 0 if self._n_batches is None else _STREAM_IN_FILE, limits.bytes_on_disk(self.path), 0
        with pa.memory_map(str(self.path)) as file:
            file.seek(begin)
            for message in pa.ipc.MessageReader.open_stream(file):
                limits.require_held(unpacked_bytes(message), on_disk, f"{self.path}: a batch of rows")
            file.seek(begin)
            with pa.ipc.open_stream(file) as reader:
                for batch in reader:
                    n += 1
                    chosen = batch.select(columns)
                    yield from (chosen.slice(start, _ROWS) for start in range(0, len(chosen), _ROWS))
        if self._n_batches not in (None, n):
            raise UserError(f"{self.path} is damaged: it has {n} of {self._n_batches} batches of rows")

    def values(self, column: str) -> Iterator[Any]:
        """The values of a column, one by one; None where a row has none."""
        return (value for batch in self.batches([column]) for value in batch.column(column).to_pylist())

    def _open(self, file: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        return pa.ipc.open_file(file) if self._magic.startswith(b"ARROW1") else pa.ipc.open_stream(file)

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, struct.error) as error:
            reason = one_line(error)
            raise UserError(f"{self.path} is truncated or damaged: {reason}; copy or download it again") from error


def unpacked_bytes(message: pa.ipc.Message) -> int:
    """Bytes that the body of a message of Arrow's IPC format says it decompresses to; 0 where it is not compressed.

    The metadata are a flatbuffer: a `Message`, whose third field is a `RecordBatch`, or a `DictionaryBatch` that has
    one as its second. Of a batch, field 2 lists its buffers, and field 3 is there where they are compressed; each then
    begins with its size.
    """
    data, body = message.metadata.to_pybytes(), memoryview(message.body or b"")
    batch = _flat_field(data, struct.unpack_from("<I", data)[0], 2)
    if batch is not None and message.type == "dictionary":
        batch = _flat_field(data, batch, 1)
    if batch is None or message.type == "schema" or _flat_field(data, batch, 3) is None:
        return 0
    buffers = _flat_field(data, batch, 2)
    if buffers is None:
        return 0
    found = struct.iter_unpack("<qq", data[buffers + 4 : buffers + 4 + 16 * struct.unpack_from("<I", data, buffers)[0]])
    return sum(max(0, struct.unpack_from("<q", body, at)[0]) for at, size in found if size >= 8)


def _flat_field(data: bytes, table: int, field: int) -> int | None:
    """Where the table or vector is that a field of a table of a flatbuffer refers to; None without the field."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * field
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    if not (offset := struct.unpack_from("<H", data, vtable + slot)[0]):
        return None
    return int(table + offset + struct.unpack_from("<I", data, table + offset)[0])


class _Chunk(NamedTuple):
    """A column of a row group: it unpacks to at least the bytes of its pages, whatever the file says of it."""

    path: str
    group: int
    n_rows: int
    n_bytes: int
    is_text: bool
    pages: list[Page]


def _chunks(about: pq.FileMetaData, columns: list[str], descriptor: int) -> Iterator[_Chunk]:
    """Those of some columns. Raises ValueError where a page is damaged."""
    for group in range(about.num_row_groups):
        of_group = about.row_group(group)
        for chunk in map(of_group.column, range(of_group.num_columns)):
            path = chunk.path_in_schema
            if not any(path == name or path.startswith(f"{name}.") for name in columns):
                continue
            start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
            n_packed = chunk.total_compressed_size if chunk.num_values else 0
            found = list(pages(descriptor, start, start + n_packed))
            values = chunk.num_values * _WIDTHS.get(chunk.physical_type, _ROW_BYTES)
            n_bytes = max(chunk.total_uncompressed_size, sum(page.unpacked for page in found), values)
            yield _Chunk(path, group, of_group.num_rows, n_bytes, chunk.physical_type == "BYTE_ARRAY", found)


def _is_plain(type_: pa.DataType) -> bool:
    """Whether values are text, numbers, or lists of numbers."""
    if pa.types.is_dictionary(type_):
        return not pa.types.is_nested(type_.value_type)
    is_list = False
    while pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        type_, is_list = type_.value_type, True
    return not pa.types.is_nested(type_) and not (is_list and not pa.types.is_primitive(type_))


def _is_shared(type_: pa.DataType) -> bool:
    """Whether several rows may share the bytes of a cell."""
    return bool(pa.types.is_dictionary(type_) or pa.types.is_string_view(type_) or pa.types.is_binary_view(type_))


def _nbytes(column: pa.Array) -> int:
    """Bytes of the cells, without those that they share with others."""
    return 0 if _is_shared(column.type) else int(column.nbytes)


def _cell_bytes(column: pa.Array) -> int:
    """Bytes of the cells, each counted, also where several rows share them."""
    if not _is_shared(column.type):
        return int(column.nbytes)
    if not pa.types.is_dictionary(column.type):
        return int(_view_sizes(column).sum())
    if pa.types.is_primitive(column.type.value_type):
        return len(column) * _width(column.type.value_type)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)


def _view_sizes(values: pa.Array) -> np.ndarray:
    """Bytes of each text: a view is 16 bytes, of which the first 4 are its size."""
    sizes = np.frombuffer(values.buffers()[1], np.int32)[::4]
    return sizes[values.offset : values.offset + len(values)]


def _longest(column: pa.Array) -> int:
    """Bytes of the longest cell, or of the longest entry of a dictionary."""
    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not len(values):
        return 0
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        return int(_view_sizes(values).max())
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return int(pc.max(pc.list_value_length(values)).as_py() or 0) * _width(values.type)
    if pa.types.is_fixed_size_list(values.type):
        return math.prod(list_shape(values.type) or ()) * _width(values.type)
    if pa.types.is_primitive(values.type):
        return int(values.type.bit_width) // 8
    return int(pc.max(pc.binary_length(values)).as_py() or 0)


def _width(type_: pa.DataType) -> int:
    """Bytes of a number in lists."""
    while pa.types.is_nested(type_):
        type_ = type_.value_type
    return -(-int(type_.bit_width) // 8)


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
    """(m, size of a list) numbers of a column of m numbers or fixed-size lists of them, and (m,) bool: whether a row
    has all its numbers; the values of other rows are undefined.

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
