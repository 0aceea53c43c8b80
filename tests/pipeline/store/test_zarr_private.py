"""What the store needs of Zarr that Zarr does not promise; a failure here names what a new version has changed."""

from __future__ import annotations

import numpy as np
import zarr
from zarr.abc.buffer import Buffer

from pipeline.store.zarr_private import memory_store, to_buffer


def test_memory_store_puts_what_zarr_writes_into_the_dictionary_it_is_given() -> None:
    files: dict[str, Buffer] = {}
    zarr.create_array(memory_store(files), shape=(2,), chunks=(2,), dtype="uint8", compressors=None)[:] = [3, 4]
    assert sorted(files) == ["c/0", "zarr.json"]
    assert files["c/0"].to_bytes() == b"\x03\x04"


def test_to_buffer_is_what_zarr_reads_from_memory() -> None:
    files: dict[str, Buffer] = {}
    zarr.create_array(memory_store(files), shape=(2,), chunks=(2,), dtype="uint8", compressors=None)
    files["c/0"] = to_buffer(b"\x05\x06")
    found = zarr.open_array(memory_store(files), mode="r")[:]
    np.testing.assert_array_equal(np.asarray(found), [5, 6])
