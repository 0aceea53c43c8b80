"""An input is not waited for for ever: reading happens on a thread of its own, and whoever waits for it gives up.

A pipe that nobody writes to, or a file server that has gone, blocks in the operating system, where no error is raised.
The thread that is blocked there is left behind: it does not keep the process from ending. Reading ahead of whoever uses
the rows is a welcome side effect.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.sources.base import Rows, Source

AHEAD = 2  # batches that may wait to be used
T = TypeVar("T")


class PatientSource:
    """A source that is given up when it gives nothing for too long.

    Args:
        open_: makes the source.
        timeout_s: how long to wait, for it to open and for each batch of rows.
        where: what is read, for the error.
    """

    def __init__(self, open_: Callable[[], Source], timeout_s: float, where: str) -> None:
        self._timeout_s, self._where = timeout_s, where
        (self._source,) = self._on_a_thread(lambda: iter([open_()]))
        self.description: dict[str, Any] = self._source.description

    def batches(self) -> Iterator[Rows]:
        """The rows in input order, as of the source itself.

        Raises:
            UserError: the input cannot be read, or gives nothing for too long.
        """
        return self._on_a_thread(self._source.batches)

    def _on_a_thread(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What `read` gives, and the error it ends with."""
        found: queue.Queue[tuple[bool, T | Exception | None]] = queue.Queue(AHEAD)
        abandoned = threading.Event()
        threading.Thread(target=_read_into, args=(found, abandoned, read), daemon=True, name="input").start()
        try:
            while True:
                try:
                    more, item = found.get(timeout=self._timeout_s)
                except queue.Empty:
                    raise UserError(
                        f"{self._where} gave nothing for {self._timeout_s} s (dataset.timeout_s); is it a pipe, or on "
                        f"a file server that is gone?"
                    ) from None
                if isinstance(item, OSError | MemoryError):
                    reason = getattr(item, "strerror", None) or str(item) or "it does not fit in the memory"
                    raise UserError(f"{self._where} cannot be read: {reason}") from item
                if isinstance(item, Exception):
                    raise item
                if not more or item is None:
                    return
                yield item
        finally:
            abandoned.set()


def _read_into(
    found: "queue.Queue[tuple[bool, T | Exception | None]]", abandoned: threading.Event, read: Callable[[], Iterator[T]]
) -> None:
    """Hand everything over, until there is nothing more or nobody wants it."""
    try:
        for item in read():
            if not _put(found, abandoned, (True, item)):
                return
        _put(found, abandoned, (False, None))
    except Exception as error:
        _put(found, abandoned, (False, error))


def _put(found: "queue.Queue[T]", abandoned: threading.Event, item: T) -> bool:
    """Whether it was taken."""
    while not abandoned.is_set():
        try:
            found.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
