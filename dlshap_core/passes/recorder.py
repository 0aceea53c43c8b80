"""One forward pass of a model with every torch operation seen: observed on sequences, replayed on references.

`torch.overrides.TorchFunctionMode` hands over every torch call, in a module or not. Each call on a tensor that varies
with the sequence is looked up in the table of rules. The observing pass runs the S sequences and records, in call
order, what the rules need; the replaying pass runs the S x R references, takes the records back as the other end of
each difference, and leaves an autograd graph whose gradients are DeepLIFT multipliers. The model itself is not
touched.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.kernels.memory_format import READS_FORMAT, SHARES_OR_COPIES, FormatChoice, keep_format_of_gradients
from dlshap_core.passes.call_stack import decorated_by, module_path, place_of_decision
from dlshap_core.passes.decisions import Decided, Decisions
from dlshap_core.passes.derived import (
    ask_by_row,
    is_activation,
    is_derived,
    keep_by_row,
    kept_by_row,
    mark,
    with_numbers,
)
from dlshap_core.passes.row_trace import RowTrace
from dlshap_core.passes.tape import Kept, Overwritten, Tape
from dlshap_core.passes.tolerance import Lowered
from dlshap_core.rules import deterministic, names
from dlshap_core.rules.call import Call, varying_tensors
from dlshap_core.rules.kinds import Kind
from dlshap_core.rules.masks import number_of
from dlshap_core.rules.recurrences import mark_zeros
from dlshap_core.rules.rows import PassesDiffer, RowPairing
from dlshap_core.rules.table import look_up, of_complex
from dlshap_core.torch_private import is_wrapped_by_functorch, version

_UNDER_TORCH_FUNC = (
    "it runs under torch.func.grad, jvp or a function made of these, which differentiate in forward; write the "
    "derivative out as a function of its own (torch.vmap is followed)"
)


@dataclass
class Seen:
    """Operations counted by module, name and treatment, of the last pass alone, and all refusals met on the way."""

    operations: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)


class ForwardPass(TorchFunctionMode):
    """A forward pass under observation; use as a context manager around the call of the model.

    Args:
        tape: filled when observing, consumed when replaying.
        rows: the row layout of the two passes, and whether what is kept for later is copied.
        replaying: False for the sequences, True for the references.
        modules: names of the model's modules by id, for messages and reports.
        formats: of the activations in memory, and what is known of them.
        seen: filled by an audit, which goes on past an operation that is refused.
        decisions: what the sequences are expected to decide; None for a first batch.
        trace: of what becomes of the rows, where that is asked for.
    """

    def __init__(
        self,
        tape: Tape,
        rows: RowPairing,
        replaying: bool,
        modules: dict[int, str],
        formats: FormatChoice,
        seen: Seen | None = None,
        decisions: Decisions | None = None,
        trace: RowTrace | None = None,
    ) -> None:
        super().__init__()
        self.replaying = replaying
        self.rows = rows
        self._tape = tape
        self.formats = formats
        self._modules = modules
        self._seen = seen
        self._decisions = decisions or Decisions()
        self._trace = trace
        self.decided: Decided = {}
        self.has_derived = False  # values that depend on the sequence without a gradient were met
        self._has_complex = False
        self.is_suspended = False
        self.is_dry = False  # nothing is kept: what is done now is done again later, or only measured
        self.n_recorded = 0  # bytes that were not kept
        self._is_second = replaying
        self.lowered: Lowered | None = None  # where the model first computes with fewer digits than its input has
        self.is_complete = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, in_place, kind = look_up(func)
        if name in READS_FORMAT and self.formats.is_changed and is_activation(args[0]):
            raise self.formats.matters(f"the model reads {name!r} of an activation")
        if self.is_suspended or name in names.READS_NO_VALUES:
            return func(*args, **kwargs)
        try:
            output = self._treat(func, name, in_place, kind, args, kwargs)
            if self._trace is not None:
                self._trace.note(func, name, self.module_path(), args, kwargs, output)
            return output
        except UnsupportedModelError as error:
            if self._seen is None:
                raise
            self._seen.refusals.append(str(error))
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "deterministic implementation" in str(error):
                self.refuse(name, str(error).partition(". ")[0])
            if "functorch transforms" not in str(error):
                raise
            self.refuse(name, _UNDER_TORCH_FUNC)

    def _treat(
        self,
        func: Callable[..., Any],
        name: str,
        in_place: bool,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if name in names.RANDOM:
            self.refuse(name, "it draws random numbers in forward, so no two passes agree")
        if self.has_derived:
            if (
                name in names.CONVERTS_MASKS
                and (number := number_of(args[0])) is not None
                and torch.bool not in (*args, *kwargs.values())
            ):
                return number
            args, kwargs = with_numbers(name, args, kwargs, self.refuse)
        inputs = varying_tensors(args[:1] if name in names.LIKE_SECOND else (args, kwargs))
        call = deterministic.with_form(Call(func, name, in_place, args, kwargs, inputs))
        if not inputs:
            return self._without_gradient(name, call.function, args, call.kwargs)
        if kwargs.get("out") is not None:
            self.refuse(name, "it writes into out=, which autograd cannot follow")
        if self._has_complex and any(x.is_complex() for x in inputs):
            kind = of_complex(name, kind)
        with contextlib.nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
            output = kind.run(self, call)
        if self._is_second and self.lowered is None and isinstance(output, Tensor):
            self._note_precision(name, inputs[0], output)
        if self.replaying and self.formats.is_changed and not kind.is_composite:
            keep_format_of_gradients(inputs, output)
        # An integrated operation is listed by note_integration, with its nodes.
        if self._seen is not None and kind.is_listed:
            self._seen.operations[self.module_path(), name, kind.describe(call)] += 1
        if kind.reads_values:
            self._follow(name, args, kwargs, output, keeps_constants=kind.is_linear)
        if name in names.SIZED_BY_VALUES:
            self._decide_by_size(name, output)
        return output

    def _note_precision(self, name: str, before: Tensor, after: Tensor) -> None:
        """Remember the first operation that gives numbers of fewer digits."""
        is_smaller = after.dtype.itemsize < before.dtype.itemsize if after.is_floating_point() else after.is_complex()
        if is_smaller and after.dtype.to_real().itemsize < before.dtype.to_real().itemsize:
            self.lowered = Lowered(self.module_path(), name, after.dtype.to_real())

    def record(self, call: Call, tensors: list[Tensor] | None = None, breaks_ties: bool = False) -> None:
        """Keep the varying inputs of a call (or the tensors given) for the replaying pass.

        What the call itself will overwrite is copied; what the model overwrites later is noticed by `recorded`.
        """
        self._tape.breaks_ties |= breaks_ties
        tensors = call.inputs if tensors is None else tensors
        if self.is_dry:
            self.n_recorded += sum(x.nbytes for x in tensors)
        else:
            self._tape.add(call.name, self._kept(tensors, call.in_place or self.rows.is_careful))

    @staticmethod
    def _kept(tensors: list[Tensor], copies: bool) -> Kept:
        kept = [x.detach().clone() if copies else x.detach() for x in tensors]
        return Kept(kept, list(map(version, kept)))

    def keep_inputs(self, name: str, inputs: list[Tensor], rest: Any) -> Callable[[], tuple[list[Tensor], Any]] | None:
        """What goes into a block of the model, and the rest of its arguments, which may have the rows of the pass, too:
        observing they are kept; replaying, what gives those of the observing pass on the way back."""
        with self.suspended():
            if not self.replaying:
                self._tape.add(name, (self._kept(inputs, self.rows.is_careful), rest))
                return None
            kept, their_rest = self._tape.take(name)
            return lambda: ([x.detach() for x in self._unchanged(name, kept, len(inputs))], their_rest)

    @contextlib.contextmanager
    def dry(self) -> Iterator[None]:
        """Compute and keep nothing, as the observing pass does: a block, which is computed again on the way back."""
        before, watched = (self.replaying, self._seen), self.formats.n_watched
        self.is_dry, self.replaying = True, False
        if self._seen is not None:
            self._seen = Seen(refusals=self._seen.refusals)
        try:
            yield
            self.formats.check_from(watched)
        finally:
            self.is_dry, (self.replaying, self._seen) = False, before

    def recorded(self, name: str, n: int) -> list[Tensor]:
        """The n tensors that the observing pass recorded at a call of this name, with the rows of that pass."""
        return self._unchanged(name, self._tape.take(name), n)

    @staticmethod
    def _unchanged(name: str, kept: Kept, n: int) -> list[Tensor]:
        if len(kept.tensors) != n:
            raise PassesDiffer(f"{name!r} has {len(kept.tensors)} varying inputs in one pass, {n} in the other")
        if list(map(version, kept.tensors)) != kept.versions:
            raise Overwritten(f"the model overwrites in place what {name!r} was given")
        return kept.tensors

    def observed(self, call: Call, tensors: list[Tensor] | None = None) -> list[Tensor]:
        """What the observing pass recorded at this call, repeated to the rows of the call's inputs (or the tensors
        given)."""
        reference = call.inputs if tensors is None else tensors
        recorded = self.recorded(call.name, len(reference))
        return [self.rows.expand(x, r) for x, r in zip(recorded, reference, strict=True)]

    def observed_pair(self, call: Call, expand: bool) -> tuple[Tensor, Tensor]:
        """Observed and reference input of a call of one input, as they broadcast, or both of the reference's shape."""
        (recorded,) = self.recorded(call.name, 1)
        reference = call.inputs[0].detach()
        return (self.rows.expand(recorded, reference), reference) if expand else self.rows.paired(recorded, reference)

    def check_branch(self, name: str, value: Any, args: Any, by_row: list[Any] | None = None) -> None:
        """A Python value read from the sequence decides the model's path: it must be the same in both passes, and in
        every batch.

        Args:
            name: of what read it.
            value: what it read.
            args: of the call.
            by_row: what each row alone would have given, where the value is one of the whole batch.

        Raises:
            PassesDiffer: the passes differ.
            DecisionError: the rows of the batch differ, or this batch and those before.
        """
        line, where = place_of_decision()
        if by_row is not None:
            self._decisions.check_rows(by_row, line, where)
        if self._trace is not None:
            self._trace.decide(where, args)
        if self._is_second:
            if (recorded := self._tape.take(name)) != value:
                raise PassesDiffer(
                    f"{name!r} on a value of the input gives {recorded} for the sequence, {value} for a reference, "
                    f"in {where}"
                )
            return
        self._tape.add(name, value)
        self.decided.setdefault(line, []).append(value)
        self._decisions.check(self.decided, line, where)

    def _decide_by_size(self, name: str, output: Any) -> None:
        """How many places an operation found may be read without another call: recorded as places a row."""
        found = output[0] if isinstance(output, (list, tuple)) else output
        self.check_branch(name, found.shape[0] / self.n_rows, [])

    @property
    def n_rows(self) -> int:
        """Of the batch in this pass."""
        rows = self.rows
        return rows.n_sequences * rows.n_references if self._is_second else rows.n_sequences + rows.n_padding

    def by_row(self, call: Call) -> list[Any] | None:
        """What a question about a whole batch gives for each row alone; None where the first axis is not the rows."""
        return ask_by_row(call.function, call.args, call.kwargs, self.n_rows)

    def note_integration(self, name: str, n_nodes: int, error: float) -> None:
        """Tell the audit how many nodes an integrated operation needed."""
        if self._seen is not None:
            treatment = f"integrated, {n_nodes} nodes (error {error:.0e})"
            self._seen.operations[self.module_path(), name, treatment] += 1

    def finish(self, output: Any) -> None:
        """The pass is done.

        Raises:
            UnsupportedModelError: rows of the batch were mixed, where they are traced.
        """
        if self._trace is not None and (mixture := self._trace.finish(output)) is not None:
            raise UnsupportedModelError(mixture)

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Stop: this operation cannot be attributed."""
        raise UnsupportedModelError(f"operation {name!r} in {self.module_path()} is not supported: {reason}")

    def _refuse_inference(self, name: str) -> NoReturn:
        decorated = decorated_by(torch.inference_mode, self._modules)
        remove = (
            f"@torch.inference_mode from forward of {decorated}" if decorated else "torch.inference_mode from forward"
        )
        self.refuse(
            name, f"it runs in torch.inference_mode, where nothing can be followed; remove {remove} (no_grad may stay)"
        )

    def module_path(self) -> str:
        """Name of the innermost module whose code is running, from the call stack."""
        return module_path(self._modules)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Let operations pass unseen: a user's rule takes over for a whole module."""
        before, self.is_suspended = self.is_suspended, True
        try:
            yield
        finally:
            self.is_suspended = before

    @contextlib.contextmanager
    def listing(self) -> Iterator[Counter[tuple[str, str, str]]]:
        """Operations seen within, as an audit lists them.

        Raises:
            UnsupportedModelError: one was refused, and this is no audit.
        """
        outer, self._seen = self._seen, Seen()
        inner = self._seen
        try:
            yield inner.operations
        finally:
            self._seen = outer
            if outer is not None:
                outer.operations.update(inner.operations)
                outer.refusals += inner.refusals
            elif inner.refusals:
                raise UnsupportedModelError(inner.refusals[0])

    def do_as_one(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Do what is linear in all that varies as a single operation, and let nothing within be seen."""
        with torch.enable_grad(), self.suspended():
            output = function(*args)
            if self._trace is not None:
                self._trace.note(function, name, self.module_path(), args, {}, output)
        return output

    def _without_gradient(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call on nothing that carries a gradient: a constant, or a test of a mask that decides a branch."""
        if any(map(is_wrapped_by_functorch, args)):
            self.refuse(name, _UNDER_TORCH_FUNC)
        if name in names.SORTS:  # as lengths in pack_padded_sequence: equal ones stay in order, or rows would not pair
            named = dict(zip(("dim", "descending"), args[1:], strict=False))
            args, kwargs = args[:1], {**named, **kwargs, "stable": True}
        output = func(*args, **kwargs)
        if name in names.ZEROS:
            mark_zeros(output)
        if name in SHARES_OR_COPIES and self.formats.is_changed and not self.replaying:
            self.formats.watch(*(x for x in (*args[:1], output) if isinstance(x, Tensor)))
        if self.has_derived and any(map(is_derived, (*args, *kwargs.values()))):
            if name in names.KEEPS_MASKS and not isinstance(output, Tensor):
                self.check_branch(name, output, args, kept_by_row(args[0]))
            else:
                self._follow(name, args, kwargs, output)
        return output

    def _follow(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, keeps_constants: bool = False
    ) -> None:
        """See the use of what depends on the sequence without carrying a gradient."""
        is_derived, is_complex = mark(name, output, keeps_constants, self._refuse_inference)
        self.has_derived |= is_derived
        self._has_complex |= is_complex
        keep_by_row(name, args, kwargs, output, self.n_rows)
