"""Stores of earlier versions are read, exported and verified by this one."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch

GOLDEN = Path(__file__).parents[2] / "golden"
# Of the values as version 0.1.0 wrote them: 10 windows of 40 bases, 3 references, shards of 4 rows.
DIGEST = "5d1128f029eb45f87b10bd228d0e34680497453b4325d638c0206da47626ea17"


@pytest.fixture
def store_of_0_1(tmp_path: Path) -> Path:
    """A store that version 0.1.0 wrote."""
    with tarfile.open(GOLDEN / "store-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store-0.1.zarr"


def test_a_store_of_0_1(store_of_0_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = pipeline.open_store(store_of_0_1)
    assert store.complete
    assert store.attribution.shape == (10, 1, 40)
    assert store.rows["name"][3] == "locus_3"
    assert store.digest() == DIGEST
    explained = store.attribution[:].sum(-1)[..., None]
    difference = store.prediction[:][..., None] - store.reference_prediction[:].mean(-1, keepdims=True)
    np.testing.assert_allclose(explained, difference, atol=1e-6)
    assert dispatch(["verify", str(store_of_0_1)]) == 0
    assert "references of 10 rows drawn again: all as committed" in capsys.readouterr().out
    assert dispatch(["export", "bigwig", str(store_of_0_1), str(tmp_path / "a.bw")]) == 0
    assert dispatch(["export", "tsv", str(store_of_0_1), str(tmp_path / "a.tsv")]) == 0
