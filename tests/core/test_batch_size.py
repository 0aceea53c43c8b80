"""Batches hold whole sequences where they fit, and no more pairs than a GPU's memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dlshap_core import deep_lift_shap
from dlshap_core.batch_size import FEW, MORE, USED, auto_batch_size, fitting, pairs_that_fit, split_evenly


@given(st.integers(1, 10**6), st.integers(1, 200), st.sampled_from(["cpu", "cuda"]))
def test_automatic_batches_hold_whole_sequences_or_parts_of_one(length: int, n_references: int, device: str) -> None:
    pairs = auto_batch_size(length, n_references, device)
    assert pairs >= 1
    assert pairs < n_references or pairs % n_references == 0
    assert pairs * length <= max(2**21, length)


def test_two_pairs_of_a_long_sequence_where_they_fit() -> None:
    assert [auto_batch_size(1 << 18, 20, "cpu", most) for most in (None, 1, 2, 50)] == [1, 1, 2, 2]


@given(st.integers(1 << 17, 1 << 30), st.integers(0, 1 << 30), st.integers(1 << 28, 1 << 37), st.floats(0.1, 1))
def test_what_fits_fits_and_one_more_does_not(of_pair: int, fixed: int, free: int, share: float) -> None:
    n = fitting(fixed + FEW * of_pair, fixed + MORE * of_pair, free, share)
    assert n >= 1
    assert n == 1 or fixed + n * of_pair <= USED * share * free * (1 + 1e-9)
    assert fixed + (n + 1) * of_pair > USED * share * free * (1 - 1e-9)


def test_batches_that_take_nothing_have_a_limit_too() -> None:
    assert 1 <= fitting(0, 0, 1 << 34, 1.0) < 1 << 20


@given(st.integers(1, 50), st.integers(1, 50))
def test_sequences_of_a_batch_share_its_pairs(n_pairs: int, n_references: int) -> None:
    n_sequences, k = split_evenly(n_pairs, n_references)
    assert 1 <= k <= n_references
    assert n_pairs <= n_sequences * k < n_pairs + n_sequences


def test_a_cpu_is_not_asked() -> None:
    assert pairs_that_fit(lambda n: pytest.fail("it was run"), "cpu") is None


@pytest.mark.parametrize(
    ("counted", "free"),
    [("", 1 << 34), ("nothing", 1 << 34), ("all", None)],
    ids=["an allocator that does not count", "one that counts nothing", "a driver that does not say what is free"],
)
def test_where_memory_cannot_be_counted_what_was_tried_fits(
    monkeypatch: pytest.MonkeyPatch, counted: str, free: int | None
) -> None:
    def told(value: int | None) -> Any:
        def tell(device: str) -> int:
            if value is None:
                raise RuntimeError("not supported")
            return value

        return tell

    held = {"": None, "nothing": 0, "all": 1 << 20}[counted]
    for name in ("reset_peak_memory_stats", "memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, told(None if held is None else 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", told(held))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (told(free)(device), 1 << 35))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    tried: list[int] = []
    assert pairs_that_fit(tried.append, "cuda") == MORE
    assert tried == [FEW, FEW, MORE]


@pytest.mark.gpu
def test_the_batch_found_runs_on_a_gpu() -> None:
    def run(n: int) -> None:
        torch.zeros(n, 1 << 24, device="cuda").add_(1)

    n = pairs_that_fit(run, "cuda")
    assert n is not None
    run(n)


ROWS: list[int] = []


class Counting(nn.Module):
    """Notes the rows that it is given, where no call puts back what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * 3000, 1)

    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        return self.linear(x.flatten(1).tanh())


def test_on_a_cpu_batches_stay_near_its_caches() -> None:
    codes = torch.randint(0, 4, (30, 3000), generator=torch.Generator().manual_seed(0))
    X = nn.functional.one_hot(codes, 4).transpose(1, 2).float()
    model = Counting().eval()
    ROWS.clear()
    options = {"n_shuffles": 4, "random_state": 0, "device": "cpu"}
    found = deep_lift_shap(model, X, batch_size="auto", **options)
    assert max(ROWS) == auto_batch_size(3000, 4, "cpu") == 40
    torch.testing.assert_close(found, deep_lift_shap(model, X, batch_size=1000, **options), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size must be a number of pairs or 'auto', not 'Auto'"):
        deep_lift_shap(model, X, batch_size="Auto", **options)
