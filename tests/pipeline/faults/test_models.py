"""Models that fail or give no numbers for one sequence, and devices without memory: named, and what would help said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs, random_sequences
from tests.pipeline.faults.conftest import check_whole

TARGET = "model._target_=tests.pipeline.faults.choosy.Choosy"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize("way", ["here", pytest.param("actor", marks=pytest.mark.slow)])
def test_an_exception_for_one_sequence_names_it(
    inputs: Inputs,
    digest_of: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    way: str,
) -> None:
    target = TARGET if way == "here" else f"{TARGET}Always"  # the actors' environment is that of their Ray
    cluster = ["cluster=none"] if way == "here" else ["cluster=local", "cluster.actors=1"]
    monkeypatch.setenv("CHOOSY_SEQUENCE", random_sequences()[9])
    monkeypatch.setenv("CHOOSY_WAY", "raise")
    command = ["run", *inputs.overrides(tmp_path / "a.zarr", target, *cluster)]
    assert dispatch(command) == 1
    err = capfd.readouterr().err.splitlines()[-1]
    assert "shard 1 (rows 6 to 11), sequences 's6', 's7', 's8' and 3 more, failed: row 9, 's9': IndexError: " in err
    assert "index 7 is out of range" in err
    directory = RunDirectory(tmp_path / "a.zarr")
    assert directory.done_indices() == [0, 2, 3]
    assert "IndexError" in directory.run.read("logs/shard-00000001.txt").decode()
    assert dispatch(["status", str(tmp_path / "a.zarr")]) == 0
    assert "row 9, 's9'" in capfd.readouterr().out
    if way == "here":
        monkeypatch.delenv("CHOOSY_SEQUENCE")
        assert dispatch(command) == 0
        check_whole(tmp_path / "a.zarr", digest_of())


def test_nan_is_a_value_that_the_summary_counts(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHOOSY_SEQUENCE", random_sequences()[9])
    monkeypatch.setenv("CHOOSY_WAY", "nan")
    command = ["run", *inputs.overrides(tmp_path / "a.zarr", TARGET, "engine.batch_size=3")]
    assert dispatch(command) == 0
    out, err = capfd.readouterr()
    assert "not finite" in out + err, out + err
    store = pipeline.open_store(tmp_path / "a.zarr")
    assert np.flatnonzero(np.isnan(store.prediction[:, 0])).tolist() == [9]
    assert store.attrs["run"]["deltas"]["n_not_finite"] >= 3
    assert store.attrs["convergence"] == "failed"
    assert dispatch([*command, "engine.on_nonconvergence=fail"]) == 1


@pytest.mark.parametrize("room", [17, pytest.param(9, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_what_does_not_fit_names_a_batch_size_that_does(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    room: int,
) -> None:
    """The preflight of the first sequence fits, a whole batch does not."""
    monkeypatch.setenv("CHOOSY_ROOM", str(room))
    command = [*inputs.overrides(tmp_path / "a.zarr", TARGET, "engine.batch_size=18")]
    assert dispatch(["run", *command]) == 1
    err = capfd.readouterr().err.splitlines()[-1]
    assert err.count("OutOfMemoryError") == 1
    advised = re.search(
        r"Batches of 18 pairs do not fit into the memory of cpu, (\d+) do: .* (engine\.batch_size=\d+)", err
    )
    assert advised, err
    assert int(advised[1]) <= room
    assert dispatch(["run", *inputs.overrides(tmp_path / "b.zarr", TARGET, advised[2])]) == 0
    assert pipeline.open_store(tmp_path / "b.zarr").complete


def test_no_memory_at_all_is_said(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["run", *inputs.overrides(tmp_path / "a.zarr", TARGET, "engine.batch_size=4")]  # two sizes are below it
    assert dispatch([*command, "run.shards=0"]) == 0
    monkeypatch.setenv("CHOOSY_ROOM", "0")
    assert dispatch([*command, "run.shards=1"]) == 1
    assert "Not even 2 pairs fit into the memory of cpu" in capfd.readouterr().err
