"""A whole run on a GPU gives the values of one on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import pipeline
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs, inputs  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu


def test_the_current_gpu_of_who_calls_is_that_of_the_whole_run(
    inputs: Inputs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with GPUs of several kinds."""
    last = torch.cuda.device_count() - 1

    def name(device: object = None) -> str:
        index = torch.device(device).index if isinstance(device, str) else None
        return f"GPU of kind {torch.cuda.current_device() if index is None else index}"

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    with torch.cuda.device(last):
        found = pipeline.run(inputs.overrides(tmp_path / "a.zarr", "engine.device=cuda", "run.shards=0"))
    assert found.shards_done == 1
    plan = RunDirectory(tmp_path / "a.zarr").read_plan()
    assert plan is not None
    assert plan.device_kind.startswith(f"GPU of kind {last}")


def test_a_run_on_the_first_or_the_last_gpu_gives_the_values_of_a_cpu(
    inputs: Inputs,  # noqa: F811
    tmp_path: Path,
) -> None:
    stores = []
    for device in ("cpu", "cuda", f"cuda:{torch.cuda.device_count() - 1}"):
        path = tmp_path / f"{device}.zarr"
        overrides = inputs.overrides(path, f"engine.device={device}", "engine.reverse_complement=average")
        assert pipeline.run(overrides).complete
        stores.append(zarr.open_group(path, mode="r"))
    for name in ("hypothetical", "prediction", "reference_prediction", "convergence_delta"):
        expected, *found = (np.asarray(store[name][:]) for store in stores)
        for values in found:
            assert np.isfinite(values).all(), name
            np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5, err_msg=name)
