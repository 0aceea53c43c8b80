"""Stores for the exports' tests."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.store.reader import Store
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


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """6 variants of one base and 6 insertions in windows of 60 bp, two targets, three folds whose values are kept."""
    ref = np.random.default_rng(0).integers(0, 4, (12, 61), dtype=np.uint8)
    alt = ref.copy()
    alt[:6, 30] = (ref[:6, 30] + 1) % 4
    alt[6:, 31] = 3 - ref[6:, 31]  # T for A, G for C: not the base that follows
    alt[6:, 32:] = ref[6:, 31:-1]
    codes = np.stack([ref, alt], axis=1).reshape(24, 61)[:, :60]
    names = [f"rs{row // 2}:{'alt' if row % 2 else 'ref'}" for row in range(24)]
    loci = [("chr3", 500 + 15 * (row // 2)) for row in range(24)]
    path = tmp_path_factory.mktemp("variants") / "a.zarr"
    return make_store(path, codes, loci, names, ["+"] * 24, (0, 7), folds=("a", "b", "c"), alleles=True, spread=True)
