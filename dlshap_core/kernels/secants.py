"""Kernels of the fused rules: one pass over memory each, compiled by numba, without the interpreter's lock.

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


@numba.njit(inline="always")
def finite(value: float, top: float) -> float:
    """With `top` in place of infinity."""
    return min(max(value, -top), top)


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
def times_route(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    places_x: np.ndarray,
    places_r: np.ndarray,
    n_inner: int,
    rounding: float,
    largest: float,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of `maxima._route`: `out` (rows, inputs, C) gets the gradient (rows, outputs, C) of each
    window; C channels lie side by side, if that is how they lie in memory, else 1. Where a maximum is NaN it is 0."""
    kind = r.dtype.type
    top, limit_of_size = kind(largest), kind(rounding)
    n_repeats = r.shape[0] // x.shape[0]
    n_outputs, n_channels = gradient.shape[1:]
    limits = np.empty(n_channels, dtype=r.dtype)
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        # Flat, with unsigned places: numba lets signed ones count from the end, which takes as long as the rest.
        observed, reference, result = x[source].reshape(-1), r[row].reshape(-1), out[row].reshape(-1)
        result[:] = 0
        limits[:] = 0
        for o in range(n_outputs):
            for c in range(n_channels):
                value = abs(reference[np.uintp(places_r[row, o, c] * n_channels + c)])
                limits[c] = max(limits[c], value if value < top / 2 else kind(0))
        limits *= limit_of_size
        for o in range(n_outputs):
            for c in range(n_channels):
                best_x = np.uintp(places_x[source, o, c] * n_channels + c)
                best_r = np.uintp(places_r[row, o, c] * n_channels + c)
                value_x, value_r = finite(observed[best_x], top), finite(reference[best_r], top)
                step = value_x - finite(reference[best_x], top)
                is_unchanged, rises = abs(step) <= limits[c], value_x >= value_r
                # Both shares, and no branch: no processor foresees which of the two it is.
                share = (value_x - value_r) / step if rises and value_x != value_r else kind(0)
                result[best_x] += gradient[row, o, c] * (kind(1) if is_unchanged else share)
                step = finite(observed[best_r], top) - value_r
                falls = value_x < value_r and not (is_unchanged and best_r == best_x)
                result[best_r] += gradient[row, o, c] * ((value_x - value_r) / step if falls else kind(0))


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


@numba.njit(nogil=True, cache=True)
def overlap_add(
    columns: np.ndarray, stride: int, padding: int, dilation: int, out: np.ndarray, first: int, last: int
) -> None:
    """Rows first to last of `fused.overlap_add`."""
    n_positions, n_kernel, n_channels = columns.shape[1:]
    length, n_together = out.shape[1], n_kernel if dilation == 1 else 1  # columns that are side by side in the result
    for row in range(first, last):
        out[row] = 0
        result = out[row].reshape(-1)
        for t in range(n_positions):
            source = columns[row, t].reshape(-1)
            for k in range(0, n_kernel, n_together):
                position = t * stride + k * dilation - padding
                start, stop = max(0, -position), min(n_together, length - position)
                if start < stop:
                    ours = result[(position + start) * n_channels : (position + stop) * n_channels]
                    ours += source[(k + start) * n_channels : (k + stop) * n_channels]


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
    n_inner: int,
    series: tuple[float, ...],
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of the rule of `softmaxes.softmax`; x, r are logits, p_x, p_r their softmax over the row."""
    kind = r.dtype.type
    zero, one, below = kind(0), kind(1), kind(0.1)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        top_x, top_r = np.argmax(x[source]), np.argmax(r[row])
        # c = logsumexp = z - log p, best known where p is largest
        c_x, c_r = x[source, top_x] - np.log(p_x[source, top_x]), r[row, top_r] - np.log(p_r[row, top_r])
        step, shift = c_x - c_r, max(c_x, c_r)
        s_x, s_r = np.exp(c_x - shift), np.exp(c_r - shift)
        of_log = one if step == zero else kind(abs(step) / -np.expm1(-abs(step)))
        logits_x, logits_r, probable_x, probable_r, result = x[source], r[row], p_x[source], p_r[row], out[row]
        for i in range(result.shape[0]):
            change = logits_x[i] - logits_r[i]
            change = change if change == change else zero  # both masked by -inf
            result[i] = gradient[row, i] * _exp_secant(probable_x[i], probable_r[i], abs(change - step), below, series)
        scale = kind(_sum(result)) * of_log
        for i in range(result.shape[0]):
            change = logits_x[i] - logits_r[i]
            change = change if change == change else zero
            result[i] -= scale * _exp_secant(probable_x[i] * s_x, probable_r[i] * s_r, abs(change), below, series)


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
