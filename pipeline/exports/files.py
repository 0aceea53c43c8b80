"""Files of exports: they appear whole and together or not at all, and nothing of them is held in memory whole.

What is replaced stays whole until the new files are in its place. One file is replaced in one step. Of several, those
of two exports must never stand side by side, so the old ones lie in a hidden folder beside them meanwhile:

    .<first file>.moving    old files are being moved into it
    .<first file>.moved     all of them are in it, and new ones take their places
    .<first file>.replaced  the new ones are all in place, and this may go

A crash before the third name leaves what the next export to the same place puts back.
"""

import contextlib
import math
import os
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.messages.errors import UserError
from pipeline.store.backends.local import sync


@contextlib.contextmanager
def appearing(paths: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Names of hidden files beside `paths` to write to; they get their own names when the block ends without an error.

    Args:
        paths: the files to be, of one folder; missing folders are made.
        overwrite: replace an existing file.

    Raises:
        UserError: a file exists and may not be replaced, or is a folder.
        OSError: a file cannot be written.
    """
    _put_back(paths)
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected the name of a file to write")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give --overwrite to replace it, or another name")
    made = [folder for path in paths for folder in _make(path.parent)]
    token = uuid.uuid4().hex[:8]
    partial = [path.with_name(f".{path.name}.{token}.partial") for path in paths]
    try:
        yield partial
        for path in partial:
            sync(path)
        _replace(paths, partial)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # it holds what was written
                folder.rmdir()


def _replace(paths: Sequence[Path], new: Sequence[Path]) -> None:
    """Put new files in the places of old ones; after an error the old ones are where they were."""
    moving, moved, replaced = _asides(paths)
    folder = paths[0].parent
    if len(paths) == 1:
        new[0].replace(paths[0])
        sync(folder)
        return
    moving.mkdir()
    try:
        with _opened(moving) as inside:
            if inside is None:
                raise UserError(f"{folder} is a folder in which others move things at this moment; write to another")
            for path in paths:
                if path.exists():
                    os.rename(path, path.name, dst_dir_fd=inside)
        sync(moving)
        moving.rename(moved)
        sync(folder)
        for hidden, path in zip(new, paths, strict=True):
            hidden.rename(path)
        sync(folder)
        moved.rename(replaced)
        sync(folder)
    finally:
        _put_back(paths)


def _put_back(paths: Sequence[Path]) -> None:
    """Undo what did not come to its end, and remove what is left of what did.

    Of what lies in a hidden folder only the files of these names are touched, and nothing where it is a link.
    """
    moving, moved, replaced = _asides(paths)
    with _opened(replaced) as inside:
        if inside is not None:
            for name in _names_in(inside, paths):
                os.unlink(name, dir_fd=inside)
            _remove_if_empty(replaced)
    with _opened(moved) as inside:
        if inside is not None:
            for path in paths:
                path.unlink(missing_ok=True)
            moved.rename(moving)
    with _opened(moving) as inside:
        if inside is not None:
            for name in _names_in(inside, paths):
                os.rename(name, moving.with_name(name), src_dir_fd=inside)
            _remove_if_empty(moving)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A folder of this user's, however its name is used meanwhile; None for anything else: others may have put theirs
    there, as in /tmp."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        yield folder if os.fstat(folder).st_uid == os.geteuid() else None
    finally:
        os.close(folder)


def _names_in(folder: int, paths: Sequence[Path]) -> list[str]:
    """The names of these files that are in an open folder."""
    there = set(os.listdir(folder))
    return [path.name for path in paths if path.name in there]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something else lies in it
        folder.rmdir()


def _asides(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The hidden folder of old files, by what it is called in turn."""
    return tuple(paths[0].with_name(f".{paths[0].name}.{state}") for state in ("moving", "moved", "replaced"))


def _make(folder: Path) -> list[Path]:
    """Make a folder, and say which of it and its parents were made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; a folder is needed there")
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing[::-1]


class RowFile:
    """Rows of one shape in a file: a few are written or read at a time, and none of them stays in memory, as those of a
    mapped file do."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: str) -> None:
        self._file, self._shape, self._dtype = file, shape, np.dtype(dtype)
        self._row_bytes = math.prod(shape[1:]) * self._dtype.itemsize
        os.posix_fallocate(file.fileno(), 0, max(1, len(self) * self._row_bytes))  # a full disk is an error here

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows side by side."""
        first, last, _ = rows.indices(len(self))
        found = np.empty((max(0, last - first), *self._shape[1:]), self._dtype)
        self._file.seek(first * self._row_bytes)
        self._file.readinto(found.data)  # type: ignore[attr-defined]  # of every file that is read through a buffer
        return found

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        """Write rows at these places."""
        order = np.argsort(places)
        places, values = places[order], np.asarray(values[order], self._dtype)
        for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1):
            if len(run):
                self._file.seek(int(places[run[0]]) * self._row_bytes)
                self._file.write(values[run[0] : run[-1] + 1].tobytes())


@contextlib.contextmanager
def reordered(
    folder: Path, shape: tuple[int, ...], dtype: str, parts: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[RowFile]:
    """An array on the disk, put together from rows in any order; it is removed after the block.

    `parts` are (B,) places along the first axis, and their (B, ...) values. OSError where the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        rows = RowFile(file, shape, dtype)
        for places, values in parts:
            rows.put(places, values)
        yield rows


@dataclass(frozen=True)
class Member:
    """One array of an npz file: its shape and dtype, its values in blocks along the first axis, whether to compress."""

    shape: tuple[int, ...]
    dtype: str
    blocks: Iterable[np.ndarray]
    compress: bool = False

    @staticmethod
    def of(values: np.ndarray) -> "Member":
        """A small array."""
        return Member(values.shape, values.dtype.str, [values], compress=True)


def write_npz(path: Path, members: Iterable[tuple[str, Member]]) -> None:
    """Write an npz file as numpy's own, one array after the other, block by block."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, member in members:
            entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: equal values make equal files
            entry.compress_type = zipfile.ZIP_DEFLATED if member.compress else zipfile.ZIP_STORED
            descr = np.lib.format.dtype_to_descr(np.dtype(member.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": member.shape}
            n_rows = 0
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for block in member.blocks:
                    file.write(np.ascontiguousarray(block, dtype=member.dtype).tobytes())
                    n_rows += len(block)
            assert n_rows == member.shape[0], f"{name}: {n_rows} rows of {member.shape[0]}"


def in_blocks(array: np.ndarray | RowFile, rows: int = 512) -> Iterator[np.ndarray]:
    """An array, some rows at a time."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
