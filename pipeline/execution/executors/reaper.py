"""A script that ends what a Ray of our own leaves behind: some of its processes live on for a minute and more.

It waits until its stdin is at its end, as when the process that started it has ended in any way. Then it kills what has
a mark in its environment, NAME=VALUE, its only argument. It needs nothing but Python.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

AT_MOST_S = 5.0  # processes may begin others until they are ended
EVERY_S = 0.25


def marked(mark: bytes) -> Iterator[int]:
    """Processes of this user's with a mark in their environment."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                yield int(name)


def main() -> None:
    """See the module."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    until = time.monotonic() + AT_MOST_S
    while (left := list(marked(os.fsencode(sys.argv[1])))) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
