"""What a model returns, and which of it is to be explained.

Shape legend: B rows, T outputs of the model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[int, float]  # of outputs, by their places
Target = int | Weights | Callable[[int], Weights]  # a function is told how many outputs there are


class Targets:
    """The outputs to explain.

    Args:
        asked: their places, which may count from the end, or weights of several that are added up; or "all".
    """

    def __init__(self, asked: Sequence[Target] | str) -> None:
        if isinstance(asked, str) and asked != "all":
            raise ValueError(f"targets must be integers or 'all', not {asked!r}")
        self._asked = asked
        self._found: list[int | Contrast] = []
        self._columns: Tensor | None = None  # on the device

    @property
    def is_one(self) -> bool:
        """Whether a single one was asked for by its place."""
        return not isinstance(self._asked, str) and len(self._asked) == 1

    def select(self, y: Tensor) -> Tensor:
        """Those of the model's, (B, T)."""
        found = self.found(y)
        if any(isinstance(target, Contrast) for target in found):
            return torch.stack([value_of(y, target) for target in found], 1)
        if len(found) == 1 and isinstance(found[0], int):
            return y.narrow(1, found[0], 1)
        if self._columns is None:
            self._columns = torch.tensor(found, device=y.device)
        return y.index_select(1, self._columns)

    def found(self, y: Tensor) -> "list[int | Contrast]":
        """Where they are among those of the model, (B, T).

        Raises:
            IndexError: one is not there.
        """
        if not self._found:
            n = y.shape[1]
            asked: Sequence[Target] = range(n) if isinstance(self._asked, str) else self._asked
            self._found = [_place(each, n) if isinstance(each, int) else Contrast(each, y) for each in asked]
        return self._found


class Contrast:
    """A sum of outputs, each times a number: a target like any other, as multipliers are linear in what they explain.

    Args:
        asked: the numbers by place.
        y: (B, T), outputs of the model.
    """

    def __init__(self, asked: Weights | Callable[[int], Weights], y: Tensor) -> None:
        weights = asked if isinstance(asked, Mapping) else asked(y.shape[1])
        if not weights or not all(math.isfinite(weight) for weight in weights.values()):
            raise ValueError(f"target {dict(weights)}; expected a finite number for each of one or more outputs")
        self._places = torch.tensor([_place(place, y.shape[1]) for place in weights], device=y.device)
        self._weights = torch.tensor(list(weights.values()), dtype=torch.float64, device=y.device)

    def __call__(self, y: Tensor) -> Tensor:
        """(B,) of the model's outputs (B, T); of those in half precision in float32."""
        weights = self._weights.to(torch.promote_types(y.dtype, torch.float32))
        return (y.index_select(1, self._places) * weights).sum(1)


def value_of(y: Tensor, target: int | Contrast) -> Tensor:
    """(B,) of the model's outputs (B, T)."""
    return y[:, target] if isinstance(target, int) else target(y)


def _place(target: int, n_targets: int) -> int:
    if not -n_targets <= target < n_targets:
        raise IndexError(f"target {target} is not there: the model has {n_targets} outputs, 0 to {n_targets - 1}")
    return target % n_targets


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
