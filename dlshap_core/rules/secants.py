"""Rules of elementwise functions: the rescale rule of DeepLIFT, as closed forms.

For y = f(x) taken element by element the multiplier is the secant (Shrikumar et al. 2017)

    m = (f(x) - f(r)) / (x - r),

so m (x - r) is the difference of outputs. At x = r it is a removable singularity with the value f'(x). Dividing two
small differences loses digits there (the two passes differ by rounding, so equal inputs are rarely bit-equal), hence
each function gets a form without cancellation: piecewise functions by how much of [r, x] lies in each piece, smooth
ones by an identity for the difference, or by averaging f' over [r, x] with two or three Gauss nodes where x - r is
small.

Every secant takes (observed, reference, *rest) like the torch function it stands for; shapes broadcast.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules.gradients import gauss_legendre

SELU = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0  # its constants as those of `elu`
_SQRT_HALF = math.sqrt(0.5)


def finite_or_zero(multiplier: Tensor) -> Tensor:
    """Zero where a multiplier is not finite: the function is undefined there, so nothing can be passed back through it.

    Such elements are either masked out downstream (0 is right) or make the prediction itself not finite, which is an
    error of its own.
    """
    return torch.where(multiplier.isfinite(), multiplier, 0.0)


def ramp(x: Tensor, r: Tensor) -> Tensor:
    """Secant of max(x, 0): the share of [r, x] that is positive; f'(0) = 0.

    max(x, r) / |x - r| is that share where the signs differ, at least 1 where both are positive, and at most 0 where
    neither is: clamped to [0, 1] it is the share everywhere, without cancellation. The smallest normal number beside
    |x - r| is nothing unless that is 0.
    """
    distance = (x - r).abs_().add_(torch.finfo(r.dtype).tiny)
    return torch.maximum(x, r).div_(distance).clamp_(0, 1)


def leaky_relu(x: Tensor, r: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Slope 1 above 0 and `negative_slope` below, each for its share of [r, x]."""
    positive = ramp(x, r)
    return positive + (1 - positive) * negative_slope


def rrelu(x: Tensor, r: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """In eval mode a leaky ReLU with the mean of the slopes; while training it is random and refused."""
    return leaky_relu(x, r, (lower + upper) / 2)


def absolute(x: Tensor, r: Tensor) -> Tensor:
    """|x| = max(x, 0) + max(-x, 0); f'(0) = 0."""
    return ramp(x, r) - ramp(-x, -r)


def clamp(x: Tensor, r: Tensor, min: float | Tensor | None = None, max: float | Tensor | None = None) -> Tensor:
    """The share of [r, x] that lies between the bounds; f' is 1 at a bound, as torch's."""
    difference = x - r
    clamped_x, clamped_r = x.clamp(min, max), r.clamp(min, max)  # type: ignore[arg-type]
    return torch.where(difference == 0, (clamped_x == x).to(r.dtype), (clamped_x - clamped_r) / difference)


def clamp_max(x: Tensor, r: Tensor, max: float | Tensor) -> Tensor:
    """The share of [r, x] below the bound."""
    return clamp(x, r, max=max)


def hardtanh(x: Tensor, r: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """The share of [r, x] between the bounds."""
    return clamp(x, r, min_val, max_val)


def relu6(x: Tensor, r: Tensor) -> Tensor:
    """The share of [r, x] between 0 and 6."""
    return clamp(x, r, 0.0, 6.0)


def hardsigmoid(x: Tensor, r: Tensor) -> Tensor:
    """A sixth of the share of [r, x] between -3 and 3."""
    return clamp(x, r, -3.0, 3.0) / 6


def hardswish(x: Tensor, r: Tensor) -> Tensor:
    """x clamp(x + 3, 0, 6) / 6 is c (c + 3) / 6 with c = clamp(x, -3, 3), plus max(x - 3, 0)."""
    inner = (x.clamp(-3, 3) + r.clamp(-3, 3) + 3) / 6
    return inner * clamp(x, r, -3.0, 3.0) + ramp(x - 3, r - 3)


def softshrink(x: Tensor, r: Tensor, lambd: float = 0.5) -> Tensor:
    """max(x - lambda, 0) - max(-x - lambda, 0): two ramps."""
    return ramp(x - lambd, r - lambd) + ramp(-x - lambd, -r - lambd)


def elu(x: Tensor, r: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """scale x for x > 0, else scale alpha (exp(input_scale x) - 1): a ramp and an exponential."""
    positive = ramp(x, r)
    negative = alpha * input_scale * exp(x.clamp_max(0) * input_scale, r.clamp_max(0) * input_scale)
    return scale * (positive + (1 - positive) * negative)


def celu(x: Tensor, r: Tensor, alpha: float = 1.0) -> Tensor:
    """elu with the exponent divided by alpha."""
    return elu(x, r, alpha, 1.0, 1 / alpha)


def selu(x: Tensor, r: Tensor) -> Tensor:
    """elu with the published constants (Klambauer et al. 2017)."""
    return elu(x, r, *SELU)


def exp(x: Tensor, r: Tensor) -> Tensor:
    """e^max (1 - e^-d) / d with d = |x - r|."""
    distance = (x - r).abs()
    return finite_or_zero(torch.maximum(x, r).exp() * _quotient(-torch.expm1(-distance), distance, 1.0))


def exp2(x: Tensor, r: Tensor) -> Tensor:
    """2^x = exp(x log 2)."""
    return math.log(2) * exp(x * math.log(2), r * math.log(2))


def expm1(x: Tensor, r: Tensor) -> Tensor:
    """The secant of exp: the two differ by a constant."""
    return exp(x, r)


def log(x: Tensor, r: Tensor) -> Tensor:
    """log1p(d / min) / d with d = |x - r|; undefined where either is not positive."""
    distance, smaller = (x - r).abs(), torch.minimum(x, r)
    return finite_or_zero(torch.where(distance == 0, 1 / smaller, torch.log1p(distance / smaller) / distance))


def log1p(x: Tensor, r: Tensor) -> Tensor:
    """As log at 1 + x, with the difference taken before the 1 is added."""
    distance, smaller = (x - r).abs(), 1 + torch.minimum(x, r)
    return finite_or_zero(torch.where(distance == 0, 1 / smaller, torch.log1p(distance / smaller) / distance))


def log2(x: Tensor, r: Tensor) -> Tensor:
    """log x / log 2."""
    return log(x, r) / math.log(2)


def log10(x: Tensor, r: Tensor) -> Tensor:
    """log x / log 10."""
    return log(x, r) / math.log(10)


def square(x: Tensor, r: Tensor) -> Tensor:
    """(x^2 - r^2) / (x - r) = x + r; 2x at x = r without a limit."""
    return x + r


def cube(x: Tensor, r: Tensor) -> Tensor:
    """(x^3 - r^3) / (x - r) = x^2 + x r + r^2."""
    return finite_or_zero(x * x + x * r + r * r)


def sqrt(x: Tensor, r: Tensor) -> Tensor:
    """1 / (sqrt x + sqrt r); 0 where both are 0, where the derivative is infinite."""
    return finite_or_zero(1 / (x.sqrt() + r.sqrt()))


def rsqrt(x: Tensor, r: Tensor) -> Tensor:
    """-1 / (sqrt x sqrt r (sqrt x + sqrt r)); undefined where either is not positive."""
    root_x, root_r = x.sqrt(), r.sqrt()
    return finite_or_zero(-1 / root_x / root_r / (root_x + root_r))


def reciprocal(x: Tensor, r: Tensor) -> Tensor:
    """(1/x - 1/r) / (x - r) = -1 / (x r); undefined where either is 0. The product may be no number that can be
    written where both of its factors are."""
    return finite_or_zero(-1 / x / r)


def power(x: Tensor, r: Tensor, exponent: float | Tensor) -> Tensor:
    """x^n by closed form where there is one, else averaging n x^(n-1) where x and r are close beside their size."""
    closed = {
        1.0: torch.ones_like,
        2.0: lambda _: square(x, r),
        3.0: lambda _: cube(x, r),
        0.5: lambda _: sqrt(x, r),
        -1.0: lambda _: reciprocal(x, r),
    }
    if not isinstance(exponent, Tensor) and float(exponent) in closed:
        return closed[float(exponent)](r)
    average = _average(lambda z: exponent * z.pow(exponent - 1), x, r, 3)
    ratio = (x.pow(exponent) - r.pow(exponent)) / (x - r)
    is_close = (x - r).abs() < _RELATIVE_STEP[r.dtype] * torch.minimum(x.abs(), r.abs())
    return finite_or_zero(torch.where(is_close | (x == r), average, ratio))


def tanh(x: Tensor, r: Tensor) -> Tensor:
    """tanh x - tanh r = tanh(x - r) (1 - tanh x tanh r)."""
    difference = x - r
    return _quotient(difference.tanh(), difference, 1.0) * (1 - x.tanh() * r.tanh())


def sigmoid(x: Tensor, r: Tensor) -> Tensor:
    """sigmoid x = (1 + tanh(x / 2)) / 2."""
    return tanh(x / 2, r / 2) / 4


def silu(x: Tensor, r: Tensor) -> Tensor:
    """x sigmoid(x): the midpoint product of its two factors, which for one variable is the secant."""
    return (x.sigmoid() + r.sigmoid()) / 2 + (x + r) / 2 * sigmoid(x, r)


def softplus(x: Tensor, r: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Smooth: the ratio of differences, or its derivative averaged over [r, x] where the two are close."""
    return smooth(
        lambda z: F.softplus(z, beta, threshold),
        x,
        r,
        lambda z: torch.where(beta * z > threshold, 1.0, torch.sigmoid(beta * z)),
    )


def log_sigmoid(x: Tensor, r: Tensor) -> Tensor:
    """log sigmoid x = -softplus(-x), which is x from -40 down to float64's last digit, and not from -20 as torch has
    softplus by default."""
    return softplus(-x, -r, threshold=40.0)


def mish(x: Tensor, r: Tensor) -> Tensor:
    """x tanh(softplus x), by the midpoint product and the chain of secants."""
    soft_x, soft_r = F.softplus(x), F.softplus(r)
    return (soft_x.tanh() + soft_r.tanh()) / 2 + (x + r) / 2 * tanh(soft_x, soft_r) * softplus(x, r)


def erf(x: Tensor, r: Tensor) -> Tensor:
    """Smooth, with derivative 2 / sqrt(pi) exp(-x^2)."""
    return smooth(torch.erf, x, r, lambda z: 2 / math.sqrt(math.pi) * (-z * z).exp())


def gelu(x: Tensor, r: Tensor, approximate: str = "none") -> Tensor:
    """x P(x), with P the normal distribution function or its tanh approximation, by the midpoint product."""
    if approximate != "none":
        return gelu_tanh(x, r)
    gate_x, gate_r = torch.erf(x * _SQRT_HALF), torch.erf(r * _SQRT_HALF)
    gate_secant = erf(x * _SQRT_HALF, r * _SQRT_HALF) * _SQRT_HALF
    return (2 + gate_x + gate_r) / 4 + (x + r) / 4 * gate_secant


def gelu_tanh(x: Tensor, r: Tensor) -> Tensor:
    """The approximation."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    inner_x, inner_r = (scale * (z + cubic * z**3) for z in (x, r))
    gate_secant = tanh(inner_x, inner_r) * scale * (1 + cubic * (x * x + x * r + r * r))
    return (2 + inner_x.tanh() + inner_r.tanh()) / 4 + (x + r) / 4 * gate_secant


def step(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Secant of a function that jumps: the plain ratio, and f' = 0 where x = r."""
    difference = x - r
    return torch.where(difference == 0, 0.0, (function(x) - function(r)) / difference)


def jump(x: Tensor, r: Tensor, below: float, at: float, above: float, threshold: float = 0.0) -> Tensor:
    """Secant of `level`; 0 where both sides have the same, or one is NaN."""
    value_x, value_r = (level(z, below, at, above, threshold) for z in (x, r))
    return finite_or_zero(torch.where(value_x == value_r, 0.0, (value_x - value_r) / (x - r)))


def level(z: Tensor, below: float, at: float, above: float, threshold: float = 0.0) -> Tensor:
    """What has one value below a threshold, one at it and one above; of NaN the smaller one, as of a comparison."""
    value = torch.where(z > threshold, above, torch.where(z == threshold, at, min(below, above)))
    return torch.where(z < threshold, below, value).to(z.dtype)


def shrink(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """Secant of a function that jumps between y = x and a constant (threshold, hardshrink); f'(x) where x = r."""
    difference = x - r
    slope = ((function(x) == x) & (x != 0)).to(r.dtype)
    return torch.where(difference == 0, slope, (function(x) - function(r)) / difference)


def smooth(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    r: Tensor,
    derivative: Callable[[Tensor], Tensor] | None = None,
    is_singular: bool = False,
) -> Tensor:
    """Secant of any differentiable function: the ratio of differences, or f' averaged over [r, x] where they are close.

    "Close" is where a few Gauss nodes are exact to rounding and the ratio is not: a share of the size of f and of its
    argument (whose rounding the ratio divides by x - r), at most a fixed step, or, for a function with a singularity at
    0 (`is_singular`), a share of the distance from it. Just beyond, the ratio is off by the rounding over that share:
    3e-6 of the size of f in single precision.
    """
    value_x, value_r = function(x), function(r)
    difference = x - r
    if is_singular:
        limit = _RELATIVE_STEP[r.dtype] * torch.minimum(x.abs(), r.abs())
    else:
        share, largest = STEPS[r.dtype]
        size = torch.maximum(torch.maximum(value_x.abs(), value_r.abs()), torch.maximum(x.abs(), r.abs()))
        limit = (share * size).clamp(max=largest)
    average = _average(derivative or _derivative_of(function), x, r, 3 if is_singular else _N_NODES[r.dtype])
    is_close = (difference.abs() < limit) | (difference == 0)
    return finite_or_zero(torch.where(is_close, average, (value_x - value_r) / difference))


# As a share, and at most. There the error of the Gauss nodes, f^(5) d^4 / 4320 of two and about f^(7) d^6 / 2e6 of
# three, is below the ratio's, about eps |f| / d. The nodes would be exact for larger steps, but the ratio costs less.
STEPS = {torch.float32: (0.02, 0.2), torch.float64: (0.005, 0.02)}
_N_NODES = {torch.float32: 2, torch.float64: 3}
# Relative to the distance from a singularity: three nodes are exact to rounding below it, the ratio loses two digits.
_RELATIVE_STEP = {torch.float32: 0.05, torch.float64: 0.005}


def average_derivative(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor) -> Tensor:
    """f' averaged over [r, x] where they are close, by autograd; 0 where it is not finite."""
    return finite_or_zero(_average(_derivative_of(function), x, r, _N_NODES[r.dtype]))


def _average(derivative: Callable[[Tensor], Tensor], x: Tensor, r: Tensor, n_nodes: int) -> Tensor:
    first, *others = (weight * derivative(r + t * (x - r)) for t, weight in gauss_legendre(n_nodes))
    return sum(others, start=first)


def _derivative_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def derivative(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(function(z).sum(), z)[0]

    return derivative


def _quotient(numerator: Tensor, denominator: Tensor, limit: float) -> Tensor:
    """numerator / denominator, `limit` where the denominator is 0."""
    return torch.where(denominator == 0, limit, numerator / denominator)
