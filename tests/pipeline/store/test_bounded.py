"""Stores whose chunks say that they are, or become, larger than a chunk of theirs is: damage, and no memory taken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest

from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from pipeline.store import bounded, reader
from pipeline.store.attributes import sealed
from pipeline.store.backends.local import LocalBackend
from pipeline.store.codec import ShardCodec, names_of_rows, read_array
from pipeline.store.reader import open_store
from pipeline.store.schema import ROOT, TABLE_CHUNK_ROWS
from tests.pipeline import hostile
from tests.pipeline.cli.test_damaged_stores import COMMANDS, require_a_line

CLAIMED = 2**31 - 64


def packed(content: bytes, claimed: int | None = None) -> bytes:
    """A chunk as dlshap codes it, which may say that it has more bytes than it has."""
    chunk = bytearray(numcodecs.Blosc("lz4", 5, 2, typesize=1).encode(content))
    chunk[4:8] = chunk[4:8] if claimed is None else struct.pack("<I", claimed)
    return bytes(chunk) + struct.pack("<I", google_crc32c.value(bytes(chunk)))


def texts(n: int, *some: bytes) -> bytes:
    """What `vlen-utf8` makes of some texts, and n of them as it says."""
    return struct.pack("<I", n) + b"".join(struct.pack("<I", len(text)) + text for text in some)


def described(store: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change what the store says of an array, in both places."""
    path, root = store / name / ROOT, json.loads((store / ROOT).read_bytes())
    metadata = json.loads(path.read_bytes())
    for each in (metadata, root["consolidated_metadata"]["metadata"][name]):
        change(each)
    path.write_text(json.dumps(metadata))
    (store / ROOT).write_bytes(sealed(root))


def _claim(store: Path) -> None:
    (store / "name/c.0").write_bytes(packed(texts(1, b"a" * 100), CLAIMED))


def _long_text(store: Path) -> None:
    (store / "name/c.0").write_bytes(packed(texts(TABLE_CHUNK_ROWS, bytes(bounded.TEXT_BYTES))))


def _many_texts(store: Path) -> None:
    (store / "name/c.0").write_bytes(packed(texts(2**32 - 1)))


def _unpacked_texts(store: Path) -> None:
    described(store, "name", lambda metadata: metadata.update(codecs=[{"name": "vlen-utf8"}]))
    (store / "name/c.0").write_bytes(texts(2**32 - 1))


def _zstd(store: Path) -> None:
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    described(store, "name", lambda metadata: metadata.update(codecs=[{"name": "vlen-utf8"}, zstd]))
    (store / "name/c.0").write_bytes(bytes(numcodecs.Zstd(1).encode(bytes(10**8))))


def _large_chunks(store: Path) -> None:
    described(store, "start", lambda metadata: metadata["chunk_grid"]["configuration"].update(chunk_shape=[10**9]))


COLUMNS = {
    _claim: "a chunk unpacks to more than 134217728 bytes",
    _long_text: "a chunk unpacks to more than 134217728 bytes",
    _many_texts: "a chunk has 4294967295 texts; expected 8192",
    _unpacked_texts: "name is not compressed, as dlshap writes it",
    _zstd: "name is coded by ZstdCodec, which dlshap does not use",
    _large_chunks: "start is in chunks of shape (1000000000,), of 8000000000 bytes, which dlshap does not write",
}


def reasons(error: BaseException | None) -> str:
    """An error, and what led to it."""
    return "" if error is None else f"{error} {reasons(error.__cause__)}"


@pytest.mark.parametrize("change", COLUMNS)
def test_a_column_that_becomes_larger_than_it_can_be(
    finished: Path, in_folder: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    change(store)
    hostile.mend(store)
    backend = LocalBackend(store)
    name = "start" if change is _large_chunks else "name"
    for read in (lambda: open_store("a.zarr").rows, lambda: read_array(backend, name)):
        with pytest.raises(ValueError, match="damaged") as caught:
            read()
        assert COLUMNS[change] in reasons(caught.value)
    if name == "name":
        with pytest.raises(ValueError, match="damaged") as caught:
            names_of_rows(backend, [0])
        assert COLUMNS[change] in reasons(caught.value)
    with pytest.raises(ValueError, match=r"chunk|coded|compressed") as caught:
        open_store("a.zarr").to_xarray()[name].load()
    assert COLUMNS[change] in reasons(caught.value)
    for command in ("tsv", "status", "verify", "logo"):
        require_a_line(COMMANDS[command], capfd, change.__name__)


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_chunk_within_a_shard_that_says_it_is_large(
    finished: Path, in_folder: Path, capfd: pytest.CaptureFixture[str], is_tuned: bool
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    bomb, index = packed(b"a" * 100, CLAIMED), struct.pack("<QQ", 0, len(packed(b"a" * 100, CLAIMED)))

    def untuned(metadata: Any) -> None:
        """Without what Zarr fills in, it makes the codec anew."""
        for codec in metadata["codecs"][0]["configuration"]["codecs"]:
            if codec["name"] == "blosc":
                del codec["configuration"]["typesize"], codec["configuration"]["shuffle"]

    if is_tuned:
        described(store, "codes", untuned)
    n = json.loads((store / "codes" / ROOT).read_bytes())
    shard, chunk = (grid["configuration"]["chunk_shape"] for grid in (n["chunk_grid"], n["codecs"][0]))
    index *= int(np.prod(shard) // np.prod(chunk))
    (store / "codes/c.0.0").write_bytes(bomb + index + struct.pack("<I", google_crc32c.value(index)))
    hostile.mend(store)
    opened = open_store("a.zarr")
    with pytest.raises(UserError, match="codes is damaged") as caught:
        next(opened.blocks(["codes"]))
    assert "a chunk unpacks to more than" in reasons(caught.value)
    with pytest.raises(ValueError, match="a chunk unpacks to more than"):
        ShardCodec(LocalBackend(store)).read("codes", opened.plan.shard(0))
    require_a_line(COMMANDS["tsv"], capfd, "codes")


def test_rows_and_positions_that_no_file_can_hold(
    finished: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dimension, size, told in [
        ("position", 10**9, "codes is in chunks of shape"),
        ("sequence", 10**8, "its row table takes 7.2 GB of memory once it is read"),
    ]:
        store = hostile.copied(finished, Path("a.zarr"))
        enlarge(store, dimension, size)
        assert dispatch(COMMANDS["tsv"]) == 2
        assert told in capsys.readouterr().err
        assert dispatch(["status", "a.zarr"]) == 0


def enlarge(store: Path, dimension: str, size: int) -> None:
    """Have a store say everywhere that it has more positions, or more rows in as few files."""
    root = json.loads((store / ROOT).read_bytes())
    plan, fingerprint = root["attributes"]["plan"], root["attributes"]["fingerprint"]
    key = {"position": "length", "sequence": "n_rows"}[dimension]
    plan[key] = fingerprint[{"length": "input.length", "n_rows": "input.rows"}[key]] = size
    (store / ROOT).write_bytes(sealed(root))

    def change(metadata: Any) -> None:
        for axis, name in enumerate(metadata["dimension_names"]):
            grids = [metadata["chunk_grid"], metadata["codecs"][0]]
            if name == dimension:
                metadata["shape"][axis] = size
                for grid in grids if dimension == "position" else ():
                    grid["configuration"]["chunk_shape"][axis] = size
                if metadata["codecs"][0]["name"] != "sharding_indexed":
                    metadata["chunk_grid"]["configuration"]["chunk_shape"][axis] = 10**8

    for path in sorted(store.glob(f"*/{ROOT}")):
        described(store, path.parent.name, change)


def test_texts_that_are_the_same_count_all_the_same(
    finished: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hostile.copied(finished, Path("a.zarr"))
    hostile.respell(store, "name", slice(None), "x" * 1000)
    assert set(open_store("a.zarr").rows["name"]) == {"x" * 1000}
    monkeypatch.setattr("pipeline.config.limits.MB", 10)
    with pytest.raises(UserError, match=r"name takes .* of memory once it is read, .* limits\.held_mb="):
        open_store("a.zarr").rows  # noqa: B018


def test_rows_that_are_large_are_read_one_by_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(finished)
    names = ["hypothetical", "codes"]
    whole = next(store.blocks(names))
    n_bytes = sum(whole[name][0].nbytes for name in names)
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1)
    monkeypatch.setattr(reader, "MOST_OF_A_ROW", 2 * n_bytes)
    blocks = list(store.blocks(names, np.arange(1, 6)))
    assert [block.rows.tolist() for block in blocks] == [[1], [2, 3], [4, 5]]
    assert all(np.array_equal(block[name], whole[name][block.rows]) for block in blocks for name in names)
    monkeypatch.setattr(reader, "MOST_OF_A_ROW", n_bytes - 1)
    with pytest.raises(UserError, match=r"hypothetical and codes have .* GB in each row; read one target at once"):
        next(store.blocks(names))


def test_large_chunks_are_unpacked_one_by_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    before, seen = zarr.config.get("async.concurrency"), []
    array = open_store(finished)["codes"]
    for most in (1 << 30, 2 * int(np.prod(array.chunks)), 1):
        monkeypatch.setattr(bounded, "AT_ONCE_BYTES", most)
        with bounded.few_at_once(array):
            seen.append(zarr.config.get("async.concurrency"))
    assert seen == [before, 2, 1]
    assert zarr.config.get("async.concurrency") == before
