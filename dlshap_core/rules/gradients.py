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

from dlshap_core.kernels.memory_format import order_in_memory, put_back
from dlshap_core.torch_private import node_class


class _Pullback(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        boxed_value: list[Tensor],
        pullback: Callable[..., tuple[Tensor, ...]],
        n_sources: int,
        *tensors: Tensor,
    ) -> Tensor:
        """The tensors are sources, and what is kept for the way back."""
        ctx.save_for_backward(*tensors[n_sources:])  # tells if the model overwrites one of them
        ctx.pullback = pullback
        # In a list, as autograd takes a tensor argument that is returned for a view of it, on which the model could not
        # work in place.
        return boxed_value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        return None, None, None, *ctx.pullback(gradients[0], *kept), *(None for _ in kept)


class _PullbackInPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, overwrite: Callable[[Tensor], Any], pullback: Callable[..., Tensor], source: Tensor, *kept: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.pullback = pullback
        overwrite(source)
        ctx.mark_dirty(source)
        return source

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        return None, None, ctx.pullback(gradients[0], *kept), *(None for _ in kept)


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, value: Tensor) -> Tensor:
        ctx.dtype, ctx.is_view = value.dtype, target._is_view()
        target.copy_(value)
        ctx.mark_dirty(target)
        return target

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        # Of a view None would be taken for all of what it is a view of.
        nothing = torch.zeros_like(gradients[0]) if ctx.is_view else None
        return nothing, gradients[0].to(ctx.dtype)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, dim: int, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
        order = order_in_memory(source)
        pieces = source.unbind(dim) if sizes is None else source.split(list(sizes), dim)
        ctx.dim, ctx.order, ctx.shapes, ctx.unbinds = dim, order, [piece.shape for piece in pieces], sizes is None
        ctx.set_materialize_grads(False)
        return tuple(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:
        like = next(g for g in gradients if g is not None)
        found = [like.new_zeros(s) if g is None else g for g, s in zip(gradients, ctx.shapes, strict=True)]
        if ctx.unbinds:
            found = [g.unsqueeze(ctx.dim) for g in found]
        joined = torch.cat([g.permute(ctx.order) for g in found], ctx.order.index(ctx.dim))
        return put_back(joined, ctx.order), None, None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxed_values: list[Tensor], go_back: Callable[..., Any], *inputs: Tensor) -> Any:
        ctx.save_for_backward(*inputs)
        ctx.go_back = go_back
        return tuple(boxed_values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, None, *ctx.go_back(gradients, ctx.saved_tensors)


_OWN_NODES = tuple(map(node_class, (_Pullback, _PullbackInPlace, _Replaced, _Pieces, _Recomputed)))


def recomputed(
    inputs: Sequence[Tensor], values: Sequence[Tensor], go_back: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor, ...]:
    """The values, whose gradients flow to the inputs as go_back(gradients, inputs); None where there is none."""
    return _Recomputed.apply([value.detach() for value in values], go_back, *inputs)


def pull_back(source: Tensor, value: Tensor, pullback: Callable[..., Tensor], *kept: Tensor) -> Tensor:
    """`value`, whose gradient g flows to `source` as pullback(g, *kept), a tensor of source's shape and dtype.

    `pullback` must hold no tensor that requires grad, and may be called once per target. What is kept is let go as soon
    as nothing goes back through it any more; what `pullback` itself holds stays until the batch is done. Going back
    raises autograd's RuntimeError where what is kept was overwritten.
    """
    return _Pullback.apply([value.detach()], lambda g, *rest: (pullback(g, *rest),), 1, source, *kept)


def pull_back_in_place(
    source: Tensor, overwrite: Callable[[Tensor], Any], pullback: Callable[..., Tensor], *kept: Tensor
) -> Tensor:
    """`source` with what `overwrite` wrote into it, whose gradient flows to what it was before as in `pull_back`."""
    return _PullbackInPlace.apply(overwrite, pullback, source, *kept)


def replace(target: Tensor, value: Tensor) -> Tensor:
    """`target` with the values of `value` (same shape), to which its gradient flows. Nothing flows to what it was."""
    return _Replaced.apply(target, value)


def in_pieces(source: Tensor, dim: int, sizes: Sequence[int] | None) -> tuple[Tensor, ...]:
    """Pieces of these sizes along an axis (all of 1, and without the axis, if there are none), whose gradients are put
    together in the memory format of the source. They are views, and the model may write into none of them."""
    return _Pieces.apply(source, dim % source.ndim, sizes)


def pull_back_to(
    sources: Sequence[Tensor], value: Tensor, pullback: Callable[..., tuple[Tensor, ...]], *kept: Tensor
) -> Tensor:
    """`value`, whose gradient g flows to several sources as pullback(g, *kept), tensors of their shapes."""
    return _Pullback.apply([value.detach()], pullback, len(sources), *sources, *kept)


def multiply(source: Tensor, value: Tensor, multiplier: Tensor) -> Tensor:
    """`value`, whose gradient flows to `source` (same shape) times `multiplier`, elementwise."""
    return pull_back(source, value, scale, multiplier.detach())


def scale(gradient: Tensor, multiplier: Tensor) -> Tensor:
    """What flows back, times multipliers of the same shape."""
    return gradient * multiplier.to(gradient.dtype)


def substitute(source: Tensor, value: Tensor) -> Tensor:
    """`value`, whose gradient flows to `source` (same shape) unchanged, in source's dtype."""
    dtype = source.dtype
    return pull_back(source, value, lambda gradient: gradient.to(dtype))


@lru_cache(maxsize=32)
def gauss_legendre(n_nodes: int) -> tuple[tuple[float, float], ...]:
    """(node, weight) pairs of the Gauss-Legendre rule on [0, 1], exact for polynomials of degree 2 n_nodes - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    return tuple(((float(t) + 1) / 2, float(w) / 2) for t, w in zip(nodes, weights, strict=True))


def between(r: Tensor, x: Tensor, t: float) -> Tensor:
    """r + t (x - r), with infinities (masked logits) made finite: 0 flows back there, and 0 times inf is not 0."""
    point = (1 - t) * r + t * x
    if point.is_complex():
        return point
    largest = min(1e30, torch.finfo(r.dtype).max)
    return point.clamp_(-largest, largest)


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


def reaches_others(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether outputs depend on anything that does not go by way of the inputs."""
    stops = {x.grad_fn for x in inputs}
    pending, visited = [y.grad_fn for y in outputs], set()
    while pending:
        node = pending.pop()
        if node is None or node in visited or node in stops:
            continue
        if hasattr(node, "variable"):  # a leaf
            return True
        visited.add(node)
        pending.extend(parent for parent, _ in node.next_functions)
    return False


def find_custom_function(output: Tensor) -> str | None:
    """Name of a custom autograd.Function in the graph of a replayed output, if there is one.

    Such functions go past the function mode, as does reentrant checkpointing, which is one of them.
    """
    pending, visited = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction) and not isinstance(node, _OWN_NODES):
            return type(node).__name__.removesuffix("Backward")
        pending.extend(parent for parent, _ in node.next_functions)
    return None
