"""ChromBPNet's layout, read back with h5py and by Fi-NeMo's reader of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from dlshap_core.one_hot import one_hot
from pipeline.exports import chrombpnet
from pipeline.exports.selection import Filters, select
from pipeline.messages.errors import UserError
from pipeline.store.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes


def write(store: Store, prefix: Path, target: str | None = None, head: str | None = None) -> list[str]:
    selection = select(store, Filters(), target, None)
    written = chrombpnet.export(selection, prefix, False, lambda n_rows: None, head, "float16")
    return [str(path) for path in written.files]


def test_the_arrays_are_the_store(located: Store, tmp_path: Path) -> None:
    files = write(located, tmp_path / "a", "7")
    assert files == [f"{tmp_path}/a.counts_scores.h5", f"{tmp_path}/a.interpreted_regions.bed"]
    encoded = one_hot(np.asarray(located.codes[:])).numpy()
    hypothetical = np.asarray(located.hypothetical[:])[:, 1].astype(np.float16)
    observed = np.asarray(located.attribution[:])[:, 1].astype(np.float16)
    with h5py.File(files[0]) as file:
        assert file["raw/seq"].dtype == np.int8
        assert file["shap/seq"].dtype == file["projected_shap/seq"].dtype == np.float16
        np.testing.assert_array_equal(file["raw/seq"], encoded)
        np.testing.assert_array_equal(file["shap/seq"], hypothetical)
        np.testing.assert_array_equal(file["projected_shap/seq"], hypothetical * encoded)
        np.testing.assert_array_equal(np.asarray(file["projected_shap/seq"]).sum(axis=1), observed)


@pytest.mark.slow
def test_fi_nemo_reads_it(located: Store, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports
        from finemo import data_io
    file, _ = write(located, tmp_path / "a", "0")
    sequences, contributions = data_io.load_regions_from_chrombpnet_h5([file], 8)
    np.testing.assert_array_equal(sequences, one_hot(np.asarray(located.codes[:, 12:28])))
    np.testing.assert_array_equal(contributions, np.asarray(located.hypothetical[:, 0, :, 12:28]).astype(np.float16))


def test_the_regions_are_the_rows(located: Store, tmp_path: Path) -> None:
    lines = Path(write(located, tmp_path / "a", "0")[1]).read_text().splitlines()
    regions = [line.split("\t") for line in lines]
    assert [region[0] for region in regions] == list(located.rows["chrom"])
    assert [int(region[1]) for region in regions] == located.rows["start"].tolist()
    assert [int(region[1]) + int(region[9]) for region in regions] == (located.rows["start"] + 20).tolist()


def test_the_head_is_in_the_name(plain: Store, tmp_path: Path) -> None:
    profile = make_store(tmp_path / "p.zarr", random_codes(3, 12), head="profile_midpoint")
    assert write(profile, tmp_path / "p") == [f"{tmp_path}/p.profile_scores.h5"]
    assert write(profile, tmp_path / "p", head="counts") == [f"{tmp_path}/p.counts_scores.h5"]
    assert write(plain, tmp_path / "q") == [f"{tmp_path}/q.counts_scores.h5"]  # no loci, no regions


def test_nothing_is_left_of_values_that_do_not_fit(large: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too large for float16"):
        write(large, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
