"""Files of exports: whole or not at all, in bounded memory; npz as numpy's own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.exports.files import Member, appearing, in_blocks, reordered, write_npz


def test_files_appear_together_at_the_end(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "folder" / name for name in ("a", "b")]
    with appearing(paths, overwrite=False) as partial:
        for path in partial:
            path.write_text("x")
        assert not any(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with appearing([tmp_path / "new" / "a"], overwrite=False) as (partial,):
            partial.write_text("half")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    kept = tmp_path / "a"
    kept.write_text("old")
    with pytest.raises(UserError, match="exists; give --overwrite"), appearing([kept], overwrite=False):
        pass
    with appearing([kept], overwrite=True) as (partial,):
        partial.write_text("new")
        assert kept.read_text() == "old"
    assert kept.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_folders_and_files_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"), appearing([tmp_path], overwrite=True):
        pass
    (tmp_path / "file").write_text("x")
    within = tmp_path / "file" / "ohe.npz"
    with pytest.raises(UserError, match="file is a file; a folder is needed"), appearing([within], overwrite=True):
        pass


def test_npz_reads_as_numpys_own_and_is_reproducible(tmp_path: Path) -> None:
    values = {
        "a": np.arange(24, dtype=np.float16).reshape(4, 3, 2),
        "name": np.array(["chr1", "é"]),
        "empty": np.zeros((0, 4), dtype=np.int8),
    }
    members = {
        "a": Member((4, 3, 2), "float16", in_blocks(values["a"], rows=3)),
        "name": Member.of(values["name"]),
        "empty": Member((0, 4), "int8", []),
    }
    write_npz(tmp_path / "a.npz", members.items())
    with np.load(tmp_path / "a.npz") as found:
        assert list(found) == list(values)
        for name, expected in values.items():
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype == expected.dtype
    members["a"] = Member((4, 3, 2), "float16", in_blocks(values["a"]))
    write_npz(tmp_path / "b.npz", members.items())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_rows_are_put_in_order_on_the_disk(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    order = np.array([3, 0, 5, 1, 4, 2])
    parts = [(np.argsort(order)[:4], values[:4]), (np.argsort(order)[4:], values[4:])]
    with reordered(tmp_path, (6, 2), "float32", parts) as array:
        np.testing.assert_array_equal(array, values[order])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), reordered(tmp_path, (6, 2), "float32", []):
        pass
