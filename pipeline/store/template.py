"""Making a store, one Zarr v3 group with one Zarr shard for each shard of the plan: laid out empty, and completed.

The group holds only Zarr's own files; those of the run are beside it (see run_directory.py).
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from dlshap_core.sequences import ALPHABET
from pipeline.planning.extra_inputs import extra_input_layout
from pipeline.planning.plan import Plan
from pipeline.store.attributes import sealed
from pipeline.store.backends.base import Backend
from pipeline.store.backends.local import sync
from pipeline.store.records import FileRecord
from pipeline.store.schema import (
    ALLELES_PER_VARIANT,
    FORMAT_VERSION,
    LAYOUT,
    POOL,
    ROOT,
    ROUNDED,
    TABLE,
    TABLE_CHUNK_ROWS,
    array_shapes,
    arrays_of,
    computed_arrays,
    described,
    input_arrays,
    kept_bits,
    layout_of,
)
from pipeline.store.zarr_private import memory_store, to_buffer

CHUNK_ROWS = 64  # rows of an inner chunk: one row is read in about 2 ms
FLAT_KEYS: dict[str, Any] = {"name": "default", "separator": "."}  # an array's files in one folder: no more to sync


class StagedStore:
    """A store in the making, on a disk: rows are appended, then the arrays to be computed are laid out.

    It is made elsewhere than at its URL, so that nothing there can be taken for a store until the whole input
    has been checked.

    Args:
        path: where to make it; what exists there is removed.
        length: bases in each sequence.
        rows_per_shard: sequences in a shard.
        args: the model's extra inputs, as in the plan.
    """

    def __init__(self, path: Path, length: int, rows_per_shard: int, args: Sequence[Mapping[str, Any]] = ()) -> None:
        if path.exists():
            shutil.rmtree(path)
        self.path = path
        self._rows_per_shard = rows_per_shard
        self._group = zarr.create_group(path, zarr_format=3, attributes={"format_version": FORMAT_VERSION})
        self._appenders = {}
        layout = {"codes": LAYOUT["codes"], **extra_input_layout(args, length)}
        tails = [(length,), *(arg["shape"] for arg in args)]
        for (name, (dims, dtype)), tail in zip(layout.items(), tails, strict=True):
            array = _create(self._group, name, (0, *tail), rows_per_shard, dims, dtype)
            self._appenders[name] = _Appender(array, rows_per_shard)
        for name, kind in TABLE.items():
            column = _create_small(self._group, name, kind, (0,), (TABLE_CHUNK_ROWS,), ("sequence",))
            self._appenders[name] = _Appender(column, TABLE_CHUNK_ROWS)

    def append(self, **row: Any) -> None:
        """Add a row: its (L,) uint8 `codes`, extra inputs as `arg_0` and so on, and a value for every column of the
        row table."""
        for name, appender in self._appenders.items():
            appender.append(row[name])

    def finish(self, plan: Plan, attributes: Mapping[str, Any], pool: np.ndarray | None) -> dict[str, FileRecord]:
        """Lay out the arrays to be computed, and write the attributes of the group.

        Args:
            plan, attributes: of the run, and of the group.
            pool: (P, L) uint8 codes that references are drawn from, if any.

        Returns:
            A record of every file but the group's own and the shards of the input arrays.
        """
        for appender in self._appenders.values():
            appender.flush()
        layout, shape_of = layout_of(plan), array_shapes(plan)
        shards = tuple(f"{name}/c." for name in input_arrays(plan))
        for name in computed_arrays(plan):
            dims, dtype = layout[name]
            precision = {"precision_bits": kept_bits(name, plan)} if name in ROUNDED else {}
            _create(self._group, name, shape_of[name], self._rows_per_shard, dims, dtype, precision)
        for name, labels in [("target", plan.labels), ("base", list(ALPHABET)), ("fold", plan.folds)]:
            n = (len(labels),)
            _create_small(self._group, name, str, n, n, (name,))[:] = np.array(labels, dtype=object)
        if pool is not None:
            chunks = (max(1, (1 << 24) // pool.shape[1]), pool.shape[1])
            _create_small(self._group, POOL, "uint8", pool.shape, chunks, ("window", "position"))[:] = pool
        self._group.update_attributes({**attributes, "complete": False})  # all at once: one write
        (self.path / ROOT).write_bytes(sealed(json.loads((self.path / ROOT).read_bytes())))
        files = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                sync(Path(folder) / name)
                key = (Path(folder) / name).relative_to(self.path).as_posix()
                if key != ROOT and not key.startswith(shards):
                    files[key] = FileRecord.of((self.path / key).read_bytes())
            sync(Path(folder))
        return files


class _Appender:
    """Appends to a row array in whole chunks, so that one chunk is written once and memory stays bounded."""

    def __init__(self, array: zarr.Array, n_buffered: int) -> None:
        self._array = array
        self._n_buffered = n_buffered
        self._buffer: list[Any] = []
        self._n_written = 0

    def append(self, value: Any) -> None:
        self._buffer.append(value)
        if len(self._buffer) == self._n_buffered:
            self.flush()

    def flush(self) -> None:
        if self._buffer:
            stop = self._n_written + len(self._buffer)
            self._array.resize((stop, *self._array.shape[1:]))
            self._array[self._n_written : stop] = np.array(self._buffer, dtype=self._array.dtype)
            self._n_written = stop
            self._buffer = []


def chunk_rows(rows_per_shard: int) -> int:
    """Rows of an inner chunk: the largest divisor of rows_per_shard that is at most CHUNK_ROWS."""
    return max(rows for rows in range(1, CHUNK_ROWS + 1) if rows_per_shard % rows == 0)


def complete_store(
    backend: Backend,
    plan: Plan,
    n_bytes: np.ndarray,
    crc32: np.ndarray,
    prepared: Mapping[str, FileRecord],
    attributes: Mapping[str, Any],
) -> None:
    """Move the record of every file and of the run into the store; the mark that it is complete is the last write.

    Args:
        backend, plan: of the store.
        n_bytes, crc32: (shards, arrays of the plan) as committed.
        prepared: what `StagedStore.finish` returned.
        attributes: the outcome of the run.
    """
    memory = {key: to_buffer(backend.read(key)) for key in [ROOT, *prepared] if key.endswith(ROOT)}
    before = set(memory)
    group = zarr.open_group(memory_store(memory), mode="r+", zarr_format=3, use_consolidated=False)
    n, dims = plan.n_shards, ("shard", "array")
    for name, values in [("shard_crc32", crc32), ("shard_bytes", n_bytes)]:
        _create_small(group, name, values.dtype, values.shape, (min(n, 1 << 16), values.shape[1]), dims)[:] = values
    labels, keys = np.array(arrays_of(plan), dtype=object), sorted(prepared)
    columns: list[tuple[str, Any, str, np.ndarray]] = [
        ("array", str, "array", labels),
        ("file", str, "file", np.array(keys, dtype=object)),
        ("file_crc32", "uint32", "file", np.array([prepared[key].crc32 for key in keys])),
        ("file_bytes", "int64", "file", np.array([prepared[key].n_bytes for key in keys])),
    ]
    for name, dtype, dim, column in columns:
        _create_small(group, name, dtype, column.shape, column.shape, (dim,))[:] = column
    records = {key: FileRecord.of(memory[key].to_bytes()) for key in sorted(set(memory) - before)}
    with warnings.catch_warnings():
        # Inline copies of the arrays' metadata, marked `must_understand: false`: readers that do not know them skip
        # them, and xarray asks for them.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(memory_store(memory), zarr_format=3)
    for key in records:
        backend.write(key, memory[key].to_bytes())
    root = json.loads(memory[ROOT].to_bytes())
    root["attributes"] = {
        **root["attributes"],
        **attributes,
        "files": {key: [record.n_bytes, record.crc32] for key, record in records.items()},
        "complete": True,
    }
    backend.write(ROOT, sealed(root))


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    rows_per_shard: int,
    dims: Sequence[str],
    dtype: str,
    attributes: Mapping[str, Any] | None = None,
) -> zarr.Array:
    """An array of one Zarr shard for each of our shards, every inner chunk compressed and checksummed."""
    if dims[0] == "variant":
        rows_per_shard //= ALLELES_PER_VARIANT
    tail = tuple(1 if dim in ("target", "fold") else size for dim, size in zip(dims[1:], shape[1:], strict=True))
    fill_value = np.nan if dtype == "float32" else 0
    chunks, shards = (chunk_rows(rows_per_shard), *tail), (rows_per_shard, *shape[1:])
    return _create_small(group, name, dtype, shape, chunks, dims, attributes, shards=shards, fill_value=fill_value)


def _create_small(
    group: zarr.Group,
    name: str,
    dtype: Any,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dims: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
    **more: Any,
) -> zarr.Array:
    """A column of the row table, the labels of a dimension, or a record of files; `more` is for Zarr."""
    return group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, size) for size in chunks),
        dtype=dtype,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=dims,
        chunk_key_encoding=FLAT_KEYS,
        attributes={**described(name), **(attributes or {})},
        config={"write_empty_chunks": True},
        **more,
    )
