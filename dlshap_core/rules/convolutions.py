"""Convolutions with constant weights: linear, and so nothing is kept of their input, which torch would keep whatever
the weights need; on a CPU computed with the channels last in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.memory_format import DTYPES, put_channels_last, weights_channels_last
from dlshap_core.rules.call import Call
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.products import Multilinear
from dlshap_core.rules.protocol import Pass

_FEW_CHANNELS = 8  # of an input: one-hot bases, and some tracks beside them


@dataclass(frozen=True)
class Convolution(Multilinear):
    """conv1d and conv2d, with the channels last in memory where that is faster."""

    def run(self, forward: Pass, call: Call) -> Any:
        if len(call.inputs) > 1:
            return super().run(forward, call)
        input, weight, *_ = call.named("input", "weight")
        if input is not call.inputs[0]:
            return super().run(forward, call)
        if not forward.formats.may_change or not _can_convolve(input, weight):
            return _keeping_nothing(*call.args, **call.kwargs)
        forward.formats.is_changed = True
        return convolve(*call.args, **call.kwargs)


@dataclass(frozen=True)
class TransposedConvolution(Multilinear):
    """conv_transpose1d, with the channels last in memory where that is faster: torch computes it in the other format,
    and what comes before and after would be copied."""

    def run(self, forward: Pass, call: Call) -> Any:
        if len(call.inputs) > 1 or not forward.formats.may_change:
            return super().run(forward, call)
        input, weight, *_ = call.named("input", "weight")
        is_autocast = torch.is_autocast_enabled(input.device.type)
        if input is not call.inputs[0] or input.ndim != 3 or not fused.takes(input, weight) or is_autocast:
            return super().run(forward, call)
        names = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = dict(zip(names, call.args[2:], strict=False)) | {n: v for n, v in call.kwargs.items() if n in names}
        if given.get("groups", 1) != 1:
            return super().run(forward, call)
        forward.formats.is_changed = True
        sizes = [_of_axis(given.get(name, n), 0) for name, n in (("stride", 1), ("padding", 0), ("dilation", 1))]
        return _convolve_transposed(
            input, weight, given.get("bias"), sizes, _of_axis(given.get("output_padding", 0), 0)
        )


def _convolve_transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], output_padding: int
) -> Tensor:
    """conv_transpose1d of (B, I, L) with weights (I, O, K), computed as what goes back through a convolution; `sizes`
    are stride, padding and dilation."""
    stride, padding, dilation = sizes
    n_before, n_kernel = input.shape[2], weight.shape[2]
    length = (n_before - 1) * stride - 2 * padding + dilation * (n_kernel - 1) + output_padding + 1
    kernel = weight.transpose(1, 2)
    columns = fused.linear(input.detach().transpose(1, 2).contiguous(), kernel.flatten(1).T.contiguous())
    if (stride, padding, dilation, output_padding) == (n_kernel, 0, 1, 0):  # nothing overlaps
        y = columns.view(len(input), length, -1)
    else:
        columns = columns.view(len(input), n_before, *kernel.shape[1:])
        y = fused.overlap_add(columns, length, stride, padding, dilation)
    y = y if bias is None else y.add_(bias)

    def pullback(gradient: Tensor) -> Tensor:
        return convolve(gradient, weight, None, stride, padding, dilation)[..., :n_before]

    return pull_back(input, y.transpose(1, 2), pullback)


def _can_convolve(input: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` is for this input and these weights."""
    return input.ndim == weight.ndim and input.ndim in (3, 4) and input.dtype in DTYPES


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """conv1d of (B, C, L) or conv2d of (B, C, H, W), computed and returned with the channels last in memory."""
    if input.ndim == 3:
        sizes = [_of_axis(size, 0) for size in (stride, padding, dilation)]
        return _convolve_one_axis(input, weight, bias, sizes, groups)
    collapsed = _collapsed_axis(input, weight, padding, dilation, groups)
    if collapsed is None:
        x, w = put_channels_last(input), weights_channels_last(weight)
        return _keeping_nothing(x, w, bias, stride, padding, dilation, groups)
    sizes = [_of_axis(size, 3 - collapsed) for size in (stride, padding, dilation)]
    x, w = (z.movedim(collapsed, 2).flatten(1, 2) for z in (input, weight))
    return _convolve_one_axis(x, w, bias, sizes, groups).unsqueeze(collapsed)


def _collapsed_axis(input: Tensor, weight: Tensor, padding: Any, dilation: Any, groups: int) -> int | None:
    """Of a convolution in two axes, one (2 or 3) with one position before and after, or with one after it where there
    is one channel before: its positions may as well be channels."""
    for axis in (2, 3):
        is_single = input.shape[axis] == weight.shape[axis] == 1
        is_covered = input.shape[axis] == weight.shape[axis] and input.shape[1] == groups == 1 and padding != "same"
        is_plain = _of_axis(padding, axis - 2) in (0, "same", "valid") and _of_axis(dilation, axis - 2) == 1
        if (is_single or is_covered) and is_plain:
            return axis
    return None


def _convolve_one_axis(input: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[Any], groups: int) -> Tensor:
    """`sizes` are stride, padding and dilation."""
    stride, padding, dilation = sizes
    goes_back_by_product = _goes_back_by_product(input, weight, groups)
    x = input.detach() if goes_back_by_product else input
    x, w = put_channels_last(x.unsqueeze(2)), weights_channels_last(weight.unsqueeze(2))
    paddings = padding if isinstance(padding, str) else (0, padding)
    if not goes_back_by_product:
        return _keeping_nothing(x, w, bias, (1, stride), paddings, (1, dilation), groups).squeeze(2)
    y = F.conv2d(x, w, bias, (1, stride), paddings, (1, dilation), groups).squeeze(2)
    length = input.shape[-1]
    if isinstance(padding, str):
        padding = dilation * (weight.shape[-1] - 1) // 2 if padding == "same" else 0
    return pull_back(input, y, lambda gradient: _go_back(gradient, weight, length, stride, padding, dilation))


def _keeping_nothing(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """conv1d of (B, C, L) or conv2d of (B, C, H, W), of whose input nothing but the shape is kept."""
    convolution: Callable[..., Tensor] = F.conv1d if weight.ndim == 3 else F.conv2d
    arguments = (weight, bias, stride, padding, dilation, groups)
    is_autocast = torch.is_autocast_enabled(input.device.type)
    if isinstance(padding, str) or input.ndim != weight.ndim or is_autocast:
        return convolution(input, *arguments)
    shape, n_axes = input.shape, weight.ndim - 2
    sizes = [[_of_axis(size, axis) for axis in range(n_axes)] for size in (stride, padding, dilation)]

    def pullback(gradient: Tensor) -> Tensor:
        nowhere = gradient.new_empty(1).expand(shape)  # as torch.nn.grad.conv2d_input has it: only its shape is read
        rest = (*sizes, False, [0] * n_axes, groups, [True, False, False])
        return torch.ops.aten.convolution_backward(gradient, nowhere, weight, None, *rest)[0]

    return pull_back(input, convolution(input.detach(), *arguments), pullback)


def _goes_back_by_product(input: Tensor, weight: Tensor, groups: int) -> bool:
    is_autocast = torch.is_autocast_enabled(input.device.type)
    return groups == 1 and input.shape[1] <= _FEW_CHANNELS and fused.takes(input, weight) and not is_autocast


def _go_back(gradient: Tensor, weight: Tensor, length: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(B, O, L') to (B, C, L): one product with the weights (O, C, K), and its columns added up where they overlap."""
    kernel = weight.transpose(1, 2)
    columns = gradient.transpose(1, 2).flatten(0, 1) @ kernel.flatten(1)
    columns = columns.view(len(gradient), gradient.shape[2], *kernel.shape[1:])
    return fused.overlap_add(columns, length, stride, padding, dilation).transpose(1, 2)


def _of_axis(size: Any, axis: int) -> Any:
    """As torch takes them: a name or one size for all axes, or one for each."""
    return size[axis if len(size) > 1 else 0] if isinstance(size, (tuple, list)) else size
