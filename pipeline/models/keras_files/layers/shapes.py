"""Layers that only move values, in the order in which Keras has them."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.models.keras_files.axes import require_small, to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights
from pipeline.models.keras_files.layers.convolutions import FORMATS


class Flatten(nn.Module):
    """(N, C, L) -> (N, L * C), positions before features."""

    def forward(self, x: Tensor) -> Tensor:
        return to_keras(x).flatten(1)


class FlattenFirst(nn.Module):
    """The same where axis 1 of Keras's tensor has the features (`channels_first`)."""

    def forward(self, x: Tensor) -> Tensor:
        x = to_keras(x)
        return (x.movedim(1, -1) if x.ndim > 2 else x).flatten(1)


class Reshape(nn.Module):
    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return to_torch(to_keras(x).reshape(x.shape[0], *self.shape))


class Permute(nn.Module):
    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: Tensor) -> Tensor:
        return to_torch(to_keras(x).permute(0, *self.dims))


class RepeatVector(nn.Module):
    """(N, C) -> (N, C, times)."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        require_small(*x.shape[1:], self.times)
        return x.unsqueeze(-1).expand(-1, -1, self.times)


class Scale(nn.Module):
    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


def flatten(layer: Layer, _: Weights) -> nn.Module:
    first = layer.choice("data_format", FORMATS[0], FORMATS) == FORMATS[1]
    return FlattenFirst() if first else Flatten()


def reshape(layer: Layer, _: Weights) -> nn.Module:
    shape = layer.config.get("target_shape")
    if not isinstance(shape, list | tuple) or not all(type(size) is int and size >= -1 for size in shape):
        raise layer.wrong("target_shape", "sizes")
    return Reshape(shape)


def permute(layer: Layer, _: Weights) -> nn.Module:
    dims = layer.config.get("dims")
    if not isinstance(dims, list | tuple) or sorted(dims) != list(range(1, len(dims) + 1)):
        raise layer.wrong("dims", "every axis but the first once, counted from 1")
    return Permute(dims)


def repeat_vector(layer: Layer, _: Weights) -> nn.Module:
    return RepeatVector(layer.size("n"))


def rescale(layer: Layer, _: Weights) -> nn.Module:
    return Scale(layer.number("scale"), layer.number("offset", 0.0))
