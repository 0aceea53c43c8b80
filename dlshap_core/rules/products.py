"""Products and quotients of tensors that vary, by the midpoint rule."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.rules.arithmetic import quotient_multipliers
from dlshap_core.rules.call import Call, is_varying
from dlshap_core.rules.gradients import path_gradient, pull_back_to_two, substitute
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
        mean_a, mean_b = (self._mean(forward, x, r.detach()) for x, r in zip(observed, call.inputs, strict=True))

        def pullback(gradient: Tensor, mean_a: Tensor, mean_b: Tensor) -> tuple[Tensor, Tensor]:
            if self.is_of_matrices:
                return gradient @ mean_b.mT, mean_a.mT @ gradient
            return (gradient * mean_b).sum_to_size(mean_a.shape), (gradient * mean_a).sum_to_size(mean_b.shape)

        return call.finish(pull_back_to_two(first, second, value, pullback, mean_a, mean_b))

    def _fits(self, inputs: list[Tensor]) -> bool:
        """Two tensors of one dtype; matrices without broadcasting."""
        if len(inputs) != 2 or inputs[0].dtype != inputs[1].dtype or torch.is_autocast_enabled(inputs[0].device.type):
            return False
        first, second = inputs
        return not self.is_of_matrices or (first.ndim == second.ndim >= 2 and first.shape[:-2] == second.shape[:-2])

    def _mean(self, forward: Pass, observed: Tensor, reference: Tensor) -> Tensor:
        """Of the shape of the reference, with infinities made finite, as in `between`."""
        x, r = forward.rows.paired(observed, reference)
        mean = torch.add(x / 2, r, alpha=0.5).reshape(reference.shape)
        if self.is_of_matrices:  # an infinite factor makes the product itself NaN
            return mean
        largest = min(1e30, torch.finfo(reference.dtype).max)
        return mean.clamp_(-largest, largest)


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
