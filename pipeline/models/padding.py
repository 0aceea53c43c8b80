"""Sequences between what the model always sees around them: flanks, and padding to the length that it takes.

Both are the same for every sequence, so that attributions are exact and those of the sequence's own positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.messages.errors import UserError


class Padded(nn.Module):
    """A model of (N, K, length) around which sequences (N, K, L) of any length up to that are given.

    Args:
        left, right: (K, bases) before and after each sequence.
        length: that the model takes; None: whatever this makes.
        fill: (K,) of each position of the padding, which lies outside of the flanks. Where its positions are an odd
            number, one more lies on the right.
    """

    left: Tensor
    right: Tensor
    fill: Tensor

    def __init__(
        self, model: nn.Module, left: Tensor, right: Tensor, length: int | None, fill: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.length = model, length
        for name, values in (("left", left), ("right", right), ("fill", torch.tensor(fill)[:, None])):
            self.register_buffer(name, values.to(torch.float32), persistent=False)

    def forward(self, x: Tensor, *args: Tensor) -> object:
        """What the model returns; extra inputs that are tracks are padded with zeros."""
        n_left, n_right = self._around(x.shape[-1])
        left = torch.cat([self.fill.expand(-1, n_left), self.left], 1)
        right = torch.cat([self.right, self.fill.expand(-1, n_right)], 1)
        before, after = (values.to(x.dtype).expand(len(x), -1, -1) for values in (left, right))
        padded = torch.cat([before, x, after], 2)
        return self.model(padded, *(self._track(arg, x, left.shape[1], right.shape[1]) for arg in args))

    def _around(self, length: int) -> tuple[int, int]:
        """Positions of the padding, left and right."""
        given = length + self.left.shape[1] + self.right.shape[1]
        spare = 0 if self.length is None else self.length - given
        if spare < 0:
            flanks = f" with their flanks, {given}" if given > length else ""
            raise UserError(
                f"model.length={self.length} is shorter than the sequences, of {length} bases{flanks}; padding makes "
                f"them longer only: leave model.length out, or give shorter sequences (dataset.length cuts windows)"
            )
        return spare // 2, spare - spare // 2

    def _track(self, arg: Tensor, x: Tensor, n_left: int, n_right: int) -> Tensor:
        is_track = arg.ndim > 1 and arg.shape[-1] == x.shape[-1]
        return nn.functional.pad(arg, (n_left, n_right)) if is_track else arg
