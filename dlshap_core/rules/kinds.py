"""Kinds of treatment an operation can get. Each knows what to do in the observing and in the replaying pass.

Observing (the sequences alone): compute as usual, record what the rule will need. Replaying (the references): take the
record back as the other end of each difference, compute the reference's value, and set what flows back.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.kernels.memory_format import crop, has_channels_last
from dlshap_core.rules.call import Call, varying_tensors
from dlshap_core.rules.gradients import in_pieces
from dlshap_core.rules.protocol import Pass

_OF_A_BATCH = ("__contains__", "equal", "allclose")  # questions about all values at once


class Kind:
    """How an operation is treated.

    Attributes:
        label: what reports call it.
        reads_values: whether what it returns depends on the values that it is given.
        is_linear: whether constants among its inputs have constant outputs.
        is_composite: it is done as simpler operations, each seen in turn.
        is_listed: whether an audit lists it by what `describe` says.
    """

    label: str
    reads_values: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    is_composite: ClassVar[bool] = False
    is_listed: ClassVar[bool] = True

    def describe(self, call: Call) -> str:
        """What a report says of this call."""
        return self.label

    def run(self, forward: Pass, call: Call) -> Any:
        """Do the operation in the observing or the replaying pass; as the model does it, if a kind has no other way."""
        return call.plain()


@dataclass(frozen=True)
class Constant(Kind):
    """Does not read values (shapes, zeros_like, flags): nothing to attribute."""

    label: str = "constant"
    reads_values = False


@dataclass(frozen=True)
class Linear(Kind):
    """Linear in what varies: its gradient is its multiplier."""

    label: str = "linear"
    is_linear = True


@dataclass(frozen=True)
class LinearBy(Linear):
    """The same linear map by another function of the same arguments, which is faster."""

    function: Callable[..., Any] = field(kw_only=True)

    def run(self, forward: Pass, call: Call) -> Any:
        return self.function(*call.args, **call.kwargs)


@dataclass(frozen=True)
class Split(Linear):
    """split, chunk, unbind. Where the model writes into the pieces, each is a view of its own."""

    def run(self, forward: Pass, call: Call) -> Any:
        (source,), names, pieces = call.inputs, call.torch_names(), call.plain()
        unbinds = call.name == "unbind"
        n_before = 1 if unbinds else 2
        dim = call.args[n_before] if len(call.args) > n_before else names.get("dim", 0)
        sizes = None if unbinds else [piece.shape[dim] for piece in pieces]
        if forward.replaying and not forward.rows.is_careful and len(pieces) > 1:
            return in_pieces(source, dim, sizes)
        if sizes is None:
            return tuple(source.select(dim, i) for i in range(len(pieces)))
        starts = [0, *itertools.accumulate(sizes)]
        return tuple(source.narrow(dim, start, stop - start) for start, stop in itertools.pairwise(starts))


@dataclass(frozen=True)
class Packing(Linear):
    """pack_padded_sequence and back: linear; the number of rows at each step follows from the lengths alone."""

    reads_values = False


@dataclass(frozen=True)
class Index(Linear):
    """Indexing: linear in what is picked from, the first argument; where to pick must not depend on the sequence."""

    def run(self, forward: Pass, call: Call) -> Any:
        if varying_tensors((call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"})):
            forward.refuse(call.name, "its index is made from the input, so what it picks jumps with the input")
        if forward.formats.is_changed and call.name == "__getitem__" and has_channels_last(call.inputs[0]):
            return crop(*call.args)
        return call.plain()


@dataclass(frozen=True)
class Detached(Kind):
    """detach and .data: the value still depends on the sequence, so it is followed as if it were not detached."""

    label: str = "detach followed"

    def run(self, forward: Pass, call: Call) -> Any:
        return call.inputs[0].view_as(call.inputs[0])


@dataclass(frozen=True)
class UnaryRule(Kind):
    """A function of one tensor by a rule of its own: rule(observed, reference, *rest) returns the ruled output, both
    sides having the rows of the references."""

    rule: Callable[..., Any]
    label: str
    breaks_ties: bool = False  # the last bits of equal inputs tell which of them wins
    is_complete: bool = True  # contributions sum to the difference of outputs, by design
    observes: Callable[..., Any] | None = None  # the function of the sequences, where it is not torch's own
    in_own_format: Callable[[Tensor], Tensor] | None = None  # of an output, where torch's is not in the input's format

    def run(self, forward: Pass, call: Call) -> Any:
        rest = call.first_input_only()
        if rest is None:
            forward.refuse(call.name, "an argument other than the first depends on the sequence")
        if not forward.replaying:
            forward.record(call, breaks_ties=self.breaks_ties)
            output = call.plain() if self.observes is None else self.observes(*call.args, **call.torch_names())
            return self._formatted(forward, output)
        args, kwargs = rest
        forward.is_complete &= self.is_complete
        with torch.autocast(call.inputs[0].device.type, enabled=False):
            try:
                output = self.rule(*self._pair(forward, call), *args, **kwargs)
            except (TypeError, ValueError) as error:
                forward.refuse(call.name, str(error))
        return call.finish(self._formatted(forward, output))

    def _formatted(self, forward: Pass, output: Any) -> Any:
        """As torch has it where the model's own formats are kept, or the model could not take a view of it."""
        if self.in_own_format is None or forward.formats.is_changed:
            return output
        return self.in_own_format(output)

    def _pair(self, forward: Pass, call: Call) -> tuple[Any, ...]:
        return (*forward.observed(call), call.inputs[0])


@dataclass(frozen=True)
class PairRule(UnaryRule):
    """The same by rule(rows, observed, reference, *rest), with the rows of each pass: S observed, S R of references.

    What the rule makes of the observed side alone is made once, not once for each reference.
    """

    def _pair(self, forward: Pass, call: Call) -> tuple[Any, ...]:
        return (forward.rows, *forward.recorded(call.name, 1), call.inputs[0])


@dataclass(frozen=True)
class Composite(Kind):
    """Done as simpler operations, each seen and ruled in turn."""

    function: Callable[..., Any]
    label: str
    is_composite = True

    def run(self, forward: Pass, call: Call) -> Any:
        with forward:
            try:
                output = self.function(*call.args, **call.torch_names())
            except UnsupportedModelError:  # of an operation inside
                raise
            except (TypeError, ValueError) as error:
                forward.refuse(call.name, str(error))
        return call.finish(output)


@dataclass(frozen=True)
class Traced(Kind):
    """A Python function of torch, run so that the operations inside it are seen."""

    body: Callable[..., Any]
    label: str = "traced"
    is_composite = True
    is_listed = False

    def run(self, forward: Pass, call: Call) -> Any:
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

    def run(self, forward: Pass, call: Call) -> Any:
        if not self.condition(call):
            forward.refuse(call.name, self.reason)
        return self.kind.run(forward, call)


@dataclass(frozen=True)
class MaxOf(Kind):
    """torch.max and torch.min, which are three functions: over everything, over an axis, and of two tensors."""

    over_axis: UnaryRule
    of_two: Composite
    label: str = "maximum"

    def run(self, forward: Pass, call: Call) -> Any:
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

    def run(self, forward: Pass, call: Call) -> Any:
        forward.refuse(call.name, self.reason)


@dataclass(frozen=True)
class Branch(Kind):
    """A Python value read from a tensor (bool(x), torch.equal): both passes must read the same, or they diverge."""

    label: str = "branch"

    def run(self, forward: Pass, call: Call) -> Any:
        value = call.plain()
        by_row = forward.by_row(call) if call.name in _OF_A_BATCH else None
        forward.check_branch(call.name, value, (call.args, call.kwargs), by_row)
        return value
