"""Arithmetic spelled out in simpler operations, each of which has its own rule.

These functions run in place of the torch function of the same name, with every operation inside them seen and ruled in
turn. A quotient is a product with a reciprocal; a maximum of two tensors is a ramp; order statistics come from a sort.
"""

import math

import torch
from torch import Tensor

from dlshap_core.rules.call import as_operand
from dlshap_core.rules.operators import at_least_float32
from dlshap_core.rules.secants import finite_or_zero

# From this ratio of two denominators on, the midpoint product of a and 1/b loses more digits than it is worth: its two
# parts grow as the ratio and cancel.
FAR = 400.0


def quotient_multipliers(a_x: Tensor, b_x: Tensor, a_r: Tensor, b_r: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers of the numerator and the denominator of y = a / b.

    As a product with 1/b: m_a = (1/b + 1/b0)/2 and m_b = -(a + a0)/2 / b / b0: midpoint product, secant of the
    reciprocal; b b0 may be no number that can be written, as of sums of exponentials. Where the denominators differ by
    more than `FAR` these lose digits, and the equal sum dy = (da - y' db) / b', with y' and b' the means of both sides,
    is used: m_a = 1/b', m_b = -y'/b'.
    """
    a_x, b_x, a_r, b_r = (at_least_float32(z) for z in (a_x, b_x, a_r, b_r))
    smaller, larger = torch.minimum(b_x.abs(), b_r.abs()), torch.maximum(b_x.abs(), b_r.abs())
    is_far = larger > FAR * smaller
    mean_b, mean_y = (b_x + b_r) / 2, (a_x / b_x + a_r / b_r) / 2
    m_a = torch.where(is_far, 1 / mean_b, (1 / b_x + 1 / b_r) / 2)
    m_b = torch.where(is_far, -mean_y / mean_b, -(a_x + a_r) / 2 / b_x / b_r)
    return finite_or_zero(m_a), finite_or_zero(m_b)


def power_of_base(input: float | Tensor, exponent: Tensor) -> Tensor:
    """b^x = exp(x log b), for a positive base."""
    base = as_operand(input, exponent.dtype, exponent.device)
    return torch.exp(exponent * torch.log(base))


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """max(a, b) = b + max(a - b, 0): each side gets its share of the path on which it is the larger."""
    if not input.requires_grad:
        input, other = other, input
    return other + torch.relu(input - other) if other.requires_grad else input.clamp(min=other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """min(a, b) = b - max(b - a, 0)."""
    if not input.requires_grad:
        input, other = other, input
    return other - torch.relu(other - input) if other.requires_grad else input.clamp(max=other)


def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """a + w (b - a), with midpoint products."""
    return input + weight * (end - input)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """a + v b / c, with the quotient rule."""
    return input + value * (tensor1 / tensor2)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a sigmoid(b): midpoint product, secant of the sigmoid."""
    left, gate = input.chunk(2, dim)
    return left * torch.sigmoid(gate)


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log x - log(1 - x), of x clamped to [eps, 1 - eps]."""
    clamped = input if eps is None else input.clamp(eps, 1 - eps)
    return torch.log(clamped) - torch.log(1 - clamped)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log sum exp of two."""
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(input, other)), 0)


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """The same to the base of 2."""
    return logaddexp(input * math.log(2), other * math.log(2)) / math.log(2)


def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """amin and amax."""
    if dim is None:
        raise ValueError("over all axes it mixes the sequences of a batch; give dim=")
    return torch.return_types.aminmax((torch.amin(input, dim, keepdim), torch.amax(input, dim, keepdim)))


def hypot(input: Tensor, other: Tensor) -> Tensor:
    """sqrt(a^2 + b^2)."""
    return torch.sqrt(torch.square(input) + torch.square(other))


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The sum of the products of x1 / |x1| and x2 / |x2|, each norm at least eps."""
    left, right = (x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps) for x in (x1, x2))
    return (left * right).sum(dim)


def pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """The norm of x1 - x2 + eps over the last axis."""
    return torch.linalg.vector_norm(x1 - x2 + eps, p, dim=-1, keepdim=keepdim)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Distances between all rows of x1 and of x2 (torch's compute_mode only chooses how fast)."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, dim=-1)


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The k-th of the values sorted upwards."""
    values, places = torch.topk(input, k, dim, largest=False)
    values, places = values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    if not keepdim:
        values, places = values.squeeze(dim), places.squeeze(dim)
    return torch.return_types.kthvalue((values, places))


def median(input: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median, as torch's."""
    return kthvalue(input, (input.shape[dim] + 1) // 2, dim, keepdim)
