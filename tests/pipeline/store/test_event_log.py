"""The log of a command and its result: every line parses, whatever the end was."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import RunError, Stopped
from pipeline.messages.progress import LOG, RAY_LOG, shown_on_stderr
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.object_store import ObjectStoreBackend
from pipeline.store.event_log import event_log
from tests.pipeline.conftest import N_ROWS, Inputs

N_SHARDS = 4


def lines_of(run: Path, messages: bool = False) -> list[dict[str, Any]]:
    """Of the one log; what was said on stderr is left out unless it is asked for."""
    (log,) = (run / "logs").glob("*.jsonl")
    text = log.read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    return [line for line in lines if messages or line["event"] != "message"]


def test_a_run_tells_its_story(inputs: Inputs, tmp_path: Path) -> None:
    pipeline.run(inputs.overrides(tmp_path / "a.zarr", "run.shards=1-3"))
    lines = lines_of(tmp_path / "a.zarr.run")
    assert [line["event"] for line in lines] == ["start", "stock", *["shard"] * 3, "end"]
    assert (lines[0]["rows"], lines[0]["shards"]) == (N_ROWS, N_SHARDS)
    assert lines[0]["store"] == str(tmp_path / "a.zarr")
    assert {"host", "process"} <= lines[0].keys()
    assert {key: lines[1][key] for key in ("chosen", "todo")} == {"chosen": 3, "todo": 3}
    assert [(line["shard"], line["rows"]) for line in lines[2:-1]] == [(1, 6), (2, 6), (3, 4)]


def test_what_is_said_and_what_ray_says_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on_stderr(), event_log(LocalBackend(tmp_path)):
        LOG.info("a node is lost")
        RAY_LOG.debug("last lines\nof a raylet")
    told = [(line["by"], line["text"]) for line in lines_of(tmp_path, messages=True) if line["event"] == "message"]
    assert told == [("dlshap", "a node is lost"), ("dlshap.ray", "last lines\nof a raylet")]
    assert capsys.readouterr().err == "dlshap: a node is lost\n"


def test_the_result_of_a_run(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr"), "--json"]) == 0
    result = json.loads((tmp_path / "a.zarr.run/result.json").read_text())
    command = result.pop("command")
    assert (command["process"], command["host"]) == (os.getpid(), socket.gethostname())
    assert result.pop("state") == "ended"
    assert result == json.loads(capsys.readouterr().out)
    assert (result["complete"], result["rows_computed"], result["failures"]) == (True, N_ROWS, [])


def test_the_result_is_of_the_last_command_from_its_beginning_on(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was killed has not ended, and says which command it was."""
    store, seen = tmp_path / "a.zarr", []

    def result() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "a.zarr.run/result.json").read_text())
        return found

    def work(*arguments: Any) -> None:
        seen.append(result())
        raise PulledPlug

    class PulledPlug(BaseException):
        """What no handler of errors sees."""

    pipeline.run(inputs.overrides(store, "run.shards=0"))
    first = result()
    assert (first["state"], first["shards_done"], first["complete"]) == ("ended", 1, False)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.execution.run._work_through", work)
        patch.setattr("pipeline.execution.run.RunDirectory.write_result", lambda *_: None)  # it is dead
        with pytest.raises(PulledPlug):
            pipeline.run(inputs.overrides(store, "run.shards=1"))
    assert result() == seen[0]
    assert {key: seen[0][key] for key in ("state", "complete", "store")} == {
        "state": "under way",
        "complete": False,
        "store": str(store),
    }
    assert seen[0]["command"]["id"] != first["command"]["id"]
    assert seen[0]["command"]["began"] > first["command"]["began"]


def test_a_command_killed_right_after_it_completed_the_store(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.execution.run.RunDirectory.write_result", lambda *_: None)
        pipeline.run(inputs.overrides(store))
    path = tmp_path / "a.zarr.run/result.json"
    assert json.loads(path.read_text())["state"] == "under way"
    for _ in range(2):
        assert pipeline.run(inputs.overrides(store)).rows_computed == 0
        found = json.loads(path.read_text())
        assert (found["state"], found["complete"], found["shards_done"]) == ("ended", True, N_SHARDS)


def test_a_run_that_fails_says_so(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.execution import shard

    attribute = shard.attribute_rows

    def fail_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no such luck")
        return attribute(*arguments)

    calls: list[int] = []
    monkeypatch.setattr(shard, "attribute_rows", fail_at_the_second)
    assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    lines = lines_of(tmp_path / "a.zarr.run")
    assert [line["event"] for line in lines] == ["start", "stock", "shard", "failure", "shard", "shard", "end"]
    assert (lines[3]["shard"], lines[3]["fatal"]) == (1, False)
    assert "no such luck" in lines[3]["error"]
    result = json.loads((tmp_path / "a.zarr.run/result.json").read_text())
    assert (result["complete"], result["shards_done"], result["rows_computed"]) == (False, 3, 16)
    assert result["failures"] == [lines[3]["error"]]
    assert "1 of 4 shards failed" in error


def test_an_error_that_ends_the_run_is_its_last_line(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "c.0")

    monkeypatch.setattr("pipeline.execution.shard.write_shard", full)
    assert dispatch(["run", *inputs.overrides(tmp_path / "a.zarr")]) == 1
    lines = lines_of(tmp_path / "a.zarr.run")
    assert [line["event"] for line in lines] == ["start", "stock", "failure", "error"]
    assert lines[2]["fatal"] is True
    assert "No space left on device" in lines[3]["error"]
    result = json.loads((tmp_path / "a.zarr.run/result.json").read_text())
    assert result["complete"] is False


@pytest.mark.parametrize(("error", "kind"), [(OSError("two\nlines"), "OSError"), (Stopped(75), "Stopped")])
def test_whatever_ends_it_is_written(tmp_path: Path, error: BaseException, kind: str) -> None:
    def work() -> None:
        with event_log(LocalBackend(tmp_path), store="a.zarr") as log:
            log.note("something", value=1.5)
            raise error

    with pytest.raises(type(error)):
        work()
    lines = lines_of(tmp_path)
    assert [line["event"] for line in lines] == ["start", "something", "error"]
    assert lines[-1]["kind"] == kind
    assert "\n" not in lines[-1]["error"]


def test_a_place_that_fails_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    class Full(LocalBackend):
        def append(self, key: str, data: bytes) -> None:
            if b'"error"' in data:
                raise OSError(28, "No space left on device", key)

    def work() -> None:
        with event_log(Full(tmp_path)):
            raise RunError("a shard failed")

    with pytest.raises(RunError, match="a shard failed"):
        work()


def test_lines_for_an_object_store_wait_until_the_end() -> None:
    appended: list[bytes] = []

    class Remote(ObjectStoreBackend):
        def append(self, key: str, data: bytes) -> None:
            appended.append(data)

    with event_log(Remote("s3://bucket/a.zarr.run")) as log:
        for index in range(1000):
            log.note("shard", shard=index)
        assert appended == []
    assert len(appended) == 1
    assert len(appended[0].splitlines()) == 1002
