"""Tests of the GPU path, on a pretended GPU where there is no other (tests/gpu/pretended_gpu.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.store.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("tests/gpu/test_engine.py", "tests/gpu/test_deterministic.py")
CORE = tuple(f"tests/core/{name}.py" for name in ("rules/test_complex_numbers", "rules/test_maxima", "test_engine"))
CORE += ("tests/core/test_architectures.py",)
SAMPLED = """
import torch
from torch import nn

class Sampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 5, padding=2)

    def forward(self, x):
        grid = torch.zeros(len(x), 1, 4, 2, device=x.device, dtype=x.dtype)
        return nn.functional.grid_sample(self.conv(x).unsqueeze(2), grid, align_corners=False).flatten(1)[:, :1]
"""


pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch is for real GPUs"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended GPU needs g++"),
]


def passes(folder: Path, *arguments: str) -> str:
    """What a pytest of its own says, in which all tests pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_engine_on_a_pretended_gpu(tmp_path: Path) -> None:
    found = passes(tmp_path / "pytest", "-p", "tests.gpu.pretended_gpu", "-m", "gpu and not slow", *QUICK)
    assert "skipped" not in found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tests_of_a_gpu_pass_on_a_pretended_one(tmp_path: Path) -> None:
    found = passes(
        tmp_path / "pytest", "-p", "tests.gpu.pretended_gpu", "-m", "gpu", "tests/gpu", "tests/core/test_engine.py"
    )
    assert "skipped" not in found, "none is skipped"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tests_of_the_core_pass_on_a_pretended_gpu(tmp_path: Path) -> None:
    passes(tmp_path / "pytest", "-p", "tests.gpu.core_on_gpu", "-m", "not slow", *CORE)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_machine_without_a_gpu_has_a_model_tried_on_a_node_with_one(tmp_path: Path) -> None:
    def run(store: Path, *settings: str) -> dict[str, Any]:
        command = [sys.executable, "tests/gpu/ray_with_gpus.py", f"store.path={store}", "dataset=example", *settings]
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": "300",
            "DLSHAP_CACHE": str(tmp_path / "cache"),
        }
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stdout + found.stderr
        return dict(json.loads(found.stdout.splitlines()[-1]))

    found = run(tmp_path / "a.zarr", "run.shards=0", "store.rows_per_shard=4")
    assert found["planned_on"] == "Pretended GPU without Triton of a node of the cluster"
    assert found["audited_on"] == found["planned_on"]
    assert "relu" in found["operations"]
    plan = RunDirectory(tmp_path / "a.zarr").read_plan()
    assert plan is not None
    assert plan.device == "cuda"
    assert plan.device_kind.startswith("Pretended GPU")
    assert plan.batch_size == 64 * plan.n_references, "what is best of a GPU"
    assert RunDirectory(tmp_path / "a.zarr").read_record(0) is not None
    (tmp_path / "sampled.py").write_text(SAMPLED)
    save_file({"conv.weight": torch.ones(8, 4, 5), "conv.bias": torch.zeros(8)}, tmp_path / "sampled.safetensors")
    model = [f"model._target_={tmp_path}/sampled.py:Sampled", f"model.checkpoint={tmp_path}/sampled.safetensors"]
    refused = run(tmp_path / "b.zarr", "model=module", *model)["refused"]
    assert "'grid_sampler'" in refused
    assert "with engine.deterministic=false" in refused
    assert not (tmp_path / "b.zarr").exists()
