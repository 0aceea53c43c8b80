"""Compiled kernels of norms; rows as in `secants`."""

import numba
import numpy as np

_LANES = 16  # partial sums, whose order is the same on every processor
_CHUNK = 64  # positions whose sum is taken in the numbers of the activations; longer sums in float64


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_norm(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    weight: np.ndarray,
    means_x: np.ndarray,
    scales_x: np.ndarray,
    means_r: np.ndarray,
    scales_r: np.ndarray,
    n_inner: int,
    centres: bool,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of the rule of `normalization._standardise_rule`; means and scales are one of each row."""
    kind = r.dtype.type
    zero, half, n = kind(0), kind(0.5), r.shape[1]
    n_repeats, whole = r.shape[0] // x.shape[0], n - n % _LANES
    both, flowing = np.empty_like(r[0]), np.empty_like(r[0])
    sums, products = np.empty(_LANES, r.dtype), np.empty(_LANES, r.dtype)
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        s_x, s_r, shift = scales_x[source], scales_r[row], means_x[source] + means_r[row]
        observed, reference, given, result = x[source], r[row], gradient[row], out[row]
        for i in range(n):
            both[i] = observed[i] + reference[i] - shift
            flowing[i] = given[i] * weight[i]
        sums[:] = 0
        products[:] = 0
        for i in range(0, whole, _LANES):
            for lane in range(_LANES):
                sums[lane] += flowing[i + lane]
                products[lane] += flowing[i + lane] * both[i + lane]
        total, product = 0.0, 0.0
        for lane in range(_LANES):
            total += sums[lane]
            product += products[lane]
        for i in range(whole, n):
            total += flowing[i]
            product += flowing[i] * both[i]
        both_scales = s_x * s_r
        slope, bend = half * (s_x + s_r), -both_scales * (both_scales / (s_x + s_r)) / kind(2 * n)
        spread = kind(product) * bend if abs(bend) < np.inf else zero
        mean = kind(total / n) if centres else zero
        for i in range(n):
            result[i] = (flowing[i] - mean) * slope + both[i] * spread


@numba.njit(nogil=True, cache=True, error_model="numpy")
def group_norm(
    z: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    means: np.ndarray,
    scales: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of activations (rows, L, C) normalised by group of channels, with weights and biases (C), and
    the means and rsqrt(variance + eps), both (rows, groups)."""
    n_positions, n_channels = z.shape[1:]
    size = n_channels // means.shape[1]
    n = n_positions * size
    work = np.empty((3, n_channels), z.dtype)  # taken apart by an index, as in `max_pooling`
    centre, factor, sums = work[0], work[1], work[2]
    totals = np.empty(n_channels, np.float64)
    for row in range(first, last):
        values = z[row]
        totals[:] = 0
        for start in range(0, n_positions, _CHUNK):
            sums[:] = 0
            for i in range(start, min(start + _CHUNK, n_positions)):
                _add_differences(values[i], values[0], sums)
            _add(sums, totals)
        _add_multiple(values[0], n_positions, totals)
        for group in range(means.shape[1]):
            channels = slice(group * size, (group + 1) * size)
            means[row, group] = totals[channels].sum() / n
            centre[channels] = means[row, group]
        totals[:] = 0
        for start in range(0, n_positions, _CHUNK):
            sums[:] = 0
            for i in range(start, min(start + _CHUNK, n_positions)):
                _add_squares(values[i], centre, sums)
            _add(sums, totals)
        for group in range(means.shape[1]):
            channels = slice(group * size, (group + 1) * size)
            scales[row, group] = 1 / np.sqrt(totals[channels].sum() / n + eps)
            factor[channels] = weight[channels] * scales[row, group]
        for i in range(n_positions):
            _scale(values[i], centre, factor, bias, out[row, i])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def times_group_norm(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    weight: np.ndarray,
    means_x: np.ndarray,
    scales_x: np.ndarray,
    means_r: np.ndarray,
    scales_r: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """`times_norm` of groups of channels that lie side by side: activations are (rows, L, C), means and scales (rows,
    groups)."""
    kind = r.dtype.type
    n_positions, n_channels = r.shape[1:]
    size = n_channels // means_r.shape[1]
    n, n_repeats = n_positions * size, r.shape[0] // x.shape[0]
    work = np.empty((6, n_channels), r.dtype)  # taken apart by an index, as in `max_pooling`
    shift, slope, mean, spread, sums, products = work[0], work[1], work[2], work[3], work[4], work[5]
    totals, total_products = np.empty(n_channels, np.float64), np.empty(n_channels, np.float64)
    for row in range(first, last):
        source = row // n_repeats
        for c in range(n_channels):
            shift[c] = means_x[source, c // size] + means_r[row, c // size]
        totals[:] = 0
        total_products[:] = 0
        for start in range(0, n_positions, _CHUNK):
            sums[:] = 0
            products[:] = 0
            for i in range(start, min(start + _CHUNK, n_positions)):
                _add_flow(gradient[row, i], x[source, i], r[row, i], weight, shift, sums, products)
            _add(sums, totals)
            _add(products, total_products)
        for group in range(means_r.shape[1]):
            channels = slice(group * size, (group + 1) * size)
            s_x, s_r = scales_x[source, group], scales_r[row, group]
            both_scales = s_x * s_r
            bend = -both_scales * (both_scales / (s_x + s_r)) / kind(2 * n)
            slope[channels] = kind(0.5) * (s_x + s_r)
            mean[channels] = totals[channels].sum() / n
            spread[channels] = kind(total_products[channels].sum()) * bend if abs(bend) < np.inf else kind(0)
        for i in range(n_positions):
            _put(gradient[row, i], x[source, i], r[row, i], weight, shift, mean, slope, spread, out[row, i])


@numba.njit(cache=True)
def _add(values: np.ndarray, sums: np.ndarray) -> None:
    for c in range(sums.shape[0]):
        sums[c] += values[c]


@numba.njit(cache=True)
def _add_differences(values: np.ndarray, others: np.ndarray, sums: np.ndarray) -> None:
    for c in range(sums.shape[0]):
        sums[c] += values[c] - others[c]


@numba.njit(cache=True)
def _add_multiple(values: np.ndarray, factor: int, sums: np.ndarray) -> None:
    for c in range(sums.shape[0]):
        sums[c] += np.float64(values[c]) * factor


@numba.njit(cache=True)
def _scale(values: np.ndarray, centre: np.ndarray, factor: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    for c in range(out.shape[0]):
        out[c] = (values[c] - centre[c]) * factor[c] + bias[c]


@numba.njit(cache=True)
def _add_squares(values: np.ndarray, centre: np.ndarray, sums: np.ndarray) -> None:
    for c in range(sums.shape[0]):
        sums[c] += (values[c] - centre[c]) * (values[c] - centre[c])


@numba.njit(cache=True)
def _add_flow(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    weight: np.ndarray,
    shift: np.ndarray,
    sums: np.ndarray,
    products: np.ndarray,
) -> None:
    for c in range(sums.shape[0]):
        flowing = gradient[c] * weight[c]
        sums[c] += flowing
        products[c] += flowing * (x[c] + r[c] - shift[c])


@numba.njit(cache=True)
def _put(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    weight: np.ndarray,
    shift: np.ndarray,
    mean: np.ndarray,
    slope: np.ndarray,
    spread: np.ndarray,
    out: np.ndarray,
) -> None:
    for c in range(out.shape[0]):
        out[c] = (gradient[c] * weight[c] - mean[c]) * slope[c] + (x[c] + r[c] - shift[c]) * spread[c]
