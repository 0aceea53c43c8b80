"""Normalisation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.models.keras_files.axes import to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights
from pipeline.models.keras_files.layers.composed import parameters


class BatchNorm(_BatchNorm):
    """Over axis 1 of a tensor with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        """All are taken."""


class OverAxis(nn.Module):
    """A module over axis 1, applied to another axis of Keras's tensor."""

    def __init__(self, inner: nn.Module, axis: int) -> None:
        super().__init__()
        self.inner, self.axis = inner, axis

    def forward(self, x: Tensor) -> Tensor:
        if self.axis in (-1, x.ndim - 1):
            return self.inner(x)
        return to_torch(self.inner(to_keras(x).movedim(self.axis, 1)).movedim(1, self.axis))


def _axis(layer: Layer) -> int:
    axes = layer.axes("axis")
    if len(axes) != 1 or axes[0] == 0:
        raise layer.wrong("axis", "one axis behind the first")
    return axes[0]


def batch_norm(layer: Layer, weights: Weights) -> nn.Module:
    mean = weights["moving_mean"]
    norm = BatchNorm(mean.numel(), eps=layer.number("epsilon", 1e-3))
    parameters(
        layer,
        norm,
        weight=weights.get("gamma", torch.ones_like(mean)),
        bias=weights.get("beta", torch.zeros_like(mean)),
        running_mean=mean,
        running_var=weights["moving_variance"],
    )
    axis = _axis(layer)
    return norm if axis == -1 else OverAxis(norm, axis)


class LayerNorm(nn.Module):
    """Over some axes of Keras's tensor; weights and offsets have the sizes of these."""

    def __init__(self, axes: Sequence[int], eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.axes, self.eps = tuple(axes), eps
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        x = to_keras(x)
        axes = sorted(axis % x.ndim for axis in self.axes)
        last = list(range(x.ndim - len(axes), x.ndim))
        moved = x.movedim(axes, last)
        return to_torch(self.normalised(moved, moved.shape[-len(axes) :]).movedim(last, axes))

    def normalised(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Over the last axes, of this shape."""
        return F.layer_norm(x, shape, self.weight, self.bias, self.eps)


class RMSNorm(LayerNorm):
    """Without the mean."""

    def normalised(self, x: Tensor, shape: torch.Size) -> Tensor:
        return F.rms_norm(x, shape, self.weight, self.eps)


class GroupNorm(nn.Module):
    """Over groups of features and all positions; a group for each feature where `n_groups` is None."""

    def __init__(self, n_groups: int | None, eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.n_groups or x.shape[1], self.weight, self.bias, self.eps)


def layer_norm(layer: Layer, weights: Weights) -> nn.Module:
    layer.refuse(rms_scaling=False)
    return LayerNorm(layer.axes("axis"), layer.number("epsilon", 1e-3), weights.get("gamma"), weights.get("beta"))


def rms_norm(layer: Layer, weights: Weights) -> nn.Module:
    return RMSNorm(layer.axes("axis"), layer.number("epsilon", 1e-6), weights["scale"], None)


def group_norm(layer: Layer, weights: Weights) -> nn.Module:
    axis, n_groups = _axis(layer), layer.config.get("groups", 32)
    n_groups = None if n_groups == -1 else layer.size("groups", 32)
    norm = GroupNorm(n_groups, layer.number("epsilon", 1e-3), weights.get("gamma"), weights.get("beta"))
    return norm if axis == -1 else OverAxis(norm, axis)
