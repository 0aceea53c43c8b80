"""Operations on tensors that a model of Keras 3 has among its layers (`x + y`, `ops.mean(x, axis=1)`)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.keras_files.axes import require_small, to_keras, to_torch
from pipeline.models.keras_files.layer import Layer
from pipeline.models.keras_files.layers.activations import Weights

Maker = Callable[[Layer, Weights], nn.Module]

_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "Absolute": torch.abs,
    "Exp": torch.exp,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log1p": torch.log1p,
    "Negative": torch.neg,
    "Relu": F.relu,
    "Relu6": F.relu6,
    "Sigmoid": torch.sigmoid,
    "Silu": F.silu,
    "Sqrt": torch.sqrt,
    "Square": torch.square,
    "Tanh": torch.tanh,
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "Mean": torch.mean,
    "Sum": torch.sum,
    "Max": torch.amax,
    "Min": torch.amin,
    "Logsumexp": torch.logsumexp,
}


class Elementwise(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return _ELEMENTWISE[self.kind](x)


class Reduce(nn.Module):
    """Over axes as Keras counts them, none of which is the batch."""

    def __init__(self, kind: str, axes: Sequence[int], keepdims: bool) -> None:
        super().__init__()
        self.kind, self.axes, self.keepdims = kind, tuple(axes), keepdims

    def forward(self, x: Tensor) -> Tensor:
        if 0 in [axis % x.ndim for axis in self.axes]:
            raise ValueError("it mixes the sequences of a batch")
        return to_torch(_REDUCTIONS[self.kind](to_keras(x), self.axes, self.keepdims))


class Moved(nn.Module):
    """What only moves values of Keras's tensor: to other axes or another shape."""

    def __init__(self, kind: str, argument: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.argument = kind, argument

    def forward(self, x: Tensor) -> Tensor:
        x = to_keras(x)
        match self.kind:
            case "Transpose":
                found = x.permute(self.argument)
            case "Reshape":
                found = x.reshape(x.shape[0], *self.argument[1:])
            case "Squeeze":
                found = x.squeeze(self.argument)
            case _:
                found = x.unsqueeze(self.argument[0])
        if found.shape[0] != x.shape[0]:
            raise ValueError("it mixes the sequences of a batch")
        return to_torch(found)


class Take(nn.Module):
    """Part of Keras's tensor: (start, stop, step) of each axis, a position, None for a new axis, or `...`."""

    def forward(self, x: Tensor, key: tuple[Any, ...]) -> Tensor:
        x = to_keras(x)
        n_left_out = x.ndim - sum(one not in (None, ...) for one in key)
        at = key.index(...) if ... in key else len(key)
        index = [slice(*one) if isinstance(one, tuple) else one for one in key]
        index[at : at + 1] = [slice(None)] * n_left_out
        if index[0] != slice(None):
            raise ValueError("it takes some sequences of a batch")
        axis = 0
        for place, one in enumerate(index):  # backwards is what torch cannot: turned around first
            if isinstance(one, slice) and (one.step or 1) < 0:
                taken = range(*one.indices(x.shape[axis]))
                x = x.flip(axis)
                first = x.shape[axis] - 1 - taken.start if taken else 0
                index[place] = slice(first, first - taken.step * len(taken), -taken.step)
            axis += one is not None
        return to_torch(x[tuple(index)])


class Flip(nn.Module):
    """The other way round along axes of Keras's tensor."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x: Tensor) -> Tensor:
        if 0 in [axis % x.ndim for axis in self.axes]:
            raise ValueError("it mixes the sequences of a batch")
        return to_torch(to_keras(x).flip(self.axes))


class Divide(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y


class Power(nn.Module):
    def forward(self, x: Tensor, y: float) -> Tensor:
        return x**y


class Clip(nn.Module):
    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.least, self.most)


class Matmul(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = to_keras(x), to_keras(y)
        require_small(*x.shape[1:-1], y.shape[-1])
        return to_torch(x @ y)


def _reduce(layer: Layer, _: Weights) -> nn.Module:
    return Reduce(layer.kind, layer.axes("axis", 0), layer.flag("keepdims"))


def _moved(key: str) -> Maker:
    def make(layer: Layer, _: Weights) -> nn.Module:
        value = layer.config.get(key)
        many = [value] if type(value) is int else value
        if not isinstance(many, list | tuple) or not many or not all(type(one) is int for one in many):
            raise layer.wrong(key, "whole numbers")
        return Moved(layer.kind, tuple(many))

    return make


def _gelu(layer: Layer, _: Weights) -> nn.Module:
    return nn.GELU("tanh" if layer.flag("approximate", True) else "none")


OPERATIONS: dict[str, Maker] = {
    **{kind: lambda layer, _: Elementwise(layer.kind) for kind in _ELEMENTWISE},
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Transpose": _moved("axes"),
    "Reshape": _moved("newshape"),
    "Squeeze": _moved("axis"),
    "ExpandDims": _moved("axis"),
    "GetItem": lambda *_: Take(),
    "TrueDivide": lambda *_: Divide(),
    "Divide": lambda *_: Divide(),
    "Power": lambda *_: Power(),
    "Clip": lambda layer, _: Clip(layer.number("x_min"), layer.number("x_max")),
    "Flip": lambda layer, _: Flip(layer.axes("axis")),
    "Matmul": lambda *_: Matmul(),
    "Gelu": _gelu,
    "Softplus": lambda *_: nn.Softplus(threshold=40.0),
}
