"""Max-pooling of blocks on a GPU, in Triton; see `kernels.max_pooling`.

Shape legend: B rows of references, of which R share one of x; C channels of L inputs, whose blocks of `size` neither
overlap nor leave gaps.
"""

import torch
from torch import Tensor

from dlshap_core.kernels.max_pooling import LEAST_STANDING, ONE_STANDING_OF
from dlshap_core.kernels.triton_language import tl, triton

_BLOCKS, _CHANNELS = 32, 32  # of a program at a time


@triton.jit
def _finite(z, TOP: tl.constexpr):
    z = tl.where(z > TOP, TOP, z)
    return tl.where(z < -TOP, -TOP, z)


@triton.jit
def _is_close(a, b, ROUNDING: tl.constexpr):
    return tl.abs(a - b) <= ROUNDING * tl.maximum(tl.abs(a), tl.abs(b))


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
    # Which places of a block stand still, as `max_pooling.stands_still`: a bit each.
    standing = tl.zeros((1, BLOCKS), tl.int64)
    for j in range(SIZE):
        n_active, n_still = tl.zeros((1, BLOCKS), tl.int32), tl.zeros((1, BLOCKS), tl.int32)
        for first in range(0, n_channels, CHANNELS):
            channel = (first + tl.arange(0, CHANNELS))[:, None]
            there = (channel < n_channels) & (block < n_blocks)
            place = channel * n_inputs + block * SIZE + j
            a, b = tl.load(x + place, there, 0.0).to(DTYPE), tl.load(r + place, there, 0.0).to(DTYPE)
            is_active = ((a != 0.0) | (b != 0.0)) & (tl.abs(a) < TOP / 2.0) & (tl.abs(b) < TOP / 2.0)
            n_active += tl.sum(is_active.to(tl.int32), 0, keep_dims=True)
            n_still += tl.sum((is_active & _is_close(a, b, ROUNDING)).to(tl.int32), 0, keep_dims=True)
        stands = (n_still * ONE_OF >= n_active) & ((n_still >= LEAST) | (n_still == n_active))
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
        value_x, value_r = _finite(max_x, TOP), _finite(max_r, TOP)
        r_there, x_there = _finite(r_at_x, TOP), _finite(x_at_r, TOP)
        change = value_x - value_r
        is_one_place = place_x == place_r
        is_sure = (change >= 0.0) | (value_x == 0.0) | (((standing >> place_x.to(tl.int64)) & 1) != 0)
        is_whole = is_one_place | (_is_close(value_x, r_there, ROUNDING) & is_sure)
        share_x = tl.where(change > 0.0, change / (value_x - r_there), 0.0)
        share_x = tl.where(is_whole, 1.0, share_x)
        falls = (change < 0.0) & (place_x != place_r) & (_is_close(x_there, value_r, ROUNDING) == 0)
        share_r = tl.where(falls, change / (x_there - value_r), 0.0)
        flowing = tl.load(gradient + channel * n_blocks + block, there, 0.0).to(DTYPE)
        for j in range(SIZE):
            share = tl.where(place_x == j, share_x, 0.0) + tl.where(place_r == j, share_r, 0.0)
            tl.store(out + start + j, (flowing * share).to(out.dtype.element_ty), there)


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
            tl.float64 if r.dtype == torch.float64 else tl.float32,
            _BLOCKS,
            _CHANNELS,
        )
    return out
