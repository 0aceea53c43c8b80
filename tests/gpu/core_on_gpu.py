"""A pytest plugin (-p tests.gpu.core_on_gpu): the core's tests on the GPU, or the pretended one, whatever they ask for.

Tests of what a CPU alone does are in `OF_A_CPU`, with the reason.
"""

from __future__ import annotations

import sys
from typing import Any

import tests.gpu.pretended_gpu  # noqa: F401, isort: skip - before torch

import pytest
import torch

import dlshap_core.audit
import dlshap_core.deep_lift_shap
import dlshap_core.engine

OF_A_CPU: dict[str, str] = {}
_attribute = dlshap_core.engine.attribute


def _on_gpu(model: Any, X: Any, references: Any, **options: Any) -> Any:
    return _attribute(model, X, references, **{**options, "device": "cuda"})


for _name in ("dlshap_core", "dlshap_core.audit", "dlshap_core.engine", "dlshap_core.deep_lift_shap"):
    sys.modules[_name].attribute = _on_gpu  # type: ignore[attr-defined]
torch.use_deterministic_algorithms(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, reason in OF_A_CPU.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
