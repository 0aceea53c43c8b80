"""Pooling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.keras_files.axes import held_axis, require_small
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights
from pipeline.models.keras_files.layers.composed import composed
from pipeline.models.keras_files.layers.convolutions import FORMATS, Pad, flat, formatted

_MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
_MEAN: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}


class PaddedMean(nn.Module):
    """An average whose windows at the ends are those of the positions that are there."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.pad, self.pool = Pad(widths, strides), _MEAN[len(widths)](tuple(widths), tuple(strides))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.pool(self.pad(x.new_ones(1, 1, *x.shape[2:])))
        return self.pool(self.pad(x)) / shares


def _pool(make: Callable[[Layer, tuple[int, ...], tuple[int, ...], bool], nn.Module], n: int) -> Any:
    def convert(layer: Layer, _: Weights) -> nn.Module:
        width = layer.sizes("pool_size", n, 2)
        strides = layer.sizes("strides", n, list(width))
        same = layer.choice("padding", "valid", ("valid", "same")) == "same"
        return formatted(layer, make(layer, width, strides, same))

    return convert


def max_pool(n: int) -> Any:
    """The converter of max-pooling over n axes."""

    def make(_: Layer, width: tuple[int, ...], strides: tuple[int, ...], same: bool) -> nn.Module:
        # Every window reaches into the sequence, where the outermost values are: repeated, they change no maximum.
        return composed(pad=Pad(width, strides, "replicate") if same else None, pool=_MAX[n](width, strides))

    return _pool(make, n)


def mean_pool(n: int) -> Any:
    """The converter of average-pooling over n axes."""

    def make(_: Layer, width: tuple[int, ...], strides: tuple[int, ...], same: bool) -> nn.Module:
        return PaddedMean(width, strides) if same else _MEAN[n](width, strides)

    return _pool(make, n)


class GlobalPool(nn.Module):
    """The mean or the maximum over all positions."""

    def __init__(self, is_mean: bool, channels_first: bool, keepdims: bool) -> None:
        super().__init__()
        self.is_mean, self.channels_first, self.keepdims = is_mean, channels_first, keepdims

    def forward(self, x: Tensor) -> Tensor:
        axes = range(2, x.ndim) if self.channels_first else range(1, x.ndim - 1)
        dims = tuple(held_axis(axis, x.ndim) for axis in axes)
        return x.mean(dims, keepdim=self.keepdims) if self.is_mean else x.amax(dims, keepdim=self.keepdims)


def global_pool(is_mean: bool) -> Any:
    def convert(layer: Layer, _: Weights) -> nn.Module:
        first = layer.choice("data_format", FORMATS[0], FORMATS) == FORMATS[1]
        return GlobalPool(is_mean, first, layer.flag("keepdims"))

    return convert


class Crop(nn.Module):
    def __init__(self, ends: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.ends = tuple(ends)

    def forward(self, x: Tensor) -> Tensor:
        for axis, (before, after) in enumerate(self.ends, start=2):
            if before + after >= x.shape[axis]:
                raise ValueError(f"{before} and {after} positions are cropped from {x.shape[axis]}")
            x = x.narrow(axis, before, x.shape[axis] - before - after)
        return x


class Zeros(nn.Module):
    """Zeros around the positions."""

    def __init__(self, ends: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.ends = tuple(ends)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [size + sum(ends) for size, ends in zip(x.shape[2:], self.ends, strict=True)]
        require_small(x.shape[1], *sizes)
        return F.pad(x, flat(self.ends))


class Repeat(nn.Module):
    """Each position several times."""

    def __init__(self, times: Sequence[int]) -> None:
        super().__init__()
        self.times = tuple(times)

    def forward(self, x: Tensor) -> Tensor:
        for axis, times in enumerate(self.times, start=2):
            require_small(*x.shape[1:], times)
            x = x.repeat_interleave(times, axis)
        return x


def crop(n: int) -> Any:
    return lambda layer, _: formatted(layer, Crop(layer.ends("cropping", n)))


def zeros(n: int) -> Any:
    return lambda layer, _: formatted(layer, Zeros(layer.ends("padding", n)))


def upsample(n: int) -> Any:
    def convert(layer: Layer, _: Weights) -> nn.Module:
        layer.refuse(interpolation="nearest")
        return formatted(layer, Repeat(layer.sizes("size", n, 2)))

    return convert
