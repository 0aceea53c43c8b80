"""The one-hot input of a model: which axis is which, and which channel is which base.

Models from Torch7 take images of height or width one, those from Keras the bases last, and DeepSEA's family has the
bases in the order A, G, C, T. The engine's own form is (N, 4, L) in the order A, C, G, T.

    ncl     (N, 4, L)
    nc1l    (N, 4, 1, L)    DeepSEA, Beluga: convolutions (1, width)
    ncl1    (N, 4, L, 1)    Basset as ported from Torch7: convolutions (width, 1)
    n1cl    (N, 1, 4, L)    the sequence as a picture of one channel
    nlc     (N, L, 4)       Keras
"""

import torch
from torch import Tensor, nn

BASES = "ACGT"


class InputLayout(nn.Module):
    """A model that takes (N, 4, L) in the order A, C, G, T around one with its own layout and order of bases.

    Moving axes and channels is linear and exact: attributions have the engine's own form.
    """

    order: Tensor

    def __init__(self, model: nn.Module, layout: str = "ncl", bases: str = BASES) -> None:
        super().__init__()
        self.model, self.layout, self.bases = model, layout, bases
        self.register_buffer("order", torch.tensor([BASES.index(base) for base in bases]), persistent=False)

    def forward(self, x: Tensor, *args: Tensor) -> object:
        """What the model returns for one-hot (N, 4, L) and extra inputs."""
        if self.bases != BASES:
            x = x.index_select(1, self.order)
        if self.layout == "nlc":
            x = x.transpose(1, 2)
        elif self.layout != "ncl":
            x = x.unsqueeze({"nc1l": 2, "ncl1": 3, "n1cl": 1}[self.layout])
        return self.model(x, *args)
