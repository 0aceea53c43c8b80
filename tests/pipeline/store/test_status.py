"""How a run stands: as a function of values, and from the files of stores in every state."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import EXIT_STOPPED, Stopped
from pipeline.planning.plan import Plan
from pipeline.store.backends.base import StoredFile
from pipeline.store.backends.local import LocalBackend
from pipeline.store.metrics import Metrics, write_metrics
from pipeline.store.presence import SILENT_S, Command, at_work, rank_of, this_command
from pipeline.store.records import DoneRecord, Failure
from pipeline.store.run_directory import RunDirectory
from pipeline.store.status import (
    LATE_S,
    N_NAMED,
    WINDOW_S,
    Status,
    read_status,
    slow_actors,
    slow_shards,
    status_of,
)
from tests.pipeline.conftest import N_ROWS, Inputs
from tests.pipeline.damage import copy_of

NOW = 1e9
NO_PROCESS = 2**22 + 1  # above the largest number that Linux gives


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
        completeness=True,
        warning_threshold=1e-3,
        fingerprint={},
    )


def stand(
    ages: list[float], rows: list[int] | None = None, in_work: int = 0, is_at_work: bool = True, **sizes: int
) -> Status:
    """Shards that were committed so many seconds ago."""
    times = NOW - np.array(ages, dtype=float)
    return status_of("a.zarr", plan(**sizes), times, np.array(rows or [100] * len(ages)), in_work, [], NOW, is_at_work)


def test_nothing_done() -> None:
    status = stand([], is_at_work=False)
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


def test_long_ago_gives_no_speed() -> None:
    status = stand([5000.0, 4000.0, 700.0])
    assert (status.state, status.rows_per_second, status.seconds_left) == ("under way", None, None)
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
    lines = (
        status_of("a.zarr", plan(), np.array([]), np.array([], dtype=int), 0, failures, NOW, True).text().splitlines()
    )
    assert lines[1] == "failed: shard 0 failed"
    assert lines[-1] == "failed: 3 more"
    assert len(lines) == N_NAMED + 2


def test_without_a_command_at_work_it_has_stopped_however_lately() -> None:
    status = status_of(
        "a.zarr", plan(), NOW - np.array([2.0, 1.0]), np.array([100, 100]), 2, [], NOW, False, "the disk is full"
    )
    assert (status.state, status.rows_per_second, status.seconds_left, status.in_work) == ("stopped", None, None, 0)
    assert status.text().splitlines()[1:] == ["the last command ended: the disk is full"]


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
    plan = directory.read_plan()
    assert plan is not None
    directory.command = replace(directory.command, began=0.0)
    with directory.at_work():
        found = ask(store, capsys)
        assert (found["state"], found["error"]) == ("under way", None)
        assert found["rows_per_second"] > 0
        later = read_status(directory, time.time() + 2 * WINDOW_S)
        assert (later.state, later.rows_per_second) == ("under way", None), "its process is there"
        for index in (0, 0, 1):
            directory.begin(plan.shard(index))
        assert read_status(directory).in_work == 2
    assert (read_status(directory).state, read_status(directory).in_work) == ("stopped", 0)
    assert list(Path(f"{store}.run/commands").iterdir()) == []


KILLED = """
import sys, time
from pipeline.store.run_directory import RunDirectory
directory = RunDirectory(sys.argv[1])
with directory.at_work():
    if sys.argv[2] == "attributing":
        directory.begin_result()
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["comparing the input", "attributing", "preparing"])
def test_a_command_that_was_killed_is_gone_at_once(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], doing: str
) -> None:
    """Also where nobody has asked yet how its process ended."""
    store = tmp_path / "a.zarr"
    if doing != "preparing":
        pipeline.run(inputs.overrides(store, "run.shards=0"))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(store), doing], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        under_way = "preparing" if doing == "preparing" else "under way"
        if doing == "preparing":
            RunDirectory(store).run.write("claim", b"")
        assert ask(store, capsys)["state"] == under_way
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        found = ask(store, capsys)
    said = f"process {process.pid} on {socket.gethostname()} was killed, or its machine stopped"
    assert (found["state"], found["error"], found["rows_per_second"]) == ("stopped", said, None)
    dispatch(["status", str(store)])
    assert capsys.readouterr().out.splitlines()[-1] == f"the last command ended: {said}"
    assert pipeline.run(inputs.overrides(store, "run.shards=1")).shards_done == 1 + (doing != "preparing")
    assert (ask(store, capsys)["state"], ask(store, capsys)["error"]) == ("stopped", None), "of the last one"


def test_a_command_that_is_killed_on_its_way_out_has_said_why_it_ends(inputs: Inputs, tmp_path: Path) -> None:
    """What runs on a cluster may take long to end, and gives signs of life meanwhile."""
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    directory = RunDirectory(store)
    directory.command = replace(directory.command, born="1")
    directory.write_result({"store": str(store), "complete": False, "error": str(Stopped(EXIT_STOPPED))})
    key = f"commands/{directory.command.id}"
    directory.run.write(key, json.dumps(asdict(directory.command)).encode())
    os.utime(f"{store}.run/{key}", (time.time() + 9,) * 2)
    found = read_status(directory)
    assert (found.state, found.error) == ("stopped", "stopped by SIGTERM")


def elsewhere(**changes: Any) -> Command:
    return replace(this_command(), machine="another", **changes)


@pytest.mark.parametrize(
    ("command", "silent_s", "is_gone"),
    [
        (this_command(), 1e6, False),
        (replace(this_command(), born="1"), 0.0, True),
        (replace(this_command(), process=NO_PROCESS), 0.0, True),
        (replace(this_command(), process=10**30), 0.0, True),
        (elsewhere(), SILENT_S - 1, False),
        (elsewhere(), SILENT_S + 1, True),
        (elsewhere(process=NO_PROCESS), 0.0, False),
        (replace(this_command(), machine=""), 0.0, False),
        (replace(this_command(), machine=""), SILENT_S + 1, True),
    ],
    ids=[
        "here",
        "another process of that number",
        "no such",
        "forged",
        "there",
        "silent",
        "not seen",
        "unknown",
        "unknown old",
    ],
)
def test_who_is_gone(command: Command, silent_s: float, is_gone: bool) -> None:
    assert command.is_gone(silent_s) == is_gone


def test_a_command_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.presence.HEARTBEAT_S", 0.02)
    directory = RunDirectory(tmp_path / "a.zarr")
    with directory.claim(pytest.fail), directory.at_work(), directory.at_work():
        (path,) = Path(f"{directory.run.url}/commands").iterdir()
        os.utime(path, (0, 0))
        assert read_status(directory).state == "preparing"
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not path.exists()


def test_of_two_commands_one_is_killed(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As tasks of a job array are."""
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    directory = RunDirectory(store)
    dead = replace(this_command(), process=NO_PROCESS)
    directory.run.write(f"commands/{dead.id}", json.dumps(asdict(dead)).encode())
    with directory.at_work():
        assert (ask(store, capsys)["state"], ask(store, capsys)["error"]) == ("under way", None)
    assert ask(store, capsys)["error"] == f"process {NO_PROCESS} on {dead.host} was killed, or its machine stopped"
    assert pipeline.run(inputs.overrides(store)).complete
    assert list(Path(f"{store}.run").glob("commands/*")) == []


def test_a_command_that_failed_says_why(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0"))
    for error, said in [(OSError("no space left"), "no space left"), (Stopped(EXIT_STOPPED), "stopped by SIGTERM")]:
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.execution.run._work_through", failing(error))
            with pytest.raises(type(error)):
                pipeline.run(inputs.overrides(store, "run.shards=1"))
        found = ask(store, capsys)
        assert (found["state"], found["error"]) == ("stopped", said)
    Path(f"{store}.run/result.json").write_text("[")
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
    with directory.claim(lambda who: None), directory.at_work():
        found = ask(tmp_path / "a.zarr", capsys)
        dispatch(["status", str(tmp_path / "a.zarr")])
    assert (found["state"], found["rows"], found["shards"], found["rows_done"]) == ("preparing", None, None, 0)
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


def test_hosts_and_silence_are_told(inputs: Inputs, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=0-2"))
    directory = RunDirectory(store)
    record = directory.read_record(1)
    assert record is not None
    directory.commit(replace(record, worker="other:7", seconds=record.seconds + 1000))
    directory.command = replace(directory.command, began=0.0)
    directory.run.write("done/00000000.json", b"damaged")
    with directory.at_work():
        now = time.time()
        status = read_status(directory, now)
        assert status.is_going_on
        assert set(status.rows_per_second_by_host) == {"other", socket.gethostname()}
        assert sum(status.rows_per_second_by_host.values()) == pytest.approx(status.rows_per_second)
        assert set(status.rows_per_second_by_actor) == {"other:7", record.worker}
        assert "by host: " in status.text()
        assert [text.partition(" takes ")[0] for text in status.stragglers] == ["other:7"]
        assert status.actors_wanted is None, "the counts in metrics.json are of the command before"
        pool = {"actors_wanted": 4, "actors_running": 1, "limited_by": "GPU (0 free)", "nodes": ["node b is lost"]}
        write_metrics(directory.run, Metrics(directory.command.id, now, **pool))
        told = read_status(directory, now)
        assert (told.actors_wanted, told.actors_running, told.nodes) == (4, 1, ["node b is lost"])
        assert "actors: 1 of 4 are up; limited by GPU (0 free)\n" in told.text()
        directory.run.write("metrics.json", b"damaged")
        assert read_status(directory, now).actors_wanted is None
        assert "no sign of life" not in status.text()
        (path,) = Path(f"{directory.run.url}/commands").iterdir()
        os.utime(path, (now - LATE_S - 1, now - LATE_S - 1))
        late = read_status(directory, now)
        assert (late.state, late.seconds_left) == ("under way", None)
        assert "no sign of life of its command for 31.0 s: it may have died (certain after 1 min 30 s)" in late.text()
    assert not read_status(directory).is_going_on


@pytest.mark.parametrize("off_s", [-3600.0, 0.0, 3600.0])
def test_commands_find_their_order_with_clocks_that_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    """The clock of the one that begins first is off."""
    run, real, off = LocalBackend(tmp_path / "a.zarr.run"), time.time, [off_s]
    monkeypatch.setattr("time.time", lambda: real() + off[0])
    with at_work(run, elsewhere(id="x", began=time.time())) as first:
        off[0] = 0.0
        with at_work(run, elsewhere(id="a", began=time.time() + 1)) as second:
            assert rank_of(second, run) == 1
            off[0] = off_s
            assert rank_of(first, run) == 0


def test_a_shard_that_takes_long_is_told() -> None:
    records = [DoneRecord(i, i, i + 1, {}, 30.0, {}, "a:1") for i in range(3)]
    attempts = [StoredFile(f"attempts/{i:08d}-0", 1, NOW - age) for i, age in ((3, 100.0), (4, 200.0))]
    (text,) = slow_shards(records, attempts, NOW)
    assert text.startswith("shard 4 has been in work for 3 min 20 s, others took 30.0 s")
    assert not list(slow_actors(records))


def test_the_time_before_a_command_is_no_part_of_its_speed() -> None:
    times, rows = NOW - np.array([500.0, 490.0, 30.0, 20.0, 10.0]), np.array([100] * 5)
    found = status_of("a.zarr", plan(), times, rows, 0, [], NOW, True, began=NOW - 60)
    assert found.rows_per_second == pytest.approx(200 / 30)
    assert found.rows_done == 500


def test_watching_ends_with_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stands = [Status("a.zarr", "under way", seconds_silent=1.0), Status("a.zarr", "under way", seconds_silent=2.0)]
    left, slept = [*stands, Status("a.zarr", "stopped")], []
    monkeypatch.setattr("pipeline.store.status.read_status", lambda directory: left.pop(0))
    monkeypatch.setattr("pipeline.cli.status.time.sleep", slept.append)
    assert dispatch(["status", "a.zarr", "--watch", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["state"] for each in said] == ["under way", "under way", "stopped"]
    assert len(slept) == 2
    left[:] = stands
    assert dispatch(["status", "a.zarr"]) == 0
    assert len(left) == 1, "once"
