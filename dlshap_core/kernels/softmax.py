"""Compiled kernels of softmax, log_softmax and logsumexp; rows and constants as in `secants`."""

import math

import numba
import numpy as np

# Up to this difference of logits (1 - exp(-t)) / t is summed up as a series: its ten terms are exact to float64's last
# digits there, and beyond it the difference of exponentials has lost no more than one digit.
SERIES_BELOW = 0.1
# (1 - exp(-t)) / t = 1 - t/2 + t^2/6 - ...
SERIES = np.array([(-1) ** k / math.factorial(k + 1) for k in range(10)])
_TOGETHER = 1024  # softmaxes side by side that are taken at once
KINDS = ("softmax", "log_softmax", "logsumexp")


@numba.njit(inline="always")
def _exp_secant(a_x: float, a_r: float, apart: float, below: float, series: tuple[float, ...]) -> float:
    """As `softmaxes._exp_secant`."""
    s_0, s_1, s_2, s_3, s_4, s_5, s_6, s_7, s_8, s_9 = series  # written out: a loop over them is not vectorised
    close = ((((s_9 * apart + s_8) * apart + s_7) * apart + s_6) * apart + s_5) * apart + s_4
    close = (((close * apart + s_3) * apart + s_2) * apart + s_1) * apart + s_0
    return max(a_x, a_r) * close if apart < below else abs(a_x - a_r) / apart


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_softmax(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    p_x: np.ndarray,
    p_r: np.ndarray,
    steps: np.ndarray,
    smaller: np.ndarray,
    n_inner: int,
    kind: int,
    series: tuple[float, ...],
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of the rule of `KINDS[kind]`; x, r are logits, p_x, p_r their softmax over the row. Each row
    has its c - c0, c being logsumexp, and exp(-|c - c0|): the smaller sum of exponentials under a common shift, the
    larger one being 1."""
    number = r.dtype.type
    zero, one, below = number(0), number(1), number(SERIES_BELOW)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        step = steps[row]
        s_x, s_r = (one, smaller[row]) if step > zero else (smaller[row], one)
        logits_x, logits_r, probable_x, probable_r, result = x[source], r[row], p_x[source], p_r[row], out[row]
        if kind == 0:
            for i in range(result.shape[0]):
                change = logits_x[i] - logits_r[i]
                change = change if change == change else zero  # both masked by -inf
                apart = abs(change - step)
                result[i] = gradient[row, i] * _exp_secant(probable_x[i], probable_r[i], apart, below, series)
        elif kind == 1:
            result[:] = gradient[row]
        else:
            result[:] = zero
        total = number(-gradient[row, 0] if kind == 2 else _sum(result))
        scale = total / _exp_secant(one, smaller[row], abs(step), below, series)
        for i in range(result.shape[0]):
            change = logits_x[i] - logits_r[i]
            change = change if change == change else zero
            result[i] -= scale * _exp_secant(probable_x[i] * s_x, probable_r[i] * s_r, abs(change), below, series)


@numba.njit(nogil=True, cache=True)
def times_softmax_side_by_side(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    p_x: np.ndarray,
    p_r: np.ndarray,
    steps: np.ndarray,
    smaller: np.ndarray,
    n_inner: int,
    kind: int,
    series: tuple[float, ...],
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """The same of many softmaxes that lie side by side: all are (rows, size, softmaxes), and numbers of a softmax
    (rows, softmaxes)."""
    size, n_softmaxes = r.shape[1:]
    n_repeats = r.shape[0] // x.shape[0]
    sums, work = np.empty(_TOGETHER, np.float64), np.empty((3, _TOGETHER), r.dtype)
    s_x, s_r, scale = work[0], work[1], work[2]
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        for start in range(0, n_softmaxes, _TOGETHER):
            some = slice(start, min(start + _TOGETHER, n_softmaxes))
            step = steps[row, some]
            sums[:] = 0
            for j in range(size):
                result = out[row, j, some]
                if kind == 0:
                    sides = (x[source, j, some], r[row, j, some], p_x[source, j, some], p_r[row, j, some])
                    _through_exp(gradient[row, j, some], *sides, step, series, result)
                elif kind == 1:
                    result[:] = gradient[row, j, some]
                else:
                    result[:] = 0
                _add(result, sums)
            if kind == 2:
                _add(-gradient[row, 0, some], sums)
            _through_log(sums, step, smaller[row, some], series, s_x, s_r, scale)
            for j in range(size):
                sides = (x[source, j, some], r[row, j, some], p_x[source, j, some], p_r[row, j, some])
                _less_shares(*sides, s_x, s_r, scale, series, out[row, j, some])


@numba.njit(cache=True)
def _add(values: np.ndarray, sums: np.ndarray) -> None:
    for i in range(values.shape[0]):
        sums[i] += values[i]


@numba.njit(cache=True, error_model="numpy")
def _through_exp(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    p_x: np.ndarray,
    p_r: np.ndarray,
    step: np.ndarray,
    series: tuple[float, ...],
    out: np.ndarray,
) -> None:
    zero, below = out.dtype.type(0), out.dtype.type(SERIES_BELOW)
    for i in range(out.shape[0]):
        change = x[i] - r[i]
        change = change if change == change else zero
        out[i] = gradient[i] * _exp_secant(p_x[i], p_r[i], abs(change - step[i]), below, series)


@numba.njit(cache=True, error_model="numpy")
def _through_log(
    sums: np.ndarray,
    step: np.ndarray,
    smaller: np.ndarray,
    series: tuple[float, ...],
    s_x: np.ndarray,
    s_r: np.ndarray,
    scale: np.ndarray,
) -> None:
    number = step.dtype.type
    zero, one, below = number(0), number(1), number(SERIES_BELOW)
    for i in range(step.shape[0]):
        s_x[i], s_r[i] = (one, smaller[i]) if step[i] > zero else (smaller[i], one)
        scale[i] = number(sums[i]) / _exp_secant(one, smaller[i], abs(step[i]), below, series)


@numba.njit(cache=True, error_model="numpy")
def _less_shares(
    x: np.ndarray,
    r: np.ndarray,
    p_x: np.ndarray,
    p_r: np.ndarray,
    s_x: np.ndarray,
    s_r: np.ndarray,
    scale: np.ndarray,
    series: tuple[float, ...],
    out: np.ndarray,
) -> None:
    zero, below = out.dtype.type(0), out.dtype.type(SERIES_BELOW)
    for i in range(out.shape[0]):
        change = x[i] - r[i]
        change = change if change == change else zero
        out[i] -= scale[i] * _exp_secant(p_x[i] * s_x[i], p_r[i] * s_r[i], abs(change), below, series)


@numba.njit(nogil=True, cache=True)
def _sum(values: np.ndarray) -> float:
    """In float64, by eight partial sums, whose order is the same on every processor."""
    n = values.shape[0] - values.shape[0] % 8
    s_0 = s_1 = s_2 = s_3 = s_4 = s_5 = s_6 = s_7 = 0.0
    for i in range(0, n, 8):
        s_0 += values[i]
        s_1 += values[i + 1]
        s_2 += values[i + 2]
        s_3 += values[i + 3]
        s_4 += values[i + 4]
        s_5 += values[i + 5]
        s_6 += values[i + 6]
        s_7 += values[i + 7]
    total = ((s_0 + s_1) + (s_2 + s_3)) + ((s_4 + s_5) + (s_6 + s_7))
    for i in range(n, values.shape[0]):
        total += values[i]
    return total
