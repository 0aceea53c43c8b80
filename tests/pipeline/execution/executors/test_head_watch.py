"""When a head that gives no answer is given up, and how the run is interrupted: with a stand-in for the head."""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.execution.executor import Executor
from pipeline.execution.executors import head_watch as module
from pipeline.execution.executors.head_watch import HTTP2_SETTINGS, NoRayAnswers, Silence, greet, own_node, ray_watched
from pipeline.execution.executors.head_watch import head as head_at
from pipeline.messages.errors import Stopped
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import record

SETTINGS = bytes([0, 0, 0, HTTP2_SETTINGS, 0, 0, 0, 0, 0])
REFUSED, CUT = ConnectionRefusedError(), TimeoutError()
LEFT = threading.Event()  # Ray is left as soon as that is asked for
LEFT.set()
HANGS = """
import threading, time
from pipeline.execution.executors import head_watch as module
module.EVERY_S, module.REFUSED_AFTER_S, module.GRACE_S = 0.05, 0.1, 0.5
try:
    with module.ray_watched([module.head("127.0.0.1:1", False)], print, threading.Event()):
        time.sleep(60)
finally:
    time.sleep(60)
"""


class Head:
    """Answers as Ray's does, until it is stopped."""

    def __init__(self, answer: bytes = SETTINGS) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._answer = answer
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection:
                if connection.recv(100) == b"end":
                    return
                connection.sendall(self._answer)

    def stop(self) -> None:
        if self._serving.is_alive():
            host, port = self._listening.getsockname()
            with socket.create_connection((host, port)) as connection:
                connection.sendall(b"end")
            self._serving.join()
            self._listening.close()


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.stop()


def test_a_head_is_known_by_its_answer(head: Head) -> None:
    greet(head.address)
    other = Head(b"HTTP/1.1 400")
    with pytest.raises(NoRayAnswers):
        greet(other.address)
    for each in (head, other):
        each.stop()
        with pytest.raises(ConnectionRefusedError):
            greet(each.address)


def given_up(error: OSError, seconds: int, keeps_state: bool = True) -> tuple[int | None, str]:
    """After how many seconds without an answer, of those given, a head is given up; and the words."""
    silence = Silence(head_at("h:1", keeps_state), 0.0)
    for now in range(1, seconds + 1):
        if reason := silence.note(error, float(now)):
            return now, reason
    return None, ""


def test_a_machine_that_refuses_is_waited_for_less_long_than_one_that_is_cut_off() -> None:
    assert given_up(REFUSED, 19) == given_up(CUT, 44) == (None, "")
    after, text = given_up(REFUSED, 100)
    assert after == 20
    assert text.startswith("the head of the Ray cluster at h:1 has not answered for 20.0 s: no Ray listens there any")
    assert given_up(REFUSED, 100, keeps_state=False)[0] == 2
    after, text = given_up(CUT, 100, keeps_state=False)
    assert after == 45
    assert "it has died, or the network to it is cut; what is committed is kept, and the same command" in text
    assert module.DEAD_AFTER_S + module.EVERY_S + module.ANSWER_TIMEOUT_S < 60, "before Ray itself ends this process"


def test_a_head_that_comes_back_in_time_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlshap")
    silence = Silence(head_at("h:1", True), 0.0)
    assert [silence.note(CUT, now) for now in (5.0, 30.0, 44.0)] == [None] * 3
    assert silence.note(None, 44.5) is None
    assert [silence.note(CUT, now) for now in (50.0, 89.0)] == [None] * 2
    said = [record.getMessage() for record in caplog.records if record.name == "dlshap"]
    assert said[:2] == [
        "the head of the Ray cluster at h:1 does not answer; waiting up to 45 s for it",
        "the head of the Ray cluster at h:1 answers again",
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EVERY_S": 0.05, "REFUSED_AFTER_S": 0.1, "DEAD_AFTER_S": 0.1}.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("quick")
def test_whatever_the_run_waits_for_is_interrupted(head: Head) -> None:
    """As Ray Data waits: for a lock that nobody will release."""
    told: list[str] = []

    def wait() -> None:
        head.stop()
        queue.Queue[None]().get()

    with (
        pytest.raises(Stopped, match="no Ray listens there any more") as caught,
        ray_watched([own_node(head.address)], told.append, LEFT),
    ):
        wait()
    assert caught.value.exit_code == 75
    assert told == [str(caught.value)], "before"


@pytest.mark.usefixtures("quick")
def test_the_command_says_why_it_stopped(
    head: Head, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(options: object) -> int:
        with ray_watched([head_at(head.address, False)], print, LEFT):
            head.stop()
            queue.Queue[None]().get()
        return 0

    monkeypatch.setattr("pipeline.cli.status.run", run)
    assert dispatch(["status", "a.zarr", "--json"]) == 75
    out, err = capsys.readouterr()
    assert err.startswith("dlshap: stopped: the head of the Ray cluster at 127.0.0.1:")
    assert '"exit_code": 75' in out
    assert "no Ray listens there any more" in out


@pytest.mark.slow
def test_a_process_that_cannot_leave_ray_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50)
    assert done.returncode == 75, done.stderr
    assert done.stdout.startswith("the head of the Ray cluster at 127.0.0.1:1 has not answered for ")


def test_a_process_is_ended_before_it_meets_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has not left Ray by then."""
    answers = iter([REFUSED, REFUSED, REFUSED, None])
    monkeypatch.setattr(module, "_attempt", lambda *_: next(answers))
    began = time.monotonic()
    assert not module._leaves(threading.Event(), [head_at("h:1", False)])
    assert time.monotonic() - began < module.GRACE_S / 2
    assert next(answers, "none left") == "none left"


def test_whether_a_part_refused_is_known_from_the_last_attempt() -> None:
    """One that is cut off is not asked again on the way out: that would take longer than there is."""
    silence = Silence(head_at("h:1", False), 0.0)
    known = []
    for error in (REFUSED, CUT, REFUSED, None):
        silence.note(error, 0.5)
        known.append(silence.is_refused)
    assert known == [True, False, True, False]


@pytest.mark.usefixtures("quick")
def test_in_another_thread_nothing_is_interrupted(head: Head) -> None:
    ended = []

    def work() -> None:
        with ray_watched([head_at(head.address, False)], print, LEFT):
            head.stop()
            time.sleep(0.5)
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]


def test_a_run_that_loses_its_head_leaves_a_result(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it does not come to its end."""

    def work(executor: Executor, *_: object) -> tuple[int, float]:
        executor.last_words("the head is gone")
        assert record(store)["error"] == "the head is gone"
        raise Stopped(75, "the head is gone")

    store = tmp_path / "a.zarr"
    monkeypatch.setattr("pipeline.execution.run._work_through", work)
    with pytest.raises(Stopped):
        pipeline.run(inputs.overrides(store))
    found = record(store)
    assert (found["state"], found["complete"], found["error"]) == ("ended", False, "the head is gone")
