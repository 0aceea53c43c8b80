"""Layers of Basenji's and Baskerville's own that change sequences at random while training, and nothing else.

Files of Akita, Basenji, Borzoi and Saluki have them around the model.
"""

from torch import Tensor, nn


class Unturned(nn.Module):
    """The sequences as they are, and whether they were reverse complemented, which `First` leaves aside."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(())


class First(nn.Module):
    """The first of its inputs."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return x
