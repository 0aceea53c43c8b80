"""The tests marked `gpu`, on a pretended GPU where there is no other (tests/gpu/pretended_gpu.py)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch is for real GPUs")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretended GPU needs g++")
def test_the_tests_of_a_gpu_pass_on_a_pretended_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.gpu.pretended_gpu", "-m", "gpu", "tests/gpu"]
    command += ["tests/core/test_engine.py", f"--basetemp={tmp_path / 'pytest'}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "skipped" not in found.stdout, "none is skipped"
