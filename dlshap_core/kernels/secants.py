"""Compiled kernels of secants: one pass over memory each, without the interpreter's lock.

Every kernel works on rows first to last of its arrays, whose rows are those of the references; the observed side has
one row for several of them. Constants are made of the arrays' own dtype, or single precision would be computed in
double.

Shape legend: rows of the references, elements of a row; x is the observed side, r the references.
"""

from typing import cast

import numba
import numpy as np


@numba.njit(inline="always")
def share(a: float, b: float, tiny: float, zero: float, one: float) -> float:
    """As `secants.ramp`."""
    return min(max(max(a, b) / (abs(a - b) + tiny), zero), one)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_share(
    gradient: np.ndarray, x: np.ndarray, r: np.ndarray, slope: float, out: np.ndarray, first: int, last: int
) -> None:
    """out = gradient (slope + (1 - slope) share) for rows first to last; see `secants.ramp` for the share."""
    n_repeats = r.shape[0] // x.shape[0]
    one, zero = r.dtype.type(1), r.dtype.type(0)
    tiny, low = r.dtype.type(np.finfo(r.dtype).tiny), r.dtype.type(slope)
    high = one - low
    for row in range(first, last):
        observed, reference, flowing, result = x[row // n_repeats], r[row], gradient[row], out[row]
        for i in range(result.shape[0]):
            a, b = observed[i], reference[i]
            result[i] = flowing[i] * (low + high * share(a, b, tiny, zero, one))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def shares(x: np.ndarray, r: np.ndarray, slope: float, out: np.ndarray, first: int, last: int) -> None:
    """out = slope + (1 - slope) share for rows first to last: what `times_share` multiplies by."""
    n_repeats = r.shape[0] // x.shape[0]
    one, zero = r.dtype.type(1), r.dtype.type(0)
    tiny, low = r.dtype.type(np.finfo(r.dtype).tiny), r.dtype.type(slope)
    high = one - low
    for row in range(first, last):
        observed, reference, result = x[row // n_repeats], r[row], out[row]
        for i in range(result.shape[0]):
            a, b = observed[i], reference[i]
            result[i] = low + high * share(a, b, tiny, zero, one)


@numba.njit(inline="always")
def _share_between(a: float, b: float, low: float, high: float, zero: float, one: float) -> float:
    """As `secants.clamp`."""
    inner_a, inner_b = min(max(a, low), high), min(max(b, low), high)
    of_equal = one if inner_a == a else zero
    return (inner_a - inner_b) / (a - b) if a != b else of_equal


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_clamp(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    low: float,
    high: float,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """out = gradient times the share of [r, x] between two bounds for rows first to last."""
    kind, n_repeats = r.dtype.type, r.shape[0] // x.shape[0]
    one, zero, bottom, top = kind(1), kind(0), kind(low), kind(high)
    for row in range(first, last):
        observed, reference, flowing, result = x[row // n_repeats], r[row], gradient[row], out[row]
        for i in range(result.shape[0]):
            result[i] = flowing[i] * _share_between(observed[i], reference[i], bottom, top, zero, one)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_hardswish(gradient: np.ndarray, x: np.ndarray, r: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """The same of `secants.hardswish`."""
    kind, n_repeats = r.dtype.type, r.shape[0] // x.shape[0]
    one, zero, three, sixth, tiny = kind(1), kind(0), kind(3), kind(1 / 6), kind(np.finfo(r.dtype).tiny)
    for row in range(first, last):
        observed, reference, flowing, result = x[row // n_repeats], r[row], gradient[row], out[row]
        for i in range(result.shape[0]):
            a, b = observed[i], reference[i]
            inner = (min(max(a, -three), three) + min(max(b, -three), three) + three) * sixth
            below = inner * _share_between(a, b, -three, three, zero, one)
            result[i] = flowing[i] * (below + share(a - three, b - three, tiny, zero, one))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def ratios(
    x: np.ndarray,
    r: np.ndarray,
    y_x: np.ndarray,
    y_r: np.ndarray,
    steps: tuple[float, float],
    out: np.ndarray,
    is_close: np.ndarray,
    n_close: np.ndarray,
    first: int,
    last: int,
) -> None:
    """(y_x - y_r) / (x - r) for rows first to last, and where the two are too close for it (`secants.smooth`)."""
    kind = r.dtype.type
    share, largest, infinite = kind(steps[0]), kind(steps[1]), kind(np.inf)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, values, result = x[row // n_repeats], y_x[row // n_repeats], out[row]
        n = 0
        for i in range(result.shape[0]):
            difference = inputs[i] - r[row, i]
            size = max(max(abs(values[i]), abs(y_r[row, i])), max(abs(inputs[i]), abs(r[row, i])))
            limit = min(share * size, largest)
            ratio = (values[i] - y_r[row, i]) / difference
            result[i] = ratio if abs(ratio) < infinite else kind(0)
            is_far = abs(difference) >= limit and difference != 0
            is_close[row, i] = not is_far
            n += not is_far
        is_close[row, result.shape[0] :] = False
        n_close[row] = n


@numba.njit(nogil=True, cache=True)
def gather(
    x: np.ndarray,
    r: np.ndarray,
    is_close: np.ndarray,
    ends: np.ndarray,
    places: np.ndarray,
    close: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Where in its row a pair is close and the pairs (2, n) there, row by row; `is_close` is read eight at a time, and
    `ends` counts them."""
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        start = ends[row - 1] if row > 0 else 0
        n = start
        for word in range(is_close.shape[1]):
            if is_close[row, word] != 0:
                for i in range(8):
                    if (is_close[row, word] >> np.uint64(8 * i)) & np.uint64(1):
                        places[n] = 8 * word + i
                        n += 1
        for n in range(start, ends[row]):
            close[0, n], close[1, n] = x[row // n_repeats, places[n]], r[row, places[n]]


@numba.njit(nogil=True, cache=True)
def put(values: np.ndarray, ends: np.ndarray, places: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """What was made of those pairs, in their places."""
    for row in range(first, last):
        for n in range(ends[row - 1] if row > 0 else 0, ends[row]):
            out[row, places[n]] = values[n]


def single(*values: float) -> tuple[float, ...]:
    """Constants of single precision."""
    return cast("tuple[float, ...]", tuple(map(np.float32, values)))


_ZERO, _QUARTER, _HALF, _ONE, _TWO, _FOUR, _INFINITE = single(0, 0.25, 0.5, 1, 2, 4, np.inf)

# tanh(u) / u = P(u^2) / Q(u^2) to single precision up to u^2 = 62.5, by Eigen's coefficients; beyond, tanh is 1. They
# have names, as a loop over them is not vectorised.
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = single(
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
_Q0, _Q1, _Q2, _Q3 = single(4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
(_SATURATED,) = single(62.5)


@numba.njit(inline="always")
def tanh_over(u: float) -> float:
    """tanh(u) / u."""
    s = u * u
    t = min(s, _SATURATED)
    p = (((((_P6 * t + _P5) * t + _P4) * t + _P3) * t + _P2) * t + _P1) * t + _P0
    q = ((_Q3 * t + _Q2) * t + _Q1) * t + _Q0
    return p / q if s < _SATURATED else _ONE / abs(u)


@numba.njit(inline="always")
def tanh(u: float) -> float:
    """Exactly 1 beyond, as it may be multiplied by a large number."""
    return u * tanh_over(u) if not u * u >= _SATURATED else (_ONE if u > _ZERO else -_ONE)


@numba.njit(inline="always")
def sigmoid(x: float) -> float:
    """Exactly 0 and 1 where tanh is 1."""
    return _HALF + _HALF * tanh(_HALF * x)


@numba.njit(inline="always")
def sigmoid_secant(apart: float, s_x: float, s_r: float) -> float:
    """As `secants.sigmoid`, of values s: 1 - tanh tanh of the halves is 2 (s (1 - s0) + s0 (1 - s))."""
    return tanh_over(_HALF * apart) * _HALF * (s_x * (_ONE - s_r) + s_r * (_ONE - s_x))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_tanh(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    y_x: np.ndarray,
    y_r: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """out = gradient times the secant of tanh, whose values are y, for rows first to last; see `secants.tanh`."""
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, values, reference, ours = x[row // n_repeats], y_x[row // n_repeats], r[row], y_r[row]
        flowing, result = gradient[row], out[row]
        for i in range(result.shape[0]):
            result[i] = flowing[i] * (tanh_over(inputs[i] - reference[i]) * (_ONE - values[i] * ours[i]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_sigmoid(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    y_x: np.ndarray,
    y_r: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The same of sigmoid."""
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, values, reference, ours = x[row // n_repeats], y_x[row // n_repeats], r[row], y_r[row]
        flowing, result = gradient[row], out[row]
        for i in range(result.shape[0]):
            result[i] = flowing[i] * sigmoid_secant(inputs[i] - reference[i], values[i], ours[i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_silu(gradient: np.ndarray, x: np.ndarray, r: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """The same of x sigmoid(x), by the midpoint product, which needs no values; 0 where the secant is not finite."""
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, reference, flowing, result = x[row // n_repeats], r[row], gradient[row], out[row]
        for i in range(result.shape[0]):
            a, b = inputs[i], reference[i]
            s_x, s_r = sigmoid(a), sigmoid(b)
            slope = _HALF * (s_x + s_r) + (_HALF * a + _HALF * b) * sigmoid_secant(a - b, s_x, s_r)
            result[i] = flowing[i] * (slope if abs(slope) < _INFINITE else _ZERO)


# erf(u) / u = P(u^2) / Q(u^2) to single precision up to |u| = 4, by Eigen's coefficients; beyond, erf is 1.
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = single(
    -1.60960333262415e-02,
    -2.95459980854025e-03,
    -7.34990630326855e-04,
    -5.69250639462346e-05,
    -2.10102402082508e-06,
    2.77068142495902e-08,
    -2.72614225801306e-10,
)
_F0, _F1, _F2, _F3, _F4 = single(
    -1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04, -1.45660718464996e-05
)
(_SQRT_HALF,) = single(0.5**0.5)


@numba.njit(inline="always")
def _gelu_secant(a: float, b: float) -> float:
    """As `secants.gelu`. Of a rational function the difference over that of its arguments is one too, in which nothing
    cancels however close the two are: Horner's scheme gives those of P and Q beside their values."""
    u, v = min(max(a * _SQRT_HALF, -_FOUR), _FOUR), min(max(b * _SQRT_HALF, -_FOUR), _FOUR)
    s, t = u * u, v * v
    p = _E6 * t + _E5
    d_p = _E6 * s + p
    p = p * t + _E4
    d_p = d_p * s + p
    p = p * t + _E3
    d_p = d_p * s + p
    p = p * t + _E2
    d_p = d_p * s + p
    p = p * t + _E1
    d_p = d_p * s + p
    p = p * t + _E0
    q = _F4 * t + _F3
    d_q = _F4 * s + q
    q = q * t + _F2
    d_q = d_q * s + q
    q = q * t + _F1
    d_q = d_q * s + q
    q = q * t + _F0
    q_s, ratio = q + (s - t) * d_q, p / q
    ratio_s, d_ratio = (p + (s - t) * d_p) / q_s, (d_p - ratio * d_q) / q_s
    of_erf = _HALF * (ratio_s + ratio) + _HALF * (u + v) * (u + v) * d_ratio
    is_beyond = max(abs(u), abs(v)) == _FOUR
    share = (u - v) / ((a - b) * _SQRT_HALF) if a != b else _ZERO
    of_erf *= share if is_beyond else _ONE
    return _QUARTER * (_TWO + u * ratio_s + v * ratio) + (_QUARTER * a + _QUARTER * b) * _SQRT_HALF * of_erf


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_gelu(gradient: np.ndarray, x: np.ndarray, r: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """The same of GELU."""
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, reference, flowing, result = x[row // n_repeats], r[row], gradient[row], out[row]
        for i in range(result.shape[0]):
            slope = _gelu_secant(inputs[i], reference[i])
            result[i] = flowing[i] * (slope if abs(slope) < _INFINITE else _ZERO)


@numba.njit(inline="always")
def _mean(x: float, r: float, half: float, largest: float) -> float:
    """With infinities made finite, as in `gradients.between`."""
    return min(max(half * x + half * r, -largest), largest)


@numba.njit(nogil=True, cache=True)
def times_means(
    gradient: np.ndarray,
    a_x: np.ndarray,
    a_r: np.ndarray,
    b_x: np.ndarray,
    b_r: np.ndarray,
    largest: float,
    to_a: np.ndarray,
    to_b: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The gradient of a b taken to both for rows first to last, by midpoints."""
    n_repeats = a_r.shape[0] // a_x.shape[0]
    half, bound = a_r.dtype.type(0.5), a_r.dtype.type(largest)
    for row in range(first, last):
        observed_a, observed_b = a_x[row // n_repeats], b_x[row // n_repeats]
        ours_a, ours_b, flowing, result_a, result_b = a_r[row], b_r[row], gradient[row], to_a[row], to_b[row]
        for i in range(result_a.shape[0]):
            result_a[i] = flowing[i] * _mean(observed_b[i], ours_b[i], half, bound)
            result_b[i] = flowing[i] * _mean(observed_a[i], ours_a[i], half, bound)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_quotient(
    gradient: np.ndarray,
    a_x: np.ndarray,
    a_r: np.ndarray,
    b_x: np.ndarray,
    b_r: np.ndarray,
    far: float,
    to_a: np.ndarray,
    to_b: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The gradient of a / b taken to both for rows first to last, as `arithmetic.quotient_multipliers`."""
    n_repeats = a_r.shape[0] // a_x.shape[0]
    kind = a_r.dtype.type
    half, zero, one, limit, ratio = kind(0.5), kind(0), kind(1), kind(np.inf), kind(far)
    for row in range(first, last):
        theirs_a, theirs_b = a_x[row // n_repeats], b_x[row // n_repeats]
        ours_a, ours_b, flowing, result_a, result_b = a_r[row], b_r[row], gradient[row], to_a[row], to_b[row]
        for i in range(result_a.shape[0]):
            a, a_0, b, b_0 = theirs_a[i], ours_a[i], theirs_b[i], ours_b[i]
            is_far = max(abs(b), abs(b_0)) > ratio * min(abs(b), abs(b_0))
            middle, y = half * (b + b_0), half * (a / b + a_0 / b_0)
            m_a = one / middle if is_far else half * (one / b + one / b_0)
            m_b = -y / middle if is_far else -half * (a + a_0) / b / b_0
            result_a[i] = flowing[i] * (m_a if abs(m_a) < limit else zero)
            result_b[i] = flowing[i] * (m_b if abs(m_b) < limit else zero)


@numba.njit(nogil=True, cache=True)
def times_means_of_gates(
    gradient: np.ndarray,
    a_x: np.ndarray,
    a_r: np.ndarray,
    b_x: np.ndarray,
    b_r: np.ndarray,
    largest: float,
    to_a: np.ndarray,
    to_b: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The same of a (rows, positions, channels) and b (rows, channels), in which positions are summed up: a few dozen
    in their own precision, and these in double precision."""
    n_repeats = a_r.shape[0] // a_x.shape[0]
    half, bound = a_r.dtype.type(0.5), a_r.dtype.type(largest)
    n_positions, n_channels = a_r.shape[1:]
    means, part, total = np.empty_like(b_r[0]), np.empty_like(b_r[0]), np.empty(n_channels, np.float64)
    for row in range(first, last):
        observed = row // n_repeats
        for c in range(n_channels):
            means[c] = _mean(b_x[observed, c], b_r[row, c], half, bound)
        total[:] = 0
        for start in range(0, n_positions, 32):
            part[:] = 0
            for position in range(start, min(start + 32, n_positions)):
                theirs, ours = a_x[observed, position], a_r[row, position]
                flowing, result = gradient[row, position], to_a[row, position]
                for c in range(n_channels):
                    result[c] = flowing[c] * means[c]
                    part[c] += flowing[c] * _mean(theirs[c], ours[c], half, bound)
            total += part
        to_b[row] = total
