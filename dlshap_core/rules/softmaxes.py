"""Rules of softmax, log-softmax and logsumexp.

With p = softmax(z) and c = logsumexp(z), y = exp(z - c) is a chain of two parts with exact multipliers: the secant of
exp at the log probabilities, and the multipliers w of log sum exp, which are the secants of exp under one shift of both
sides times the secant of log at the two sums. The shift cancels. All of them are differences of exponentials over
differences of logits, and what would be a quotient of two small differences is a short series instead.

Shape legend: z are logits with any axes, one of which is summed over; sums keep it with one element.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.softmax import SERIES, SERIES_BELOW
from dlshap_core.rules import operators
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.rows import PassesDiffer, RowPairing


@dataclass(frozen=True)
class _Sides:
    """Logits, probabilities and log sums of both sides, as they broadcast; `shape` is that of the references."""

    change: Tensor  # z - z0
    p_x: Tensor
    p_r: Tensor
    c_x: Tensor
    c_r: Tensor

    def of_probabilities(self) -> Tensor:
        """Secant of exp at the log probabilities."""
        return _exp_secant(self.p_x, self.p_r, (self.change - (self.c_x - self.c_r)).abs_())

    def of_logsumexp(self) -> Tensor:
        """Multipliers of log sum exp. Under the larger c as the shift of both sides, the sums are 1 and exp(-|c - c0|);
        the secant of log at these is |c - c0| / (1 - exp(-|c - c0|))."""
        shift = torch.maximum(self.c_x, self.c_r)
        a_x, a_r = self.p_x * (self.c_x - shift).exp(), self.p_r * (self.c_r - shift).exp()
        apart = (self.c_x - self.c_r).abs()
        of_log = torch.where(apart == 0, 1.0, apart / -torch.expm1(-apart))
        return _exp_secant(a_x, a_r, self.change.abs()) * of_log


def _exp_secant(a_x: Tensor, a_r: Tensor, apart: Tensor) -> Tensor:
    """|a - a0| / t for exponentials whose exponents are t apart; its limit is a."""
    series = torch.full_like(apart, SERIES[-1])
    for coefficient in SERIES[-2::-1].tolist():
        series.mul_(apart).add_(coefficient)
    close = torch.maximum(a_x, a_r) * series
    return torch.where(apart < SERIES_BELOW, close, (a_x - a_r).abs() / apart)


def _finite(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits in a dtype, or single precision if that is more, with a large number in place of -inf (masked): 0 flows
    back there, and 0 times inf is not 0."""
    z = z.detach().to(torch.promote_types(dtype, torch.float32))
    return z.clamp_min(torch.finfo(z.dtype).min / 4)


def softmax_value(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The softmax, by the same function for sequences and references."""
    if dim % max(1, input.ndim) == 0 or dtype not in (None, input.dtype) or not fused.takes(input):
        return torch.softmax(input, dim, dtype)
    return fused.softmax_of(input.movedim(dim, -1)).movedim(-1, dim)


def softmax(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """y = exp(z - logsumexp z): secant of exp at the log probabilities, and the multipliers w of log sum exp.

    m(z_j -> y_i) = E'_i ([i = j] - w_j), with E' the secant of that exp. This is tangermeme's rule. Its factors are at
    most 1, where the midpoint product of a and 1/s grows as the ratio of the two sums and loses as many digits.
    """
    return _over_axes("softmax", rows, observed, reference, (dim,), softmax_value(reference.detach(), dim, dtype))


def log_softmax(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """z - logsumexp(z)."""
    value = torch.log_softmax(reference.detach(), dim, dtype)
    return _over_axes("log_softmax", rows, observed, reference, (dim,), value)


def logsumexp(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int | tuple[int, ...], keepdim: bool = False
) -> Tensor:
    """log s + c: the secant of log times the secants of exp; the multipliers of one output need not add up to 1."""
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    return _over_axes("logsumexp", rows, observed, reference, axes, torch.logsumexp(reference.detach(), dim, keepdim))


def _over_axes(
    kind: str, rows: RowPairing, observed: Tensor, reference: Tensor, axes: tuple[int, ...], value: Tensor
) -> Tensor:
    """`value`, which is `kind` of the references over these axes; going back they are made one, the last."""
    n_left, last = reference.ndim - len(axes), tuple(range(-len(axes), 0))
    axis = rows.axis(observed, reference)
    if axis is not None and axis in (dim % reference.ndim for dim in axes):
        raise PassesDiffer(f"{kind} goes over the rows of the batch")
    moved_shape, dtype = reference.movedim(axes, last).shape, reference.dtype

    def as_last(z: Tensor) -> Tensor:
        return z.movedim(axes, last).flatten(n_left)

    x, r = rows.paired(as_last(observed), as_last(reference.detach()))
    is_on_cpu = n_left > 0 and fused.takes(observed, reference, value)
    is_late = is_on_cpu or (n_left > 0 and operators.is_for(reference))
    kept = [x, rows.keep(r)]
    if is_on_cpu and kind == "softmax" and not rows.is_one_pair:  # for which memory is dear
        kept += rows.paired(as_last(softmax_value(observed, axes[0])), as_last(rows.keep(value)))
    if not is_late:
        kept = [*_parts_by_torch(kind, x, r, value.dtype)]

    def pullback(gradient: Tensor, *kept: Tensor) -> Tensor:
        gradient = gradient.reshape(*r_shape[:-1], 1) if kind == "logsumexp" else as_last(gradient).reshape(r_shape)
        if is_on_cpu:
            found = _softmax_on_cpu(gradient, kept[0], kept[1], kind, *kept[2:])
        elif is_late:
            found = _back_through_softmax(gradient, *kept, kind)
        else:
            found = _through(kind, gradient, *kept).to(dtype)
        return found.reshape(moved_shape).movedim(last, axes)

    r_shape = r.shape
    return pull_back(reference, value, pullback, *kept)


def _parts_by_torch(kind: str, x: Tensor, r: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What a gradient is taken back with, over the last axis: the multipliers of log sum exp, and for softmax those of
    exp."""
    x, r = (_finite(z, dtype) for z in (x, r))
    c_x, c_r = (z.logsumexp(-1, keepdim=True) for z in (x, r))
    sides = _Sides(x - r, (x - c_x).exp_(), (r - c_r).exp_(), c_x, c_r)
    return [sides.of_logsumexp(), *([sides.of_probabilities()] if kind == "softmax" else [])]


def _through(kind: str, gradient: Tensor, weights: Tensor, outer: Tensor | None = None) -> Tensor:
    if kind == "logsumexp":
        return gradient * weights
    through = gradient if outer is None else gradient * outer
    return through - weights * through.sum(-1, keepdim=True)


def _softmax_by_torch(gradient: Tensor, x: Tensor, r: Tensor, kind: str) -> Tensor:
    return _through(kind, gradient, *_parts_by_torch(kind, x, r, r.dtype)).to(r.dtype)


def _softmax_on_cpu(gradient: Tensor, x: Tensor, r: Tensor, kind: str, *both: Tensor) -> Tensor:
    """`both` are the probabilities of the two sides, where they are at hand."""
    if not fused.takes(x, r):
        return _softmax_by_torch(gradient, x, r, kind)
    if kind != "softmax":  # whose probabilities are not numbers where all logits are masked
        x, r = (_finite(z, z.dtype) for z in (x, r))
    p_x, p_r = both or (fused.softmax_of(x), fused.softmax_of(r))
    return fused.softmax(gradient, x, r, p_x, p_r, kind)


def _softmax_by_triton(gradient: Tensor, x: Tensor, r: Tensor, kind: str) -> Tensor:
    from dlshap_core.kernels import triton_rows

    n_inner, (x_rows, r_rows) = operators.as_rows(1, x, r)
    gradient_rows = gradient.flatten(0, -2).contiguous()
    return triton_rows.softmax(gradient_rows, x_rows, r_rows, n_inner, kind).view(r.shape)


# Over the last axis; a gradient of logsumexp has one element there.
_back_through_softmax = operators.define(
    "softmax(Tensor gradient, Tensor x, Tensor r, str kind) -> Tensor",
    _softmax_by_torch,
    _softmax_by_triton,
    _softmax_on_cpu,
)


def logcumsumexp(rows: RowPairing, observed: Tensor, reference: Tensor, dim: int) -> Tensor:
    """c_k = log sum exp of z_1 to z_k, with the multipliers of logsumexp for each k.

    Under the shift C_k, the larger of both sides' c_k, they are S_j exp(-C_k) L_k for j <= k: S_j is the secant of exp
    at z_j, L_k that of log. Sums over k are made of logarithms, of the positive and the negative gradients apart, as
    neither factor need be a number that can be written.
    """
    value = reference.detach().logcumsumexp(dim)
    x, r = (_finite(z, value.dtype) for z in (observed, reference))
    c_x, c_r = rows.paired(x.logcumsumexp(dim), r.logcumsumexp(dim))
    z_x, z_r = rows.paired(x, r)
    one = torch.ones((), dtype=r.dtype, device=r.device)
    apart, larger = (z_x - z_r).abs(), torch.maximum(z_x, z_r)
    of_exp = larger + _exp_secant(one, (-apart).exp(), apart).log()
    apart = (c_x - c_r).abs()
    of_log = torch.where(apart == 0, 0.0, (apart / -torch.expm1(-apart)).log()) - torch.maximum(c_x, c_r)
    of_exp, of_log = of_exp.reshape(reference.shape), of_log.reshape(reference.shape)
    reference_dtype = reference.dtype

    def one_sign(gradient: Tensor) -> Tensor:
        terms = gradient.clamp_min(0).log() + of_log
        return (of_exp + terms.flip(dim).logcumsumexp(dim).flip(dim)).exp()

    def pullback(gradient: Tensor) -> Tensor:
        gradient = gradient.to(of_exp.dtype)
        return (one_sign(gradient) - one_sign(-gradient)).to(reference_dtype)

    return pull_back(reference, value, pullback)
