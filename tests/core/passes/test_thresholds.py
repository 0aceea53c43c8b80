"""Where a rule changes its formula at a threshold, both give the same multipliers on either side of it, in float32."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.softmax import SERIES_BELOW
from dlshap_core.rules import secants
from dlshap_core.rules.arithmetic import FAR, quotient_multipliers
from tests.core.toolbox import Apply, Sandwich, multipliers, relative_difference, seeded, sequences, shuffled

SIDES = [0.5, 0.99, 1.01, 2.0]  # times the threshold
SMOOTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "erf": secants.erf,
    "softplus": secants.softplus,
    "gelu": secants.gelu,
    "mish": secants.mish,
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SMOOTH)
def test_the_step_from_which_on_a_secant_is_a_ratio(name: str, side: float) -> None:
    r = torch.linspace(-3, 3, 101)
    share, largest = secants.STEPS[torch.float32]
    x = r + side * (share * r.abs().clamp_min(0.5)).clamp(max=largest)
    exact = SMOOTH[name](x.double(), r.double())
    assert relative_difference(SMOOTH[name](x, r), exact) < 1e-5


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("exponent", [3.0, -0.3, 1.7])
def test_the_relative_step_of_a_power(exponent: float, side: float) -> None:
    r = torch.linspace(0.5, 2, 61)
    x = r * (1 + side * secants._RELATIVE_STEP[torch.float32])
    exact = secants.power(x.double(), r.double(), exponent)
    assert relative_difference(secants.power(x, r, exponent), exact) < 1e-5


@pytest.mark.parametrize("side", SIDES)
def test_the_ratio_of_denominators_from_which_on_they_are_far(side: float) -> None:
    b_r = torch.linspace(0.5, 2, 31)
    b_x = side * FAR * b_r
    a_r, a_x = torch.linspace(-1, 1, 31), torch.linspace(3, 200, 31)
    m_a, m_b = (z.double() for z in quotient_multipliers(a_x, b_x, a_r, b_r))
    a_x, b_x, a_r, b_r = (z.double() for z in (a_x, b_x, a_r, b_r))
    exact = quotient_multipliers(a_x, b_x, a_r, b_r)
    assert relative_difference(m_a, exact[0]) < 1e-6
    assert relative_difference(m_b, exact[1]) < 1e-6
    change = a_x / b_x - a_r / b_r
    assert relative_difference(m_a * (a_x - a_r) + m_b * (b_x - b_r), change) < 1e-4  # its parts cancel


QUOTIENTS: dict[str, Callable[[Tensor], Tensor]] = {  # whose denominators have products beyond float32
    "of large exponentials": lambda z: (z + 60).exp() / (z + 60).exp().sum(1, keepdim=True),
    "of small exponentials": lambda z: (z - 55).exp() / (z - 55).exp().sum(1, keepdim=True),
    "by a reciprocal": lambda z: (z + 45).exp() * (1 / (z + 45).exp().sum(1, keepdim=True)),
    "by a root": lambda z: 1e13 * z * torch.rsqrt((1e13 * z).square().sum(1, keepdim=True) + 1e26),
    "by the deviation of a group": lambda z: F.group_norm(1e-12 * z, 1, eps=1e-30),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_denominators_whose_product_is_no_number(name: str) -> None:
    X = sequences(2)
    model = seeded(lambda: Sandwich(QUOTIENTS[name]))
    exact = multipliers(model, X, shuffled(X))
    assert relative_difference(multipliers(model.float(), X, shuffled(X)), exact) < 1e-4


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_the_step_from_which_on_an_exponential_is_no_series(name: str, side: float, is_fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1, 4, 30, generator=generator)
    references = (X + side * SERIES_BELOW * torch.randn(1, 4, 30, generator=generator).sign()).unsqueeze(1)
    weights = torch.linspace(-1, 2, 30)

    def forward(z: Tensor) -> Tensor:
        y = getattr(torch, name)(z, -1)
        return (y * weights.to(y.dtype) if name != "logsumexp" else y).flatten(1).sum(1, keepdim=True)

    with mock.patch.object(fused, "takes", fused.takes if is_fused else lambda *_: False):
        found, exact = (
            multipliers(Apply(forward), X.to(dtype), references.to(dtype), dtype=dtype)
            for dtype in (torch.float32, torch.float64)
        )
    assert relative_difference(found, exact) < 1e-5
