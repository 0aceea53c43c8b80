"""Layers that join several tensors."""

import functools
import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.models.keras_files.axes import held_axis, require_small, to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights


class Merge(nn.Module):
    """Elementwise; a tensor with fewer axes is the same along the first ones of the others."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *inputs: Tensor | float) -> Tensor:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        n_axes = max(x.ndim for x in tensors)
        spread = [
            x[(slice(None), slice(None), *[None] * (n_axes - x.ndim))]
            if isinstance(x, Tensor)
            else tensors[0].new_tensor(x)
            for x in inputs
        ]
        require_small(*torch.broadcast_shapes(*(x.shape[1:] for x in spread)))
        return OPERATIONS[self.operation](spread)


OPERATIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "Add": lambda parts: functools.reduce(operator.add, parts),
    "Subtract": lambda parts: functools.reduce(operator.sub, parts),
    "Multiply": lambda parts: functools.reduce(operator.mul, parts),
    "Average": lambda parts: functools.reduce(operator.add, parts) / len(parts),
    "Maximum": lambda parts: functools.reduce(torch.maximum, parts),
    "Minimum": lambda parts: functools.reduce(torch.minimum, parts),
}


class Concatenate(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *inputs: Tensor) -> Tensor:
        require_small(sum(x[0].numel() for x in inputs))
        return torch.cat(inputs, held_axis(self.axis, inputs[0].ndim))


class Dot(nn.Module):
    """The product of two tensors summed over an axis of each; with `normalize`, of their directions."""

    def __init__(self, axes: tuple[int, int], normalize: bool) -> None:
        super().__init__()
        self.axes, self.normalize = axes, normalize

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = to_keras(a), to_keras(b)
        if self.normalize:
            a, b = (nn.functional.normalize(x, dim=axis, eps=1e-6) for x, axis in zip((a, b), self.axes, strict=True))
        left, right = a.movedim(self.axes[0], -1), b.movedim(self.axes[1], 1)
        product = left.flatten(1, -2) if left.ndim > 2 else left.unsqueeze(1)
        require_small(*product.shape[1:-1], *right.shape[2:])
        summed = product @ (right.flatten(2) if right.ndim > 2 else right.unsqueeze(2))
        shape = [*left.shape[1:-1], *right.shape[2:]] or [1]
        return to_torch(summed.reshape(a.shape[0], *shape))


def merge(layer: Layer, _: Weights) -> nn.Module:
    return Merge(layer.kind)


def concatenate(layer: Layer, _: Weights) -> nn.Module:
    (axis,) = layer.axes("axis")
    return Concatenate(axis)


def dot(layer: Layer, _: Weights) -> nn.Module:
    axes = layer.axes("axes", 1)
    if 0 in axes or len(axes) > 2:
        raise layer.wrong("axes", "one or two axes behind the first")
    return Dot((axes[0], axes[-1]), layer.flag("normalize"))
