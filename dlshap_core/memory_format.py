"""How activations lie in memory: a CPU convolves up to twice as fast where the channels are last.

What a model computes does not depend on how its activations lie in memory, with two exceptions, which are noticed: it
asks for strides or addresses, or it writes in place into one of two tensors that share their memory in one format and
not in the other. Then, and after any failure, the batch is done again in the model's own format.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)  # the others are not computed by oneDNN, and gain nothing

# Whether these give a view or a copy depends on the memory format.
SHARES_OR_COPIES = frozenset({"contiguous", "flatten", "ravel", "reshape", "reshape_as", "view", "view_as"})
# So it does with these, where they are asked for a memory format.
CONVERSIONS = frozenset({"bfloat16", "cpu", "cuda", "double", "float", "half", "to"})
# These read it.
READS_FORMAT = frozenset(
    {
        "as_strided",
        "as_strided_scatter",
        "data_ptr",
        "is_contiguous",
        "storage",
        "storage_offset",
        "stride",
        "untyped_storage",
    }
)


class FormatMatters(Exception):
    """The model's result may depend on how its activations lie in memory."""


@dataclass
class MemoryFormat:
    """Whether convolutions may put the channels last, whether one did, and which tensors must not be written to."""

    may_change: bool
    is_changed: bool = False
    _watched: list[tuple[Tensor, int]] = field(default_factory=list)

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> "MemoryFormat":
        """Free to change where that is faster."""
        has_onednn = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
        return cls(may_change=device.type == "cpu" and dtype in DTYPES and has_onednn)

    def keep(self) -> None:
        """Leave all formats as they are from now on."""
        self.may_change = self.is_changed = False

    def watch(self, *tensors: Tensor) -> None:
        """From here to the end of the pass these must not be written to."""
        self._watched += [(x, x._version) for x in tensors]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around a pass.

        Raises:
            FormatMatters: a tensor that must not be written to was.
        """
        self._watched.clear()
        yield
        if any(x._version != version for x, version in self._watched):
            raise FormatMatters("the model writes in place into what it reshaped")
        self._watched.clear()


def pick(x: Tensor, index: Any) -> Tensor:
    """x[index]; where a slice is cropped, its gradient too has the channels last."""
    slices = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, slice) for part in slices):
        return x[index]
    slices += (slice(None),) * (x.ndim - len(slices))
    return x.movedim(1, -1)[(slices[0], *slices[2:], slices[1])].movedim(-1, 1)


def keep_format_of_gradients(inputs: list[Tensor], output: Any) -> None:
    """Have gradients of the inputs of an operation come back in the inputs' format.

    Sums, slices and whatever else changes the shape bring them back in another one. Where branches meet, gradients are
    added up in the format of the first, and without this all that is before would be in it.
    """
    for x in inputs:
        if has_channels_last(x) and getattr(output, "shape", None) != x.shape:
            x.register_hook(_put_channels_last)


def has_channels_last(x: Tensor) -> bool:
    """Whether of (B, C, L) or (B, C, H, W) the channels, and not the positions, are side by side in memory."""
    return x.ndim in (3, 4) and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _put_channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
