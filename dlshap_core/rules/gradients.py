"""Autograd pieces the rules are built from: values of the reference pass with multipliers in place of gradients.

A rule computes an operation's ordinary value on the reference and decides what flows back. Backward passes through
these functions therefore carry DeepLIFT multipliers instead of gradients, and `torch.autograd` does the chain rule.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Values travel in a list: autograd would take a tensor argument that is returned for a view of it, on which the model
# could not work in place.


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, boxed_value: list[Tensor], multiplier: Tensor) -> Tensor:
        ctx.save_for_backward(multiplier)
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (multiplier,) = ctx.saved_tensors
        return gradients[0] * multiplier.to(gradients[0].dtype), None, None


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, boxed_value: list[Tensor]) -> Tensor:
        ctx.dtype = source.dtype
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class _Pullback(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, boxed_value: list[Tensor], pullback: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pullback = pullback
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pullback(gradients[0]), None, None


class _PullbackToTwo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, boxed_value: list[Tensor], pullback: Callable[[Tensor], Any]
    ) -> Tensor:
        ctx.pullback = pullback
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *ctx.pullback(gradients[0]), None, None


class _ComputeLate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        boxed_value: list[Tensor],
        pullback: Callable[..., Tensor],
        *kept: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*kept)  # tells if the model overwrites one of them
        ctx.pullback = pullback
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        return ctx.pullback(gradients[0], *kept), None, None, *(None for _ in kept)


# The autograd nodes of these functions, as they stand in a graph.
OWN_NODES = tuple(
    function._backward_cls for function in (_Multiply, _Substitute, _Pullback, _PullbackToTwo, _ComputeLate)
)


def multiply(source: Tensor, value: Tensor, multiplier: Tensor) -> Tensor:
    """`value`, whose gradient flows to `source` (same shape) times `multiplier`, elementwise."""
    return _Multiply.apply(source, [value.detach()], multiplier.detach())


def substitute(source: Tensor, value: Tensor) -> Tensor:
    """`value`, whose gradient flows to `source` (same shape) unchanged."""
    return _Substitute.apply(source, [value.detach()])


def pull_back(source: Tensor, value: Tensor, pullback: Callable[[Tensor], Tensor]) -> Tensor:
    """`value`, whose gradient g flows to `source` as pullback(g), a tensor of source's shape and dtype.

    `pullback` must hold no tensor that requires grad, and may be called once per target.
    """
    return _Pullback.apply(source, [value.detach()], pullback)


def pull_back_to_two(
    first: Tensor, second: Tensor, value: Tensor, pullback: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """`value`, whose gradient g flows to two sources as pullback(g), a pair of tensors of their shapes."""
    return _PullbackToTwo.apply(first, second, [value.detach()], pullback)


def pull_back_late(source: Tensor, value: Tensor, pullback: Callable[..., Tensor], *kept: Tensor) -> Tensor:
    """`value`, whose gradient g flows to `source` as pullback(g, *kept).

    The activations are kept until then; going back raises autograd's RuntimeError where they were overwritten.
    """
    return _ComputeLate.apply(source, [value.detach()], pullback, *kept)


@lru_cache(maxsize=32)
def gauss_legendre(n_nodes: int) -> tuple[tuple[float, float], ...]:
    """(node, weight) pairs of the Gauss-Legendre rule on [0, 1], exact for polynomials of degree 2 n_nodes - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return tuple(((float(t) + 1) / 2, float(w) / 2) for t, w in zip(nodes, weights, strict=True))


def between(r: Tensor, x: Tensor, t: float) -> Tensor:
    """r + t (x - r), with infinities (masked logits) made finite: 0 flows back there, and 0 times inf is not 0."""
    largest = min(1e30, torch.finfo(r.dtype).max)
    return ((1 - t) * r + t * x).clamp_(-largest, largest)


def path_gradient(
    function: Callable[..., Tensor],
    observed: Sequence[Tensor],
    reference: Sequence[Tensor],
    value: Tensor,
    n_nodes: int = 1,
) -> Tensor:
    """`value`, whose gradient is that of `function` averaged along the straight path from reference to observed.

    m = integral over t in [0, 1] of f'(r + t (x - r)), by Gauss-Legendre quadrature: integrated gradients (Sundararajan
    et al. 2017) of one operation. It sums to f(x) - f(r) by the fundamental theorem of calculus. With a single node it
    is the midpoint rule, exact for a product of two factors: dx (y + y0)/2 + dy (x + x0)/2 = xy - x0 y0.

    Args:
        function: takes as many tensors as there are in `reference`; differentiable.
        observed: values at the sequences, each of the shape of its reference.
        reference: values at the references, carrying gradients.
        value: function(*reference), as the model computes it.
        n_nodes: quadrature nodes.
    """
    averaged: Tensor | None = None
    with torch.enable_grad():
        for t, weight in gauss_legendre(n_nodes):
            points = [
                substitute(r, between(r.detach(), x.to(r.dtype), t)) for x, r in zip(observed, reference, strict=True)
            ]
            term = function(*points) if weight == 1 else function(*points) * weight
            averaged = term if averaged is None else averaged + term
        assert averaged is not None
        return substitute(averaged, value)
