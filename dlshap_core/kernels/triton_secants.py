"""Secants on a GPU, one pass over memory each, in Triton; the formulas are those of `rules.secants`.

Everything is computed in single precision at least, and in double where the activations are. Triton's own language has
neither tanh, expm1 nor log1p; they are made of exp and log, so that its interpreter can run the kernels on a CPU.
"""

import math

import torch
from torch import Tensor

from dlshap_core.kernels.triton_language import tl, triton

_BLOCK = 1024

# (1 - exp(-t)) / t = 1 - t/2 + t^2/6 - ..., below `_SERIES_BELOW` (see kernels.softmax)
_SERIES_BELOW = tl.constexpr(0.1)
_SERIES = tl.constexpr(tuple((-1) ** k / math.factorial(k + 1) for k in range(10)))
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))
_TWO_OVER_SQRT_PI = tl.constexpr(2 / math.sqrt(math.pi))
_SQRT_TWO_OVER_PI = tl.constexpr(math.sqrt(2 / math.pi))


@triton.jit
def finite_or_zero(m):
    return tl.where(tl.abs(m) < float("inf"), m, 0.0)


@triton.jit
def exp_share(t):
    """(1 - exp(-t)) / t for t >= 0; 1 at 0."""
    series = t * _SERIES[9] + _SERIES[8]
    for k in tl.static_range(8):
        series = series * t + _SERIES[7 - k]
    return tl.where(t < _SERIES_BELOW, series, (1.0 - tl.exp(-t)) / t)


@triton.jit
def _log1p(q):
    u = 1.0 + q
    return tl.where(u == 1.0, q, tl.log(u) * (q / (u - 1.0)))


@triton.jit
def _larger(x, r):
    return tl.maximum(x, r, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _between(z, low, high):
    """Clamped, with NaN left as it is."""
    z = tl.where(z < low, low, z)
    return tl.where(z > high, high, z)


@triton.jit
def _ramp(x, r, TINY: tl.constexpr):
    return _between(_larger(x, r) / (tl.abs(x - r) + TINY), 0.0, 1.0)


@triton.jit
def _clamp(x, r, low, high):
    inside = _between(x, low, high)
    difference = x - r
    ratio = (inside - _between(r, low, high)) / difference
    return tl.where(difference == 0.0, tl.where(inside == x, 1.0, 0.0), ratio)


@triton.jit
def _exp(x, r):
    return finite_or_zero(tl.exp(_larger(x, r)) * exp_share(tl.abs(x - r)))


@triton.jit
def _log(x, r, smaller):
    distance = tl.abs(x - r)
    return finite_or_zero(tl.where(distance == 0.0, 1.0 / smaller, _log1p(distance / smaller) / distance))


@triton.jit
def _tanh_of(z):
    """Its error is one of rounding beside 1."""
    e = tl.exp(-2.0 * tl.abs(z))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(z < 0.0, -y, y)


@triton.jit
def _tanh(x, r):
    """1 - tanh x tanh r without its cancellation, of e = exp(-2 |x|): tanh |x| is (1 - e) / (1 + e)."""
    twice = 2.0 * tl.abs(x - r)
    e_x, e_r = tl.exp(-2.0 * tl.abs(x)), tl.exp(-2.0 * tl.abs(r))
    rest = tl.where((x < 0.0) == (r < 0.0), e_x + e_r, 1.0 + e_x * e_r) / ((1.0 + e_x) * (1.0 + e_r))
    return 4.0 * exp_share(twice) / (1.0 + tl.exp(-twice)) * rest


@triton.jit
def _sigmoid_of(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _sigmoid(x, r):
    return _tanh(x / 2.0, r / 2.0) / 4.0


@triton.jit
def _elu(x, r, alpha, scale, input_scale, TINY: tl.constexpr):
    positive = _ramp(x, r, TINY)
    below = _exp(_between(x, float("-inf"), 0.0) * input_scale, _between(r, float("-inf"), 0.0) * input_scale)
    return scale * (positive + (1.0 - positive) * (alpha * input_scale * below))


@triton.jit
def _ratio_or_average(x, r, y_x, y_r, average, WIDE: tl.constexpr):
    """As `secants.smooth`."""
    difference = x - r
    size = tl.maximum(tl.maximum(tl.abs(y_x), tl.abs(y_r)), tl.maximum(tl.abs(x), tl.abs(r)))
    if WIDE:
        limit = tl.minimum(0.005 * size, 0.02)
    else:
        limit = tl.minimum(0.02 * size, 0.2)
    is_close = (tl.abs(difference) < limit) | (difference == 0.0)
    return finite_or_zero(tl.where(is_close, average, (y_x - y_r) / difference))


@triton.jit
def _softplus_of(z, beta, threshold):
    scaled = beta * z
    soft = _between(scaled, 0.0, float("inf")) + _log1p(tl.exp(-tl.abs(scaled)))
    return tl.where(scaled > threshold, z, soft / beta)


@triton.jit
def _softplus_slope(z, beta, threshold):
    return tl.where(beta * z > threshold, 1.0, _sigmoid_of(beta * z))


@triton.jit
def _softplus(x, r, beta, threshold, WIDE: tl.constexpr):
    step = x - r
    if WIDE:
        average = _softplus_slope(r + 0.1127016653792583 * step, beta, threshold) * 0.2777777777777778
        average += _softplus_slope(r + 0.5 * step, beta, threshold) * 0.4444444444444444
        average += _softplus_slope(r + 0.8872983346207417 * step, beta, threshold) * 0.2777777777777778
    else:
        average = _softplus_slope(r + 0.21132486540518713 * step, beta, threshold) * 0.5
        average += _softplus_slope(r + 0.7886751345948129 * step, beta, threshold) * 0.5
    y_x, y_r = _softplus_of(x, beta, threshold), _softplus_of(r, beta, threshold)
    return _ratio_or_average(x, r, y_x, y_r, average, WIDE)


@triton.jit
def _erf_slope(z):
    return _TWO_OVER_SQRT_PI * tl.exp(-z * z)


@triton.jit
def _erf(x, r, y_x, y_r, WIDE: tl.constexpr):
    step = x - r
    if WIDE:
        average = _erf_slope(r + 0.1127016653792583 * step) * 0.2777777777777778
        average += _erf_slope(r + 0.5 * step) * 0.4444444444444444
        average += _erf_slope(r + 0.8872983346207417 * step) * 0.2777777777777778
    else:
        average = (_erf_slope(r + 0.21132486540518713 * step) + _erf_slope(r + 0.7886751345948129 * step)) * 0.5
    return _ratio_or_average(x, r, y_x, y_r, average, WIDE)


@triton.jit
def _gelu(x, r, WIDE: tl.constexpr):
    z_x, z_r = x * _SQRT_HALF, r * _SQRT_HALF
    gate_x, gate_r = tl.erf(z_x), tl.erf(z_r)
    gate_secant = _erf(z_x, z_r, gate_x, gate_r, WIDE) * _SQRT_HALF
    return (2.0 + gate_x + gate_r) / 4.0 + (x + r) / 4.0 * gate_secant


@triton.jit
def _gelu_tanh(x, r):
    inner_x = _SQRT_TWO_OVER_PI * (x + 0.044715 * x * x * x)
    inner_r = _SQRT_TWO_OVER_PI * (r + 0.044715 * r * r * r)
    gate_secant = _tanh(inner_x, inner_r) * _SQRT_TWO_OVER_PI * (1.0 + 0.044715 * (x * x + x * r + r * r))
    return (2.0 + _tanh_of(inner_x) + _tanh_of(inner_r)) / 4.0 + (x + r) / 4.0 * gate_secant


@triton.jit
def _mish(x, r, WIDE: tl.constexpr):
    soft_x, soft_r = _softplus_of(x, 1.0, 20.0), _softplus_of(r, 1.0, 20.0)
    of_tanh = _tanh(soft_x, soft_r) * _softplus(x, r, 1.0, 20.0, WIDE)
    return (_tanh_of(soft_x) + _tanh_of(soft_r)) / 2.0 + (x + r) / 2.0 * of_tanh


@triton.jit
def level(z, BELOW: tl.constexpr, AT: tl.constexpr, ABOVE: tl.constexpr, THRESHOLD: tl.constexpr):
    of_nan = BELOW if BELOW < ABOVE else ABOVE
    value = tl.where(z > THRESHOLD, ABOVE, tl.where(z == THRESHOLD, AT, of_nan))
    return tl.where(z < THRESHOLD, BELOW, value).to(z.dtype)


@triton.jit
def jump(x, r, level_x, level_r):
    step = level_x - level_r
    return finite_or_zero(tl.where(step == 0.0, 0.0, step / (x - r)))


@triton.jit
def _multiplier(
    x,
    r,
    RULE: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    TINY: tl.constexpr,
):
    WIDE: tl.constexpr = x.dtype == tl.float64
    if RULE == "ramp":
        m = _ramp(x, r, TINY)
    elif RULE == "leaky_relu":
        positive = _ramp(x, r, TINY)
        m = positive + (1.0 - positive) * A
    elif RULE == "absolute":
        m = _ramp(x, r, TINY) - _ramp(-x, -r, TINY)
    elif RULE == "clamp":
        m = _clamp(x, r, A, B)
    elif RULE == "hardsigmoid":
        m = _clamp(x, r, -3.0, 3.0) / 6.0
    elif RULE == "hardswish":
        inner = (_between(x, -3.0, 3.0) + _between(r, -3.0, 3.0) + 3.0) / 6.0
        m = inner * _clamp(x, r, -3.0, 3.0) + _ramp(x - 3.0, r - 3.0, TINY)
    elif RULE == "softshrink":
        m = _ramp(x - A, r - A, TINY) + _ramp(-x - A, -r - A, TINY)
    elif RULE == "elu":
        m = _elu(x, r, A, B, C, TINY)
    elif RULE == "exp":
        m = _exp(x, r)
    elif RULE == "log":
        m = _log(x, r, tl.minimum(x, r, propagate_nan=tl.PropagateNan.ALL))
    elif RULE == "log1p":
        m = _log(x, r, 1.0 + tl.minimum(x, r, propagate_nan=tl.PropagateNan.ALL))
    elif RULE == "square":
        m = x + r
    elif RULE == "cube":
        m = finite_or_zero(x * x + x * r + r * r)
    elif RULE == "sqrt":
        m = finite_or_zero(1.0 / (tl.sqrt(x) + tl.sqrt(r)))
    elif RULE == "rsqrt":
        root_x, root_r = tl.sqrt(x), tl.sqrt(r)
        m = finite_or_zero(-1.0 / root_x / root_r / (root_x + root_r))
    elif RULE == "reciprocal":
        m = finite_or_zero(-1.0 / x / r)
    elif RULE == "tanh":
        m = _tanh(x, r)
    elif RULE == "sigmoid":
        m = _sigmoid(x, r)
    elif RULE == "silu":
        m = (_sigmoid_of(x) + _sigmoid_of(r)) / 2.0 + (x + r) / 2.0 * _sigmoid(x, r)
    elif RULE == "softplus":
        m = _softplus(x, r, A, B, WIDE)
    elif RULE == "log_sigmoid":
        m = _softplus(-x, -r, 1.0, 40.0, WIDE)
    elif RULE == "mish":
        m = _mish(x, r, WIDE)
    elif RULE == "erf":
        m = _erf(x, r, tl.erf(x), tl.erf(r), WIDE)
    elif RULE == "gelu":
        m = _gelu(x, r, WIDE)
    elif RULE == "jump":
        m = jump(x, r, level(x, A, B, C, D), level(r, A, B, C, D))
    else:
        tl.static_assert(RULE == "gelu_tanh")
        m = _gelu_tanh(x, r)
    return m


@triton.jit
def _secants(
    gradient,
    x,
    r,
    out,
    n,
    n_inner,
    n_repeats,
    HAS_GRADIENT: tl.constexpr,
    RULE: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    TINY: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Element i of r pairs with that of x in the same place of the row it shares with `n_repeats` of them."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    source = i // n_inner // n_repeats * n_inner + i % n_inner
    m = _multiplier(
        tl.load(x + source, there, 0.0).to(DTYPE), tl.load(r + i, there, 0.0).to(DTYPE), RULE, A, B, C, D, TINY
    )
    if HAS_GRADIENT:
        m = m * tl.load(gradient + i, there, 0.0).to(DTYPE)
    tl.store(out + i, m.to(out.dtype.element_ty), there)


def secant(gradient: Tensor | None, x: Tensor, r: Tensor, rule: str, numbers: list[float]) -> Tensor:
    """As `rules.operators` has it; flat tensors: x (B / R, M), r and the gradient (B, M)."""
    wide = r.dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    out = torch.empty_like(r, dtype=dtype) if gradient is None else torch.empty_like(gradient)
    n = r.numel()
    if n == 0:
        return out
    a, b, c, d = [*numbers, 0.0, 0.0, 0.0, 0.0][:4]
    n_inner, n_repeats = r.shape[1], r.shape[0] // x.shape[0]
    _secants[(triton.cdiv(n, _BLOCK),)](
        r if gradient is None else gradient,
        x,
        r,
        out,
        n,
        n_inner,
        n_repeats,
        gradient is not None,
        rule,
        a,
        b,
        c,
        d,
        torch.finfo(dtype).tiny,
        tl.float64 if wide else tl.float32,
        _BLOCK,
    )
    return out
