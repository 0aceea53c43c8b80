"""Rules that users carry over: functions of (module, grad_input, grad_output), keyed by module class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tangermeme.deep_lift_shap import _layernorm, _maxpool, _nonlinear, _softmax, integrated_gradients_op
from tangermeme.deep_lift_shap import deep_lift_shap as peer
from torch import Tensor, nn

from dlshap_core import deep_lift_shap
from tests.core.toolbox import (
    Apply,
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

Rule = Callable[..., Any]


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def by_peer(model: nn.Module, pairs: tuple[Tensor, Tensor], rules: dict[type[nn.Module], Rule]) -> Tensor:
    X, references = pairs
    options: dict[str, Any] = {"additional_nonlinear_ops": rules, "raw_outputs": True, "device": "cpu"}
    return peer(model, X.double(), references=references.double(), **options)


CARRIED_OVER: dict[str, tuple[Callable[[], nn.Module], Rule]] = {
    "ReLU": (nn.ReLU, _nonlinear),
    "GELU": (nn.GELU, _nonlinear),
    "Softplus": (nn.Softplus, _nonlinear),
    "MaxPool1d": (lambda: nn.MaxPool1d(3), _maxpool),
    "MaxPool1d overlapping": (lambda: nn.MaxPool1d(4, 2, 1), _maxpool),
    "LayerNorm": (lambda: nn.LayerNorm(36), _layernorm),
    "Tanh by integration": (nn.Tanh, integrated_gradients_op(16)),
    "Sigmoid by integration": (nn.Sigmoid, integrated_gradients_op(8)),
}


@pytest.mark.parametrize("name", CARRIED_OVER)
def test_carried_over_rules_agree_with_the_built_in_ones(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    make, rule = CARRIED_OVER[name]
    model = seeded(lambda: Sandwich(make()))
    kind = type(model.inner)
    expected = multipliers(model, *pairs)
    for batch_size in (64, 5, 1):
        result = explain(model, *pairs, user_rules={kind: rule}, batch_size=batch_size)
        assert result.multipliers is not None
        assert relative_difference(result.multipliers[:, 0], expected) < 1e-9
        assert worst_delta(result) < 1e-9


@pytest.mark.parametrize("name", CARRIED_OVER)
def test_carried_over_rules_agree_with_the_peer(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    make, rule = CARRIED_OVER[name]
    model = seeded(lambda: Sandwich(make()))
    rules = {type(model.inner): rule}
    assert relative_difference(multipliers(model, *pairs, user_rules=rules), by_peer(model, pairs, rules)) < 1e-9


def test_a_rule_of_softmax_and_one_for_a_whole_block_agree_with_the_peer(pairs: tuple[Tensor, Tensor]) -> None:
    class Block(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return F.silu(z) * z.mean(-1, keepdim=True).sigmoid()

    for inner, rule in [(nn.Softmax(-1), _softmax), (Block(), integrated_gradients_op(12))]:
        model = seeded(lambda inner=inner: Sandwich(inner))
        rules = {type(inner): rule}
        expected = by_peer(model, pairs, rules)
        assert relative_difference(multipliers(model, *pairs, user_rules=rules), expected) < 1e-9


def test_a_rule_overrides_the_built_in_one_for_its_class_alone(pairs: tuple[Tensor, Tensor]) -> None:
    class Derived(nn.ReLU):
        pass

    def plain_gradient(module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        return grad_input

    X, references = pairs
    rules: dict[type[nn.Module], Rule] = {nn.ReLU: plain_gradient}
    model, derived = (seeded(lambda kind=kind: Sandwich(kind())) for kind in (nn.ReLU, Derived))
    leaf = X.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    actual = multipliers(model, X, references, user_rules=rules)
    assert relative_difference(actual, gradient[:, None].expand_as(actual)) < 1e-9
    ruled = multipliers(derived, X, references)
    assert torch.equal(multipliers(derived, X, references, user_rules=rules), ruled)
    assert relative_difference(actual, ruled) > 0.1


def test_a_rule_sees_both_halves_and_all_of_the_module(pairs: tuple[Tensor, Tensor]) -> None:
    seen: list[dict[str, Any]] = []

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.7))

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(self.weight * z)

    def rule(module: Any, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        seen.append({"input": module.input, "output": module.output, "weight": module.weight, "type": type(module)})
        assert grad_input[0].shape == module.input.shape
        assert grad_output[0].shape == module.output.shape
        change_in, change_out = (z.chunk(2)[0] - z.chunk(2)[1] for z in (module.input, module.output))
        secant = torch.where(change_in == 0, 1.7 * (1 - module.output.chunk(2)[0] ** 2), change_out / change_in)
        return (grad_output[0] * torch.cat([secant, secant]),)

    X, references = pairs
    model = seeded(lambda: Sandwich(Scaled()))
    actual = multipliers(model, X, references, user_rules={Scaled: rule})
    with torch.no_grad():
        hidden = [2 * model.conv(z.double()) for z in (X.repeat_interleave(4, 0), references.flatten(0, 1))]
    (call,) = seen
    torch.testing.assert_close(call["input"], torch.cat(hidden))
    torch.testing.assert_close(call["output"], torch.tanh(1.7 * torch.cat(hidden)))
    assert call["weight"] is model.inner.weight
    assert call["type"] is Scaled
    assert not hasattr(model.inner, "input")
    assert relative_difference(actual, multipliers(model, X, references)) < 1e-6


def test_a_rule_for_a_module_called_twice(pairs: tuple[Tensor, Tensor]) -> None:
    def twice(conv: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
        return act(act(conv(x)) - 0.4).mean(-1)

    model = seeded(lambda: Apply(twice, nn.Conv1d(4, 3, 5), nn.ELU()))
    rules = {nn.ELU: _nonlinear}
    actual = explain(model, *pairs, user_rules=rules, targets="all")
    assert worst_delta(actual) < 1e-9
    assert relative_difference(actual.hypothetical, explain(model, *pairs, targets="all").hypothetical) < 1e-9


def test_a_rule_inside_a_module_that_has_one_is_not_asked(pairs: tuple[Tensor, Tensor]) -> None:
    def never(module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        raise AssertionError("the outer module's rule covers this one")

    class Outer(nn.Sequential):
        pass

    model = seeded(lambda: Sandwich(Outer(nn.Tanh(), nn.Softplus())))
    rules = {Outer: integrated_gradients_op(16), nn.Tanh: never}
    result = explain(model, *pairs, user_rules=rules)
    assert worst_delta(result) < 1e-6


def test_rules_reach_the_engine_through_the_face(pairs: tuple[Tensor, Tensor]) -> None:
    X, references = pairs
    model = seeded(lambda: Sandwich(nn.ReLU()))

    def nothing(module: nn.Module, grad_input: tuple[Tensor], grad_output: tuple[Tensor]) -> tuple[Tensor]:
        return (0 * grad_output[0],)

    with pytest.warns(RuntimeWarning, match="convergence deltas too high"):
        actual = deep_lift_shap(
            model, X, references=references, device="cpu", additional_nonlinear_ops={nn.ReLU: nothing}
        )
    assert isinstance(actual, Tensor)
    assert actual.abs().max() == 0
