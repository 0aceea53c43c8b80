"""Messages and progress: records of a logger, and lines on the stderr of a command."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.progress import LOG, RowProgress, duration, shown_on_stderr
from tests.pipeline.conftest import Inputs


def test_lines_say_how_fast_and_how_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pipeline.messages.progress.time.monotonic", lambda: clock[0])
    with shown_on_stderr(), RowProgress("attributing", 100, 20) as progress:
        clock[0] += 10
        progress.advance(10)
        clock[0] += 30
        progress.advance(10)
        LOG.warning("something is odd")
    assert capsys.readouterr().err.splitlines() == [
        "dlshap: attributing: 100 rows, 20 of them done before",
        "dlshap: attributing: 40 of 100 rows, 0.3 rows/s, 3 min 00 s left",
        "dlshap: warning: something is odd",
    ]


def test_lines_come_while_no_row_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.messages.progress.SECONDS_BETWEEN_LINES", 0.02)
    with shown_on_stderr(), RowProgress("reading", None) as progress:
        time.sleep(0.1)
        progress.step("trying the model")
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dlshap: reading: 0 rows"
    assert lines[-1] == "dlshap: trying the model"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (200, "3 min 20 s"), (18_120, "5 h 02 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_library_call_prints_nothing_and_a_command_what_it_does(
    inputs: Inputs,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where something is wrong with the result, and the records are there for whoever asks for them."""
    wrong = "engine.warning_threshold=1e-30"
    pipeline.run(inputs.overrides(tmp_path / "a.zarr", wrong))
    assert capfd.readouterr() == ("", "")
    before = list(LOG.handlers), LOG.level, LOG.propagate
    assert dispatch(["run", *inputs.overrides(tmp_path / "b.zarr", wrong)]) == 0
    told = capfd.readouterr().err
    assert "dlshap: attributing: 22 rows\n" in told
    assert "dlshap: warning: " in told
    assert (list(LOG.handlers), LOG.level, LOG.propagate) == before
    caplog.clear()
    with caplog.at_level(logging.INFO, "dlshap"):
        pipeline.run(inputs.overrides(tmp_path / "c.zarr", wrong))
    assert {(record.name, record.levelname) for record in caplog.records} == {("dlshap", "INFO"), ("dlshap", "WARNING")}
    assert "attributing: 22 rows" in caplog.messages
    assert capfd.readouterr() == ("", "")


BAR = """
import logging, time
from pipeline.messages.progress import LOG, RowProgress, shown_on_stderr
LOG.addHandler(logging.NullHandler())
def work():
    with RowProgress("attributing", 100) as progress:
        progress.advance(10)
        LOG.warning("a message that is long: " + "x" * 120)
        progress.advance(40)
        time.sleep(0.3)
work()
print("then", flush=True)
with shown_on_stderr():
    work()
"""


def test_a_command_at_a_terminal_has_a_bar_and_messages_above_it() -> None:
    """A library call has none."""
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", BAR], stdout=theirs, stderr=theirs, check=True, timeout=60)
    assert done.returncode == 0
    os.close(theirs)
    library, _, command = os.read(ours, 1 << 16).decode().partition("then\r\n")
    os.close(ours)
    assert library == ""
    assert "dlshap: warning: a message that is long: " + "x" * 120 + "\r\n" in command, "in one line, to be copied"
    assert "attributing" in command
    assert "50/100" in command
