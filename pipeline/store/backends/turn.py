"""Waiting for a lock: whoever waits says for whom, again and again, and gives up in the end."""

import random
import time
from collections.abc import Callable

from pipeline.messages.errors import RunError
from pipeline.messages.progress import duration

SAID_EVERY_S = 60.0
LONGEST_PAUSE_S = 2.0


class Turn:
    """One wait for a lock.

    Args:
        where: the lock, for errors.
        waiting: told who holds it, at once and then every minute.
        timeout_s: seconds after which it is given up.
    """

    def __init__(self, where: str, waiting: Callable[[str], None], timeout_s: float) -> None:
        self._where, self._waiting, self._timeout_s = where, waiting, timeout_s
        self._began, self._said, self._pause_s = time.monotonic(), float("-inf"), 0.02

    def wait_for(self, holder: str) -> None:
        """Someone else holds the lock. RunError where that has been so for too long."""
        now, holder = time.monotonic(), " ".join(holder.split())
        if now - self._began >= self._timeout_s:
            raise RunError(
                f"{self._where}: waited {duration(self._timeout_s)} for {holder}, which holds it: see whether that "
                f"still works, end it if not, and run the same command again (store.lock_timeout_s is how long to wait)"
            )
        if now - self._said >= SAID_EVERY_S:
            self._waiting(holder)
            self._said = now

    def pause(self) -> None:
        """Until the next look; longer each time, and never in step with others that wait."""
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(1.5 * self._pause_s, LONGEST_PAUSE_S)
