"""How activations lie in memory: a CPU convolves up to twice as fast where the channels are last.

What a model computes does not depend on how its activations lie in memory, with two exceptions, which are noticed: it
asks for strides or addresses, or it writes in place into one of two tensors that share their memory in one format and
not in the other. Then, and after a failure of the model under observation, this batch and all later ones are done in
the model's own format.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlshap_core.torch_private import version

DTYPES = (torch.float32, torch.bfloat16)  # the others are not computed by oneDNN, and gain nothing

# Whether these give a view or a copy depends on the memory format.
SHARES_OR_COPIES = frozenset({"contiguous", "flatten", "ravel", "reshape", "reshape_as", "view", "view_as"})
# So it does with these, where they are asked for a memory format.
CONVERSIONS = frozenset({"bfloat16", "cpu", "cuda", "double", "float", "half", "to"})
# These read it.
READS_FORMAT = frozenset({"as_strided", "as_strided_scatter", "data_ptr", "is_contiguous", "stride"})
READS_FORMAT |= {"storage", "storage_offset", "untyped_storage"}


class FormatMatters(Exception):
    """The model's result may depend on how its activations lie in memory."""


@dataclass
class FormatChoice:
    """Whether convolutions may put the channels last, whether one did, and which tensors must not be written to."""

    may_change: bool
    is_changed: bool = False
    _watched: list[tuple[Tensor, int]] = field(default_factory=list)
    _reason: str | None = None  # why the format matters; kept, as a model may catch what is raised in it

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> "FormatChoice":
        """Free to change where that is faster."""
        has_onednn = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
        return cls(may_change=device.type == "cpu" and dtype in DTYPES and has_onednn)

    def give_up(self) -> None:
        """Leave all formats as they are from now on."""
        self.may_change = self.is_changed = False

    def matters(self, reason: str) -> FormatMatters:
        """What to raise where the model depends on the format."""
        self._reason = reason
        return FormatMatters(reason)

    def watch(self, *tensors: Tensor) -> None:
        """From here to the end of the pass these must not be written to."""
        self._watched += [(x, version(x)) for x in tensors]

    @property
    def n_watched(self) -> int:
        return len(self._watched)

    def check_from(self, start: int) -> None:
        """The pass is over for those that are watched from this one on: they are let go.

        Raises:
            FormatMatters: one was written to.
        """
        if any(version(x) != before for x, before in self._watched[start:]):
            raise self.matters("the model writes in place into what it reshaped")
        del self._watched[start:]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around a pass.

        Raises:
            FormatMatters: a tensor that must not be written to was, or the model read the format.
        """
        self._watched.clear()
        self._reason = None
        yield
        self.check_from(0)
        if self._reason is not None:
            raise self.matters(self._reason)


def crop(x: Tensor, index: Any) -> Tensor:
    """x[index]; where it is a view of slices of all axes, the way back takes one copy less than by the hooks below."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(part is Ellipsis for part in parts):
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts = (*parts[:place], *[slice(None)] * (x.ndim + 1 - len(parts)), *parts[place + 1 :])
    if len(parts) > x.ndim or not all(isinstance(part, slice) for part in parts):
        return x[index]
    parts += (slice(None),) * (x.ndim - len(parts))
    return x.movedim(1, -1)[(parts[0], *parts[2:], parts[1])].movedim(-1, 1)


def keep_format_of_gradients(inputs: list[Tensor], output: Any) -> None:
    """Have gradients of the inputs of an operation come back in the inputs' format.

    Sums, slices and whatever else changes the shape bring them back in another one. Where branches meet, gradients are
    added up in the format of the first, and without this all that is before would be in it.
    """
    for x in inputs:
        if has_channels_last(x) and getattr(output, "shape", None) != x.shape:
            x.register_hook(put_channels_last)


def order_in_memory(x: Tensor) -> list[int]:
    """The axes as they lie in memory, the widest step first."""
    return sorted(range(x.ndim), key=x.stride().__getitem__, reverse=True)


def put_back(x: Tensor, order: list[int]) -> Tensor:
    """What was permuted to an order of its axes, with the axes where they were."""
    return x.permute(sorted(range(x.ndim), key=order.__getitem__))


def has_channels_last(x: Tensor) -> bool:
    """Whether of (B, C, L) or (B, C, H, W) the channels, and not the positions, are side by side in memory."""
    return x.ndim in (3, 4) and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def put_channels_last(x: Tensor) -> Tensor:
    """The same values, and where they are not so already, a copy with the channels last in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def weights_channels_last(weight: Tensor) -> Tensor:
    """The same of the weights (O, I, H, W) of a convolution, with strides that say so: those of one position or one
    channel would do for either format, and torch would take gradients back in the other."""
    n_out, n_in, height, width = weight.shape
    strides = (height * width * n_in, 1, width * n_in, n_in)
    return put_channels_last(weight).as_strided((n_out, n_in, height, width), strides)
