"""Secants of elementwise functions: their value far from, near, and at no difference, in float64 and float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules import secants
from dlshap_core.rules.table import TABLE


@dataclass(frozen=True)
class Case:
    """A function, its secant, and where it is defined (all numbers, or positive ones)."""

    function: Callable[[Tensor], Tensor]
    secant: Callable[[Tensor, Tensor], Tensor]
    is_positive: bool = False
    is_step: bool = False


def from_table(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return TABLE[name].secant  # type: ignore[attr-defined]


CASES = {
    "relu": Case(F.relu, secants.ramp),
    "relu6": Case(F.relu6, secants.relu6),
    "leaky_relu": Case(lambda z: F.leaky_relu(z, 0.3), lambda x, r: secants.leaky_relu(x, r, 0.3)),
    "rrelu": Case(lambda z: F.rrelu(z, 0.1, 0.4), lambda x, r: secants.rrelu(x, r, 0.1, 0.4)),
    "abs": Case(torch.abs, secants.absolute),
    "clamp": Case(lambda z: z.clamp(-0.75, 1.25), lambda x, r: secants.clamp(x, r, -0.75, 1.25)),
    "clamp_min": Case(lambda z: z.clamp_min(0.5), lambda x, r: secants.clamp(x, r, 0.5)),
    "clamp_max": Case(lambda z: z.clamp_max(0.5), lambda x, r: secants.clamp_max(x, r, 0.5)),
    "hardtanh": Case(lambda z: F.hardtanh(z, -2, 0.5), lambda x, r: secants.hardtanh(x, r, -2, 0.5)),
    "hardsigmoid": Case(F.hardsigmoid, secants.hardsigmoid),
    "hardswish": Case(F.hardswish, secants.hardswish),
    "softshrink": Case(lambda z: F.softshrink(z, 0.75), lambda x, r: secants.softshrink(x, r, 0.75)),
    "elu": Case(lambda z: F.elu(z, 1.3), lambda x, r: secants.elu(x, r, 1.3)),
    "celu": Case(lambda z: F.celu(z, 0.7), lambda x, r: secants.celu(x, r, 0.7)),
    "selu": Case(F.selu, secants.selu),
    "exp": Case(torch.exp, secants.exp),
    "exp2": Case(torch.exp2, secants.exp2),
    "expm1": Case(torch.expm1, secants.expm1),
    "square": Case(torch.square, secants.square),
    "cube": Case(lambda z: z**3, lambda x, r: secants.power(x, r, 3)),
    "tanh": Case(torch.tanh, secants.tanh),
    "sigmoid": Case(torch.sigmoid, secants.sigmoid),
    "silu": Case(F.silu, secants.silu),
    "softplus": Case(F.softplus, secants.softplus),
    "softplus_beta": Case(lambda z: F.softplus(z, 2, 30), lambda x, r: secants.softplus(x, r, 2, 30)),
    "log_sigmoid": Case(F.logsigmoid, secants.log_sigmoid),
    "mish": Case(F.mish, secants.mish),
    "erf": Case(torch.erf, secants.erf),
    "gelu": Case(F.gelu, secants.gelu),
    "gelu_tanh": Case(lambda z: F.gelu(z, approximate="tanh"), lambda x, r: secants.gelu(x, r, approximate="tanh")),
    "sin": Case(torch.sin, from_table("sin")),
    "atan": Case(torch.atan, from_table("atan")),
    "asinh": Case(torch.asinh, from_table("asinh")),
    "cosh": Case(torch.cosh, from_table("cosh")),
    "erfc": Case(torch.erfc, from_table("erfc")),
    "log": Case(torch.log, secants.log, is_positive=True),
    "log2": Case(torch.log2, secants.log2, is_positive=True),
    "log10": Case(torch.log10, secants.log10, is_positive=True),
    "log1p": Case(torch.log1p, secants.log1p, is_positive=True),
    "sqrt": Case(torch.sqrt, secants.sqrt, is_positive=True),
    "rsqrt": Case(torch.rsqrt, secants.rsqrt, is_positive=True),
    "reciprocal": Case(torch.reciprocal, secants.reciprocal, is_positive=True),
    "power_1.5": Case(lambda z: z**1.5, lambda x, r: secants.power(x, r, 1.5), is_positive=True),
    "power_12": Case(lambda z: z**12, lambda x, r: secants.power(x, r, 12), is_positive=True),
    "power_-0.3": Case(lambda z: z**-0.3, lambda x, r: secants.power(x, r, -0.3), is_positive=True),
    "lgamma": Case(torch.lgamma, from_table("lgamma"), is_positive=True),
    "sign": Case(torch.sign, from_table("sign"), is_step=True),
    "round": Case(torch.round, from_table("round"), is_step=True),
    "floor": Case(torch.floor, from_table("floor"), is_step=True),
    "hardshrink": Case(F.hardshrink, from_table("hardshrink"), is_step=True),
    "threshold": Case(
        lambda z: F.threshold(z, 0.2, -1.0), lambda x, r: from_table("threshold")(x, r, 0.2, -1.0), is_step=True
    ),
}
# A step's secant between two sides of the step grows without bound as they come closer, in any precision.
WITHOUT_STEPS = [name for name, case in CASES.items() if not case.is_step]
PIECEWISE = ["relu", "leaky_relu", "hardtanh", "relu6", "hardswish", "hardsigmoid", "softshrink", "abs", "clamp"]


def points(case: Case, scale: float, n: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of float64 points that differ by about `scale`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dtype=torch.float64, generator=generator) * 2.5
    step = torch.randn(n, dtype=torch.float64, generator=generator) * scale
    if case.is_positive:
        x, step = x.abs() + 1e-2, step.abs()
    return x, x + step


@pytest.mark.parametrize("name", CASES)
def test_at_large_differences_it_is_the_plain_ratio(name: str) -> None:
    case = CASES[name]
    x, r = points(case, 3.0)
    far = (x - r).abs() > 0.1
    ratio = (case.function(x) - case.function(r)) / (x - r)
    error = (case.secant(x, r) - ratio).abs() / (1 + ratio.abs())
    assert error[far].max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_exchanging_the_sides_changes_nothing(name: str) -> None:
    case = CASES[name]
    for scale in (3.0, 1e-3):
        x, r = points(case, scale)
        torch.testing.assert_close(case.secant(r, x), case.secant(x, r), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_at_no_difference_it_is_the_derivative(name: str) -> None:
    case = CASES[name]
    x, _ = points(case, 1.0)
    leaf = x.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(case.function(leaf).sum(), leaf)
    # Some of torch's own derivatives hold constants rounded to float32 (1/6 of hardsigmoid, 1/alpha of celu).
    torch.testing.assert_close(case.secant(x, x.clone()), derivative, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("scale", "allowed"), [(1e-3, 2e-2), (1e-5, 2e-6), (1e-9, 1e-7)])
@pytest.mark.parametrize("name", WITHOUT_STEPS)
def test_at_small_differences_it_is_the_derivative_in_the_middle(name: str, scale: float, allowed: float) -> None:
    # It errs by d^2 f''' / 24, and by more where a kink lies between the two sides.
    case = CASES[name]
    x, r = points(case, scale)
    middle = ((x + r) / 2).requires_grad_()
    (derivative,) = torch.autograd.grad(case.function(middle).sum(), middle)
    error = (case.secant(x, r) - derivative).abs() / (1e-3 + derivative.abs())
    assert (error < allowed).double().mean() > 0.99


@pytest.mark.parametrize("scale", [3.0, 1e-1, 1e-2, 1e-4, 1e-7, 0.0])
@pytest.mark.parametrize("name", WITHOUT_STEPS)
def test_float32_agrees_with_float64(name: str, scale: float) -> None:
    case = CASES[name]
    x, r = (z.float() for z in points(case, scale))
    exact = case.secant(x.double(), r.double())
    in_float32 = case.secant(x, r)
    assert in_float32.dtype == torch.float32
    assert ((in_float32.double() - exact).abs() / (0.1 + exact.abs())).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_linear_slopes_stay_within_their_pieces(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for scale in (3.0, 1e-6, 1e-12):
        x, r = (z.to(dtype) for z in points(case, scale))
        slopes = case.secant(x, r)
        low, high = (-1.0, 1.0) if name == "abs" else (-0.5, 1.5) if name == "hardswish" else (0.0, 1.0)
        tolerance = 4 * torch.finfo(dtype).eps
        assert slopes.min() >= low - tolerance
        assert slopes.max() <= high + tolerance


def test_relu_by_hand() -> None:
    x = torch.tensor([2.0, -1.0, 3.0, -2.0, 0.0, 0.0, 1e-30])
    r = torch.tensor([1.0, -3.0, -1.0, 2.0, 0.0, 5.0, -1e-30])
    assert secants.ramp(x, r).tolist() == [1, 0, 0.75, 0.5, 0, 1, 0.5]


def test_power_of_a_tensor_of_exponents() -> None:
    x, r, exponents, expected = torch.tensor(
        [[2.0, 3.0, 4.0], [1.0, 3.0, 9.0], [3.0, 2.0, 0.5], [7.0, 6.0, 0.2]], dtype=torch.float64
    )
    torch.testing.assert_close(secants.power(x, r, exponents), expected, rtol=1e-12, atol=0)


def test_clamp_by_tensors_and_open_sides() -> None:
    x, r = torch.tensor([0.0, 5.0]), torch.tensor([4.0, 0.0])
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 2.0])
    assert secants.clamp(x, r, low, high).tolist() == [0.5, pytest.approx(0.2)]
    assert secants.clamp(x, r, max=2.0).tolist() == [0.5, pytest.approx(0.4)]


@pytest.mark.parametrize("name", ["log", "sqrt", "rsqrt", "reciprocal", "power_-0.3"])
def test_where_a_function_is_undefined_nothing_is_passed_back(name: str) -> None:
    zero = torch.zeros(3)
    assert (CASES[name].secant(zero, zero) == 0).all()
    if name in ("log", "sqrt", "rsqrt"):
        assert (CASES[name].secant(-torch.ones(3), torch.ones(3)) == 0).all()


def test_log_sigmoid_has_no_threshold_where_softplus_has_one() -> None:
    x = torch.tensor([-20.1], dtype=torch.float64)
    r = torch.tensor([-19.9], dtype=torch.float64)
    ratio = (x.exp().log1p() - r.exp().log1p()) / (x - r)
    torch.testing.assert_close(1 - secants.log_sigmoid(x, r), ratio, rtol=1e-4, atol=0)


def test_extreme_arguments_give_finite_slopes() -> None:
    x = torch.tensor([-200.0, -90.0, 0.0, 80.0, 1e-30, 300.0])
    for name in ("sigmoid", "silu", "softplus", "mish", "gelu", "tanh", "elu", "log_sigmoid", "erf"):
        for r in (x, x.flip(0), x + 1e-4):
            slopes = CASES[name].secant(x, r)
            assert slopes.isfinite().all(), name
            assert slopes.abs().max() < 2, name


@pytest.mark.parametrize("name", sorted(name for name, case in CASES.items() if not case.is_positive))
def test_broadcasts_over_references(name: str) -> None:
    case = CASES[name]
    x, r = points(case, 1.0, n=12)
    x, r = x[:3, None], r.reshape(3, 4)
    torch.testing.assert_close(case.secant(x, r), case.secant(x.expand(3, 4).contiguous(), r), rtol=0, atol=0)


def test_of_levels_where_a_difference_is_of_infinities() -> None:
    x, r = torch.tensor([math.nan, 2.0, math.nan, math.inf]), torch.tensor([1.0, math.nan, math.nan, -1.0])
    assert secants.jump(x, r, 0.0, 1.0, 1.0).tolist() == [0.0] * 4
