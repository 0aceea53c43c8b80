"""What a place is. Keys are relative, with / between their parts, without empty parts, . or .."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """A file of a place; a tuple, because there may be millions.

    Attributes:
        key: relative to the place.
        n_bytes: its size.
        modified: when it was written, in seconds since 1970 by the clock of the place.
    """

    key: str
    n_bytes: int
    modified: float


class Place(Protocol):
    """A folder of a disk or a prefix of an object store.

    Errors are of OSError's family, one line, with the place and the key in them. A key that could leave the place is a
    ValueError.
    """

    @property
    def url(self) -> str:
        """The absolute path, or s3://bucket/prefix: for people, and to open the place again."""

    def read(self, key: str) -> bytes:
        """The content of a file; FileNotFoundError where nothing is."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where nothing is."""

    def write(self, key: str, data: bytes) -> None:
        """Write a file: it appears whole or not at all, replaces one that is there, and is durable on return."""

    def append(self, key: str, data: bytes) -> None:
        """Add to a log: to the file on a disk; as a part of its own, <stem>-<number><suffix>, on an object store."""

    def delete(self, key: str) -> None:
        """Delete a file; no error where nothing is."""

    def files(self, prefix: str = "") -> Iterator[Entry]:
        """Every file whose key starts with this string, in all folders, in any order."""

    def clear(self, prefix: str = "") -> None:
        """Delete all of those, and the folders whose names (with a / at the end) start with it too, where they are left
        empty; for prefix "" the place's own."""

    def lock(self, key: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """Hold a key for oneself; `waiting` is told who holds it, once, when one must wait."""


def check_key(key: str) -> str:
    """The key, if it can only be inside the place.

    Raises:
        ValueError: it has an empty part, . or .. in it, or is absolute.
    """
    parts = key.split("/")
    if "" in parts or "." in parts or ".." in parts:
        raise ValueError(f"{key!r} is no key: expected parts with / between them, none of them empty, . or ..")
    return key
