"""Kinds of treatment an operation can get. Each knows what to do in the observing and in the replaying pass.

Observing (the sequences alone): compute as usual, record what the rule will need. Replaying (the references): take the
record back as the other end of each difference, compute the reference's value, and set what flows back.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.memory_format import crop, has_channels_last

if TYPE_CHECKING:
    from dlshap_core.capture import ForwardPass


_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


@dataclass
class Call:
    """One call of a torch function on tensors that vary with the sequence."""

    function: Callable[..., Any]
    name: str
    in_place: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]

    def plain(self) -> Any:
        """The call as the model made it."""
        return self.function(*self.args, **self.kwargs)

    def with_inputs(self, tensors: Iterable[Tensor]) -> Any:
        """The call out of place, with other tensors where the varying ones are, in their order."""
        replacements = iter(tensors)
        args, kwargs = replace_tensors((self.args, self.kwargs), lambda _: next(replacements), is_varying)
        if self.in_place:
            args = (args[0].clone(), *args[1:])
        return self.function(*args, **kwargs)

    def first_input_only(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The other arguments, if the one varying tensor is the first argument; else None."""
        rest = {name: value for name, value in self.torch_names().items() if name not in ("input", "self", "x")}
        first = self.args[0] if self.args else next(v for k, v in self.kwargs.items() if k not in rest)
        if len(self.inputs) != 1 or first is not self.inputs[0]:
            return None
        return self.args[1:], rest

    def named(self, *names: str) -> tuple[Any, ...]:
        """Arguments of a call that takes exactly these, by position or by name."""
        return (*self.args, *(self.kwargs[name] for name in names[len(self.args) :]))

    def torch_names(self) -> dict[str, Any]:
        """The keyword arguments under torch's own names, where numpy's were used."""
        return {_TORCH_NAMES.get(name, name): value for name, value in self.kwargs.items()}

    def finish(self, output: Any) -> Any:
        """The output, written back where the model asked for an in-place operation."""
        if not self.in_place:
            return output
        target = self.args[0] if self.args else self.kwargs["input"]
        return target.copy_(output)


class Kind(ABC):
    """How an operation is treated; `label` is what reports call it."""

    label: str

    def describe(self, call: Call) -> str:
        """What a report says of this call."""
        return self.label

    @abstractmethod
    def run(self, forward: "ForwardPass", call: Call) -> Any:
        """Do the operation in the observing or the replaying pass."""


def is_varying(x: Any) -> bool:
    """Whether a value depends on the sequence: parameters are frozen during a pass, so requires_grad tells."""
    return isinstance(x, Tensor) and x.requires_grad


def varying_tensors(values: Any) -> list[Tensor]:
    """Tensors that depend on the sequence in nested arguments, in order."""
    found: list[Tensor] = []
    _collect(values, found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            if value.requires_grad:
                found.append(value)
        elif isinstance(value, (list, tuple)):
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def replace_tensors(value: Any, replace: Callable[[Tensor], Any], wanted: Callable[[Any], bool]) -> Any:
    """Nested arguments with the wanted tensors replaced, in the order of `varying_tensors`."""
    if isinstance(value, Tensor):
        return replace(value) if wanted(value) else value
    if isinstance(value, dict):
        return {key: replace_tensors(item, replace, wanted) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        replaced = [replace_tensors(item, replace, wanted) for item in value]
        return replaced if isinstance(value, list) else tuple(replaced)
    return value


@dataclass(frozen=True)
class Constant(Kind):
    """Does not read values (shapes, zeros_like, flags): nothing to attribute."""

    label: str = "constant"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        return call.plain()


@dataclass(frozen=True)
class Linear(Kind):
    """Linear in what varies: its gradient is its multiplier."""

    label: str = "linear"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        return call.plain()


@dataclass(frozen=True)
class LinearBy(Linear):
    """The same linear map by another function of the same arguments, which is faster."""

    function: Callable[..., Any] = field(kw_only=True)

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        return self.function(*call.args, **call.kwargs)


@dataclass(frozen=True)
class Pieces(Linear):
    """split, chunk, unbind. Each piece is a view of its own, so that the model may work on it in place."""

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        pieces = call.plain()
        names = call.torch_names()
        if call.name == "unbind":
            dim = call.args[1] if len(call.args) > 1 else names.get("dim", 0)
            return tuple(call.inputs[0].select(dim, i) for i in range(len(pieces)))
        dim = call.args[2] if len(call.args) > 2 else names.get("dim", 0)
        starts = [0, *itertools.accumulate(piece.shape[dim] for piece in pieces)]
        return tuple(call.inputs[0].narrow(dim, start, stop - start) for start, stop in itertools.pairwise(starts))


@dataclass(frozen=True)
class Picks(Linear):
    """Indexing: linear in what is picked from, the first argument; where to pick must not depend on the sequence."""

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if varying_tensors((call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"})):
            forward.refuse(call.name, "its index is made from the input, so what it picks jumps with the input")
        if forward.formats.is_changed and call.name == "__getitem__" and has_channels_last(call.inputs[0]):
            return crop(*call.args)
        return call.plain()


@dataclass(frozen=True)
class Detached(Kind):
    """detach and .data: the value still depends on the sequence, so it is followed as if it were not detached."""

    label: str = "detach followed"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        return call.inputs[0].view_as(call.inputs[0])


@dataclass(frozen=True)
class FromFirst(Kind):
    """A function of one tensor with a rule of its own: rule(observed, reference, *rest) returns the ruled output."""

    rule: Callable[..., Any]
    label: str
    sums: bool = True  # whether contributions add up to the difference by design

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        rest = call.first_input_only()
        if rest is None:
            forward.refuse(call.name, "an argument other than the first depends on the sequence")
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        args, kwargs = rest
        forward.sums &= self.sums
        with torch.autocast(call.inputs[0].device.type, enabled=False):
            try:
                output = self.rule(*self._pair(forward, call), *args, **kwargs)
            except (TypeError, ValueError) as error:
                forward.refuse(call.name, str(error))
        return call.finish(output)

    def _pair(self, forward: "ForwardPass", call: Call) -> tuple[Any, ...]:
        return (*forward.observed(call), call.inputs[0])


@dataclass(frozen=True)
class Beside(FromFirst):
    """The same with the rows as they are: rule(rows, observed, reference, *rest), S observed and S R of references.

    What the rule makes of the observed side alone is made once, not once for each reference.
    """

    def _pair(self, forward: "ForwardPass", call: Call) -> tuple[Any, ...]:
        return (forward.rows, *forward.recorded(call.name, 1), call.inputs[0])


@dataclass(frozen=True)
class Spelled(Kind):
    """Run as simpler operations, each seen and ruled in turn."""

    function: Callable[..., Any]
    label: str

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        with forward:
            try:
                output = self.function(*call.args, **call.torch_names())
            except UnsupportedModelError:  # of an operation inside
                raise
            except (TypeError, ValueError) as error:
                forward.refuse(call.name, str(error))
        return call.finish(output)


@dataclass(frozen=True)
class Opened(Kind):
    """A Python function of torch, run so that the operations inside it are seen."""

    body: Callable[..., Any]
    label: str = "opened"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        with forward:
            return self.body(*call.args, **call.kwargs)


@dataclass(frozen=True)
class OnlyIf(Kind):
    """A treatment that holds under a condition on the call; refused otherwise."""

    kind: Kind
    condition: Callable[[Call], bool]
    reason: str
    label: str = "conditional"

    def describe(self, call: Call) -> str:
        return self.kind.describe(call)

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if not self.condition(call):
            forward.refuse(call.name, self.reason)
        return self.kind.run(forward, call)


@dataclass(frozen=True)
class MaxOf(Kind):
    """torch.max and torch.min, which are three functions: over everything, over an axis, and of two tensors."""

    over_axis: FromFirst
    of_two: Spelled
    label: str = "maximum"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        operands = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor)]
        if len(operands) == 2:
            return self.of_two.run(forward, call)
        if len(call.args) == 1 and "dim" not in call.torch_names():
            forward.refuse(call.name, "over all axes it mixes the sequences of a batch; give dim=")
        return self.over_axis.run(forward, call)


@dataclass(frozen=True)
class Refused(Kind):
    """Cannot be attributed."""

    reason: str
    label: str = "refused"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        forward.refuse(call.name, self.reason)


@dataclass(frozen=True)
class Branch(Kind):
    """A Python value read from a tensor (bool(x), torch.equal): both passes must read the same, or they diverge."""

    label: str = "branch"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        value = call.plain()
        forward.check_branch(call.name, value)
        return value
