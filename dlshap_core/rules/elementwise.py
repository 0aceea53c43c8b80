"""Elementwise functions of one tensor, and powers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.memory_format import order_in_memory, put_back
from dlshap_core.rules import operators
from dlshap_core.rules.call import Call, is_varying
from dlshap_core.rules.gradients import pull_back, pull_back_in_place, scale
from dlshap_core.rules.integrated import INTEGRATED
from dlshap_core.rules.kinds import Composite, Kind, PairRule
from dlshap_core.rules.operators import at_least_float32
from dlshap_core.rules.protocol import Pass
from dlshap_core.rules.rows import RowPairing
from dlshap_core.rules.secants import STEPS, average_derivative, ramp

_PART = 1 << 18  # elements, a multiple of every vector's length, so that parts have the bits of the whole


@dataclass(frozen=True)
class Elementwise(Kind):
    """An elementwise function of one tensor: its secant (rules.secants)."""

    secant: Callable[..., Tensor]
    label: str = "elementwise: secant"
    kernel: fused.Kernel | None = None  # the same, where a gradient goes back through it on a CPU
    in_single: fused.InSingle | None = None  # the same in single precision, of the function by default
    smooth: Callable[..., Tensor] | None = None  # the function itself, where it has derivatives of all orders
    kinked: Callable[..., Tensor] | None = None  # the function itself, where it has kinks

    def run(self, forward: Pass, call: Call) -> Any:
        rest = call.first_input_only()
        if rest is None:
            return INTEGRATED.run(forward, call)
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        args, kwargs = rest
        (reference,) = call.inputs
        has_tensor_arguments = any(isinstance(x, Tensor) for x in (*args, *kwargs.values()))
        observed, reference_view = forward.observed_pair(call, expand=has_tensor_arguments)
        value = reference.detach() if call.in_place else call.with_inputs([reference.detach()])
        fits = fused.fits(observed, reference_view) and value.dtype == reference.dtype
        rule = None
        if operators.is_for(reference) and value.shape == reference.shape:
            rule = operators.of_secant(self.secant, args, kwargs)
        kernel = None
        if self.kernel is not None and fits and not has_tensor_arguments:
            kernel = functools.partial(self.kernel, **kwargs)

        def go_back(pullback: Callable[..., Tensor], *kept: Tensor) -> Tensor:
            if call.in_place:
                return pull_back_in_place(reference, call.overwrite, pullback, *kept)
            return pull_back(reference, value, pullback, *kept)

        is_default = not args and kwargs in ({}, {"approximate": "none"})
        in_single = self.in_single if fits and is_default and reference.dtype == torch.float32 else None

        def of_reference() -> Tensor:
            return call.with_inputs([reference.detach()]) if call.in_place else value

        values = [of_reference()] if in_single is not None and in_single.function is not None else []
        is_late = rule is not None or ((kernel is not None or in_single is not None) and forward.rows.goes_back_once)
        # Of one pair the multipliers take half the memory of what they are made of; of more the sequences take little.
        if not forward.rows.is_one_pair and is_late:
            kept = forward.rows.keep(reference_view, call.in_place)
            if rule is not None:
                return go_back(functools.partial(_back_by_operator, rule=rule), observed, kept)
            if in_single is not None:
                return go_back(in_single, observed, kept, *map(forward.rows.keep, values))
            assert kernel is not None
            return go_back(functools.partial(fused.pull_back, kernel, rest=args), observed, kept)
        if rule is not None:
            multiplier = operators.secant(None, observed, reference_view, *rule)
        elif in_single is not None:
            multiplier = in_single(torch.ones_like(reference_view), observed, reference_view, *values)
        elif kernel is not None:
            multiplier = fused.multipliers(kernel, observed, reference_view, args)
        elif fits and not has_tensor_arguments and (plain := self.smooth or self.kinked) is not None:
            multiplier = self._in_one_pass(plain, observed, reference_view, of_reference(), args, kwargs)
        else:
            multiplier = self._by_parts(observed, reference_view, args, kwargs, is_whole=has_tensor_arguments)
        if value.shape != reference.shape:  # broadcast to a tensor argument; autograd adds up what flows back
            reference = reference.expand(value.shape)
        return go_back(scale, multiplier.reshape(value.shape).detach())

    def _by_parts(
        self, observed: Tensor, reference: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], is_whole: bool
    ) -> Tensor:
        """The secant; of two large activations of one shape part by part, as it has some ten others beside them."""
        order = order_in_memory(reference)
        x, r = observed.permute(order) if observed.ndim == reference.ndim else observed, reference.permute(order)
        is_flat = x.shape == r.shape and x.is_contiguous() and r.is_contiguous()
        if is_whole or not is_flat or r.numel() <= _PART:
            return self.secant(at_least_float32(observed), at_least_float32(reference), *args, **kwargs)
        parts = zip(x.view(-1).split(_PART), r.view(-1).split(_PART), strict=True)
        multipliers = [self.secant(at_least_float32(x), at_least_float32(r), *args, **kwargs) for x, r in parts]
        return put_back(torch.cat(multipliers).view(r.shape), order)

    def _in_one_pass(
        self,
        plain: Callable[..., Tensor],
        observed: Tensor,
        reference: Tensor,
        value: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        def function(x: Tensor) -> Tensor:
            return plain(x, *args, **kwargs)

        def of_close(x: Tensor, r: Tensor) -> Tensor:
            return average_derivative(function, x, r) if self.smooth else self.secant(x, r, *args, **kwargs)

        return fused.secant(function, of_close, observed, reference, value, STEPS[reference.dtype])


@dataclass(frozen=True)
class Power(Kind):
    """A constant power is elementwise; a constant base or two varying operands are exp(b log a)."""

    elementwise: Elementwise
    of_base: Composite
    label: str = "power"

    def run(self, forward: Pass, call: Call) -> Any:
        exponent = call.args[1] if len(call.args) > 1 else call.kwargs["exponent"]
        return (self.of_base if is_varying(exponent) else self.elementwise).run(forward, call)


def prelu(rows: RowPairing, observed: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Slope 1 above 0 and the weight below, each for its share of [r, x]; the weight is one number, or one for each
    channel (axis 1)."""
    value, shape = torch.prelu(reference.detach(), weight), reference.shape
    x, r = rows.paired(observed, reference.detach())
    slope = at_least_float32(weight)
    if weight.numel() > 1:
        slope = slope.reshape(1, -1, *[1] * (reference.ndim - 2))

    def pullback(gradient: Tensor, x: Tensor, r: Tensor, slope: Tensor) -> Tensor:
        if operators.is_for(r):
            positive = operators.secant(None, x, r, "ramp", ())
        elif fused.fits(x, r):
            positive = fused.multipliers(fused.relu, x, r, ())
        else:
            positive = ramp(at_least_float32(x), at_least_float32(r))
        return scale(gradient, torch.addcmul(slope, positive.reshape(shape), 1 - slope))

    return pull_back(reference, value, pullback, x, rows.keep(r), slope)


@dataclass(frozen=True)
class Prelu(PairRule):
    """`prelu`; slopes that depend on the sequence are integrated over."""

    def run(self, forward: Pass, call: Call) -> Any:
        if is_varying(call.named("input", "weight")[1]):
            return INTEGRATED.run(forward, call)
        return super().run(forward, call)


def _back_by_operator(gradient: Tensor, x: Tensor, r: Tensor, rule: tuple[str, tuple[float, ...]]) -> Tensor:
    return operators.secant(gradient.view(r.shape), x, r, *rule).reshape(gradient.shape)
