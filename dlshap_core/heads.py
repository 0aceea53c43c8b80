"""Heads: modules that take a model's raw output to one value for each sequence and target, with named conventions.

A BPNet returns profile logits (N, strands, W) and log counts (N, 1). The profile head explains y = sum p l, where l
are the logits over strands and positions minus their mean and p = softmax(l). How a change of p is shared out has
several exact and inexact answers in use, whose attributions differ; the name of the head says which one is meant.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.kinds import UnaryRule

# Below this difference of logits the elementwise secant is replaced by the gradient, as in bpnet-lite.
_SINGULAR = 1e-6


def _elementwise(x: Tensor, r: Tensor) -> Callable[[Tensor], Tensor]:
    """Secant of l p, element by element: (l p - l0 p0) / (l - l0); sums to delta.

    Singular where l does not change but p does; there the gradient of l softmax(l) at the sequence stands in.
    """
    p_x, p_r = x.softmax(-1), r.softmax(-1)
    change = x - r
    is_singular = change.abs() < _SINGULAR
    secant = (x * p_x - r * p_r) / torch.where(is_singular, 1.0, change)

    def pullback(gradient: Tensor) -> Tensor:
        spread = (gradient * x * p_x).sum(-1, keepdim=True)
        tangent = p_x * (gradient * (1 + x) - spread)
        return torch.where(is_singular, tangent, gradient * secant)

    return pullback


def _stopgrad(x: Tensor, r: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean probability, (p + p0) / 2: a change of p is not passed back, so contributions do not sum to delta."""
    multiplier = (x.softmax(-1) + r.softmax(-1)) / 2
    return lambda gradient: gradient * multiplier


def _detached(x: Tensor, r: Tensor) -> Callable[[Tensor], Tensor]:
    """The sequence's own probability p: neither a change of p nor p0 counts; contributions do not sum to delta."""
    multiplier = x.softmax(-1).expand_as(r)
    return lambda gradient: gradient * multiplier


_CONVENTIONS = {"elementwise": _elementwise, "stopgrad": _stopgrad, "detached": _detached}


def weigh_logits(logits: Tensor, convention: str) -> Tensor:
    """l softmax(l) over the last axis, of the shape of `logits`; under attribution, by the named convention."""
    if has_torch_function_unary(logits):
        return handle_torch_function(weigh_logits, (logits,), logits, convention)
    return logits * logits.softmax(-1)


def _weigh_logits_rule(observed: Tensor, reference: Tensor, convention: str) -> Tensor:
    logits = reference.detach()
    return pull_back(reference, logits * logits.softmax(-1), _CONVENTIONS[convention](observed, logits))


weigh_logits.dlshap_kind = UnaryRule(_weigh_logits_rule, "profile head", is_complete=False)  # type: ignore[attr-defined]


class CountsHead(nn.Module):
    """Log counts (N, T) of a model that returns (profile, counts), or of one that returns the counts alone."""

    def forward(self, output: Any) -> Tensor:
        counts = _part(output, 1, "counts")
        return counts.reshape(counts.shape[0], -1)


class ProfileHead(nn.Module):
    """sum p l of the profile logits: (N, 1).

    Args:
        convention: midpoint (the softmax rule and the midpoint product; sums to delta), elementwise, stopgrad or
        detached.
    """

    def __init__(self, convention: str) -> None:
        super().__init__()
        self.convention = convention

    def forward(self, output: Any) -> Tensor:
        logits = _part(output, 0, "profile").flatten(1)
        logits = logits - logits.mean(-1, keepdim=True)
        if self.convention == "midpoint":
            weighed = logits * logits.softmax(-1)
        else:
            weighed = weigh_logits(logits, self.convention)
        return weighed.sum(-1, keepdim=True)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "counts": CountsHead,
    "profile_midpoint": lambda: ProfileHead("midpoint"),
    "profile_elementwise": lambda: ProfileHead("elementwise"),
    "profile_stopgrad": lambda: ProfileHead("stopgrad"),
    "profile_detached": lambda: ProfileHead("detached"),
}

# Heads without completeness, by design: their convergence deltas are not compared with a threshold.
INCOMPLETE = frozenset({"profile_stopgrad", "profile_detached"})


class Heads(nn.Module):
    """Several heads on one output: (N, T), the targets of each behind those of the one before."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(name) for name in names)

    def forward(self, output: Any) -> Tensor:
        return torch.cat([head(output) for head in self.heads], dim=1)


def head(*names: str) -> nn.Module:
    """The head of this name, or of several, which are explained by one pass.

    Raises:
        ValueError: no such head; the message lists them.
    """
    if len(names) > 1:
        return Heads(names)
    (name,) = names
    if name not in HEADS:
        raise ValueError(f"no head is called {name!r}; there are {', '.join(HEADS)}")
    return HEADS[name]()


def _part(output: Any, index: int, what: str) -> Tensor:
    """The profile (0) or the counts (1) of a model's output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and len(output) == 2:
        return output[index]
    raise ValueError(
        f"the {what} head takes a tensor or a pair (profile, counts), not {type(output).__name__}; "
        f"select the output first"
    )
