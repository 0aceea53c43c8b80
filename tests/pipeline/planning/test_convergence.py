"""Summaries of convergence deltas add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.convergence import STEPS, Thresholds, combine, quantile, summarise
from pipeline.planning.number_types import NUMBER_TYPES

THRESHOLDS = Thresholds(1e-3, 0.01, STEPS * NUMBER_TYPES["float32"].epsilon)


def summary_of(deltas: np.ndarray, first_row: int = 0) -> dict[str, Any]:
    """Of pairs that are predicted 1 and 0."""
    return summarise(deltas, np.ones(deltas.shape[:2]), np.zeros_like(deltas), first_row, THRESHOLDS)


sizes = st.lists(st.sampled_from([0.0, 1e-13, -1e-9, 2e-7, -3e-4, 0.01, 5.0, 1e9]), min_size=2, max_size=40)


@given(sizes, st.data())
def test_parts_add_up_to_the_whole(sizes: list[float], data: st.DataObject) -> None:
    deltas = np.array(sizes, dtype=np.float64).reshape(-1, 1, 1)
    cut = data.draw(st.integers(1, len(sizes) - 1))
    parts = [summary_of(deltas[:cut], 10), summary_of(deltas[cut:], 10 + cut)]
    assert combine(parts) == combine([summary_of(deltas, 10)])


@given(sizes, st.sampled_from([0.5, 0.9, 1.0]))
def test_quantiles_are_a_bin_too_large_at_most(sizes: list[float], share: float) -> None:
    summary = summary_of(np.array(sizes, dtype=np.float64).reshape(-1, 1, 1))
    exact = float(np.quantile(np.abs(sizes), share, method="inverted_cdf"))
    found = quantile(summary, share)
    assert found is not None
    assert exact <= found * (1 + 1e-9)
    assert found <= min(max(1.26 * exact, 1e-12), np.abs(sizes).max())


def test_what_is_not_finite_is_the_worst() -> None:
    deltas = np.array([[1e-9, 5.0], [np.nan, 0.0], [1e-9, 1e-9]]).reshape(3, 1, 2)
    total = combine([summary_of(deltas[:2]), summary_of(deltas[2:], 2)])
    assert (total["n_over"], total["n_not_finite"], total["largest"], total["worst_row"]) == (2, 1, None, 1)
    assert quantile(total, 1.0) is None
    assert quantile(total, 0.5) == pytest.approx(1e-9, rel=0.3)


@pytest.mark.parametrize(
    ("delta", "prediction", "reference", "n_over", "n_over_relative"),
    [
        (2e-7, 1e-6, 0.0, 0, 1),  # a fifth of a tiny difference
        (2e-7, 1e-4, 0.0, 0, 0),
        (0.5, 1e4, 0.0, 1, 0),  # nothing, for an output of this size
        (5e-4, 1000.5, 1000.4, 0, 0),  # what float32 leaves of a small difference beside a large constant
        (1e-5, 2.0, 2.0, 0, 1),  # no difference to explain, and more than rounding
        (1e-6, 2.0, 2.0, 0, 0),
        (np.nan, 1.0, 0.0, 1, 1),
        (0.0, np.nan, 0.0, 0, 1),
    ],
)
def test_a_delta_is_judged_by_the_difference_explained_too(
    delta: float, prediction: float, reference: float, n_over: int, n_over_relative: int
) -> None:
    pair = np.full((1, 1, 1), delta), np.full((1, 1), prediction), np.full((1, 1, 1), reference)
    found = summarise(*pair, 0, THRESHOLDS)
    assert (found["n_over"], found["n_over_relative"]) == (n_over, n_over_relative)
