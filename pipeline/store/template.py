"""The store: one Zarr v3 group, laid out in advance, written one whole Zarr shard at a time; reader.py reads it.

Axis order is that of `ARRAYS`; bases are A, C, G, T; positions and rows are 0-based, coordinates half-open. Nothing but
Zarr's own files lies inside the group; what belongs to the run lies beside it (see commits.py). Zarr shards are encoded
and decoded in memory, so that a place only ever sees whole files.
"""

import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from dlshap_core.sequences import ALPHABET
from pipeline.args import arg_layout, is_arg
from pipeline.commits import FileRecord, sync
from pipeline.errors import UserError
from pipeline.places import LocalPlace, Place
from pipeline.plan import Plan
from pipeline.shards import Shard

FORMAT_VERSION = 1
ROOT = "zarr.json"  # metadata and attributes of the group
CHUNK_ROWS = 64  # rows of an inner chunk: one row is read in about 2 ms
TABLE_CHUNK_ROWS = 8192
FLAT_KEYS: dict[str, Any] = {"name": "default", "separator": "."}  # an array's files in one folder: no more to sync

LAYOUT: dict[str, tuple[tuple[str, ...], str]] = {
    "codes": (("sequence", "position"), "uint8"),
    "attribution": (("sequence", "target", "position"), "float32"),
    "hypothetical": (("sequence", "target", "base", "position"), "float32"),
    "prediction": (("sequence", "target"), "float32"),
    "reference_prediction": (("sequence", "target", "reference"), "float32"),
    "convergence_delta": (("sequence", "target", "reference"), "float32"),
    "reference_checksum": (("sequence",), "uint32"),
}
COMPUTED = tuple(name for name in LAYOUT if name != "codes")
OF_FOLDS: dict[str, tuple[tuple[str, ...], str]] = {  # with store.per_fold=true
    f"{name}_by_fold": (("sequence", "fold", *LAYOUT[name][0][1:]), LAYOUT[name][1])
    for name in COMPUTED
    if name != "reference_checksum"  # which the folds share
}
OF_VARIANTS: dict[str, tuple[tuple[str, ...], str]] = {  # of a run on variants: alternate minus reference allele
    f"{name}_difference": (("variant", *LAYOUT[name][0][1:]), LAYOUT[name][1])
    for name in ("attribution", "hypothetical", "prediction")
}
ARRAYS = {**LAYOUT, **OF_FOLDS, **OF_VARIANTS}
ROUNDED = tuple(name for name in ARRAYS if name.startswith(("attribution", "hypothetical")))  # to plan.precision_bits
ALLELES = 2  # rows of a variant: reference, alternate
TABLE: dict[str, type] = {
    "source_row": np.int64,
    "name": str,
    "chrom": str,
    "start": np.int64,
    "end": np.int64,
    "strand": str,
}
MADE_AT_THE_END = ("shard_crc32", "shard_bytes", "array", "file", "file_crc32", "file_bytes")  # see complete_store
POOL = "reference_pool"  # (window, position) codes that references are drawn from, where they are
DESCRIPTIONS = {
    "codes": "the sequence: 0..3 are A, C, G, T; 4 is N",
    "attribution": "of the base that is there; 0 at an N, so that a row with N sums short by what lies on it",
    "hypothetical": "the attribution each base would have, averaged over the references; 0-based positions",
    "prediction": "the model's output",
    "reference_prediction": "the model's output at each reference",
    "convergence_delta": "sum of multipliers times differences, minus the difference of predictions; signed",
    "reference_checksum": "CRC-32 of the sequence's references, in order: of codes, or of float32 values if not bases",
    **dict.fromkeys(OF_FOLDS, "the values of each fold; the array without _by_fold is their mean"),
    **dict.fromkeys(OF_VARIANTS, "of the alternate allele, minus that of the reference allele; position by position"),
    "source_row": "0-based record or data line of the input",
    "start": "0-based; -1 where the input has none",
    "end": "exclusive; -1 where the input has none",
    POOL: "codes of the windows that references are drawn from",
    "shard_crc32": "CRC-32 of the file of each shard and array, as committed",
    "shard_bytes": "size of the file of each shard and array, as committed",
    "file": "every file that was made before the first shard, but for the group's own and the sequences' shards",
    "file_crc32": "CRC-32 of each of them",
    "file_bytes": "size of each of them",
}
ARG_DESCRIPTION = "a further input of the model; the attribute dataset of the store says which"
Layout = Mapping[str, tuple[tuple[str, ...], str]]  # dimensions and type of arrays, by their names


# --- layout ---------------------------------------------------------------------------------------------------------


def layout_of(plan: Plan) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dimensions and type of each array that the store of a run has, in order."""
    more = {**(OF_FOLDS if plan.per_fold else {}), **(OF_VARIANTS if plan.rows_per_group == ALLELES else {})}
    return {**LAYOUT, **more, **arg_layout(plan.args, plan.length)}


def arrays_of(plan: Plan) -> tuple[str, ...]:
    """The arrays that the store of a run has, in order."""
    return tuple(layout_of(plan))


def given(plan: Plan) -> tuple[str, ...]:
    """Those of them that the input gives: the sequences and the model's further inputs."""
    return ("codes", *arg_layout(plan.args, plan.length))


def computed(plan: Plan) -> tuple[str, ...]:
    """Those of them that shards are computed for: all that the input does not give."""
    from_input = given(plan)
    return tuple(name for name in arrays_of(plan) if name not in from_input)


def shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of each of them."""
    sizes = {
        "sequence": plan.n_rows,
        "target": len(plan.targets),
        "base": len(ALPHABET),
        "position": plan.length,
        "reference": plan.n_references,
        "fold": len(plan.folds),
        "variant": plan.n_rows // ALLELES,
    }
    of_args = arg_layout(plan.args, plan.length)
    for (dims, _), arg in zip(of_args.values(), plan.args, strict=True):
        sizes |= dict(zip(dims[1:], arg["shape"], strict=True))
    return {name: tuple(sizes[dim] for dim in dims) for name, (dims, _) in layout_of(plan).items()}


def chunk_rows(rows_per_shard: int) -> int:
    """Rows of an inner chunk: the largest divisor of rows_per_shard that is at most CHUNK_ROWS."""
    return max(rows for rows in range(1, CHUNK_ROWS + 1) if rows_per_shard % rows == 0)


def shard_key(name: str, index: int, layout: Layout = ARRAYS) -> str:
    """The file that holds one shard of an array; `layout_of` the plan knows the model's further inputs too."""
    return f"{name}/{_chunk_key(index, len(layout[name][0]))}"


def _chunk_key(index: int, n_dims: int) -> str:
    """The same within the folder of an array of so many dimensions."""
    return f"c.{index}" + ".0" * (n_dims - 1)


def rows_in(name: str, shard: Shard) -> slice:
    """Where a shard lies along the first axis of an array of a store."""
    rows_each = ALLELES if name in OF_VARIANTS else 1
    return slice(shard.start // rows_each, shard.stop // rows_each)


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
        rows_per_shard //= ALLELES
    inner_tail = tuple(1 if dim in ("target", "fold") else size for dim, size in zip(dims[1:], shape[1:], strict=True))
    return group.create_array(
        name,
        shape=shape,
        shards=(rows_per_shard, *shape[1:]),
        chunks=(chunk_rows(rows_per_shard), *inner_tail),
        dtype=dtype,
        fill_value=np.nan if dtype == "float32" else 0,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=dims,
        chunk_key_encoding=FLAT_KEYS,
        attributes={**_described(name), **(attributes or {})},
        config={"write_empty_chunks": True},
    )


def _create_small(
    group: zarr.Group, name: str, dtype: Any, shape: tuple[int, ...], chunks: tuple[int, ...], dims: tuple[str, ...]
) -> zarr.Array:
    """A column of the row table, the labels of a dimension, or a record of files."""
    return group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, size) for size in chunks),
        dtype=dtype,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=dims,
        chunk_key_encoding=FLAT_KEYS,
        attributes=_described(name),
        config={"write_empty_chunks": True},
    )


def _described(name: str) -> dict[str, Any]:
    text = ARG_DESCRIPTION if is_arg(name) else DESCRIPTIONS.get(name)
    return {} if text is None else {"description": text}


# --- making a store -------------------------------------------------------------------------------------------------


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


class StagedStore:
    """A store in the making, on a disk: rows are appended, then the arrays to be computed are laid out.

    It lies elsewhere than at the store's place, so that nothing there can be taken for a store until the whole input
    has been checked.

    Args:
        path: where to make it; what lies there is removed.
        length: bases in each sequence.
        rows_per_shard: sequences in a shard.
        args: the model's further inputs, as in the plan.
    """

    def __init__(self, path: Path, length: int, rows_per_shard: int, args: Sequence[Mapping[str, Any]] = ()) -> None:
        if path.exists():
            shutil.rmtree(path)
        self.path = path
        self._rows_per_shard = rows_per_shard
        self._group = zarr.create_group(path, zarr_format=3, attributes={"format_version": FORMAT_VERSION})
        dims, dtype = LAYOUT["codes"]
        codes = _create(self._group, "codes", (0, length), rows_per_shard, dims, dtype)
        self._appenders = {"codes": _Appender(codes, rows_per_shard)}
        for arg, (name, (dims, dtype)) in zip(args, arg_layout(args, length).items(), strict=True):
            further = _create(self._group, name, (0, *arg["shape"]), rows_per_shard, dims, dtype)
            self._appenders[name] = _Appender(further, rows_per_shard)
        for name, kind in TABLE.items():
            column = _create_small(self._group, name, kind, (0,), (TABLE_CHUNK_ROWS,), ("sequence",))
            self._appenders[name] = _Appender(column, TABLE_CHUNK_ROWS)

    def append(self, **row: Any) -> None:
        """Add a row: its (L,) uint8 `codes`, further inputs as `arg_0` and so on, and a value for every column of the
        row table."""
        for name, appender in self._appenders.items():
            appender.append(row[name])

    def finish(self, plan: Plan, attributes: Mapping[str, Any], pool: np.ndarray | None) -> dict[str, FileRecord]:
        """Lay out the arrays to be computed, and say what the store is.

        Args:
            plan: of the run.
            attributes: of the group, plain values.
            pool: (P, L) uint8 codes that references are drawn from, if any.

        Returns:
            A record of every file but the group's own and the shards of what the input gives.
        """
        for appender in self._appenders.values():
            appender.flush()
        layout, shape_of, shards = layout_of(plan), shapes(plan), tuple(f"{name}/c." for name in given(plan))
        for name in computed(plan):
            dims, dtype = layout[name]
            precision = {"precision_bits": plan.precision_bits} if name in ROUNDED else {}
            _create(self._group, name, shape_of[name], self._rows_per_shard, dims, dtype, precision)
        targets = [str(target) for target in plan.targets]
        for name, labels in [("target", targets), ("base", list(ALPHABET)), ("fold", plan.folds)]:
            n = (len(labels),)
            _create_small(self._group, name, str, n, n, (name,))[:] = np.array(labels, dtype=object)
        if pool is not None:
            chunks = (max(1, (1 << 24) // pool.shape[1]), pool.shape[1])
            _create_small(self._group, POOL, "uint8", pool.shape, chunks, ("window", "position"))[:] = pool
        self._group.attrs.update({**attributes, "complete": False})
        files = {}
        for folder, _, names in os.walk(self.path):
            for name in names:
                sync(Path(folder) / name)
                key = (Path(folder) / name).relative_to(self.path).as_posix()
                if key != ROOT and not key.startswith(shards):
                    files[key] = file_record((self.path / key).read_bytes())
            sync(Path(folder))
        return files


def file_record(data: bytes) -> FileRecord:
    """Size and CRC-32 of a file's content."""
    return FileRecord(len(data), zlib.crc32(data))


# --- one shard ------------------------------------------------------------------------------------------------------


class ShardCodec:
    """Takes the files of shards apart and puts them together, in memory.

    Args:
        place: of the store.
        metadata: of arrays, where it is known already.
    """

    def __init__(self, place: Place, metadata: Mapping[str, Any] | None = None) -> None:
        self._place = place
        self._metadata = {name: json.dumps(values).encode() for name, values in (metadata or {}).items()}

    def encode(self, name: str, shard: Shard, values: np.ndarray) -> bytes:
        """The file of a shard's part of an array; values has len(shard) rows.

        Raises:
            ValueError: it does not decode to the values that went in.
        """
        files: dict[str, Any] = {}
        array = self._array(name, files)
        values, rows = np.ascontiguousarray(values, dtype=array.dtype), rows_in(name, shard)
        array[rows] = values
        if np.asarray(array[rows]).tobytes() != values.tobytes():
            raise ValueError(
                f"{name} of {shard} does not decode to what was encoded; is this machine's memory damaged?"
            )
        data: bytes = files[_chunk_key(shard.index, array.ndim)].to_bytes()
        return data

    def decode(self, name: str, shard: Shard, data: bytes) -> np.ndarray:
        """The rows of a shard.

        Raises:
            ValueError: the data is damaged.
        """
        files: dict[str, Any] = {}
        try:
            if not data:
                raise ValueError("it is empty")  # which Zarr would fill
            array = self._array(name, files)
            files[_chunk_key(shard.index, array.ndim)] = _buffer(data)
            found = np.asarray(array[rows_in(name, shard)])
        except Exception as error:  # whatever the codecs make of damaged data
            raise ValueError(f"{name} of {shard} in {self._place.url} is damaged ({error})") from error
        return found

    def _array(self, name: str, files: dict[str, Any]) -> zarr.Array:
        if name not in self._metadata:
            self._metadata[name] = self._place.read(f"{name}/{ROOT}")
        files[ROOT] = _buffer(self._metadata[name])
        return zarr.open_array(MemoryStore(files), mode="r+").with_config({"write_empty_chunks": True})


def _buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)


def write_shard(
    place: Place, codec: ShardCodec, shard: Shard, values: Mapping[str, np.ndarray]
) -> dict[str, FileRecord]:
    """Write one shard of every computed array, whole files, and read them back.

    Args:
        place, codec: of the store.
        shard: whose rows.
        values: for each computed array, its len(shard) rows.

    Returns:
        Size and checksum of the file of each of these arrays.

    Raises:
        OSError: the place cannot be written, or gave back something else than was written.
    """
    files = {}
    for name, rows in values.items():
        data, key = codec.encode(name, shard, rows), shard_key(name, shard.index)
        place.write(key, data)
        if place.read(key) != data:
            raise OSError(f"{place.url}/{key} ({name} of {shard}) reads back other than it was written")
        files[name] = file_record(data)
    return files


def shard_sizes(place: Place, plan: Plan) -> np.ndarray:
    """(shards, arrays) int64: the size of each file in bytes, -1 where it is not there."""
    n, layout = plan.n_shards, layout_of(plan)
    sizes = np.full((n, len(layout)), -1, dtype=np.int64)
    for column, name in enumerate(layout):
        prefix, tail = f"{name}/c.", shard_key(name, 0, layout).removeprefix(f"{name}/c.0")
        first, last = len(prefix), -len(tail) or None
        found = {}
        for key, n_bytes, _ in place.files(prefix):
            index = key[first:last]
            if index.isdecimal() and key.endswith(tail) and (index == "0" or index[0] != "0"):
                found[int(index)] = n_bytes
        indices = np.fromiter(found, dtype=np.int64, count=len(found))
        there = indices < n
        sizes[indices[there], column] = np.fromiter(found.values(), dtype=np.int64, count=len(found))[there]
    return sizes


def read_names(place: Place, rows: Iterable[int]) -> list[str]:
    """What the input calls each of some rows.

    Raises:
        ValueError: the column is damaged.
    """
    column: dict[str, Any] = {ROOT: _buffer(place.read(f"name/{ROOT}"))}
    wanted = list(rows)
    for chunk in {row // TABLE_CHUNK_ROWS for row in wanted}:
        column[f"c.{chunk}"] = _buffer(place.read(f"name/c.{chunk}"))
    try:
        names = zarr.open_array(MemoryStore(column), mode="r")
        return [str(names[row]) for row in wanted]
    except Exception as error:  # whatever the codecs make of damaged data
        raise ValueError(f"name in {place.url} is damaged ({error})") from error


_CHUNK_OR_METADATA = re.compile(r"zarr\.json|c(\.\d+)*")


def read_array(place: Place, name: str) -> np.ndarray:
    """A whole array that is not sharded.

    Raises:
        ValueError: it is damaged or not there.
    """
    prefix = f"{name}/"
    keys = [entry.key for entry in place.files(prefix) if _CHUNK_OR_METADATA.fullmatch(entry.key, len(prefix))]
    files = {key.removeprefix(prefix): _buffer(place.read(key)) for key in keys}
    try:
        array = zarr.open_array(MemoryStore(files), mode="r")
        if len(files) != array.nchunks + 1:  # Zarr fills what is missing
            raise ValueError(f"{len(files) - 1} of {array.nchunks} chunks are there")
        return np.asarray(array[:])
    except Exception as error:  # whatever the codecs make of damaged data
        raise ValueError(f"{name} in {place.url} is damaged ({error})") from error


# --- the group itself -----------------------------------------------------------------------------------------------


def read_attributes(place: Place) -> dict[str, Any] | None:
    """Attributes of the store at a place; None where nothing lies there.

    Raises:
        UserError: something else than a dlshap store lies there, or one of a newer version.
    """
    try:
        attributes = json.loads(place.read(ROOT))["attributes"]
        if "format_version" in attributes and "complete" in attributes:
            if attributes["format_version"] > FORMAT_VERSION:
                version = attributes["format_version"]
                raise UserError(f"{place.url} was written by a newer version (format {version}); update dlshap")
            return dict(attributes)
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        is_file = isinstance(place, LocalPlace) and place.path.is_file()
        if not is_file and next(place.files(), None) is None:
            return None
    except (ValueError, KeyError, TypeError):
        pass  # not what Zarr writes
    raise UserError(f"store.path={place.url} exists and is not a dlshap store; give another path")


def complete_store(
    place: Place,
    plan: Plan,
    n_bytes: np.ndarray,
    crc32: np.ndarray,
    prepared: Mapping[str, FileRecord],
    attributes: Mapping[str, Any],
) -> None:
    """Move the record of every file and of the run into the store; the mark that it is complete is the last write.

    Args:
        place: of the store.
        plan: of the run.
        n_bytes, crc32: (shards, arrays of the plan) as committed.
        prepared: what `StagedStore.finish` returned.
        attributes: what came of the run, plain values.
    """
    memory = {key: _buffer(place.read(key)) for key in [ROOT, *prepared] if key.endswith(ROOT)}
    before = set(memory)
    group = zarr.open_group(MemoryStore(memory), mode="r+", zarr_format=3, use_consolidated=False)
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
    records = {key: file_record(memory[key].to_bytes()) for key in sorted(set(memory) - before)}
    with warnings.catch_warnings():
        # Inline copies of the arrays' metadata, marked `must_understand: false`: readers that do not know them skip
        # them, and xarray asks for them.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(MemoryStore(memory), zarr_format=3)
    for key in records:
        place.write(key, memory[key].to_bytes())
    root = json.loads(memory[ROOT].to_bytes())
    root["attributes"] = {
        "checksum": NO_CHECKSUM,  # first, where `root_checksum` looks for it
        **root["attributes"],
        **attributes,
        "files": {key: [record.n_bytes, record.crc32] for key, record in records.items()},
        "complete": True,
    }
    text = json.dumps(root, indent=2)
    place.write(ROOT, text.replace(NO_CHECKSUM, root_checksum(text.encode())[1], 1).encode())


NO_CHECKSUM = "crc32:00000000"
_CHECKSUM = re.compile(rb"crc32:[0-9a-f]{8}")


def root_checksum(data: bytes) -> tuple[str, str]:
    """The checksum that the group's own file states of itself ("" where it states none), and the one that it has."""
    stated = _CHECKSUM.search(data)
    actual = zlib.crc32(_CHECKSUM.sub(NO_CHECKSUM.encode(), data, count=1))
    return stated.group().decode() if stated else "", f"crc32:{actual:08x}"


def reopen(place: Place) -> None:
    """Say that a store is not complete after all."""
    root = json.loads(place.read(ROOT))
    root.pop("consolidated_metadata", None)
    for key in ("checksum", "files"):
        root["attributes"].pop(key, None)
    root["attributes"]["complete"] = False
    place.write(ROOT, json.dumps(root, indent=2).encode())
