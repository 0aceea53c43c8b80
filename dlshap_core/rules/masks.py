"""Rules of comparisons and of what masks made from the input do.

A comparison (x > 0) is a step function of the difference of its operands. Its output is boolean and carries no
gradient, so it is given a number beside it: 1.0 or 0.0, whose multiplier is the step's secant

    m = (mask(x) - mask(r)) / (d(x) - d(r)),   d = left - right.

Where the mask is used (multiplied, converted, summed, in where or masked_fill) that number takes its place, so that
x * (x > 0) has the multiplier of a ReLU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dlshap_core.rules import operators, secants
from dlshap_core.rules.call import Call, as_operand, is_varying, varying_tensors
from dlshap_core.rules.gradients import between, multiply, path_gradient, pull_back, pull_back_to, substitute
from dlshap_core.rules.kinds import Kind
from dlshap_core.rules.protocol import Pass
from dlshap_core.torch_private import version

_NUMBER = "_dlshap_number"
_IS_MASK = "_dlshap_is_mask"
_STEP = "_dlshap_step"

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


@dataclass(frozen=True)
class _Step:
    """What the number of a mask was made of, where the mask compares a source with a constant.

    Attributes:
        mask: boolean, without a number of its own.
        source: what is compared.
        levels: the mask as a number where the source is below the constant, at it and above; and the constant.
        versions: of the number and the source.
    """

    mask: Tensor
    source: Tensor
    levels: tuple[float, ...]
    versions: tuple[int | None, int | None]

    @classmethod
    def of(cls, number: Tensor) -> Self | None:
        """None where a number has another origin, or the model wrote into it or its source since."""
        step: Self | None = getattr(number, _STEP, None)
        is_as_made = step is not None and step.versions == (version(number), version(step.source))
        return step if is_as_made else None


class Comparison(Kind):
    """gt, ge, lt, le, eq, ne of operands that vary.

    Args:
        levels: the mask as a number where the difference of the operands is below 0, at 0 and above.
    """

    label = "step: secant"

    def __init__(self, *levels: float) -> None:
        self._levels = levels

    def run(self, forward: Pass, call: Call) -> Any:
        left, right = call.named("input", "other")
        if operators.is_for(call.inputs[0]) and isinstance(right, (int, float)) and left.is_floating_point():
            mask = call.with_inputs([left.detach()])
            at = torch.tensor(float(right), dtype=left.dtype).item()  # as torch rounds it
            return self._late(forward, call, mask, left, at)
        with forward:
            difference = _as_number(left, call) - _as_number(right, call)
        mask = call.with_inputs(x.detach() for x in call.inputs)
        if operators.is_for(difference):
            return self._late(forward, call, mask, difference, 0.0)
        value = mask.to(difference.dtype)
        if not forward.replaying:
            forward.record(call, [difference, value])
            return self._finish(call, mask, substitute(difference, value))
        observed, observed_value = forward.observed(call, [difference, value])
        change = observed - difference.detach()
        multiplier = torch.where(observed_value == value, 0.0, (observed_value - value) / change)
        return self._finish(call, mask, multiply(difference, value, multiplier))

    def _late(self, forward: Pass, call: Call, mask: Tensor, source: Tensor, at: float) -> Tensor:
        """The mask of a source that is compared with `at`; its number is taken back by an operator."""
        levels, shape, value = (*self._levels, at), source.shape, mask.to(source.dtype)
        if forward.replaying:
            (observed,) = forward.recorded(call.name, 1)
            x, r = forward.rows.paired(observed, source.detach())

            def pullback(gradient: Tensor, x: Tensor, r: Tensor) -> Tensor:
                return operators.secant(gradient.reshape(r.shape), x, r, "jump", levels).reshape(shape)

            number = pull_back(source, value, pullback, x, forward.rows.keep(r, call.in_place))
        else:
            forward.record(call, [source])
            number = substitute(source, value)
        if not call.in_place:
            setattr(number, _STEP, _Step(mask.view_as(mask), source, levels, (version(number), version(source))))
        return self._finish(call, mask, number)

    @staticmethod
    def _finish(call: Call, mask: Tensor, number: Tensor) -> Tensor:
        return call.finish(number) if call.in_place else attach_number(mask, number)


class Negation(Kind):
    """logical_not and ~ of a mask: one minus its number."""

    label = "mask"

    def run(self, forward: Pass, call: Call) -> Any:
        (number,) = call.inputs
        _require_mask(forward, call)
        return _finish(call, 1 - number)


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
        return _finish(call, number)


def _finish(call: Call, number: Tensor) -> Tensor:
    """A mask by its number; written back where the model asked for an operation in place, on a mask made from the
    input, whose number the call has in its place, or on a constant one."""
    if call.in_place and is_varying(call.args[0]):
        finished: Tensor = call.finish(number)
        return finished
    mask = number.detach() != 0
    return attach_number(call.args[0].copy_(mask) if call.in_place else mask, number)


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
        is_of_numbers = not any(isinstance(x, Tensor) for x in (chosen, other))
        dtype = condition.dtype if is_of_numbers else torch.result_type(chosen, other)
        dtype = dtype if dtype.is_floating_point else condition.dtype
        operands = [_finite(x, dtype, condition.device) for x in (condition, chosen, other)]
        if operators.is_for(condition):
            return call.finish(self._late(forward, call, operands))
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
    def _late(forward: Pass, call: Call, operands: list[Tensor]) -> Tensor:
        """By an operator, while going back; a gradient of a mask that is a step goes to its source at once."""
        step = _Step.of(operands[0])
        mask = operands[0].detach() != 0 if step is None else step.mask
        levels = () if step is None else step.levels
        value = torch.where(mask, operands[1].detach(), operands[2].detach())
        branches: list[Tensor | None] = list(operands[1:])
        source = operands[0] if step is None else step.source
        if step is not None and source.shape == value.shape:  # where(x > 0, x, ...): what is None is the source
            branches = [None if x is source else x for x in branches]
        # A single number is read as such.
        given = [x if x is None or _is_number(x) else x.expand(value.shape) for x in (source, *branches)]
        varies = [x is not None and x.requires_grad for x in given]
        varying = [x for x in given if x is not None and x.requires_grad]
        if not forward.replaying:
            forward.record(call, varying)
            return pull_back_to(varying, value, lambda gradient: (gradient,) * len(varying))
        recorded = iter(forward.recorded(call.name, len(varying)))
        observed: list[Tensor] = []
        reference: list[Tensor | None] = []
        for x in given:
            if x is not None and x.requires_grad:
                pair = forward.rows.paired(next(recorded), x.detach())
                observed.append(pair[0])
                reference.append(forward.rows.keep(pair[1], call.in_place))
            else:
                reference.append(x if x is None or _is_number(x) else x.reshape(pair[1].shape))
        is_there = [x is not None for x in reference]

        def pullback(gradient: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            sides = iter(kept)
            c_r, a_r, b_r = (next(sides) if is_kept else None for is_kept in is_there)
            c_x, a_x, b_x = (next(sides) if has_sides else None for has_sides in varies)
            flowing = gradient.reshape(kept[0].shape)
            found = _back_through_select(flowing, c_x, c_r, a_x, a_r, b_x, b_r, levels)
            return tuple(z.reshape(gradient.shape) for z in found)

        return pull_back_to(varying, value, pullback, *(x for x in reference if x is not None), *observed)

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


def select_multipliers(
    c_x: Tensor,
    c_r: Tensor,
    a_x: Tensor | None,
    a_r: Tensor | None,
    b_x: Tensor | None,
    b_r: Tensor | None,
    levels: Sequence[float] = (),
) -> list[Tensor]:
    """Those of the condition and of the branches that vary, which have an observed side: midpoint products.

    Where the condition flips and a branch is not finite on both sides, the condition gets it all, and each branch
    stands still at the value it has on the side that selects it. With `levels` (see `_Step`) c is not the condition but
    the source that it compares with a number, and the first multiplier is the source's. A branch without any side is
    that source, too.
    """
    of_step, are_source = None, [a_r is None, b_r is None]
    (a_x, a_r), (b_x, b_r) = ((c_x, c_r) if r is None else (x, r) for x, r in ((a_x, a_r), (b_x, b_r)))
    if levels:
        of_step = secants.jump(c_x, c_r, *levels)
        c_x, c_r = (secants.level(c, *levels) for c in (c_x, c_r))
    other_a, other_b = a_r if a_x is None else a_x, b_r if b_x is None else b_x
    has_a, has_b = (x.isfinite() & r.isfinite() for x, r in ((other_a, a_r), (other_b, b_r)))
    all_to_c = (c_x != c_r) & ~(has_a & has_b)
    picked = c_r != 0
    value, other_value = torch.where(picked, a_r, b_r), torch.where(c_x != 0, other_a, other_b)
    still_a = torch.where(all_to_c, torch.where(picked, value, other_value), 0.0)
    still_b = torch.where(all_to_c, torch.where(picked, other_value, value), 0.0)
    follows_a, follows_b = has_a & ~all_to_c, has_b & ~all_to_c
    middle_a = torch.where(follows_a, between(a_r, other_a, 0.5), between(still_a, still_a, 0.5))
    middle_b = torch.where(follows_b, between(b_r, other_b, 0.5), between(still_b, still_b, 0.5))
    middle_c = between(c_r, c_x, 0.5)
    to_c = middle_a - middle_b if of_step is None else (middle_a - middle_b) * of_step
    found = []
    shares = torch.where(follows_a, middle_c, 0.0), torch.where(follows_b, 1 - middle_c, 0.0)
    for x, share, is_source in zip((a_x, b_x), shares, are_source, strict=True):
        if is_source:
            to_c = to_c + share
        elif x is not None:
            found.append(share)
    return [to_c, *found]


def _select_by_torch(gradient: Tensor, *operands: Any) -> list[Tensor]:
    wide: Any = (operators.at_least_float32(x) if isinstance(x, Tensor) else x for x in operands)
    return [(gradient * m).to(gradient.dtype) for m in select_multipliers(*wide)]


def _select_by_triton(gradient: Tensor, *operands: Any) -> list[Tensor]:
    from dlshap_core.kernels import triton_pairs

    return triton_pairs.select(gradient, operands[:2], operands[2:4], operands[4:6], operands[6])


# The gradients of what varies; a constant branch has no observed side, and may be a single number; one without any side
# is the source.
_back_through_select = operators.define(
    "select(Tensor gradient, Tensor c_x, Tensor c_r, Tensor? a_x, Tensor? a_r, Tensor? b_x, Tensor? b_r, "
    "float[] levels) -> Tensor[]",
    _select_by_torch,
    _select_by_triton,
)


def _is_number(x: Tensor) -> bool:
    return x.numel() == 1 and not x.requires_grad


def _imaginary(x: Any) -> Any:
    return 0.0 if isinstance(x, Tensor) and not x.is_complex() else x.imag


def _finite(x: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An operand as a tensor; of a constant with finite numbers for infinities."""
    if not isinstance(x, Tensor):
        x = math.copysign(_MASKED_OUT, x) if math.isinf(x) else x
        return as_operand(x, dtype, device)
    x = as_operand(x, dtype, device)
    return x if x.requires_grad else x.nan_to_num(nan=math.nan, posinf=_MASKED_OUT, neginf=-_MASKED_OUT)


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
