"""bigWig: every base compared with the rule spelled out, through pyBigWig."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.exports import bigwig
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes


def expected(store: Store, target: int = 0) -> dict[str, dict[int, float]]:
    """The value of every base, by going through all rows for each: chromosome -> base -> value."""
    attribution, rows = np.asarray(store.attribution[:])[:, target], store.rows
    length = attribution.shape[1]
    best: dict[tuple[str, int], tuple[int, int, int, float]] = {}
    for row, (chrom, start) in enumerate(zip(rows["chrom"], rows["start"], strict=True)):
        centre = int(start) + length // 2
        for at in range(length):
            base = int(start) + at
            claim = (abs(base - centre), centre, row, float(attribution[row, at]))
            best[chrom, base] = min(best.get((chrom, base), claim), claim)
    values: dict[str, dict[int, float]] = {}
    for (chrom, base), claim in best.items():
        values.setdefault(str(chrom), {})[base] = claim[3]
    return values


def assert_track(path: Path, wanted: dict[str, dict[int, float]]) -> None:
    with pyBigWig.open(str(path)) as track:
        assert set(track.chroms()) == set(wanted)
        for chrom, bases in wanted.items():
            found = track.values(chrom, 0, track.chroms(chrom))
            for base, value in enumerate(found):
                if base in bases:
                    assert value == bases[base], f"{chrom}:{base}"
                else:
                    assert math.isnan(value), f"{chrom}:{base}"


def write(store: Store, out: Path, filters: Filters | None = None, chrom_sizes: Path | None = None) -> list[str]:
    selection = select(store, filters or Filters(), None, None)
    return bigwig.export(selection, out, True, lambda n_rows: None, chrom_sizes).notes


@settings(max_examples=15)
@given(
    loci=st.lists(st.tuples(st.sampled_from(["chr10", "chr2", "2"]), st.integers(0, 60)), min_size=1, max_size=14),
    length=st.integers(1, 23),
)
def test_any_overlap_gives_each_base_the_nearest_rows_value(
    tmp_path_factory: pytest.TempPathFactory, loci: list[tuple[str, int]], length: int
) -> None:
    folder = tmp_path_factory.mktemp("track")
    store = make_store(folder / "a.zarr", random_codes(len(loci), length), loci)
    write(store, folder / "a.bw")
    assert_track(folder / "a.bw", expected(store))


def test_a_planted_base_lies_where_it_was_planted(tmp_path: Path) -> None:
    length, at = 30, 17
    hypothetical = np.zeros((2, 1, 4, length))
    hypothetical[1, 0, :, at] = 5
    store = make_store(
        tmp_path / "a.zarr",
        random_codes(2, length, unknown=0),
        [("chr1", 500), ("chr1", 1000)],
        hypothetical=hypothetical,
    )
    write(store, tmp_path / "a.bw")
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        values = np.nan_to_num(track.values("chr1", 0, track.chroms("chr1")))
        assert np.flatnonzero(values).tolist() == [1000 + at]
        assert track.intervals("chr1", 1000 + at, 1000 + at + 1) == ((1000 + at, 1000 + at + 1, 5.0),)


def test_only_the_selected_rows_are_there(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(3, 10), [("chr1", 0), ("chr1", 5), ("chr1", 90)])
    write(store, tmp_path / "a.bw", Filters(names=("row1",)))
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        assert [round(start) for start, _, _ in track.intervals("chr1")] == list(range(5, 15))


def test_sizes_come_from_a_table_or_the_genome_of_the_run_or_the_rows(tmp_path: Path) -> None:
    codes, loci = random_codes(2, 10), [("chr2", 3), ("chr1", 40)]
    source = {"chrom_sizes": {"chr1": 5000, "chr2": 700, "chr3": 9}}
    store = make_store(tmp_path / "a.zarr", codes, loci, source=source)
    assert write(store, tmp_path / "a.bw") == []
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        assert track.chroms() == {"chr1": 5000, "chr2": 700}
    sizes = tmp_path / "sizes"
    sizes.write_text("# comment\nchr1 60\nchr2 80\n")
    assert write(store, tmp_path / "a.bw", chrom_sizes=sizes) == []
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        assert track.chroms() == {"chr1": 60, "chr2": 80}
    (note,) = write(make_store(tmp_path / "b.zarr", codes, loci), tmp_path / "a.bw")
    assert "largest end of a row (chr1 50, chr2 13)" in note


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("chr1 30\n", "chr1 has 30 bases, but a row of the store ends at 50"),
        ("1 3000\n", "no chromosome 'chr1'"),
        ("chr1\n", "line 1: expected a chromosome and its size"),
        ("chr1 many\n", "line 1: expected a chromosome and its size"),
        (None, "no such file"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path: Path, table: str | None, message: str) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(1, 10), [("chr1", 40)])
    path = tmp_path / "sizes"
    if table is not None:
        path.write_text(table)
    with pytest.raises(UserError, match=message):
        write(store, tmp_path / "a.bw", chrom_sizes=path)
    assert not (tmp_path / "a.bw").exists()


def test_rows_at_the_same_place_count_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(3, 10), [("chr1", 4), ("chr1", 4), ("chr1", 9)])
    notes = write(store, tmp_path / "a.bw")
    assert notes[-1] == "1 row centred on the same base as an earlier one left out"
    assert_track(tmp_path / "a.bw", expected(store))


def test_a_store_without_loci_has_no_track(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(2, 10))
    with pytest.raises(UserError, match="had no loci: there is no genome"):
        write(store, tmp_path / "a.bw")


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12), st.integers(1, 15))
def test_every_base_goes_to_the_nearest_centre_that_reaches_it(starts: set[int], length: int) -> None:
    start = np.array(sorted(starts))
    centre, end = start + length // 2, start + length
    first, last = bigwig.shares(start, end, centre)
    for base in range(-1, 80):
        reach = [i for i in range(len(start)) if start[i] <= base < end[i]]
        owners = [i for i in range(len(start)) if first[i] <= base < last[i]]
        nearest = min(reach, key=lambda i: (abs(base - centre[i]), centre[i]), default=None)
        assert owners == ([] if nearest is None else [nearest])


def test_a_base_in_the_middle_goes_to_the_left() -> None:
    first, last = bigwig.shares(np.array([0, 4]), np.array([9, 13]), np.array([4, 8]))
    assert (first.tolist(), last.tolist()) == ([0, 7], [7, 13])  # base 6 is as far from 4 as from 8


@pytest.mark.parametrize("start", [2**32, 2**63 - 50, 10**12])
def test_coordinates_beyond_a_bigwig_are_refused(tmp_path: Path, start: int) -> None:
    store = make_store(tmp_path / "a.zarr", random_codes(1, 20), [("chr1", start)])
    with pytest.raises(UserError, match="a bigWig holds chromosomes of 1 to 4294967295 bases"):
        bigwig.export(select(store, Filters(), None, None), tmp_path / "a.bw", False, lambda n: None, None)
