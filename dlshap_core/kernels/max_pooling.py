"""The kernel of max-pooling over blocks, windows that neither overlap nor leave gaps, with the channels side by side.

It looks for the maxima itself, all channels at once, where `kernels.times_route` goes to the place of each. Every loop
is a function of its own with few arrays, or the compiler would not vectorise it.

Shape legend: rows of the references, inputs, blocks of `size` inputs, C channels; x is the observed side, r the
references.
"""

import numba
import numpy as np

from dlshap_core.rules.kernels import finite


@numba.njit(nogil=True, cache=True)
def times_route_of_blocks(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    size: int,
    rounding: float,
    largest: float,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of `maxima._route`: `out` (rows, inputs, C) gets the gradient (rows, blocks, C). NaN is
    no maximum."""
    top = r.dtype.type(largest)
    n_repeats, n_blocks, n_channels = r.shape[0] // x.shape[0], gradient.shape[1], gradient.shape[2]
    work = np.empty((10, n_channels), r.dtype)  # taken apart by an index: unpacking hides that its rows are contiguous
    limits, max_x, max_r, r_at_x, x_at_r = work[0], work[1], work[2], work[3], work[4]
    place_x, place_r, apart, share_x, share_r = work[5], work[6], work[7], work[8], work[9]
    for row in range(first, last):
        observed, reference = x[row // n_repeats], r[row]
        limits[:] = 0
        for start in range(0, n_blocks * size, size):
            max_r[:] = reference[start]
            for j in range(start + 1, start + size):
                _raise(max_r, reference[j])
            _raise_to_size(limits, max_r, top)
        limits *= r.dtype.type(rounding)
        for block in range(n_blocks):
            start = block * size
            max_x[:], r_at_x[:], place_x[:] = observed[start], reference[start], 0
            max_r[:], x_at_r[:], place_r[:] = reference[start], observed[start], 0
            for j in range(1, size):
                _find(observed[start + j], reference[start + j], j, max_x, r_at_x, place_x)
                _find(reference[start + j], observed[start + j], j, max_r, x_at_r, place_r)
            _share_observed(max_x, max_r, r_at_x, limits, top, share_x)
            np.subtract(place_x, place_r, apart)
            _share_reference(max_x, max_r, r_at_x, x_at_r, apart, limits, top, share_r)
            for j in range(size):
                _send(gradient[row, block], j, place_x, share_x, place_r, share_r, out[row, start + j])
        out[row, n_blocks * size :] = 0


@numba.njit(cache=True)
def _raise(largest: np.ndarray, values: np.ndarray) -> None:
    for c in range(values.shape[0]):
        largest[c] = values[c] if values[c] > largest[c] else largest[c]


@numba.njit(cache=True)
def _raise_to_size(limits: np.ndarray, values: np.ndarray, top: float) -> None:
    """Masked inputs (-inf, -1e9) are no measure of rounding."""
    zero, half = limits.dtype.type(0), top / limits.dtype.type(2)
    for c in range(values.shape[0]):
        value = abs(values[c])
        value = value if value < half else zero
        limits[c] = value if value > limits[c] else limits[c]


@numba.njit(cache=True)
def _find(
    values: np.ndarray, others: np.ndarray, place: int, maxima: np.ndarray, others_there: np.ndarray, places: np.ndarray
) -> None:
    """Where the values are larger they are the maxima, of the first of equal places."""
    here = maxima.dtype.type(place)
    for c in range(values.shape[0]):
        is_larger = values[c] > maxima[c]
        maxima[c] = values[c] if is_larger else maxima[c]
        others_there[c] = others[c] if is_larger else others_there[c]
        places[c] = here if is_larger else places[c]


@numba.njit(cache=True, error_model="numpy")
def _share_observed(
    max_x: np.ndarray, max_r: np.ndarray, r_at_x: np.ndarray, limits: np.ndarray, top: float, share: np.ndarray
) -> None:
    """Of the gradient, for the place of the observed maximum."""
    zero, one = share.dtype.type(0), share.dtype.type(1)
    for c in range(share.shape[0]):
        value_x, value_r = finite(max_x[c], top), finite(max_r[c], top)
        change, step = value_x - value_r, value_x - finite(r_at_x[c], top)
        ratio = change / step
        ratio = ratio if change > zero else zero
        share[c] = one if abs(step) <= limits[c] else ratio


@numba.njit(cache=True, error_model="numpy")
def _share_reference(
    max_x: np.ndarray,
    max_r: np.ndarray,
    r_at_x: np.ndarray,
    x_at_r: np.ndarray,
    apart: np.ndarray,
    limits: np.ndarray,
    top: float,
    share: np.ndarray,
) -> None:
    """Of the gradient, for the place of the reference's maximum, `apart` from the observed one's."""
    zero = share.dtype.type(0)
    for c in range(share.shape[0]):
        value_x, value_r = finite(max_x[c], top), finite(max_r[c], top)
        change, step = value_x - value_r, finite(x_at_r[c], top) - value_r
        ratio = change / step
        is_unchanged = abs(value_x - finite(r_at_x[c], top)) <= limits[c]
        ratio = zero if is_unchanged and apart[c] == zero else ratio
        share[c] = ratio if change < zero else zero


@numba.njit(cache=True)
def _send(
    gradient: np.ndarray,
    place: int,
    place_x: np.ndarray,
    share_x: np.ndarray,
    place_r: np.ndarray,
    share_r: np.ndarray,
    out: np.ndarray,
) -> None:
    zero, here = out.dtype.type(0), out.dtype.type(place)
    for c in range(out.shape[0]):
        share = (share_x[c] if place_x[c] == here else zero) + (share_r[c] if place_r[c] == here else zero)
        out[c] = gradient[c] * share
