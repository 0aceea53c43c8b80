"""Contributions may miss what they explain by rounding, in the numbers that were asked for, and by no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from dlshap_core import UnsupportedModelError, attribute
from dlshap_core.passes.tolerance import worst_miss
from dlshap_core.rules.kinds import LinearBy
from tests.core.toolbox import Apply, Sandwich, explain, relative_difference, seeded, sequences, shuffled


class Block(nn.Module):
    """A convolution in half precision inside, in one of the ways that models have."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way = nn.Conv1d(8, 8, 3, padding=1), way
        self.policy = SimpleNamespace(compute_dtype=torch.bfloat16 if way == "policy" else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.conv(x).relu().float()
        if self.way == "by half":
            conv = nn.functional.conv1d(x.half(), self.conv.weight.half(), self.conv.bias.half(), padding=1)
            return conv.relu().float()
        dtype = self.policy.compute_dtype or torch.bfloat16
        weight, bias = self.conv.weight.to(dtype), self.conv.bias.to(dtype)
        return nn.functional.conv1d(x.to(dtype), weight, bias, padding=1).relu().float()


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem, self.body, self.readout = nn.Conv1d(4, 8, 7), nn.Sequential(Block(way)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.body(self.stem(x).tanh()).mean(-1)) + 3


def close(X: Tensor, n: int = 4) -> Tensor:
    """References that differ in few places, so that little is to be explained."""
    references = X.unsqueeze(1).repeat(1, n, 1, 1)
    for k in range(n):
        at = 5 + 7 * k
        references[:, k, :, at] = references[:, k, :, at].roll(1, -1)
    return references


@pytest.mark.parametrize("way", ["autocast", "by half", "to", "policy"])
@pytest.mark.parametrize("references", [close, shuffled])
def test_half_precision_inside_is_named(way: str, references: Callable[[Tensor], Tensor]) -> None:
    X = sequences(4)
    model = seeded(lambda: Net(way), dtype=torch.float32)
    setting = "set body.0.policy.compute_dtype (now torch.bfloat16) to float32" if way == "policy" else "have it comp"
    dtype = "float16" if way == "by half" else "bfloat16"
    with pytest.raises(UnsupportedModelError, match=rf"body\.0.* \(\w+\) computes in {dtype}") as caught:
        explain(model, X, references(X))
    assert setting in str(caught.value)
    assert f"engine.dtype={dtype}" in str(caught.value)


def test_half_precision_that_was_asked_for_is_accepted() -> None:
    X = sequences(4)
    model = seeded(lambda: Net("policy"), dtype=torch.float32)
    assert explain(model, X, shuffled(X), dtype=torch.bfloat16).prediction.isfinite().all()


def test_half_precision_that_shows_in_no_output_is_accepted() -> None:
    def aside(conv: nn.Module, x: Tensor) -> Tensor:
        hidden = conv(x).relu()
        hidden.bfloat16().mean()  # a statistic that somebody logs
        return hidden.mean(-1)

    X = sequences(3)
    assert explain(seeded(lambda: Apply(aside, nn.Conv1d(4, 2, 5)), dtype=torch.float32), X, shuffled(X))


class Unseen(torch.autograd.Function):
    """An exponential beside an identity, which no rule sees."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x + 0.3 * x.exp()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (1 + 0.3 * x.exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_what_a_missing_rule_misses_is_told_from_the_difference_not_the_prediction(
    dtype: torch.dtype, offset: float
) -> None:
    X = sequences(4)
    model = seeded(
        lambda: Apply(lambda conv, x: Unseen.apply(conv(x)).mean(-1) + offset, nn.Conv1d(4, 2, 5)), dtype=dtype
    )
    with pytest.raises(UnsupportedModelError, match="the custom autograd function 'Unseen'"):
        explain(model, X, shuffled(X))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_sequences_that_influence_each_other_are_told_from_the_difference(offset: float) -> None:
    def mixed(conv: nn.Module, x: Tensor) -> Tensor:
        y = conv(x).relu().mean(-1)
        return y + 0.05 * y.roll(1, 0) + offset  # the row before it

    X = sequences(4)
    with pytest.raises(UnsupportedModelError, match="mixes the sequences of a batch"):
        explain(seeded(lambda: Apply(mixed, nn.Conv1d(4, 2, 5)), dtype=torch.float32), X, shuffled(X))


class Momentum(nn.Module):
    """Normalisation that goes on learning in eval mode."""

    def __init__(self, write: Callable[[Momentum, Tensor], None]) -> None:
        super().__init__()
        self.conv, self.write = nn.Conv1d(4, 6, 5), write
        self.register_buffer("running_var", torch.ones(6, 1))
        self.register_buffer("cache", torch.zeros(0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        self.calls += 1
        if len(self.cache) < x.shape[-1]:
            self.cache = torch.arange(x.shape[-1], dtype=x.dtype)  # grows, as caches of positions do
        self.write(self, hidden.detach().var((0, 2), keepdim=True)[0])
        return (hidden / self.running_var.sqrt()).relu().mean(-1)


def replace(norm: Momentum, var: Tensor) -> None:
    norm.running_var = 0.9 * norm.running_var + 0.1 * var


def decay(norm: Momentum, var: Tensor) -> None:
    with torch.no_grad():
        norm.running_var *= 0.99


WRITES: dict[str, Callable[[Momentum, Tensor], None]] = {
    "replaced": replace,
    "decays": decay,
    "copied": lambda norm, var: norm.running_var.copy_(var),
    "moved": lambda norm, var: norm.running_var.mul_(0.9).add_(0.1 * var),
    "lerp": lambda norm, var: norm.running_var.lerp_(var, 0.1),
    "by data": lambda norm, var: norm.running_var.data.mul_(0.9),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_buffer_that_is_written_in_eval_mode_is_named(how: str) -> None:
    X = sequences(3)
    model = seeded(lambda: nn.Sequential(Momentum(WRITES[how])))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(UnsupportedModelError, match=r"writes to the buffer '0\.running_var' in eval mode"):
        explain(model, X, shuffled(X))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_counters_and_caches_may_be_written() -> None:
    X = sequences(3)
    model = seeded(lambda: nn.Sequential(Momentum(lambda norm, var: None)))
    assert explain(model, X, shuffled(X)).convergence_delta.abs().max() < 1e-12


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x.mT).mT.relu())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x.mT)).chunk(3, -1)
        weights = (q @ k.mT / 8**0.5).float().softmax(-1).type_as(q)  # in float32, whatever the rest is in
        return x + (weights @ v).mT


def stack(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 8, 7, padding=3), *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2))


BODIES: dict[str, Callable[[], list[nn.Module]]] = {
    "relu": lambda: [nn.ReLU()],
    "deep residual": lambda: [Residual() for _ in range(24)],
    "attention": lambda: [Attention(), Attention(), nn.GELU()],
    "max-pooling": lambda: [nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(8, 8, 3), nn.ReLU()],
    "batch norm": lambda: [nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 8, 3), nn.Softplus()],
    "exp": lambda: [nn.Conv1d(8, 8, 3), nn.Softmax(1), nn.ELU()],
}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda y: y,
    "large offset": lambda y: y + 1000,
    "tiny": lambda y: y * 1e-6,
    "small difference of large numbers": lambda y: (y + 1e4) - 1e4,
    "large": lambda y: y * 1e5,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("body", BODIES)
def test_honest_models_are_accepted(body: str, end: str) -> None:
    X = sequences(4, 60)
    itself = X.unsqueeze(1).repeat(1, 3, 1, 1)
    dtypes = (torch.float32, torch.float64) if end == "large" else (torch.float32, torch.float16, torch.float64)
    for dtype in dtypes:  # float16 ends at 65,504
        model = seeded(lambda: Apply(lambda net, x: ENDS[end](net(x)), stack(*BODIES[body]())), dtype=dtype)
        for references in (shuffled(X), itself, close(X, 3)):
            found = attribute(model, X, references, targets="all", device="cpu", batch_size=12)
            assert found.prediction.isfinite().all()


def test_the_check_changes_no_value() -> None:
    """Where float64 is asked for its opinion, the model goes on in its own numbers."""
    X = sequences(4, 60)
    model = seeded(lambda: Apply(lambda net, x: (net(x) + 1e4) - 1e4, stack(Residual())), dtype=torch.float32)
    plain = seeded(lambda: Apply(lambda net, x: net(x), stack(Residual())), dtype=torch.float32)
    found, expected = (explain(net, X, shuffled(X)) for net in (model, plain))
    assert relative_difference(found.hypothetical, expected.hypothetical) < 1e-5


def by_hand(errors: Tensor, prediction: Tensor, reference_prediction: Tensor) -> tuple[float, ...]:
    """Each pair in turn; the first of equals."""
    n_sequences, n_targets, n_references = errors.shape
    found: tuple[float, ...] = ()
    worst = -1.0
    for target in range(n_targets):
        difference = max(
            abs(prediction[s, target] - reference_prediction[s, target, k]).item()
            for s in range(n_sequences)
            for k in range(n_references)
        )
        size = max(prediction[:, target].abs().max().item(), reference_prediction[:, target].abs().max().item())
        for s in range(n_sequences):
            for k in range(n_references):
                error = abs(errors[s, target, k].item())
                share = error / max(difference + 0.01 * size, 1e-300)
                if share > worst:
                    worst, found = share, (error, difference, size, s, k)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_pair_is_that_of_the_worst_target(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    errors = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    scale = torch.tensor([1.0, 100.0, 1e-3, 1.0], dtype=torch.float64)[:, None]
    prediction = torch.randn(3, 4, generator=draw, dtype=torch.float64) * scale[:, 0]
    reference_prediction = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64) * scale
    miss = worst_miss(errors * scale, prediction, reference_prediction)
    expected = by_hand(errors * scale, prediction, reference_prediction)
    assert (miss.error, miss.difference, miss.size, miss.row, miss.reference) == pytest.approx(expected)


def test_an_error_that_is_no_number_is_the_worst() -> None:
    errors = torch.zeros(2, 2, 3)
    errors[1, 0, 2] = math.nan
    errors[0, 1, 0] = 9.0
    miss = worst_miss(errors, torch.ones(2, 2), torch.zeros(2, 2, 3))
    assert math.isnan(miss.error)
    assert (miss.row, miss.reference) == (1, 2)


def otherwise(x: Tensor) -> Tensor:
    if has_torch_function_unary(x):
        return handle_torch_function(otherwise, (x,), x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operation_that_is_computed_otherwise_than_by_the_model_is_no_rounding(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otherwise, "dlshap_kind", LinearBy(function=lambda x: 2 * x), raising=False)
    X = sequences(2)
    with pytest.raises(UnsupportedModelError, match="alone differs"):
        explain(seeded(lambda: Sandwich(otherwise), dtype=dtype), X, shuffled(X))
