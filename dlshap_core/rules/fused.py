"""Elementwise rules applied to a gradient in one pass over memory, on a CPU.

Written with torch's operations a secant takes five to eight passes over the activations, each as long as the ReLU it
belongs to. These kernels compute the multiplier of each element from the two activations while going back, and multiply
the gradient by it: as many reads and writes as torch's own backward of a ReLU. Nothing but the activations is kept.

Every kernel is (gradient, observed, reference, *rest) -> the gradient times the secant of `rules.secants`.

Shape legend: B rows of references, of which R in a row share a row of the observed activations; M elements in a row.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from dlshap_core.rules import secants

_DTYPES = (torch.float32, torch.float64)
_SMALLEST_ROW = 16  # elements; shorter rows are left to torch, whose loops do not care
_SMALLEST_PART = 1 << 16  # elements of a thread

Kernel = Callable[..., Tensor]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _times_share(
    gradient: np.ndarray, x: np.ndarray, r: np.ndarray, slope: float, out: np.ndarray, first: int, last: int
) -> None:
    """out = gradient (slope + (1 - slope) share) for rows first to last; see `secants.ramp` for the share."""
    n_repeats = r.shape[0] // x.shape[0]
    one, zero = r.dtype.type(1), r.dtype.type(0)
    tiny, low = r.dtype.type(np.finfo(r.dtype).tiny), r.dtype.type(slope)
    high = one - low
    for row in range(first, last):
        source = row // n_repeats
        for i in range(r.shape[1]):
            a, b = x[source, i], r[row, i]
            share = max(a, b) / (abs(a - b) + tiny)
            share = share if share > zero else zero
            share = share if share < one else one
            out[row, i] = gradient[row, i] * (low + high * share)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _times_route(
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
    """Rows first to last of `maxima.route`: `out` (rows, inputs) gets the gradient (rows, outputs) of each window."""
    kind = r.dtype.type
    top, limit_of_size = kind(largest), kind(rounding)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        source = row // (n_repeats * n_inner) * n_inner + row % n_inner
        size = kind(0)
        for o in range(gradient.shape[1]):
            value = abs(r[row, places_r[row, o]])
            if size < value < top / 2:
                size = value
        limit = limit_of_size * size
        out[row] = 0
        for o in range(gradient.shape[1]):
            best_x, best_r, g = places_x[source, o], places_r[row, o], gradient[row, o]
            value_x = min(max(x[source, best_x], -top), top)
            value_r = min(max(r[row, best_r], -top), top)
            step = value_x - min(max(r[row, best_x], -top), top)
            is_unchanged = abs(step) <= limit
            if is_unchanged:
                out[row, best_x] += g
            if value_x >= value_r:
                if not is_unchanged and value_x != value_r:
                    out[row, best_x] += g * ((value_x - value_r) / step)
            elif not (is_unchanged and best_r == best_x):
                step = min(max(x[source, best_r], -top), top) - value_r
                out[row, best_r] += g * ((value_x - value_r) / step)


def route(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    places_x: Tensor,
    places_r: Tensor,
    n_inner: int,
    rounding: float,
    largest: float,
) -> Tensor:
    """What `maxima.route` does with a gradient (rows, outputs): (rows, inputs).

    Args:
        gradient: (B, outputs), B = S K n_inner rows.
        x, r: (S n_inner, inputs) and (B, inputs).
        places_x, places_r: of the maxima, (S n_inner, outputs) and (B, outputs).
        n_inner: rows of one sequence.
        rounding: relative to the largest maximum of a row, what counts as no change.
        largest: stands for infinity.
    """
    out = torch.empty_like(r)
    tensors = [gradient.to(r.dtype).contiguous(), x, r, places_x, places_r]
    arrays: list[Any] = [*(tensor.numpy() for tensor in tensors), n_inner, rounding, largest, out.numpy()]
    _in_parts(functools.partial(_times_route, *arrays), r.shape[0], r.numel())
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ratios(
    x: np.ndarray,
    r: np.ndarray,
    y_x: np.ndarray,
    y_r: np.ndarray,
    least: float,
    most: float,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """(y_x - y_r) / (x - r) for rows first to last, or NaN where x and r are too close for it, as in `secants.smooth`."""
    kind = r.dtype.type
    low, high, infinite = kind(least), kind(most), kind(np.inf)
    n_repeats = r.shape[0] // x.shape[0]
    for row in range(first, last):
        inputs, values, result = x[row // n_repeats], y_x[row // n_repeats], out[row]
        for i in range(result.shape[0]):
            difference = inputs[i] - r[row, i]
            limit = min(max(low * max(abs(values[i]), abs(y_r[row, i])), low), high)
            ratio = (values[i] - y_r[row, i]) / difference
            ratio = ratio if abs(ratio) < infinite else kind(0)
            result[i] = ratio if abs(difference) >= limit else kind(np.nan)


def smooth_secant(function: Callable[[Tensor], Tensor], x: Tensor, r: Tensor, y_r: Tensor) -> Tensor:
    """`secants.smooth` of activations that fit, of the shape of r; y_r is the function at r.

    Few elements are so close that the derivative has to be averaged, and only they are.
    """
    n_observed, n_rows = _rows(x, r)
    flat_x, flat_r = x.view(n_observed, -1), r.view(n_rows, -1)
    out = torch.empty_like(flat_r)
    tensors = [flat_x, flat_r, function(x).reshape(flat_x.shape), y_r.reshape(flat_r.shape)]
    arrays: list[Any] = [*(z.contiguous().numpy() for z in tensors), *secants.STEPS[r.dtype], out.numpy()]
    _in_parts(functools.partial(_ratios, *arrays), n_rows, r.numel())
    close = out.view(-1).isnan().nonzero().squeeze(1)
    n_elements = flat_r.shape[1]
    source = close // n_elements // (n_rows // n_observed) * n_elements + close % n_elements
    out.view(-1)[close] = secants.average_derivative(function, x.view(-1)[source], r.view(-1)[close])
    return out.view(r.shape)


# (1 - exp(-t)) / t = 1 - t/2 + t^2/6 - ..., as in `softmaxes`
_SERIES = np.array([(-1) ** k / math.factorial(k + 1) for k in range(10)])


@numba.njit(inline="always")
def _exp_secant(a_x: float, a_r: float, apart: float, below: float, series: tuple[float, ...]) -> float:
    """As `softmaxes._exp_secant`."""
    s_0, s_1, s_2, s_3, s_4, s_5, s_6, s_7, s_8, s_9 = series  # written out: a loop over them is not vectorised
    close = ((((s_9 * apart + s_8) * apart + s_7) * apart + s_6) * apart + s_5) * apart + s_4
    close = (((close * apart + s_3) * apart + s_2) * apart + s_1) * apart + s_0
    return max(a_x, a_r) * close if apart < below else abs(a_x - a_r) / apart


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _times_softmax(
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


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _sum(values: np.ndarray) -> float:
    """In float64, in whatever order the processor likes."""
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return total


def softmax(gradient: Tensor, x: Tensor, r: Tensor, p_x: Tensor, p_r: Tensor, n_inner: int) -> Tensor:
    """The gradient at a softmax over the last axis, taken to its logits.

    Args:
        gradient: (B, ..., M).
        x, p_x: logits of the S sequences and their softmax, (S, ..., M).
        r, p_r: those of the references, (B, ..., M).
        n_inner: rows of one sequence, the product of the axes between.
    """
    gradient, *others = (z.flatten(0, -2).contiguous() for z in (gradient.to(r.dtype), x, r, p_x, p_r))
    out = torch.empty_like(others[1])
    arrays: list[Any] = [gradient.numpy(), *(z.numpy() for z in others), n_inner]
    arrays += [tuple(_SERIES.astype(arrays[0].dtype)), out.numpy()]
    _in_parts(functools.partial(_times_softmax, *arrays), len(out), out.numel())
    return out.view(r.shape)


def relu(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """The gradient (B, M) times the share of [r, x] that is positive; x is (B / R, M)."""
    return leaky_relu(gradient, x, r, 0.0)


def leaky_relu(gradient: Tensor, x: Tensor, r: Tensor, negative_slope: float = 0.01) -> Tensor:
    """The gradient (B, M) times 1 for the positive share of [r, x] and the slope for the rest."""
    out = torch.empty_like(r)
    arrays: list[Any] = [gradient.numpy(), x.numpy(), r.numpy(), float(negative_slope), out.numpy()]
    _in_parts(functools.partial(_times_share, *arrays), r.shape[0], r.numel())
    return out


def fits(x: Tensor, r: Tensor) -> bool:
    """Whether the kernels take an observed (..., 1, ...) and a reference activation (..., R, ...), as `Rows.beside`
    gives them, or two of the same shape."""
    return takes(x, r) and x.is_contiguous() and r.is_contiguous() and r.numel() >= _SMALLEST_ROW * _rows(x, r)[1]


def takes(*activations: Tensor) -> bool:
    """Whether activations are where, and of a dtype, that the kernels are for."""
    return all(z.device.type == "cpu" and z.dtype in _DTYPES and z.dtype == activations[0].dtype for z in activations)


def pull_back(kernel: Kernel, gradient: Tensor, x: Tensor, r: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """The kernel on activations that fit and a gradient of as many elements as r; of the gradient's shape."""
    n_observed, n_rows = _rows(x, r)
    flat = gradient.to(r.dtype).contiguous().view(n_rows, -1)
    return kernel(flat, x.view(n_observed, -1), r.view(n_rows, -1), *rest).view(gradient.shape)


def _rows(x: Tensor, r: Tensor) -> tuple[int, int]:
    """Rows of the observed activation, and of the reference's."""
    axis = next((d for d in range(r.ndim) if x.shape[d] != r.shape[d]), 0)
    return x.shape[: axis + 1].numel(), r.shape[: axis + 1].numel()


def _in_parts(kernel: Callable[[int, int], None], n_rows: int, n_elements: int) -> None:
    """Rows shared among as many threads as torch would use. Numba's own threads serve one caller at a time."""
    n_parts = min(torch.get_num_threads(), n_rows, max(1, n_elements // _SMALLEST_PART))
    if n_parts == 1:
        kernel(0, n_rows)
        return
    edges = [n_rows * part // n_parts for part in range(n_parts + 1)]
    own, *others = itertools.pairwise(edges)
    pending = [_threads().submit(kernel, *part) for part in others]
    kernel(*own)
    for part in pending:
        part.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="dlshap-fused")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has none of the threads
