"""Compiled kernels of max-pooling; rows and constants as in `secants`.

`times_route` goes to the place of each maximum, whatever the windows. Where these are evenly spaced in one axis, and
the channels lie side by side, `times_route_of_windows` looks for the maxima itself, all channels at once. Every loop of
it is a function of its own with few arrays, or the compiler would not vectorise it.

Shape legend: rows of the references, inputs, outputs or windows of `size` inputs, C channels; x is the observed side, r
the references.
"""

import numba
import numpy as np

# Of the channels at a place, how many must stand still before one of them is taken to (see `maxima`): as many as
# coincidence does not bring about, and no more than one branch of a network has whose branches are side by side.
LEAST_STANDING, ONE_STANDING_OF = 3, 8


@numba.njit(inline="always")
def finite(value: float, top: float) -> float:
    """With `top` in place of infinity."""
    return min(max(value, -top), top)


@numba.njit(inline="always")
def is_close(a: float, b: float, rounding: float) -> bool:
    """As `maxima._are_close`."""
    return abs(a - b) <= rounding * max(abs(a), abs(b))


@numba.njit(cache=True)
def stands_still(
    x: np.ndarray, r: np.ndarray, source: int, row: int, n_inner: int, place: int, rounding: float, top: float
) -> bool:
    """As `maxima._stand_still`: whether enough channels at a place are unchanged; x and r as in `times_route`, the
    channels being the `n_inner` rows from `source` and `row` on."""
    n_active = n_still = 0
    for k in range(n_inner):
        for c in range(x.shape[2]):
            a, b = x[source + k, place, c], r[row + k, place, c]
            if (a != 0 or b != 0) and abs(a) < top / 2 and abs(b) < top / 2:
                n_active += 1
                n_still += is_close(a, b, rounding)
    return n_still * ONE_STANDING_OF >= n_active and (n_still >= LEAST_STANDING or n_still == n_active)


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
    """Rows first to last of `maxima._shares`: `out` (rows, inputs, C) gets the gradient (rows, outputs, C) of each
    window; C channels lie side by side, if that is how they lie in memory, else 1. NaN has a share of 0, or of 1 where
    both maxima have one place."""
    kind = r.dtype.type
    top, few, zero, one = kind(largest), kind(rounding), kind(0), kind(1)
    n_repeats = r.shape[0] // x.shape[0]
    n_outputs, n_channels = gradient.shape[1:]
    for row in range(first, last):
        inner = row % n_inner
        source = row // (n_repeats * n_inner) * n_inner + inner
        # Flat, with unsigned places: numba lets signed ones count from the end, which takes as long as the rest.
        observed, reference, result = x[source].reshape(-1), r[row].reshape(-1), out[row].reshape(-1)
        result[:] = 0
        for o in range(n_outputs):
            for c in range(n_channels):
                best_x = np.uintp(places_x[source, o, c] * n_channels + c)
                best_r = np.uintp(places_r[row, o, c] * n_channels + c)
                value_x, value_r = finite(observed[best_x], top), finite(reference[best_r], top)
                r_there, x_there = finite(reference[best_x], top), finite(observed[best_r], top)
                change, is_one_place = value_x - value_r, best_x == best_r
                # Both shares, and no branch: no processor foresees which of the two it is.
                share = change / (value_x - r_there) if change > zero else zero
                is_still = is_close(value_x, r_there, few)
                if is_still and change < zero and value_x != zero and not is_one_place:
                    place = places_x[source, o, c]
                    is_still = stands_still(x, r, source - inner, row - inner, n_inner, place, few, top)
                result[best_x] += gradient[row, o, c] * (one if is_one_place or is_still else share)
                falls = change < zero and not is_one_place and not is_close(x_there, value_r, few)
                result[best_r] += gradient[row, o, c] * (change / (x_there - value_r) if falls else zero)


@numba.njit(nogil=True, cache=True)
def times_route_of_windows(
    gradient: np.ndarray,
    x: np.ndarray,
    r: np.ndarray,
    size: int,
    stride: int,
    padding: int,
    dilation: int,
    rounding: float,
    largest: float,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Rows first to last of `maxima._shares`: `out` (rows, inputs, C) gets the gradient (rows, windows, C). NaN is
    no maximum."""
    top, few = r.dtype.type(largest), r.dtype.type(rounding)
    n_repeats, n_inputs = r.shape[0] // x.shape[0], r.shape[1]
    n_windows, n_channels = gradient.shape[1], gradient.shape[2]
    are_blocks = size == stride and padding == 0 and dilation == 1
    work = np.empty((10, n_channels), r.dtype)  # taken apart by an index: unpacking hides that its rows are contiguous
    max_x, max_r, r_at_x, x_at_r, place_x = work[0], work[1], work[2], work[3], work[4]
    place_r, apart, share_x, share_r, is_open = work[5], work[6], work[7], work[8], work[9]
    open_bits = is_open.view(np.uint32)
    for row in range(first, last):
        source = row // n_repeats
        observed, reference = x[source], r[row]
        out[row, n_windows * size if are_blocks else 0 :] = 0
        for window in range(n_windows):
            start, begin = window * stride - padding, 0
            while start + begin * dilation < 0:
                begin += 1
            end = min(size, (n_inputs - 1 - start) // dilation + 1)
            place = start + begin * dilation
            max_x[:], r_at_x[:], place_x[:] = observed[place], reference[place], begin
            max_r[:], x_at_r[:], place_r[:] = reference[place], observed[place], begin
            for j in range(begin + 1, end):
                place = start + j * dilation
                _find(observed[place], reference[place], j, max_x, r_at_x, place_x)
                _find(reference[place], observed[place], j, max_r, x_at_r, place_r)
            np.subtract(place_x, place_r, apart)
            _share_observed(max_x, max_r, r_at_x, apart, few, top, share_x, is_open)
            _share_reference(max_x, max_r, x_at_r, apart, few, top, share_r)
            if _any(open_bits):
                for c in range(n_channels):
                    place = start + int(place_x[c]) * dilation
                    if is_open[c] != 0 and stands_still(x, r, source, row, 1, place, few, top):
                        share_x[c] = 1
            for j in range(begin, end):
                place = start + j * dilation
                if are_blocks:
                    _send(gradient[row, window], j, place_x, share_x, place_r, share_r, out[row, place])
                else:
                    _send_more(gradient[row, window], j, place_x, share_x, place_r, share_r, out[row, place])


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
    max_x: np.ndarray,
    max_r: np.ndarray,
    r_at_x: np.ndarray,
    apart: np.ndarray,
    rounding: float,
    top: float,
    share: np.ndarray,
    is_open: np.ndarray,
) -> None:
    """Of the gradient, for the place of the observed maximum, `apart` from the reference's; where `is_open` is not 0 it
    is 1 if that place stands still, else 0."""
    zero, one = share.dtype.type(0), share.dtype.type(1)
    for c in range(share.shape[0]):
        value_x, value_r = finite(max_x[c], top), finite(max_r[c], top)
        r_there, change = finite(r_at_x[c], top), value_x - value_r
        ratio = change / (value_x - r_there)
        ratio = ratio if change > zero else zero
        is_still, is_one_place = is_close(value_x, r_there, rounding), apart[c] == zero
        is_known = (change >= zero) | (value_x == zero)
        share[c] = one if is_one_place | (is_still & is_known) else ratio
        is_open[c] = one if is_still & (not is_known) & (not is_one_place) else zero


@numba.njit(cache=True)
def _any(bits: np.ndarray) -> bool:
    together = np.uint32(0)  # or-ed, as integers are taken several at a time and sums of floats are not
    for c in range(bits.shape[0]):
        together |= bits[c]
    return together != 0


@numba.njit(cache=True, error_model="numpy")
def _share_reference(
    max_x: np.ndarray,
    max_r: np.ndarray,
    x_at_r: np.ndarray,
    apart: np.ndarray,
    rounding: float,
    top: float,
    share: np.ndarray,
) -> None:
    """Of the gradient, for the place of the reference's maximum."""
    zero = share.dtype.type(0)
    for c in range(share.shape[0]):
        value_x, value_r = finite(max_x[c], top), finite(max_r[c], top)
        x_there, change = finite(x_at_r[c], top), value_x - value_r
        ratio = zero if is_close(x_there, value_r, rounding) else change / (x_there - value_r)
        share[c] = ratio if (change < zero) & (apart[c] != zero) else zero


@numba.njit(inline="always")
def _share_here(here: float, place_x: float, share_x: float, place_r: float, share_r: float, zero: float) -> float:
    return (share_x if place_x == here else zero) + (share_r if place_r == here else zero)


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
        out[c] = gradient[c] * _share_here(here, place_x[c], share_x[c], place_r[c], share_r[c], zero)


@numba.njit(cache=True)
def _send_more(
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
        out[c] += gradient[c] * _share_here(here, place_x[c], share_x[c], place_r[c], share_r[c], zero)
