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


def softmax(observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """y_i = a_i v with v = 1 / s: midpoint product, secant of the reciprocal, secant of exp.

    m(z_j -> y_i) = E_j ([i = j] (v + v0)/2 - (a_i + a0_i)/2 v v0).
    """
    value = torch.softmax(reference.detach(), dim, dtype)
    exponentials = _Exponentials(observed.to(value.dtype), reference.to(value.dtype), dim)
    inverse_x, inverse_r = 1 / exponentials.sum_x, 1 / exponentials.sum_r
    inverse, product = (inverse_x + inverse_r) / 2, inverse_x * inverse_r
    middle, secant = (exponentials.x + exponentials.r) / 2, exponentials.secant

    def pullback(gradient: Tensor) -> Tensor:
        spread = (gradient * middle).sum(dim, keepdim=True) * product
        return (secant * (gradient * inverse - spread)).to(reference_dtype)

    reference_dtype = reference.dtype
    return pull_back(reference, value, pullback)


def log_softmax(observed: Tensor, reference: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """z - logsumexp(z)."""
    value = torch.log_softmax(reference.detach(), dim, dtype)
    weights = _logsumexp_multiplier(observed.to(value.dtype), reference.to(value.dtype), dim)

    def pullback(gradient: Tensor) -> Tensor:
        return (gradient - weights * gradient.sum(dim, keepdim=True)).to(reference_dtype)

    reference_dtype = reference.dtype
    return pull_back(reference, value, pullback)


def logsumexp(observed: Tensor, reference: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """log s + c: the secant of log times the secants of exp; the multipliers of one output need not add up to 1."""
    value = torch.logsumexp(reference.detach(), dim, keepdim)
    weights = _logsumexp_multiplier(observed, reference, dim)
    kept_shape = torch.logsumexp(reference.detach(), dim, keepdim=True).shape
    return pull_back(reference, value, lambda gradient: weights * gradient.reshape(kept_shape))


def _logsumexp_multiplier(observed: Tensor, reference: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    exponentials = _Exponentials(observed, reference, dim)
    return exponentials.secant * secants.log(exponentials.sum_x, exponentials.sum_r)
