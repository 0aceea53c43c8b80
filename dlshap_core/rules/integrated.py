"""What has no rule: local integrated gradients, checked against the operation's own difference."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlshap_core.rules.call import Call
from dlshap_core.rules.gradients import between, gauss_legendre, path_gradient
from dlshap_core.rules.kinds import Kind
from dlshap_core.rules.protocol import Pass

# A sum over the path may also miss by this many eps of the value: the rounding of the value itself.
_ROUNDING_STEPS = 100


@dataclass(frozen=True)
class Integrated(Kind):
    """No rule is known: the local integrated gradient, nodes doubled until it sums to the operation's difference."""

    label: str = "integrated"
    is_listed = False  # but by `note_integration`, with its nodes
    tolerance: float = 1e-7  # of the largest difference: float32's digits, and sums that no delta shows
    largest: int = 128  # nodes; what needs more has a kink or a jump, where doubling gains little

    def run(self, forward: Pass, call: Call) -> Any:
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

    def _nodes_needed(self, forward: Pass, call: Call, observed: list[Tensor], value: Tensor) -> int:
        """The fewest nodes, by doubling, whose sum agrees with the difference of outputs."""
        n_nodes, error = 1, math.inf
        try:
            target = (call.with_inputs(observed).detach() - value).double()
            size = max(target.abs().max().item(), torch.finfo(value.dtype).tiny)
            tolerance = (
                self.tolerance * size + _ROUNDING_STEPS * torch.finfo(value.dtype).eps * value.abs().max().item()
            )
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
