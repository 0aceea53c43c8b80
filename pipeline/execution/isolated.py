"""A shard in a process of its own: whoever started it sees how it ends.

A process that is killed cannot say by whom. Where a shard has taken its worker with it twice, the worker starts this
one. If the worker dies, it was something from outside. If this one dies and the worker lives, the way it died tells:

- a crash, an exit, or the system's memory killer while it held most of the memory: the shard did it;
- SIGKILL, SIGTERM and the like can come from anyone. The shard is to blame where they come again and again at the same
  point of its work, and not where it had got elsewhere each time, or had not begun.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from pipeline.config import memory
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.planning.shards import Shard

MAX_CRASHES = 2  # ends by the shard's own doing before it is given up
MAX_KILLS = 6  # in a row, from whomever, at the same point
MAX_DEATHS = 60  # of any kind: nothing goes on for ever
SAME_POINT = 0.75  # of the processor time of the longest-lived of them: a busy machine counts 15% more or less
LONGEST_PAUSE_S = 2.0
EXIT_BROKEN = 70  # of a process whose device computes nothing any more
STARTING = "starting"  # nothing of the shard is on the device yet
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}


@dataclass(frozen=True)
class Death:
    """How a process ended.

    Attributes:
        code: its exit code; minus the number of the signal that ended it.
        stage: what it was at: starting, computing, writing.
        processor_s: seconds of processor time that it had used.
        was_out_of_memory: whether the system killed something for want of memory while it held most of that.
    """

    code: int
    stage: str
    processor_s: float
    was_out_of_memory: bool = False

    @property
    def is_own_doing(self) -> bool:
        return self.code >= 0 or -self.code in CRASHES or self.was_out_of_memory

    def __str__(self) -> str:
        if self.code == EXIT_BROKEN:
            return f"its device broke while {self.stage}"
        how = f"ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{how} while {self.stage}{', out of memory' if self.was_out_of_memory else ''}"


def is_to_blame(deaths: Sequence[Death]) -> bool:
    """Whether it is the shard that ended the processes which worked on it, one after the other."""
    if sum(death.is_own_doing for death in deaths) >= MAX_CRASHES or len(deaths) >= MAX_DEATHS:
        return True
    last = deaths[-MAX_KILLS:]
    times = [death.processor_s for death in last]
    is_same_point = len({death.stage for death in last}) == 1 and min(times) >= SAME_POINT * max(times)
    return len(last) == MAX_KILLS and is_same_point and last[0].stage != STARTING


def attribute(work: WorkSpec, shard: Shard) -> ShardResult | str:
    """Work on a shard in a process of its own.

    Returns:
        Its result; or, where it ends every process that tries, how.

    Raises:
        OSError: the process cannot be started.
        RunError, UserError: it could not do the work for a reason that is not the shard's.
    """
    deaths: list[Death] = []
    while not deaths or not is_to_blame(deaths):
        if deaths and not deaths[-1].is_own_doing:
            time.sleep(min(float(len(deaths)), LONGEST_PAUSE_S))  # what killed it may be over then
        result, death = _run(pickle.dumps((work, shard)))
        if result is not None:
            received: ShardResult | Exception = pickle.loads(result)
            if isinstance(received, Exception):
                raise received
            return received
        assert death is not None
        deaths.append(death)
    return "; ".join(dict.fromkeys(map(str, deaths)))


def _run(task: bytes) -> tuple[bytes | None, Death | None]:
    """What the process wrote back, or None and how it ended."""
    reader, writer = os.pipe()
    n_killed = _memory_kills()
    with tempfile.TemporaryFile() as stage:
        # -P: modules are looked for where this process does, and not in the working folder.
        child = [sys.executable, "-P", "-m", "pipeline.execution.isolated_child"]
        command = [*child, *map(str, (writer, os.getpid(), stage.fileno()))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "pass_fds": [writer, stage.fileno()]}
        # In a group of its own, so that a terminal's Ctrl-C is for the parent alone.
        with subprocess.Popen(command, env=environment, process_group=0, **pipes) as process:
            os.close(writer)
            try:
                result = _hand_over(process, task, reader)
                code, used = _wait(process)
            except BaseException:  # a signal asks this process to stop: the shard must not hold it up
                process.kill()
                raise
        if code == 0 and result:
            return result, None
        was_out_of_memory = _memory_kills() > n_killed and used.ru_maxrss * 1024 > memory.total() / 2
        return None, Death(code, _read_stage(stage), used.ru_utime + used.ru_stime, was_out_of_memory)


def _read_stage(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 16, 0).decode().strip() or STARTING


def _hand_over(process: "subprocess.Popen[bytes]", task: bytes, reader: int) -> bytes:
    """Give the process its task; what it writes back, b"" where it dies."""
    assert process.stdin is not None
    with os.fdopen(reader, "rb") as pipe:
        for step in (partial(process.stdin.write, task), process.stdin.close):
            with contextlib.suppress(BrokenPipeError):  # it is dead: its exit code says how
                step()
        return pipe.read()


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, Any]:
    """The exit code, and the resources that the process has used."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used


# --- memory ---------------------------------------------------------------------------------------------------------


def _memory_kills() -> int:
    """How many processes the system has killed in this one's group (cgroup) for want of memory; 0 if not known."""
    for group in memory.groups():
        with contextlib.suppress(OSError):  # the limits may be those of another version of cgroups
            for line in (group / "memory.events").read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    return 0
