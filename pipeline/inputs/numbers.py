"""Arrays of numbers in npy, npz or Zarr files, read in blocks along their first axis.

Nothing in a file is unpickled. npy and npz are read as a stream, from the beginning to the end; Zarr by whole chunks.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from pipeline.config import limits
from pipeline.inputs.compressed import refuse_compressed
from pipeline.messages.errors import UserError
from pipeline.messages.secrets import one_line
from pipeline.messages.words import counted
from pipeline.store.reader import open_array

_BLOCK_VALUES = 1 << 22  # about so many values in a block
Setting = Callable[[str], str]
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Numbers:
    """An array that is open for reading: its shape, its type, and its blocks along the first axis, in order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterator[np.ndarray]


@contextmanager
def open_numbers(
    path: Path, key: str | None, setting: Setting = "dataset.key={}".format
) -> Iterator[tuple[Numbers, str]]:
    """An array of a npy or npz file or a Zarr folder, and its name in errors; errors while it is read become UserError.

    `setting` gives the setting that names the array, from its key.
    """
    where = f"{path}" + (f" [{key}]" if key else "")
    try:
        if path.is_dir():
            yield _zarr(path, key, where, setting), where
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_member(archive, key, where, setting)) as file:
                yield _npy(file, where, limits.Streamed(path)), where
        else:
            refuse_compressed(path, "an array")
            with path.open("rb") as file:
                if file.read(2) == b"PK":
                    raise UserError(f"{where} is a truncated npz file; copy or download it again")
                file.seek(0)
                if key is not None:
                    raise UserError(f"{setting(key)} is for npz and Zarr; {path} is neither: leave the key out")
                if path.is_file():
                    limits.require_streamed(path.stat().st_size, path)
                yield _npy(file, where), where
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, TokenError, zlib.error, zipfile.BadZipFile) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{where} cannot be read: {reason}; copy or download it again") from error


def _member(archive: zipfile.ZipFile, key: str | None, where: str, setting: Setting) -> str:
    """The name of the array's file in a npz."""
    keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if repeated := {each for each in keys if keys.count(each) > 1 and key in (None, each)}:
        raise UserError(
            f"{where} holds two arrays of the name {min(repeated)}; save them again under names of their own"
        )
    if key is None and len(keys) == 1:
        return f"{keys[0]}.npy"
    if key is not None and key in keys:
        return f"{key}.npy"
    raise _wrong_key(key, keys, where, setting)


def _wrong_key(key: str | None, keys: list[str], where: str, setting: Setting) -> UserError:
    listed = f"{counted(len(keys), 'array')}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
    if not keys:
        return UserError(f"{where} holds no array")
    if key is None:
        return UserError(f"{where} holds {listed}; say which: {setting(keys[0])}")
    return UserError(f"{setting(key)}: {where.split(' [')[0]} holds {listed}")


def _npy(file: IO[bytes], where: str, streamed: limits.Streamed | None = None) -> Numbers:
    """The array in an open npy file; its header is checked before anything else is read. What is read is counted."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UserError(
            f"{where} is npy version {version[0]}.{version[1]}, which holds records; expected plain numbers"
        )
    shape, is_fortran, dtype = _HEADERS[version](file)
    if any(size < 0 for size in shape):
        raise UserError(f"{where} says that its shape is {shape}; copy or download it again")
    if dtype.hasobject:
        raise UserError(
            f"{where} holds Python objects, which are pickled and not loaded; save an array of numbers, such as "
            f"numpy.stack(rows)"
        )
    _require_rows(shape, dtype, where)
    steps = _steps(shape, _rows_in_block(shape[1:]))
    if is_fortran and len(shape) > 1:
        if isinstance(file, zipfile.ZipExtFile):
            raise UserError(
                f"{where} is in Fortran order, which cannot be read row by row from npz; save "
                f"numpy.ascontiguousarray(x), or as npy"
            )
        mapped = np.load(file.name, mmap_mode="r", allow_pickle=False)
        return Numbers(shape, dtype, (np.array(mapped[start : start + n_rows]) for start, n_rows in steps))
    blocks = (_read_rows(file, shape, dtype, start, n_rows, where, streamed) for start, n_rows in steps)
    return Numbers(shape, dtype, blocks)


def _require_rows(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Raises UserError where the rows of an array are larger than `limits.record_mb`."""
    limits.require_record(math.prod(shape[1:]) * dtype.itemsize, f"{where}, of shape {shape}: each row")


def _read_rows(
    file: IO[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype,
    start: int,
    n_rows: int,
    where: str,
    streamed: limits.Streamed | None,
) -> np.ndarray:
    """The next rows of an npy file."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    data = file.read(n_rows * row_bytes)
    if streamed is not None:
        streamed.add(len(data))
    if len(data) < n_rows * row_bytes:
        row = start + len(data) // row_bytes
        raise UserError(f"{where} is truncated in row {row} of {shape[0]}; copy or download it again")
    return np.frombuffer(data, dtype=dtype).reshape(n_rows, *shape[1:])


def _steps(shape: tuple[int, ...], step: int) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of each block."""
    for start in range(0, shape[0] if shape else 0, step):
        yield start, min(step, shape[0] - start)


def _rows_in_block(row_shape: tuple[int, ...]) -> int:
    return max(1, _BLOCK_VALUES // max(1, math.prod(row_shape)))


def _zarr(folder: Path, key: str | None, where: str, setting: Setting) -> Numbers:
    """An array of a Zarr folder, in blocks of whole chunks."""
    if _is_array(folder):
        if key is not None:
            raise UserError(f"{setting(key)}: {folder} is one array; leave the key out")
    elif key is None or not _is_array(folder / key):
        keys = sorted(item.name for item in folder.iterdir() if item.is_dir() and _is_array(item))
        if key is not None or len(keys) != 1:
            raise _wrong_key(key, keys, where, setting)
        key = keys[0]
    try:
        array = open_array(folder / key if key else folder)
    except (KeyError, TypeError, AttributeError) as error:  # what Zarr raises where its metadata lack something
        raise UserError(f"{where} has damaged metadata ({error!r}); copy or download it again") from error
    _require_rows(array.shape, array.dtype, where)
    rows = array.chunks[0] if array.chunks else 1
    step = rows * max(1, _rows_in_block(array.shape[1:]) // rows)
    shape = tuple(array.shape)
    blocks = (np.asarray(array[start : start + n_rows]) for start, n_rows in _steps(shape, step))
    return Numbers(shape, array.dtype, blocks)


def _is_array(folder: Path) -> bool:
    """Whether a folder says that it is a Zarr array, of either format."""
    if (folder / ".zarray").is_file():
        return True
    about = folder / "zarr.json"
    return about.is_file() and json.loads(about.read_bytes()).get("node_type") == "array"
