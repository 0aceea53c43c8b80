"""Finding rows by name, locus and region, and reading them in blocks, with xarray and with torch."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.messages.errors import UserError
from pipeline.store.reader import Store, _runs
from pipeline.store.rows import Region, rows_overlapping
from pipeline.store.schema import LAYOUT, TABLE
from tests.pipeline.exports.stores import make_store, random_codes

N, LENGTH = 20, 31
LOCI = [("chr1" if row < 12 else "chr2", 100 + 10 * row) for row in range(N)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    names = [f"peak{row % 18}" for row in range(N)]  # two names occur twice
    path = tmp_path_factory.mktemp("lookup") / "a.zarr"
    return make_store(path, random_codes(N, LENGTH), LOCI, names, targets=(0, 3), rows_per_shard=6)


def test_rows_are_found_by_name(store: Store) -> None:
    assert store.rows_named("peak5").tolist() == [5]
    assert store.rows_named("peak1", "peak3").tolist() == [1, 3, 19]
    with pytest.raises(UserError, match=r"2 of 3 names are not in the store: 'Peak5', 'x'"):
        store.rows_named("x", "peak5", "Peak5")


def test_rows_are_found_by_locus(store: Store) -> None:
    assert store.rows_at("chr1", 130, 130 + LENGTH).tolist() == [3]
    assert store.rows_at("chr1", 130, 130).tolist() == []
    assert store.rows_at("chr2", 130, 130 + LENGTH).tolist() == []


def test_regions_are_half_open(store: Store) -> None:
    first = Region("chr1", 100, 100 + LENGTH)
    assert store.rows_overlapping("chr1:100-101").tolist() == [0]
    assert store.rows_overlapping(Region("chr1", 0, 100)).tolist() == []
    assert 0 in store.rows_overlapping(Region("chr1", first.end - 1, first.end))
    assert 0 not in store.rows_overlapping(Region("chr1", first.end, first.end + 1))
    assert store.rows_overlapping("chr2").tolist() == list(range(12, N))
    assert store.rows_overlapping("chr1:100-101", "chr2:220-221").tolist() == [0, 12]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 9)), min_size=1), st.data())
def test_overlap_is_sharing_a_base(windows: list[tuple[str, int, int]], data: st.DataObject) -> None:
    chrom, start, size = (np.array(column) for column in zip(*windows, strict=True))
    begin, width = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 9))
    name = data.draw(st.sampled_from(sorted(set(chrom.tolist()))))
    shared = [
        row
        for row, (where, at, n) in enumerate(windows)
        if where == name and set(range(at, at + n)) & set(range(begin, begin + width))
    ]
    assert rows_overlapping(chrom, start, start + size, [Region(name, begin, begin + width)]).tolist() == shared


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chr1:100-200", Region("chr1", 100, 200)),
        (" chr1:1,000-2,000", Region("chr1", 1000, 2000)),
        ("HLA-A*01:01:1-5", Region("HLA-A*01:01", 1, 5)),
    ],
)
def test_regions_are_read(text: str, expected: Region) -> None:
    assert Region.parse(text) == expected
    assert str(Region.parse("chrX")) == "chrX"
    assert Region.of(f"chr1:{'9' * 5000}-{'9' * 5000}") is None  # Python refuses numbers of so many digits


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr1:200-100", "does not lie behind"),
        ("chr1:5-5", "does not lie behind"),
        ("1:100-200", "the store calls it 'chr1'"),
        ("chr9", "the store has chr1, chr2"),
        ("chr1:100", "no row lies on 'chr1:100'"),
    ],
)
def test_regions_that_cannot_be_are_named(store: Store, region: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store.rows_overlapping(region)


def test_a_store_without_loci_says_so(tmp_path: Path) -> None:
    plain = make_store(tmp_path / "plain.zarr", random_codes(3, 12))
    with pytest.raises(UserError, match="had no loci"):
        plain.rows_overlapping("chr1:1-2")


# --- reading --------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.data())
def test_blocks_hold_the_rows_that_were_asked_for(store: Store, data: st.DataObject) -> None:
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, N - 1), min_size=1))))
    target = data.draw(st.sampled_from([None, 0, 1]))
    window = data.draw(st.sampled_from([None, slice(3, 9)]))
    names = ["codes", "attribution", "hypothetical", "prediction"]
    blocks = list(store.blocks(names, rows, target, window))
    assert np.concatenate([block.rows for block in blocks]).tolist() == rows.tolist()
    for name in names:
        expected = np.asarray(store[name][:])[rows]
        if target is not None and "target" in LAYOUT[name][0]:
            expected = expected[:, target]
        if window is not None and "position" in LAYOUT[name][0]:
            expected = expected[..., window]
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), expected)


@given(st.lists(st.integers(0, 12), min_size=1).map(sorted), st.integers(1, 4))
def test_runs_tile_the_rows_and_leave_gaps_out(chunks: list[int], most: int) -> None:
    runs = list(_runs(np.array(chunks), most))
    assert [row for start, stop in runs for row in range(start, stop)] == list(range(len(chunks)))
    for start, stop in runs:
        held = sorted(set(chunks[start:stop]))
        assert held == list(range(held[0], held[-1] + 1))  # nothing else lies between
        assert len(held) <= most


def test_blocks_are_of_a_bounded_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.reader.BLOCK_BYTES", 1)
    sizes = [len(block.rows) for block in store.blocks(["hypothetical"])]
    assert sizes == [6, 6, 6, 2]


def test_rows_are_taken_in_any_order(store: Store) -> None:
    rows = [7, 0, 19, 7]
    found = store.take(["codes", "hypothetical"], rows, target=1)
    np.testing.assert_array_equal(found["codes"], np.asarray(store.codes[:])[rows])
    np.testing.assert_array_equal(found["hypothetical"], np.asarray(store.hypothetical[:])[rows, 1])
    assert store.take(["codes"], [])["codes"].shape == (0, LENGTH)


def test_what_is_there_of_an_incomplete_store(tmp_path: Path) -> None:
    part = make_store(tmp_path / "part.zarr", random_codes(14, 12), done=[0, 2])
    assert np.flatnonzero(part.present).tolist() == [0, 1, 2, 3, 4, 5, 12, 13]
    assert len(part.to_torch()) == 8


# --- xarray and torch -----------------------------------------------------------------------------------------------


def test_xarray_has_the_arrays_and_the_row_table(store: Store) -> None:
    dataset = store.to_xarray()
    assert set(dataset.data_vars) == set(LAYOUT)
    assert set(TABLE) <= set(dataset.coords)
    some = dataset.isel(sequence=[2, 5], target=1)
    np.testing.assert_array_equal(some["attribution"], np.asarray(store.attribution[:])[[2, 5], 1])
    assert some["start"].values.tolist() == [120, 150]


def test_torch_items_are_the_rows(store: Store) -> None:
    dataset = store.to_torch(rows=np.array([4, 1]), target=1, window=10)
    assert len(dataset) == 2
    item = dataset[1]
    middle = slice(LENGTH // 2 - 5, LENGTH // 2 + 5)
    assert item["sequence"].shape == (4, 10)
    np.testing.assert_array_equal(item["attribution"], store.attribution[1, 1, middle])
    np.testing.assert_array_equal(item["hypothetical"], store.hypothetical[1, 1, :, middle])
    observed = (item["hypothetical"] * item["sequence"]).sum(dim=0)
    torch.testing.assert_close(observed, item["attribution"])
    assert float(item["prediction"]) == store.prediction[1, 1]


def test_torch_batches_are_the_same_after_pickling(store: Store) -> None:
    dataset = pickle.loads(pickle.dumps(store.to_torch()))
    batches = list(DataLoader(dataset, batch_size=8, shuffle=False))
    assert [len(batch["prediction"]) for batch in batches] == [8, 8, 4]
    together = torch.cat([batch["hypothetical"] for batch in batches])
    np.testing.assert_array_equal(together, store.hypothetical[:])


def test_torch_refuses_what_is_not_there(store: Store) -> None:
    with pytest.raises(UserError, match="40 bases does not fit into sequences of 31"):
        store.to_torch(window=40)
    with pytest.raises(UserError, match="rows 3 to 20 of a store of 20 rows"):
        store.to_torch(rows=np.array([3, 20]))
    with pytest.raises(UserError, match="target 2 of 2"):
        store.to_torch(target=2)
