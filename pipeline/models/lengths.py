"""Which lengths of sequences a model takes, found by trying, for the error where it does not take the one given.

A model with dense layers after a flatten takes one length, or a few where pooling drops a remainder. The layer that
does not fit shows how many features it got and how many it expects; bisection then finds the length. For any other
model (with a table of positions, or a kernel wider than the sequence) the lengths that the numbers in its error suggest
are tried, then shorter and longer ones.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

TIME_LIMIT_S = 30  # for all trials of a model together
_LONGEST = 1 << 18  # bases: no trial is longer
_TIMES = 64  # nor so many times as long as the sequence
_LONGEST_GUESS = 1 << 12  # bases: attention's memory grows with the square
_SUGGESTED = 32  # lengths tried of those that the numbers in an error suggest


class _Timed(nn.Module):
    """A module that raises TimeoutError once TIME_LIMIT_S has passed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.began = module, time.monotonic()

    def forward(self, x: Tensor) -> Any:
        if time.monotonic() - self.began > TIME_LIMIT_S:
            raise TimeoutError
        return self.module(x)


class _Features(TorchFunctionMode):
    """Remembers how many features the last dense layer, or view as rows, got and expects."""

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


def wanted_lengths(module: nn.Module, length: int) -> tuple[int, int | None] | None:
    """The shortest and the longest sequence that a model takes, in bases; the longest is None where none is too long.

    None where the model takes `length`, or no length that it takes is found in TIME_LIMIT_S.

    Args:
        module: (N, 4, L) one-hot -> anything; in eval mode.
        length: a length that it does not take.
    """
    timed = _Timed(module)
    try:
        first = _excess(timed, length)
        if first == 0:
            return None
        return (None if first is None else _by_features(timed, length, first)) or _by_trying(timed, length)
    except TimeoutError:
        return None


def length_hint(module: nn.Module, length: int, cuts: bool, n_flanks: int = 0, is_padded: bool = False) -> str | None:
    """A phrase with the length that a model takes and that of the sequences, and the fix; None where none is found.

    Args:
        module, length: as in `wanted_lengths`.
        cuts: whether the input cuts windows of `dataset.length`.
        n_flanks: bases that `model.flanks` adds to each sequence.
        is_padded: whether `length` is that of padded sequences, without the flanks.
    """
    wanted = wanted_lengths(module, length)
    if wanted is None:
        return None
    shortest, longest = wanted
    if longest is None:
        trained = "take the length that it was trained on" + (": dataset.length=..." if cuts else "")
        return f"the model takes sequences of {shortest} bases or more, not of {length}; {trained}"
    between = f"{shortest} to {longest}" if shortest > 1 else f"at most {longest}"
    fix = (
        f"dataset.length={longest} cuts the windows to that"
        if cuts
        else f"give sequences of that length, or windows of a genome: dataset=loci dataset.length={longest}"
    )
    if is_padded:
        fix = f"add model.length={longest + n_flanks}"
    elif longest > length:
        fix += f", or pad them: model.length={longest + n_flanks} model.pad=zeros (or n)"
    return f"the model takes sequences of {longest if shortest == longest else between} bases, not of {length}; {fix}"


def _by_features(module: nn.Module, length: int, first: int) -> tuple[int, int] | None:
    """From the number of features that a layer lacks (negative) or has too many of; `first` is that of this length."""
    low, high = 0, length
    while first < 0 and _is_short(module, high):
        low, high = high, 2 * high
        if high > min(_LONGEST, _TIMES * length):
            return None
    shortest = _bisect(lambda tried: not _is_short(module, tried), low, high)
    longest = _longest(module, shortest, _LONGEST) if _takes(module, shortest) else None
    return None if longest is None else (shortest, longest)


def _by_trying(module: nn.Module, length: int) -> tuple[int, int | None] | None:
    """From any length that the model is found to take."""
    numbers = {int(text) for text in re.findall(r"\d{1,6}", str(_failure(module, length)))} - {0}
    suggested = numbers | {length * some // other for some in numbers for other in numbers}
    others = [length >> i for i in range(1, 20)] + [length << i for i in range(1, 7)]
    tried = [*sorted(suggested, key=lambda n: abs(n - length))[:_SUGGESTED], *others]
    found = next((n for n in tried if 0 < n <= max(_LONGEST_GUESS, length) and _takes(module, n)), None)
    if found is None:
        return None
    if found < length:
        longest = _bisect(lambda n: not _takes(module, n), found, length) - 1
        return _shortest(module, longest), longest
    shortest = _bisect(lambda n: _takes(module, n), length, found)
    return shortest, _longest(module, shortest, max(_LONGEST_GUESS, 2 * found))


def _longest(module: nn.Module, shortest: int, limit: int) -> int | None:
    """The last of the lengths from `shortest` on that the model takes; None where it takes all up to the limit."""
    step = 1
    while _takes(module, shortest + step):
        step *= 2
        if shortest + step > limit:
            return None
    return _bisect(lambda n: not _takes(module, n), shortest, shortest + step) - 1


def _shortest(module: nn.Module, longest: int) -> int:
    """The first of the lengths up to `longest` that the model takes."""
    step = 1
    while longest > step and _takes(module, longest - step):
        step *= 2
    return _bisect(lambda n: _takes(module, n), max(longest - step, 0), longest)


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


def _takes(module: nn.Module, length: int) -> bool:
    return _excess(module, length) == 0


def _excess(module: nn.Module, length: int) -> int | None:
    """By how many features a sequence of this length is too long for the model: 0 fits; None: it fails otherwise."""
    features = _Features()
    with features:
        error = _failure(module, length)
    return 0 if error is None else (features.got - features.wanted or None)


def _failure(module: nn.Module, length: int) -> Exception | None:
    """How the model fails on a sequence of this length; None where it takes it."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    try:
        with torch.no_grad():
            module(torch.zeros(1, 4, length, device=like.device, dtype=like.dtype))
    except (TimeoutError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  (of the user's code, whatever it is)
        return error
    return None
