"""What happened in a command, as JSON lines beside the store: logs/<start>-<host>-<process>.jsonl."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from pipeline.messages.secrets import one_line
from pipeline.messages.visible import to_json
from pipeline.store.backends.base import Backend


class EventLog:
    """The log of one command. Every line holds `time` (seconds since 1970), `event`, and what belongs to the event."""

    def __init__(self, run: Backend) -> None:
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._run = run
        self._key = f"logs/{started}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._lines: list[str] = []
        self._written = time.monotonic()

    def note(self, event: str, **values: Any) -> None:
        """Add a line."""
        self._lines.append(to_json({"time": round(time.time(), 3), "event": event, **values}))
        if time.monotonic() - self._written >= self._run.append_interval_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            self._run.append(self._key, ("\n".join(self._lines) + "\n").encode())
            self._lines = []
        self._written = time.monotonic()


@contextlib.contextmanager
def event_log(run: Backend, **values: Any) -> Iterator[EventLog]:
    """The log of the command that runs within this context, from its first line to its last."""
    log = EventLog(run)
    log.note("start", host=socket.gethostname(), process=os.getpid(), **values)
    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):  # the backend may be what failed, and the first error is the one to tell
            log.note("error", kind=type(error).__name__, error=one_line(error))
            log.flush()
        raise
    log.note("end")
    log.flush()
