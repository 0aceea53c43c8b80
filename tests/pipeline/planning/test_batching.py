"""Batches hold whole sequences where they fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.batching import auto_batch_size


@given(st.integers(1, 10**6), st.integers(1, 200), st.sampled_from(["cpu", "cuda"]))
def test_automatic_batches_hold_whole_sequences_or_parts_of_one(length: int, n_references: int, device: str) -> None:
    pairs = auto_batch_size(length, n_references, device)
    assert pairs >= 1
    assert pairs < n_references or pairs % n_references == 0
    assert pairs * length <= max(2**21, length)
