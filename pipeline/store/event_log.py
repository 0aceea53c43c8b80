"""What happened in a command, as JSON lines beside the store: logs/<start>-<host>-<process>.jsonl."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from pipeline.messages.progress import LOG
from pipeline.messages.secrets import one_line, without_credentials
from pipeline.messages.visible import to_json, visible
from pipeline.store.backends.base import Backend

LONGEST = 20_000  # letters of a message


class EventLog:
    """The log of one command. Every line holds `time` (seconds since 1970), `event`, and what belongs to the event."""

    def __init__(self, run: Backend) -> None:
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._run = run
        self._key = f"logs/{started}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._lines: list[str] = []
        self._written = time.monotonic()

    def keep(self, event: str, **values: Any) -> None:
        """Add a line, which is written later."""
        self._lines.append(to_json({"time": round(time.time(), 3), "event": event, **values}))

    def note(self, event: str, **values: Any) -> None:
        """Add a line."""
        self.keep(event, **values)
        if time.monotonic() - self._written >= self._run.append_interval_s:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if lines:
            self._run.append(self._key, ("\n".join(lines) + "\n").encode())
        self._written = time.monotonic()


class _Messages(logging.Handler):
    """Keeps what is said on stderr, and what Ray says, for when the log is written next; in any thread."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        text = visible(without_credentials(record.getMessage()), kept="\n\t")[:LONGEST]
        self._log.keep("message", level=record.levelname.lower(), by=record.name, text=text)


@contextlib.contextmanager
def event_log(run: Backend, **values: Any) -> Iterator[EventLog]:
    """The log of the command that runs within this context, from its first line to its last."""
    log = EventLog(run)
    messages = _Messages(log)
    LOG.addHandler(messages)
    log.note("start", host=socket.gethostname(), process=os.getpid(), **values)
    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):  # the backend may be what failed, and the first error is the one to tell
            log.note("error", kind=type(error).__name__, error=one_line(error))
            log.flush()
        raise
    finally:
        LOG.removeHandler(messages)
    log.note("end")
    log.flush()
