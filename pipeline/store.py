"""The store: one Zarr v3 group, laid out in advance, written one whole Zarr shard at a time; reader.py reads it.

Axis order is that of `LAYOUT`; bases are A, C, G, T; positions and rows are 0-based, coordinates half-open. Nothing but
Zarr's own files lies inside the group; what belongs to the run lies beside it (see commits.py).
"""

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import GroupNotFoundError

from dlshap_core.sequences import ALPHABET
from pipeline.commits import FileRecord, checksum, sync
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.shards import Shard, n_shards

FORMAT_VERSION = 1
CHUNK_ROWS = 64  # rows of an inner chunk: one row is read in about 2 ms
TABLE_CHUNK_ROWS = 8192

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
TABLE: dict[str, type] = {
    "source_row": np.int64,
    "name": str,
    "chrom": str,
    "start": np.int64,
    "end": np.int64,
    "strand": str,
}
DESCRIPTIONS = {
    "codes": "the sequence: 0..3 are A, C, G, T; 4 is N",
    "attribution": "of the base that is there; 0 at an N, so that a row with N sums short by what lies on it",
    "hypothetical": "the attribution each base would have, averaged over the references; 0-based positions",
    "prediction": "the model's output",
    "reference_prediction": "the model's output at each reference",
    "convergence_delta": "sum of multipliers times differences, minus the difference of predictions; signed",
    "reference_checksum": "CRC-32 of the sequence's references, in order: of codes, or of float32 values if not bases",
    "source_row": "0-based record or data line of the input",
    "start": "0-based; -1 where the input has none",
    "end": "exclusive; -1 where the input has none",
}


def chunk_rows(rows_per_shard: int) -> int:
    """Rows of an inner chunk: the largest divisor of rows_per_shard that is at most CHUNK_ROWS."""
    return max(rows for rows in range(1, CHUNK_ROWS + 1) if rows_per_shard % rows == 0)


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], rows_per_shard: int, dims: Sequence[str], dtype: str
) -> zarr.Array:
    """An array of one Zarr shard for each of our shards, every inner chunk compressed and checksummed."""
    inner_tail = tuple(1 if dim == "target" else size for dim, size in zip(dims[1:], shape[1:], strict=True))
    return group.create_array(
        name,
        shape=shape,
        shards=(rows_per_shard, *shape[1:]),
        chunks=(chunk_rows(rows_per_shard), *inner_tail),
        dtype=dtype,
        fill_value=np.nan if dtype == "float32" else 0,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=dims,
        attributes=_described(name),
        config={"write_empty_chunks": True},
    )


def _create_column(group: zarr.Group, name: str, dtype: Any, n: int = 0, dim: str = "sequence") -> zarr.Array:
    """A column of the row table, or the labels of a dimension."""
    return group.create_array(
        name,
        shape=(n,),
        chunks=(TABLE_CHUNK_ROWS,),
        dtype=dtype,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=(dim,),
        attributes=_described(name),
    )


def _described(name: str) -> dict[str, Any]:
    return {"description": DESCRIPTIONS[name]} if name in DESCRIPTIONS else {}


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
    """A store in the making: rows are appended, then the arrays to be computed are laid out.

    It lies in the run's own folder, so that nothing at the store's path can be taken for a store until the whole input
    has been checked.
    """

    def __init__(self, path: Path, length: int, rows_per_shard: int) -> None:
        if path.exists():
            shutil.rmtree(path)
        self.path = path
        self._rows_per_shard = rows_per_shard
        self._group = zarr.create_group(path, zarr_format=3, attributes={"format_version": FORMAT_VERSION})
        dims, dtype = LAYOUT["codes"]
        codes = _create(self._group, "codes", (0, length), rows_per_shard, dims, dtype)
        self._appenders = {"codes": _Appender(codes, rows_per_shard)}
        for name, kind in TABLE.items():
            self._appenders[name] = _Appender(_create_column(self._group, name, kind), TABLE_CHUNK_ROWS)

    def append(self, **row: Any) -> None:
        """Add a row: its (L,) uint8 `codes`, and a value for every column of the row table."""
        for name, appender in self._appenders.items():
            appender.append(row[name])

    def finish(self, plan: Plan, attributes: Mapping[str, Any]) -> None:
        """Lay out the arrays to be computed, and say what the store is."""
        for appender in self._appenders.values():
            appender.flush()
        sizes = {
            "sequence": plan.n_rows,
            "target": len(plan.targets),
            "base": len(ALPHABET),
            "position": plan.length,
            "reference": plan.n_references,
        }
        for name in COMPUTED:
            dims, dtype = LAYOUT[name]
            _create(self._group, name, tuple(sizes[dim] for dim in dims), self._rows_per_shard, dims, dtype)
        for name, labels in [("target", [str(target) for target in plan.targets]), ("base", list(ALPHABET))]:
            _create_column(self._group, name, str, len(labels), name)[:] = np.array(labels, dtype=object)
        self._group.attrs.update({**attributes, "complete": False})
        for folder, _, files in os.walk(self.path):
            for file in files:
                sync(Path(folder) / file)
            sync(Path(folder))


def write_shard(path: Path, shard: Shard, values: Mapping[str, np.ndarray]) -> dict[str, FileRecord]:
    """Write one shard of every computed array, read it back, and make it durable.

    Args:
        path: of the store.
        shard: whose rows.
        values: for each name in COMPUTED, an array with len(shard) rows.

    Returns:
        Size and checksum of the file of each array, that of the codes included.

    Raises:
        OSError: the disk gave back something else than was written.
    """
    group = open_group(path, "r+")
    files = {"codes": shard_file(path, member(group, "codes"), shard)}
    for name in COMPUTED:
        array = member(group, name).with_config({"write_empty_chunks": True})
        written = np.ascontiguousarray(values[name], dtype=array.dtype)
        _overwrite(path, array, shard, written)
        if np.asarray(array[shard.start : shard.stop]).tobytes() != written.tobytes():
            raise OSError(f"{name} of {shard} reads back from {path} other than it was written")
        files[name] = shard_file(path, array, shard)
        for place in [path / files[name].path, *(path / files[name].path).parents]:
            if place == path:
                break
            sync(place)
    return files


def _overwrite(path: Path, array: zarr.Array, shard: Shard, values: np.ndarray) -> None:
    """Write a whole shard over whatever a crash left there.

    Zarr reads the last shard before it overwrites it when it is shorter than the others, and fails if it is damaged.
    """
    try:
        array[shard.start : shard.stop] = values
    except Exception:
        file = path / _shard_key(array, shard)
        if not file.exists():
            raise
        file.unlink()
        array[shard.start : shard.stop] = values


def _shard_key(array: zarr.Array, shard: Shard) -> Path:
    return Path(array.basename) / array.metadata.encode_chunk_key((shard.index, *(0 for _ in array.shape[1:])))


def shard_file(path: Path, array: zarr.Array, shard: Shard) -> FileRecord:
    """Size and checksum of the file that holds one shard of an array of the store at a path."""
    return checksum(path, _shard_key(array, shard))


def damaged_files(path: Path, shards: Sequence[Shard]) -> list[str]:
    """Files of a complete store that are not there, or of another size than when it was completed."""
    group = open_group(path, "r")
    sizes = np.asarray(member(group, "shard_bytes")[:])
    return [
        str(key)
        for column, name in enumerate(LAYOUT)
        for shard, size in zip(shards, sizes[:, column], strict=True)
        if not (file := path / (key := _shard_key(member(group, name), shard))).is_file() or file.stat().st_size != size
    ]


def read_codes(path: Path, shard: Shard) -> np.ndarray:
    """(n, L) uint8 codes of a shard's rows."""
    return np.asarray(member(open_group(path, "r"), "codes")[shard.start : shard.stop])


def read_names(path: Path, rows: Iterable[int]) -> list[str]:
    """What the input calls each of some rows."""
    names = member(open_group(path, "r"), "name")
    return [str(names[row]) for row in rows]


def read_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of the store at a path; None where nothing lies there.

    Raises:
        UserError: something else than a dlshap store lies there.
    """
    if not path.exists():
        return None
    try:
        attributes = open_group(path, "r").attrs.asdict()
    except (GroupNotFoundError, FileNotFoundError, NotADirectoryError, ValueError):
        attributes = {}
    if "format_version" not in attributes:
        raise UserError(f"store.path={path} exists and is not a dlshap store; give another path")
    return attributes


def complete_store(
    path: Path, plan: Plan, files: Sequence[Mapping[str, FileRecord]], attributes: Mapping[str, Any]
) -> None:
    """Move the checksums and the record of the run into the store; the mark that it is complete is the last write.

    Args:
        path: of the store.
        plan: of the run.
        files: for each shard in order, the record of the file of each array.
        attributes: what came of the run, plain values.
    """
    group = open_group(path, "r+")
    for name, dtype, values in [
        ("shard_crc32", "uint32", [[record[array].crc32 for array in LAYOUT] for record in files]),
        ("shard_bytes", "int64", [[record[array].n_bytes for array in LAYOUT] for record in files]),
    ]:
        array = group.create_array(
            name,
            shape=(n_shards(plan.n_rows, plan.rows_per_shard), len(LAYOUT)),
            dtype=dtype,
            dimension_names=("shard", "array"),
            overwrite=True,
        )
        array[:] = np.array(values, dtype=dtype)
    if "array" not in group:
        _create_column(group, "array", str, len(LAYOUT), "array")
    member(group, "array")[:] = np.array(list(LAYOUT), dtype=object)
    group.attrs.update(attributes)
    with warnings.catch_warnings():
        # Inline copies of the arrays' metadata, marked `must_understand: false`: readers that do not know them skip
        # them, and xarray asks for them.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path, zarr_format=3)
    for folder, _, names in os.walk(path):
        if "zarr.json" in names:
            sync(Path(folder) / "zarr.json")
    open_group(path, "r+").attrs["complete"] = True
    sync(path / "zarr.json")
    sync(path)


def open_group(path: Path, mode: Any) -> zarr.Group:
    """The group of a store."""
    return zarr.open_group(path, mode=mode, zarr_format=3)


def member(group: zarr.Group, name: str) -> zarr.Array:
    """One array of a store."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array
