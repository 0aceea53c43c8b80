"""One forward pass of a model with every torch operation seen: observed on sequences, replayed on references.

`torch.overrides.TorchFunctionMode` hands over every torch call, in a module or not. Each call on a tensor that varies
with the sequence is looked up in the table of rules. The observing pass runs the S sequences and records, in call
order, what the rules need; the replaying pass runs the S x R references, takes the records back as the other end of
each difference, and leaves an autograd graph whose gradients are DeepLIFT multipliers. The model itself is not
touched.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.gradients import OWN_NODES
from dlshap_core.memory_format import READS_FORMAT, SHARES_OR_COPIES, FormatChoice, keep_format_of_gradients
from dlshap_core.rows import PassesDiffer, Rows
from dlshap_core.rules.integrated import Integrated
from dlshap_core.rules.kinds import Call, Constant, Kind, Linear, Opened, Spelled, replace_tensors, varying_tensors
from dlshap_core.rules.masks import number_of
from dlshap_core.rules.table import (
    CONVERTS_MASKS,
    KEEPS_MASKS,
    LIKE_SECOND,
    MOVES_INDICES,
    RANDOM,
    READS_NO_VALUES,
    look_up,
)

_DERIVED = "_dlshap_derived"


class Overwritten(Exception):
    """The model overwrote a tensor that was kept without a copy."""


@dataclass(frozen=True)
class OperationKey:
    """An operation as the audit counts it."""

    module: str
    name: str
    treatment: str


@dataclass
class Seen:
    """What an audit collects: operations counted by module, name and treatment, and the refusals met on the way."""

    operations: Counter[OperationKey] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)


@dataclass
class _Entry:
    name: str
    payload: Any


@dataclass(frozen=True)
class _Kept:
    """Tensors of the observing pass, and how often each had been written to when it was recorded."""

    tensors: list[Tensor]
    versions: list[int]


@dataclass
class Tape:
    """What the observing pass recorded, in call order; the replaying pass must consume all of it in the same order."""

    entries: list[_Entry] = field(default_factory=list)
    position: int = 0

    def add(self, name: str, payload: Any) -> None:
        """Record what an operation of this name needs."""
        self.entries.append(_Entry(name, payload))

    def take(self, name: str) -> Any:
        """The next record, which must be of this name."""
        if self.position == len(self.entries):
            raise PassesDiffer(f"the references go through one more operation, {name!r}, than the sequence")
        entry = self.entries[self.position]
        self.position += 1
        if entry.name != name:
            raise PassesDiffer(
                f"ruled operation {self.position} is {entry.name!r} for the sequence and {name!r} for the references"
            )
        return entry.payload

    def holds_any(self, names: frozenset[str]) -> bool:
        """Whether an operation of one of these names was recorded."""
        return any(entry.name in names for entry in self.entries)

    def check_consumed(self) -> None:
        """Raise PassesDiffer if records are left."""
        if self.position < len(self.entries):
            name = self.entries[self.position].name
            raise PassesDiffer(f"the sequence goes through one more operation, {name!r}, than the references")


class ForwardPass(TorchFunctionMode):
    """A forward pass under observation; use as a context manager around the call of the model.

    Args:
        tape: filled when observing, consumed when replaying.
        rows: the row layout of the two passes, and whether what is kept for later is copied.
        replaying: False for the sequences, True for the references.
        modules: names of the model's modules by id, for messages and reports.
        formats: of the activations in memory, and what is known of them.
        seen: filled by an audit, which goes on past an operation that is refused.
    """

    def __init__(
        self,
        tape: Tape,
        rows: Rows,
        replaying: bool,
        modules: dict[int, str],
        formats: FormatChoice,
        seen: Seen | None = None,
    ) -> None:
        super().__init__()
        self.replaying = replaying
        self.rows = rows
        self._tape = tape
        self.formats = formats
        self._modules = modules
        self._seen = seen
        self._has_derived = False
        self.is_suspended = False
        self.sums = True  # whether every rule used makes contributions add up by design

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, in_place, kind = look_up(func)
        if name in READS_FORMAT and self.formats.is_changed and _is_activation(args[0]):
            raise self.formats.matters(f"the model reads {name!r} of an activation")
        if self.is_suspended or name in READS_NO_VALUES:
            return func(*args, **kwargs)
        try:
            return self._treat(func, name, in_place, kind, args, kwargs)
        except UnsupportedModelError as error:
            if self._seen is None:
                raise
            self._seen.refusals.append(str(error))
            return func(*args, **kwargs)

    def _treat(
        self,
        func: Callable[..., Any],
        name: str,
        in_place: bool,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if name in RANDOM:
            self.refuse(name, "it draws random numbers in forward, so no two passes agree")
        if self._has_derived:
            if (
                name in CONVERTS_MASKS
                and (number := number_of(args[0])) is not None
                and torch.bool not in (*args, *kwargs.values())
            ):
                return number
            args, kwargs = self._resolve_derived(name, args, kwargs)
        inputs = varying_tensors(args[:1] if name in LIKE_SECOND else (args, kwargs))
        if not inputs:
            return self._without_gradient(name, func, args, kwargs)
        if kwargs.get("out") is not None:
            self.refuse(name, "it writes into out=, which autograd cannot follow")
        call = Call(func, name, in_place, args, kwargs, inputs)
        with contextlib.nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
            output = kind.run(self, call)
        if self.replaying and self.formats.is_changed and not isinstance(kind, (Opened, Spelled)):
            keep_format_of_gradients(inputs, output)
        # An integrated operation is listed by note_integration, with its nodes.
        if self._seen is not None and not isinstance(kind, (Opened, Integrated)):
            self._seen.operations[OperationKey(self.module_path(), name, kind.describe(call))] += 1
        if not isinstance(kind, Constant):
            self._mark_derived(name, output, keeps_constants=isinstance(kind, Linear))
        return output

    def record(self, call: Call, tensors: list[Tensor] | None = None) -> None:
        """Keep the varying inputs of a call (or the tensors given) for the replaying pass.

        What the call itself will overwrite is copied; what the model overwrites later is noticed by `recorded`.
        """
        copies = call.in_place or self.rows.is_careful
        kept = [x.detach().clone() if copies else x.detach() for x in (call.inputs if tensors is None else tensors)]
        self._tape.add(call.name, _Kept(kept, [x._version for x in kept]))

    def recorded(self, name: str, n: int) -> list[Tensor]:
        """The n tensors that the observing pass recorded at a call of this name, with the rows of that pass."""
        kept = self._tape.take(name)
        if len(kept.tensors) != n:
            raise PassesDiffer(f"{name!r} has {len(kept.tensors)} varying inputs in one pass, {n} in the other")
        if [x._version for x in kept.tensors] != kept.versions:
            raise Overwritten(f"the model overwrites in place what {name!r} was given")
        return kept.tensors

    def observed(self, call: Call, tensors: list[Tensor] | None = None) -> list[Tensor]:
        """What the observing pass recorded at this call, repeated to the rows of the call's inputs (or the tensors
        given)."""
        reference = call.inputs if tensors is None else tensors
        recorded = self.recorded(call.name, len(reference))
        return [self.rows.expand(x, r) for x, r in zip(recorded, reference, strict=True)]

    def observed_beside(self, call: Call, expand: bool) -> tuple[Tensor, Tensor]:
        """Observed and reference input of a call of one input, as they broadcast, or both of the reference's shape."""
        (recorded,) = self.recorded(call.name, 1)
        reference = call.inputs[0].detach()
        return (self.rows.expand(recorded, reference), reference) if expand else self.rows.beside(recorded, reference)

    def check_branch(self, name: str, value: Any) -> None:
        """A Python value read from the sequence decides the model's path: it must be the same in both passes."""
        if not self.replaying:
            self._tape.add(name, value)
        elif (recorded := self._tape.take(name)) != value:
            raise PassesDiffer(
                f"{name!r} on a value of the input gives {recorded} for the sequence, {value} for a reference"
            )

    def note_integration(self, name: str, n_nodes: int, error: float) -> None:
        """Tell the audit how many nodes an integrated operation needed."""
        if self._seen is not None:
            treatment = f"integrated, {n_nodes} nodes (error {error:.0e})"
            self._seen.operations[OperationKey(self.module_path(), name, treatment)] += 1

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Stop: this operation cannot be attributed."""
        raise UnsupportedModelError(f"operation {name!r} in {self.module_path()} is not supported: {reason}")

    def module_path(self) -> str:
        """Name of the innermost module whose code is running, from the call stack."""
        frame = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
            if isinstance(owner, nn.Module) and id(owner) in self._modules:
                return f"{self._modules[id(owner)] or 'the model'} ({type(owner).__name__})"
            frame = frame.f_back  # type: ignore[assignment]
        return "the model's forward"

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Let operations pass unseen: a user's rule takes over for a whole module."""
        before, self.is_suspended = self.is_suspended, True
        try:
            yield
        finally:
            self.is_suspended = before

    def _without_gradient(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call on nothing that carries a gradient: a constant, or a test of a mask that decides a branch."""
        if any(isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in args):
            self.refuse(name, "it runs under torch.func (vmap, grad), where it cannot be followed")
        output = func(*args, **kwargs)
        if name in SHARES_OR_COPIES and self.formats.is_changed and not self.replaying:
            self.formats.watch(*(x for x in (*args[:1], output) if isinstance(x, Tensor)))
        if self._has_derived and any(getattr(x, _DERIVED, None) for x in args):
            if name in KEEPS_MASKS and not isinstance(output, Tensor):
                self.check_branch(name, output)
            else:
                self._mark_derived(name, output)
        return output

    def _mark_derived(self, name: str, output: Any, keeps_constants: bool = False) -> None:
        """Outputs that depend on the sequence without carrying a gradient (masks, indices) are followed.

        A linear operation gives a real output without a gradient only where it is of the constants among its inputs.
        """
        for x in output if isinstance(output, (list, tuple)) else (output,):
            if not isinstance(x, Tensor):
                continue
            if x.is_complex() or x.is_inference():
                self.refuse(name, "complex tensors and inference mode are not supported")
            if not x.requires_grad and not (keeps_constants and x.is_floating_point()):
                setattr(x, _DERIVED, name)
                self._has_derived = True

    def _resolve_derived(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Arguments with the numbers of masks in place of the masks; refuses other values derived from the input."""
        if name in KEEPS_MASKS:
            return args, kwargs

        def resolve(x: Tensor) -> Tensor:
            number = number_of(x)
            if number is not None:
                return number
            source = getattr(x, _DERIVED, None)
            if source is not None and not (name in MOVES_INDICES and x is args[0]):
                self.refuse(
                    name, f"it uses what {source!r} made of the input (an index or a count), which jumps with it"
                )
            return x

        return replace_tensors((args, kwargs), resolve, lambda x: isinstance(x, Tensor) and not x.requires_grad)


def _is_activation(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.requires_grad or hasattr(x, _DERIVED))


def find_custom_function(output: Tensor) -> str | None:
    """Name of a custom autograd.Function in the graph of a replayed output, if there is one.

    Such functions go past the function mode, as does reentrant checkpointing, which is one of them.
    """
    pending, visited = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction) and not isinstance(node, OWN_NODES):
            return type(node).__name__.removesuffix("Backward")
        pending.extend(parent for parent, _ in node.next_functions)
    return None
