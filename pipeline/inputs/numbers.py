"""Sequences as numbers in npy, npz or Zarr, read in blocks: see onehot.py for what they mean.

Rows have no names: row 5 is called `row_5`. Nothing in a file is unpickled. npy and npz are read as a stream, from the
beginning to the end; Zarr by whole chunks.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.reader import open_array
from pipeline.sources.base import Row, Rows, batched
from pipeline.sources.onehot import axes_of, decode, require_codes
from pipeline.wording import counted

_BLOCK_VALUES = 1 << 22  # about so many values in a block
Setting = Callable[[str], str]
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Numbers:
    """An array that is open for reading: its shape, its type, and its blocks along the first axis, in order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterator[np.ndarray]


class ArraySource:
    """Every row of one array, in order.

    Args:
        path: npy or npz file, or a Zarr folder.
        key: which array, of a file or folder with several.
        axes: their order, where the shape does not tell; one of onehot.AXES.
    """

    def __init__(self, path: Path, key: str | None = None, axes: str | None = None) -> None:
        self.path, self.key, self.axes = path, key, axes
        self.description: dict[str, Any] = {"kind": "array", "path": path.name, "key": key}

    def batches(self) -> Iterator[Rows]:
        """The rows in order; see `Source`. Raises UserError for a file, shape or type that cannot be used."""
        return batched(self._rows())

    def _rows(self) -> Iterator[Row]:
        with open_numbers(self.path, self.key) as (numbers, where):
            n_rows = numbers.shape[0] if numbers.shape else 0
            axes = axes_of(numbers.shape, numbers.dtype.kind, self.axes, where)
            self.description["axes"] = axes
            if n_rows == 0:
                raise UserError(f"{where} has the shape {numbers.shape}: it holds no rows")
            index = 0
            for block in numbers.blocks:
                if index == 0 and axes == "NL" and self.axes is None:
                    require_codes(block, n_rows, where)
                for codes, problem in zip(*decode(block, axes), strict=True):
                    name = f"row_{index}"
                    if problem is None:
                        yield Row(index, codes, None, name)
                    else:
                        yield Row(index, None, f"row {index} ({self.path.name}): {problem}", name)
                    index += 1


@contextmanager
def open_numbers(
    path: Path, key: str | None, setting: Setting = "dataset.key={}".format
) -> Iterator[tuple[Numbers, str]]:
    """An array, and what to call it in errors; what goes wrong while it is read is an error of the user's.

    Args:
        path: npy or npz file, or a Zarr folder.
        key: which array, of a file or folder with several.
        setting: gives the setting that names the array, from its key.
    """
    where = f"{path}" + (f" [{key}]" if key else "")
    try:
        if path.is_dir():
            yield _zarr(path, key, where, setting), where
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(_member(archive, key, where, setting)) as file:
                yield _npy(file, where), where
        else:
            with path.open("rb") as file:
                if file.read(2) == b"PK":
                    raise UserError(f"{where} is a truncated npz file; copy or download it again")
                file.seek(0)
                if key is not None:
                    raise UserError(f"{setting(key)} is for npz and Zarr; {path} is neither: leave the key out")
                yield _npy(file, where), where
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} cannot be read: {reason}; copy or download it again") from error


def _member(archive: zipfile.ZipFile, key: str | None, where: str, setting: Setting) -> str:
    """The name of the array's file in a npz."""
    keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
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


def _npy(file: IO[bytes], where: str) -> Numbers:
    """The array in an open npy file; its header is checked before anything else is read."""
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
    steps = _steps(shape, _rows_in_block(shape[1:]))
    if is_fortran and len(shape) > 1:
        if isinstance(file, zipfile.ZipExtFile):
            raise UserError(
                f"{where} is in Fortran order, which cannot be read row by row from npz; save "
                f"numpy.ascontiguousarray(x), or as npy"
            )
        mapped = np.load(file.name, mmap_mode="r", allow_pickle=False)
        return Numbers(shape, dtype, (np.array(mapped[start : start + n_rows]) for start, n_rows in steps))
    blocks = (_read_rows(file, shape, dtype, start, n_rows, where) for start, n_rows in steps)
    return Numbers(shape, dtype, blocks)


def _read_rows(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, start: int, n_rows: int, where: str
) -> np.ndarray:
    """The next rows of an npy file."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    data = file.read(n_rows * row_bytes)
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
