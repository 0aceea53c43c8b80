"""Fi-NeMo's files, opened by its own reader."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dlshap_core.one_hot import one_hot
from pipeline.exports import finemo
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store

N_LOST = "float16 keeps 3 digits: 25.00 % of the values other than 0 are below 6.1e-05 and keep fewer, 25.00 % became 0"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The tool's own module that reads regions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        from finemo import data_io
    return data_io


def write(store: Store, out: Path, window: int, target: str | None = None, dtype: str = "float16") -> list[str]:
    selection = select(store, Filters(), target, window)
    return finemo.export(selection, out, True, lambda n_rows: None, dtype).notes


@pytest.mark.parametrize("window", [2, 16, 40])
def test_its_reader_finds_the_store(located: Store, tmp_path: Path, reader: ModuleType, window: int) -> None:
    write(located, tmp_path, window, "7")
    sequences, contributions, peaks, has_peaks = reader.load_regions_npz(str(tmp_path / "regions.npz"))
    middle = slice(20 - window // 2, 20 + window // 2)
    assert has_peaks
    assert (sequences.dtype, contributions.dtype) == (np.int8, np.float16)
    np.testing.assert_array_equal(sequences, one_hot(np.asarray(located.codes[:])[:, middle]))
    hypothetical = np.asarray(located.hypothetical[:])[:, 1, :, middle]
    np.testing.assert_array_equal(contributions, hypothetical.astype(np.float16))
    assert peaks["chr"].to_list() == list(located.rows["chrom"])
    assert peaks["peak_name"].to_list() == list(located.rows["name"])
    np.testing.assert_array_equal(peaks["peak_region_start"], located.rows["start"] + 20 - window // 2)


def test_the_narrow_peak_gives_the_same_regions_as_the_arrays(
    located: Store, tmp_path: Path, reader: ModuleType
) -> None:
    window = 16
    write(located, tmp_path, window, "7")
    kept = reader.load_regions_npz(str(tmp_path / "regions.npz"))[2]
    loaded = reader.load_peaks(str(tmp_path / "regions.narrowPeak"), None, window // 2)
    for column in ("chr", "peak_region_start", "peak_name", "peak_id", "chr_id"):
        assert loaded[column].to_list() == kept[column].to_list()
    lines = (tmp_path / "regions.narrowPeak").read_text().splitlines()
    assert all(len(line.split("\t")) == 10 for line in lines)
    assert lines[1].split("\t") == ["chr2", "1049", "1065", "peak 1", "0", "-", "0", "-1", "-1", "8"]


def test_what_half_precision_loses_is_said(large: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"an attribution of 1e\+05 is too large for float16 .* give --dtype float32"):
        write(large, tmp_path, 10)
    assert list(tmp_path.iterdir()) == []
    assert write(large, tmp_path, 10, dtype="float32") == []
    with np.load(tmp_path / "regions.npz") as found:
        np.testing.assert_array_equal(found["contributions"], np.asarray(large.hypothetical[:])[:, 0])
    selection = select(large, Filters(names=("row0", "row1")), None, 10)
    assert finemo.export(selection, tmp_path / "two", False, lambda n_rows: None, "float16").notes == [N_LOST]


def test_without_loci_there_are_arrays_alone(plain: Store, tmp_path: Path, reader: ModuleType) -> None:
    notes = write(plain, tmp_path, 24)
    assert "had no loci: no narrowPeak" in notes[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["regions.npz"]
    with pytest.warns(UserWarning, match="No genome coordinates"):
        sequences, _, _, has_peaks = reader.load_regions_npz(str(tmp_path / "regions.npz"))
    assert not has_peaks
    np.testing.assert_array_equal(sequences, one_hot(np.asarray(plain.codes[:])))


def test_an_odd_window_is_refused(located: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--window 7: Fi-NeMo reads an even number"):
        write(located, tmp_path, 7, "0")
