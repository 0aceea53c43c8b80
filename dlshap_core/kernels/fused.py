"""Rules in one pass over memory, on a CPU; the formulas are those of `secants`, `maxima` and `softmaxes`.

Written with torch's operations a secant takes five to eight passes over the activations, each as long as the ReLU it
belongs to. Here most multipliers are computed from the two activations while going back, and the gradient is taken
times them: as many reads and writes as torch's own backward of a ReLU, and nothing but the activations is kept.

Shape legend: B rows of references, of which R in a row share a row of the observed activations; M elements in a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.kernels import convolution, max_pooling, normalization, secants
from dlshap_core.kernels import softmax as softmax_kernel
from dlshap_core.kernels.memory_format import FormatChoice, order_in_memory, put_back
from dlshap_core.kernels.threads import in_parts
from dlshap_core.torch_private import onednn_linear

_DTYPES = (torch.float32, torch.float64)
_SMALLEST_ROW = 16  # elements; shorter rows are left to torch, whose loops do not care
_SMALLEST_PRODUCT = 1 << 21  # multiplications; oneDNN prepares for each

Kernel = Callable[..., Tensor]


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
    """What `maxima._shares` makes of a gradient (rows, outputs, C): (rows, inputs, C).

    Args:
        gradient: (B, outputs, C), B = S K n_inner rows, C channels that lie side by side in memory.
        x, r: (S n_inner, inputs, C) and (B, inputs, C).
        places_x, places_r: of the maxima, (S n_inner, outputs, C) and (B, outputs, C).
        n_inner: rows of one sequence, its channels.
        rounding: relative to an input, what counts as no change.
        largest: stands for infinity.
    """
    out = torch.empty_like(r)
    tensors = [gradient.to(r.dtype).contiguous(), x, r, places_x, places_r]
    arrays: list[Any] = [*(tensor.numpy() for tensor in tensors), n_inner, rounding, largest, out.numpy()]
    in_parts(max_pooling.times_route, arrays, r.shape[0], r.numel())
    return out


def route_of_windows(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    size: int,
    stride: int,
    padding: int,
    dilation: int,
    rounding: float,
    largest: float,
) -> Tensor:
    """`route` where the windows are evenly spaced in one axis, as in max_pool1d: gradient (B, windows, C), x (S,
    inputs, C), r and the result (B, inputs, C)."""
    out = torch.empty_like(r)
    tensors = [gradient.to(r.dtype).contiguous(), x, r]
    arrays: list[Any] = [*(tensor.numpy() for tensor in tensors), size, stride, padding, dilation, rounding, largest]
    in_parts(max_pooling.times_route_of_windows, [*arrays, out.numpy()], r.shape[0], r.numel())
    return out


def secant(
    function: Callable[[Tensor], Tensor],
    of_close: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    r: Tensor,
    y_r: Tensor,
    steps: tuple[float, float],
) -> Tensor:
    """The secant of a function at activations that fit, of the shape of r; y_r is the function at r.

    It is the ratio of differences but of the few elements that are too close for it, by `secants.STEPS`, which are left
    to `of_close`.
    """
    flat = Flat(x, r)
    flat_x, flat_r = flat.x, flat.r
    n_rows = len(flat_r)
    arrays: list[Any] = [z.contiguous().numpy() for z in (flat_x, flat_r, function(flat_x), flat.of(y_r))]
    out = torch.empty_like(flat_r)
    ratios, n_close = out.numpy(), np.empty(n_rows, dtype=np.int64)
    is_close = np.empty((n_rows, -(-flat_r.shape[1] // 8)), dtype=np.uint64)  # a byte each, low byte first
    in_parts(secants.ratios, [*arrays, steps, ratios, is_close.view(np.uint8), n_close], n_rows, r.numel())
    ends = n_close.cumsum()
    if ends[-1] > 0:
        close, places = r.new_empty(2, int(ends[-1])), np.empty(ends[-1], dtype=np.int64)
        in_parts(secants.gather, [*arrays[:2], is_close, ends, places, close.numpy()], n_rows, r.numel())
        in_parts(secants.put, [of_close(*close).numpy(), ends, places, ratios], n_rows, r.numel())
    return flat.back(out)


def softmax(gradient: Tensor, x: Tensor, r: Tensor, p_x: Tensor, p_r: Tensor, kind: str) -> Tensor:
    """The gradient at a softmax, log_softmax or logsumexp (`kind`) over the last axis, taken to its logits.

    Args:
        gradient: (..., S, R, ..., M); (..., 1) of logsumexp.
        x, p_x: logits of the sequences and their softmax, (..., S, 1, ..., M), or all of one shape.
        r, p_r: those of the references, (..., S, R, ..., M).
        kind: of the function.
    """
    if r.numel() == 0:
        return torch.empty_like(r)
    n_first = next((axis + 1 for axis in range(r.ndim) if x.shape[axis] != r.shape[axis]), 0)
    order, place = _order_for_softmax(r, n_first)
    flowing, *sides = (z.permute(order).contiguous() for z in (gradient.to(r.dtype), x, r, p_x, p_r))
    # c = logsumexp = z - log p, best known where both are largest
    c_x, c_r = (z.amax(place) - p.amax(place).log() for z, p in (sides[::2], sides[1::2]))
    steps = c_x - c_r
    shape = sides[1].shape
    n_inner, n_beside = shape[n_first:place].numel(), shape[place + 1 :].numel()
    tensors = [z.view(-1, z.shape[place], n_beside) for z in (flowing, *sides)]
    tensors += [z.view(-1, n_beside) for z in (steps, steps.abs().neg_().exp_())]
    out = torch.empty_like(tensors[2])
    kernel = softmax_kernel.times_softmax_side_by_side if n_beside > 1 else softmax_kernel.times_softmax
    arrays: list[Any] = [(z if n_beside > 1 else z.squeeze(-1)).numpy() for z in (*tensors, out)]
    constants = n_inner, softmax_kernel.KINDS.index(kind), tuple(softmax_kernel.SERIES.astype(arrays[0].dtype))
    in_parts(kernel, [*arrays[:-1], *constants, arrays[-1]], len(out), out.numel())
    return put_back(out.view(shape), order)


def softmax_of(z: Tensor) -> Tensor:
    """As torch.softmax over the last axis, which takes ten times as long where that has few elements side by side."""
    if z.numel() == 0:
        return torch.softmax(z, -1)
    order, place = _order_for_softmax(z, 1)
    value = put_back(torch.softmax(z.permute(order).contiguous(), place), order)
    return torch.empty_like(z).copy_(value) if order != order_in_memory(z) else value


def _order_for_softmax(z: Tensor, n_first: int) -> tuple[list[int], int]:
    """The axes in the order for a softmax over the last one, and the place of that one: some stay in front, and the
    others are as they lie in memory, with many elements or many softmaxes side by side."""
    last = z.ndim - 1
    order = [*range(n_first), *(axis for axis in order_in_memory(z) if axis >= n_first)]
    place = order.index(last)
    if math.prod(z.shape[axis] for axis in order[place + 1 :]) < _SMALLEST_ROW:
        order.remove(last)
        place = last if z.shape[last] >= _SMALLEST_ROW else n_first
        order.insert(place, last)
    return order, place


def normalise(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    weight: Tensor | None,
    statistics: tuple[Tensor, ...],
    n_inner: int,
    centres: bool,
) -> Tensor:
    """The gradient at a layer or RMS norm with a weight, taken to its input.

    Args:
        gradient, r: (B, M).
        x: (S, M).
        weight: (M).
        statistics: means and scales of the rows of x, and of those of r.
        n_inner: as in `softmax`.
        centres: whether means were subtracted.
    """
    out = torch.empty_like(r)
    weight = r.new_ones(r.shape[1]) if weight is None else weight.contiguous()
    tensors = [gradient, x, r, weight, *(z.reshape(-1) for z in statistics)]
    arrays: list[Any] = [*(z.numpy() for z in tensors), n_inner, centres, out.numpy()]
    in_parts(normalization.times_norm, arrays, len(out), out.numel())
    return out


def group_norm(
    z: Tensor, n_groups: int, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (rows, L, C) normalised by group of channels, and means and rsqrt(variance + eps), both (rows,
    groups)."""
    out, means, scales = torch.empty_like(z), z.new_empty(len(z), n_groups), z.new_empty(len(z), n_groups)
    weight = z.new_ones(z.shape[-1]) if weight is None else weight.contiguous()
    bias = z.new_zeros(z.shape[-1]) if bias is None else bias.contiguous()
    arrays: list[Any] = [*(part.numpy() for part in (z, weight, bias)), eps]
    arrays += [part.numpy() for part in (means, scales, out)]
    in_parts(normalization.group_norm, arrays, len(z), z.numel())
    return out, means, scales


def normalise_groups(
    gradient: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, statistics: tuple[Tensor, ...]
) -> Tensor:
    """The gradient at a norm of groups of channels, which lie side by side, taken to its input.

    Args:
        gradient, r: (B, L, C).
        x: (S, L, C).
        weight: (C).
        statistics: means and scales of x, and of r.
    """
    out = torch.empty_like(r)
    weight = r.new_ones(r.shape[-1]) if weight is None else weight.contiguous()
    arrays = [z.numpy() for z in (gradient, x, r, weight, *statistics, out)]
    in_parts(normalization.times_group_norm, arrays, len(out), out.numel())
    return out


def overlap_add(columns: Tensor, length: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(B, L', K, C) added up to (B, length, C): column k of position t belongs to t stride + k dilation - padding."""
    out = columns.new_empty(columns.shape[0], length, columns.shape[-1])
    arrays = [columns.numpy(), stride, padding, dilation, out.numpy()]
    in_parts(convolution.overlap_add, arrays, len(out), columns.numel())
    return out


def relu(gradient: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """The gradient (B, M), if there is one, times the share of [r, x] that is positive; x is (B / R, M)."""
    return leaky_relu(gradient, x, r, 0.0)


def leaky_relu(gradient: Tensor | None, x: Tensor, r: Tensor, negative_slope: float = 0.01) -> Tensor:
    """The gradient (B, M), if there is one, times 1 for the positive share of [r, x] and the slope for the rest."""
    out = torch.empty_like(r)
    arrays: list[Any] = [x.numpy(), r.numpy(), float(negative_slope), out.numpy()]
    if gradient is None:
        in_parts(secants.shares, arrays, r.shape[0], r.numel())
    else:
        in_parts(secants.times_share, [gradient.numpy(), *arrays], r.shape[0], r.numel())
    return out


def clamp(gradient: Tensor | None, x: Tensor, r: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """The gradient (B, M), if there is one, times the share of [r, x] between the bounds that are given."""
    low, high = -math.inf if min is None else float(min), math.inf if max is None else float(max)
    return _times(secants.times_clamp, gradient, x, r, low, high)


def clamp_max(gradient: Tensor | None, x: Tensor, r: Tensor, max: float) -> Tensor:
    """The same below a bound."""
    return clamp(gradient, x, r, None, max)


def hardtanh(gradient: Tensor | None, x: Tensor, r: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """The same between two."""
    return clamp(gradient, x, r, min_val, max_val)


def relu6(gradient: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """The same between 0 and 6."""
    return clamp(gradient, x, r, 0.0, 6.0)


def hardswish(gradient: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """The gradient (B, M), if there is one, times the secant of x clamp(x + 3, 0, 6) / 6."""
    return _times(secants.times_hardswish, gradient, x, r)


def _times(kernel: Callable[..., None], gradient: Tensor | None, x: Tensor, r: Tensor, *constants: float) -> Tensor:
    out = torch.empty_like(r)
    gradient = torch.ones_like(r) if gradient is None else gradient
    in_parts(kernel, [gradient.numpy(), x.numpy(), r.numpy(), *constants, out.numpy()], len(out), out.numel())
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As F.linear, by oneDNN where it can be had and the product is worth its preparation."""
    if onednn_linear is None or not is_large_product(x, weight):
        return F.linear(x, weight, bias)
    return onednn_linear(x, weight, bias, "none", [], "")


def is_large_product(x: Tensor, weight: Tensor) -> bool:
    is_large = x.numel() * weight.shape[0] >= _SMALLEST_PRODUCT
    return is_large and FormatChoice.of(x.device, x.dtype).may_change


@dataclass(frozen=True)
class InSingle:
    """A secant in single precision, while going back.

    Attributes:
        times_secant: the kernel, see `secants.times_tanh`.
        function: its values at the activations are given to the kernel, too.
    """

    times_secant: Callable[..., None]
    function: Callable[[Tensor], Tensor] | None = None

    def __call__(self, gradient: Tensor, x: Tensor, r: Tensor, *y_r: Tensor) -> Tensor:
        """The gradient, of as many elements as r, times the secant at activations that fit; of the gradient's shape."""
        flat = Flat(x, r)
        out = torch.empty_like(flat.r)
        values = [] if self.function is None else [self.function(flat.x), *map(flat.of, y_r)]
        arrays = [z.numpy() for z in (flat.of(gradient), flat.x, flat.r, *values, out)]
        in_parts(self.times_secant, arrays, len(out), out.numel())
        return flat.back(out).view(gradient.shape)


TANH = InSingle(secants.times_tanh, torch.tanh)
SIGMOID = InSingle(secants.times_sigmoid, torch.sigmoid)
SILU = InSingle(secants.times_silu)
GELU = InSingle(secants.times_gelu)


def times_means(
    gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor, largest: float
) -> tuple[Tensor, Tensor]:
    """The gradient of a product of activations that `fit_together` taken to both factors by midpoints, in its shape."""
    a, b = Flat(a_x, a_r), Flat(b_x, b_r)
    found = torch.empty_like(a.r), torch.empty_like(a.r)
    tensors = [a.of(gradient), a.x, a.r, b.x, b.r]
    arrays: list[Any] = [*(z.numpy() for z in tensors), largest, *(z.numpy() for z in found)]
    in_parts(secants.times_means, arrays, len(a.r), a.r.numel())
    to_a, to_b = (a.back(z).view(gradient.shape) for z in found)
    return to_a, to_b


def times_quotient(
    gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor, far: float
) -> tuple[Tensor, Tensor]:
    """The gradient of a quotient of activations of its shape, as `RowPairing.paired` gives them, taken to both."""
    order = order_in_memory(gradient)
    a, b = Flat(a_x, a_r, order), Flat(b_x, b_r, order)
    found = torch.empty_like(a.r), torch.empty_like(a.r)
    tensors = [a.of(gradient), a.x, a.r, b.x, b.r]
    arrays: list[Any] = [*(z.numpy() for z in tensors), far, *(z.numpy() for z in found)]
    in_parts(secants.times_quotient, arrays, len(a.r), a.r.numel())
    to_a, to_b = map(a.back, found)
    return to_a, to_b


def times_means_of_gates(
    gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor, largest: float
) -> tuple[Tensor, Tensor]:
    """The same of a (S, C, L) and (B, C, L) with the channels last and b (S, C, 1) and (B, C, 1)."""
    a = [z.transpose(1, 2) for z in (gradient, a_x, a_r)]
    to_a, to_b = torch.empty_like(a[2]), torch.empty_like(b_r)
    gates = [z.squeeze(2).contiguous() for z in (b_x, b_r)]
    arrays: list[Any] = [*(z.contiguous().numpy() for z in a), *(z.numpy() for z in gates), largest]
    arrays += [to_a.numpy(), to_b.squeeze(2).numpy()]
    in_parts(secants.times_means_of_gates, arrays, len(a_r), a_r.numel())
    return to_a.transpose(1, 2), to_b


def fits(x: Tensor, r: Tensor) -> bool:
    """Whether the kernels take an observed (..., 1, ...) and a reference activation (..., R, ...), as
    `RowPairing.paired` gives them, or two of the same shape. What has gaps, as parts of channels have, is copied."""
    if not takes(x, r):
        return False
    order = order_in_memory(r)
    n_rows = _rows(x.permute(order), r.permute(order))[1]
    return r.numel() >= max(1, _SMALLEST_ROW * n_rows)


def fit_together(a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> bool:
    """Whether two pairs fit, and lie in memory in the same order without gaps."""
    if (
        not (fits(a_x, a_r) and fits(b_x, b_r))
        or order_in_memory(a_r) != order_in_memory(b_r)
        or a_x.shape != b_x.shape
    ):
        return False
    return all(z.permute(order_in_memory(a_r)).is_contiguous() for z in (a_x, a_r, b_x, b_r))


def takes(*activations: Tensor) -> bool:
    """Whether activations are where, and of a dtype, that the kernels are for."""
    return all(z.device.type == "cpu" and z.dtype in _DTYPES and z.dtype == activations[0].dtype for z in activations)


def pull_back(kernel: Kernel, gradient: Tensor, x: Tensor, r: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """The kernel on activations that fit and a gradient of as many elements as r; of the gradient's shape."""
    flat = Flat(x, r)
    return flat.back(kernel(flat.of(gradient.to(r.dtype)), flat.x, flat.r, *rest)).view(gradient.shape)


def multipliers(kernel: Kernel, x: Tensor, r: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """What `pull_back` multiplies by, of the shape of r."""
    flat = Flat(x, r)
    return flat.back(kernel(None, flat.x, flat.r, *rest))


class Flat:
    """Activations as two axes, (rows, elements), in an order of theirs, that in which they lie in memory if none is
    given: views where they fit."""

    def __init__(self, x: Tensor, r: Tensor, order: list[int] | None = None) -> None:
        self._order, self._shape = order or order_in_memory(r), r.shape
        x, r = x.permute(self._order).contiguous(), r.permute(self._order).contiguous()
        self._permuted_shape = r.shape
        n_observed, n_rows = _rows(x, r)
        self.x = x.view(n_observed, x.shape.numel() // max(1, n_observed))
        self.r = r.view(n_rows, r.shape.numel() // max(1, n_rows))

    def of(self, z: Tensor) -> Tensor:
        """The same of a tensor of as many elements as r."""
        return z.view(self._shape).permute(self._order).contiguous().view(self.r.shape)

    def back(self, flat: Tensor) -> Tensor:
        """What is flat, in the shape of r."""
        return put_back(flat.view(self._permuted_shape), self._order)


def _rows(x: Tensor, r: Tensor) -> tuple[int, int]:
    """Rows of the observed activation, and of the reference's."""
    axis = next((d for d in range(r.ndim) if x.shape[d] != r.shape[d]), 0)
    return x.shape[: axis + 1].numel(), r.shape[: axis + 1].numel()
