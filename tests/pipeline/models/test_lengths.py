"""The length that a model wants is found where its layers show it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models import lengths
from pipeline.models.bpnet import BPNet
from pipeline.models.forward_arguments import Filled
from pipeline.models.lengths import length_hint, wanted_lengths


def pooled(n_features: int = 48) -> nn.Module:
    """8 channels x 6 places: 6 = (L - 4) // 4, so L is 28 to 31."""
    return nn.Sequential(nn.Conv1d(4, 8, 5), nn.ReLU(), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(n_features, 1))


class Rows(nn.Module):
    """Views its features as rows, of which there is one for each sequence."""

    def __init__(self, reshape: bool) -> None:
        super().__init__()
        self.layer, self.reshape = nn.Linear(40, 1), reshape

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape((-1, 40)) if self.reshape else x.view(-1, 40))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 4 * 300))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(4, 30))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.places).sum(-1)


class Table(nn.Module):
    """A table of 12 places, of which fewer may be used."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.places(torch.arange(x.shape[-1])).T).sum(-1)


class Exact(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 12, "sequences of 12 bases, please"
        return x.sum(-1)


@pytest.mark.parametrize(
    ("make", "length", "wanted"),
    [
        (pooled, 100, (28, 31)),
        (pooled, 27, (28, 31)),
        (pooled, 32, (28, 31)),
        (pooled, 9, (28, 31)),
        (pooled, 28, None),  # it takes that
        (lambda: pooled(47), 100, None),  # no length gives 47 features
        (lambda: Rows(False), 25, (10, 10)),
        (lambda: Rows(True), 7, (10, 10)),
        (Functional, 200, (300, 300)),
        (lambda: nn.Linear(300, 1), 200, (300, 300)),
        (Positions, 20, (30, 30)),
        (Positions, 300, (30, 30)),
        (Table, 20, (1, 12)),
        (Exact, 9, (12, 12)),  # nothing but the words of its error
        (lambda: nn.Conv1d(4, 1, 57), 20, (57, None)),
        (lambda: BPNet(2, 2, trimming=9), 18, (19, None)),
        (lambda: nn.Conv1d(5, 1, 1), 20, None),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(10**6, 1)), 8, None),  # beyond the longest that is tried
    ],
)
def test_lengths(make: Callable[[], nn.Module], length: int, wanted: tuple[int, int | None] | None) -> None:
    assert wanted_lengths(make().eval(), length) == wanted


class WithTrack(nn.Module):
    """Takes 30 bases, a dose and a track along them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5 * 30, 1)

    def forward(self, x: Tensor, dose: Tensor, track: Tensor) -> Tensor:
        return self.linear(torch.cat([x, track], dim=1).flatten(1)) * dose


def test_tracks_are_as_long_as_what_is_tried() -> None:
    args = [torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1, 47)]
    assert wanted_lengths(Filled(WithTrack().eval(), args, 47), 47) == (30, 30)


def test_trying_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "TIME_LIMIT_S", -1)
    assert wanted_lengths(pooled().eval(), 100) is None


@pytest.mark.parametrize(
    ("make", "length", "cuts", "said"),
    [
        (Positions, 20, True, "30 bases, not of 20; dataset.length=30 cuts the windows to that"),
        (pooled, 100, True, "28 to 31 bases, not of 100; dataset.length=31 cuts"),
        (Table, 20, False, "at most 12 bases, not of 20; give sequences of that length, or windows of a genome: "),
        (lambda: nn.Conv1d(4, 1, 57), 20, False, "57 bases or more, not of 20; take the length .* trained on$"),
        (lambda: BPNet(2, 2, trimming=9), 18, True, "19 bases or more, not of 18; .* trained on: dataset.length="),
    ],
)
def test_both_lengths_and_the_way_out_are_said(
    make: Callable[[], nn.Module], length: int, cuts: bool, said: str
) -> None:
    assert re.search(f"^the model takes sequences of {said}", str(length_hint(make().eval(), length, cuts)))
