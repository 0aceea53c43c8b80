"""Maxima by hand: which input gets the change of a window, with overlap, padding, dilation, ties, order statistics."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from tangermeme.deep_lift_shap import deep_lift_shap as tangermeme_deep_lift_shap
from torch import Tensor, nn

from dlshap_core.kernels import fused
from dlshap_core.rules import maxima
from tests.core.toolbox import (
    Apply,
    Sandwich,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

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


class Pooled(nn.Module):
    """Two convolutions with a ReLU between them, max-pooling, and a readout."""

    def __init__(self, pool: nn.Module, channels: int = 48, length: int = 400) -> None:
        super().__init__()
        layers = [nn.Conv1d(4, channels, 7, padding=3), nn.ReLU(), nn.Conv1d(channels, channels, 5, padding=2), pool]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(self.body(torch.zeros(2, 4, length)).shape[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class SideBySide(nn.Module):
    """Filters of one base and of eleven, pooled together: what the narrow ones see is often the same by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv1d(4, 12, 1), nn.Conv1d(4, 20, 11, padding=5)
        self.pool, self.head = nn.MaxPool1d(4), nn.Linear(32 * 100, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.cat([self.narrow(x), self.wide(x)], 1)).flatten(1))


REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "shuffles": lambda X: shuffled(X, 6),
    "the sequence itself": lambda X: X[:, None].repeat(1, 3, 1, 1),
    "one base changed": lambda X: torch.stack([_mutated(X, 40 + 61 * k) for k in range(6)], 1),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "MaxPool1d(4)": lambda: Pooled(nn.MaxPool1d(4)),
    "overlapping": lambda: Pooled(nn.MaxPool1d(5, 2, 2), 24),
    "dilated": lambda: Pooled(nn.MaxPool1d(3, 2, dilation=3), 24),
    "adaptive": lambda: Pooled(nn.AdaptiveMaxPool1d(90), 24),
    "side by side": SideBySide,
}


def _mutated(X: Tensor, position: int) -> Tensor:
    X = X.clone()
    X[..., position] = X[..., position].roll(1, -1)
    return X


def hypothetical(multipliers: Tensor, references: Tensor) -> Tensor:
    """(N, R, 4, L) hypothetical attributions of each pair."""
    return multipliers - (multipliers * references).sum(2, keepdim=True)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", MODELS)
def test_float32_explains_to_the_same_places(name: str, kind: str, is_fused: bool) -> None:
    X = sequences(2, 400, seed=3)
    references = REFERENCES[kind](X)
    found = []
    with mock.patch.object(fused, "takes", fused.takes if is_fused else lambda *_: False):
        for dtype in (torch.float32, torch.float64):
            model = seeded(MODELS[name], seed=1, dtype=dtype)
            found.append(hypothetical(multipliers(model, X, references, batch_size=5), references))
    for in_float32, exact in zip(found[0].flatten(0, 1), found[1].flatten(0, 1), strict=True):
        assert relative_difference(in_float32, exact) < 2e-5


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("name", ["MaxPool1d(4)", "overlapping", "side by side"])
def test_as_tangermeme(name: str, kind: str) -> None:
    X = sequences(2, 400, seed=4)
    references = REFERENCES[kind](X)
    model = seeded(MODELS[name], seed=2)
    expected = tangermeme_deep_lift_shap(
        model, X.double(), references=references.double(), device="cpu", raw_outputs=True, batch_size=6
    )
    assert relative_difference(multipliers(model, X, references), expected) < 1e-10


def of_channels(x: list[list[float]], r: list[list[float]], dtype: torch.dtype = torch.float32) -> list[list[float]]:
    """What each input of (C, L) gets of the gradients 1 at the maximum of each channel, by all ways to compute it."""
    a, b = (torch.tensor([z], dtype=dtype) for z in (x, r))
    best_a, best_b = a.max(-1, keepdim=True), b.max(-1, keepdim=True)
    ones, limits = torch.ones(1, len(x), 1, dtype=dtype), (maxima.rounding(dtype), 1e30)
    best = maxima._Windows(best_a.values, best_a.indices)
    by_torch = maxima._by_torch(a, b, best, best_b.indices, 1, 0)(ones)[0]
    places = (best_a.indices, best_b.indices)
    flat = [z[0].unsqueeze(-1).contiguous() for z in (ones, a, b, *places)]
    as_rows = fused.route(*flat, len(x), *limits)[..., 0]
    last = [z.mT.contiguous() for z in (ones, a, b, *places)]
    side_by_side = fused.route(*last, 1, *limits)[0].mT
    whole = len(x[0])
    by_windows = fused.route_of_windows(*last[:3], whole, whole, 0, 1, *limits)[0].mT
    for found in (as_rows, side_by_side, by_windows):
        torch.testing.assert_close(found, by_torch, rtol=0, atol=0)
    return by_torch.tolist()


# In float32 with eps of its own, and in float64 with that of float32: a small change that is no rounding there.
DTYPES = [torch.float32, torch.float64]
EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0.1, 1e-3, 100 * EPS, 4 * EPS, 0])
def test_a_small_change_of_one_channel_does_not_tell_that_a_place_stands_still(step: float, dtype: torch.dtype) -> None:
    # The output falls from 6 to 5. By chance the observed maximum's input hardly changes; the other channels' do.
    x = [[5, 1, 2], [7, 0, 0], [3, 0, 0], [1, 0, 0]]
    r = [[5 + 5 * step, 6, 0], [8, 0, 0], [4, 0, 0], [2, 0, 0]]
    assert of_channels(x, r, dtype)[0] == pytest.approx([0, 0.2, 0], abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_steps", "expected"), [(0, 1), (-4, 1), (4, 1), (6, 1), (12, 0), (-12, 0), (1000, 0)])
def test_a_place_stands_still_where_its_channels_differ_by_rounding(
    n_steps: int, expected: int, dtype: torch.dtype
) -> None:
    # Both sides of maxima._ROUNDING_STEPS. The output falls from 6 to 5, by the second place alone.
    assert 6 < maxima._ROUNDING_STEPS < 12
    factor = 1 + n_steps * torch.finfo(dtype).eps
    x = [[5, 1, 2], [7, 0, 0], [3, 0, 0], [1, 0, 0]]
    r = [[5 * factor, 6, 0], [7 * factor, 0, 0], [3 * factor, 0, 0], [factor, 0, 0]]
    found = of_channels(x, r, dtype)
    assert found[0] == pytest.approx([expected, 0.2, 0], abs=1e-5)
    assert [row[0] for row in found[1:]] == [1, 1, 1]  # one place on both sides: no threshold


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([(1, 1), (1, 1), (1, 2)], 1),  # three of four stand still
        ([(1, 1), (1, 2), (1, 2)], 0),  # two of four do
        ([(0, 0), (0, 0), (1, 2)], 0),  # one of two, and zeros are no evidence
        ([(0, 0), (0, 0), (0, 0)], 1),  # the only one
        ([(0, 0), (0, 0), (1, 1)], 1),  # all that there are
    ],
)
def test_how_many_channels_stand_still(others: list[tuple[float, float]], expected: int) -> None:
    # Both sides of max_pooling.LEAST_STANDING.
    x = [[5, 1], *([a, 0] for a, _ in others)]
    r = [[5, 6], *([b, 0] for _, b in others)]
    assert of_channels(x, r)[0] == pytest.approx([expected, 0.2])


@pytest.mark.parametrize(("n_still", "expected"), [(3, 0), (4, 0), (5, 1), (6, 1)])
def test_how_large_a_part_of_the_channels_stands_still(n_still: int, expected: int) -> None:
    # Both sides of max_pooling.ONE_STANDING_OF, of 40 channels.
    x = [[5, 1]] * 40
    r = [[5, 6]] * n_still + [[4, 6]] * (40 - n_still)
    assert of_channels(x, r)[0] == pytest.approx([expected, 0.2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0.5, 1e-3, 100 * EPS, 8 * EPS, EPS])
def test_one_place_on_both_sides_has_it_all_whatever_it_changes(step: float, dtype: torch.dtype) -> None:
    x, r = [[1, 7, 2]] * 4, [[1, 7 * (1 + step), 3], [1, 7 * (1 - step), 3], [1, 7, 3], [2, 7, 0]]
    assert of_channels(x, r, dtype) == [[0, 1, 0]] * 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_vanish_with_the_change_of_the_output(dtype: torch.dtype) -> None:
    steps = [1e-1, 1e-3, 1e-5, 0.0]
    x = [[4 + step, 1] for step in steps]  # rises to the first place from the second
    r = [[1.0, 4.0]] * 4
    for found, step in zip(of_channels(x, r, dtype), steps, strict=True):
        assert found == pytest.approx([step / (3 + step), 0], abs=1e-6)
    for found, step in zip(of_channels(r, x, dtype), steps, strict=True):  # and falls back
        assert found == pytest.approx([step / (3 + step), 0], abs=1e-6)


def shares_of_sums(x: Tensor, r: Tensor) -> Tensor:
    orders = [z.argsort(descending=True, stable=True) for z in (x, r)]
    of_x, of_r = ((z[one], z[other]) for z, one, other in ((x, *orders), (r, *orders[::-1])))
    return maxima.shares_of_sums(of_x, of_r, *orders, len(x))[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_steps", "expected"), [(0, 1), (2, 1), (6, 1), (20, 0.5)])
def test_the_largest_that_differ_by_rounding_have_it_all(n_steps: int, expected: float, dtype: torch.dtype) -> None:
    # The second of two equal inputs is the larger by rounding on one side: S_1 changes by half as much as its subset.
    eps = torch.finfo(dtype).eps
    x = torch.tensor([4 + 4 * n_steps * eps, 4 + 2 * n_steps * eps], dtype=dtype)
    r = torch.tensor([4, 4 + 2 * n_steps * eps], dtype=dtype)
    shares = shares_of_sums(x, r)
    assert shares.tolist() == pytest.approx([expected, 1], abs=0.05)


def test_one_subset_has_it_all_in_whatever_order() -> None:
    x = torch.tensor([1e4, 1.0, 3.0, -2.0]) + torch.tensor([0.0, 3e-7, 0.0, 0.0])
    r = torch.tensor([1e4, 4.0, 2.0, -5.0])
    assert shares_of_sums(x, r).tolist()[2:] == [1, 1]
