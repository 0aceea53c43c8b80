"""Complex numbers: against the same written out in real ones, in float64, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import UnsupportedModelError, audit
from tests.core.toolbox import (
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    require_twins,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

Function = Callable[[Tensor], Tensor]
WIDTH, CHANNELS = 36, 4
FREQUENCIES = torch.outer(torch.arange(WIDTH).double(), torch.tensor([1.0, 0.1], dtype=torch.float64))
FILTER = torch.sin(torch.arange(CHANNELS * WIDTH).double()).reshape(CHANNELS, WIDTH)


def number(z: Tensor) -> Tensor:
    """(B, 2, L) complex of (B, 4, L)."""
    return torch.complex(z[:, :2], z[:, 2:])


def parts(z: Tensor) -> tuple[Tensor, Tensor]:
    return z[:, :2], z[:, 2:]


def both(c: Tensor) -> Tensor:
    return torch.view_as_real(c).flatten(1)


def side_by_side(real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.stack([real, imaginary], -1).flatten(1)


def fft_convolution(z: Tensor) -> Tensor:
    n = 2 * WIDTH
    return torch.fft.irfft(torch.fft.rfft(z, n) * torch.fft.rfft(FILTER.to(z), n), n)[..., :WIDTH]


def causal_convolution(z: Tensor) -> Tensor:
    return F.conv1d(F.pad(z, (WIDTH - 1, 0)), FILTER.to(z).flip(-1)[:, None], groups=CHANNELS)


def rotary(z: Tensor) -> Tensor:
    """Of (B, 4, L): two pairs of channels, each turned by its position."""
    turns = torch.polar(torch.ones_like(FREQUENCIES), FREQUENCIES)
    pairs = torch.view_as_complex(z.mT.reshape(len(z), WIDTH, 2, 2).contiguous())
    return torch.view_as_real(pairs * turns).flatten(2).type_as(z)


def rotary_by_hand(z: Tensor) -> Tensor:
    a, b = z.mT.reshape(len(z), WIDTH, 2, 2).unbind(-1)
    cos, sin = FREQUENCIES.cos().to(z), FREQUENCIES.sin().to(z)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(2)


def attention(turned: Function) -> Function:
    return lambda z: F.scaled_dot_product_attention(turned(z), turned(z.tanh()), z.mT)


def correlation(z: Tensor) -> Tensor:
    """A product of two spectra that vary."""
    return torch.fft.irfft(torch.fft.rfft(z) * torch.fft.rfft(z.tanh()).conj(), WIDTH)


def correlation_by_hand(z: Tensor) -> Tensor:
    n_frequencies = WIDTH // 2 + 1
    angles = torch.outer(torch.arange(n_frequencies), torch.arange(WIDTH)).double() * 2 * math.pi / WIDTH
    cos, sin = angles.cos().to(z), angles.sin().to(z)
    real, imaginary = z @ cos.T, -(z @ sin.T)
    real_t, imaginary_t = z.tanh() @ cos.T, -(z.tanh() @ sin.T)
    product = (real * real_t + imaginary * imaginary_t, imaginary * real_t - real * imaginary_t)
    weights = torch.full((n_frequencies,), 2.0).to(z)
    weights[[0, -1]] = 1
    return ((product[0] * weights) @ cos - (product[1] * weights) @ sin) / WIDTH


def quotient_by_hand(z: Tensor) -> Tensor:
    a, b = z[:, :2] + 3, z[:, 2:]
    size = a.square() + b.square()
    return side_by_side(a / size + 2 * (b / size), 2 * (a / size) - b / size)


TWINS: dict[str, tuple[Function, Function]] = {
    "convolution by FFT": (fft_convolution, causal_convolution),
    "gated convolution by FFT": (
        lambda z: torch.tanh(fft_convolution(z * z.sigmoid())) * z,
        lambda z: torch.tanh(causal_convolution(z * z.sigmoid())) * z,
    ),
    "rotary embedding": (rotary, rotary_by_hand),
    "attention with rotary embeddings": (attention(rotary), attention(rotary_by_hand)),
    "product of spectra": (correlation, correlation_by_hand),
    "two axes, there and back": (lambda z: torch.fft.ifft2(torch.fft.fft2(z)).real, lambda z: z),
    "short-time spectra, there and back": (
        lambda z: torch.istft(
            torch.stft(z.flatten(0, 1), 8, window=torch.ones(8).to(z), return_complex=True),
            8,
            window=torch.ones(8).to(z),
        ).unflatten(0, z.shape[:2]),
        lambda z: z,
    ),
    "size": (lambda z: number(z).abs(), lambda z: (parts(z)[0].square() + parts(z)[1].square()).sqrt()),
    "norm": (
        lambda z: torch.linalg.vector_norm(number(z), dim=-1),
        lambda z: z.square().sum(-1).unflatten(1, (2, 2)).sum(1).sqrt(),
    ),
    "exponential": (
        lambda z: both(number(z).exp()),
        lambda z: side_by_side(*(parts(z)[0].exp() * f(parts(z)[1]) for f in (torch.cos, torch.sin))),
    ),
    "constant over it": (lambda z: both((1 + 2j) / (number(z) + 3)), quotient_by_hand),
    "square": (
        lambda z: both(number(z) ** 2),
        lambda z: side_by_side(parts(z)[0] * parts(z)[0] - parts(z)[1] * parts(z)[1], 2 * (parts(z)[0] * parts(z)[1])),
    ),
    "matrix product": (
        lambda z: (number(z) @ number(z).mH).real,
        lambda z: parts(z)[0] @ parts(z)[0].mT + parts(z)[1] @ parts(z)[1].mT,
    ),
    "a real factor": (lambda z: (z[:, :2].tanh() * number(z)).imag, lambda z: z[:, :2].tanh() * z[:, 2:]),
    "over a real one": (lambda z: (number(z) / z[:, :2].exp()).imag, lambda z: z[:, 2:] / z[:, :2].exp()),
    "mask": (
        lambda z: torch.where(z[:, :2] > 0, number(z), 1j * number(z)).imag,
        lambda z: torch.where(z[:, :2] > 0, z[:, 2:], z[:, :2]),
    ),
    "assignment, sums, in place": (
        lambda z: number(z).index_fill(1, torch.tensor([1]), 0).cumsum(-1).mul_(1j).imag,
        lambda z: (z[:, :2] * torch.tensor([[1.0], [0.0]]).to(z)).cumsum(-1),
    ),
}


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3)
    return X, shuffled(X, 4)


def model(function: Function) -> nn.Module:
    return seeded(lambda: Sandwich(function, CHANNELS))


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_multipliers(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    first, second = map(model, TWINS[name])
    exact = require_twins(first, second, *pairs)
    in_float32 = explain(first.float(), *pairs)
    assert relative_difference(in_float32.hypothetical, exact.hypothetical) < 1e-5


@pytest.mark.parametrize(
    "name", ["gated convolution by FFT", "attention with rotary embeddings", "product of spectra", "size"]
)
def test_float32_keeps_its_digits_where_nothing_or_little_changes(name: str) -> None:
    X = sequences(2)
    references = X[:, None].repeat(1, 2, 1, 1)
    references[:, 1, :, 17] = references[:, 1, :, 17].roll(1, 1)
    function = TWINS[name][0]
    exact = multipliers(model(function), X, references)
    assert relative_difference(multipliers(model(function).float(), X, references), exact) < 1e-5


def test_angles_are_integrated(pairs: tuple[Tensor, Tensor]) -> None:
    assert worst_delta(explain(model(lambda z: (number(z) + 9).angle()), *pairs)) < 1e-6


@pytest.mark.parametrize(
    "function",
    [
        lambda z: number(z).sigmoid().real,
        lambda z: number(z).log().real,
        lambda z: number(z).sgn().real,
        lambda z: number(z).prod(-1).real,
        lambda z: number(z).var(-1),
        lambda z: (number(z) ** 0.5).real,
    ],
    ids=["sigmoid", "log", "sgn", "prod", "var", "pow"],
)
def test_what_has_no_rule_is_refused_by_name(
    function: Function, pairs: tuple[Tensor, Tensor], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    with pytest.raises(
        UnsupportedModelError, match=rf"^operation '{name}' in the model \(Sandwich\).* complex numbers"
    ):
        explain(model(function), *pairs)


def test_a_transform_along_the_batch_is_refused(pairs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'fft_fft' .* goes along the rows of the batch"):
        explain(model(lambda z: torch.fft.fft(z, dim=0).real), *pairs)


class Filtered(nn.Module):
    """Complex weights and a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, CHANNELS, 5)
        self.weight = nn.Parameter(torch.complex(torch.randn(CHANNELS, 19), torch.randn(CHANNELS, 19)))
        self.register_buffer("turns", torch.polar(torch.ones(19), torch.arange(19.0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.conv(x)) * self.weight * self.turns, WIDTH).relu().mean((1, 2))


def test_complex_weights_stay_complex_and_are_given_back(pairs: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net = Filtered().eval()
    before = {name: (value, value.clone()) for name, value in net.state_dict(keep_vars=True).items()}
    in_float32, in_float64 = explain(net, *pairs), explain(net, *pairs, dtype=torch.float64)
    assert worst_delta(in_float64) < 1e-12
    assert relative_difference(in_float32.hypothetical, in_float64.hypothetical) < 1e-5
    for name, value in net.state_dict(keep_vars=True).items():
        tensor, values = before[name]
        assert value is tensor
        assert torch.equal(value, values)


def test_an_audit_names_the_treatments(pairs: tuple[Tensor, Tensor]) -> None:
    treatments = {
        operation.operation: operation.treatment for operation in audit(model(correlation), pairs[0]).operations
    }
    assert treatments["fft_rfft"] == treatments["fft_irfft"] == treatments["conj"] == "linear"
    assert treatments["mul"] == "product: midpoint"
