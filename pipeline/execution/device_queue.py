"""Several shards in flight: while one has the device to itself, others are read, drawn, encoded, written.

One thread works on a shard from beginning to end, and the part of it that needs the device waits its turn. That part
runs in the shard's own thread (`DeviceLock`), or in the one that serves the others and receives signals
(`DeviceQueue`).
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")
Item = TypeVar("Item")
_END = object()


class DeviceAccess(Protocol):
    """Runs functions one at a time, whichever threads ask."""

    def __call__(self, function: Callable[[], T]) -> T: ...


class DeviceLock:
    """One at a time, each in the thread that asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, function: Callable[[], T]) -> T:
        with self._lock:
            return function()


class QueueClosed(BaseException):
    """The queue is served no more. No Exception: a handler of the shard's errors must not catch it."""


class DeviceQueue:
    """One at a time, all in the thread that goes through `serve`."""

    def __init__(self) -> None:
        self._events: SimpleQueue[tuple[Future[Any], Callable[[], Any] | None]] = SimpleQueue()
        self._is_closed = False
        self._lock = threading.Lock()

    def __call__(self, function: Callable[[], T]) -> T:
        job: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise QueueClosed
            self._events.put((job, function))
        return job.result()

    def serve(self, process: Callable[[Item], R], items: Iterable[Item], n: int) -> Generator[R, None, None]:
        """What `process` returns for each item, as it comes; n threads work on an item each.

        When the generator is closed or interrupted, no further item is begun, threads that wait for the device get
        `QueueClosed`, and the others finish theirs first.
        """
        left = iter(items)
        with ThreadPoolExecutor(n) as threads:
            try:
                for _ in range(n):
                    threads.submit(self._work, process, left).add_done_callback(
                        lambda end: self._events.put((end, None))
                    )
                n_working = n
                while n_working:
                    job, function = self._events.get()
                    if function is not None:
                        _run(job, function)
                    elif (found := job.result()) is _END:
                        n_working -= 1
                    else:
                        yield found
            finally:
                self._close()

    def _work(self, process: Callable[[Item], R], left: Iterator[Item]) -> object:
        """One thread. It goes on with the next item by itself, as the one that serves may be busy."""
        while (item := self._next(left)) is not _END:
            done: Future[R] = Future()
            done.set_result(process(cast(Item, item)))
            self._events.put((done, None))
        return _END

    def _next(self, left: Iterator[Item]) -> object:
        with self._lock:
            return _END if self._is_closed else next(left, _END)

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
        while True:
            try:
                job, function = self._events.get_nowait()
            except Empty:
                return
            if function is not None:
                job.set_exception(QueueClosed())


def _run(job: "Future[Any]", function: Callable[[], Any]) -> None:
    """Errors are for whoever asked; what is to end this thread does."""
    try:
        result = function()
    except BaseException as error:
        job.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        job.set_result(result)
