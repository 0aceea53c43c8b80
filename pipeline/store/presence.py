"""Which commands are at work on a run: each keeps a file, `commands/<id>`, beside the store while it lives.

A command that is killed leaves its file behind. On its own machine its process is looked for; elsewhere the age of the
file tells, as a command that lives writes it again every HEARTBEAT_S.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from pipeline.planning.plain_values import require_fields
from pipeline.store.backends.base import Backend
from pipeline.store.json_files import parse_object

FOLDER = "commands/"
HEARTBEAT_S = 10.0
SILENT_S = 90.0  # after which a command on another machine is taken for gone
CLOCKS_DIFFER_S = 5.0  # more than a request takes
N_LOOKED_AT = 100  # the newest: a job array may have thousands


@dataclass(frozen=True)
class Command:
    """A command, as others can find it.

    Attributes:
        id: unique.
        host, process: where it runs.
        machine: the same for processes that see each other by number (this boot, this container); "" if not known.
        born: when the process was started, in ticks of that machine: a number may be used again.
        began: when the command began, in seconds since 1970 by the clock of the backend.
    """

    id: str
    host: str
    process: int
    machine: str
    born: str
    began: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def is_gone(self, silent_s: float) -> bool:
        """Whether it was killed, `silent_s` seconds after its last sign of life."""
        if self.machine and self.machine == _machine():
            with contextlib.suppress(PermissionError):  # another user's, hidden from this one
                return _born(self.process) != self.born
        return silent_s > SILENT_S


def this_command() -> Command:
    """The command of this process."""
    process = os.getpid()
    return Command(uuid.uuid4().hex[:12], socket.gethostname(), process, _machine(), _born(process), time.time())


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _born(process: int) -> str:
    """When a process was started; "" where there is none, or one that has ended and nobody has asked how.

    Raises:
        PermissionError: there is one, and no more can be known.
    """
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()  # a name may hold anything
    except FileNotFoundError:
        with contextlib.suppress(ProcessLookupError, OverflowError):  # a forged number may be too large for any
            os.kill(process, 0)
        return ""
    except ProcessLookupError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def at_work(run: Backend, command: Command) -> Iterator[Command]:
    """Within this context others see that a command is at work on a run.

    Yields:
        the command, with `began` by the clock of the backend where that of this machine is off.
    """
    key, ended = f"{FOLDER}{command.id}", threading.Event()

    def write() -> None:
        run.write(key, json.dumps(asdict(command)).encode())

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # the backend fails: the work will meet that, or the next beat succeeds
                write()

    write()
    ahead_s = next((entry.modified - time.time() for entry in run.files(FOLDER) if entry.key == key), 0.0)
    if abs(ahead_s) > CLOCKS_DIFFER_S:
        command = replace(command, began=command.began + ahead_s)
        write()
    beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
    beating.start()
    try:
        yield command
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):  # the same; this process soon ends
            run.delete(key)


@dataclass(frozen=True)
class SeenCommand:
    """A command that works, or was killed; `time` is of its last sign of life, by the clock of the backend."""

    command: Command
    time: float
    is_gone: bool


def read_commands(run: Backend, now: float) -> list[SeenCommand]:
    """The commands of a run that work, or were killed; the newest sign of life first. `now`: seconds since 1970."""
    found = []
    for entry in sorted(run.files(FOLDER), key=lambda entry: -entry.modified)[:N_LOOKED_AT]:
        try:
            values = parse_object(run.read(entry.key))
            require_fields(values, Command, "it")
            command = Command(**values)
        except (FileNotFoundError, ValueError, TypeError):  # it has just ended, or the file is damaged
            continue
        found.append(SeenCommand(command, entry.modified, command.is_gone(now - entry.modified)))
    return found


def rank_of(command: Command, run: Backend) -> int:
    """How many commands that began before this one work on a run too.

    What time it is by the clock of the backend, this one's own file tells, which is at most HEARTBEAT_S old.
    """
    own = next((entry for entry in run.files(FOLDER) if entry.key == f"{FOLDER}{command.id}"), None)
    seen = read_commands(run, own.modified if own else time.time())
    others = (each.command for each in seen if not each.is_gone and each.command.id != command.id)
    return sum((other.began, other.id) < (command.began, command.id) for other in others)
