"""How a run stands: as a function of values, and from the files of stores in every state."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.cli import dispatch
from pipeline.commits import Failure, RunDirectory
from pipeline.errors import EXIT_STOPPED, Stopped
from pipeline.plan import Plan
from pipeline.status import N_NAMED, WINDOW_S, Ended, Status, look, standing
from tests.pipeline.conftest import N_ROWS, Inputs
from tests.pipeline.damage import copy_of

NOW = 1e9


def plan(n_rows: int = 1000, rows_per_shard: int = 100) -> Plan:
    return Plan(
        n_rows=n_rows,
        length=10,
        targets=[0],
        references={},
        n_references=1,
        seed=0,
        batch_size=1,
        rows_per_shard=rows_per_shard,
        dtype="float32",
        threads=1,
        deterministic=True,
        device="cpu",
        device_kind="cpu",
        judged=True,
        warning_threshold=1e-3,
        fingerprint={},
    )


def stand(ages: list[float], rows: list[int] | None = None, in_work: int = 0, **sizes: int) -> Status:
    """Shards that were committed so many seconds ago."""
    times = NOW - np.array(ages, dtype=float)
    return standing("a.zarr", plan(**sizes), times, np.array(rows or [100] * len(ages)), in_work, [], NOW)


def test_nothing_done() -> None:
    status = stand([])
    assert (status.state, status.shards_done, status.rows_done) == ("stopped", 0, 0)
    assert status.rows_per_second is status.seconds_left is status.seconds_since_last is None
    assert status.text() == "a.zarr: stopped, 0 of 10 shards (0 of 1000 rows)"
    assert stand([], in_work=2).state == "under way"


def test_one_shard_done_gives_no_speed_yet() -> None:
    status = stand([3.0], in_work=1)
    assert (status.state, status.rows_per_second, status.seconds_left) == ("under way", None, None)
    assert status.seconds_since_last == 3.0
    assert status.text().splitlines() == [
        "a.zarr: under way, 1 of 10 shards (100 of 1000 rows), the last shard 3.0 s ago",
        "in work: 1 shard",
    ]


def test_speed_is_that_of_what_was_done_after_the_first_shard_of_the_window() -> None:
    status = stand([40.0, 30.0, 20.0, 10.0])
    assert status.rows_per_second == pytest.approx(300 / 40)
    assert status.seconds_left == pytest.approx(600 / 7.5)
    assert status.state == "under way"
    assert stand([10.0, 40.0, 20.0, 30.0]) == status, "in any order"
    assert stand([WINDOW_S + 1, 40.0, 30.0, 20.0, 10.0]).rows_per_second == status.rows_per_second


def test_a_run_that_got_slower_is_not_flattered() -> None:
    speeds = [stand([idle + 20.0, idle + 10.0, idle]).rows_per_second for idle in (0.0, 100.0, 500.0)]
    assert speeds == [pytest.approx(200 / (20 + idle)) for idle in (0.0, 100.0, 500.0)]


def test_long_ago_is_stopped() -> None:
    status = stand([5000.0, 4000.0, 700.0])
    assert (status.state, status.rows_per_second, status.seconds_left) == ("stopped", None, None)
    assert status.seconds_since_last == 700.0
    assert "the last shard 11 min 40 s ago" in status.text()


def test_all_done_but_not_completed() -> None:
    status = stand([10.0, 5.0], rows=[100, 20], n_rows=120)
    assert (status.state, status.rows_done, status.shards) == ("done, not completed yet", 120, 2)
    assert status.seconds_left == 0


def test_a_short_last_shard_counts_its_rows() -> None:
    assert stand([10.0, 5.0], rows=[100, 20], n_rows=220).rows_per_second == pytest.approx(2)


@pytest.mark.parametrize("ahead", [0.0, 1.0, 3600.0])
def test_clocks_that_differ_give_no_nonsense(ahead: float) -> None:
    """The place's clock is ahead of this machine's."""
    status = stand([20.0 - ahead, 10.0 - ahead, -ahead])
    assert status.seconds_since_last == 0
    assert status.rows_per_second is not None
    assert 0 < status.rows_per_second <= 200 / 20
    assert status.seconds_left is not None
    assert status.seconds_left > 0


def test_shards_of_the_same_instant_give_no_nonsense() -> None:
    for age in (0.0, 5.0):
        status = stand([age, age, age])
        assert status.rows_per_second is None or np.isfinite(status.rows_per_second)


def test_failures_are_named_and_the_rest_counted() -> None:
    failures = [f"shard {index} failed" for index in range(N_NAMED + 3)]
    lines = standing("a.zarr", plan(), np.array([]), np.array([], dtype=int), 0, failures, NOW).text().splitlines()
    assert lines[1] == "failed: shard 0 failed"
    assert lines[-1] == "failed: 3 more"
    assert len(lines) == N_NAMED + 2


@pytest.mark.parametrize(
    ("ended_ago", "in_work", "state"),
    [(None, 0, "under way"), (5.0, 0, "stopped"), (15.0, 0, "under way"), (5.0, 1, "under way")],
    ids=["has not ended", "ended after the last shard", "a shard since", "another one at work"],
)
def test_a_command_that_ended_is_no_longer_under_way(ended_ago: float | None, in_work: int, state: str) -> None:
    times, rows = np.array([NOW - 20.0, NOW - 10.0]), np.array([100, 100])
    ended = None if ended_ago is None else Ended(NOW - ended_ago, "the disk is full")
    status = standing("a.zarr", plan(), times, rows, in_work, [], NOW, ended)
    assert status.state == state
    assert (status.rows_per_second is None) == (state == "stopped")
    assert (status.error is not None) == (ended_ago == 5.0)
    if ended_ago == 5.0:
        assert status.text().splitlines()[-1] == "the last command ended: the disk is full"


# --- stores in every state ------------------------------------------------------------------------------------------


def ask(store: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert dispatch(["status", str(store), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found.keys() == Status.__dataclass_fields__.keys()
    return dict(found)


def test_a_complete_store(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for with_run in (True, False):
        store = copy_of(finished, tmp_path / f"{with_run}.zarr", with_run)
        found = ask(store, capsys)
        assert (found["state"], found["rows"], found["rows_done"]) == ("complete", N_ROWS, N_ROWS)
        assert (found["shards"], found["shards_done"], found["failures"]) == (4, 4, [])
        dispatch(["status", str(store)])
        assert capsys.readouterr().out == f"{store}: complete, 4 of 4 shards (22 of 22 rows)\n"
    assert not Path(f"{tmp_path}/False.zarr.run").exists(), "nothing is written"


def test_an_unfinished_store(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "a.zarr"
    assert not pipeline.run(inputs.overrides(store, "run.shards=2-3")).complete
    found = ask(store, capsys)
    assert (found["state"], found["shards_done"], found["rows_done"]) == ("stopped", 2, 10), "its command has ended"
    assert (found["rows_per_second"], found["error"]) == (None, None)
    directory = RunDirectory(store)
    directory.run.delete("result.json")
    found = ask(store, capsys)
    assert found["state"] == "under way"
    assert found["rows_per_second"] > 0
    later = look(directory, time.time() + 2 * WINDOW_S)
    assert (later.state, later.rows_per_second) == ("stopped", None)
    plan = directory.read_plan()
    assert plan is not None
    attempts = [directory.begin(plan.shard(index)) for index in (0, 0, 1)]
    assert look(directory, time.time() + 2 * WINDOW_S).in_work == 2
    for attempt in attempts:
        directory.end(attempt)


def test_a_command_that_failed_says_why(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    for error, said in [(OSError("no space left"), "no space left"), (Stopped(EXIT_STOPPED), "stopped by SIGTERM")]:
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.driver._work_through", failing(error))
            with pytest.raises(type(error)):
                pipeline.run(inputs.overrides(store, "run.shards=1"))
        found = ask(store, capsys)
        assert (found["state"], found["error"]) == ("stopped", said)
    directory, planned = RunDirectory(store), RunDirectory(store).read_plan()
    assert planned is not None
    result = Path(f"{store}.run/result.json")
    os.utime(result, (result.stat().st_mtime - 5, result.stat().st_mtime - 5))
    attempt = directory.begin(planned.shard(2))
    assert ask(store, capsys)["state"] == "under way", "a shard was begun since"
    directory.end(attempt)
    result.write_text("[")
    assert ask(store, capsys)["error"] is None


def failing(error: BaseException) -> Callable[..., int]:
    def work(*_: object) -> int:
        raise error

    return work


def test_a_shard_that_failed_is_named(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    RunDirectory(store).fail(Failure(1, 6, 12, "shard 1 (rows 6 to 11), sequences 's6', failed: no", ""))
    assert ask(store, capsys)["failures"] == ["shard 1 (rows 6 to 11), sequences 's6', failed: no"]
    dispatch(["status", str(store)])
    assert capsys.readouterr().out.splitlines()[-1] == "failed: shard 1 (rows 6 to 11), sequences 's6', failed: no"


def test_a_run_that_reads_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = RunDirectory(tmp_path / "a.zarr")
    with directory.claim(lambda who: None):
        found = ask(tmp_path / "a.zarr", capsys)
    assert (found["state"], found["rows"], found["shards"], found["rows_done"]) == ("preparing", None, None, 0)
    dispatch(["status", str(tmp_path / "a.zarr")])
    assert capsys.readouterr().out == f"{tmp_path / 'a.zarr'}: preparing\n"


def test_a_store_that_lost_its_own_file_or_waits_for_it(
    inputs: Inputs, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(finished, tmp_path / "a.zarr", with_run=True)
    (store / "zarr.json").write_bytes(b"")
    assert dispatch(["verify", str(store), "--repair"]) == 1
    found = ask(store, capsys)
    assert (found["state"], found["shards_done"]) == ("done, not completed yet", 4)


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["status", str(tmp_path / "nothing.zarr")]) == 2
    assert capsys.readouterr().err == (
        f"dlshap: error: {tmp_path / 'nothing.zarr'} does not exist, and no run of it has begun\n"
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    assert dispatch(["status", str(tmp_path / "folder")]) == 2
    assert "is not a dlshap store" in capsys.readouterr().err


def test_an_unfinished_store_without_its_protocol_files_is_refused(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    shutil.rmtree(f"{store}.run")
    assert dispatch(["status", str(store)]) == 2
    assert f"{store} is not complete, and {store}.run is gone" in capsys.readouterr().err


def test_from_another_folder_by_a_relative_path(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(os.path.relpath(finished, in_folder), capsys)
    assert (found["state"], Path(found["store"])) == ("complete", finished)
    assert ask(f"{os.path.relpath(finished, in_folder)}/", capsys) == found
