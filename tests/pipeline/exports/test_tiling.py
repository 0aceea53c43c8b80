"""Overlapping windows, cut: compared base by base with the rule spelled out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exports.tiling import shares


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 15))
def test_every_base_goes_to_the_nearest_centre_that_reaches_it(starts: set[int], length: int) -> None:
    start = np.array(sorted(starts))
    centre, end = start + length // 2, start + length
    first, last = shares(start, end, centre)
    for base in range(-1, 80):
        reach = [i for i in range(len(start)) if start[i] <= base < end[i]]
        owners = [i for i in range(len(start)) if first[i] <= base < last[i]]
        nearest = min(reach, key=lambda i: (abs(base - centre[i]), centre[i]), default=None)
        assert owners == ([] if nearest is None else [nearest])


def test_a_base_in_the_middle_goes_to_the_left() -> None:
    first, last = shares(np.array([0, 4]), np.array([9, 13]), np.array([4, 8]))
    assert (first.tolist(), last.tolist()) == ([0, 7], [7, 13])  # base 6 is as far from 4 as from 8
