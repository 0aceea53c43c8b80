"""What happened in a command, as JSON lines beside the store: logs/<start>-<host>-<process>.jsonl."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from pipeline.places import LocalPlace, Place

SECONDS_BETWEEN_WRITES = 30.0  # to an object store, where each is an object of its own


class Journal:
    """The log of one command. Every line holds `time` (seconds since 1970), `event`, and what belongs to the event."""

    def __init__(self, run: Place) -> None:
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._run = run
        self._key = f"logs/{started}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._waits = 0.0 if isinstance(run, LocalPlace) else SECONDS_BETWEEN_WRITES
        self._lines: list[str] = []
        self._written = time.monotonic()

    def note(self, event: str, **values: Any) -> None:
        """Add a line."""
        self._lines.append(json.dumps({"time": round(time.time(), 3), "event": event, **values}))
        if time.monotonic() - self._written >= self._waits:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._lines:
            self._run.append(self._key, ("\n".join(self._lines) + "\n").encode())
            self._lines = []
        self._written = time.monotonic()


@contextlib.contextmanager
def journal(run: Place, **values: Any) -> Iterator[Journal]:
    """The log of the command that runs within this context, from its first line to its last."""
    log = Journal(run)
    log.note("start", host=socket.gethostname(), process=os.getpid(), **values)
    try:
        yield log
    except BaseException as error:
        with contextlib.suppress(OSError):  # the place may be what failed, and the first error is the one to tell
            log.note("error", kind=type(error).__name__, error=" ".join(str(error).split()))
            log.flush()
        raise
    log.note("end")
    log.flush()
