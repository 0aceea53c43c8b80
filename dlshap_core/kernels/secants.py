"""Compiled kernels of secants: one pass over memory each, without the interpreter's lock.

Every kernel works on rows first to last of its arrays, whose rows are those of the references; the observed side has
one row for several of them. Constants are made of the arrays' own dtype, or single precision would be computed in
double.

Shape legend: rows of the references, elements of a row; x is the observed side, r the references.
"""

import numba
import numpy as np


@numba.njit(inline="always")
def _share(a: float, b: float, tiny: float, zero: float, one: float) -> float:
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
            result[i] = flowing[i] * (low + high * _share(a, b, tiny, zero, one))


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
            result[i] = low + high * _share(a, b, tiny, zero, one)


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
