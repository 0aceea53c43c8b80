"""Max-pooling on a GPU, in Triton; see `kernels.max_pooling`.

Shape legend: B rows of references, of which R share one of x; C channels of L inputs. Of blocks, which neither overlap
nor leave gaps, the maxima are looked for again; of other windows their places are given.
"""

import torch
from torch import Tensor

from dlshap_core.kernels.max_pooling import LEAST_STANDING, ONE_STANDING_OF
from dlshap_core.kernels.triton_language import tl, triton

_BLOCKS, _CHANNELS = 32, 32  # of a program at a time
_PLACES = 256


@triton.jit
def _finite(z, TOP: tl.constexpr):
    z = tl.where(z > TOP, TOP, z)
    return tl.where(z < -TOP, -TOP, z)


@triton.jit
def _is_close(a, b, ROUNDING: tl.constexpr):
    return tl.abs(a - b) <= ROUNDING * tl.maximum(tl.abs(a), tl.abs(b))


@triton.jit
def _stands_still(
    x,
    r,
    place,
    is_there,
    n_channels,
    n_inputs,
    ROUNDING: tl.constexpr,
    TOP: tl.constexpr,
    LEAST: tl.constexpr,
    ONE_OF: tl.constexpr,
    DTYPE: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Whether places (1, PLACES) stand still, as `max_pooling.stands_still`; x and r are where their rows begin."""
    n_active, n_still = tl.zeros((1, PLACES), tl.int32), tl.zeros((1, PLACES), tl.int32)
    for first in range(0, n_channels, CHANNELS):
        channel = (first + tl.arange(0, CHANNELS))[:, None]
        there = (channel < n_channels) & is_there
        at = channel * n_inputs + place
        a, b = tl.load(x + at, there, 0.0).to(DTYPE), tl.load(r + at, there, 0.0).to(DTYPE)
        is_active = ((a != 0.0) | (b != 0.0)) & (tl.abs(a) < TOP / 2.0) & (tl.abs(b) < TOP / 2.0)
        n_active += tl.sum(is_active.to(tl.int32), 0, keep_dims=True)
        n_still += tl.sum((is_active & _is_close(a, b, ROUNDING)).to(tl.int32), 0, keep_dims=True)
    return (n_still * ONE_OF >= n_active) & ((n_still >= LEAST) | (n_still == n_active))


@triton.jit
def _shares(max_x, max_r, r_at_x, x_at_r, is_one_place, stands, ROUNDING: tl.constexpr, TOP: tl.constexpr):
    """As `maxima._shares`: of a window, for the place of the observed maximum and for the reference's."""
    value_x, value_r = _finite(max_x, TOP), _finite(max_r, TOP)
    r_there, x_there = _finite(r_at_x, TOP), _finite(x_at_r, TOP)
    change = value_x - value_r
    is_sure = (change >= 0.0) | (value_x == 0.0) | stands
    is_whole = is_one_place | (_is_close(value_x, r_there, ROUNDING) & is_sure)
    share_x = tl.where(change > 0.0, change / (value_x - r_there), 0.0)
    share_x = tl.where(is_whole, 1.0, share_x)
    falls = (change < 0.0) & (is_one_place == 0) & (_is_close(x_there, value_r, ROUNDING) == 0)
    return share_x, tl.where(falls, change / (x_there - value_r), 0.0)


@triton.jit
def _pool(
    gradient,
    x,
    r,
    out,
    n_channels,
    n_inputs,
    n_blocks,
    n_repeats,
    SIZE: tl.constexpr,
    ROUNDING: tl.constexpr,
    TOP: tl.constexpr,
    LEAST: tl.constexpr,
    ONE_OF: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = (tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS))[None, :]
    x += row // n_repeats * n_channels * n_inputs
    r += row * n_channels * n_inputs
    out += row * n_channels * n_inputs
    gradient += row * n_channels * n_blocks
    standing = tl.zeros((1, BLOCKS), tl.int64)  # of the places of a block: a bit each
    for j in range(SIZE):
        place, is_there = block * SIZE + j, block < n_blocks
        stands = _stands_still(
            x, r, place, is_there, n_channels, n_inputs, ROUNDING, TOP, LEAST, ONE_OF, DTYPE, BLOCKS, CHANNELS
        )
        standing |= stands.to(tl.int64) << j
    for first in range(0, n_channels, CHANNELS):
        channel = (first + tl.arange(0, CHANNELS))[:, None]
        there = (channel < n_channels) & (block < n_blocks)
        start = channel * n_inputs + block * SIZE
        max_x, max_r = tl.load(x + start, there, 0.0).to(DTYPE), tl.load(r + start, there, 0.0).to(DTYPE)
        r_at_x, x_at_r = max_r, max_x
        place_x, place_r = tl.zeros((CHANNELS, BLOCKS), tl.int32), tl.zeros((CHANNELS, BLOCKS), tl.int32)
        for j in range(1, SIZE):
            a, b = tl.load(x + start + j, there, 0.0).to(DTYPE), tl.load(r + start + j, there, 0.0).to(DTYPE)
            is_larger = a > max_x
            max_x, r_at_x = tl.where(is_larger, a, max_x), tl.where(is_larger, b, r_at_x)
            place_x = tl.where(is_larger, j, place_x)
            is_larger = b > max_r
            max_r, x_at_r = tl.where(is_larger, b, max_r), tl.where(is_larger, a, x_at_r)
            place_r = tl.where(is_larger, j, place_r)
        stands = ((standing >> place_x.to(tl.int64)) & 1) != 0
        share_x, share_r = _shares(max_x, max_r, r_at_x, x_at_r, place_x == place_r, stands, ROUNDING, TOP)
        flowing = tl.load(gradient + channel * n_blocks + block, there, 0.0).to(DTYPE)
        for j in range(SIZE):
            share = tl.where(place_x == j, share_x, 0.0) + tl.where(place_r == j, share_r, 0.0)
            tl.store(out + start + j, (flowing * share).to(out.dtype.element_ty), there)


@triton.jit
def _standing(
    x,
    r,
    out,
    n_channels,
    n_inputs,
    n_repeats,
    ROUNDING: tl.constexpr,
    TOP: tl.constexpr,
    LEAST: tl.constexpr,
    ONE_OF: tl.constexpr,
    DTYPE: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`out` (B, inputs) gets which places stand still."""
    row = tl.program_id(0).to(tl.int64)
    place = (tl.program_id(1) * PLACES + tl.arange(0, PLACES))[None, :]
    is_there = place < n_inputs
    x += row // n_repeats * n_channels * n_inputs
    r += row * n_channels * n_inputs
    stands = _stands_still(
        x, r, place, is_there, n_channels, n_inputs, ROUNDING, TOP, LEAST, ONE_OF, DTYPE, PLACES, CHANNELS
    )
    tl.store(out + row * n_inputs + place, stands.to(tl.int8), is_there)


@triton.jit
def _route(
    gradient,
    x,
    r,
    places_x,
    places_r,
    standing,
    out,
    n_channels,
    n_inputs,
    n_outputs,
    n_repeats,
    width,
    n_rows_out,
    width_out,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PADDING_Y: tl.constexpr,
    PADDING_X: tl.constexpr,
    REACH_Y: tl.constexpr,
    REACH_X: tl.constexpr,
    ROUNDING: tl.constexpr,
    TOP: tl.constexpr,
    DTYPE: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Each input gathers from the windows that may hold it, so that no two programs write to one place: the same sums
    in the same order every time."""
    line = tl.program_id(0).to(tl.int64)  # one channel of one row
    row, channel = line // n_channels, line % n_channels
    observed = row // n_repeats * n_channels + channel
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    is_there = place < n_inputs
    x += observed * n_inputs
    r += line * n_inputs
    places_x += observed * n_outputs
    places_r += line * n_outputs
    gradient += line * n_outputs
    standing += row * n_inputs
    y_last, x_last = (place // width + PADDING_Y) // STRIDE_Y, (place % width + PADDING_X) // STRIDE_X
    total = tl.zeros((PLACES,), DTYPE)
    for j in range(REACH_Y):
        for k in range(REACH_X):
            out_y, out_x = y_last - j, x_last - k
            is_window = is_there & (out_y >= 0) & (out_y < n_rows_out) & (out_x >= 0) & (out_x < width_out)
            output = out_y * width_out + out_x
            place_x, place_r = tl.load(places_x + output, is_window, -1), tl.load(places_r + output, is_window, -1)
            wins = is_window & ((place_x == place) | (place_r == place))
            max_x, max_r = tl.load(x + place_x, wins, 0.0).to(DTYPE), tl.load(r + place_r, wins, 0.0).to(DTYPE)
            r_at_x, x_at_r = tl.load(r + place_x, wins, 0.0).to(DTYPE), tl.load(x + place_r, wins, 0.0).to(DTYPE)
            stands = tl.load(standing + place_x, wins, 0) != 0
            share_x, share_r = _shares(max_x, max_r, r_at_x, x_at_r, place_x == place_r, stands, ROUNDING, TOP)
            share = tl.where(place_x == place, share_x, 0.0) + tl.where(place_r == place, share_r, 0.0)
            total += tl.where(wins, tl.load(gradient + output, wins, 0.0).to(DTYPE) * share, 0.0)
    tl.store(out + line * n_inputs + place, total.to(out.dtype.element_ty), is_there)


def _dtype(z: Tensor) -> tl.dtype:
    """What is computed in."""
    return tl.float64 if z.dtype == torch.float64 else tl.float32


def max_pool(gradient: Tensor, x: Tensor, r: Tensor, size: int, rounding: float, largest: float) -> Tensor:
    """As `maxima` has it: gradient (B, C, blocks), x (B / R, C, L), r (B, C, L)."""
    gradient, x, r = (z.contiguous() for z in (gradient, x, r))
    out = torch.empty_like(r)
    n_blocks = gradient.shape[2]
    out[..., n_blocks * size :] = 0
    if gradient.numel() > 0:
        _pool[(len(r), triton.cdiv(n_blocks, _BLOCKS))](
            gradient,
            x,
            r,
            out,
            *r.shape[1:],
            n_blocks,
            len(r) // len(x),
            size,
            rounding,
            largest,
            LEAST_STANDING,
            ONE_STANDING_OF,
            _dtype(r),
            _BLOCKS,
            _CHANNELS,
        )
    return out


def max_windows(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    places_x: Tensor,
    places_r: Tensor,
    spans: list[int],
    strides: list[int],
    paddings: list[int],
    rounding: float,
    largest: float,
) -> Tensor:
    """As `maxima` has it, of windows in one axis or two: gradient and places_r (B, C, *outputs), places_x (B / R, C,
    *outputs), x (B / R, C, *inputs), r (B, C, *inputs)."""
    gradient, x, r, places_x, places_r = (z.contiguous() for z in (gradient, x, r, places_x, places_r))
    out = torch.empty_like(r)
    if out.numel() == 0:
        return out
    n_rows, n_channels, *inputs = r.shape
    n_inputs, n_repeats, outputs = r[0, 0].numel(), n_rows // len(x), gradient.shape[2:]
    standing = torch.empty(n_rows, n_inputs, dtype=torch.int8, device=r.device)
    _standing[(n_rows, triton.cdiv(n_inputs, _BLOCKS))](
        x,
        r,
        standing,
        n_channels,
        n_inputs,
        n_repeats,
        rounding,
        largest,
        LEAST_STANDING,
        ONE_STANDING_OF,
        _dtype(r),
        _BLOCKS,
        _CHANNELS,
    )
    in_two_axes = [(1,) * (2 - len(inputs)) + tuple(z) for z in (spans, strides)]
    reaches = [-(-span // stride) for span, stride in zip(*in_two_axes, strict=True)]
    _route[(n_rows * n_channels, triton.cdiv(n_inputs, _PLACES))](
        gradient,
        x,
        r,
        places_x,
        places_r,
        standing,
        out,
        n_channels,
        n_inputs,
        outputs.numel(),
        n_repeats,
        inputs[-1],
        outputs[:-1].numel(),
        outputs[-1],
        *in_two_axes[1],
        *(0,) * (2 - len(inputs)),
        *paddings,
        *reaches,
        rounding,
        largest,
        _dtype(r),
        _PLACES,
    )
    return out
