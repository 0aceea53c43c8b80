"""Rules of two and three operands on a GPU, in Triton: products, quotients, and selection by a mask.

Numbers are computed as in `triton_secants`. Operands are flat, in one order of elements: r and gradients of n elements,
of which `n_repeats` times `n_inner` in a row share `n_inner` elements of x. What does not vary has no x, and may be a
single number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlshap_core.kernels.triton_language import tl, triton
from dlshap_core.kernels.triton_secants import finite_or_zero, jump, level

_BLOCK = 1024
_Operand = tuple[Tensor | None, Tensor | None]  # x and r


@triton.jit
def _bounded(z, LARGEST: tl.constexpr):
    z = tl.where(z > LARGEST, LARGEST, z)
    return tl.where(z < -LARGEST, -LARGEST, z)


@triton.jit
def _is_finite(z):
    return tl.abs(z) < float("inf")


@triton.jit
def _places(n, n_inner, n_repeats, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i, i // n_inner // n_repeats * n_inner + i % n_inner, i < n


@triton.jit
def _load(z, i, there, DTYPE: tl.constexpr):
    return tl.load(z + i, there, 0.0).to(DTYPE)


@triton.jit
def _mean(x, r, out, n, n_inner, n_repeats, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    i, source, there = _places(n, n_inner, n_repeats, BLOCK)
    mean = _load(x, source, there, DTYPE) / 2.0 + 0.5 * _load(r, i, there, DTYPE)
    tl.store(out + i, mean.to(out.dtype.element_ty), there)


@triton.jit
def _product(
    gradient,
    a_x,
    a_r,
    b_x,
    b_r,
    to_a,
    to_b,
    n,
    n_inner,
    n_repeats,
    LARGEST: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, source, there = _places(n, n_inner, n_repeats, BLOCK)
    flowing = _load(gradient, i, there, DTYPE)
    mean_a = _load(a_x, source, there, DTYPE) / 2.0 + 0.5 * _load(a_r, i, there, DTYPE)
    mean_b = _load(b_x, source, there, DTYPE) / 2.0 + 0.5 * _load(b_r, i, there, DTYPE)
    tl.store(to_a + i, (flowing * _bounded(mean_b, LARGEST)).to(to_a.dtype.element_ty), there)
    tl.store(to_b + i, (flowing * _bounded(mean_a, LARGEST)).to(to_b.dtype.element_ty), there)


@triton.jit
def _quotient(
    gradient,
    a_x,
    a_r,
    b_x,
    b_r,
    to_a,
    to_b,
    n,
    n_inner,
    n_repeats,
    A_VARIES: tl.constexpr,
    FAR: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, source, there = _places(n, n_inner, n_repeats, BLOCK)
    flowing = _load(gradient, i, there, DTYPE)
    a = _load(a_r, i, there, DTYPE)
    other_a = a
    if A_VARIES:
        other_a = _load(a_x, source, there, DTYPE)
    b, other_b = _load(b_r, i, there, DTYPE), _load(b_x, source, there, DTYPE)
    size, other_size = tl.abs(b), tl.abs(other_b)
    is_far = tl.maximum(size, other_size) > FAR * tl.minimum(size, other_size)
    mean_b, mean_y = (other_b + b) / 2.0, (other_a / other_b + a / b) / 2.0
    of_b = tl.where(is_far, -mean_y / mean_b, -(other_a + a) / 2.0 / other_b / b)
    tl.store(to_b + i, (flowing * finite_or_zero(of_b)).to(to_b.dtype.element_ty), there)
    if A_VARIES:
        of_a = tl.where(is_far, 1.0 / mean_b, (1.0 / other_b + 1.0 / b) / 2.0)
        tl.store(to_a + i, (flowing * finite_or_zero(of_a)).to(to_a.dtype.element_ty), there)


@triton.jit
def _select(
    gradient,
    c_x,
    c_r,
    a_x,
    a_r,
    b_x,
    b_r,
    to_c,
    to_a,
    to_b,
    n,
    n_inner,
    n_repeats,
    A_VARIES: tl.constexpr,
    B_VARIES: tl.constexpr,
    A_IS_ONE: tl.constexpr,
    B_IS_ONE: tl.constexpr,
    A_IS_SOURCE: tl.constexpr,
    B_IS_SOURCE: tl.constexpr,
    IS_STEP: tl.constexpr,
    BELOW: tl.constexpr,
    AT: tl.constexpr,
    ABOVE: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LARGEST: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `masks.select_multipliers`."""
    i, source, there = _places(n, n_inner, n_repeats, BLOCK)
    flowing = _load(gradient, i, there, DTYPE)
    c, other_c = _load(c_r, i, there, DTYPE), _load(c_x, source, there, DTYPE)
    a, other_a, b, other_b = c, other_c, c, other_c
    if not A_IS_SOURCE:
        a = _load(a_r, i * 0 if A_IS_ONE else i, there, DTYPE)
        other_a = a
        if A_VARIES:
            other_a = _load(a_x, source, there, DTYPE)
    if not B_IS_SOURCE:
        b = _load(b_r, i * 0 if B_IS_ONE else i, there, DTYPE)
        other_b = b
        if B_VARIES:
            other_b = _load(b_x, source, there, DTYPE)
    if IS_STEP:
        level_c, other_level = level(c, BELOW, AT, ABOVE, THRESHOLD), level(other_c, BELOW, AT, ABOVE, THRESHOLD)
        of_step = jump(other_c, c, other_level, level_c)
        c, other_c = level_c, other_level
    has_a, has_b = _is_finite(a) & _is_finite(other_a), _is_finite(b) & _is_finite(other_b)
    all_to_c = (c != other_c) & ((has_a & has_b) == 0)
    picked = c != 0.0
    value, other_value = tl.where(picked, a, b), tl.where(other_c != 0.0, other_a, other_b)
    still_a = tl.where(all_to_c, tl.where(picked, value, other_value), 0.0)
    still_b = tl.where(all_to_c, tl.where(picked, other_value, value), 0.0)
    follows_a, follows_b = has_a & (all_to_c == 0), has_b & (all_to_c == 0)
    middle_a = _bounded(tl.where(follows_a, 0.5 * a + 0.5 * other_a, still_a), LARGEST)
    middle_b = _bounded(tl.where(follows_b, 0.5 * b + 0.5 * other_b, still_b), LARGEST)
    middle_c = 0.5 * c + 0.5 * other_c
    of_c = middle_a - middle_b
    if IS_STEP:
        of_c *= of_step
    of_a, of_b = tl.where(follows_a, middle_c, 0.0), tl.where(follows_b, 1.0 - middle_c, 0.0)
    if A_IS_SOURCE:
        of_c += of_a
    if B_IS_SOURCE:
        of_c += of_b
    tl.store(to_c + i, (flowing * of_c).to(to_c.dtype.element_ty), there)
    if A_VARIES:
        tl.store(to_a + i, (flowing * of_a).to(to_a.dtype.element_ty), there)
    if B_VARIES:
        tl.store(to_b + i, (flowing * of_b).to(to_b.dtype.element_ty), there)


def _run(kernel: Any, gradient: Tensor | None, operands: Sequence[_Operand], n_out: int, *constants: Any) -> list[Any]:
    """The kernel on operands as `rules.operators` has them, and new tensors for the first `n_out` of them. For a side
    that is not there the kernel has that of another."""
    x, r = next((x, r) for x, r in operands if x is not None and r is not None)
    axis = next((d for d in range(r.ndim) if x.shape[d] != r.shape[d]), None)
    n_inner, n_repeats = (r.numel(), 1) if axis is None else (r.shape[axis + 1 :].numel(), r.shape[axis])
    filled = [(x, r if z is None else z) for x, z in operands]
    out = [torch.empty(r.shape, dtype=z.dtype, device=r.device) for _, z in filled[:n_out]]
    if r.numel() > 0:
        given = [] if gradient is None else [gradient.contiguous()]
        for of_x, of_r in filled:
            given += [(of_r if of_x is None else of_x).contiguous(), of_r.contiguous()]
        dtype = tl.float64 if any(z.dtype == torch.float64 for _, z in filled) else tl.float32
        sizes = (r.numel(), max(1, n_inner), n_repeats)
        kernel[(triton.cdiv(r.numel(), _BLOCK),)](*given, *out, *sizes, *constants, dtype, _BLOCK)
    return out


def _largest(r: Tensor) -> float:
    return min(1e30, torch.finfo(r.dtype).max)


def mean(x: Tensor, r: Tensor) -> Tensor:
    """Of both sides."""
    (found,) = _run(_mean, None, [(x, r)], 1)
    return found


def product(gradient: Tensor, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> list[Tensor]:
    """As `products.Product` has it."""
    return _run(_product, gradient, [a, b], 2, _largest(a[1]))


def quotient(gradient: Tensor, a: _Operand, b: _Operand, far: float) -> list[Tensor]:
    """As `arithmetic.quotient_multipliers`; the first operand may be constant."""
    found = _run(_quotient, gradient, [a, b], 2, a[0] is not None, far)
    return found if a[0] is not None else found[1:]


def select(gradient: Tensor, c: _Operand, a: _Operand, b: _Operand, levels: Sequence[float]) -> list[Tensor]:
    """As `masks.select_multipliers`: the gradients of what varies, in this order."""
    varies = [x is not None for x, _ in (a, b)]
    are_one = [r is not None and r.numel() == 1 for _, r in (a, b)]
    are_source = [r is None for _, r in (a, b)]
    largest = min(_largest(r) for _, r in (a, b, c) if r is not None)
    step = (bool(levels), *(levels or (0.0,) * 4))
    found = _run(_select, gradient, [c, a, b], 3, *varies, *are_one, *are_source, *step, largest)
    return [z for z, is_wanted in zip(found, (True, *varies), strict=True) if is_wanted]
