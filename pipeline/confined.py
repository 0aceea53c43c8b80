"""A shard in a process of its own: whoever started it sees how it ends.

A process that is killed cannot say by whom. Where a shard has taken its worker with it twice, the worker starts this
one: if this one dies and the worker lives, it is the shard that kills; if the worker dies, it was something from
outside, and the shard is not to blame.
"""

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.actor import Outcome, Work
    from pipeline.shards import Shard

MAX_DEATHS = 2  # processes that a shard may end before it is given up
_PR_SET_PDEATHSIG = 1


def attribute(work: "Work", shard: "Shard") -> "Outcome | list[str]":
    """Work on a shard in a process of its own.

    Returns:
        What came of it; or, where it ended every process that tried, how each ended.

    Raises:
        OSError: the process cannot be started.
        RunError, UserError: it could not do the work for a reason that is not the shard's.
    """
    ends: list[str] = []
    while len(ends) < MAX_DEATHS:
        result, how = _run(pickle.dumps((work, shard)))
        if result is not None:
            came_of_it = pickle.loads(result)
            if isinstance(came_of_it, Exception):
                raise came_of_it
            outcome: Outcome = came_of_it
            return outcome
        ends.append(how)
    return ends


def _run(task: bytes) -> tuple[bytes | None, str]:
    """What the process wrote back, or None and how it ended."""
    reader, writer = os.pipe()
    # -P: modules are looked for where this process does, and not in the working folder before all others.
    command = [sys.executable, "-P", "-m", "pipeline.confined", str(writer), str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "pass_fds": [writer]}
    # In a group of its own, so that a terminal's Ctrl-C is for the parent alone.
    with subprocess.Popen(command, env=environment, process_group=0, **pipes) as process:
        os.close(writer)
        try:
            result = _hand_over(process, task, reader)
            code = process.wait()
        except BaseException:  # a signal asks this process to stop: the shard must not hold it up
            process.kill()
            raise
    if code == 0 and result:
        return result, ""
    return None, f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _hand_over(process: "subprocess.Popen[bytes]", task: bytes, reader: int) -> bytes:
    """Give the process its task; what it writes back, b"" where it dies."""
    assert process.stdin is not None
    with os.fdopen(reader, "rb") as pipe:
        for step in (partial(process.stdin.write, task), process.stdin.close):
            with contextlib.suppress(BrokenPipeError):  # it is dead: its exit code says how
                step()
        return pipe.read()


def _die_with(parent: int) -> None:
    """Nobody waits for what this process does once its parent is gone, and another may work on the same shard."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """In the process: the work arrives at stdin, and what comes of it leaves by the pipe."""
    writer, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    work, shard = pickle.load(sys.stdin.buffer)

    from pipeline.actor import Worker

    try:
        came_of_it: Outcome | Exception = Worker(work).attribute(shard)
    except Exception as error:
        came_of_it = error
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(came_of_it, pipe)


if __name__ == "__main__":
    main()
