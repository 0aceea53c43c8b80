"""A device that computes nothing any more after an error: whose shards are given back, and which is avoided."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import pipeline
from pipeline.config.compose import compose_config
from pipeline.execution import shard as shard_module
from pipeline.execution.device import computes
from pipeline.execution.executors import ray_data
from pipeline.execution.isolated import Death, is_to_blame
from pipeline.execution.run import work_spec
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs


@pytest.mark.parametrize(
    ("error", "expected"),
    [(RuntimeError("CUDA error: an illegal memory access"), False), (torch.OutOfMemoryError(), True)],
)
def test_a_device_is_asked_whether_it_computes(
    error: Exception, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*args: Any, **options: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(torch, "ones", ones)
    assert computes("cpu")
    assert computes("cuda") is expected


def test_a_process_whose_device_broke_ends_and_a_second_time_the_node_is_avoided(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> NoReturn:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def end(code: int) -> NoReturn:
        raise SystemExit(code)

    overrides = inputs.overrides(tmp_path / "a.zarr", "run.shards=3")
    pipeline.run(overrides)
    directory = RunDirectory(tmp_path / "a.zarr")
    plan = directory.read_plan()
    assert plan is not None
    monkeypatch.setattr(shard_module, "attribute_rows", fail)
    monkeypatch.setattr(shard_module, "computes", lambda device: False)
    monkeypatch.setattr(ray_data.os, "_exit", end)
    monkeypatch.setattr(ray_data.ray, "get_runtime_context", lambda: type("", (), {"get_node_id": lambda self: "n1"})())
    actor = ray_data.ShardActor(work_spec(compose_config(overrides), plan, directory))
    for n_attempts in (1, 2):
        with pytest.raises(SystemExit, match="70"):
            actor._process(0)
        assert directory.n_attempts(plan.shard(0)) == n_attempts, "as of a process that was killed"
    result = actor._process(1)
    assert (result.fatal, result.node) == (True, "n1")
    assert "computes nothing any more in this process: CUDA error: unspecified launch failure" in result.error
    assert directory.failures() == []
    (line,) = directory.broken_devices()
    assert line == result.error
    directory.forget_failures(range(4))
    assert directory.broken_devices() == []


def test_a_shard_that_always_breaks_its_device_is_given_up() -> None:
    deaths = [Death(70, "computing", 1.0)] * 2
    assert is_to_blame(deaths)
    assert str(deaths[0]) == "its device broke while computing"
