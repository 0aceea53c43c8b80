"""A whole run on a GPU gives the values of one on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import pipeline
from tests.pipeline.conftest import Inputs, inputs  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu


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
