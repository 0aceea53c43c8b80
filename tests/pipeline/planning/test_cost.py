"""What a run costs, on paper and by `dlshap plan`."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from benchmarks.store import make_plan

import pipeline
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.schema import ClusterConfig, Config
from pipeline.execution import cost_estimate
from pipeline.execution.audit import audit_config
from pipeline.execution.cost_estimate import CostEstimate, estimate_config, size
from pipeline.execution.device import Machine
from pipeline.execution.executor import executor_of
from pipeline.execution.executors.none import InProcessExecutor
from pipeline.execution.preflight import WorkWithModel
from pipeline.planning import cost as costs
from pipeline.planning.cost import Workload, cost
from pipeline.store.schema import arrays_of
from tests.pipeline.conftest import LENGTH, N_ROWS, ROWS_PER_SHARD, Inputs, chosen

WORK = Workload(n_rows=10_000, length=2114, n_references=20, rows_per_shard=100, actors=4)
ROW_S = 0.1


def test_a_million_rows_of_five_folds_are_a_hundred_million_pairs() -> None:
    found = cost(replace(WORK, n_rows=1_000_000, n_folds=5), ROW_S)
    assert (found.pairs, found.shards) == (100_000_000, 10_000)


def test_everything_but_the_fixed_parts_grows_with_the_rows() -> None:
    few, many = cost(WORK, ROW_S), cost(replace(WORK, n_rows=100_000), ROW_S)
    for name in ("shards", "pairs", "device_s", "store_bytes", "run_bytes", "read_s", "driver_s", "end_s"):
        assert getattr(many, name) == pytest.approx(10 * getattr(few, name)), name
    assert few.objects < many.objects <= 10 * few.objects
    assert many.shard_s == few.shard_s


def test_actors_divide_the_work_down_to_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "START_S", 0)
    alone = cost(replace(WORK, actors=1), ROW_S)
    busy_s = alone.wall_s - alone.read_s - alone.end_s
    assert busy_s == pytest.approx(alone.shard_s * alone.shards)
    shared = cost(replace(WORK, actors=8), ROW_S)
    assert shared.wall_s - shared.read_s - shared.end_s == pytest.approx(shared.shard_s * math.ceil(100 / 8))
    crowded = cost(replace(WORK, actors=1000), ROW_S)
    assert crowded.wall_s - crowded.read_s - crowded.end_s == pytest.approx(crowded.shard_s)


def test_shards_too_small_wait_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START_S", "SHARD_S", "ENCODE_S_PER_BYTE"):
        monkeypatch.setattr(costs, name, 0)
    work = replace(WORK, rows_per_shard=1, actors=1000)
    found = cost(work, 0.001)
    assert found.wall_s - found.read_s - found.end_s == found.driver_s == 10_000 * costs.DRIVER_S_PER_SHARD
    assert cost(replace(work, on_ray=False), 0.001).driver_s == 0


def test_a_resume_loses_a_shard_and_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "LOOK_S_PER_SHARD", 0.001)
    found = cost(WORK, ROW_S)
    assert found.resume_s == pytest.approx(costs.START_S + 100 * 0.001 + found.shard_s)


def plan_json(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, object]:
    assert dispatch(["plan", "--json", *overrides]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("engine.targets=all", "engine.reverse_complement=average"),
        ("references=uniform", "references.n_shuffles=null"),
    ],
)
def test_the_plan_is_what_the_run_then_makes(inputs: Inputs, tmp_path: Path, more: tuple[str, ...]) -> None:
    config = compose_config(inputs.overrides(tmp_path / "a.zarr", *more))
    estimate = estimate_config(config)
    assert list(tmp_path.glob("a.zarr*")) == []
    pipeline.run(inputs.overrides(tmp_path / "a.zarr", *more))
    plan = json.loads((tmp_path / "a.zarr.run" / "plan.json").read_text())
    work, found = estimate.workload, estimate.cost
    assert (work.n_rows, work.length, work.rows_per_shard) == (N_ROWS, LENGTH, ROWS_PER_SHARD)
    assert (work.n_targets, work.n_references) == (len(plan["targets"]), plan["n_references"])
    files = [path.stat().st_size for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    records = list((tmp_path / "a.zarr.run" / "done").iterdir())
    assert found.shards == len(records) == 4
    assert found.objects == pytest.approx(len(files) + len(records), rel=0.15)
    assert estimate.row_s > 0
    assert estimate.free_bytes
    assert "are free there" not in estimate.text()
    assert "only 3 B are free there: give another store.path" in replace(estimate, free_bytes=3).text()
    assert found.device_s == pytest.approx(N_ROWS * estimate.row_s)


def test_rows_are_timed_where_the_device_is(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster whose GPUs this process does not have."""
    done: list[str] = []

    def elsewhere(work: WorkWithModel[object]) -> object:
        assert isinstance(work.function, partial)
        done.append(work.function.func.__name__)
        return pickle.loads(pickle.dumps(work))()

    overrides = inputs.overrides(tmp_path / "a.zarr", "references=uniform", "references.n_shuffles=null")
    assert " of this machine (" in estimate_config(compose_config(overrides)).text()
    machine = replace(Machine.here("cpu"), kind="GPU of there", elsewhere=elsewhere)
    monkeypatch.setattr(InProcessExecutor, "machine", lambda self: machine)
    found = estimate_config(compose_config(overrides))
    assert done == ["run_preflight", "measure"]
    assert found.device == "GPU of there of a node of the cluster"
    done.clear()
    audited, device = audit_config(compose_config(overrides))
    assert audited.refused == ()
    assert done == ["audit_first"]
    assert device == "GPU of there of a node of the cluster"


def test_bytes_are_near_what_the_run_writes(inputs: Inputs, tmp_path: Path) -> None:
    generator, store = np.random.RandomState(0), tmp_path / "a.zarr"
    np.save(tmp_path / "codes.npy", generator.randint(0, 4, (64, 400)).astype(np.uint8))
    more = ["dataset=array", f"dataset.path={tmp_path / 'codes.npy'}", "dataset.axes=NL", "store.rows_per_shard=32"]
    overrides = inputs.overrides(store, *more)
    found = estimate_config(compose_config(overrides)).cost
    pipeline.run(overrides)
    written = sum(path.stat().st_size for path in store.glob("*/c.*"))
    assert found.store_bytes == pytest.approx(written, rel=0.1)


def test_the_plan_is_said_to_people_and_programs(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr")
    assert dispatch(["plan", *overrides, "cluster=local", "cluster.actors=2", "--price-per-hour", "1800"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == [
        "rows", "shards", "pairs", "device", "spread", "store", "wall", "pool", "resume",
    ]  # fmt: skip
    assert f"{N_ROWS} of {LENGTH} bases" in text
    assert "with infinitely many references, from the spread over 3 references (median of" in text
    found = plan_json(capsys, *overrides)
    assert set(found) >= {"workload", "cost", "device", "row_s"}
    assert found["price"] is None
    assert 0 <= found["correlation"] <= 1
    assert found["enough_references"] is None or found["enough_references"] >= 1
    without = plan_json(capsys, *overrides, "store.spread=false")
    assert without["correlation"] is without["enough_references"] is None
    assert dispatch(["plan", "--price-per-hour", "free"]) == 2
    assert "expected a number from 0 on" in capsys.readouterr().err


def test_two_references_of_a_long_row_tell_no_spread(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_estimate, "LONG", 1)
    monkeypatch.setattr(cost_estimate, "LONGEST_S", 0.0)
    found = estimate_config(compose_config(inputs.overrides(tmp_path / "a.zarr")))
    assert found.timed_rows == 1
    assert found.correlation is found.enough_references is None
    assert "spread" not in found.text()


def test_a_pool_is_paid_for_as_long_as_the_command_takes() -> None:
    assert cost(replace(WORK, actors=4), ROW_S).pool_s == 4 * cost(replace(WORK, actors=4), ROW_S).wall_s
    assert cost(replace(WORK, actors=4 * WORK.n_shards), ROW_S).pool_s == pytest.approx(
        WORK.n_shards * cost(replace(WORK, actors=WORK.n_shards), ROW_S).wall_s
    )


def test_actors_beyond_the_shards_are_not_counted() -> None:
    work = replace(WORK, actors=4, n_rows=WORK.rows_per_shard)
    found = CostEstimate(work, cost(work, ROW_S), "cpu", 1, ROW_S, actors_are_known=True, left_out=0)
    assert "with 1 actor; " in found.text()
    assert "of 1 actor in all" in found.text()


def test_the_errors_are_those_of_the_run(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("engine.targets=[99]", "dataset.path=/nowhere.fa", "engine.batch_sise=3"):
        said = []
        for command in ("plan", "run"):
            assert dispatch([command, *inputs.overrides(tmp_path / "a.zarr", wrong)]) == 2
            said.append(capsys.readouterr().err.splitlines()[-1])
        assert said[0] == said[1]
    assert list(tmp_path.glob("a.zarr*")) == []


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (chosen("cluster", "none"), 1),
        (chosen("cluster", "local", actors=3), 3),
        (chosen("cluster", "address", address="auto"), None),
        (chosen("cluster", "address", address="auto", max_actors=64), 64),
    ],
)
def test_actors_follow_from_the_settings_where_they_can(cluster: ClusterConfig, expected: int | None) -> None:
    assert executor_of(Config(cluster=cluster)).n_actors("cpu") == expected


def test_sizes_in_words() -> None:
    assert [size(n) for n in (0, 999, 42_500, 1.5e12, 3e18)] == ["0 B", "999 B", "42.5 kB", "1.5 TB", "3000.0 PB"]


def test_the_number_of_arrays_is_the_store_s() -> None:
    for per_fold, rows_per_group, spread in itertools.product((False, True), (1, 2), (False, True)):
        kept = {"per_fold": per_fold, "rows_per_group": rows_per_group, "spread": spread}
        assert replace(WORK, **kept).n_arrays == len(arrays_of(replace(make_plan(8, 20, 4, 2), **kept)))
    args = [{"shape": [1], "dtype": "int64"}] * 2
    assert replace(WORK, n_args=2).n_arrays == len(arrays_of(replace(make_plan(8, 20, 4, 2), args=args)))
