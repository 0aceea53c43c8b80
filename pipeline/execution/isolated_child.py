"""The process that works on one shard alone; see isolated.py, which starts it and sees how it ends."""

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.execution.device_queue import DeviceLock
from pipeline.execution.host import keep_freed_memory
from pipeline.execution.isolated import EXIT_BROKEN
from pipeline.execution.work import ShardResult
from pipeline.execution.worker import Worker
from pipeline.messages.errors import DeviceBrokenError
from pipeline.messages.visible import visible_streams

_PR_SET_PDEATHSIG = 1


class StagedLock(DeviceLock):
    """Tells the parent when the work on the device begins and ends."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def __call__(self, function: Callable[[], Any]) -> Any:
        self._note("computing")
        try:
            return super().__call__(function)
        finally:
            self._note("writing")

    def _note(self, stage: str) -> None:
        os.pwrite(self._descriptor, stage.ljust(16).encode(), 0)


def die_with(parent: int) -> None:
    """End with the parent: nobody waits for this process then, and another may work on the same shard."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@visible_streams()
def main() -> None:
    """The task arrives at stdin, and the result leaves by the pipe."""
    writer, parent, stage = map(int, sys.argv[1:4])
    die_with(parent)
    work, shard = pickle.load(sys.stdin.buffer)
    keep_freed_memory()
    try:
        result: ShardResult | Exception = Worker(work, StagedLock(stage)).attribute(shard)
    except DeviceBrokenError:
        os._exit(EXIT_BROKEN)  # where it always ends so, it is the shard's own doing
    except Exception as error:
        result = error
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(result, pipe)


if __name__ == "__main__":
    main()
