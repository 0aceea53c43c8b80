"""Blocks of a model that are computed again on the way back, where what the rules keep of the whole does not fit.

A block is a module of the model. In both passes its operations run as ever, and of each pass nothing is kept but what
went into it. On the way back both passes go through the block once more, this time keeping what the rules need, so its
multipliers are those that they would have been, bit for bit: memory is that of the inputs of all blocks and of the
largest block, for the time of two more forward passes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dlshap_core.passes.derived import is_derived
from dlshap_core.passes.recorder import ForwardPass
from dlshap_core.passes.tape import Tape
from dlshap_core.rules.call import is_varying, replace_tensors, tensors_among, varying_tensors
from dlshap_core.rules.gradients import find_custom_function, reaches_others, recomputed
from dlshap_core.torch_private import version

_PARTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # of what is kept: how large a block may be, to choose among
_LEAST_GAIN = 2.0  # times its inputs: what the rules keep of a block for which it pays
# Of the whole and of a block, times what one pass keeps: what the other makes of it, gradients, and what operations
# need for themselves, which beside a block is more. Measured on convolutions and attention.
_OF_WHOLE, _OF_BLOCK = 1.25, 3.0
_AT_WORK = 4  # times the largest input of a module: beside what is kept


class CannotSplit(Exception):
    """A module cannot be computed again by itself: it changes its input, or lives on more than that."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name


@dataclass
class Called:
    """One call of a module, as `measured` saw it; numbers are bytes of one sequence.

    Attributes:
        name: of the module.
        inputs: what goes into it.
        kept: what the rules keep of it, its parts included.
        parts: calls within.
    """

    name: str
    inputs: int
    kept: int = 0
    parts: list["Called"] = field(default_factory=list)

    @property
    def largest_input(self) -> int:
        return max([self.inputs, *(part.largest_input for part in self.parts)])

    @property
    def n_bytes(self) -> int:
        """That a pair takes where all is kept, as it is estimated."""
        return int(_OF_WHOLE * self.kept) + _AT_WORK * self.largest_input

    @property
    def pays(self) -> bool:
        return self.kept >= _LEAST_GAIN * self.inputs and self.kept > 0


@dataclass(frozen=True)
class Split:
    """Which modules are computed again, and the bytes that a pair takes then, as they are estimated."""

    names: tuple[str, ...]
    n_bytes: int


def best_split(whole: Called) -> Split:
    """The blocks of a model that leave the least in memory; no names where there is none to be had."""
    splits = [_split(whole, whole.kept / parts) for parts in _PARTS]
    return min(splits, key=lambda split: split.n_bytes)


def _split(whole: Called, largest: float) -> Split:
    blocks = [block for part in whole.parts for block in _blocks(part, largest)]
    left = whole.kept - sum(block.kept for block in blocks)
    inputs = 2 * sum(block.inputs for block in blocks)  # of both passes
    most = max((block.kept for block in blocks), default=0)
    n_bytes = int(_OF_WHOLE * left + _OF_BLOCK * most) + inputs
    return Split(tuple(dict.fromkeys(block.name for block in blocks)), n_bytes)


def _blocks(call: Called, largest: float) -> list[Called]:
    """The call as one block, or those within, where these have most of what it keeps."""
    within = [block for part in call.parts for block in _blocks(part, largest)] if call.kept > largest else []
    if 2 * sum(block.kept for block in within) > call.kept:
        return within
    return [call] if call.pays else within


@contextlib.contextmanager
def _in_place_of_forward(modules: Sequence[tuple[str, nn.Module]], call: Callable[..., Any]) -> Iterator[None]:
    """Have call(name, forward, *args, **kwargs) run wherever one of these modules is called."""
    changed = [(name, module) for name, module in modules if "forward" not in module.__dict__]
    try:
        for name, module in changed:
            module.__dict__["forward"] = functools.partial(call, name, module.forward)
        yield
    finally:
        for _, module in changed:
            module.__dict__.pop("forward", None)


class Measure:
    """What the rules keep of each module, found by a pass that keeps nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(name, module) for name, module in model.named_modules() if name]
        self.whole = Called("", 0)

    @contextlib.contextmanager
    def installed(self, forward: ForwardPass) -> Iterator[None]:
        """Around a call of the model."""
        forward.is_dry = True
        stack = [self.whole]

        def call(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with forward.suspended():
                n_bytes = sum(x.nbytes for x in varying_tensors((args, kwargs)))
            this, before = Called(name, n_bytes), forward.n_recorded
            stack[-1].parts.append(this)
            stack.append(this)
            try:
                return function(*args, **kwargs)
            finally:
                stack.pop()
                this.kept = forward.n_recorded - before

        with _in_place_of_forward(self._modules, call):
            yield
        self.whole.kept = forward.n_recorded


class Blocks:
    """The blocks of a model.

    Args:
        model: borrowed.
        names: of its modules that are computed again.
        context: of a computation, such as autocast.
        nothing_saved: as around a first pass.

    Attributes:
        is_complete: whether the rules of the blocks make contributions sum up, by design, so far.
        custom_function: a custom autograd function within a block, once met.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        context: Callable[[], contextlib.AbstractContextManager[Any]],
        nothing_saved: Callable[[ForwardPass], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self._modules = {name: module for name, module in model.named_modules() if name in set(names)}
        self._context = context
        self._nothing_saved = nothing_saved
        self.is_complete = True
        self.custom_function: str | None = None

    def leave(self, name: str) -> None:
        """From now on this module is none."""
        self._modules.pop(name, None)

    @contextlib.contextmanager
    def installed(self, forward: ForwardPass, again: Callable[[Tape, bool], ForwardPass]) -> Iterator[None]:
        """Around a call of the model in one of the two passes; `again` makes passes over a block: (tape, replaying)."""
        with _in_place_of_forward(list(self._modules.items()), functools.partial(self._call, forward, again)):
            yield

    def _call(
        self,
        forward: ForwardPass,
        again: Callable[[Tape, bool], ForwardPass],
        name: str,
        function: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        given = (args, kwargs)
        inputs = varying_tensors(given)
        if forward.is_dry or forward.is_suspended or not inputs or tensors_among(given, is_derived):
            return function(*args, **kwargs)
        with forward.suspended():
            slot = torch.empty(0, requires_grad=True)
            empty = replace_tensors(given, lambda _: slot, is_varying)
        observed = forward.keep_inputs(name, inputs, empty)
        before = list(map(version, inputs))
        with forward.dry():
            outputs = function(*args, **kwargs)
        with forward.suspended():
            made = varying_tensors(outputs)
            if list(map(version, inputs)) != before:
                raise CannotSplit(name, "writes into its input")
            if tensors_among(outputs, is_derived):
                raise CannotSplit(name, "returns what carries no gradient")
            if reaches_others(made, inputs):
                raise CannotSplit(name, "reads more than its arguments")
            if observed is None or not made:
                return outputs
            block = _Block(self, name, function, again, empty, observed, _sums(made))
            fresh = iter(recomputed([forward.rows.keep(x) for x in inputs], made, block.go_back))
            return replace_tensors(outputs, lambda _: next(fresh), is_varying)

    def note_custom_function(self, outputs: Sequence[Tensor]) -> None:
        """Look for one in the graph of a block's outputs."""
        found = filter(None, map(find_custom_function, outputs))
        self.custom_function = self.custom_function or next(found, None)

    @contextlib.contextmanager
    def computing(self, forward: ForwardPass) -> Iterator[None]:
        """Around one of the two passes over a block."""
        saved = contextlib.nullcontext() if forward.replaying else self._nothing_saved(forward)
        watched = forward.formats.n_watched
        with torch.enable_grad(), self._context(), saved, forward:
            yield
        forward.formats.check_from(watched)


@dataclass(frozen=True)
class _Block:
    """A block between its second pass and the way back.

    Attributes:
        blocks: that it is one of.
        name: of its module.
        function: the module's forward.
        again: see `Blocks.installed`.
        given: its arguments, with empty tensors for those that vary.
        observed: gives what went into it in the first pass, and the other arguments.
        sums: of what came out of it in the second.
    """

    blocks: Blocks
    name: str
    function: Callable[..., Any]
    again: Callable[[Tape, bool], ForwardPass]
    given: Any
    observed: Callable[[], tuple[list[Tensor], Any]]
    sums: Tensor

    def go_back(self, gradients: Sequence[Tensor | None], references: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """What gradients at the outputs are at the inputs."""
        tape = Tape()
        inputs, given = self.observed()
        self._run(self.again(tape, False), [x.requires_grad_() for x in inputs], given)
        leaves = [r.detach().requires_grad_() for r in references]
        second = self.again(tape, True)
        outputs = self._run(second, leaves, self.given)
        tape.check_consumed()
        if not torch.equal(_sums(outputs).nan_to_num(), self.sums.nan_to_num()):
            raise CannotSplit(self.name, "computes something else when it is called again")
        self.blocks.is_complete &= second.is_complete
        self.blocks.note_custom_function(outputs)
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None]
        return torch.autograd.grad([y for y, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)

    def _run(self, forward: ForwardPass, inputs: list[Tensor], given: Any) -> list[Tensor]:
        replacements = iter(inputs)
        args, kwargs = replace_tensors(given, lambda _: next(replacements), is_varying)
        with self.blocks.computing(forward):
            return varying_tensors(self.function(*args, **kwargs))


def _sums(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.detach().sum(dtype=torch.float64) for x in tensors])
