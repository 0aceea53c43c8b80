"""Rows of a batch do not influence each other: not by values, not by masks, not by decisions in Python, not by state.

Each model here gives every sequence alone one prediction. Either the engine gives the same in a batch, or it refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlshap_core import UnsupportedModelError, attribute, audit
from dlshap_core.errors import DecisionError
from dlshap_core.passes import mixing
from dlshap_core.passes.decisions import Decisions
from tests.core.toolbox import Apply, explain, relative_difference, seeded, sequences, shuffled, worst_delta

N, R, LATER = 12, 3, 9  # the row that is different comes in the third of three batches
Forward = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A convolution, its mean, two outputs, and what is done with all that."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 5)
        self.head = nn.Linear(6, 2)
        self.function = function
        self.calls = 0
        self.kept: dict[str, list[float]] = {"calls": []}
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(x))
        return self.function(self, x, hidden, self.head(hidden.mean(-1)))


def is_hit(x: Tensor) -> Tensor:
    """(B,) whether a sequence begins with AAAAAA."""
    return x[:, 0, :6].sum(1) == 6


PLACES: dict[str, tuple[tuple[int, ...], bool, bool]] = {  # rows that begin so, whether the sequence, the references
    "nowhere": ((), False, False),
    "in the first batch": ((1,), True, True),
    "later": ((LATER,), True, True),
    "in a later sequence alone": ((LATER,), True, False),
    "in a later reference alone": ((LATER,), False, True),
}


def pairs(place: str) -> tuple[Tensor, Tensor]:
    rows, in_sequence, in_references = PLACES[place]
    X = sequences(N, seed=1).clone()
    references = shuffled(X, R).clone()
    for row in rows:
        for z in [X[row]] * in_sequence + [*references[row]] * in_references:
            z[:, :6] = 0
            z[0, :6] = 1
    return X, references


def alone(function: Forward, X: Tensor) -> Tensor:
    """(N, 2) predictions of each sequence by a fresh model."""
    with torch.no_grad():
        return torch.cat([seeded(lambda: Net(function), dtype=torch.float32)(x[None].float()) for x in X])


def row_by_row(net: nn.Module, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
    return torch.stack([2 * y[i] if x[i, 0, :6].sum() == 6 else y[i] for i in range(len(x))])


DECIDED: dict[str, Forward] = {
    "any": lambda net, x, h, y: 2 * y if is_hit(x).any() else y,
    "any along the rows": lambda net, x, h, y: 2 * y if is_hit(x).any(0) else y,
    "any by keyword": lambda net, x, h, y: 2 * y if torch.any(input=is_hit(x)) else y,
    "all": lambda net, x, h, y: y if (~is_hit(x)).all() else 2 * y,
    "equal": lambda net, x, h, y: y if torch.equal(x[:, 0, :6].sum(1).clamp(0, 5), x[:, 0, :6].sum(1)) else 2 * y,
    "allclose": lambda net, x, h, y: y if torch.allclose(x[:, 0, :6].sum(1), x[:, 0, :6].sum(1).clamp(0, 5)) else 2 * y,
    "in": lambda net, x, h, y: 2 * y if 6 in x[:, 0, :6].sum(1) else y,
    "number of places": lambda net, x, h, y: 2 * y if len(torch.nonzero(is_hit(x))) else y,
    "number of places, by axis": lambda net, x, h, y: 2 * y if len(is_hit(x).nonzero(as_tuple=True)[0]) else y,
    "one row at a time": row_by_row,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DECIDED)
def test_a_batch_that_decides_otherwise_is_an_error_by_row_and_line(name: str, place: str) -> None:
    X, references = pairs(place)
    model = seeded(lambda: Net(DECIDED[name]), dtype=torch.float32)
    if place == "nowhere":
        found = explain(model, X, references, batch_size=12, targets="all")
        assert relative_difference(found.prediction, alone(DECIDED[name], X)) < 1e-5
        return
    with pytest.raises(UnsupportedModelError, match=r"test_rows\.py, line \d+ \(") as caught:
        explain(model, X, references, batch_size=12, targets="all")
    if "later" in place and isinstance(caught.value, DecisionError):
        assert caught.value.row == LATER
        assert str(caught.value).startswith(f"sequence {LATER}: ")


def test_all_sequences_may_decide_alike() -> None:
    X, references = pairs("nowhere")
    always = seeded(lambda: Net(lambda net, x, h, y: 2 * y if x[:, 0].any() else y), dtype=torch.float32)
    doubled = seeded(lambda: Net(lambda net, x, h, y: 2 * y), dtype=torch.float32)
    expected = explain(doubled, X, references, batch_size=12).hypothetical
    assert torch.equal(explain(always, X, references, batch_size=12).hypothetical, expected)


MIXED: dict[str, tuple[Forward, str]] = {
    "any in where": (lambda net, x, h, y: torch.where(is_hit(x).any(), 2 * y, y), "'any'"),
    "maximum": (lambda net, x, h, y: 2 * y if x[:, 0, :6].sum(1).max().item() == 6 else y, "'max'"),
    "amax": (lambda net, x, h, y: 2 * y if x[:, 0, :6].sum(1).amax(0) == 6 else y, "'amax'"),
    "sum decides": (lambda net, x, h, y: 2 * y if x[:, 0, :6].sum() > 40 else y, "'sum'"),
    "sum in where": (lambda net, x, h, y: torch.where(x[:, 0].sum() > 140, 2 * y, y), "'sum'"),
    "truth of a sum": (lambda net, x, h, y: 2 * y if (x[:, 0, :6].sum(1) - 5).relu().sum() else y, "'sum'"),
    "some position of any row": (lambda net, x, h, y: 2 * y if (x[:, 0] > 0).all(0).any() else y, "'all'"),
    "count": (lambda net, x, h, y: 2 * y if torch.count_nonzero(is_hit(x)) > 0 else y, "'count_nonzero'"),
    "flatten, then norm": (lambda net, x, h, y: y / y.flatten().norm(), "'linalg_vector_norm'"),
    "mean": (lambda net, x, h, y: y - 1e-7 * y.mean(0), "'mean'"),
    "mean kept": (lambda net, x, h, y: y - 1e-7 * y.mean(0, keepdim=True), "'mean'"),
    "transposed": (lambda net, x, h, y: y - 1e-7 * y.T.sum(1), "'sum'"),
    "standard deviation": (lambda net, x, h, y: y / (1 + 1e-6 * y.std(0)), "'std'"),
    "softmax": (lambda net, x, h, y: y + 1e-7 * y.softmax(0), "'softmax'"),
    "cumsum": (lambda net, x, h, y: y + 1e-7 * y.cumsum(0), "'cumsum'"),
    "sorted": (lambda net, x, h, y: y.sort(0).values, "'sort'"),
    "sorted by content": (lambda net, x, h, y: y[x[:, 0].sum(1).argsort()], "'argsort'"),
    "neighbour": (lambda net, x, h, y: y + 1e-7 * y.roll(1, 0), "'roll'"),
    "neighbour's mask": (lambda net, x, h, y: y + y * is_hit(x).roll(1, 0)[:, None], "'roll'"),
    "neighbour's mask, flipped": (lambda net, x, h, y: y + y * is_hit(x).flip(0)[:, None], "'flip'"),
    "neighbour's mask, without an axis": (lambda net, x, h, y: y + y * is_hit(x).roll(1)[:, None], "'roll'"),
    "masks, sorted": (lambda net, x, h, y: y + y * torch.msort(is_hit(x).float())[:, None], "'msort'"),
    "masks, convolved": (
        lambda net, x, h, y: y + y * F.conv1d(is_hit(x).float()[None, None], torch.ones(1, 1, 3), padding=1)[0].T,
        "'conv1d'",
    ),
    "neighbour's mask, joined": (
        lambda net, x, h, y: y + y * torch.cat([is_hit(x)[1:], is_hit(x)[:1]])[:, None],
        "get",
    ),
    "first row's mask": (lambda net, x, h, y: torch.where(is_hit(x)[0], 2 * y, y), "'__getitem__'"),
    "last row's mask": (lambda net, x, h, y: torch.where(is_hit(x)[-1:, None], 2 * y, y), "'__getitem__'"),
    "rows by index": (lambda net, x, h, y: y + 1e-7 * y[torch.arange(len(y)).flip(0)], "'__getitem__'"),
    "mask by index": (
        lambda net, x, h, y: y + y * (is_hit(x).float() * 1.0)[torch.arange(len(y)).roll(1)][:, None],
        "'__getitem__'",
    ),
    "mask by index_select": (
        lambda net, x, h, y: y + y * (is_hit(x).float() * 1.0).index_select(0, torch.arange(len(y)).flip(0))[:, None],
        "'index_select'",
    ),
    "mask, gathered": (
        lambda net, x, h, y: (
            y + y * (is_hit(x).float() * 1.0)[:, None].gather(0, torch.arange(len(y)).flip(0)[:, None])
        ),
        "'gather'",
    ),
    "rows times rows": (lambda net, x, h, y: y + 1e-7 * (y.T @ y).sum(), "'matmul'"),
    "distances": (lambda net, x, h, y: y + 1e-7 * torch.cdist(y, y).sum(1, keepdim=True), "'cdist'"),
    "alike rows": (lambda net, x, h, y: y + (x[:, None, 0, :4] * x[None, :, 0, :4]).sum(-1).eq(4) @ y, "'mul'"),
    "index_add": (
        lambda net, x, h, y: y + 1e-7 * torch.zeros_like(y).index_add(0, torch.zeros(len(y), dtype=torch.long), y),
        "'index_add'",
    ),
    "padded to the longest": (lambda net, x, h, y: y * (x.sum(1) > 0).sum(1).max(), "'max'"),
    "batch statistics": (lambda net, x, h, y: F.batch_norm(y, None, None, training=True), "'batch_norm'"),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_rows_is_refused_by_name_and_module_whatever_the_rows_are(name: str) -> None:
    function, operation = MIXED[name]
    model = seeded(lambda: Apply(lambda net, x: net(x), Net(function)), dtype=torch.float32)
    for place in ("nowhere", "in the first batch"):
        with pytest.raises(UnsupportedModelError) as caught:
            explain(model, *pairs(place), batch_size=12)
        assert operation in str(caught.value)
        assert "parts.0 (Net)" in str(caught.value)


def test_a_mixture_that_is_not_used_does_no_harm() -> None:
    def function(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        net.penalty = hidden.sum() + y.mean(0).square().sum()
        return y

    found = explain(seeded(lambda: Net(function)), *pairs("nowhere"), batch_size=12)
    assert worst_delta(found) < 1e-9


def test_rows_that_come_back_to_their_place_are_apart() -> None:
    there_and_back: list[Callable[[Tensor], Tensor]] = [
        lambda h: h.roll(1, 0).tanh().roll(-1, 0),
        lambda h: h.flip(0).tanh().flip(0),
        lambda h: torch.stack([row.tanh() for row in h.unbind(0)]),
        lambda h: torch.cat([part.tanh() for part in h.split(2)]),
        lambda h: h[:, [5, 4, 3, 2, 1, 0]].tanh()[torch.arange(len(h))],
        lambda h: h.permute(1, 0, 2)[[5, 4, 3, 2, 1, 0]].tanh().permute(1, 0, 2),
    ]
    X, references = pairs("nowhere")
    plain = seeded(lambda: Net(lambda net, x, h, y: y * h.tanh().sum((1, 2))[:, None]))
    expected = explain(plain, X, references, batch_size=12).hypothetical
    for function in there_and_back:
        model = seeded(
            lambda function=function: Net(lambda net, x, h, y: y * function(h).sum((1, 2))[:, None])  # type: ignore[misc]
        )
        assert relative_difference(explain(model, X, references, batch_size=12).hypothetical, expected) < 1e-9


SIZES = {"one row": 1, "sequences of a batch": 4, "sequences of the last batch": 3, "references of a batch": 12}


def test_an_order_that_only_large_batches_have_is_no_rounding() -> None:
    """Such as that of an unstable sort: pairs are other ones, which few rows do not show, in float64 neither."""

    def forward(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        n = len(x)
        order = torch.tensor([7 * i % n if n > 16 else i for i in range(n)])
        return torch.tanh(20 * net.head(hidden.mean(-1))[order])[order.argsort()]

    X = sequences(5)
    model = seeded(lambda: Net(forward), dtype=torch.float32)
    found, expected = (explain(model, X, shuffled(X, 5), batch_size=n).hypothetical for n in (25, 1))
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("name", [*SIZES, "references of the last batch"])
def test_what_depends_on_the_number_of_rows_is_refused(name: str) -> None:
    n = SIZES.get(name, 9)
    X, references = pairs("nowhere")
    model = seeded(lambda: Net(lambda net, x, h, y: 1.5 * y if len(x) == n else y), dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match="prediction of a sequence alone differs"):
        explain(model, X[:11], references[:11], batch_size=12)


def counting(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
    net.calls += 1
    return y if net.calls < 4 else 2 * y


def counting_in_a_list(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
    net.kept["calls"].append(0.0)
    return y * len(net.kept["calls"])


def running_mean(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
    scale, net.scale = net.scale, y.detach().abs().mean()
    return y if scale is None else y / scale


@pytest.mark.parametrize("function", [counting, counting_in_a_list, running_mean])
def test_what_a_model_keeps_between_calls_is_put_back(function: Forward) -> None:
    X, references = pairs("nowhere")
    model = seeded(lambda: Net(function), dtype=torch.float32)
    for _ in range(2):
        found = explain(model, X, references, batch_size=12, targets="all")
        assert relative_difference(found.prediction, alone(function, X)) < 1e-5
    assert model.calls == 0
    assert model.kept == {"calls": []}
    assert model.scale is None


def test_a_counter_that_cannot_be_put_back_is_noticed() -> None:
    calls = iter(range(100))
    model = seeded(lambda: Net(lambda net, x, h, y: y if next(calls) < 11 else 2 * y), dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"sequence 3 alone is predicted .* keeps something from one call"):
        explain(model, *pairs("nowhere"), batch_size=12)


def test_numbers_drawn_unseen_are_refused() -> None:
    model = seeded(lambda: Net(lambda net, x, h, y: y * np.random.rand()))
    with pytest.raises(UnsupportedModelError, match=r"draws random numbers|miss the"):
        explain(model, *pairs("nowhere"), batch_size=12)


def test_extra_inputs_stay_with_their_rows() -> None:
    X, references = pairs("nowhere")
    further = torch.linspace(0, 1, N)[:, None]
    by_row = seeded(lambda: Apply(lambda net, x, a: net(x) * a, Net(lambda net, x, h, y: y)))
    assert worst_delta(explain(by_row, X, references, args=(further,), batch_size=12)) < 1e-9
    mixing = seeded(lambda: Apply(lambda net, x, a: net(x) * a.sum(), Net(lambda net, x, h, y: y)))
    with pytest.raises(UnsupportedModelError, match="prediction of a sequence alone differs"):
        explain(mixing, X, references, args=(further,), batch_size=12)


def test_a_model_for_one_row_at_a_time_is_attributed_one_at_a_time() -> None:
    def function(net: Any, x: Tensor, hidden: Tensor, y: Tensor) -> Tensor:
        assert len(x) == 1
        return y * hidden.sum().tanh()

    found = explain(seeded(lambda: Net(function)), *pairs("nowhere"), batch_size=1)
    assert worst_delta(found) < 1e-9


def test_decisions_of_an_earlier_call_are_expected() -> None:
    X, references = pairs("in the first batch")
    model = seeded(lambda: Net(DECIDED["any"]))
    tried = Decisions()
    explain(model, X[:1], references[:1, :2], decisions=tried)
    assert list(tried.expected.values()) == [[False]]
    (line,) = tried.expected
    assert line.startswith("test_rows.py, line ")
    expected = Decisions(tried.expected)
    with pytest.raises(DecisionError, match=r"sequence 0: .* decides True, and False for the sequences before"):
        explain(model, X[1:2], references[1:2], decisions=expected)
    explain(model, X[2:], references[2:], decisions=expected)
    with pytest.raises(DecisionError, match="where the sequence that the model was tried on was not asked"):
        explain(model, X[2:], references[2:], decisions=Decisions({}))


def test_an_audit_lists_what_mixes_rows() -> None:
    X, references = pairs("nowhere")
    found = audit(seeded(lambda: Net(MIXED["mean"][0])), X, references, device="cpu")
    assert len(found.refused) == 1
    assert "'mean' in the model (Net) goes over all rows" in found.refused[0]


class Recurrent(nn.Module):
    """A recurrent layer, which lists its weights anew whenever it is moved, and a list of its own that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.settings = nn.LSTM(4, 3, batch_first=True), ["mean"]

    def forward(self, x: Tensor) -> Tensor:
        steps = self.layer(x.mT)[0]
        return steps.mean(1) if self.settings == ["mean"] else (steps - steps.mean(0)).mean(1)


def test_a_recurrent_model_is_asked_once_and_again_where_its_lists_change() -> None:
    model = seeded(Recurrent)
    X = sequences(2)
    given = {"device": "cpu", "batch_size": 4}
    with mock.patch.object(mixing, "_trace_rows", wraps=mixing._trace_rows) as asked:
        first = attribute(model, X, shuffled(X, 2), **given)
        again = attribute(model, X, shuffled(X, 2), **given)
        assert asked.call_count == 1
        assert torch.equal(first.hypothetical, again.hypothetical)
        model.settings[0] = "apart"
        with pytest.raises(UnsupportedModelError):
            attribute(model, X, shuffled(X, 2), **given)
    assert asked.call_count == 2
