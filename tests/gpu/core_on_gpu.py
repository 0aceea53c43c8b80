"""A pytest plugin (-p tests.gpu.core_on_gpu): the core's tests on the pretended GPU, whatever device they ask for.

Under torch.use_deterministic_algorithms, as runs are. Tests that do not hold on a GPU are left out, with the reason.
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

_CONSTANTS = "the test's model makes constants on the CPU"
OF_A_CPU = {
    "[rotary embedding]": _CONSTANTS,
    "[attention with rotary embeddings]": _CONSTANTS,
    "test_extra_inputs_follow_their_sequence": _CONSTANTS,
    "test_a_model_that_ignores_its_input_gets_zeros[ignored]": _CONSTANTS,
    "test_a_target_that_ignores_the_input_beside_one_that_does_not": _CONSTANTS,
    "test_an_elementwise_function_may_broadcast_its_input": _CONSTANTS,
    "[positional encoding]": _CONSTANTS,
    "test_references_may_be_codes": "references of a GPU are drawn on a thread of their own",
    "test_half_precision_runs_under_autocast": "the pretended GPU has the CPU's softmax, of no half precision",
}
_attribute = dlshap_core.engine.attribute


def _on_gpu(model: Any, X: Any, references: Any, **options: Any) -> Any:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return _attribute(model, X, references, **{**options, "device": "cuda"})
    finally:
        torch.use_deterministic_algorithms(before)


for _name in ("dlshap_core", "dlshap_core.audit", "dlshap_core.engine", "dlshap_core.deep_lift_shap"):
    sys.modules[_name].attribute = _on_gpu  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, reason in OF_A_CPU.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
