"""A limit of time for reading an input, which happens on a thread of its own.

A pipe without a writer, or a file server that has gone, blocks in the operating system without an error. The blocked
thread is left behind; it does not keep the process from ending. The thread also reads ahead.
"""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.inputs.base import RowBatch, Source
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG

AHEAD = 2  # batches that may wait to be used
SAY_EVERY_S = 30.0
T = TypeVar("T")


class TimedSource:
    """The source that `open_` makes, with a limit of time for opening it and for each batch of rows.

    `where` names the input in the error.
    """

    def __init__(self, open_: Callable[[], Source], timeout_s: float, where: str) -> None:
        self._timeout_s, self._where = timeout_s, where
        (self._source,) = self._on_a_thread(lambda: iter([open_()]))
        self.description: dict[str, Any] = self._source.description

    def batches(self) -> Iterator[RowBatch]:
        """The rows of the source. Raises UserError where the input cannot be read, or gives nothing in `timeout_s`."""
        return self._on_a_thread(self._source.batches)

    def _on_a_thread(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What `read` gives, and the error that it raises."""
        found: queue.Queue[T | Exception | None] = queue.Queue(AHEAD)
        abandoned = threading.Event()
        here = contextvars.copy_context()  # the limits
        threading.Thread(target=here.run, args=(_read_into, found, abandoned, read), daemon=True, name="input").start()
        try:
            while True:
                item = self._next(found)
                if isinstance(item, OSError | MemoryError):
                    reason = getattr(item, "strerror", None) or str(item) or "it does not fit in the memory"
                    raise UserError(f"{self._where} cannot be read: {reason}") from item
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            abandoned.set()

    def _next(self, found: "queue.Queue[T | Exception | None]") -> T | Exception | None:
        """The next item, with a line on the terminal now and then where it takes long."""
        waited = 0.0
        while waited < self._timeout_s:
            step = min(SAY_EVERY_S, self._timeout_s - waited)
            try:
                return found.get(timeout=step)
            except queue.Empty:
                waited += step
            if waited < self._timeout_s:
                LOG.info(f"reading {self._where}: nothing that can be used for {waited:.0f} s")
        raise UserError(
            f"{self._where} gave nothing for {self._timeout_s} s (dataset.timeout_s); is it a pipe, or on a file "
            f"server that is gone?"
        )


def _read_into(
    found: "queue.Queue[T | Exception | None]", abandoned: threading.Event, read: Callable[[], Iterator[T]]
) -> None:
    """Put every item into the queue, then None or the error, until the reader is abandoned."""
    try:
        for item in read():
            if not _put(found, abandoned, item):
                return
        _put(found, abandoned, None)
    except Exception as error:
        _put(found, abandoned, error)


def _put(found: "queue.Queue[T]", abandoned: threading.Event, item: T) -> bool:
    """False where the reader was abandoned."""
    while not abandoned.is_set():
        try:
            found.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
