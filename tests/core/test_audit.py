"""The audit: every operation with its module and treatment, every refusal, and the error over a few pairs."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import audit
from tests.core.toolbox import Apply, seeded, sequences, shuffled


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 5)
        self.pool = nn.MaxPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.gelu(self.conv(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x * x.softmax(-1)).sum(-1) + torch.special.i0(x[..., 0]))


def test_every_operation_is_listed_with_its_module_and_treatment() -> None:
    model = seeded(Model)
    found = audit(model, sequences(3), device="cpu")
    treatments = {(x.module, x.operation): x.treatment for x in found.operations}
    assert treatments["first.conv (Conv1d)", "conv1d"] == "linear"
    assert "secant" in treatments["first (Block)", "gelu"]
    assert treatments["first.pool (MaxPool1d)", "max_pool1d"] == "maximum"
    assert "softmax" in treatments["the model (Model)", "softmax"]
    assert "midpoint" in treatments["the model (Model)", "mul"]
    assert treatments["head (Linear)", "linear"] == "linear"
    assert any("integrated" in x.treatment and x.operation == "special_i0" for x in found.operations)
    assert all(x.count >= 1 for x in found.operations)
    assert found.refused == ()
    assert found.n_pairs == 4
    assert found.convergence_error is not None
    assert found.convergence_error < 1e-6


def test_operations_are_counted() -> None:
    relu = nn.ReLU()
    model = Apply(lambda act, x: act(act(act(x) - 0.1) - 0.1).flatten(1)[:, :2], relu)
    found = audit(model, sequences(2), device="cpu")
    assert [x.count for x in found.operations if x.operation == "relu"] == [3]


def test_every_refusal_is_listed_and_none_raises() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + torch.rand(x.shape[-1])
            return (x * x.max()).flatten(1)[:, :1]

    found = audit(Twice(), sequences(2), device="cpu")
    assert found.convergence_error is None
    assert any("'rand'" in reason for reason in found.refused)
    assert any("'max'" in reason for reason in found.refused)


def test_references_args_and_targets_are_the_callers() -> None:
    X = sequences(3)
    model = Apply(lambda x, gate: torch.sigmoid(x.flatten(1)[:, :2] * gate))
    found = audit(model, X, shuffled(X, 4), args=(torch.rand(3, 1),), targets="all", device="cpu")
    assert found.n_pairs == 4
    assert found.refused == ()
    with pytest.raises(IndexError, match="target 5"):
        audit(model, X, args=(torch.rand(3, 1),), targets=[5], device="cpu")


def test_a_failure_of_the_models_own_is_passed_on() -> None:
    def forward(x: Tensor) -> Tensor:
        raise KeyError("the model's own mistake")

    with pytest.raises(KeyError, match="own mistake"):
        audit(Apply(forward), sequences(2), device="cpu")


def test_it_can_be_read_and_stored() -> None:
    found = audit(seeded(Model), sequences(2), device="cpu")
    text = str(found)
    assert "first.pool (MaxPool1d)" in text
    assert "convergence error over 4 pairs" in text
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["n_pairs"] == 4
    assert {"module", "operation", "treatment", "count"} == set(stored["operations"][0])
