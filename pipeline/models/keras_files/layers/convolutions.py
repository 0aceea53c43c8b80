"""Convolutions. Keras's kernels are (width, ..., features in, features out), torch's (out, in, width, ...)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.keras_files.axes import require_small, to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights, activation
from pipeline.models.keras_files.layers.composed import composed, parameters, require_shape

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
FORMATS = ("channels_last", "channels_first")


class Around(nn.Module):
    """A layer whose features are at axis 1 of Keras's own tensor (`channels_first`)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return to_torch(self.inner(to_keras(x)))


def formatted(layer: Layer, module: nn.Module) -> nn.Module:
    """The module in the order of axes that the layer's `data_format` says."""
    return module if layer.choice("data_format", FORMATS[0], FORMATS) == FORMATS[0] else Around(module)


def same_ends(size: int, width: int, stride: int) -> tuple[int, int]:
    """What `padding=same` adds before and after an axis: the output has size / stride positions, rounded up, and the
    odd one is added behind. `width`: of the dilated kernel."""
    total = max((-(-size // stride) - 1) * stride + width - size, 0)
    return total // 2, total - total // 2


class Pad(nn.Module):
    """Zeros, or the outermost values, around an axis or two, as `padding=same` wants them."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], mode: str = "constant") -> None:
        super().__init__()
        self.widths, self.strides, self.mode = tuple(widths), tuple(strides), mode

    def forward(self, x: Tensor) -> Tensor:
        ends = self.ends(x)
        require_small(x.shape[1], *(size + sum(both) for size, both in zip(x.shape[2:], ends, strict=True)))
        return F.pad(x, flat(ends), mode=self.mode)

    def ends(self, x: Tensor) -> list[tuple[int, int]]:
        """Before and after each axis."""
        sizes = zip(x.shape[2:], self.widths, self.strides, strict=True)
        return [same_ends(size, width, stride) for size, width, stride in sizes]


class PadBefore(nn.Module):
    """Zeros before a sequence, of `padding=causal`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        require_small(x.shape[1], x.shape[2] + self.width)
        return F.pad(x, (self.width - 1, 0))


def flat(ends: Sequence[tuple[int, int]]) -> list[int]:
    """The ends of each axis in torch's order: the last axis first."""
    return [end for pair in reversed(ends) for end in pair]


def _windows(layer: Layer, n: int) -> dict[str, tuple[int, ...]]:
    kernel = layer.sizes("kernel_size", n)
    return {
        "kernel_size": kernel,
        "stride": layer.sizes("strides", n, 1),
        "dilation": layer.sizes("dilation_rate", n, 1),
    }


def _padding(layer: Layer, windows: dict[str, tuple[int, ...]]) -> tuple[nn.Module | None, Any]:
    """What to put before a convolution, and its own padding."""
    n = len(windows["kernel_size"])
    widths = [(k - 1) * d + 1 for k, d in zip(windows["kernel_size"], windows["dilation"], strict=True)]
    padding = layer.choice("padding", "valid", ("valid", "same", "causal")[: 3 if n == 1 else 2])
    if padding == "valid":
        return None, 0
    if padding == "causal":
        return PadBefore(widths[0]), 0
    if all(stride == 1 for stride in windows["stride"]) and all(width % 2 for width in widths):
        return None, tuple(width // 2 for width in widths)
    return Pad(widths, windows["stride"]), 0


def convolution(n: int) -> Any:
    """The converter of convolutions over n axes."""

    def convert(layer: Layer, weights: Weights) -> nn.Module:
        kernel, windows = weights["kernel"], _windows(layer, n)
        groups = layer.size("groups", 1)
        require_shape(layer, "kernel", kernel, (*windows["kernel_size"], None, layer.size("filters")))
        before, padding = _padding(layer, windows)
        n_in, n_out = kernel.shape[-2] * groups, kernel.shape[-1]
        if n_out % groups:
            raise layer.error(f"{n_out} filters in {groups} groups")
        conv = _CONV[n](n_in, n_out, padding=padding, groups=groups, bias="bias" in weights, **windows)
        parameters(layer, conv, weight=kernel.movedim((-1, -2), (0, 1)), bias=weights.get("bias"))
        return composed(inner=formatted(layer, composed(pad=before, conv=conv)), activation=activation(layer))

    return convert


def _by_channel(layer: Layer, kernel: Tensor, bias: Tensor | None, n: int) -> nn.Module:
    """A convolution of each channel by itself; its kernel is (width, ..., channels, multiplier)."""
    windows = _windows(layer, n)
    n_channels, multiplier = kernel.shape[-2:]
    require_shape(layer, "depthwise_kernel", kernel, (*windows["kernel_size"], None, layer.size("depth_multiplier", 1)))
    before, padding = _padding(layer, windows)
    n_out = n_channels * multiplier
    conv = _CONV[n](n_channels, n_out, padding=padding, groups=n_channels, bias=bias is not None, **windows)
    weight = kernel.flatten(-2).movedim(-1, 0).unsqueeze(1)
    parameters(layer, conv, weight=weight, bias=bias)
    return composed(pad=before, conv=conv)


def separable(n: int) -> Any:
    """The converter of a convolution of each channel, then one of width 1 across them."""

    def convert(layer: Layer, weights: Weights) -> nn.Module:
        across = weights["pointwise_kernel"]
        require_shape(layer, "pointwise_kernel", across, (*[1] * n, None, layer.size("filters")))
        point = _CONV[n](across.shape[-2], across.shape[-1], kernel_size=1, bias="bias" in weights)
        parameters(layer, point, weight=across.movedim((-1, -2), (0, 1)), bias=weights.get("bias"))
        depth = _by_channel(layer, weights["depthwise_kernel"], None, n)
        inner = formatted(layer, composed(depthwise=depth, pointwise=point))
        return composed(inner=inner, activation=activation(layer))

    return convert


def depthwise(n: int) -> Any:
    def convert(layer: Layer, weights: Weights) -> nn.Module:
        kernel = weights.get("kernel", weights.get("depthwise_kernel"))
        assert kernel is not None
        inner = formatted(layer, _by_channel(layer, kernel, weights.get("bias"), n))
        return composed(inner=inner, activation=activation(layer))

    return convert


class Trim(nn.Module):
    """A transposed convolution; with `padding=same` of stride times as many positions, the ends being cut."""

    def __init__(self, inner: nn.Module, strides: Sequence[int], widths: Sequence[int], same: bool) -> None:
        super().__init__()
        self.inner, self.strides, self.widths, self.same = inner, tuple(strides), tuple(widths), same

    def forward(self, x: Tensor) -> Tensor:
        require_small(
            *(size * s + width for size, s, width in zip(x.shape[2:], self.strides, self.widths, strict=True))
        )
        found = self.inner(x)
        sizes = zip(x.shape[2:], self.strides, self.widths, strict=True)
        for axis, (size, stride, width) in enumerate(sizes, start=2):
            if self.same:
                start = max(width - stride, 0) // 2
                found = found.narrow(axis, start, size * stride)
        return found


def transposed(n: int) -> Any:
    """The converter of transposed convolutions, whose kernels are (width, ..., features out, features in)."""

    def convert(layer: Layer, weights: Weights) -> nn.Module:
        kernel, windows = weights["kernel"], _windows(layer, n)
        layer.refuse(output_padding=None)
        require_shape(layer, "kernel", kernel, (*windows["kernel_size"], layer.size("filters"), None))
        padding = layer.choice("padding", "valid", ("valid", "same"))
        widths = [(k - 1) * d + 1 for k, d in zip(windows["kernel_size"], windows["dilation"], strict=True)]
        if padding == "same" and any(w < s for w, s in zip(widths, windows["stride"], strict=True)):
            raise layer.error("strides larger than the kernel are not supported")
        behind = tuple(max(s - w, 0) for s, w in zip(windows["stride"], widths, strict=True))
        shape = {"output_padding": behind, "bias": "bias" in weights, **windows}
        conv = _TRANSPOSED[n](kernel.shape[-1], kernel.shape[-2], **shape)
        parameters(layer, conv, weight=kernel.movedim((-1, -2), (0, 1)), bias=weights.get("bias"))
        inner = Trim(conv, windows["stride"], widths, padding == "same")
        return composed(inner=formatted(layer, inner), activation=activation(layer))

    return convert
