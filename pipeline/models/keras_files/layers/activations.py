"""Activations: by name, or as layers of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.keras_files.axes import held_axis
from pipeline.models.keras_files.layer import Layer, layer_of

Weights = Mapping[str, Tensor]
_SLOPE = 0.2  # of leaky_relu by name; the layer's own default is another
_EXACT = 40.0  # from here on softplus is the identity in float64


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


class HardSigmoid(nn.Module):
    """Keras 2's: a line of slope 0.2 between 0 and 1. Keras 3 has torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return (0.2 * x + 0.5).clamp(0, 1)


class SigmoidGELU(nn.Module):
    """GELU by a sigmoid, as Enformer has it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Squareplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + (x.square() + 4).sqrt()) / 2


class OverAxis(nn.Module):
    """A function over one axis of Keras's tensor."""

    def __init__(self, function: Callable[..., Tensor], axis: int) -> None:
        super().__init__()
        self.function, self.axis = function, axis

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, dim=held_axis(self.axis, x.ndim))


class ReLU(nn.Module):
    """Keras's in full: 0 up to a threshold, at most `largest`, and a slope below the threshold."""

    def __init__(self, slope: float, largest: float | None, threshold: float) -> None:
        super().__init__()
        self.slope, self.largest, self.threshold = slope, largest, threshold

    def forward(self, x: Tensor) -> Tensor:
        above = F.relu(x) if self.threshold == 0 else F.threshold(x, self.threshold, 0.0)
        if self.largest is not None:
            above = above.clamp(max=self.largest)
        return above - self.slope * F.relu(self.threshold - x) if self.slope else above


class PReLU(nn.Module):
    """A slope below zero for each element, (C, ...), broadcast along the axes that share it."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(slopes)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) - self.weight * F.relu(-x)


_BY_NAME: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "exponential": Exponential,
    "gelu": nn.GELU,
    "gelu_approx": lambda: nn.GELU(approximate="tanh"),  # CREsted's, as the next
    "gelu_enf": SigmoidGELU,
    "glu": lambda: OverAxis(F.glu, -1),
    "hard_shrink": nn.Hardshrink,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": lambda: nn.LeakyReLU(_SLOPE),
    "linear": nn.Identity,
    "log_sigmoid": nn.LogSigmoid,
    "log_softmax": lambda: OverAxis(torch.log_softmax, -1),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "soft_shrink": nn.Softshrink,
    "softmax": lambda: OverAxis(torch.softmax, -1),
    "softplus": lambda: nn.Softplus(threshold=_EXACT),
    "softsign": nn.Softsign,
    "squareplus": Squareplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "tanh_shrink": nn.Tanhshrink,
}


NAMES = ("hard_sigmoid", *_BY_NAME)


def activation(layer: Layer, key: str = "activation", default: str = "linear") -> nn.Module:
    """The activation that is a setting of a layer; an identity where it has none."""
    found: Any = layer.config.get(key)
    if isinstance(found, Mapping) and found.get("class_name") == "function":
        found = found.get("config")
    if isinstance(found, Mapping):
        inner = layer_of(found, layer.major, layer)
        if inner.kind in ACTIVATION_LAYERS:
            return ACTIVATION_LAYERS[inner.kind](inner)
        raise layer.error(f"its {key} {inner.kind} is not one of Keras's own without weights")
    name = found.removeprefix("crested>") if isinstance(found, str) else default if found is None else found
    if name == "hard_sigmoid":
        return HardSigmoid() if layer.major < 3 else nn.Hardsigmoid()
    if not isinstance(name, str) or name not in _BY_NAME:
        shown = name if isinstance(name, str) else "given as code, which"
        own = str(name).rpartition(">")[2]  # behind the package that registered it
        way = f"; where it is one of those by another name: model.layers.{own}=gelu" if isinstance(name, str) else ""
        raise layer.error(f"its {key} {shown} is not one of Keras's own{way}")
    return _BY_NAME[name]()


def _relu(layer: Layer) -> nn.Module:
    largest = None if layer.config.get("max_value") is None else layer.number("max_value")
    slope, threshold = layer.number("negative_slope", 0.0), layer.number("threshold", 0.0)
    if threshold == 0 and largest is None:
        return nn.LeakyReLU(slope) if slope else nn.ReLU()
    return ReLU(slope, largest, threshold)


def _leaky_relu(layer: Layer) -> nn.Module:
    return nn.LeakyReLU(layer.number("negative_slope" if "negative_slope" in layer.config else "alpha", 0.3))


def _softmax(layer: Layer) -> nn.Module:
    if len(axes := layer.axes("axis")) != 1:
        raise layer.wrong("axis", "one axis")
    return OverAxis(torch.softmax, axes[0])


ACTIVATION_LAYERS: dict[str, Callable[[Layer], nn.Module]] = {
    "Activation": activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ThresholdedReLU": lambda layer: ReLU(0.0, None, layer.number("theta", 1.0)),
    "ELU": lambda layer: nn.ELU(layer.number("alpha", 1.0)),
    "Softmax": _softmax,
}


def prelu(layer: Layer, weights: Weights) -> nn.Module:
    slopes = weights["alpha"]
    return PReLU(slopes.movedim(-1, 0).contiguous() if slopes.ndim > 1 else slopes)
