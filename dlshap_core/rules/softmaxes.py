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
from dlshap_core.rules.rows import RowPairing


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


def _sides(rows: RowPairing, x: Tensor, r: Tensor, dim: int | tuple[int, ...]) -> _Sides:
    """Of finite logits."""
    c_x, c_r = (z.logsumexp(dim, keepdim=True) for z in (x, r))
    logits_x, logits_r = rows.paired(x, r)
    p_x, p_r = rows.paired((x - c_x).exp_(), (r - c_r).exp_())
    return _Sides(logits_x - logits_r, p_x, p_r, *rows.paired(c_x, c_r))


def softmax(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """y = exp(z - logsumexp z): secant of exp at the log probabilities, and the multipliers w of log sum exp.

    m(z_j -> y_i) = E'_i ([i = j] - w_j), with E' the secant of that exp. This is tangermeme's rule. Its factors are at
    most 1, where the midpoint product of a and 1/s grows as the ratio of the two sums and loses as many digits.
    """
    value = torch.softmax(reference.detach(), dim, dtype)
    reference_dtype, shape = reference.dtype, reference.shape
    axis = rows.axis(observed, reference)
    is_last = reference.ndim > 1 and dim % reference.ndim == reference.ndim - 1
    if axis in (0, None) and is_last and fused.takes(observed, reference, value):
        sequences = observed if axis is None else observed.narrow(0, 0, rows.n_sequences)
        n_inner = shape[1:-1].numel() if axis == 0 else 1

        def pull_back_softmax(gradient: Tensor, x: Tensor, r: Tensor, *both: Tensor) -> Tensor:
            p_x, p_r = both or (torch.softmax(x, dim), torch.softmax(r, dim))
            return fused.softmax(gradient, x, r, p_x, p_r, n_inner)

        kept = [sequences, rows.keep(reference.detach())]
        if not rows.is_one_pair:  # for which memory is dear
            kept += [torch.softmax(sequences, dim), rows.keep(value)]
        return pull_back(reference, value, pull_back_softmax, *kept)
    if operators.is_for(reference) and reference.ndim > 1:
        moved = rows.paired(observed.movedim(dim, -1), reference.detach().movedim(dim, -1))

        def pull_back_late(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
            found = _back_through_softmax(gradient.movedim(dim, -1).reshape(r.shape), x, r)
            return found.reshape(reference_shape).movedim(-1, dim)

        reference_shape = reference.movedim(dim, -1).shape
        return pull_back(reference, value, pull_back_late, moved[0], rows.keep(moved[1]))
    x, r = (_finite(z, value.dtype) for z in (observed, reference))
    sides = _sides(rows, x, r, dim)
    outer = sides.of_probabilities().reshape(shape)
    weights = sides.of_logsumexp().reshape(shape)

    def pullback(gradient: Tensor, outer: Tensor, weights: Tensor) -> Tensor:
        return _through(gradient, outer, weights, dim).to(reference_dtype)

    return pull_back(reference, value, pullback, outer, weights)


def _through(gradient: Tensor, outer: Tensor, weights: Tensor, dim: int) -> Tensor:
    through = gradient * outer
    return through - weights * through.sum(dim, keepdim=True)


def _softmax_by_torch(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
    dtype = r.dtype
    x, r = (_finite(z, dtype) for z in (x, r))
    c_x, c_r = (z.logsumexp(-1, keepdim=True) for z in (x, r))
    sides = _Sides(x - r, (x - c_x).exp_(), (r - c_r).exp_(), c_x, c_r)
    return _through(gradient, sides.of_probabilities(), sides.of_logsumexp(), -1).to(dtype)


def _softmax_on_cpu(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
    if not fused.takes(x, r):
        return _softmax_by_torch(gradient, x, r)
    n_inner, (x_rows, r_rows, gradient_rows) = operators.as_rows(1, x, r, gradient)
    p_x, p_r = torch.softmax(x_rows, -1), torch.softmax(r_rows, -1)
    return fused.softmax(gradient_rows, x_rows, r_rows, p_x, p_r, n_inner).view(r.shape)


def _softmax_by_triton(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
    from dlshap_core.kernels import triton_rows

    n_inner, (x_rows, r_rows, gradient_rows) = operators.as_rows(1, x, r, gradient)
    return triton_rows.softmax(gradient_rows, x_rows, r_rows, n_inner).view(r.shape)


# Over the last axis.
_back_through_softmax = operators.define(
    "softmax(Tensor gradient, Tensor x, Tensor r) -> Tensor",
    _softmax_by_torch,
    _softmax_by_triton,
    _softmax_on_cpu,
)


def log_softmax(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """z - logsumexp(z)."""
    value = torch.log_softmax(reference.detach(), dim, dtype)
    x, r = (_finite(z, value.dtype) for z in (observed, reference))
    weights = _sides(rows, x, r, dim).of_logsumexp().reshape(reference.shape)
    reference_dtype = reference.dtype

    def pullback(gradient: Tensor, weights: Tensor) -> Tensor:
        return (gradient - weights * gradient.sum(dim, keepdim=True)).to(reference_dtype)

    return pull_back(reference, value, pullback, weights)


def logsumexp(
    rows: RowPairing, observed: Tensor, reference: Tensor, dim: int | tuple[int, ...], keepdim: bool = False
) -> Tensor:
    """log s + c: the secant of log times the secants of exp; the multipliers of one output need not add up to 1."""
    value = torch.logsumexp(reference.detach(), dim, keepdim)
    x, r = (_finite(z, value.dtype) for z in (observed, reference))
    weights = _sides(rows, x, r, dim).of_logsumexp().reshape(reference.shape)
    kept_shape = torch.logsumexp(r, dim, keepdim=True).shape
    reference_dtype = reference.dtype

    def pullback(gradient: Tensor, weights: Tensor) -> Tensor:
        return (weights * gradient.reshape(kept_shape)).to(reference_dtype)

    return pull_back(reference, value, pullback, weights)


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
