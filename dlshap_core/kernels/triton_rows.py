"""Rules that take rows as a whole, on a GPU in Triton: softmax and what is like it, and normalisations.

A program takes several short rows, or one long one piece by piece, which it reads again from the cache. Numbers are
computed as in `triton_secants`.

Shape legend: B rows of references of M elements each, of which R share one of x; rows as in `kernels.fused`.
"""

from typing import Any

import torch
from torch import Tensor

from dlshap_core.kernels.triton_language import tl, triton
from dlshap_core.kernels.triton_secants import exp_share, finite_or_zero

_LARGEST = 2048  # elements of a program


@triton.jit
def _finite(z, LOWEST: tl.constexpr):
    return tl.where(z < LOWEST, LOWEST, z)


@triton.jit
def _exp_secant(a_x, a_r, apart):
    """As `softmaxes._exp_secant`."""
    return tl.where(apart < 0.1, tl.maximum(a_x, a_r) * exp_share(apart), tl.abs(a_x - a_r) / apart)


@triton.jit
def _logits(z, start, columns, n_columns, is_row, LOWEST: tl.constexpr, DTYPE: tl.constexpr):
    there = is_row & (columns < n_columns)
    logits = _finite(tl.load(z + start + columns, there, 0.0).to(DTYPE), LOWEST)
    return tl.where(columns < n_columns, logits, float("-inf"))


@triton.jit
def _top_and_log_sum(
    z, start, column, n_columns, is_row, zero, LOWEST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest logit of a row, and logsumexp less that."""
    top = zero + LOWEST
    for first in range(0, n_columns, BLOCK):
        logits = _logits(z, start, column + first, n_columns, is_row, LOWEST, DTYPE)
        top = tl.maximum(top, tl.max(logits, 1, keep_dims=True), propagate_nan=tl.PropagateNan.ALL)
    total = zero
    for first in range(0, n_columns, BLOCK):
        logits = _logits(z, start, column + first, n_columns, is_row, LOWEST, DTYPE)
        total += tl.sum(tl.exp(logits - top), 1, keep_dims=True)
    return top, tl.log(total)


@triton.jit
def _softmax(
    gradient,
    x,
    r,
    out,
    n_rows,
    n_columns,
    n_inner,
    n_repeats,
    KIND: tl.constexpr,
    LOWEST: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    is_row = row < n_rows
    start_x = (row // n_inner // n_repeats * n_inner + row % n_inner) * n_columns
    start_r = row * n_columns
    zero = tl.zeros((ROWS, 1), DTYPE)
    top_x, sum_x = _top_and_log_sum(x, start_x, column, n_columns, is_row, zero, LOWEST, DTYPE, BLOCK)
    top_r, sum_r = _top_and_log_sum(r, start_r, column, n_columns, is_row, zero, LOWEST, DTYPE, BLOCK)
    step = (top_x - top_r) + (sum_x - sum_r)
    size_x, size_r = tl.exp(tl.minimum(step, 0.0)), tl.exp(tl.minimum(-step, 0.0))  # exp(c) under the larger c
    total = zero
    if KIND == "logsumexp":
        total -= tl.load(gradient + row, is_row, 0.0).to(DTYPE)
    else:
        for first in range(0, n_columns, BLOCK):
            columns = column + first
            there = is_row & (columns < n_columns)
            through = tl.load(gradient + start_r + columns, there, 0.0).to(DTYPE)
            if KIND == "softmax":
                logits_x = _logits(x, start_x, columns, n_columns, is_row, LOWEST, DTYPE)
                logits_r = _logits(r, start_r, columns, n_columns, is_row, LOWEST, DTYPE)
                p_x, p_r = tl.exp(logits_x - top_x - sum_x), tl.exp(logits_r - top_r - sum_r)
                through *= _exp_secant(p_x, p_r, tl.abs(logits_x - logits_r - step))
            total += tl.sum(tl.where(there, through, 0.0), 1, keep_dims=True)
    total = total / exp_share(tl.abs(step))
    for first in range(0, n_columns, BLOCK):
        columns = column + first
        there = is_row & (columns < n_columns)
        logits_x = _logits(x, start_x, columns, n_columns, is_row, LOWEST, DTYPE)
        logits_r = _logits(r, start_r, columns, n_columns, is_row, LOWEST, DTYPE)
        p_x, p_r = tl.exp(logits_x - top_x - sum_x), tl.exp(logits_r - top_r - sum_r)
        found = -total * _exp_secant(p_x * size_x, p_r * size_r, tl.abs(logits_x - logits_r))
        if KIND != "logsumexp":
            through = tl.load(gradient + start_r + columns, there, 0.0).to(DTYPE)
            if KIND == "softmax":
                through *= _exp_secant(p_x, p_r, tl.abs(logits_x - logits_r - step))
            found += through
        tl.store(out + start_r + columns, found.to(out.dtype.element_ty), there)


@triton.jit
def _mean(z, start, column, n_columns, is_row, zero, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    total = zero
    for first in range(0, n_columns, BLOCK):
        there = is_row & (column + first < n_columns)
        total += tl.sum(tl.load(z + start + column + first, there, 0.0).to(DTYPE), 1, keep_dims=True)
    return total / n_columns


@triton.jit
def _scale(z, start, mean, column, n_columns, is_row, zero, eps, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    total = zero
    for first in range(0, n_columns, BLOCK):
        there = is_row & (column + first < n_columns)
        centred = tl.load(z + start + column + first, there, 0.0).to(DTYPE) - mean
        total += tl.sum(tl.where(there, centred * centred, 0.0), 1, keep_dims=True)
    return 1.0 / tl.sqrt(total / n_columns + eps)


@triton.jit
def _normalise(
    gradient,
    x,
    r,
    weight,
    out,
    n_rows,
    n_columns,
    n_inner,
    n_repeats,
    n_groups,
    n_weights,
    EPS: tl.constexpr,
    CENTRES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A weight stands for `n_columns // n_weights` elements side by side; every `n_groups`-th row has the same."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    is_row = row < n_rows
    start_x = (row // n_inner // n_repeats * n_inner + row % n_inner) * n_columns
    start_r = row * n_columns
    start_weight = row % n_groups * n_weights
    n_side = n_columns // n_weights
    zero = tl.zeros((ROWS, 1), DTYPE)
    mean_x, mean_r = zero, zero
    if CENTRES:
        mean_x = _mean(x, start_x, column, n_columns, is_row, zero, DTYPE, BLOCK)
        mean_r = _mean(r, start_r, column, n_columns, is_row, zero, DTYPE, BLOCK)
    s_x = _scale(x, start_x, mean_x, column, n_columns, is_row, zero, EPS, DTYPE, BLOCK)
    s_r = _scale(r, start_r, mean_r, column, n_columns, is_row, zero, EPS, DTYPE, BLOCK)
    total, total_both = zero, zero
    for first in range(0, n_columns, BLOCK):
        columns = column + first
        there = is_row & (columns < n_columns)
        flowing = tl.load(gradient + start_r + columns, there, 0.0).to(DTYPE)
        if HAS_WEIGHT:
            flowing *= tl.load(weight + start_weight + columns // n_side, there, 0.0).to(DTYPE)
        both = tl.load(x + start_x + columns, there, 0.0).to(DTYPE) - mean_x
        both += tl.load(r + start_r + columns, there, 0.0).to(DTYPE) - mean_r
        total += tl.sum(flowing, 1, keep_dims=True)
        total_both += tl.sum(flowing * both, 1, keep_dims=True)
    product = s_x * s_r
    spread = finite_or_zero(-product * (product / (s_x + s_r))) / (2.0 * n_columns) * total_both
    centre = zero
    if CENTRES:
        centre = total / n_columns
    for first in range(0, n_columns, BLOCK):
        columns = column + first
        there = is_row & (columns < n_columns)
        flowing = tl.load(gradient + start_r + columns, there, 0.0).to(DTYPE)
        if HAS_WEIGHT:
            flowing *= tl.load(weight + start_weight + columns // n_side, there, 0.0).to(DTYPE)
        both = tl.load(x + start_x + columns, there, 0.0).to(DTYPE) - mean_x
        both += tl.load(r + start_r + columns, there, 0.0).to(DTYPE) - mean_r
        found = (flowing - centre) * ((s_x + s_r) / 2.0) + both * spread
        tl.store(out + start_r + columns, found.to(out.dtype.element_ty), there)


def softmax(gradient: Tensor, x: Tensor, r: Tensor, n_inner: int, kind: str) -> Tensor:
    """As `softmaxes` has this kind, over the last axis: r (B, M), x (B / R, M), gradient (B, M), or (B, 1) of
    logsumexp."""
    out = torch.empty_like(r)
    grid, dtype, sizes = _laid_out(r)
    lowest = torch.finfo(torch.float64 if dtype == tl.float64 else torch.float32).min / 4
    if r.numel() > 0:
        _softmax[grid](gradient, x, r, out, *r.shape, n_inner, len(r) // len(x), kind, lowest, dtype, *sizes)
    return out


def normalise(
    gradient: Tensor,
    x: Tensor,
    r: Tensor,
    weight: Tensor | None,
    n_groups: int,
    eps: float,
    centres: bool,
    n_inner: int,
) -> Tensor:
    """As `normalization.standardise`: gradient and r (B, M), x (B / R, M); a weight (n_groups M,), or with each element
    standing for several side by side, of B = ... n_groups rows."""
    out = torch.empty_like(r)
    grid, dtype, sizes = _laid_out(r)
    if r.numel() > 0:
        _normalise[grid](
            gradient,
            x,
            r,
            r if weight is None else weight,
            out,
            *r.shape,
            n_inner,
            len(r) // len(x),
            n_groups,
            1 if weight is None else weight.numel() // n_groups,
            eps,
            centres,
            weight is not None,
            dtype,
            *sizes,
        )
    return out


def _laid_out(r: Tensor) -> tuple[tuple[int], Any, tuple[int, int]]:
    """Programs, the dtype that they compute in, and rows and columns that one takes at a time."""
    block = min(triton.next_power_of_2(max(r.shape[1], 1)), _LARGEST)
    n_rows = max(1, _LARGEST // 2 // block)
    return (triton.cdiv(len(r), n_rows),), tl.float64 if r.dtype == torch.float64 else tl.float32, (n_rows, block)
