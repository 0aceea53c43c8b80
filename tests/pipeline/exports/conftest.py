"""Stores for the exports' tests."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.reader import Store
from tests.pipeline.exports.stores import make_store, random_codes

N, LENGTH = 20, 41
LOCI = [("chr2" if row % 3 else "chr10", 1000 + 37 * row % 400) for row in range(N)]
STRANDS = ["+-."[row % 3] for row in range(N)]


@pytest.fixture(scope="session")
def located(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """20 rows of 41 bp with loci and two targets, not to be changed."""
    path = tmp_path_factory.mktemp("located") / "a.zarr"
    names = [f"peak {row}" for row in range(N)]
    return make_store(path, random_codes(N, LENGTH), LOCI, names, STRANDS, targets=(0, 7))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """12 rows of 24 bp without loci."""
    return make_store(tmp_path_factory.mktemp("plain") / "a.zarr", random_codes(12, 24))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Values that half precision cannot hold: 1e5 in row 2, 1e-5 and 1e-9 in row 0."""
    hypothetical = np.zeros((4, 1, 4, 10))
    hypothetical[2, 0, 1, 3] = 1e5
    hypothetical[0, 0, 0, :3] = [1, 1e-5, 1e-9]
    hypothetical[1, 0, 0, 0] = 1
    codes = random_codes(4, 10)
    loci = [("chr1", 20 * row) for row in range(4)]
    return make_store(tmp_path_factory.mktemp("large") / "a.zarr", codes, loci, hypothetical=hypothetical)
