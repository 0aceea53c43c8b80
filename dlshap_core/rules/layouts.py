"""Operations for which it matters how their inputs lie in memory."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlshap_core.kernels.memory_format import CONVERSIONS, has_channels_last, put_channels_last
from dlshap_core.rules.call import Call
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.kinds import Linear
from dlshap_core.rules.protocol import Pass


@dataclass(frozen=True)
class Reshaping(Linear):
    """What is a view in one memory format and a copy in another: the model must write into neither of the two."""

    def run(self, forward: Pass, call: Call) -> Any:
        if not forward.formats.is_changed or (call.name in CONVERSIONS and "memory_format" not in call.kwargs):
            return call.plain()
        x, sizes = call.inputs[0], call.args[1:]
        if call.name == "view" and sizes and not isinstance(sizes[0], torch.dtype):
            output = x.reshape(*sizes)  # in the model's own format it is a view
        elif call.name == "view_as" and sizes:
            output = x.reshape_as(*sizes)
        else:
            output = call.plain()
        if not forward.replaying:  # the other pass does the same, and would keep more memory
            forward.formats.watch(x, output)
        return output


@dataclass(frozen=True)
class Joining(Linear):
    """cat, in the memory format of its parts: torch gives one of three axes another, and every convolution of it would
    make, and keep, a copy."""

    def run(self, forward: Pass, call: Call) -> Any:
        names = call.torch_names()
        parts = call.args[0] if call.args else names["tensors"]
        if not forward.formats.is_changed or not all(x.ndim == 3 for x in parts):
            return call.plain()
        if not any(has_channels_last(x) for x in parts):
            return call.plain()
        dim = call.args[1] if len(call.args) > 1 else names.get("dim", 0)
        return torch.cat([x.transpose(1, 2) for x in parts], (0, 2, 1)[dim]).transpose(1, 2)


@dataclass(frozen=True)
class Reducing(Linear):
    """sum and mean over some axes. Gradients come back in the memory format of the input: torch writes them in another,
    and where branches meet, adding up two formats takes several times as long."""

    is_mean: bool = field(kw_only=True)

    def run(self, forward: Pass, call: Call) -> Any:
        x, names = call.inputs[0], call.torch_names()
        dims = call.args[1] if len(call.args) > 1 else names.get("dim")
        is_plain = dims is None or names.keys() - {"dim", "keepdim"}
        if is_plain or not forward.replaying or not forward.formats.is_changed or not has_channels_last(x):
            return call.plain()
        value = call.with_inputs([x.detach()])
        axes = sorted(dim % x.ndim for dim in ([dims] if isinstance(dims, int) else dims or range(x.ndim)))
        kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        shape, n = x.shape, math.prod(x.shape[axis] for axis in axes) if self.is_mean else 1

        def pullback(gradient: Tensor) -> Tensor:
            return put_channels_last((gradient / n).view(kept).expand(shape))

        return pull_back(x, value, pullback)
