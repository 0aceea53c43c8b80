"""Memory of a GPU: weights are taken there once, what a run needs is measured as the run does it, nothing is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pipeline
from pipeline.config.compose import compose_config
from pipeline.config.schema import Config
from pipeline.execution import preflight
from pipeline.execution import worker as worker_module
from pipeline.execution.ensemble import attribute_rows
from pipeline.execution.gpu_memory import bound, on_device
from pipeline.execution.preflight import run_preflight
from pipeline.execution.run import work_spec
from pipeline.execution.work import WorkSpec
from pipeline.execution.worker import Worker
from pipeline.messages.errors import UserError
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs, inputs  # noqa: F401 - a fixture
from tests.pipeline.execution.test_preflight import CODES, loaded_model

pytestmark = pytest.mark.gpu


def begun(overrides: list[str], store: Path) -> WorkSpec:
    """What a worker is given of a run of which a part is done."""
    pipeline.run(overrides)
    directory = RunDirectory(store)
    plan = directory.read_plan()
    assert plan is not None
    return work_spec(compose_config(overrides), plan, directory)


def test_weights_are_taken_to_the_device_once(
    inputs: Inputs,  # noqa: F811
    tmp_path: Path,
    pretended: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", "run.shards=0", "engine.device=cuda", "cluster=none")
    spec, copied = begun(overrides, tmp_path / "a.zarr"), []
    plan = spec.plan
    for begin in ("here", "in every call"):
        worker = Worker(spec)
        for index in (1, 2):
            pretended.reset()
            assert worker.attribute(plan.shard(index)).error == "", begin
        copied.append(pretended.counts().copied_to_device)
        monkeypatch.setattr(worker_module, "keep_on_device", lambda *_: None)
    assert worker._loaded is not None
    weights = sum(p.numel() * p.element_size() for fold in worker._loaded[0] for p in fold.parameters())
    assert copied[0] <= copied[1] - weights


def test_another_process_finds_the_memory_free(pretended: ModuleType) -> None:
    folds = [nn.Linear(256, 256) for _ in range(2)]
    held = pretended.held()
    with on_device(folds, "cuda"):
        assert {fold.weight.device.type for fold in folds} == {"cuda"}
        folds[0](torch.ones(256, 256, device="cuda"))
    assert {fold.weight.device.type for fold in folds} == {"cpu"}
    assert (pretended.held(), pretended.cached()) == (held, 0)
    with pretended.memory_of(pretended.held() + 300_000), on_device(folds, "cuda"):
        assert {fold.weight.device.type for fold in folds} == {"cpu"}, "two do not fit: each call takes its own"
    bound("cuda:1", 0.5)
    assert pretended.memory_fraction(1) == 0.5


def test_nothing_is_tried_again_while_memory_is_full(pretended: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, calls = loaded_model(), []
    monkeypatch.setattr(preflight, "cached_audit", lambda *_: preflight.Audit((), (), 0.0, 2))
    monkeypatch.setattr(preflight, "_length_hint", lambda *_: calls.append("the model was run"))
    held = pretended.held()
    with pretended.memory_of(held + 4_000), pytest.raises(UserError, match="do not fit into the memory") as caught:
        run_preflight(loaded, CODES, "s0", Config(), "cuda")
    assert calls == []
    assert pretended.held() == held, f"the batch is let go: {caught.value}"


def test_a_pair_is_measured_with_the_references_of_the_run(
    pretended: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one reference each, pairs bring sequences of their own."""
    shapes: list[tuple[int, int]] = []
    attribute = preflight.attribute

    def seen(model: nn.Module, X: Tensor, references: Tensor, **options: object) -> object:
        shapes.append((len(X), references.shape[1]))
        return attribute(model, X, references, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(preflight, "attribute", seen)
    for n_shuffles, expected in ((1, [(2, 1), (2, 1), (18, 1)]), (5, [(1, 2), (1, 2), (4, 5)])):
        shapes.clear()
        config = compose_config(["dataset=example", f"references.n_shuffles={n_shuffles}"])
        found = run_preflight(loaded_model(), np.asarray(CODES), "s0", config, "cuda")
        assert shapes[1:] == expected
        assert found.pairs_that_fit is not None
    assert pretended.cached() == 0, "workers on this GPU find all of it free"


def test_the_advice_of_a_shard_that_runs_out_of_memory_is_right(
    inputs: Inputs,  # noqa: F811
    tmp_path: Path,
    pretended: ModuleType,
) -> None:
    overrides = inputs.overrides(tmp_path / "a.zarr", "run.shards=0", "engine.device=cuda", "engine.batch_size=18")
    spec, peaks = begun(overrides, tmp_path / "a.zarr"), {}
    worker, plan = Worker(spec), spec.plan
    worker.process(plan.shard(1))
    assert worker._loaded is not None
    folds, draw = worker._loaded
    codes = np.zeros((6, plan.length), np.uint8)
    held = pretended.held()
    for size in (18, 9):
        pretended.reset()
        attribute_rows(folds, replace(plan, batch_size=size), codes[: size // 3], draw(codes, 0))
        peaks[size] = pretended.peak() - held
    assert peaks[9] < 0.9 * peaks[18]
    with pretended.memory_of(held + (peaks[9] + peaks[18]) // 2):
        error = worker.process(plan.shard(2)).error
    assert "do not fit into the memory of cuda, 9 do: give engine.batch_size=9" in error
    assert pretended.held() < held + peaks[9] // 4, "nothing of the batch that failed"
