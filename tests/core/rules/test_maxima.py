"""Maxima by hand: which input gets the change of a window, with overlap, padding, dilation, ties, order statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.core.toolbox import Apply, Sandwich, explain, seeded, sequences, shuffled, worst_delta

Function = Callable[[Tensor], Tensor]


def by_hand(function: Function, x: list[float], r: list[float]) -> list[float]:
    """Multipliers of the sum of function's output for a single pair of (1, W) activations, in float64."""

    def first_row(z: Tensor) -> Tensor:
        return function(z[:, :1]).reshape(len(z), -1).sum(1, keepdim=True)

    X, references = torch.zeros(1, 4, len(x)).double(), torch.zeros(1, 1, 4, len(x)).double()
    X[0, 0], references[0, 0, 0] = torch.tensor(x), torch.tensor(r)
    result = explain(Apply(first_row), X, references, dtype=torch.float64)
    assert result.convergence_delta.abs().max() < 1e-12
    assert result.multipliers is not None
    return result.multipliers[0, 0, 0, 0].tolist()


def pool(*arguments: int | bool) -> Function:
    return lambda z: F.max_pool1d(z, *arguments)


def maximum(z: Tensor) -> Tensor:
    return z.amax(-1)


@pytest.mark.parametrize(
    ("function", "x", "r", "expected"),
    [
        # The output rises from 3 to 5: the change goes to the observed winner, 2 / (5 - 1).
        (maximum, [1, 5, 2], [3, 1, 2], [0, 0.5, 0]),
        # It falls from 6 to 5: to the reference's winner, -1 / (1 - 6).
        (maximum, [5, 1, 2], [2, 6, 0], [0, 0.2, 0]),
        # One winner on both sides: its whole change.
        (maximum, [1, 7, 2], [1, 4, 3], [0, 1, 0]),
        # Nothing changes at all: the ordinary gradient.
        (maximum, [1, 2, 3], [1, 2, 3], [0, 0, 1]),
        # The observed winner stands still while the output falls: its gradient beside the reference winner's share.
        (maximum, [5, 1, 2], [5, 6, 0], [1, 0.2, 0]),
        # Another input wins with the same value: no change to share out.
        (maximum, [4, 1, 0], [1, 4, 0], [0, 0, 0]),
        # Ties go to the first.
        (maximum, [3, 3, 0], [1, 1, 0], [1, 0, 0]),
        # Disjoint windows; the last input belongs to none.
        (pool(2), [1, 2, 3, 0, 9], [0, 1, 1, 1, 1], [0, 1, 1, 0, 0]),
        # With ceil_mode it makes a window of its own.
        (pool(2, 2, 0, 1, True), [1, 2, 3, 0, 9], [0, 1, 1, 1, 1], [0, 1, 1, 0, 1]),
        # Overlapping windows of three: the middle input wins all three.
        (pool(3, 1), [1, 2, 9, 2, 1], [0, 0, 3, 0, 0], [0, 0, 3, 0, 0]),
        # Overlap where each window has another winner: {1,2} rises 2 -> 4, {2,3} rises 2 -> 4 by the same input.
        (pool(2, 1), [1, 4, 0], [0, 2, 2], [0, 2, 0]),
        # Padding is no input: windows {pad,1}, {2,3}, {4,pad}.
        (pool(2, 2, 1), [-1, -2, -3, -4], [-2, -2, -4, -8], [1, 1, 0, 1]),
        # Dilation: windows {1,3}, {2,4}.
        (pool(2, 1, 0, 2), [1, 5, 3, 2], [1, 1, 1, 4], [0, 0.25, 1, 0]),
        # Adaptive bins {1,2,3} and {3,4,5} share an input, which wins both.
        (lambda z: F.adaptive_max_pool1d(z, 2), [0, 0, 6, 0, 1], [0, 0, 2, 0, 1], [0, 0, 2, 0, 0]),
        # Minima: falls from 1 to -1, to the observed winner.
        (lambda z: z.amin(-1), [-1, 2, 3], [3, 1, 2], [0.5, 0, 0]),
        # The sum of the two largest rises from 5 to 9, to the observed two in proportion: 4 / (5 + 2).
        (lambda z: z.topk(2, -1).values, [6, 3, 1], [1, 1, 4], [4 / 7, 4 / 7, 0]),
        # The same two on both sides: each its own change.
        (lambda z: z.topk(2, -1).values, [6, 3, 1], [4, 5, 0], [1, 1, 0]),
        # All of them sorted, and summed: each its own change.
        (lambda z: z.sort(-1)[0], [1, 5, 2], [4, 0, 7], [1, 1, 1]),
        # The median of three inputs in the same order on both sides.
        (lambda z: z.median(-1).values, [1, 5, 3], [0, 9, 2], [0, 0, 1]),
        # The ramp of two tensors: max(z, 1 - z) at each input.
        (lambda z: torch.maximum(z, 1 - z), [2, -1], [0, 1], [(2 - 1) / 2, (2 - 1) / -2]),
    ],
)
def test_by_hand(function: Function, x: list[float], r: list[float], expected: list[float]) -> None:
    assert by_hand(function, x, r) == pytest.approx(expected, abs=1e-12)


def test_a_window_of_two_dimensions_by_hand() -> None:
    def grid(z: Tensor) -> Tensor:
        return F.max_pool2d(z.unflatten(-1, (2, 4)), 2)

    x, r = [1, 2, 0, 0, 8, 3, 0, 5], [0, 4, 0, 1, 0, 0, 0, 1]
    assert by_hand(grid, x, r) == pytest.approx([0, 0, 0, 0, 0.5, 0, 0, 1])


def test_places_of_the_maximum_are_those_of_the_reference() -> None:
    seen: list[Tensor] = []

    def forward(z: Tensor) -> Tensor:
        values, places = F.max_pool1d(z[:, :1], 2, return_indices=True)
        seen.append(places)
        return values.flatten(1).sum(1, keepdim=True)

    X, references = torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4)
    X[0, 0, [0, 3]] = 1
    references[0, 0, 0, [1, 2]] = 1
    explain(Apply(forward), X, references)
    assert seen[0].flatten().tolist() == [0, 3]
    assert seen[-1].flatten().tolist() == [1, 2]


FORMS: dict[str, Function] = {
    "max_pool1d": lambda z: F.max_pool1d(z, 3),
    "overlap, padding, ceil": lambda z: F.max_pool1d(z, 5, 3, 2, ceil_mode=True),
    "dilation": lambda z: F.max_pool1d(z, 3, 2, 0, 4),
    "torch.max_pool1d": lambda z: torch.max_pool1d(z, 3, 2, 1),
    "max_pool2d": lambda z: F.max_pool2d(z.unflatten(-1, (6, 6)), 3, 2, 1),
    "max_pool2d of rows merged": lambda z: F.max_pool2d(z.unflatten(-1, (6, 6)).flatten(0, 1), 2).unflatten(0, (-1, 3)),
    "max_pool3d": lambda z: F.max_pool3d(z.unflatten(-1, (3, 4, 3)), 2, 1),
    "adaptive uneven": lambda z: F.adaptive_max_pool1d(z, 7),
    "adaptive of a plane": lambda z: F.adaptive_max_pool2d(z.unflatten(-1, (6, 6)), (4, 5)),
    "max over positions": lambda z: z.max(-1)[0],
    "max, keepdim, by name": lambda z: torch.max(z, dim=2, keepdim=True).values,
    "amax over channels": lambda z: z.amax(1),
    "amin": lambda z: z.amin((1, 2), keepdim=True),
    "topk": lambda z: z.topk(4, -1)[0],
    "smallest": lambda z: z.topk(4, -1, largest=False)[0],
    "topk over channels": lambda z: torch.topk(z, 2, dim=1).values,
    "sort": lambda z: z.sort(dim=-1).values,
    "median": lambda z: torch.median(z, dim=-1).values,
    "kthvalue": lambda z: z.kthvalue(5, -1).values,
    "maximum": lambda z: torch.maximum(z, z.flip(-1)),
    "max of two": lambda z: torch.max(z, z.flip(1)),
    "maxout": lambda z: z.unflatten(-1, (12, 3)).amax(-1),
    "unpooled": lambda z: F.relu(F.max_pool1d(z, 2)).repeat_interleave(2, -1) - z,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_sums_to_the_difference(name: str) -> None:
    X = sequences(3)
    references = shuffled(X, 4)
    for batch_size in (64, 3, 1):
        model = seeded(lambda: Sandwich(FORMS[name]))
        assert worst_delta(explain(model, X, references, batch_size=batch_size)) < 1e-9
        model = seeded(lambda: Sandwich(FORMS[name]), dtype=torch.float32)
        assert worst_delta(explain(model, X, references, batch_size=batch_size)) < 1e-4


@pytest.mark.parametrize("name", ["max_pool1d", "overlap, padding, ceil", "amax over channels", "max over positions"])
def test_shares_lie_between_nothing_and_all(name: str) -> None:
    # Of a convolution that copies the input, each multiplier counts the windows that an input can win.
    X = sequences(4, seed=5).double() * torch.rand(4, 4, 40, dtype=torch.float64)
    references = shuffled(sequences(4, seed=5), 3).double() * torch.rand(4, 3, 4, 40, dtype=torch.float64)
    model = Apply(lambda x: FORMS[name](x).flatten(1).sum(1, keepdim=True))
    result = explain(model, X, references, dtype=torch.float64)
    assert result.multipliers is not None
    assert result.multipliers.min() >= 0
    assert result.multipliers.max() <= 2
