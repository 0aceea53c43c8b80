"""The command in processes of its own, which are killed, stopped and counted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

MARK = "DLSHAP_TEST_COMMANDS"  # in the environment of every process that a test has started, near or far
_forking = multiprocessing.get_context("forkserver")


def wait_until(is_so: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """What `is_so` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or is_so}"
        time.sleep(0.02)
    return found


def _enter(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """In a forked process: become the command."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(output + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    sys.path.append(environment["PYTHONPATH"])
    from pipeline.cli.main import main

    main(arguments)


@dataclass
class Command:
    """A command that runs, in a session of its own.

    Attributes:
        pid: of its process.
        output: its stdout and stderr are written to this path with .out and .err after it.
    """

    pid: int
    output: str
    _ended: Callable[[float], int | None]

    def wait(self, timeout: float = 120) -> int:
        """The exit code; minus the number of the signal that ended it."""
        code = self._ended(timeout)
        assert code is not None, f"still runs after {timeout} s: {self.err}"
        return code

    def poll(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        """SIGKILL to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(20)

    @property
    def out(self) -> str:
        return Path(self.output + ".out").read_text()

    @property
    def err(self) -> str:
        return Path(self.output + ".err").read_text()

    @property
    def error(self) -> str:
        """The last line on stderr."""
        return (self.err.splitlines() or [""])[-1]

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that hold an actor of the run and are at work or waiting for it."""
        found = []
        for child in _children(self.pid):
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::") and "MapWorker" in child.cmdline()[0]:
                    found.append(child)
            except psutil.Error:
                continue
        return found


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@dataclass
class Commands:
    """Starts commands, and knows every process that comes of them.

    Attributes:
        folder: where output goes, and where commands run that are not forked.
        environment: of all commands.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._n = 0
        self._started: list[subprocess.Popen[bytes]] = []
        self._forked: list[Any] = []  # a forked process shows the environment of what it was forked from

    def run(self, arguments: Sequence[str], timeout: float = 120, **environment: str) -> Command:
        """Run a command to its end, here means: without Ray."""
        command = self.fork(arguments, environment)
        command.wait(timeout)
        return command

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> Command:
        """Start `dlshap` in a process that has imported all it needs: half a second instead of five."""
        output = self._output()
        process = _forking.Process(target=_enter, args=(list(arguments), self._environment(environment), output))
        process.start()
        self._forked.append(process)
        assert process.pid is not None

        def ended(timeout: float) -> int | None:
            process.join(timeout)
            return process.exitcode

        return Command(process.pid, output, ended)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> Command:
        """Start `python -m pipeline` as a shell does, in a process group of its own."""
        output = self._output()
        with open(output + ".out", "w") as out, open(output + ".err", "w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", *arguments],
                stdout=out,
                stderr=err,
                env=self._environment(environment),
                start_new_session=True,
            )
        self._started.append(process)

        def ended(timeout: float) -> int | None:
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                return None

        return Command(process.pid, output, ended)

    def left(self) -> list[psutil.Process]:
        """Processes of these commands that are still there, but for forked commands themselves."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def require_none_left(self, seconds: float = 30) -> None:
        """Fail where processes stay behind for longer than this."""
        deadline = time.monotonic() + seconds
        while left := self.left():
            assert time.monotonic() < deadline, [(process.pid, process.cmdline()) for process in left]
            time.sleep(0.2)

    def clean_up(self) -> None:
        """End everything that a test has started."""
        for process in self._forked:
            process.kill()
            process.join(10)
        for process in self.left():
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(self.left(), timeout=10)
        for started in self._started:
            started.wait(10)

    def _output(self) -> str:
        self._n += 1
        return str(self.folder / f"command-{self._n}")

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        root = str(Path(__file__).parents[3])
        return {**os.environ, "PYTHONPATH": root, **self.environment, **more, MARK: self.mark}


@contextmanager
def commands_in(folder: Path) -> Iterator[Commands]:
    """Commands whose processes are all gone at the end."""
    folder.mkdir()
    commands = Commands(folder)
    try:
        yield commands
    finally:
        commands.clean_up()


def preload() -> None:
    """What forked commands find imported."""
    _forking.set_forkserver_preload(["tests.pipeline.faults.preloaded", "tests.pipeline.faults.chaos"])


def record(store: Path | str) -> dict[str, Any]:
    """The last command's outcome, for programs."""
    found: dict[str, Any] = json.loads(Path(f"{store}.run/result.json").read_text())
    return found
