"""Products and quotients of tensors that vary, by the midpoint rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.kernels import fused
from dlshap_core.kernels.memory_format import has_channels_last
from dlshap_core.rules import operators
from dlshap_core.rules.arithmetic import FAR, quotient_multipliers
from dlshap_core.rules.call import Call, as_operand, is_varying
from dlshap_core.rules.gradients import path_gradient, pull_back_to, substitute
from dlshap_core.rules.kinds import Kind
from dlshap_core.rules.protocol import Pass


@dataclass(frozen=True)
class Multilinear(Kind):
    """Linear in each factor: plain where one factor varies, else averaged along the path (midpoint for two factors)."""

    label: str = "product: midpoint"

    def describe(self, call: Call) -> str:
        return "linear" if len(call.inputs) == 1 else self.label

    def run(self, forward: Pass, call: Call) -> Any:
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

    def run(self, forward: Pass, call: Call) -> Any:
        if not forward.replaying or call.kwargs or len(call.args) != 2 or not self._fits(call.inputs):
            return super().run(forward, call)
        first, second = call.inputs
        observed = forward.recorded(call.name, 2)
        value = call.with_inputs([first.detach(), second.detach()])
        if operators.is_for(value):
            return call.finish(self._late(forward, call, observed, value))
        if not self.is_of_matrices and not forward.rows.is_one_pair:  # for which memory is dear
            late = self._in_one_pass(forward, call, observed, value)
            if late is not None:
                return call.finish(late)
        mean_a, mean_b = (self._mean(forward, x, r.detach()) for x, r in zip(observed, call.inputs, strict=True))

        def pullback(gradient: Tensor, mean_a: Tensor, mean_b: Tensor) -> tuple[Tensor, Tensor]:
            if self.is_of_matrices:
                gradient = gradient.contiguous()  # once, not for each of the two
                return gradient @ mean_b.mT, mean_a.mT @ gradient
            return (gradient * mean_b).sum_to_size(mean_a.shape), (gradient * mean_a).sum_to_size(mean_b.shape)

        return call.finish(pull_back_to([first, second], value, pullback, mean_a, mean_b))

    @staticmethod
    def _in_one_pass(forward: Pass, call: Call, observed: list[Tensor], value: Tensor) -> Tensor | None:
        """By a kernel of a CPU while going back; None where there is none for these shapes."""
        first, second = call.inputs
        rows, largest = forward.rows, min(1e30, torch.finfo(value.dtype).max)
        is_swapped = first.numel() < second.numel()
        pairs = list(zip(observed, (first.detach(), second.detach()), strict=True))
        (a_x, a_r), (b_x, b_r) = pairs[::-1] if is_swapped else pairs
        if a_r.shape != value.shape or not fused.takes(a_x, a_r, b_x, b_r):
            return None
        kernel: Callable[..., tuple[Tensor, Tensor]] = fused.times_means
        if a_r.shape == b_r.shape:
            (a_x, a_r), (b_x, b_r) = rows.paired(a_x, a_r), rows.paired(b_x, b_r)
            if not fused.fit_together(a_x, a_r, b_x, b_r):
                return None
        else:
            kernel = fused.times_means_of_gates
            if not (has_channels_last(a_r) and a_r.ndim == 3 and b_r.shape == (*a_r.shape[:2], 1)):
                return None
            if rows.axis(a_x, a_r) not in (0, None) or rows.axis(b_x, b_r) not in (0, None):
                return None
            a_x, b_x = (z.narrow(0, 0, rows.n_sequences) if len(z) != len(a_r) else z for z in (a_x, b_x))

        def pullback(gradient: Tensor, *both: Tensor) -> tuple[Tensor, Tensor]:
            to_a, to_b = kernel(gradient, *both, largest)
            return (to_b, to_a) if is_swapped else (to_a, to_b)

        kept = [a_x, rows.keep(a_r, call.in_place), b_x, rows.keep(b_r, call.in_place)]
        return pull_back_to([first, second], value, pullback, *kept)

    def _late(self, forward: Pass, call: Call, observed: list[Tensor], value: Tensor) -> Tensor:
        """By operators, while going back."""
        first, second = call.inputs
        a_x, a_r = forward.rows.paired(observed[0], first.detach())
        b_x, b_r = forward.rows.paired(observed[1], second.detach())
        is_flat = not self.is_of_matrices and first.shape == second.shape == value.shape

        def pullback(gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> tuple[Tensor, Tensor]:
            if is_flat:
                to_a, to_b = _back_through_product(gradient.reshape(a_r.shape), a_x, a_r, b_x, b_r)
                return to_a.reshape(gradient.shape), to_b.reshape(gradient.shape)
            mean_a, mean_b = mean_of_both(a_x, a_r).reshape(first_shape), mean_of_both(b_x, b_r).reshape(second_shape)
            if self.is_of_matrices:
                return gradient @ mean_b.mT, mean_a.mT @ gradient
            return (gradient * _bounded(mean_b)).sum_to_size(first_shape), (gradient * _bounded(mean_a)).sum_to_size(
                second_shape
            )

        first_shape, second_shape = first.shape, second.shape
        kept = [a_x, forward.rows.keep(a_r, call.in_place), b_x, forward.rows.keep(b_r, call.in_place)]
        return pull_back_to([first, second], value, pullback, *kept)

    def _fits(self, inputs: list[Tensor]) -> bool:
        """Two tensors of one dtype; matrices without broadcasting."""
        if len(inputs) != 2 or inputs[0].dtype != inputs[1].dtype or torch.is_autocast_enabled(inputs[0].device.type):
            return False
        first, second = inputs
        return not self.is_of_matrices or (first.ndim == second.ndim >= 2 and first.shape[:-2] == second.shape[:-2])

    def _mean(self, forward: Pass, observed: Tensor, reference: Tensor) -> Tensor:
        """Of the shape of the reference, with infinities made finite, as in `between`."""
        x, r = forward.rows.paired(observed, reference)
        if self.is_of_matrices:  # an infinite factor makes it NaN
            return torch.add(x / 2, r, alpha=0.5, out=r.new_empty(r.shape)).view(reference.shape)
        return _bounded(_mean_by_torch(x, r).reshape(reference.shape))


def _bounded(mean: Tensor) -> Tensor:
    largest = min(1e30, torch.finfo(mean.dtype).max)
    return mean.clamp_(-largest, largest)


def _mean_by_torch(x: Tensor, r: Tensor) -> Tensor:
    return torch.add(x / 2, r, alpha=0.5)


def _product_by_torch(gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> list[Tensor]:
    return [gradient * _bounded(_mean_by_torch(b_x, b_r)), gradient * _bounded(_mean_by_torch(a_x, a_r))]


def _mean_by_triton(x: Tensor, r: Tensor) -> Tensor:
    from dlshap_core.kernels import triton_pairs

    return triton_pairs.mean(x, r)


def _product_by_triton(gradient: Tensor, a_x: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> list[Tensor]:
    from dlshap_core.kernels import triton_pairs

    return triton_pairs.product(gradient, (a_x, a_r), (b_x, b_r))


def _quotient_by_torch(gradient: Tensor, a_x: Tensor | None, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> list[Tensor]:
    m_a, m_b = quotient_multipliers(a_r if a_x is None else a_x, b_x, a_r, b_r)
    return [(gradient * m).to(gradient.dtype) for m in ((m_b,) if a_x is None else (m_a, m_b))]


def _quotient_on_cpu(gradient: Tensor, a_x: Tensor | None, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> list[Tensor]:
    if a_x is None or not (fused.takes(gradient, a_x, a_r, b_x, b_r) and fused.fits(b_x, b_r)):
        return _quotient_by_torch(gradient, a_x, a_r, b_x, b_r)
    return list(fused.times_quotient(gradient, a_x, a_r, b_x, b_r, FAR))


def _quotient_by_triton(gradient: Tensor, a_x: Tensor | None, a_r: Tensor, b_x: Tensor, b_r: Tensor) -> list[Tensor]:
    from dlshap_core.kernels import triton_pairs

    return triton_pairs.quotient(gradient, (a_x, a_r), (b_x, b_r), FAR)


mean_of_both = operators.define("mean(Tensor x, Tensor r) -> Tensor", _mean_by_torch, _mean_by_triton)
_back_through_product = operators.define(
    "product(Tensor gradient, Tensor a_x, Tensor a_r, Tensor b_x, Tensor b_r) -> Tensor[]",
    _product_by_torch,
    _product_by_triton,
)
# The gradients of what varies; a constant numerator has no a_x.
_back_through_quotient = operators.define(
    "quotient(Tensor gradient, Tensor? a_x, Tensor a_r, Tensor b_x, Tensor b_r) -> Tensor[]",
    _quotient_by_torch,
    _quotient_by_triton,
    _quotient_on_cpu,
)


@dataclass(frozen=True)
class Quotient(Kind):
    """Linear where the denominator is constant, else arithmetic.quotient_multipliers."""

    label: str = "quotient"

    def describe(self, call: Call) -> str:
        return "linear" if self._is_linear(call) else self.label

    def run(self, forward: Pass, call: Call) -> Any:
        if call.kwargs.get("rounding_mode") is not None:
            forward.refuse(call.name, f"with rounding_mode={call.kwargs['rounding_mode']!r} it jumps with its input")
        if self._is_linear(call):
            return call.plain()
        numerator, denominator = self._operands(call)
        if not forward.replaying:
            forward.record(call)
            return call.plain()
        value = call.with_inputs(x.detach() for x in call.inputs)
        fits = denominator.dtype == value.dtype and (is_varying(numerator) or denominator.shape == value.shape)
        if fits and (operators.is_for(value) or (fused.takes(value) and not forward.rows.is_one_pair)):
            return call.finish(self._late(forward, call, numerator, denominator, value))
        observed = iter(forward.observed(call))
        a_r = as_operand(numerator, denominator.dtype, denominator.device)
        a_x = next(observed) if is_varying(numerator) else a_r
        m_a, m_b = quotient_multipliers(a_x, next(observed), a_r.detach(), denominator.detach())
        return call.finish(substitute(m_a * a_r + m_b * denominator, value))

    @staticmethod
    def _late(forward: Pass, call: Call, numerator: Any, denominator: Tensor, value: Tensor) -> Tensor:
        """By an operator, while going back; both operands are expanded to the shape of the quotient."""
        numerator = as_operand(numerator, denominator.dtype, denominator.device)
        shapes = [x.shape for x in call.inputs]
        recorded = forward.recorded(call.name, len(call.inputs))
        recorded = list(torch.broadcast_tensors(*recorded))
        b_x, b_r = forward.rows.paired(recorded[-1], denominator.detach().expand(value.shape))
        a_r, a_x = numerator.detach().expand(value.shape), recorded[:-1]
        if a_x:
            a_x[0], a_r = forward.rows.paired(a_x[0], a_r)
        else:
            a_r = a_r.view(b_r.shape)

        def pullback(gradient: Tensor, a_r: Tensor, b_x: Tensor, b_r: Tensor, *a_x: Tensor) -> tuple[Tensor, ...]:
            found = _back_through_quotient(gradient.reshape(b_r.shape), a_x[0] if a_x else None, a_r, b_x, b_r)
            return tuple(z.reshape(gradient.shape).sum_to_size(shape) for z, shape in zip(found, shapes, strict=True))

        kept = [forward.rows.keep(a_r, call.in_place), b_x, forward.rows.keep(b_r), *a_x]
        return pull_back_to(call.inputs, value, pullback, *kept)

    @classmethod
    def _is_linear(cls, call: Call) -> bool:
        return not is_varying(cls._operands(call)[1])

    @staticmethod
    def _operands(call: Call) -> tuple[Any, Any]:
        numerator = call.args[0] if call.args else call.kwargs["input"]
        return numerator, call.args[1] if len(call.args) > 1 else call.kwargs["other"]
