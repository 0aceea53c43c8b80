"""A device that computes nothing any more after an error: whose shards are given back, and which is avoided."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

import pipeline
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution import device as device_module
from pipeline.execution import diagnose, ensemble, preflight
from pipeline.execution.device import computes
from pipeline.execution.executors import ray_data
from pipeline.execution.gpu_memory import on_device
from pipeline.execution.isolated import Death, is_to_blame
from pipeline.execution.run import work_spec
from pipeline.execution.worker import Worker
from pipeline.messages.errors import DeviceBrokenError
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs
from tests.pipeline.execution.test_preflight import CODES, loaded_model


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access"), False),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
        (torch.OutOfMemoryError(), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
    ],
)
def test_a_device_is_asked_whether_it_computes(
    error: Exception, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*args: Any, **options: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(torch, "ones", ones)
    assert computes("cpu")
    assert computes("cuda") is expected


@pytest.mark.parametrize("at", ["the probe", "a shard"])
def test_a_process_whose_device_broke_ends_and_a_second_time_the_node_is_avoided(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
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
    monkeypatch.setattr(ensemble, "_attribute_piece", fail)
    monkeypatch.setattr(device_module, "computes", lambda device: False)
    if at == "a shard":
        monkeypatch.setattr(Worker, "_require_same_values", lambda *_: None)
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


BROKEN = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device that breaks when it is asked for anything."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise BROKEN

    monkeypatch.setattr(device_module, "computes", lambda device: False)
    return fail


def test_it_is_not_the_model_that_failed(broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLSHAP_CACHE", str(tmp_path))
    for name in ("audit", "attribute"):
        with monkeypatch.context() as patched:
            patched.setattr(preflight, name, broken)
            with pytest.raises(
                DeviceBrokenError, match=r"cpu of .* computes nothing any more in this process: CUDA er"
            ):
                preflight.run_preflight(loaded_model(), CODES, "s0", Config(), "cpu")


def test_it_is_not_a_row_that_failed(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "_attribute_piece", broken)
    plan = Plan(2, 5, [0], {}, 1, 0, 2, 2, "float32", 1, True, "cpu", "any", True, 1e-3, {})
    codes, references = np.zeros((2, 5), np.uint8), ShardReferences(np.zeros((2, 1, 5), np.uint8))
    with pytest.raises(DeviceBrokenError):
        diagnose.diagnose(ValueError("of the model"), [], plan, codes, references, ["s0", "s1"])


def test_nothing_is_taken_back_from_it(broken: Any) -> None:
    fold: Any = type("Fold", (), {"to": lambda self, device: None, "cpu": broken})()
    with pytest.raises(DeviceBrokenError), on_device([fold], "cuda"):
        raise BROKEN


def test_a_shard_that_always_breaks_its_device_is_given_up() -> None:
    deaths = [Death(70, "computing", 1.0)] * 2
    assert is_to_blame(deaths)
    assert str(deaths[0]) == "its device broke while computing"
