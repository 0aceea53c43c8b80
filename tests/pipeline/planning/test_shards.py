"""Shards: they tile the rows, and what is left is what is not done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.messages.errors import UserError
from pipeline.planning.shards import Shard, n_shards, remaining, select, shard_at, shared_order

sizes = st.tuples(st.integers(1, 500), st.integers(1, 60))


@given(sizes)
def test_shards_tile_the_rows(size: tuple[int, int]) -> None:
    n_rows, rows_per_shard = size
    shards = [shard_at(index, n_rows, rows_per_shard) for index in range(n_shards(n_rows, rows_per_shard))]
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(n_rows))
    assert all(len(shard) == rows_per_shard for shard in shards[:-1])
    with pytest.raises(IndexError):
        shard_at(len(shards), n_rows, rows_per_shard)


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.data())
def test_remaining_and_done_are_all_that_were_chosen(done: list[bool], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(done) - 1))
    chosen = range(first, data.draw(st.integers(first, len(done))))
    left = remaining(chosen, np.array(done))
    assert left.tolist() == [index for index in chosen if not done[index]]


def test_selections_include_both_ends() -> None:
    assert select(5, None) == range(5)
    assert select(5, "1-3") == range(1, 4)
    assert select(5, "4") == range(4, 5)
    assert shard_at(4, 10, 2) == Shard(4, 8, 10)
    for wrong in ("3-1", "0-5", "7"):
        with pytest.raises(UserError, match=rf"run\.shards={wrong}, but there are 5 shards, 0-4"):
            select(5, wrong)
    with pytest.raises(UserError, match=r"run\.shards=1, but there is 1 shard, 0"):
        select(1, "1")


@given(st.lists(st.integers(0, 10**6), unique=True).map(sorted), st.integers(0, 40))
def test_commands_that_share_the_work_have_the_same_shards(shards: list[int], rank: int) -> None:
    assert sorted(shared_order(np.array(shards, dtype=np.int64), rank).tolist()) == shards


def test_commands_that_share_the_work_begin_apart() -> None:
    shards = np.arange(100, 164)
    assert shared_order(shards, 0).tolist() == shards.tolist()
    assert shared_order(shards, 1).tolist() == shards[::-1].tolist()
    assert [int(shared_order(shards, rank)[0]) - 100 for rank in range(2, 9)] == [32, 16, 48, 8, 40, 24, 56]
    assert shared_order(shards, 2)[:3].tolist() == [132, 133, 134]
