"""What a model returns, and which of it is to be explained.

Shape legend: B rows, T outputs of the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Targets:
    """The outputs to explain.

    Args:
        asked: their places, which may count from the end, or "all".
    """

    def __init__(self, asked: Sequence[int] | str) -> None:
        if isinstance(asked, str) and asked != "all":
            raise ValueError(f"targets must be integers or 'all', not {asked!r}")
        self._asked = asked
        self._columns: Tensor | None = None  # on the device

    @property
    def is_one(self) -> bool:
        """Whether a single one was asked for by its place."""
        return not isinstance(self._asked, str) and len(self._asked) == 1

    def select(self, y: Tensor) -> Tensor:
        """Those of the model's, (B, T)."""
        if self._columns is None:
            self._columns = torch.tensor(self.places(y), device=y.device)
        return y.index_select(1, self._columns)

    def places(self, y: Tensor) -> list[int]:
        """Where they are among those of the model, (B, T).

        Raises:
            IndexError: one is not there.
        """
        n_targets = y.shape[1]
        if isinstance(self._asked, str):
            return list(range(n_targets))
        for target in self._asked:
            if not -n_targets <= target < n_targets:
                raise IndexError(
                    f"target {target} is not there: the model has {n_targets} outputs, 0 to {n_targets - 1}"
                )
        return [target % n_targets for target in self._asked]


def as_rows_by_targets(y: Any, n_rows: int) -> Tensor:
    """The output of a model, (B, T), with the axes that it may lack or have on top.

    Raises:
        ValueError: it is not one number for each row and target.
    """
    if not isinstance(y, Tensor):
        raise ValueError(f"the model returns a {type(y).__name__}, not a tensor; wrap it so that it returns one output")
    if not y.is_floating_point():
        raise ValueError(f"the model returns {y.dtype} numbers; expected floating-point predictions")
    if n_rows == 1 and y.ndim <= 1:
        y = y.reshape(1, -1)  # a squeezed output loses its only row
    if y.ndim == 1:
        y = y.unsqueeze(1)
    if y.ndim < 2 or y.shape[0] != n_rows or y.shape[2:].numel() != 1:
        raise ValueError(
            f"the model returns shape {tuple(y.shape)} for {n_rows} rows; expected ({n_rows}, n_targets), optionally "
            f"followed by axes of length 1; wrap the model so that it returns one value for each target"
        )
    return y.reshape(n_rows, y.shape[1])
