"""Rules of maxima: max-pooling of every form, max over axes, and order statistics.

For y = max over a window the change of the output goes to the single input that explains it: the observed maximum's
place i where the output rises, the reference maximum's place j where it falls (the rule of DeepLIFT's max-pooling, as
in tangermeme):

    m_i = (y(x) - y(r)) / (x_i - r_i)   or   m_j = (y(x) - y(r)) / (x_j - r_j).

The input's own change is at least as large as the output's and of its sign, so a share lies in [0, 1] and no small
difference is divided by a smaller one. Where both maxima have one place the share is 1, whatever the change, without a
division. Else the shares go to 0 with the change of the output, from above and from below, so m is continuous in both
sides but where a window holds two equal maxima: rounding moves it no more than it moves the activations.

One convention is left, tangermeme's. Where the output falls and the observed maximum's own input stands still, its
share of the sum is 0 whatever its multiplier; it is given the ordinary gradient, 1. An input that changes ever so
little has 0, so this alone hangs on equality, and must not hang on rounding, which makes equal activations different
(the passes differ in size) and, among 10^5 windows, different ones nearly equal. What makes an input stand still makes
others at its place stand still as well, those of other channels that see the same bases: it is taken to if its
difference is one of rounding and so are those of enough channels there (`_stand_still`). Inputs that win several
windows add up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.max_pooling import LEAST_STANDING, ONE_STANDING_OF
from dlshap_core.kernels.memory_format import has_channels_last
from dlshap_core.rules import operators
from dlshap_core.rules.deterministic import running_sum
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.rows import PassesDiffer, RowPairing

# Up to how many eps of the larger one a difference of two activations is taken for rounding between the two passes.
# Low, as a base at the edge of what a place sees may change it by 1e-6. It decides alone only where the output rises or
# falls by no more than that.
_ROUNDING_STEPS = 8
_LARGEST_BLOCK = 62  # inputs that are taken together on a GPU, where a bit of a number stands for each
_MANY_CHANNELS = 16  # from which on it pays to take them together on a CPU
_LARGEST_WINDOW = 16  # up to which it does


def _stands_for_infinity(dtype: torch.dtype) -> float:
    """A finite number in place of infinite inputs (masked positions), whose differences can be taken."""
    return min(1e30, torch.finfo(dtype).max / 8)


@dataclass(frozen=True)
class _Windows:
    """Maxima of windows: values and their places, flat in the last axes of the input; both (B, C, outputs)."""

    values: Tensor
    places: Tensor


def _shares(x: Tensor, r: Tensor, best_x: _Windows, best_r: _Windows) -> tuple[Tensor, Tensor]:
    """Shares of each output's gradient for the observed maximum's place and the reference's, (B, C, outputs) both.

    `x` and `r` are (B, C, inputs) and finite.
    """
    change, is_one_place = best_x.values - best_r.values, best_x.places == best_r.places
    r_there, x_there = r.gather(-1, best_x.places), x.gather(-1, best_r.places)
    is_still = _are_close(best_x.values, r_there)
    is_open = is_still & (change < 0) & (best_x.values != 0) & ~is_one_place
    share_x = torch.where(change > 0, change / (best_x.values - r_there), 0.0)
    share_x = torch.where(is_one_place | is_still, 1.0, share_x)
    share_x = torch.where(is_open & ~_stand_still(x, r, best_x.places), 0.0, share_x)
    falls = (change < 0) & ~is_one_place & ~_are_close(x_there, best_r.values)
    return share_x, torch.where(falls, change / (x_there - best_r.values), 0.0)


def _stand_still(x: Tensor, r: Tensor, places: Tensor) -> Tensor:
    """Whether places stand still: (B, C, outputs).

    A place does where, of its channels that are not 0 on both sides, one in `ONE_STANDING_OF` differs by rounding
    alone, but `LEAST_STANDING` at least, or all of them. The channels of a convolution see the same bases, so all stand
    still or none; of several convolutions side by side those of the narrow ones may. A zero is no evidence: behind a
    ReLU a channel is 0 whatever changes.
    """
    top = _stands_for_infinity(r.dtype) / 2
    is_active = ((x != 0) | (r != 0)) & (x.abs() < top) & (r.abs() < top)
    n_active, n_still = is_active.sum(1), (is_active & _are_close(x, r)).sum(1)
    are_enough = (n_still >= LEAST_STANDING) | (n_still == n_active)
    stands = are_enough & (n_still * ONE_STANDING_OF >= n_active)
    return stands.unsqueeze(1).expand_as(x).gather(-1, places)


def _are_close(a: Tensor, b: Tensor) -> Tensor:
    """Whether two activations differ by rounding alone."""
    return (a - b).abs() <= rounding(a.dtype) * torch.maximum(a.abs(), b.abs())


def rounding(dtype: torch.dtype) -> float:
    return _ROUNDING_STEPS * torch.finfo(dtype).eps


_Find = Callable[[Tensor], tuple[Tensor, Tensor]]  # the maxima of an activation, and their places in it


@dataclass(frozen=True)
class _Grid:
    """Where windows lie, for each axis: inputs of one, steps between two windows, how far the first one begins before
    the inputs, and steps between the inputs of one. `is_cut_off` where a window may reach beyond the last input."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    dilations: tuple[int, ...]
    is_cut_off: bool = False

    @classmethod
    def of_blocks(cls, sizes: tuple[int, ...]) -> "_Grid":
        """Side by side."""
        return cls(sizes, sizes, (0,) * len(sizes), (1,) * len(sizes))

    @property
    def spans(self) -> tuple[int, ...]:
        """Inputs from the first to the last of a window."""
        return tuple(1 + (size - 1) * step for size, step in zip(self.sizes, self.dilations, strict=True))

    @property
    def block_size(self) -> int | None:
        """Of windows that lie side by side in one axis."""
        return self.sizes[0] if self == _Grid.of_blocks(self.sizes[:1]) else None


def _max_over_windows(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    find: _Find,
    n_axes: int,
    grid: _Grid | None = None,
) -> tuple[Tensor, Tensor]:
    """Max over windows in the last `n_axes` axes: the output with its multipliers, and the reference's places.

    `observed` has the rows of the sequences; it is searched once, not once for each reference. `grid` says where
    windows lie that do so evenly.
    """
    axis = rows.axis(observed, reference)
    if axis is not None:
        observed = observed.narrow(axis, 0, rows.n_sequences)  # without padding
    value, places = find(reference.detach())
    if axis in (0, None) and reference.ndim > n_axes and fused.takes(observed, reference):
        channels_last = n_axes == reference.ndim - 2 and has_channels_last(reference)
        of_few = grid if grid is not None and n_axes == 1 and grid.sizes[0] <= _LARGEST_WINDOW else None
        if of_few is not None and channels_last and reference.shape[1] >= _MANY_CHANNELS:
            pullback = _by_windows(of_few)
        else:
            n_inner = 1 if channels_last else reference.shape[1:-n_axes].numel()
            pullback = _by_places(find(observed)[1], places, n_axes, n_inner, channels_last)
        return pull_back(reference, value, pullback, observed, rows.keep(reference.detach())), places

    is_of_rows = axis in (0, None) and reference.ndim == 3
    block_size = None if grid is None else grid.block_size
    if block_size is not None and block_size <= _LARGEST_BLOCK and is_of_rows and operators.is_for(reference):

        def pull_back_late(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
            return _back_through_blocks(gradient, x, r, block_size)

        return pull_back(reference, value, pull_back_late, observed, rows.keep(reference.detach())), places
    if grid is not None and axis in (0, None) and n_axes < min(3, reference.ndim) and operators.is_for(reference):
        pullback = _by_grid(grid, find(observed)[1], places)
        return pull_back(reference, value, pullback, observed, rows.keep(reference.detach())), places

    def expanded(z: Tensor) -> Tensor:
        return z if axis is None else z.repeat_interleave(rows.n_references, axis)

    best_x = _Windows(*map(expanded, find(observed)))
    pullback_by_torch = _by_torch(expanded(observed), reference, best_x, places, n_axes, axis or 0)
    return pull_back(reference, value, pullback_by_torch), places


def _by_windows(grid: _Grid) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Going back through windows of (B, C, L) with the channels last: (gradient, observed, reference) -> gradient."""
    (size,), (stride,), (padding,), (dilation,) = grid.sizes, grid.strides, grid.paddings, grid.dilations

    def pullback(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
        gradient, x, r = (z.transpose(1, 2).contiguous() for z in (gradient, x, r))
        limits = rounding(r.dtype), _stands_for_infinity(r.dtype)
        return fused.route_of_windows(gradient, x, r, size, stride, padding, dilation, *limits).transpose(1, 2)

    return pullback


def _blocks_by_torch(gradient: Tensor, x: Tensor, r: Tensor, size: int) -> Tensor:
    x = x.repeat_interleave(len(r) // max(1, len(x)), 0)
    best_x, (_, places_r) = _Windows(*F.max_pool1d_with_indices(x, (size,))), F.max_pool1d_with_indices(r, (size,))
    return _by_torch(x, r, best_x, places_r, 1, 0)(gradient)


def _blocks_on_cpu(gradient: Tensor, x: Tensor, r: Tensor, size: int) -> Tensor:
    if not fused.takes(x, r):
        return _blocks_by_torch(gradient, x, r, size)
    return _by_windows(_Grid.of_blocks((size,)))(gradient, x, r)


def _blocks_by_triton(gradient: Tensor, x: Tensor, r: Tensor, size: int) -> Tensor:
    from dlshap_core.kernels import triton_pooling

    return triton_pooling.max_pool(gradient, x, r, size, rounding(r.dtype), _stands_for_infinity(r.dtype))


# Gradient (B, C, blocks), x (S, C, L), r (B, C, L).
_back_through_blocks = operators.define(
    "max_pool(Tensor gradient, Tensor x, Tensor r, int size) -> Tensor",
    _blocks_by_torch,
    _blocks_by_triton,
    _blocks_on_cpu,
)


def _by_grid(grid: _Grid, places_x: Tensor, places_r: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Going back through windows on a grid, on a GPU: (gradient, observed, reference) -> gradient."""
    n_axes = len(grid.spans)

    def with_channels(z: Tensor) -> Tensor:
        """(rows, channels, *inputs or outputs)."""
        return z.unsqueeze(1) if z.ndim == 1 + n_axes else z.flatten(1, -1 - n_axes)

    places = with_channels(places_x), with_channels(places_r)

    def pullback(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
        tensors = map(with_channels, (gradient, x, r))
        return _back_through_windows(*tensors, *places, grid.spans, grid.strides, grid.paddings).reshape(r.shape)

    return pullback


def _windows_by_torch(
    gradient: Tensor, x: Tensor, r: Tensor, places_x: Tensor, places_r: Tensor, spans: list[int], *_: list[int]
) -> Tensor:
    n_axes, n_repeats = len(spans), len(r) // max(1, len(x))
    x, places_x = (z.repeat_interleave(n_repeats, 0) for z in (x, places_x))
    values = x.flatten(-n_axes).gather(-1, places_x.flatten(-n_axes)).view(places_x.shape)
    return _by_torch(x, r, _Windows(values, places_x), places_r, n_axes, 0)(gradient)


def _windows_on_cpu(
    gradient: Tensor, x: Tensor, r: Tensor, places_x: Tensor, places_r: Tensor, spans: list[int], *_: list[int]
) -> Tensor:
    if not fused.takes(x, r):
        return _windows_by_torch(gradient, x, r, places_x, places_r, spans)
    return _by_places(places_x, places_r, len(spans), r.shape[1], False)(gradient, x, r)


def _windows_by_triton(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    places_x: Tensor,
    places_r: Tensor,
    spans: list[int],
    strides: list[int],
    paddings: list[int],
) -> Tensor:
    from dlshap_core.kernels import triton_pooling

    places, limits = (places_x, places_r), (rounding(r.dtype), _stands_for_infinity(r.dtype))
    return triton_pooling.max_windows(gradient, x, r, *places, spans, strides, paddings, *limits)


# Gradient and places_r (B, C, *outputs), places_x (S, C, *outputs), x (S, C, *inputs), r (B, C, *inputs).
_back_through_windows = operators.define(
    "max_windows(Tensor gradient, Tensor x, Tensor r, Tensor places_x, Tensor places_r, int[] spans, int[] strides, "
    "int[] paddings) -> Tensor",
    _windows_by_torch,
    _windows_by_triton,
    _windows_on_cpu,
)


def _by_places(
    places_x: Tensor, places_r: Tensor, n_axes: int, n_inner: int, channels_last: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same through windows of any form, in the last `n_axes` axes."""

    def three_axes(z: Tensor) -> Tensor:
        """(rows, inputs or outputs, channels that lie side by side)."""
        z = z.flatten(-n_axes, -1)
        return (z.transpose(1, 2) if channels_last else z.flatten(0, -2).unsqueeze(-1)).contiguous()

    places = three_axes(places_x), three_axes(places_r)

    def pullback(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
        shape, largest = r.shape, _stands_for_infinity(r.dtype)
        gradient, x, r = (three_axes(z) for z in (gradient, x, r))
        routed = fused.route(gradient, x, r, *places, n_inner, rounding(r.dtype), largest)
        return (routed.transpose(1, 2) if channels_last else routed).reshape(shape)

    return pullback


def _by_torch(
    observed: Tensor, reference: Tensor, best_x: _Windows, places_r: Tensor, n_axes: int, axis: int
) -> Callable[[Tensor], Tensor]:
    """The same by torch's own operations, everything with the rows of the references, in `axis`: gradient ->
    gradient."""
    largest = _stands_for_infinity(reference.dtype)
    has_rows = reference.ndim > n_axes

    def three_axes(z: Tensor) -> Tensor:
        """(rows, channels, inputs or outputs)."""
        z = z.detach().flatten(-n_axes)
        z = z.movedim(axis, 0) if has_rows else z.unsqueeze(0)
        return z.reshape(len(z), z.shape[1:-1].numel(), z.shape[-1])

    x, r = (three_axes(z).clamp(-largest, largest) for z in (observed, reference))
    best_x = _Windows(three_axes(best_x.values).clamp(-largest, largest), three_axes(best_x.places))
    best_r = _Windows(r.gather(-1, three_axes(places_r)), three_axes(places_r))
    share_x, share_r = _shares(x, r, best_x, best_r)
    moved_shape = reference.movedim(axis, 0).shape

    def pullback(gradient: Tensor) -> Tensor:
        gradient = three_axes(gradient)
        routed = torch.zeros(r.shape, dtype=gradient.dtype, device=gradient.device)
        routed.scatter_add_(-1, best_x.places, gradient * share_x.to(gradient.dtype))
        routed.scatter_add_(-1, best_r.places, gradient * share_r.to(gradient.dtype))
        return routed.reshape(moved_shape).movedim(0, axis)

    return pullback


_Sizes = int | tuple[int, ...]


def max_pool(n_axes: int, always_with_places: bool = False) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """The rule of max_pool1d, 2d or 3d: windows with padding, dilation, overlap and ceil_mode."""
    pool = getattr(F, f"max_pool{n_axes}d_with_indices")

    def rule(
        rows: RowPairing,
        observed: Tensor,
        reference: Tensor,
        kernel_size: _Sizes,
        stride: _Sizes | None = None,
        padding: _Sizes = 0,
        dilation: _Sizes = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The change of a window's maximum goes to the input that explains it: the observed maximum where the output
        rises, the reference's where it falls."""

        def find(z: Tensor) -> tuple[Tensor, Tensor]:
            return pool(z, kernel_size, stride or None, padding, dilation, ceil_mode)

        sizes, strides, paddings, dilations = (
            _sizes(z, n_axes) for z in (kernel_size, stride or kernel_size, padding, dilation)
        )
        for n_inputs, step in zip(reference.shape[-n_axes:], dilations, strict=True):
            if step > n_inputs:  # torch gives a place beyond the input
                raise ValueError(f"a dilation of {step} leaves windows empty in an input of {n_inputs}")
        grid = _Grid(sizes, strides, paddings, dilations, ceil_mode)
        value, places = _max_over_windows(rows, observed, reference, find, n_axes, grid)
        return (value, places) if return_indices or always_with_places else value

    return rule


def _sizes(size: _Sizes, n_axes: int) -> tuple[int, ...]:
    """As torch takes them: one for all axes, or one for each."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * n_axes if len(sizes) == 1 else sizes


def adaptive_max_pool(n_axes: int, always_with_places: bool = False) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """The rule of adaptive_max_pool1d, 2d or 3d, with even or uneven bins."""
    pool = getattr(F, f"adaptive_max_pool{n_axes}d_with_indices")

    def rule(
        rows: RowPairing, observed: Tensor, reference: Tensor, output_size: _Sizes, return_indices: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As max-pooling, in even or uneven bins."""
        shape = reference.shape[-n_axes:]
        sizes = tuple(n or length for n, length in zip(_sizes(output_size, n_axes), shape, strict=True))
        is_even = all(length % n == 0 for n, length in zip(sizes, shape, strict=True))
        steps = tuple(length // n for n, length in zip(sizes, shape, strict=True))
        grid = _Grid.of_blocks(steps) if is_even else None
        value, places = _max_over_windows(rows, observed, reference, lambda z: pool(z, output_size), n_axes, grid)
        return (value, places) if return_indices or always_with_places else value

    return rule


def _max_over_last(rows: RowPairing, observed: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Max over the last axis, kept with size 1."""
    whole = reference.shape[-1:]
    return _max_over_windows(
        rows, observed, reference, lambda z: z.max(dim=-1, keepdim=True), 1, _Grid.of_blocks(whole)
    )


def max_over_axis(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """max(dim=...): values and places."""
    value, places = _max_over_last(rows, observed.movedim(dim, -1), reference.movedim(dim, -1))
    if keepdim:
        return torch.return_types.max((value.movedim(-1, dim), places.movedim(-1, dim)))
    return torch.return_types.max((value.squeeze(-1), places.squeeze(-1)))


def amax(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
) -> Tensor:
    """amax over one or several axes. Where several inputs share the maximum, the first one gets it all."""
    if dim is None or dim == ():
        raise ValueError("over all axes it mixes the sequences of a batch; give dim=")
    axes = sorted(axis % reference.ndim for axis in ([dim] if isinstance(dim, int) else dim))
    last = tuple(range(-len(axes), 0))
    value, _ = _max_over_last(
        rows, observed.movedim(axes, last).flatten(-len(axes)), reference.movedim(axes, last).flatten(-len(axes))
    )
    value = value.squeeze(-1)
    if keepdim:
        for axis in axes:
            value = value.unsqueeze(axis)
    return value


def min_over_axis(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """min is -max(-x)."""
    value, places = max_over_axis(rows, -observed, -reference, dim, keepdim)
    return torch.return_types.min((-value, places))


def amin(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
) -> Tensor:
    """min is -max(-x)."""
    return -amax(rows, -observed, -reference, dim, keepdim)


def cummax(rows: RowPairing, observed: Tensor, reference: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The maximum of each place and all before: values and places."""

    def find(z: Tensor) -> tuple[Tensor, Tensor]:
        return z.cummax(-1)

    value, places = _max_over_windows(rows, observed.movedim(dim, -1), reference.movedim(dim, -1), find, 1)
    return torch.return_types.cummax((value.movedim(-1, dim), places.movedim(-1, dim)))


def cummin(rows: RowPairing, observed: Tensor, reference: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """-cummax(-x)."""
    value, places = cummax(rows, -observed, -reference, dim)
    return torch.return_types.cummin((-value, places))


def shares_of_sums(
    x: tuple[Tensor, Tensor], r: tuple[Tensor, Tensor], order_x: Tensor, order_r: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """Of S_k, the sums of the k largest of n, as maxima over subsets, for each k in the last axis: the share of each
    member of the subset that it goes to, and whether that is the observed one.

    The change of S_k goes to the subset that explains it, the observed one where S_k rises and the reference one where
    it falls, every member in proportion to its own change:

        m_i = (S_k(x) - S_k(r)) / sum over the subset of (x_j - r_j)   for i in the subset,

    a share in [0, 1] for the same reason as in a maximum, and 1 where both subsets are one. It is 1, too, where the
    subset changes by rounding alone, and S_k with it, which can happen but where both sides have the same values.

    Args:
        x, r: each in its own descending order, and in that of the other.
        order_x, order_r: places of the largest, in their descending order.
        n: places in all.
    """
    sorted_x, x_by_r = x
    sorted_r, r_by_x = r
    sum_change = running_sum(sorted_x - sorted_r)
    rises = sum_change >= 0
    subset_change = torch.where(rises, running_sum(sorted_x - r_by_x), running_sum(x_by_r - sorted_r))
    k = order_r.shape[-1]
    ranks = torch.arange(k, device=order_r.device, dtype=torch.int32)
    rank_r = ranks.new_full((*order_r.shape[:-1], n), k).scatter_(-1, order_r, ranks.expand_as(order_r))
    is_one_subset = rank_r.gather(-1, order_x).cummax(-1).values == ranks
    is_close = subset_change.abs() <= rounding(sorted_r.dtype) * sorted_r[..., :1].abs()
    return torch.where(is_one_subset | is_close, 1.0, sum_change / subset_change).clamp(0, 1), rises


def _order_statistics(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, k: int, descending: bool
) -> tuple[Tensor, Tensor]:
    """The first k of the sorted values, and their places in the references.

    Downwards the k-th value is S_k - S_(k-1), a difference of two sums of the largest; upwards the same holds of -x. So
    the first value is the maximum or the minimum, and the sum of all of them is that of the inputs.
    """
    axis = rows.axis(observed, reference)
    if axis == dim % reference.ndim:
        raise PassesDiffer("the rows of the batch are sorted")
    largest, sign = _stands_for_infinity(reference.dtype), 1 if descending else -1

    def first(z: Tensor) -> tuple[Tensor, Tensor]:
        ordered = z.sort(dim=dim, descending=descending, stable=True)
        return ordered[0].narrow(dim, 0, k), ordered[1].narrow(dim, 0, k)

    def finite(z: Tensor) -> Tensor:
        return sign * z.movedim(dim, -1).clamp(-largest, largest)

    value, places = first(reference.detach())
    value_x, places_x = (rows.expand(z, reference.narrow(dim, 0, k)) for z in first(observed))
    x_by_r = rows.expand(observed, reference).gather(dim, places)
    r_by_x = reference.detach().gather(dim, places_x)
    order_x, order_r = places_x.movedim(dim, -1), places.movedim(dim, -1)
    of_x, of_r = (finite(value_x), finite(x_by_r)), (finite(value), finite(r_by_x))
    shares, rises = shares_of_sums(of_x, of_r, order_x, order_r, reference.shape[dim])
    shape = reference.movedim(dim, -1).shape

    def pullback(gradient: Tensor, shares: Tensor, rises: Tensor, order_x: Tensor, order_r: Tensor) -> Tensor:
        """Gradients at the k-th largest values, S_k - S_(k-1), brought to the inputs."""
        gradient = gradient.movedim(dim, -1)
        weight = (gradient - F.pad(gradient, (0, 1))[..., 1:]) * shares.to(gradient.dtype)
        found = gradient.new_zeros(shape)
        for order, part in ((order_x, torch.where(rises, weight, 0.0)), (order_r, torch.where(rises, 0.0, weight))):
            found.scatter_add_(-1, order, running_sum(part.flip(-1)).flip(-1))
        return found.movedim(-1, dim)

    return pull_back(reference, value, pullback, shares, rises, order_x, order_r), places


def sort(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int = -1, descending: bool = False, stable: bool = False
) -> tuple[Tensor, Tensor]:
    """Sorted values, and so quantiles of positions."""
    n = reference.shape[dim]
    return torch.return_types.sort(_order_statistics(rows, observed, reference, dim, n, descending))


def topk(
    rows: RowPairing,
    observed: Tensor,
    reference: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[Tensor, Tensor]:
    """The first or last k of the sorted values."""
    return torch.return_types.topk(_order_statistics(rows, observed, reference, dim, k, largest))
