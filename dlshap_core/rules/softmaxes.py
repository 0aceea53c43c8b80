"""Rules of softmax, log-softmax and logsumexp, with observed and reference logits under one shared shift.

With a_i = exp(z_i - c), s = sum_i a_i, the parts have exact multipliers that are chained: the secants of exp and of log
s. The shift c, the largest logit on either side, cancels; both sides must share it, or exp over- or underflows on one
of them.
"""

import torch
from torch import Tensor

from dlshap_core.gradients import pull_back
from dlshap_core.rules import secants


class _Exponentials:
    """Sums s of both sides, and the secants of exp; z = -inf (a masked logit) has a = 0 and no multiplier."""

    def __init__(self, observed: Tensor, reference: Tensor, dim: int | tuple[int, ...]) -> None:
        lowest = torch.finfo(reference.dtype).min / 4
        x, r = observed.clamp_min(lowest), reference.detach().clamp_min(lowest)
        shift = torch.maximum(x, r).amax(dim, keepdim=True)
        self.secant = secants.exp(x - shift, r - shift)
        self.sum_x, self.sum_r = ((z - shift).exp().sum(dim, keepdim=True) for z in (x, r))
        # Of log sum exp on each side, under a shift of its own, so that neither side vanishes.
        self.logsumexp_change = torch.logsumexp(x, dim, keepdim=True) - torch.logsumexp(r, dim, keepdim=True)

    def logsumexp_multiplier(self) -> Tensor:
        """Secant of log sum exp: the secant of the log, at close sums by its own closed form, times those of exp."""
        close = secants.log(self.sum_x, self.sum_r)
        apart = self.logsumexp_change / (self.sum_x - self.sum_r)
        return self.secant * torch.where(self.logsumexp_change.abs() < 1, close, apart)


def softmax(observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """y = exp(z - logsumexp z): secant of exp at the log probabilities, and the multipliers w of log sum exp.

    m(z_j -> y_i) = E'_i ([i = j] - w_j), with E' the secant of that exp. This is tangermeme's rule. Its factors are at
    most 1, where the midpoint product of a and 1/s grows as the ratio of the two sums and loses as many digits.
    """
    value = torch.softmax(reference.detach(), dim, dtype)
    x, r = observed.to(value.dtype), reference.detach().to(value.dtype)
    lowest = torch.finfo(r.dtype).min / 4
    outer = secants.exp(*(z.log_softmax(dim).clamp_min(lowest) for z in (x, r)))
    weights = _Exponentials(x, r, dim).logsumexp_multiplier()

    def pullback(gradient: Tensor) -> Tensor:
        through = gradient * outer
        return (through - weights * through.sum(dim, keepdim=True)).to(reference_dtype)

    reference_dtype = reference.dtype
    return pull_back(reference, value, pullback)


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
    exponentials = _Exponentials(observed, reference, dim)
    weights, kept_shape = exponentials.logsumexp_multiplier(), exponentials.sum_r.shape
    return pull_back(reference, value, lambda gradient: weights * gradient.reshape(kept_shape))
