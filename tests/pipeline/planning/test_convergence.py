"""Summaries of convergence deltas add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deltas import combine, quantile, summarise

sizes = st.lists(st.sampled_from([0.0, 1e-13, -1e-9, 2e-7, -3e-4, 0.01, 5.0, 1e9]), min_size=2, max_size=40)


@given(sizes, st.data())
def test_parts_add_up_to_the_whole(sizes: list[float], data: st.DataObject) -> None:
    deltas = np.array(sizes, dtype=np.float64).reshape(-1, 1, 1)
    cut = data.draw(st.integers(1, len(sizes) - 1))
    parts = [summarise(deltas[:cut], 10, 1e-3), summarise(deltas[cut:], 10 + cut, 1e-3)]
    assert combine(parts) == combine([summarise(deltas, 10, 1e-3)])


@given(sizes, st.sampled_from([0.5, 0.9, 1.0]))
def test_quantiles_are_a_bin_too_large_at_most(sizes: list[float], share: float) -> None:
    summary = summarise(np.array(sizes, dtype=np.float64).reshape(-1, 1, 1), 0, 1e-3)
    exact = float(np.quantile(np.abs(sizes), share, method="inverted_cdf"))
    found = quantile(summary, share)
    assert found is not None
    assert exact <= found * (1 + 1e-9)
    assert found <= max(1.26 * exact, 1e-12)


def test_what_is_not_finite_is_the_worst() -> None:
    deltas = np.array([[1e-9, 5.0], [np.nan, 0.0], [1e-9, 1e-9]]).reshape(3, 1, 2)
    total = combine([summarise(deltas[:2], 0, 1e-3), summarise(deltas[2:], 2, 1e-3)])
    assert (total["n_over"], total["n_not_finite"], total["largest"], total["worst_row"]) == (2, 1, None, 1)
    assert quantile(total, 1.0) is None
    assert quantile(total, 0.5) == pytest.approx(1e-9, rel=0.3)
