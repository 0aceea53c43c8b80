"""The bigWig writer, read back by pyBigWig: values, zoom levels and totals, with trees of several depths."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyBigWig
import pytest

from pipeline.exports import bigwig_file
from pipeline.exports.bigwig_file import BigWigFile

SIZES = {"chr1": 40_000, "chr10": 300, "chr2": 9_000, "chrUn_é": 50, "x": 700}


@pytest.mark.parametrize(("per_node", "per_section"), [(256, 4096), (3, 100)])
def test_it_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_node: int, per_section: int) -> None:
    for name, value in (("PER_NODE", per_node), ("PER_SECTION", per_section), ("PER_BLOCK", per_section // 8)):
        monkeypatch.setattr(bigwig_file, name, value)
    generator, written = np.random.default_rng(0), {}
    file = BigWigFile(tmp_path / "a.bw", SIZES)
    for chrom in sorted(SIZES):
        values, at = np.full(SIZES[chrom], np.nan, np.float32), 3
        while at < SIZES[chrom] - 20:
            width = int(generator.integers(1, 600))
            part = generator.normal(size=len(values[at : at + width])).astype(np.float32)
            part[generator.random(len(part)) < 0.01] = np.nan
            values[at : at + width] = part
            file.add(chrom, at, part)
            at += width + int(generator.integers(0, 2)) * int(generator.integers(1, 300))
        written[chrom] = values
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.bw"]
    all_of_it = np.concatenate(list(written.values())).astype(np.float64)
    known = all_of_it[~np.isnan(all_of_it)]
    with pyBigWig.open(str(tmp_path / "a.bw")) as track:
        assert track.chroms() == SIZES
        for chrom, values in written.items():
            np.testing.assert_array_equal(track.values(chrom, 0, SIZES[chrom], numpy=True), values)
        header = track.header()
        assert (header["nBasesCovered"], header["minVal"]) == (len(known), int(known.min()))
        assert header["sumData"] == int(known.sum())
        assert header["nLevels"] > 3
        long = written["chr1"].astype(np.float64)
        for width in (128, 2048, 8192):  # four summaries of a level, or more: no value is read
            bins = long[: len(long) // width * width].reshape(-1, width)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a bin without a value
                expected = {"min": np.nanmin(bins, 1), "max": np.nanmax(bins, 1), "mean": np.nanmean(bins, 1)}
            for kind, of_bins in expected.items():
                found = track.stats("chr1", 0, bins.size, type=kind, nBins=len(bins))
                found = np.array([np.nan if value is None else value for value in found])
                np.testing.assert_allclose(found, of_bins, atol=1e-6)


def test_nothing_and_one_value(tmp_path: Path) -> None:
    for count in (0, 1):
        file = BigWigFile(tmp_path / "a.bw", {"chr1": 9})
        if count:
            file.add("chr1", 8, np.array([2.5]))
        file.close()
        with pyBigWig.open(str(tmp_path / "a.bw")) as track:
            assert track.header()["nBasesCovered"] == count
            assert track.intervals("chr1") == (((8, 9, 2.5),) if count else None)
