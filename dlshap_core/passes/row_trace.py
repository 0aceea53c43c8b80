"""Whether the rows of a batch stay apart: two passes over batches of 2 and of 3 sequences, compared by their shapes.

What depends on the input has one axis whose length goes with the number of sequences. An operation after which no axis
does (a sum or `any` over the batch, a single row for all), or two do (every row with every other), or one that goes
along that axis (cumsum, roll, sort) makes one sequence depend on others. That is no harm in what is not used: it is
followed to the output, and to what the model decides in Python.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlshap_core.passes.derived import is_derived, kept_by_row
from dlshap_core.rules.call import is_varying, replace_tensors, tensors_among
from dlshap_core.rules.masks import number_of

N_ROWS = (2, 3)  # one row alone would have axes dropped, and broadcast
_MIXED = "_dlshap_mixed"
_WAY_OUT = "use an axis of each sequence alone, dim=1 or later, or torch.where() in place of the decision"

# What goes along an axis and keeps its length, with the place of dim among the arguments.
_ALONG = {
    "roll": 2,
    **dict.fromkeys(("flip", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort"), 1),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "diff"), 1),
    **dict.fromkeys(("fft_fft", "fft_ifft"), 2),
}


# What takes the first axis for that of the sequences, and is not tried out.
_BY_SEQUENCE = ("conv1d", "conv2d", "conv_transpose1d", "linear")


@dataclass(frozen=True)
class _Step:
    """Shapes of what depends on the input: given to an operation, and what it returned."""

    name: str
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]

    def is_like(self, other: "_Step") -> bool:
        """Whether both differ in the lengths of axes alone."""
        return self._outline() == other._outline()

    def _outline(self) -> tuple[Any, ...]:
        return self.name, [len(x) for x in self.inputs], [len(x) for x in self.outputs]


@dataclass(frozen=True)
class _Mixed:
    """What mixed the rows, in words, and for a change of places what takes it back."""

    text: str
    undone_by: tuple[Any, ...] | None = None


@dataclass
class RowTrace:
    """The operations of a pass, and what they do to the rows where the pass before is given."""

    smaller: "RowTrace | None" = None
    steps: list[_Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _is_alike: bool = True

    def note(self, func: Callable[..., Any], name: str, path: str, args: Any, kwargs: Any, output: Any) -> None:
        """Take an operation that was done."""
        inputs = tensors_among((args, kwargs), _depends)
        if not inputs:
            return
        written = output if output is not None else args[0]
        outputs = tensors_among([written], _depends)
        step = _Step(name, [tuple(x.shape) for x in inputs], [tuple(x.shape) for x in outputs])
        self.steps.append(step)
        if self.smaller is None or not self._is_alike:
            return
        place = len(self.steps) - 1
        before = self.smaller.steps[place] if place < len(self.smaller.steps) else None
        if before is None or not before.is_like(step) or (name == "_pack_padded_sequence" and _lengths_differ(args[1])):
            self._is_alike = False  # it goes through the rows one by one, or packs them by their lengths
            return
        mixed = next((getattr(x, _MIXED) for x in inputs if hasattr(x, _MIXED)), None)
        if mixed is not None and mixed.undone_by == (order := _order(name, args, kwargs)) and order is not None:
            return  # rows that had changed places are back
        # Where a decision follows `any` or `all`, it is asked of each row.
        is_by_row = any(kept_by_row(x) is not None for x in outputs)
        what = None if mixed is not None or is_by_row else _mixture(func, before, step, args, kwargs)
        if what is not None:
            mixed = _Mixed(f"operation {name!r} in {path} {what}", _order(name, args, kwargs, is_undone=True))
        if mixed is not None:
            _mark(outputs, mixed)

    def decide(self, where: str, args: Any) -> None:
        """Take a decision by a value of these."""
        self._use(f"{where} decides by it", args)

    def finish(self, output: Any) -> str | None:
        """What mixes the rows, in words, or None."""
        self._use("its result reaches the output", [output])
        is_alike = self._is_alike and self.smaller is not None and len(self.steps) == len(self.smaller.steps)
        return self.problems[0] if is_alike and self.problems else None

    def _use(self, how: str, values: Any) -> None:
        for x in tensors_among(values, lambda x: hasattr(x, _MIXED)):
            self.problems.append(f"{getattr(x, _MIXED).text}, and {how}: it mixes the sequences of a batch; {_WAY_OUT}")


def _lengths_differ(lengths: Tensor) -> bool:
    return bool((lengths != lengths[0]).any())


def _depends(x: Tensor) -> bool:
    return is_varying(x) or is_derived(x) or number_of(x) is not None


def _mark(tensors: list[Tensor], mixed: _Mixed) -> None:
    for x in tensors:
        for y in (x, number_of(x)):
            if y is not None:
                setattr(y, _MIXED, mixed)


def _order(name: str, args: Any, kwargs: Any, is_undone: bool = False) -> tuple[Any, ...] | None:
    """What changes the places of rows; for `roll` by how much, or what takes it back."""
    if name == "flip":
        return (name,)
    shift = args[1] if len(args) > 1 else kwargs.get("shifts")
    if name != "roll" or not isinstance(shift, int):
        return None
    return name, -shift if is_undone else shift


def _mixture(func: Callable[..., Any], smaller: _Step, larger: _Step, args: Any, kwargs: Any) -> str | None:
    """What an operation does to the axis of the rows that it must not."""
    if larger.name == "__setitem__":
        return None  # what is written was looked at when it was made; what it is written into may have any shape
    axes = [_axes_of_rows(*shapes) for shapes in zip(smaller.inputs, larger.inputs, strict=True)]
    if not any(axes):
        return None
    for before, after in zip(smaller.outputs, larger.outputs, strict=True):
        if 0 in after:
            continue
        of_rows = _axes_of_rows(before, after)
        if not of_rows:
            return "goes over all rows of the batch, or takes a single one for all"
        if len(of_rows) > 1:
            return "puts every row of the batch beside every other"
        if any(before[axis] * N_ROWS[1] != after[axis] * N_ROWS[0] for axis in of_rows):
            return "gives another number of rows than the batch has"
    if larger.name in _ALONG and axes[0] and axes[0][0] in _dims(args, kwargs, larger):
        return "goes along the rows of the batch"
    is_by_sequence = larger.name in _BY_SEQUENCE and len(larger.inputs[0]) > 2 and axes[0] == [0]
    if not is_by_sequence and _touches(func, axes, smaller, larger, args, kwargs):
        return "makes a row of the batch depend on another"
    return None


def _touches(
    func: Callable[..., Any], of_inputs: list[list[int]], smaller: _Step, larger: _Step, args: Any, kwargs: Any
) -> bool:
    """Whether other rows come out otherwise where one is given other values: of any operation, by trying each row.

    It sees what goes along the rows and keeps their number: a sort, a convolution, a pooling, an index.
    """

    def run(changed: int | None) -> list[Tensor]:
        axes = iter(of_inputs)
        copies = replace_tensors(
            (args, kwargs), lambda x: _copy(x, next(axes) if _depends(x) else [], changed), lambda _: True
        )
        return tensors_among([func(*copies[0], **copies[1])], lambda _: True)

    with torch.no_grad(), contextlib.suppress(Exception):  # some take no other values
        of_outputs = [_axes_of_rows(*shapes) for shapes in zip(smaller.outputs, larger.outputs, strict=True)]
        before = run(None)
        return any(
            _differ(*each, row) for row in range(N_ROWS[1]) for each in zip(of_outputs, before, run(row), strict=True)
        )
    return False


def _copy(x: Tensor, of_rows: list[int], changed: int | None) -> Tensor:
    """A tensor of its own, without a gradient; one row another if asked for: a flag turned over, a whole number taken
    from the row after, so that an index stays one, any other number larger."""
    copy = x.detach().clone()
    if changed is not None and len(of_rows) == 1 and copy.shape[of_rows[0]] == N_ROWS[1]:
        rows = copy.movedim(of_rows[0], 0)
        row = rows[changed]
        number = row + row.abs() + 1 if copy.is_floating_point() else rows[(changed + 1) % N_ROWS[1]]
        rows[changed] = ~row if copy.dtype == torch.bool else number
    return copy


def _differ(of_rows: list[int], before: Tensor, after: Tensor, changed: int) -> bool:
    """Whether a row other than the changed one is another than before."""
    if len(of_rows) != 1 or before.shape[of_rows[0]] != N_ROWS[1] or before.shape != after.shape:
        return False
    others = [row for row in range(N_ROWS[1]) if row != changed]
    a, b = (x.movedim(of_rows[0], 0)[others] for x in (before, after))
    a, b = ((torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).to(torch.float64) for x in (a, b))
    return not torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().nan_to_num(0, 0, 0).max()), equal_nan=True)


def _axes_of_rows(smaller: tuple[int, ...], larger: tuple[int, ...]) -> list[int]:
    return [axis for axis, (a, b) in enumerate(zip(smaller, larger, strict=True)) if a != b]


def _dims(args: Any, kwargs: Any, step: _Step) -> list[int]:
    """The axes that an operation is told to go along."""
    place, n_axes = _ALONG[step.name], len(step.inputs[0])
    dims = next((kwargs[name] for name in ("dim", "dims", "axis") if name in kwargs), None)
    if dims is None:
        given = args[place:] if step.name == "flip" else args[place : place + 1]
        dims = (
            given[0]
            if len(given) == 1
            else given or (-1 if step.name in ("sort", "argsort", "diff", "fft_fft", "fft_ifft") else ())
        )
    dims = dims if isinstance(dims, (tuple, list)) else (dims,)
    return [dim % n_axes for dim in dims if isinstance(dim, int) and n_axes]
