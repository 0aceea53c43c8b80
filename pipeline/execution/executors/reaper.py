"""A script that ends what a Ray of our own leaves behind: some of its processes live on for a minute and more.

It waits until its stdin is at its end, as when the process that started it has ended in any way. Then it kills what has
a mark in its environment, NAME=VALUE, its only argument, or was in a process group with such a process: those that give
themselves a title overwrite their environment. It needs nothing but Python.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator

AT_MOST_S = 5.0  # processes may begin others until they are ended
EVERY_S = 0.25
LOOK_S = 2.0  # between looks at which groups there are


def processes() -> Iterator[int]:
    """All of this machine."""
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def marked(mark: bytes) -> Iterator[int]:
    """Processes of this user's with a mark in their environment."""
    for process in processes():
        with contextlib.suppress(OSError), open(f"/proc/{process}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                yield process


def in_groups(groups: set[int]) -> Iterator[int]:
    """Processes of some process groups."""
    for process in processes():
        with contextlib.suppress(OSError):
            if os.getpgid(process) in groups:
                yield process


def groups_of(some: Iterable[int]) -> set[int]:
    """The process groups of some processes."""
    found = set()
    for process in some:
        with contextlib.suppress(OSError):
            found.add(os.getpgid(process))
    return found


def main() -> None:
    """See the module."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mark, own, groups = os.fsencode(sys.argv[1]), {os.getpgid(0), os.getpgid(os.getppid())}, set[int]()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        groups &= groups_of(processes())  # the number of one that has ended may be given to a stranger's
        groups |= groups_of(marked(mark)) - own
    until = time.monotonic() + AT_MOST_S
    while (left := {*marked(mark), *in_groups(groups)}) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
