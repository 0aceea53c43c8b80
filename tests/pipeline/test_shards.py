"""Shards: they tile the rows, and what is left is what is not done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.shards import MAX_BLOCKS, Shard, gaps, n_blocks, n_shards, plan_shards, remaining, select

sizes = st.tuples(st.integers(1, 500), st.integers(1, 60))


@given(sizes)
def test_shards_tile_the_rows(size: tuple[int, int]) -> None:
    n_rows, rows_per_shard = size
    shards = plan_shards(n_rows, rows_per_shard)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(n_rows))
    assert [shard.index for shard in shards] == list(range(n_shards(n_rows, rows_per_shard)))
    assert all(len(shard) == rows_per_shard for shard in shards[:-1])
    assert gaps([(shard.start, shard.stop) for shard in shards], n_rows) == []


@given(sizes, st.data())
def test_a_shard_that_is_missing_or_twice_is_seen(size: tuple[int, int], data: st.DataObject) -> None:
    ranges = [(shard.start, shard.stop) for shard in plan_shards(*size)]
    changed = data.draw(st.sampled_from(ranges))
    assert gaps([other for other in ranges if other != changed], size[0])
    assert gaps([*ranges, changed], size[0])


@given(sizes, st.sets(st.integers(0, 600)))
def test_remaining_and_done_are_all(size: tuple[int, int], done: set[int]) -> None:
    shards = plan_shards(*size)
    left = remaining(shards, done)
    assert {shard.index for shard in left} | (done & set(range(len(shards)))) == set(range(len(shards)))
    assert not {shard.index for shard in left} & done
    assert left == sorted(left, key=lambda shard: shard.index)


def test_selections_include_both_ends() -> None:
    shards = plan_shards(10, 2)
    assert select(shards, None) == shards
    assert [shard.index for shard in select(shards, "1-3")] == [1, 2, 3]
    assert select(shards, "4") == [Shard(4, 8, 10)]
    for wrong in ("3-1", "0-5", "7"):
        with pytest.raises(UserError, match=rf"run\.shards={wrong}, but there are 5 shards, 0-4"):
            select(shards, wrong)


def test_blocks_hold_several_shards_once_there_are_very_many() -> None:
    assert [n_blocks(n) for n in (1, 7, MAX_BLOCKS, 10 * MAX_BLOCKS)] == [1, 7, MAX_BLOCKS, MAX_BLOCKS]
