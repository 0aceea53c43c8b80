"""The store: its layout, who can open it, and that a shard is written as a whole."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from dlshap_core.references import shuffle_codes
from dlshap_core.sequences import decode
from pipeline.messages.errors import UserError
from pipeline.store.schema import FORMAT_VERSION, LAYOUT, TABLE, shard_key
from pipeline.store.template import CHUNK_ROWS, chunk_rows
from tests.pipeline.conftest import LENGTH, N_ROWS, ROWS_PER_SHARD, random_sequences

SIZES = {"sequence": N_ROWS, "target": 1, "base": 4, "position": LENGTH, "reference": 3}


def test_xarray_opens_it_with_named_dimensions(finished: Path) -> None:
    with xarray.open_zarr(finished) as dataset:  # a warning would be an error
        for name, (dims, dtype) in LAYOUT.items():
            assert dataset[name].dims == dims
            assert dataset[name].shape == tuple(SIZES[dim] for dim in dims)
            assert dataset[name].dtype == dtype
        assert all(dataset[name].dims == ("sequence",) for name in TABLE)
        assert list(dataset["base"].values) == list("ACGT")
        assert list(dataset["target"].values) == ["0"]
        assert not np.isnan(dataset["hypothetical"].values).any()


def test_every_array_is_sharded_compressed_and_checksummed(finished: Path) -> None:
    for name, (dims, _) in LAYOUT.items():
        metadata = json.loads((finished / name / "zarr.json").read_text())
        assert metadata["chunk_grid"]["configuration"]["chunk_shape"][0] == ROWS_PER_SHARD
        assert metadata["dimension_names"] == list(dims)
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]["codecs"]
        assert [codec["name"] for codec in inner] == ["bytes", "blosc", "crc32c"]
        assert inner[1]["configuration"]["cname"] == "lz4"
        assert inner[1]["configuration"]["shuffle"] == "bitshuffle"


def test_rows_are_those_of_the_input_in_its_order(finished: Path) -> None:
    store = pipeline.open_store(finished)
    assert [decode(row) for row in store.codes[:]] == random_sequences()
    assert list(store.rows["name"]) == [f"s{i}" for i in range(N_ROWS)]
    assert list(store.rows["source_row"]) == list(range(N_ROWS))
    assert len(store) == N_ROWS
    assert store.complete
    assert "22 sequences of 40 bp, 1 targets, complete" in repr(store)


def test_arrays_agree_with_each_other(finished: Path) -> None:
    store = pipeline.open_store(finished)
    hypothetical, codes = np.asarray(store.hypothetical[:]), np.asarray(store.codes[:])
    observed = np.take_along_axis(hypothetical, codes[:, None, None, :].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_array_equal(store.attribution[:], observed)
    difference = np.asarray(store.prediction[:]) - np.asarray(store.reference_prediction[:]).mean(axis=2)
    np.testing.assert_allclose(observed.sum(axis=2), difference, atol=1e-5)
    assert np.abs(store.convergence_delta[:]).max() < 1e-5


def test_references_can_be_drawn_again_and_checked(finished: Path) -> None:
    store = pipeline.open_store(finished)
    references = shuffle_codes(np.asarray(store.codes[:]), [store.attrs["random_state"] + k for k in range(3)])
    assert [zlib.crc32(row.tobytes()) for row in references] == list(store["reference_checksum"][:])


def test_it_says_what_it_is(finished: Path) -> None:
    attrs = pipeline.open_store(finished).attrs
    assert attrs["format_version"] == FORMAT_VERSION
    assert attrs["complete"] is True
    assert attrs["config"]["references"]["n_shuffles"] == 3
    assert {"torch", "zarr", "dlshap"} <= set(attrs["versions"])
    assert attrs["run"]["deltas"]["worst"].startswith("s")
    assert attrs["head"] == "none"
    assert attrs["fingerprint"]["input.rows"] == N_ROWS


def test_checksums_of_every_file_are_in_the_store(finished: Path) -> None:
    store = pipeline.open_store(finished)
    names = list(store["array"][:])
    for shard in range(4):
        for column, name in enumerate(names):
            content = (finished / shard_key(name, shard)).read_bytes()
            assert store["shard_bytes"][shard, column] == len(content)
            assert store["shard_crc32"][shard, column] == zlib.crc32(content)


def test_one_flipped_bit_is_noticed(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy.zarr")
    file = copy / shard_key("hypothetical", 1)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        pipeline.open_store(copy).hypothetical[ROWS_PER_SHARD]


@given(st.integers(1, 5000))
def test_inner_chunks_divide_shards(rows_per_shard: int) -> None:
    rows = chunk_rows(rows_per_shard)
    assert rows_per_shard % rows == 0
    assert 1 <= rows <= CHUNK_ROWS


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        pipeline.open_store(tmp_path / "nothing.zarr")
    (tmp_path / "file").write_text("x")
    for backend in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="is not a dlshap store"):
            pipeline.open_store(backend)
