"""What a file may make of itself: a small one must not fill the memory, nor keep a reader busy for hours.

The limits of a configuration (`limits.*`) hold within `using`, on threads that copy its context too; without it, those
that are the defaults. What is held at once is measured before it is read, what is streamed is counted as it comes: the
sizes that a file says of itself may be lies.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from pipeline.config import memory
from pipeline.config.schema import LimitsConfig
from pipeline.messages.errors import UserError

MB = 10**6
_PER_BASE = 140_000  # bytes that a model may make of each base; Enformer makes 122,000, Borzoi 101,000
_MAY_HAVE_HOLES = 1 << 24  # bytes; the holes of smaller files do no harm
_DEFAULTS = LimitsConfig()
_limits: ContextVar[LimitsConfig | None] = ContextVar("limits", default=None)


@contextmanager
def using(limits: LimitsConfig) -> Iterator[None]:
    """These limits hold within."""
    before = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(before)


def current() -> LimitsConfig:
    """The limits that hold here."""
    return _limits.get() or _DEFAULTS


def record_bytes() -> int:
    """Bytes of the longest record."""
    return current().record_mb * MB


def require_record(n_bytes: int, what: str) -> None:
    """Raises UserError where a record is larger than `limits.record_mb`."""
    _require("record_mb", n_bytes, what)


def require_header(n_bytes: int, what: str) -> None:
    """Raises UserError where what lies beside the tensors of a checkpoint is larger than `limits.header_mb`."""
    _require("header_mb", n_bytes, what)


def require_block(n_bytes: int, what: str) -> None:
    """Raises UserError where what is read at once is larger than `limits.block_mb`."""
    _require("block_mb", n_bytes, what)


def _require(setting: str, n_bytes: int, what: str) -> None:
    limit = getattr(current(), setting)
    if n_bytes > limit * MB:
        raise UserError(f"{what} has {_size(n_bytes)}, {_over(setting, f'{limit} MB', str(_needed(n_bytes)))}")


def too_long(what: str, setting: str) -> UserError:
    """The error for what is larger than a limit, by who knows how much."""
    return UserError(f"{what} is {_over(setting, f'{getattr(current(), setting)} MB', '...')}")


def require_sequence(n_bases: int, what: str) -> None:
    """Raises UserError where a sequence is longer than `limits.sequence`."""
    if (problem := sequence_problem(n_bases)) is not None:
        raise UserError(f"{what} {problem}")


def sequence_problem(n_bases: int) -> str | None:
    """What is wrong with a sequence that is longer than `limits.sequence`; None where nothing is."""
    limit = current().sequence
    return None if n_bases <= limit else f"has {n_bases} bases, {_over('sequence', str(limit), str(n_bases))}"


def long_name_problem(n_characters: int) -> str:
    """What is wrong with a name that is longer than `limits.name`."""
    return f"has a name of {n_characters} characters, {_over('name', str(current().name), str(n_characters))}"


def require_held(n_bytes: int, on_disk: int, what: str) -> None:
    """For what is in memory as a whole, from a file of so many bytes on disk.

    Raises:
        UserError: it is larger than `limits.held_mb` and more than `limits.held_ratio` times as large as its file, or
            than the memory that is free.
    """
    limits = current()
    if n_bytes > max(limits.held_mb * MB, limits.held_ratio * on_disk):
        raise UserError(
            f"{what} takes {_size(n_bytes)} of memory once it is read, and {_size(on_disk)} on disk, "
            f"{_over('held_mb', f'{limits.held_mb} MB', str(_needed(n_bytes)))}"
        )
    if n_bytes > _MAY_HAVE_HOLES and n_bytes > (free := memory.free()):
        raise UserError(
            f"{what} takes {_size(n_bytes)} of memory once it is read, and {_size(free)} are free; use a machine, or "
            f"ask for a job, with more memory"
        )


def require_computed(n_bytes: int, on_disk: int, n_bases: int, what: str) -> None:
    """For what the layers of a model make of one sequence of so many bases. Raises UserError where it is larger than
    `limits.computed_mb`, more than `limits.held_ratio` times as large as its file, and more than models of long
    sequences make."""
    limits = current()
    if n_bytes > max(limits.computed_mb * MB, limits.held_ratio * on_disk, _PER_BASE * n_bases):
        raise UserError(
            f"{what}: its layers make {_size(n_bytes)} or more of one sequence of {n_bases} bases, and it has "
            f"{_size(on_disk)} on disk, {_over('computed_mb', f'{limits.computed_mb} MB', str(2 * _needed(n_bytes)))}"
        )


def require_streamed(n_bytes: int, path: Path) -> None:
    """For what is read of a file or a folder bit by bit. Raises UserError where it is larger than `limits.streamed_mb`
    and more than `limits.streamed_ratio` times as large as the file."""
    limits = current()
    if n_bytes <= limits.streamed_mb * MB:
        return
    enough = math.ceil(n_bytes / limits.streamed_ratio)
    if (on_disk := bytes_on_disk(path, enough)) < enough:
        raise UserError(
            f"{path} unpacks to {_size(n_bytes)} or more, and has {_size(on_disk)} on disk, "
            f"{_over('streamed_mb', f'{limits.streamed_mb} MB', str(2 * _needed(n_bytes)))}"
        )


class Streamed:
    """Counts what is read of a file, whose content is never in memory as a whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._n_read, self._most = path, 0, current().streamed_mb * MB

    def add(self, n_bytes: int) -> None:
        """So many bytes more. Raises UserError as `require_streamed` does."""
        self._n_read += n_bytes
        if self._n_read > self._most:
            require_streamed(self._n_read, self._path)
            self._most = current().streamed_ratio * bytes_on_disk(self._path)


def bytes_on_disk(path: Path, enough: int | None = None) -> int:
    """Bytes of data in a file, without its holes, or in the files of a folder; of a folder no more than `enough` are
    counted."""
    if path.is_dir():
        n_bytes = 0
        for folder, _, names in os.walk(path):
            for name in names:
                n_bytes += os.stat(os.path.join(folder, name)).st_size
                if enough is not None and n_bytes >= enough:
                    return n_bytes
        return n_bytes
    size = path.stat().st_size
    return size if size < _MAY_HAVE_HOLES else _without_holes(path, size)


def _without_holes(path: Path, size: int) -> int:
    n_bytes = end = 0
    with path.open("rb") as file:
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError:  # nothing but a hole is left
                return n_bytes
            n_bytes += end - start
    return n_bytes


def _over(setting: str, limit: str, needed: str) -> str:
    return f"more than the limit of {limit}; if you trust the file, set limits.{setting}={needed}"


def _needed(n_bytes: int) -> int:
    return math.ceil(n_bytes / MB)


def _size(n_bytes: int) -> str:
    for unit, power in (("TB", 10**12), ("GB", 10**9), ("MB", MB)):
        if n_bytes >= power:
            return f"{n_bytes / power:.3g} {unit}"
    return f"{n_bytes} bytes"
