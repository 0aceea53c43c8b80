"""Rules of softmax, log-softmax and logsumexp, with observed and reference logits under one shared shift.

With a_i = exp(z_i - c), s = sum_i a_i, the parts have exact multipliers that are chained: the secant E_i of exp, and
of 1/s or log s. The shift c, the largest logit on either side, cancels; both sides must share it, or exp over- or
underflows on one of them.
"""

import torch
from torch import Tensor

from dlshap_core.gradients import pull_back
from dlshap_core.rules import secants


class _Exponentials:
    """a and s of both sides, and the secants of exp; z = -inf (a masked logit) has a = 0 and no multiplier."""

    def __init__(self, observed: Tensor, reference: Tensor, dim: int | tuple[int, ...]) -> None:
        lowest = torch.finfo(reference.dtype).min / 4
        x, r = observed.clamp_min(lowest), reference.detach().clamp_min(lowest)
        self.shift = torch.maximum(x, r).amax(dim, keepdim=True)
        self.secant = secants.exp(x - self.shift, r - self.shift)
        self.x, self.r = (x - self.shift).exp(), (r - self.shift).exp()
        self.sum_x, self.sum_r = self.x.sum(dim, keepdim=True), self.r.sum(dim, keepdim=True)
        # Of log sum exp on each side, under a shift of its own, so that neither side vanishes.
        self.logsumexp_change = torch.logsumexp(x, dim, keepdim=True) - torch.logsumexp(r, dim, keepdim=True)

    def logsumexp_multiplier(self) -> Tensor:
        """Secant of log sum exp: the secant of the log, at close sums by its own closed form, times those of exp."""
        close = secants.log(self.sum_x, self.sum_r)
        apart = self.logsumexp_change / (self.sum_x - self.sum_r)
        return self.secant * torch.where(self.logsumexp_change.abs() < 1, close, apart)


def softmax(observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """y_i = a_i v with v = 1 / s: midpoint product, secant of the reciprocal, secant of exp.

    m(z_j -> y_i) = E_j ([i = j] (v + v0)/2 - (a_i + a0_i)/2 v v0).

    These grow as the ratio of the two sums, and lose as many digits. Where log sum exp changes by more than 6, y is
    taken as exp(z - logsumexp z) instead, whose multipliers are at most 1: m(z_j -> y_i) = E'_i ([i = j] - w_j), with
    E' the secant of that exp and w the multipliers of log sum exp.
    """
    value = torch.softmax(reference.detach(), dim, dtype)
    x, r = observed.to(value.dtype), reference.detach().to(value.dtype)
    exponentials = _Exponentials(x, r, dim)
    inverse_x, inverse_r = 1 / exponentials.sum_x, 1 / exponentials.sum_r
    inverse, product = (inverse_x + inverse_r) / 2, inverse_x * inverse_r
    middle, secant = (exponentials.x + exponentials.r) / 2, exponentials.secant
    is_far = exponentials.logsumexp_change.abs() > _FAR
    outer, weights = _log_domain(x, r, dim, exponentials) if bool(is_far.any()) else (middle, middle)

    def pullback(gradient: Tensor) -> Tensor:
        spread = (gradient * middle).sum(dim, keepdim=True) * product
        near = secant * (gradient * inverse - spread)
        through = gradient * outer
        far = through - weights * through.sum(dim, keepdim=True)
        return torch.where(is_far, far, near).to(reference_dtype)

    reference_dtype = reference.dtype
    return pull_back(reference, value, pullback)


_FAR = 6.0  # exp(6) costs float32 less than three of its seven digits


def _log_domain(x: Tensor, r: Tensor, dim: int, exponentials: _Exponentials) -> tuple[Tensor, Tensor]:
    """Secants of exp at the log probabilities, and multipliers of log sum exp."""
    lowest = torch.finfo(r.dtype).min / 4
    log_x, log_r = (z.log_softmax(dim).clamp_min(lowest) for z in (x, r))
    return secants.exp(log_x, log_r), exponentials.logsumexp_multiplier()


def log_softmax(observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """z - logsumexp(z)."""
    value = torch.log_softmax(reference.detach(), dim, dtype)
    weights = _Exponentials(observed.to(value.dtype), reference.to(value.dtype), dim).logsumexp_multiplier()

    def pullback(gradient: Tensor) -> Tensor:
        return (gradient - weights * gradient.sum(dim, keepdim=True)).to(reference_dtype)

    reference_dtype = reference.dtype
    return pull_back(reference, value, pullback)


def logsumexp(observed: Tensor, reference: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """log s + c: the secant of log times the secants of exp; the multipliers of one output need not add up to 1."""
    value = torch.logsumexp(reference.detach(), dim, keepdim)
    weights = _Exponentials(observed, reference, dim).logsumexp_multiplier()
    kept_shape = torch.logsumexp(reference.detach(), dim, keepdim=True).shape
    return pull_back(reference, value, lambda gradient: weights * gradient.reshape(kept_shape))
