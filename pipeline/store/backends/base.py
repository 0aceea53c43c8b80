"""What a storage backend is. Keys are relative, with / between their parts, without empty parts, . or .."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pipeline.store.backends.tree import MOST_BYTES


class StoredFile(NamedTuple):
    """A file of a backend; a tuple, because there may be millions.

    Attributes:
        key: relative to the backend.
        n_bytes: its size.
        modified: when it was written, in seconds since 1970 by the clock of the backend.
    """

    key: str
    n_bytes: int
    modified: float


LOCK_TIMEOUT_S = 6 * 3600.0  # the longest preparations of a run take hours


def unguarded() -> None:
    """Anyone may change the files."""


def anything(key: str) -> bool:
    """Every file and folder."""
    return True


class Backend(Protocol):
    """A folder of a disk or a prefix of an object store.

    Errors are of OSError's family, one line, with the URL and the key in them. A key that could lead outside is a
    ValueError.

    Attributes:
        guard: asked before every write and deletion; it raises OSError where the lock that they need was lost.
        concurrency: files read at a time, for speed.
        append_interval_s: seconds between two additions to a log.
        lock_timeout_s: seconds after which whoever waits for a lock gives up.
    """

    guard: Callable[[], None]
    concurrency: int
    append_interval_s: float
    lock_timeout_s: float

    @property
    def url(self) -> str:
        """The absolute path, or s3://bucket/prefix: for people, and to open the backend again."""

    def read(self, key: str, most: int = MOST_BYTES) -> bytes:
        """The content of a file; FileNotFoundError where nothing is, TooLarge where it is longer than `most` bytes."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where nothing is."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file: it appears whole or not at all, replaces an older one, and is durable on return."""

    def append(self, key: str, data: bytes) -> None:
        """Add to a log: to the file on a disk; as a part of its own, <stem>-<number><suffix>, on an object store."""

    def delete(self, key: str) -> None:
        """Delete a file; no error where nothing is."""

    def files(self, prefix: str = "") -> Iterator[StoredFile]:
        """Every file whose key starts with this string, in all folders, in any order."""

    def clear(self, prefix: str = "", only: Callable[[str], object] = anything) -> None:
        """Delete all of those, and the folders whose names (with a / at the end) start with it too, where they are left
        empty, if `only` is true of the key or name; for prefix "" the root's own."""

    def is_empty(self) -> bool:
        """Whether nothing exists at the URL, neither a file of that name nor files below it."""

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A path at which to make a folder for `publish`; what remains of it at the end is removed."""

    def publish(self, folder: Path, last: str) -> None:
        """Replace everything by the files of a folder, which goes; the file `last` appears after all others."""

    def sync(self) -> None:
        """Make it durable that the root exists."""

    def zarr_store(self, most: int = MOST_BYTES) -> Any:
        """What Zarr opens to read here, at most so many bytes of a file at once."""

    def lock(self, key: str, waiting: Callable[[str], None]) -> AbstractContextManager[Callable[[], None]]:
        """Hold a key exclusively; `waiting` is told who holds it, at once and every minute, while one must wait. The
        function that the context gives raises OSError where the lock was lost since; `guard` may be set to it."""


def check_key(key: str) -> str:
    """The key; ValueError where it could lead outside: it has an empty part, . or .. in it, or is absolute."""
    parts = key.split("/")
    if "" in parts or "." in parts or ".." in parts:
        raise ValueError(f"{key!r} is no key: expected parts with / between them, none of them empty, . or ..")
    return key
