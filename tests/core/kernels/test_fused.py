"""The one-pass rules of a CPU give what the rules written with torch's operations give, and leave models in peace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.kernels import fused, threads
from dlshap_core.rules import maxima, normalization, secants
from tests.core.toolbox import explain, relative_difference, seeded, sequences, shuffled

L = 40
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}

# Frozen, as the weights of a model are meanwhile: layers whose weights vary are unrolled.
LSTMS = {
    dtype: seeded(lambda: nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True), dtype=dtype).requires_grad_(False)
    for dtype in TOLERANCE
}

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place": lambda z: z.clone().relu_(),
    "leaky relu": lambda z: F.leaky_relu(z, 0.2),
    "prelu": lambda z: F.prelu(z, torch.linspace(-0.5, 1.5, 6).to(z)),
    "gelu": F.gelu,
    "tanh gelu": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda z: F.softplus(z, 2.0),
    "log sigmoid": F.logsigmoid,
    "mish": F.mish,
    "erf": torch.erf,
    "elu": lambda z: F.elu(z, 0.7),
    "celu in place": lambda z: F.celu_(z.clone(), 0.4),
    "selu": F.selu,
    "clamp": lambda z: z.clamp(max=0.2),
    "clamp at one bound": lambda z: z.clamp_min(-0.1) + z.clamp_max(0.2),
    "clamp by name": lambda z: torch.clamp(input=z, min=-0.3, max=0.2),
    "clamp at a tensor": lambda z: z.clamp(torch.tensor(-0.1, dtype=z.dtype)),
    "absolute": torch.abs,
    "relu6": lambda z: F.relu6(9 * z),
    "hardtanh": lambda z: F.hardtanh(z, -0.2, 0.3),
    "hard sigmoid": lambda z: F.hardsigmoid(5 * z),
    "hard swish": lambda z: F.hardswish(5 * z),
    "softshrink": lambda z: F.softshrink(z, 0.1),
    "softmax of positions": lambda z: z.softmax(-1),
    "softmax of channels": lambda z: z.transpose(1, 2).softmax(-1).transpose(1, 2),
    "softmax of twos": lambda z: z.unflatten(-1, (20, 2)).softmax(-1).flatten(-2),
    "softmax of many channels": lambda z: z.repeat(1, 4, 1).mul(torch.arange(24).view(-1, 1)).softmax(1)[:, 3:9],
    "softmax of a middle axis": lambda z: z.unflatten(-1, (4, 10)).softmax(2).flatten(-2),
    "softmax of positions, of few channels": lambda z: z.mT.softmax(1).mT,
    "masked softmax of twos": lambda z: (
        z.masked_fill(torch.arange(z.shape[-1]) % 4 == 0, -torch.inf).unflatten(-1, (20, 2)).softmax(-1).flatten(-2)
    ),
    "masked softmax": lambda z: z.masked_fill(torch.arange(z.shape[-1]) % 3 == 0, -torch.inf).softmax(-1),
    "far logits": lambda z: (60 * z).softmax(-1),
    "softmax overwritten": lambda z: z.softmax(-1).mul_(torch.arange(z.shape[-1])),
    "softmax of one sequence at a time": lambda z: torch.stack([one.mean(0).softmax(0) for one in z]),
    "max of one sequence at a time": lambda z: torch.stack([one.mean(0).amax(0, keepdim=True) for one in z]),
    "max-pooling": lambda z: F.max_pool1d(z, 3, stride=2, padding=1),
    "adaptive max-pooling": lambda z: F.adaptive_max_pool1d(z, 7),
    "max-pooling in two dimensions": lambda z: F.max_pool2d(z, (2, 3)),
    "max over positions": lambda z: z.max(dim=-1, keepdim=True).values,
    "max over channels": lambda z: z.amax(1),
    "product": lambda z: z * torch.tanh(z.flip(1)),
    "product overwritten": lambda z: (z.sigmoid() * z).mul_(torch.arange(z.shape[-1])),
    "product with a gate": lambda z: z * torch.sigmoid(3 * z.mean(-1, keepdim=True)),
    "gate first": lambda z: z.sum(-1, True).tanh() * z,
    "layer norm": lambda z: F.layer_norm(z.mT, (6,), torch.arange(6.0).to(z), torch.ones(6).to(z)).mT,
    "layer norm of two axes": lambda z: F.layer_norm(z, (6, L)),
    "RMS norm": lambda z: F.rms_norm(z, (L,), torch.arange(1.0 * L).to(z)),
    "quotient": lambda z: z / (1.5 + z.flip(1).square()),
    "quotient by one number for each position": lambda z: z / (z.square().sum(1, keepdim=True) + 0.1),
    "quotient by one number for each channel": lambda z: (z.exp() / z.exp().sum(-1, keepdim=True)).mul_(3),
    "one number over a number for each position": lambda z: z.mean(1, keepdim=True) / (2 + z.sigmoid()),
    "quotient of what is far apart": lambda z: z / (1e-3 + 50 * z.flip(-1).relu()),
    "group norm": lambda z: F.group_norm(z, 2, torch.arange(6.0).to(z), torch.ones(6).to(z)),
    "group norm of two axes": lambda z: F.group_norm(z.unflatten(-1, (5, 8)), 3).flatten(-2),
    "instance norm": lambda z: F.instance_norm(z.square(), eps=0.1),
    "LSTM": lambda z: LSTMS[z.dtype](z.mT)[0].mT,
    "nothing": lambda z: torch.cat([z[:, :0].relu(), F.gelu(z[:, :0]), z[:, :0].softmax(-1), z], 1),
    "max of nothing": lambda z: torch.cat([z[:, :0].amax(-1, True).expand(-1, -1, L), z], 1),
    "no rows": lambda z: z + z[:0].relu().sum() + F.gelu(z[:0]).sum() + z[:0].softmax(-1).sum(),
    "merged rows": lambda z: z.flatten(0, 1).softmax(-1).unflatten(0, (-1, z.shape[1])),
}


class Between(nn.Module):
    """A function between a convolution and a dense layer, with a flat part where many activations are equal."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem = nn.Conv1d(4, 6, 5, padding=2)
        with torch.no_grad():
            n_outputs = function(torch.zeros(2, 6, L)).flatten(1).shape[1]
        self.head = nn.Linear(n_outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        hidden = torch.cat([hidden[:, :4], hidden[:, 4:].clamp(-0.1, 0.1)], dim=1)
        return self.head(self.function(hidden).flatten(1))


def multipliers(model: nn.Module, X: Tensor, references: Tensor, targets: Any = "all", **options: int) -> Tensor:
    result = explain(model, X, references, targets=targets, **options).multipliers
    assert result is not None
    return result


def pairs() -> tuple[Tensor, Tensor]:
    """Sequences, and references of which one is the sequence itself and one differs from it by a base."""
    X = sequences(3, L, seed=1)
    references = shuffled(X, 5)
    references[:, 0] = X
    references[:, 1] = X
    references[:, 1, :, 7] = references[:, 1, :, 7].roll(1, 1)
    return X, references


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_with_torchs_own_operations(name: str, dtype: torch.dtype) -> None:
    X, references = pairs()
    model = seeded(lambda: Between(FUNCTIONS[name]), dtype=dtype)
    for targets in ([1], "all"):  # several keep their multipliers
        with mock.patch.object(fused, "takes", return_value=False):
            expected = multipliers(model, X, references, targets)
        for batch_size in (2, 15) if targets == "all" else (15,):
            found = multipliers(model, X, references, targets, batch_size=batch_size)
            assert relative_difference(found, expected) < TOLERANCE[dtype], (targets, batch_size)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lone_sequence_in_company_is_not_repeated(name: str) -> None:
    """A row of padding goes with it, as maxima need, and not a row for each reference."""
    if name in ("no rows", "merged rows") or name.endswith("one sequence at a time"):
        pytest.skip("its rows cannot be matched")
    X, references = pairs()
    model = seeded(lambda: Between(lambda z: FUNCTIONS[name](F.max_pool1d(z, 1))), dtype=torch.float32)
    explain(model, X[:1], references[:1], targets=[1], batch_size=5)
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    explain(model, X[:1], references[:1], targets=[1], batch_size=5)
    handle.remove()
    assert seen.count(2) == seen.count(5) > 0  # twice where it overwrites what is kept


@pytest.mark.parametrize("name", ["relu", "leaky relu", "max-pooling", "softmax of positions"])
def test_one_target_and_several_have_the_same_multipliers(name: str) -> None:
    X, references = pairs()
    model = seeded(lambda: Between(FUNCTIONS[name]))
    together = multipliers(model, X, references)
    for target in range(3):
        alone = explain(model, X, references, targets=[target]).multipliers
        assert alone is not None
        assert relative_difference(alone[:, 0], together[:, target]) < 1e-12


@pytest.mark.parametrize("name", ["relu", "gelu", "softmax of positions", "max-pooling"])
def test_threads_do_not_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SMALLEST_PART", 16)
    X, references = pairs()
    model = seeded(lambda: Between(FUNCTIONS[name]), dtype=torch.float32)
    found = []
    for n_threads in (1, 2, 3, 7):
        with mock.patch.object(torch, "get_num_threads", return_value=n_threads):
            found.append(multipliers(model, X, references, batch_size=15))
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_an_lstm_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its products are where they are large."""
    if fused.onednn_linear is None:
        pytest.skip("this torch has none")
    X, references = pairs()
    model = seeded(lambda: Between(FUNCTIONS["LSTM"]), dtype=torch.float32)
    expected = multipliers(model, X, references, [1])
    monkeypatch.setattr(fused, "_SMALLEST_PRODUCT", 1)
    with mock.patch.object(fused, "onednn_linear", wraps=fused.onednn_linear) as linear:
        found = multipliers(model, X, references, [1])
    assert linear.called
    assert relative_difference(found, expected) < TOLERANCE[torch.float32]


def overwritten(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same, with its input overwritten afterwards."""

    def call(z: Tensor) -> Tensor:
        z = z.clone()
        result = function(z)
        z.mul_(0).add_(3)
        return result

    return call


@pytest.mark.parametrize("name", ["relu", "leaky relu", "softmax of positions", "max-pooling", "gelu"])
def test_a_model_may_overwrite_what_a_rule_needs_later(name: str) -> None:
    X, references = pairs()
    expected = multipliers(seeded(lambda: Between(FUNCTIONS[name])), X, references)
    model = seeded(lambda: Between(overwritten(FUNCTIONS[name])))
    assert torch.equal(multipliers(model, X, references), expected)
    alone = multipliers(model, X, references, [1])
    assert torch.equal(alone, multipliers(seeded(lambda: Between(FUNCTIONS[name])), X, references, [1]))


def test_a_product_in_place_needs_no_second_try() -> None:
    X, references = pairs()
    n_calls = []
    for multiply in (torch.mul, Tensor.mul_):
        inner = mock.Mock(side_effect=lambda z, multiply=multiply: multiply(z.tanh(), z))
        multipliers(seeded(lambda inner=inner: Between(inner)), X, references, [1], batch_size=15)
        n_calls.append(inner.call_count)
    assert n_calls[0] == n_calls[1]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.05, 3.0, 40.0])
@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sigmoid"])
def test_secants_in_single_precision(name: str, spread: float) -> None:
    """Against float64, with equal and close activations, and those beyond which the functions are flat."""
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.cat([torch.randn(5000, generator=generator) * 3, torch.linspace(-30, 30, 5000)])
        .expand(2, -1)
        .contiguous()
    )
    r = (x + spread * torch.randn(x.shape, generator=generator)).repeat(2, 1)
    kernel: fused.InSingle = getattr(fused, name.upper())
    values = [] if kernel.function is None else [kernel.function(r)]
    found = kernel(torch.full_like(r, 2.0), x, r, *values)
    expected = 2 * getattr(secants, name)(x.double().repeat_interleave(2, 0), r.double())
    assert (found - expected).abs().max() < 2e-5


def test_secants_of_what_is_not_finite() -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-38, 0.0, -0.0])
    x, r = (z.reshape(1, -1) for z in (values.repeat_interleave(8), values.repeat(8)))
    one = torch.ones_like(r)
    for name in ("tanh", "sigmoid"):
        kernel: fused.InSingle = getattr(fused, name.upper())
        expected = getattr(secants, name)(x, r)
        assert torch.allclose(kernel(one, x, r, getattr(torch, name)(r)), expected, atol=1e-6, equal_nan=True)
    for found in (fused.GELU(one, x, r), fused.SILU(one, x, r)):
        assert found.isfinite().all()
        assert found[0, 27] == pytest.approx(1)  # both 3e38
        assert found[0, 36] == 0  # both -3e38
        assert found[0, [45, 46, 54, 55, 63]].tolist() == pytest.approx([0.5] * 5, abs=1e-6)  # both near 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("kernel", "secant"),
    [
        (fused.relu6, secants.relu6),
        (fused.hardtanh, secants.hardtanh),
        (fused.hardswish, secants.hardswish),
        (partial(fused.clamp, min=-3.0), partial(secants.clamp, min=-3.0)),
        (partial(fused.clamp_max, max=0.0), partial(secants.clamp, max=0.0)),
    ],
    ids=["relu6", "hardtanh", "hardswish", "clamp_min", "clamp_max"],
)
def test_kinks(kernel: Callable[..., Tensor], secant: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Against the formula, at the kinks and beside them, at equal and close activations, and at huge ones."""
    kinks = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], dtype=dtype)
    values = torch.cat(
        [kinks, kinks * (1 + 3e-7), kinks * (1 - 1e-3), torch.tensor([1e30, -1e30, 4.5, -2.0]).to(dtype)]
    )
    x, r = (z.flatten().unsqueeze(0).contiguous() for z in torch.meshgrid(values, values, indexing="ij"))
    gradient = torch.linspace(1, 2, x.numel(), dtype=dtype).unsqueeze(0)
    torch.testing.assert_close(kernel(gradient, x, r), gradient * secant(x, r), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kernel(None, x, r), secant(x, r), rtol=1e-6, atol=1e-6)
    broken = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 4, dtype=dtype).unsqueeze(0)
    torch.testing.assert_close(
        kernel(None, broken, torch.ones_like(broken)), secant(broken, torch.ones_like(broken)), equal_nan=True
    )


def test_a_relu_of_equal_activations() -> None:
    """At x = r: 1 above zero, 0 at and below it; -0 is 0, and the smallest numbers do no harm."""
    values = torch.tensor([2.0, 1e-30, 0.0, -0.0, -1e-30, -2.0, 3e38, -3e38]).repeat(2).reshape(1, -1)
    gradient = torch.ones_like(values)
    assert fused.relu(gradient, values, values).tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0] * 2]
    mixed = fused.relu(gradient, values, -values)  # the positive share of [-v, v] is a half
    assert mixed[0, [0, 1, 4, 5]].tolist() == [0.5] * 4


WINDOWS = [  # length, then the arguments of max_pool1d
    (7, 1, 1),
    (12, 2, 2),
    (30, 4, 4),
    (40, 13, 13),
    (20, 3, 1, 1),
    (21, 3, 2, 1),
    (20, 2, 5),
    (33, 4, 3, 2, 2),
    (14, 5, 1, 2, 4),
    (10, 4, 4, 0, 1, True),
    (11, 3, 2, 1, 1, True),
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pooling_by_windows_is_that_by_places(window: tuple[int, ...], dtype: torch.dtype) -> None:
    """With many equal maxima, masked inputs and whole masked windows, and a little rounding between the two sides."""
    length, size, stride, *rest = window
    padding, dilation, ceil_mode = (*rest, *(0, 1, False)[len(rest) :])
    generator = torch.Generator().manual_seed(size)
    x, r = (torch.randn(n, length, 19, generator=generator, dtype=dtype).mul(2).round() for n in (2, 6))
    r[0] = x[0]
    r[1] = x[0] * (1 + 4 * torch.finfo(dtype).eps)
    for side in (x, r):
        side[-1, :, :5] = -torch.inf
        side[-1, ::3, 5:8] = -1e9
    found = [
        F.max_pool1d_with_indices(z.mT, size, stride, padding, dilation, bool(ceil_mode))[1].mT.contiguous()
        for z in (x, r)
    ]
    gradient = torch.randn(6, found[1].shape[1], 19, generator=generator, dtype=dtype)
    limits = (maxima.rounding(dtype), maxima._stands_for_infinity(dtype))
    expected = fused.route(gradient, x, r, *found, 1, *limits)
    assert torch.equal(fused.route_of_windows(gradient, x, r, size, stride, padding, dilation, *limits), expected)
    assert expected.isfinite().all()
    assert expected.count_nonzero() > gradient.numel() / 4


def test_empty_windows_are_refused() -> None:
    """Of which torch says that they have their maximum beyond the input."""
    model = nn.Sequential(nn.Conv1d(4, 16, L), nn.ZeroPad1d((0, 1)), nn.MaxPool1d(2, 1, 1, 3), nn.ReLU(), nn.Flatten())
    X = sequences(2, L, seed=1)
    with pytest.raises(UnsupportedModelError, match="a dilation of 3 leaves windows empty in an input of 2"):
        explain(seeded(lambda: model), X, shuffled(X, 2))


@pytest.mark.parametrize("n_groups", [1, 3, 6])
def test_norms_beside_a_large_mean(n_groups: int) -> None:
    """Of sequences and references, where the channels are last in memory."""
    X, references = pairs()
    found, exact = (
        explain(seeded(lambda: Between(lambda z: F.group_norm(z + 30, n_groups)), dtype=dtype), X, references)
        for dtype in (torch.float32, torch.float64)
    )
    assert relative_difference(found.prediction, exact.prediction) < 5e-5
    assert relative_difference(found.reference_prediction, exact.reference_prediction) < 5e-5


@pytest.mark.parametrize("shape", [(8, 9), (8, 3, 3), (8, 3, 1, 3)])
def test_values_of_norms_beside_a_large_mean(shape: tuple[int, ...]) -> None:
    """In any number of axes, the channels being last in memory."""
    z = 1000 + torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    z = z.movedim(1, -1).contiguous().movedim(-1, 1)
    found, exact = (normalization.standardise_groups(part, 2, 1e-5) for part in (z, z.double()))
    assert relative_difference(found, exact) < 1e-3


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_groups_of_channels(offset: float) -> None:
    """Against the rule in float64; beside a large mean, and of one position, of which nothing is left."""
    generator = torch.Generator().manual_seed(0)
    for length, n_groups in ((70, 4), (200, 12), (1, 3)):
        x, r = (torch.randn(n, length, 12, generator=generator) + offset for n in (2, 6))
        r[0] = x[0]
        gradient, weight = torch.randn(6, length, 12, generator=generator), torch.linspace(-1, 2, 12)
        statistics = [part for z in (x, r) for part in fused.group_norm(z, n_groups, 1e-3, None, None)[1:]]
        found = fused.normalise_groups(gradient, x, r, weight, tuple(statistics))

        def in_groups(z: Tensor, n_groups: int = n_groups) -> Tensor:
            return z.double().mT.unflatten(1, (n_groups, -1))

        flowing, *sides = map(in_groups, (gradient * weight, x, r))
        expected = normalization._norm_by_torch(
            flowing, sides[0].repeat_interleave(3, 0), sides[1], None, 2, 1e-3, True
        )
        assert relative_difference(found.mT.double(), expected.flatten(1, 2)) < (1e-5 if offset == 0 else 1e-3)
        means = in_groups(r).mean((-2, -1))
        assert (statistics[2] - means).abs().max() < 2e-7 * r.abs().max()
