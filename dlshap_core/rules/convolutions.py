"""Convolutions with constant weights on a CPU: linear, and computed with the channels last in memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.gradients import pull_back
from dlshap_core.memory_format import DTYPES
from dlshap_core.rules import fused
from dlshap_core.rules.kinds import Call
from dlshap_core.rules.products import Multilinear

if TYPE_CHECKING:
    from dlshap_core.capture import ForwardPass

_FEW_CHANNELS = 8  # of an input, for which oneDNN goes back slowly


@dataclass(frozen=True)
class Convolution(Multilinear):
    """conv1d and conv2d, with the channels last in memory where that is faster."""

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if not forward.memory_format.may_change or len(call.inputs) > 1:
            return super().run(forward, call)
        input, weight, *_ = call.named("input", "weight")
        if input is not call.inputs[0] or not takes(input, weight):
            return super().run(forward, call)
        forward.memory_format.is_changed = True
        return convolve(*call.args, **call.kwargs)


def takes(input: Tensor, weight: Tensor) -> bool:
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
    if input.ndim == 4:
        x, w = (z.contiguous(memory_format=torch.channels_last) for z in (input, weight))
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)
    stride, dilation = _single(stride), _single(dilation)
    padding = padding if isinstance(padding, str) else _single(padding)
    if not _has_few_channels(input, weight, groups):
        return _convolve_one_axis(input, weight, bias, stride, padding, dilation, groups)
    value = _convolve_one_axis(input.detach(), weight, bias, stride, padding, dilation, groups)
    length = input.shape[-1]
    if isinstance(padding, str):
        padding = dilation * (weight.shape[-1] - 1) // 2 if padding == "same" else 0
    return pull_back(input, value, lambda gradient: _go_back(gradient, weight, length, stride, padding, dilation))


def _convolve_one_axis(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int | str, dilation: int, groups: int
) -> Tensor:
    x, w = (z.unsqueeze(2).contiguous(memory_format=torch.channels_last) for z in (input, weight))
    paddings = padding if isinstance(padding, str) else (0, padding)
    return F.conv2d(x, w, bias, (1, stride), paddings, (1, dilation), groups).squeeze(2)


def _has_few_channels(input: Tensor, weight: Tensor, groups: int) -> bool:
    is_autocast = torch.is_autocast_enabled(input.device.type)
    return groups == 1 and input.shape[1] <= _FEW_CHANNELS and fused.takes(input, weight) and not is_autocast


def _go_back(gradient: Tensor, weight: Tensor, length: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(B, O, L') to (B, C, L): one product with the weights (O, C, K), and its columns added up where they overlap."""
    kernel = weight.transpose(1, 2)
    columns = gradient.transpose(1, 2).flatten(0, 1) @ kernel.flatten(1)
    columns = columns.view(len(gradient), -1, *kernel.shape[1:])
    return fused.overlap_add(columns, length, stride, padding, dilation).transpose(1, 2)


def _single(size: Any) -> int:
    return size[0] if isinstance(size, (tuple, list)) else size
