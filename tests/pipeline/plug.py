"""A plug that can be pulled: places that end the process, so to speak, at the n-th thing that is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.store.backends.base import anything
from pipeline.store.backends.local import LocalBackend


class PulledPlug(BaseException):
    """What no handler of errors sees: everything stops here."""


class Plug:
    """Counts what is written, and is pulled when `left` is used up (None: never).

    From then on nothing is written any more, as after a kill: what runs on the way out of a Python program must not be
    able to help.
    """

    def __init__(self, left: int | None) -> None:
        self.left = left
        self.used: list[str] = []
        self.is_pulled = False

    def use(self, what: str) -> None:
        if self.is_pulled or (self.left is not None and len(self.used) >= self.left):
            self.is_pulled = True
            raise PulledPlug(what)
        self.used.append(what)


class PluggedBackend(LocalBackend):
    """A folder whose every change may be the last."""

    plug: Plug = Plug(None)

    def write(self, key: str, data: bytes) -> None:
        self.plug.use(f"write {key}")
        super().write(key, data)

    def append(self, key: str, data: bytes) -> None:
        self.plug.use(f"append {key}")
        super().append(key, data)

    def delete(self, key: str) -> None:
        self.plug.use(f"delete {key}")
        super().delete(key)

    def clear(self, prefix: str = "", only: Callable[[str], object] = anything) -> None:
        self.plug.use(f"clear {prefix}")
        for entry in filter(lambda entry: only(entry.key), list(self.files(prefix))):
            self.delete(entry.key)  # each of them may be the last
        super().clear(prefix, only)


@contextmanager
def plugged(left: int | None) -> Iterator[Plug]:
    """Runs in this context stop for good after so many changes."""
    plug = Plug(left)

    def open_backend(url: str, options: object = None, scratch: Path | None = None) -> LocalBackend:
        backend = PluggedBackend(Path(url), scratch)
        backend.plug = plug
        return backend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.run_directory.open_backend", open_backend)
        yield plug
