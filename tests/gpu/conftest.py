"""Tests that need a GPU, a real or a pretended one; what only the pretended one tells is asked of `pretended`."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


@pytest.fixture
def pretended() -> ModuleType:
    """The pretended GPU, at the beginning of its counts."""
    module = sys.modules.get("tests.gpu.pretended_gpu")
    if module is None:
        pytest.skip("runs on a pretended GPU: pytest -p tests.gpu.pretended_gpu")
    module.reset()
    return module
