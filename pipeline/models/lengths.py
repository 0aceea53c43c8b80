"""What length of sequence a model wants, found by trying, for the error where it does not take the one it got.

A model with dense layers after a flatten takes one length, or a few where pooling drops a remainder. The layer that
does not fit tells how many features came and how many it wants; the length is then found by bisection.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LONGEST = 1 << 18  # bases: no trial is longer
_TIMES = 64  # nor so many times as long as the sequence
_MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


class _Features(TorchFunctionMode):
    """Remembers of the last dense layer, or view as rows, how many features it got and how many it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.got, self.wanted = 0, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is F.linear and len(args) > 1:
            self.got, self.wanted = args[0].shape[-1], args[1].shape[-1]
        return self._view(func, args, named) if func in _VIEWS else func(*args, **named)

    def _view(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """A view as (-1, features), which with one sequence must be one row; only one that fails tells anything."""
        try:
            return func(*args, **named)
        except RuntimeError:
            shape = args[1] if len(args) == 2 else args[1:]
            if len(shape) == 2 and shape[0] == -1:
                self.got, self.wanted = args[0].numel(), shape[1]
            raise


_VIEWS = (Tensor.view, Tensor.reshape, torch.reshape)


def wanted_lengths(module: nn.Module, length: int) -> tuple[int, int] | None:
    """The shortest and the longest sequence that the model takes, where it does not take this one.

    Args:
        module: (N, 4, L) one-hot -> anything; in eval mode.
        length: a length that it does not take.

    Returns:
        Both in bases; None where the model takes that length, or does not show which it wants.
    """
    first = _excess(module, length)
    if first is None or first == 0:
        return None
    low, high = 0, length
    while first < 0 and _is_short(module, high):
        low, high = high, 2 * high
        if high > min(_LONGEST, _TIMES * length):
            return None
    shortest = _bisect(lambda tried: not _is_short(module, tried), low, high)
    if _excess(module, shortest) != 0:
        return None
    step = 1
    while _excess(module, shortest + step) == 0:
        step *= 2
        if shortest + step > _LONGEST:  # it takes any length from there on
            return None
    return shortest, _bisect(lambda tried: _excess(module, tried) != 0, shortest, shortest + step) - 1


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest of low + 1 .. high that it holds for; it does for high."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _is_short(module: nn.Module, length: int) -> bool:
    """Whether features are missing, or the sequence is too short for a layer before those."""
    excess = _excess(module, length)
    return excess is None or excess < 0


def _excess(module: nn.Module, length: int) -> int | None:
    """By how many features a sequence of this length is too long for the model: 0 fits; None: it fails otherwise."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    features = _Features()
    try:
        with torch.no_grad(), features:
            module(torch.zeros(1, 4, length, device=like.device, dtype=like.dtype))
    except _MISFITS:
        return features.got - features.wanted or None
    return 0
