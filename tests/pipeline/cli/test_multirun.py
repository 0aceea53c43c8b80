"""`dlshap run --multirun`: the same stores as of single runs, what becomes of failed jobs, and one Ray for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.execution.executors.local import LocalRayExecutor
from tests.pipeline.conftest import Inputs, values

SEEDS = "references.random_state=0,5"


def test_jobs_give_the_stores_of_single_runs_and_finished_ones_are_passed_over(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--multirun", *inputs.overrides(tmp_path / "o.zarr", SEEDS)]
    assert dispatch(command) == 0
    assert "2 jobs, 0 failed" in capsys.readouterr().out
    for seed in 0, 5:
        alone = tmp_path / f"alone{seed}.zarr"
        pipeline.run(inputs.overrides(alone, f"references.random_state={seed}"))
        assert values(tmp_path / f"o_random_state-{seed}.zarr") == values(alone)
    assert not (tmp_path / "o.zarr").exists()

    assert dispatch([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [job["summary"]["rows_computed"] for job in told["jobs"]] == [0, 0]
    assert [job["values"] for job in told["jobs"]] == [
        {"references.random_state": "0"},
        {"references.random_state": "5"},
    ]


def test_a_job_that_fails_does_not_keep_the_others_from_running(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.fa"
    command = inputs.overrides(tmp_path / "o.zarr", f"dataset.path=choice({missing},{inputs.sequences})")
    assert dispatch(["run", "-m", "--json", *command]) == 2
    bad, good = json.loads(capsys.readouterr().out)["jobs"]
    assert bad["exit_code"] == 2
    assert str(missing) in bad["error"]
    assert bad["summary"] is None
    assert good["summary"]["complete"]
    assert pipeline.open_store(good["store"]).complete


def test_a_run_that_fails_makes_the_exit_code_1(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = ["engine.warning_threshold=1e-30,1", "engine.relative_threshold=1e-30", "engine.on_nonconvergence=fail"]
    assert dispatch(["run", "-m", "--json", *inputs.overrides(tmp_path / "o.zarr", *limit)]) == 1
    assert json.loads(capsys.readouterr().out)["jobs"][0]["exit_code"] == 1


def test_a_mistake_in_any_job_is_told_before_the_first_runs(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["run", "-m", *inputs.overrides(tmp_path / "o.zarr", "references.n_shuffles=2,-1")]) == 2
    assert "references.n_shuffles=-1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_jobs_whose_stores_would_be_one_are_refused(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = inputs.overrides(tmp_path / "o.zarr", "dataset.path=choice(a/b.fa,a-b.fa)")
    assert dispatch(["run", "-m", *command]) == 2
    assert "would both write" in capsys.readouterr().err


def test_the_configurations_of_the_jobs_can_be_seen(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(["run", "-m", "--cfg", "job", *inputs.overrides(tmp_path / "o.zarr", SEEDS)]) == 0
    told = capsys.readouterr().out
    assert told.count("---\n") == 1
    assert all(f"path: {tmp_path}/o_random_state-{seed}.zarr" in told for seed in (0, 5))


def test_jobs_that_choose_different_clusters_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    for name in "local", "none":
        text = f"# @package _global_\ndefaults:\n  - override /cluster: {name}\n"
        (tmp_path / "experiment" / f"on_{name}.yaml").write_text(text)
    assert dispatch(["run", "-m", "--config-dir", str(tmp_path), "experiment=on_none,on_local"]) == 2
    assert "share one cluster" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
def test_one_ray_serves_all_jobs(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    sessions, connect = [], LocalRayExecutor.connect

    def counted(executor: LocalRayExecutor) -> None:
        connect(executor)
        sessions.append(ray.get_runtime_context().get_job_id())

    monkeypatch.setattr(LocalRayExecutor, "connect", counted)
    command = inputs.overrides(tmp_path / "o.zarr", SEEDS, "cluster=local", "cluster.actors=1")
    assert dispatch(["run", "-m", *command]) == 0
    assert len(sessions) >= 2
    assert len(set(sessions)) == 1
    assert not ray.is_initialized()
    alone = tmp_path / "alone.zarr"
    pipeline.run(inputs.overrides(alone, "references.random_state=5"))
    assert values(tmp_path / "o_random_state-5.zarr") == values(alone)
