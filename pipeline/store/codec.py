"""Encoding and decoding the files of shards, in memory, so that a backend only ever sees whole files."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr

from pipeline.config import limits
from pipeline.planning.plan import Plan
from pipeline.planning.shards import Shard
from pipeline.store.backends.base import Backend
from pipeline.store.backends.tree import MOST_BYTES
from pipeline.store.bounded import bounded, few_at_once
from pipeline.store.records import FileRecord
from pipeline.store.schema import (
    ARRAYS,
    ROOT,
    TABLE_CHUNK_ROWS,
    Layout,
    chunk_key,
    layout_of,
    require_values,
    rows_in,
    shard_key,
)
from pipeline.store.zarr_private import memory_store, to_buffer

_INDEX = re.compile("0|[1-9][0-9]{0,15}")
_SHARD_BYTES, _SHARD_RATIO = 1 << 30, 16  # beyond these no shard is so many times as large as its file
_MOST_GROWTH = 1100  # of equal values that are unpacked: 255 times by the codec, 4 bytes of a length to 16 of a text
_CHUNK_OR_METADATA = re.compile(r"zarr\.json|c(\.\d+)*")


class ShardCodec:
    """Encodes and decodes the files of shards, in memory; `metadata` of arrays where it is known already."""

    def __init__(self, backend: Backend, metadata: Mapping[str, Any] | None = None) -> None:
        self._backend = backend
        self._metadata = {name: json.dumps(values).encode() for name, values in (metadata or {}).items()}

    def encode(self, name: str, shard: Shard, values: np.ndarray) -> bytes:
        """The file of len(shard) rows of an array; ValueError where it does not decode to these values."""
        files: dict[str, Any] = {}
        array = self._array(name, files)
        values, rows = np.ascontiguousarray(values, dtype=array.dtype), rows_in(name, shard)
        array[rows] = values
        if np.asarray(array[rows]).tobytes() != values.tobytes():
            raise ValueError(
                f"{name} of {shard} does not decode to what was encoded; is this machine's memory damaged?"
            )
        data: bytes = files[chunk_key(shard.index, array.ndim)].to_bytes()
        return data

    def decode(self, name: str, shard: Shard, data: bytes) -> np.ndarray:
        """The rows of a shard; ValueError where the data is damaged."""
        files: dict[str, Any] = {}
        try:
            if not data:
                raise ValueError("it is empty")  # which Zarr would fill
            array = self._array(name, files)
            if (n_bytes := shard_bytes(array)) > _SHARD_BYTES + _SHARD_RATIO * len(data):
                raise ValueError(f"its {len(data)} bytes cannot hold the {n_bytes} that it says it has")
            files[chunk_key(shard.index, array.ndim)] = to_buffer(data)
            with few_at_once(array):
                found = np.asarray(array[rows_in(name, shard)])
            require_values(name, found)
        except Exception as error:  # whatever the codecs make of damaged data
            raise ValueError(f"{name} of {shard} in {self._backend.url} is damaged ({error})") from error
        return found

    def read(self, name: str, shard: Shard, layout: Layout = ARRAYS) -> np.ndarray:
        """The rows of a shard of the store; `layout` as of `shard_key`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged.
        """
        array = self._array(name, {})
        most = MOST_BYTES + 2 * shard_bytes(array)
        return self.decode(name, shard, self._backend.read(shard_key(name, shard.index, layout), most))

    def _array(self, name: str, files: dict[str, Any]) -> zarr.Array:
        if name not in self._metadata:
            self._metadata[name] = self._backend.read(f"{name}/{ROOT}")
        files[ROOT] = to_buffer(self._metadata[name])
        try:
            array = zarr.open_array(memory_store(files), mode="r+").with_config({"write_empty_chunks": True})
            return bounded(array, name)
        except Exception as error:  # whatever Zarr makes of damaged metadata
            raise ValueError(f"{name}/{ROOT} in {self._backend.url} is damaged ({error})") from error


def shard_bytes(array: zarr.Array) -> int:
    """Bytes of the values of one file of an array."""
    return array.dtype.itemsize * math.prod(array.shards or array.chunks)


def write_shard(
    backend: Backend, codec: ShardCodec, shard: Shard, values: Mapping[str, np.ndarray]
) -> dict[str, FileRecord]:
    """Write the file of one shard of each array, len(shard) rows of it, and read it back; returns what was written.

    Raises:
        OSError: the backend cannot be written, or gave back something else than was written.
    """
    files = {}
    for name, rows in values.items():
        data, key = codec.encode(name, shard, rows), shard_key(name, shard.index)
        backend.write(key, data)
        if backend.read(key, len(data)) != data:
            raise OSError(f"{backend.url}/{key} ({name} of {shard}) reads back other than it was written")
        files[name] = FileRecord.of(data)
    return files


def shard_sizes(backend: Backend, plan: Plan) -> np.ndarray:
    """(shards, arrays) int64: the size of each file in bytes, -1 where it is missing."""
    n, layout = plan.n_shards, layout_of(plan)
    sizes = np.full((n, len(layout)), -1, dtype=np.int64)
    for column, name in enumerate(layout):
        prefix, tail = f"{name}/c.", shard_key(name, 0, layout).removeprefix(f"{name}/c.0")
        first, last = len(prefix), -len(tail) or None
        found = {}
        for key, n_bytes, _ in backend.files(prefix):
            index = key[first:last]
            if _INDEX.fullmatch(index) and key.endswith(tail):
                found[int(index)] = n_bytes
        indices = np.fromiter(found, dtype=np.int64, count=len(found))
        known = indices < n
        sizes[indices[known], column] = np.fromiter(found.values(), dtype=np.int64, count=len(found))[known]
    return sizes


def names_of_rows(backend: Backend, rows: Iterable[int]) -> list[str]:
    """What the input calls each of some rows; ValueError where the column is damaged."""
    column: dict[str, Any] = {ROOT: to_buffer(backend.read(f"name/{ROOT}"))}
    wanted = list(rows)
    for chunk in {row // TABLE_CHUNK_ROWS for row in wanted}:
        column[f"c.{chunk}"] = to_buffer(backend.read(f"name/c.{chunk}"))
    try:
        names = bounded(zarr.open_array(memory_store(column), mode="r"), "name")
        return [str(names[row]) for row in wanted]
    except Exception as error:  # whatever the codecs make of damaged data
        raise ValueError(f"name in {backend.url} is damaged ({error})") from error


def read_array(backend: Backend, name: str) -> np.ndarray:
    """A whole array that is not sharded; ValueError where it is damaged or missing."""
    prefix = f"{name}/"
    entries = [entry for entry in backend.files(prefix) if _CHUNK_OR_METADATA.fullmatch(entry.key, len(prefix))]
    try:
        limits.require_held(sum(entry.n_bytes for entry in entries), 0, "it")
        files = {entry.key.removeprefix(prefix): to_buffer(backend.read(entry.key)) for entry in entries}
        array = bounded(zarr.open_array(memory_store(files), mode="r"), name)
        if len(files) != array.nchunks + 1:  # Zarr fills what is missing
            raise ValueError(f"{len(files) - 1} of {array.nchunks} chunks exist")
        if array.nbytes > (1 << 24) + _MOST_GROWTH * sum(map(len, files.values())):
            raise ValueError(f"its files cannot hold the {array.nbytes} bytes that it says it has")
        limits.require_held(array.nbytes, sum(map(len, files.values())), "it")
        found = np.asarray(array[:])
        require_values(name, found)
        return found
    except Exception as error:  # whatever the codecs make of damaged data
        raise ValueError(f"{name} in {backend.url} is damaged ({error})") from error
