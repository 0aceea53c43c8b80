"""What is explained of a model's output: `model.output` applied to what the model returns, one value for each target.

Each step is an operation that the engine has a rule for; see pipeline/config/model_output.py for what can be written.
Shape legend: N sequences, T targets.
"""

import dataclasses
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.model_output import (
    SOFTMAX,
    WHOLE,
    Binary,
    Indexed,
    Item,
    Keyed,
    Middle,
    Negative,
    Node,
    Number,
    Reduced,
    Transformed,
    Whole,
    parse,
)
from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief
from pipeline.messages.words import counted, did_you_mean

_MIDDLE = 4  # places that a suggestion averages, of an axis with at least twice as many
_N_LISTED = 12  # entries that a message lists, and suggestions that it chooses among
_LONGEST = 600  # characters of what is wrong
_N_STRANDS = 2  # at most, of a profile
_REDUCE: dict[str, Callable[..., Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "logsumexp": torch.logsumexp,
    "max": torch.amax,
    "min": torch.amin,
    SOFTMAX: lambda x, axes, keepdim: torch.softmax(x, axes[0]),
}
_ABSENT = object()


class SelectedOutput(nn.Module):
    """A model whose output is narrowed to what `model.output` says.

    Args:
        output: its text; None: all that the model returns.
        is_for_head: whether a head takes it, and so of any form; else it must be one value for each target, with at
            most one axis of several places beside the sequences'.
    """

    def __init__(self, model: nn.Module, output: str | None, is_for_head: bool) -> None:
        super().__init__()
        self.model, self.output, self.is_for_head = model, output, is_for_head

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        n = len(x)
        try:
            outputs = self.model(x, *args)
        except SystemExit as error:
            raise UserError(_ends(error)) from error
        found = outputs if self.output is None else chosen(outputs, self.output, n)
        return found if self.is_for_head else self._by_target(outputs, found, n)

    def _by_target(self, outputs: Any, found: Any, n: int) -> Tensor:
        if isinstance(found, Tensor):
            if found.ndim < 3 or found.shape[0] != n or found.shape[2:].numel() == 1:
                return found
            if len(_wide(found)) == 1:
                return found.flatten(1)
        if self.output is None:
            what, start = "the model returns", ""
        else:
            what, start = f"model.output={brief(self.output)} leaves", _start(outputs, self.output)
        is_profile = isinstance(found, Tensor) and found.ndim == 3 and found.shape[1] <= _N_STRANDS
        profile = "; logits of a profile are for model.head=profile_midpoint" if is_profile else ""
        advice = _advice(found, n, start, "; say which of it is explained")
        raise UserError(f"{what} {listing(found, n)}{advice}{profile}")


def _ends(error: SystemExit) -> str:
    """The message for a model that ends the process: its innermost module at work, and the line."""
    module = where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if isinstance(of := frame.f_locals.get("self"), nn.Module):
            module = type(of).__name__
        if frame.f_globals.get("__name__") != "_sitebuiltins":  # exit() itself
            where = f"{frame.f_code.co_filename}, line {line}"
    return (
        f"{module} ends the process when it is called ({where}: exit() or sys.exit()); take that out, or raise an "
        f"error there"
    )


class WithHead(nn.Module):
    """A model, then its head."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, *args: Tensor) -> Tensor:
        return self.head(self.model(*args))


def chosen(outputs: Any, text: str, n: int) -> Any:
    """What `model.output` says of a model's outputs for n sequences: a tensor, or an entry of any kind.

    Raises:
        UserError: it does not fit; lists the outputs, with what fits.
    """
    if (entry := _entry(outputs, text)) is not _ABSENT:
        return entry
    try:
        return _Evaluation(outputs, n).value(parse(text))
    except ValueError as error:
        returned = f"the model returns {listing(outputs, n)}"
        problem = brief(str(error), _LONGEST)
        raise UserError(f"model.output={brief(text)}: {problem}; {returned}{_advice(outputs, n)}") from None


class _Evaluation:
    """Of an expression on the outputs for n sequences; a ValueError says what does not fit."""

    def __init__(self, outputs: Any, n: int) -> None:
        self._outputs, self._n = outputs, n

    def value(self, node: Node) -> Any:
        match node:
            case Whole():
                return self._outputs
            case Number():
                return node.value
            case Keyed():
                return self._entry(node)
            case Indexed():
                return self._indexed(self.value(node.of), node)
            case Reduced():
                x = self._tensor(node.of)
                axes = tuple(self._axis(x, axis, node) for axis in node.axes)
                if len(set(axes)) < len(axes):
                    raise ValueError(f"{node.how}() is taken twice over an axis")
                return _REDUCE[node.how](x, axes, keepdim=node.keeps)
            case Transformed():
                return getattr(torch, node.how)(self._tensor(node.of))
            case Negative():
                return -self._tensor(node.of)
            case Binary():
                return self._combined(node)

    def _entry(self, node: Keyed) -> Any:
        of = self.value(node.of)
        if (found := _entry(of, node.key)) is not _ABSENT:
            return found
        if node.key == WHOLE and isinstance(node.of, Whole):
            return of
        hint = " (the whole of it is written output, or nothing)" if isinstance(of, Tensor) else ""
        if "." not in node.key:  # which would be taken for a setting
            hint += did_you_mean(node.key, [str(name) for name, _ in _entries(of)])
        raise ValueError(f"no such output{'' if str(node) == node.key else f' as {node}'}{hint}")

    def _tensor(self, node: Node) -> Any:
        """A tensor with a row for each sequence."""
        found = self.value(node)
        if isinstance(found, float):
            return found
        if not isinstance(found, Tensor):
            raise ValueError(f"{str(node) or WHOLE} is {listing(found, self._n)}, not one tensor")
        if found.ndim == 0 or found.shape[0] != self._n:
            shape = tuple(found.shape)
            raise ValueError(f"{str(node) or WHOLE} is {shape} for {counted(self._n, 'sequence')}: no row for each")
        return found

    def _indexed(self, of: Any, node: Indexed) -> Any:
        if not isinstance(of, Tensor):
            only = node.items[0]
            if len(node.items) > 1 or not isinstance(only, int) or (found := _entry(of, only)) is _ABSENT:
                raise ValueError(f"no such output as {node}")
            return found
        x = self._tensor(node.of)
        items = list(node.items)
        n_free = x.ndim - len(items) + ("..." in items)
        if n_free < 0:
            raise ValueError(f"{node} has {len(items)} places, and the output {x.ndim} axes")
        at = items.index("...") if "..." in items else len(items)
        items[at : at + 1] = [slice(None)] * n_free
        if isinstance(node.of, Whole) and len(node.items) == 1 and isinstance(items[0], int):
            raise ValueError(
                f"there is one output, whose axis 0 is the sequences; [:, {items[0]}] is one of its targets"
            )
        if items[0] != slice(None):
            raise ValueError(f"{node} indexes axis 0, which is the sequences; begin with [:, ")
        for axis in reversed(range(1, len(items))):
            if items[axis] != slice(None):
                x = x[(*[slice(None)] * axis, _places(items[axis], axis, x.shape[axis]))]
        return x

    def _axis(self, x: Tensor, axis: int, node: Reduced) -> int:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"{node.how}({axis}): there is no such axis of {_shape(x, self._n)}")
        if axis % x.ndim == 0:
            raise ValueError(f"{node.how}({axis}) is over axis 0, which is the sequences")
        return axis % x.ndim

    def _combined(self, node: Binary) -> Any:
        left, right = self._tensor(node.left), self._tensor(node.right)
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            left, right = self._aligned(left, right, node)
        match node.sign:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case _:
                return left / right

    def _aligned(self, left: Tensor, right: Tensor, node: Binary) -> tuple[Tensor, Tensor]:
        """Two that broadcast as they are meant: one value for each sequence goes with any."""
        if left.ndim == 1 or right.ndim == 1:
            most = max(left.ndim, right.ndim)
            left, right = (x.reshape(-1, *[1] * (most - 1)) if x.ndim == 1 else x for x in (left, right))
        if left.ndim != right.ndim or any(
            a != b and 1 not in (a, b) for a, b in zip(left.shape, right.shape, strict=True)
        ):
            shapes = f"{_shape(left, self._n)} and {_shape(right, self._n)}"
            raise ValueError(f"the two sides of {node.sign} in {node} are {shapes}; expected the same axes")
        return left, right


def _places(item: Item, axis: int, size: int) -> Any:
    """An index of one axis, whose places are all there."""
    there = f"axis {axis} has {counted(size, 'place')}, 0 to {size - 1}"
    match item:
        case Middle(n=None):
            if size % 2 == 0:
                raise ValueError(f"mid: axis {axis} has {size} places, and so two in the middle; mid2 is both")
            return size // 2
        case Middle(n=n):
            assert n is not None
            if not 0 < n <= size:
                raise ValueError(f"mid{n}: {there}")
            if (size - n) % 2:
                raise ValueError(f"mid{n} of {size} places on axis {axis} is off centre; give mid{n + 1}")
            return slice((size - n) // 2, (size + n) // 2)
        case slice():
            if any(end is not None and not -size <= end <= size for end in (item.start, item.stop)):
                raise ValueError(f"{there}; a slice ends at {size} at most")
            places = range(*item.indices(size))
            if not places:
                raise ValueError(f"nothing is left of axis {axis}, which has {counted(size, 'place')}")
            return item if places.step > 0 else list(places)
        case tuple():
            return [_place(place, size, there) for place in item]
        case int():
            return _place(item, size, there)
    raise AssertionError(item)


def _place(place: int, size: int, there: str) -> int:
    if not -size <= place < size:
        raise ValueError(f"place {place} is not there: {there}")
    return place


def _entry(outputs: Any, wanted: int | str) -> Any:
    """One entry: by index of a tuple or list, by key of a mapping, by field name. `_ABSENT` where there is none."""
    as_index = int(wanted) if re.fullmatch(r"-?\d{1,9}", str(wanted)) else None
    if isinstance(outputs, Mapping):
        keys = (key for key in (wanted, as_index, str(wanted)) if key in outputs)
        return next((outputs[key] for key in keys), _ABSENT)
    if isinstance(outputs, tuple | list):
        if as_index is not None and -len(outputs) <= as_index < len(outputs):
            return outputs[as_index]
        return outputs[_fields(outputs).index(wanted)] if wanted in _fields(outputs) else _ABSENT
    return getattr(outputs, str(wanted)) if wanted in _fields(outputs) else _ABSENT


def _fields(outputs: Any) -> list[str]:
    """Names of the values that an object holds; its methods and its own names are none."""
    if isinstance(outputs, tuple):
        return list(getattr(outputs, "_fields", ()))
    if isinstance(outputs, Tensor | list):
        return []
    if dataclasses.is_dataclass(outputs):
        return [field.name for field in dataclasses.fields(outputs)]
    return [name for name in getattr(outputs, "__dict__", {}) if not name.startswith("_")]


def _entries(outputs: Any) -> list[tuple[int | str, Any]]:
    """Names and values of what holds several."""
    if isinstance(outputs, Tensor):
        return []
    if isinstance(outputs, Mapping):
        return list(outputs.items())
    names = _fields(outputs)
    if isinstance(outputs, tuple | list):
        return list(zip(names or range(len(outputs)), outputs, strict=True))
    return [(name, getattr(outputs, name)) for name in names]


def listing(outputs: Any, n: int | None = None) -> str:
    """A model's outputs in words: keys or indices with shapes, for n sequences."""
    if isinstance(outputs, Tensor):
        return f"a single tensor of shape {_shape(outputs, n)}"
    inner = [f"{name}: {_within(value, n)}" for name, value in _entries(outputs)]
    more = [f"and {len(inner) - _N_LISTED} more"] if len(inner) > _N_LISTED else []
    entries = ", ".join([*inner[:_N_LISTED], *more]) or "nothing in it"
    if isinstance(outputs, Mapping):
        return f"a mapping with {entries}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} with {entries}"
    return f"an object of type {type(outputs).__name__}{f' with {entries}' if inner else ''}"


def _within(value: Any, n: int | None) -> str:
    if isinstance(value, Tensor):
        return _shape(value, n)
    if not isinstance(value, Mapping | tuple | list):
        return type(value).__name__
    inner = ", ".join(f"{name}: {_shape(each, n)}" for name, each in _entries(value)[:_N_LISTED])
    return f"{type(value).__name__} ({inner})"


def _shape(value: Any, n: int | None) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    sizes = [str(size) for size in value.shape]
    if n is not None and sizes and value.shape[0] == n:
        sizes[0] = "N"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _wide(x: Tensor) -> list[int]:
    """The axes with several places, but for the sequences'."""
    return [axis for axis in range(1, x.ndim) if x.shape[axis] > 1]


def _advice(outputs: Any, n: int, start: str = "", ask: str = "") -> str:
    """The end of a message: what is asked for, and settings that fit, ready to paste."""
    some = islice(suggestions(outputs, n, start), _N_LISTED)
    found = sorted(some, key=lambda suggestion: ".mean(" in suggestion[0])[:2]  # what needs no reduction first
    if not found:
        return "; nothing of it is numbers with a row for each sequence: return those from a wrapper class"
    return f"{ask}, such as " + ", or ".join(f"{_typed(text)} ({what})" for text, what in found)


def _typed(text: str) -> str:
    """The argument in the shell's quotes, which are single ones."""
    own = text if '"' in text else text.replace("'", '"')
    argument = f"model.output={'null' if text == WHOLE else own}"
    return shlex.quote(argument) if "'" in argument else f"'{argument}'"


def suggestions(outputs: Any, n: int, start: str = "") -> Iterator[tuple[str, str]]:
    """Texts of `model.output` that fit these outputs for n sequences, each with what it explains.

    `start`: the text that gave the outputs.
    """
    for name, value in _entries(outputs):
        yield from suggestions(value, n, _named(start, name))
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or outputs.shape[0] != n or not outputs.is_floating_point():
        return
    wide = _wide(outputs)
    for kept in reversed(wide):
        others = [axis for axis in wide if axis != kept]
        sizes = [outputs.shape[axis] for axis in others]
        text, last = start, max(others, default=0)
        if any(size >= 2 * _MIDDLE for size in sizes):
            text += (
                f"[{', '.join(_middle(outputs.shape[axis]) if axis in others else ':' for axis in range(last + 1))}]"
            )
        reduced = f".mean({', '.join(map(str, others))})" if others else ""
        yield f"{text}{reduced}" or WHOLE, f"{counted(outputs.shape[kept], 'target')}, axis {kept}"
    if not wide:
        yield start or WHOLE, "1 target"


def _start(outputs: Any, text: str) -> str:
    """The text of a chosen output, so that more can be written behind it."""
    if _entry(outputs, text) is not _ABSENT:
        return _named("", text)
    node = parse(text)
    return f"({text})" if isinstance(node, Binary | Negative) else text


def _named(start: str, name: int | str) -> str:
    """An entry of what a text gave."""
    if str(name).lstrip("-").isdecimal():
        return f"{start}[{name}]"
    entry = str(Keyed(Whole(), str(name)))
    return f"{start}.{entry}" if start and not entry.startswith("[") else start + entry


def _middle(size: int) -> str:
    return ":" if size < 2 * _MIDDLE else f"mid{_MIDDLE + size % 2}"
