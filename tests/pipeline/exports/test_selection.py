"""Which rows and which target an export takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.exports import modisco
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes


def test_all_filters_must_be_passed(located: Store) -> None:
    rows = select(located, Filters(names=("peak 0", "peak 1", "peak 3"), regions=("chr10",)), "7", None).rows
    assert rows.tolist() == [0, 3]
    with pytest.raises(UserError, match=r"no row of .* is left to export; asked for were 1 name and regions chr10"):
        select(located, Filters(names=("peak 1",), regions=("chr10",)), "7", None)


def test_top_rows_are_those_with_the_most_attribution_in_the_window(located: Store) -> None:
    window = slice(20 - 5, 20 + 5)
    signal = np.abs(np.asarray(located.attribution[:])[:, 1, window]).sum(axis=1)
    chosen = select(located, Filters(top=4), "7", 10)
    assert chosen.rows.tolist() == sorted(np.argsort(-signal)[:4].tolist())
    assert chosen.window == window
    assert select(located, Filters(top=4), "0", 10).rows.tolist() != chosen.rows.tolist()
    assert len(select(located, Filters(top=99), "7", 10)) == len(located)


def test_rows_are_drawn_by_the_seed(located: Store) -> None:
    draws = [select(located, Filters(max_rows=5, seed=seed), "0", None).rows.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == sorted(set(draws[0]))
    assert len(draws[0]) == 5


def test_a_target_must_be_named_where_there_are_several(located: Store, plain: Store) -> None:
    assert select(located, Filters(), "7", None).target == 1
    assert select(plain, Filters(), None, None).target == 0
    with pytest.raises(UserError, match=r"has 2 targets; choose one with --target: 0, 7"):
        select(located, Filters(), None, None)
    with pytest.raises(UserError, match=r"--target 1: .* has the targets 0, 7"):
        select(located, Filters(), "1", None)


def test_a_window_must_fit(plain: Store) -> None:
    with pytest.raises(UserError, match="window of 25 bases does not fit into sequences of 24 bases"):
        select(plain, Filters(), None, 25)
    widths = [modisco.EXPORT.width(length) for length in (24, 25, 1000)]
    assert widths == [24, 24, 400]


def test_rows_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    part = make_store(tmp_path / "part.zarr", random_codes(14, 12), done=[1, 2])
    assert select(part, Filters(), None, None).rows.tolist() == list(range(6, 14))
    assert not np.isnan(part.take(["attribution"], select(part, Filters(top=3), None, None).rows)["attribution"]).any()
    nothing = make_store(tmp_path / "nothing.zarr", random_codes(14, 12), done=[])
    with pytest.raises(UserError, match="none is finished yet"):
        select(nothing, Filters(), None, None)
