"""The compiled kernel of softmax, log_softmax and logsumexp; rows and constants as in `secants`."""

import math

import numba
import numpy as np

# Up to this difference of logits (1 - exp(-t)) / t is summed up as a series: its ten terms are exact to float64's last
# digits there, and beyond it the difference of exponentials has lost no more than one digit.
SERIES_BELOW = 0.1
# (1 - exp(-t)) / t = 1 - t/2 + t^2/6 - ...
SERIES = np.array([(-1) ** k / math.factorial(k + 1) for k in range(10)])
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
    s_x: np.ndarray,
    s_r: np.ndarray,
    of_log: np.ndarray,
    n_inner: int,
    kind: int,
    series: tuple[float, ...],
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of the rule of `KINDS[kind]`; x, r are logits, p_x, p_r their softmax over the row, and of
    each row there are c - c0 of c = logsumexp, exp of both under their larger one as the shift, and the secant of log
    at these."""
    number = r.dtype.type
    zero, below = number(0), number(SERIES_BELOW)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        step, sum_x, sum_r = steps[row], s_x[row], s_r[row]
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
        scale = number(-gradient[row, 0] if kind == 2 else _sum(result)) * of_log[row]
        for i in range(result.shape[0]):
            change = logits_x[i] - logits_r[i]
            change = change if change == change else zero
            result[i] -= scale * _exp_secant(probable_x[i] * sum_x, probable_r[i] * sum_r, abs(change), below, series)


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
