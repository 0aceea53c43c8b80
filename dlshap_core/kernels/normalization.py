"""The compiled kernel of layer and RMS norms; rows as in `secants`."""

import numba
import numpy as np

_LANES = 16  # partial sums, whose order is the same on every processor


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
        slope, bend = half * (s_x + s_r), -((s_x * s_r) ** 2) / (s_x + s_r) / kind(2 * n)
        spread = kind(product) * bend if abs(bend) < np.inf else zero
        mean = kind(total / n) if centres else zero
        for i in range(n):
            result[i] = (flowing[i] - mean) * slope + both[i] * spread
