"""Rules of comparisons and of what masks made from the input do.

A comparison (x > 0) is a step function of the difference of its operands. Its output is boolean and carries no
gradient, so it is given a number beside it: 1.0 or 0.0, whose multiplier is the step's secant

    m = (mask(x) - mask(r)) / (d(x) - d(r)),   d = left - right.

Where the mask is used (multiplied, converted, summed, in where or masked_fill) that number takes its place, so that
x * (x > 0) has the multiplier of a ReLU.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dlshap_core.rules.call import Call, is_varying, varying_tensors
from dlshap_core.rules.gradients import multiply, path_gradient, substitute
from dlshap_core.rules.kinds import Kind
from dlshap_core.rules.protocol import Pass

_NUMBER = "_dlshap_number"
_IS_MASK = "_dlshap_is_mask"

# A logit that is masked out by a mask made from the input: -inf on one side only would have no finite multiplier, and
# exp(-1e4) is 0 in every dtype.
_MASKED_OUT = 1e4


def number_of(mask: Any) -> Tensor | None:
    """The number that stands for a mask made from the input, if there is one."""
    return getattr(mask, _NUMBER, None) if isinstance(mask, Tensor) else None


def attach_number(mask: Tensor, number: Tensor) -> Tensor:
    """Give a boolean mask the number that stands for it."""
    setattr(number, _IS_MASK, True)
    setattr(mask, _NUMBER, number)
    return mask


def is_mask(x: Tensor) -> bool:
    """Whether a tensor is boolean, or the number of a boolean mask."""
    return x.dtype == torch.bool or hasattr(x, _IS_MASK)


def _as_number(x: Any, call: Call) -> Any:
    """An operand that can be subtracted: booleans as 0 and 1."""
    if isinstance(x, Tensor):
        return x.to(call.inputs[0].dtype) if x.dtype == torch.bool else x
    return float(x) if isinstance(x, bool) else x


def _require_mask(forward: Pass, call: Call) -> None:
    """Logic on numbers that are neither 0 nor 1 would need a comparison first."""
    for x in call.inputs:
        if not is_mask(x) and not bool(((x == 0) | (x == 1)).all()):
            forward.refuse(call.name, "it takes numbers that depend on the input for truth values; compare them with 0")


class Comparison(Kind):
    """gt, ge, lt, le, eq, ne of operands that vary."""

    label = "step: secant"

    def run(self, forward: Pass, call: Call) -> Any:
        with forward:
            left, right = call.named("input", "other")
            difference = _as_number(left, call) - _as_number(right, call)
        mask = call.with_inputs(x.detach() for x in call.inputs)
        value = mask.to(difference.dtype)
        if not forward.replaying:
            forward.record(call, [difference, value])
            return self._finish(call, mask, substitute(difference, value))
        observed, observed_value = forward.observed(call, [difference, value])
        change = observed - difference.detach()
        multiplier = torch.where(observed_value == value, 0.0, (observed_value - value) / change)
        return self._finish(call, mask, multiply(difference, value, multiplier))

    @staticmethod
    def _finish(call: Call, mask: Tensor, number: Tensor) -> Tensor:
        return call.finish(number) if call.in_place else attach_number(mask, number)


class Negation(Kind):
    """logical_not and ~ of a mask: one minus its number."""

    label = "mask"

    def run(self, forward: Pass, call: Call) -> Any:
        (number,) = call.inputs
        _require_mask(forward, call)
        return attach_number(number.detach() == 0, 1 - number)


class Combination(Kind):
    """Logical and, or, xor of masks: ab, a + b - ab, a + b - 2ab."""

    label = "mask: product"

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def run(self, forward: Pass, call: Call) -> Any:
        _require_mask(forward, call)
        dtype = call.inputs[0].dtype
        left, right = (x if x.dtype == dtype else x.to(dtype) for x in call.args[:2])
        with forward:
            both = left * right
            number = both if self._operation == "and" else left + right - both * (2 if self._operation == "xor" else 1)
        return attach_number(number.detach() != 0, number)


class Select(Kind):
    """where(c, a, b) with a condition that varies: c a + (1 - c) b with midpoint products.

    The unselected branch may be undefined (where(x > 0, log(x), 0)); it has coefficient 0, so any finite number may
    stand for it, and nothing is passed back to it.
    """

    label = "where: midpoint"

    def run(self, forward: Pass, call: Call) -> Any:
        condition, chosen, other = self._operands(forward, call)
        if not is_varying(condition):
            return call.plain()
        if any(isinstance(x, Tensor) and x.is_complex() for x in (chosen, other)):
            return call.finish(self._by_parts(forward, condition, chosen, other))
        dtype = next((x.dtype for x in (chosen, other) if isinstance(x, Tensor)), condition.dtype)
        dtype = dtype if dtype.is_floating_point else condition.dtype
        operands = [torch.as_tensor(x, dtype=dtype, device=condition.device) for x in (condition, chosen, other)]
        operands = [x if x.requires_grad else _finite(x) for x in operands]
        operands = list(torch.broadcast_tensors(*operands))
        value = torch.where(operands[0].detach() != 0, operands[1].detach(), operands[2].detach())
        varying = [x for x in operands if x.requires_grad]
        if not forward.replaying:
            forward.record(call, varying)
            return call.finish(torch.where(operands[0].detach() != 0, operands[1], operands[2]) + 0 * operands[0])
        observed = forward.observed(call, varying)
        observed_operands = _in_place_of_varying(operands, observed)
        reference_operands = [x.detach() for x in operands]
        flips = observed_operands[0] != reference_operands[0]
        defined = [
            x.isfinite() & r.isfinite() for x, r in zip(observed_operands[1:], reference_operands[1:], strict=True)
        ]
        all_to_condition = flips & ~(defined[0] & defined[1])
        observed_value = torch.where(observed_operands[0] != 0, observed_operands[1], observed_operands[2])
        # Where the condition gets it all, each branch stands still at the value it has on the side that selects it.
        picked = reference_operands[0] != 0
        stand_in = [torch.where(picked, value, observed_value), torch.where(picked, observed_value, value)]
        ends = [(observed_operands[0], operands[0])]
        for ok, still, x, r in zip(defined, stand_in, observed_operands[1:], operands[1:], strict=True):
            followed, still = ok & ~all_to_condition, torch.where(all_to_condition, still, 0.0)
            ends.append((torch.where(followed, x, still), torch.where(followed, r, still)))
        varying_ends = [end for end, operand in zip(ends, operands, strict=True) if operand.requires_grad]
        constants = [r for _, r in ends]  # replaced by points where they vary

        def select(*points: Tensor) -> Tensor:
            c, a, b = _in_place_of_varying(constants, list(points))
            return c * a + (1 - c) * b

        return call.finish(path_gradient(select, [x for x, _ in varying_ends], [r for _, r in varying_ends], value))

    @staticmethod
    def _by_parts(forward: Pass, condition: Tensor, chosen: Any, other: Any) -> Tensor:
        with forward:
            real = torch.where(condition, chosen.real, other.real)
            return torch.complex(real, torch.where(condition, _imaginary(chosen), _imaginary(other)))

    @staticmethod
    def _operands(forward: Pass, call: Call) -> tuple[Tensor, Any, Any]:
        """(condition, value where it holds, value elsewhere) of where, x.where, masked_fill or x[mask] = value."""
        if len(call.args) + len(call.kwargs) != 3:
            forward.refuse(call.name, "the places where a mask made from the input holds jump with it")
        if call.name == "where":
            condition, chosen, other = call.named("condition", "input", "other")
        elif call.name == "Tensor.where":
            chosen, condition, other = call.named("input", "condition", "other")
        else:
            other, condition, chosen = call.named("input", "mask", "value")
        return condition, chosen, other


def _imaginary(x: Any) -> Any:
    return 0.0 if isinstance(x, Tensor) and not x.is_complex() else x.imag


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=math.nan, posinf=_MASKED_OUT, neginf=-_MASKED_OUT)


def _in_place_of_varying(operands: list[Tensor], replacements: list[Tensor]) -> list[Tensor]:
    """The operands with the replacements where they vary."""
    remaining = iter(replacements)
    return [next(remaining) if x.requires_grad else x for x in operands]


class SelectOrAssign(Kind):
    """x[...] = value: linear, unless the place is a mask made from the input."""

    label = "assignment"

    def run(self, forward: Pass, call: Call) -> Any:
        target, place, value = call.args
        if not is_varying(place):
            if varying_tensors((place,)):
                forward.refuse(call.name, "its index is made from the input, so where it writes jumps with the input")
            if not (target.is_floating_point() or target.is_complex()):
                forward.refuse(call.name, f"it writes what depends on the input into a tensor of {target.dtype}")
            return call.plain()
        if isinstance(value, Tensor) and value.ndim > 0:
            forward.refuse(call.name, "x[mask] = value takes a single value where the mask is made from the input")
        Select().run(forward, call)
        return None
