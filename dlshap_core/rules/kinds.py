"""Kinds of treatment an operation can get. Each knows what to do in the observing and in the replaying pass.

Observing (the sequences alone): compute as usual, record what the rule will need. Replaying (the references): take the
record back as the other end of each difference, compute the reference's value, and set what flows back.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlshap_core.errors import UnsupportedModelError
from dlshap_core.gradients import (
    between,
    gauss_legendre,
    multiply,
    path_gradient,
    pull_back_late,
    pull_back_to_two,
    substitute,
)
from dlshap_core.rules import fused
from dlshap_core.rules.arithmetic import quotient_multipliers
from dlshap_core.rules.secants import average_derivative

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
        return call.plain()


@dataclass(frozen=True)
class Detached(Kind):
    """detach and .data: the value still depends on the sequence, so it is followed as if it were not detached."""

    label: str = "detach followed"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        return call.inputs[0].view_as(call.inputs[0])


@dataclass(frozen=True)
class Multilinear(Kind):
    """Linear in each factor: plain where one factor varies, else averaged along the path (midpoint for two factors)."""

    label: str = "product: midpoint"

    def describe(self, call: Call) -> str:
        return "linear" if len(call.inputs) == 1 else self.label

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if len(call.inputs) == 1:
            return call.plain()
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        observed = forward.observed(call)
        value = call.with_inputs(x.detach() for x in call.inputs)
        n_nodes = math.ceil(len(call.inputs) / 2)
        return call.finish(
            path_gradient(lambda *points: call.with_inputs(points), observed, call.inputs, value, n_nodes)
        )


@dataclass(frozen=True)
class Product(Multilinear):
    """Products and matrix products of two tensors: the midpoint rule written out.

    dy = da (b + b0)/2 + (a + a0)/2 db. What the path would compute of the product at its middle is not needed.
    """

    is_of_matrices: bool = False

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if not forward.replaying or call.kwargs or len(call.args) != 2 or not self._fits(call.inputs):
            return super().run(forward, call)
        first, second = call.inputs
        observed = forward.recorded(call.name, 2)
        value = call.with_inputs([first.detach(), second.detach()])
        mean_a, mean_b = (self._mean(forward, x, r.detach()) for x, r in zip(observed, call.inputs, strict=True))

        def pullback(gradient: Tensor) -> tuple[Tensor, Tensor]:
            if self.is_of_matrices:
                return gradient @ mean_b.mT, mean_a.mT @ gradient
            return (gradient * mean_b).sum_to_size(mean_a.shape), (gradient * mean_a).sum_to_size(mean_b.shape)

        return call.finish(pull_back_to_two(first, second, value, pullback))

    def _fits(self, inputs: list[Tensor]) -> bool:
        """Two tensors of one dtype; matrices without broadcasting."""
        if len(inputs) != 2 or inputs[0].dtype != inputs[1].dtype or torch.is_autocast_enabled(inputs[0].device.type):
            return False
        first, second = inputs
        return not self.is_of_matrices or (first.ndim == second.ndim >= 2 and first.shape[:-2] == second.shape[:-2])

    def _mean(self, forward: "ForwardPass", observed: Tensor, reference: Tensor) -> Tensor:
        """Of the shape of the reference, with infinities made finite, as in `between`."""
        x, r = forward.rows.beside(observed, reference)
        mean = torch.add(x / 2, r, alpha=0.5).reshape(reference.shape)
        if self.is_of_matrices:  # an infinite factor makes the product itself NaN
            return mean
        largest = min(1e30, torch.finfo(reference.dtype).max)
        return mean.clamp_(-largest, largest)


@dataclass(frozen=True)
class Elementwise(Kind):
    """An elementwise function of one tensor: its secant (rules.secants)."""

    secant: Callable[..., Tensor]
    label: str = "elementwise: secant"
    kernel: fused.Kernel | None = None  # the same, where a gradient goes back through it on a CPU
    smooth: Callable[..., Tensor] | None = None  # the function itself, where it has derivatives of all orders
    kinked: Callable[..., Tensor] | None = None  # the function itself, where it has kinks

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        rest = call.first_input_only()
        if rest is None:
            return INTEGRATED.run(forward, call)
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        args, kwargs = rest
        (reference,) = call.inputs
        value = call.with_inputs([reference.detach()])
        has_tensor_arguments = any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))
        observed, reference_view = forward.observed_beside(call, expand=has_tensor_arguments)
        fits = fused.fits(observed, reference_view) and value.dtype == reference.dtype
        if fits and self.kernel is not None and not kwargs:
            kept = reference_view.clone() if call.in_place else forward.rows.keep(reference_view)
            pullback = functools.partial(fused.pull_back, self.kernel, rest=args)
            return call.finish(pull_back_late(reference, value, pullback, observed, kept))
        if fits and not has_tensor_arguments and (plain := self.smooth or self.kinked) is not None:

            def function(x: Tensor) -> Tensor:
                return plain(x, *args, **kwargs)

            def of_close(x: Tensor, r: Tensor) -> Tensor:
                return average_derivative(function, x, r) if self.smooth else self.secant(x, r, *args, **kwargs)

            multiplier = fused.secant(function, of_close, observed, reference_view, value)
            return call.finish(multiply(reference, value, multiplier.view(value.shape)))
        multiplier = self.secant(_at_least_float32(observed), _at_least_float32(reference_view), *args, **kwargs)
        if value.shape != reference.shape:  # broadcast to a tensor argument; autograd adds up what flows back
            reference = reference.expand(value.shape)
        return call.finish(multiply(reference, value, multiplier.reshape(value.shape)))


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
class Quotient(Kind):
    """Linear where the denominator is constant, else arithmetic.quotient_multipliers."""

    label: str = "quotient"

    def describe(self, call: Call) -> str:
        return "linear" if self._is_linear(call) else self.label

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if call.kwargs.get("rounding_mode") is not None:
            forward.refuse(call.name, f"with rounding_mode={call.kwargs['rounding_mode']!r} it jumps with its input")
        if self._is_linear(call):
            return call.plain()
        numerator, denominator = self._operands(call)
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        value = call.with_inputs(x.detach() for x in call.inputs)
        observed = iter(forward.observed(call))
        a_r = torch.as_tensor(numerator, dtype=denominator.dtype, device=denominator.device)
        a_x = next(observed) if is_varying(numerator) else a_r
        m_a, m_b = quotient_multipliers(a_x, next(observed), a_r.detach(), denominator.detach())
        return call.finish(substitute(m_a * a_r + m_b * denominator, value))

    @classmethod
    def _is_linear(cls, call: Call) -> bool:
        return not is_varying(cls._operands(call)[1])

    @staticmethod
    def _operands(call: Call) -> tuple[Any, Any]:
        numerator = call.args[0] if call.args else call.kwargs["input"]
        return numerator, call.args[1] if len(call.args) > 1 else call.kwargs["other"]


@dataclass(frozen=True)
class Power(Kind):
    """A constant power is elementwise; a constant base or two varying operands are exp(b log a)."""

    elementwise: Elementwise
    of_base: Spelled
    label: str = "power"

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs["exponent"]
        return (self.of_base if is_varying(exponent) else self.elementwise).run(forward, call)


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


@dataclass(frozen=True)
class Integrated(Kind):
    """No rule is known: the local integrated gradient, nodes doubled until it sums to the operation's difference."""

    label: str = "integrated"
    tolerance: float = 1e-7
    largest: int = 128

    def run(self, forward: "ForwardPass", call: Call) -> Any:
        if not forward.replaying:
            forward.record(call)
            output = call.plain()
            if not isinstance(output, Tensor) or not output.is_floating_point():
                forward.refuse(call.name, "no rule is known for it, and its output is not one real tensor")
            return output
        observed = forward.observed(call)
        value = call.with_inputs(x.detach() for x in call.inputs)
        n_nodes = self._nodes_needed(forward, call, observed, value)
        output = path_gradient(lambda *points: call.with_inputs(points), observed, call.inputs, value, n_nodes)
        return call.finish(output)

    def _nodes_needed(self, forward: "ForwardPass", call: Call, observed: list[Tensor], value: Tensor) -> int:
        """The fewest nodes, by doubling, whose sum agrees with the difference of outputs."""
        n_nodes, error = 1, math.inf
        try:
            target = (call.with_inputs(observed).detach() - value).double()
            size = max(target.abs().max().item(), torch.finfo(value.dtype).tiny)
            tolerance = self.tolerance * size + 100 * torch.finfo(value.dtype).eps * value.abs().max().item()
            while n_nodes <= self.largest:
                missing = (self._path_sum(call, observed, value, n_nodes) - target).abs().max().item()
                error = missing / size
                if missing <= tolerance:
                    forward.note_integration(call.name, n_nodes, error)
                    return n_nodes
                n_nodes *= 2
        except (RuntimeError, NotImplementedError) as problem:
            forward.refuse(call.name, f"no rule is known for it, and it cannot be integrated: {problem}")
        return forward.refuse(
            call.name,
            f"no rule is known for it, and with {self.largest} nodes its integrated gradient still misses its own "
            f"difference by {error:.1e} of it",
        )

    @staticmethod
    def _path_sum(call: Call, observed: list[Tensor], value: Tensor, n_nodes: int) -> Tensor:
        """sum of J (x - r) over the path, element by element of the output: a directional derivative at each node."""
        references = [r.detach() for r in call.inputs]
        steps = tuple(x - r for x, r in zip(observed, references, strict=True))
        probe = torch.zeros_like(value, requires_grad=True)
        total = torch.zeros_like(value, dtype=torch.float64)
        for t, weight in gauss_legendre(n_nodes):
            points = [between(r, x, t).requires_grad_() for x, r in zip(observed, references, strict=True)]
            with torch.enable_grad():
                gradients = torch.autograd.grad(call.with_inputs(points), points, probe, create_graph=True)
                along = torch.stack([(g * step).sum() for g, step in zip(gradients, steps, strict=True)]).sum()
                total += weight * torch.autograd.grad(along, probe)[0].double()
        return total


INTEGRATED = Integrated()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
