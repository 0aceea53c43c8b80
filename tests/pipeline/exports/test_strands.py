"""Rows that were reverse-complemented for the run are turned back where they are placed on the genome."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyBigWig
import pytest

from dlshap_core.one_hot import one_hot
from pipeline.exports import bigwig, chrombpnet, finemo, modisco
from pipeline.exports.selection import Filters, select
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes

N = 8
STRANDS = ["+", "-", ".", "-"] * 2
MINUS = np.array([strand == "-" for strand in STRANDS])


def pair(folder: Path, length: int, dataset: dict[str, str]) -> tuple[Store, Store]:
    """The same windows of a genome, once all as they are there, once those on the minus strand turned."""
    generator = np.random.default_rng(3)
    codes, hypothetical = random_codes(N, length), generator.normal(size=(N, 1, 4, length))
    loci = [("chr1", 50 * row) for row in range(N)]
    turned_codes, turned_hypothetical = codes.copy(), hypothetical.copy()
    complement = np.array([3, 2, 1, 0, 4], dtype=np.uint8)
    turned_codes[MINUS] = complement[codes[MINUS]][:, ::-1]
    turned_hypothetical[MINUS] = hypothetical[MINUS][:, :, ::-1, ::-1]
    return (
        make_store(folder / "forward.zarr", codes, loci, hypothetical=hypothetical),
        make_store(
            folder / "turned.zarr", turned_codes, loci, None, STRANDS, hypothetical=turned_hypothetical, source=dataset
        ),
    )


@pytest.mark.parametrize("dataset", [{"kind": "loci", "strand": "apply"}, {"kind": "fasta"}])
@pytest.mark.parametrize("length", [20, 21])
def test_exports_are_in_the_forward_frame(tmp_path: Path, dataset: dict[str, str], length: int) -> None:
    for store in pair(tmp_path, length, dataset):
        out = tmp_path / Path(store.url).stem
        selection = select(store, Filters(), None, 10)
        modisco.export(selection, out, False, lambda n_rows: None)
        finemo.export(selection, out, False, lambda n_rows: None, "float32")
        whole = select(store, Filters(), None, None)
        bigwig.export(whole, out / "a.bw", False, lambda n_rows: None, None)
        chrombpnet.export(whole, out / "a", False, lambda n_rows: None, "counts", "float16")
    for name, key in [("ohe", "arr_0"), ("attr", "arr_0"), ("regions", "sequences"), ("regions", "contributions")]:
        with np.load(tmp_path / "forward" / f"{name}.npz") as a, np.load(tmp_path / "turned" / f"{name}.npz") as b:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].any()
    scores = "a.counts_scores.h5"
    with h5py.File(tmp_path / "forward" / scores) as a, h5py.File(tmp_path / "turned" / scores) as b:
        for name in ("raw/seq", "shap/seq", "projected_shap/seq"):
            np.testing.assert_array_equal(a[name], b[name])
    with pyBigWig.open(str(tmp_path / "forward" / "a.bw")) as a, pyBigWig.open(str(tmp_path / "turned" / "a.bw")) as b:
        assert a.chroms() == b.chroms()
        assert a.intervals("chr1") == b.intervals("chr1")


def test_rows_are_as_they_are_where_the_strand_was_only_recorded(tmp_path: Path) -> None:
    _, store = pair(tmp_path, 20, {"kind": "loci", "strand": "ignore"})
    assert not store.on_minus_strand.any()
    (block,) = select(store, Filters(), None, None).blocks(["codes"])
    np.testing.assert_array_equal(one_hot(block["codes"]), one_hot(np.asarray(store.codes[:])))
