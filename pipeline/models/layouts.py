"""The one-hot input of a model: which axis is which, and what each channel is.

Models from Torch7 take images of height or width one, those from Keras the bases last, and DeepSEA's family has the
bases in the order A, G, C, T. The engine's own form is (N, 4, L) in the order A, C, G, T. Further channels, such as the
signal of an assay, are extra inputs or numbers: they are given, not attributed.

    ncl     (N, 4, L)
    nc1l    (N, 4, 1, L)    DeepSEA, Beluga: convolutions (1, width)
    ncl1    (N, 4, L, 1)    Basset as ported from Torch7: convolutions (width, 1)
    n1cl    (N, 1, 4, L)    the sequence as a picture of one channel
    nlc     (N, L, 4)       Keras
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.config.model_input import BASES, extra_input_of
from pipeline.messages.errors import UserError


class InputLayout(nn.Module):
    """A model that takes (N, 4, L) in the order A, C, G, T around one with its own layout, channels and order of bases.

    Moving axes and channels is linear and exact: attributions have the engine's own form.

    Args:
        channels: beside the bases, in order; see pipeline/config/model_input.py.
    """

    order: Tensor

    def __init__(
        self, model: nn.Module, layout: str = "ncl", bases: str = BASES, channels: Sequence[str | float] = ()
    ) -> None:
        super().__init__()
        self.model, self.layout, self.bases = model, layout, bases
        self.channels = list(channels) if "bases" in channels or not channels else ["bases", *channels]
        self.register_buffer("order", torch.tensor([BASES.index(base) for base in bases]), persistent=False)

    def forward(self, x: Tensor, *args: Tensor) -> object:
        """What the model returns for one-hot (N, 4, L) and extra inputs, those that are channels included."""
        used = {extra_input_of(item) for item in self.channels}
        return self.model(self.placed(x, args), *(arg for index, arg in enumerate(args) if index not in used))

    @property
    def position_axis(self) -> int:
        """Where the positions are in the model's input."""
        return {"nlc": 1, "nc1l": 3, "n1cl": 3}.get(self.layout, 2)

    def placed(self, x: Tensor, args: Sequence[Tensor] = ()) -> Tensor:
        """One-hot (N, 4, L) as the model takes it, with its channels among the extra inputs."""
        if self.channels:
            x = torch.cat([self._channel(item, x, args) for item in self.channels], 1)
        else:
            x = self._ordered(x)
        if self.layout == "nlc":
            x = x.transpose(1, 2)
        elif self.layout != "ncl":
            x = x.unsqueeze({"nc1l": 2, "ncl1": 3, "n1cl": 1}[self.layout])
        return x

    def _ordered(self, x: Tensor) -> Tensor:
        return x if self.bases == BASES else x.index_select(1, self.order)

    def _channel(self, item: str | float, x: Tensor, args: Sequence[Tensor]) -> Tensor:
        """(N, channels, L) of one item."""
        if item == "bases":
            return self._ordered(x)
        if item == "n":
            return 1 - x.sum(1, keepdim=True)
        index = extra_input_of(item)
        if index is None:
            return x.new_full((len(x), 1, x.shape[2]), float(item))
        return _along(args[index], x, str(item))


def _along(arg: Tensor, x: Tensor, name: str) -> Tensor:
    """An extra input as channels (N, K, L): a track as it is, values of a whole sequence at all of its positions."""
    shape, length = tuple(arg.shape[1:]), x.shape[2]
    arg = arg.to(x.dtype)
    if len(shape) == 2 and shape[1] == length:
        return arg
    if len(shape) == 1:
        return arg.unsqueeze(1) if shape[0] == length else arg.unsqueeze(2).expand(-1, -1, length)
    fix = f"; transpose it to (N, {shape[1]}, {length})" if len(shape) == 2 and shape[0] == length else ""
    raise UserError(
        f"model.channels: {name} is (N, {', '.join(map(str, shape))}) for sequences of {length} bases; expected a "
        f"track (N, {length}), tracks (N, channels, {length}), or values of the whole sequence (N, channels){fix}"
    )
