"""Files of exports: whole or not at all, in bounded memory; npz as numpy's own."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exports.files import Member, appearing, in_blocks, reordered, write_npz
from pipeline.messages.errors import UserError


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


CHANGES = ("rename", "replace", "mkdir", "unlink", "rmdir")  # of os; what pathlib and shutil use


class PulledPlug(BaseException):
    """What no handler of errors sees."""


@contextlib.contextmanager
def plugged(left: int | None) -> Iterator[list[str]]:
    """After so many changes of folders every other fails too, as after a kill; the changes that were made."""
    made: list[str] = []

    def guarded(name: str, real: Any) -> Any:
        def change(*arguments: Any, **more: Any) -> Any:
            if left is not None and len(made) >= left:
                raise PulledPlug(name)
            made.append(name)
            return real(*arguments, **more)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, guarded(name, getattr(os, name)))
        yield made


def export(paths: list[Path], text: str, overwrite: bool = True) -> None:
    with appearing(paths, overwrite) as partial:
        for path in partial:
            path.write_text(f"{text} {path.name.split('.')[1]}")


def texts(paths: list[Path]) -> list[str]:
    """Which export each file that is there belongs to."""
    return [path.read_text().split()[0] for path in paths if path.exists()]


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_a_crash_at_any_step_leaves_the_old_export_or_the_new_one(
    tmp_path: Path, names: list[str], n_before: int
) -> None:
    """Never files of both side by side; the next export finds one of the two whole."""
    for left in range(100):
        folder = tmp_path / str(left)
        folder.mkdir()
        (folder / "other").write_text("kept")
        paths = [folder / name for name in names]
        for path in paths[:n_before]:
            path.write_text(f"old {path.name}")
        before = texts(paths)
        is_over = False
        with plugged(left), contextlib.suppress(PulledPlug):
            export(paths, "new")
            is_over = True
        if is_over:
            assert left > len(names)
            break
        assert texts(paths) in [before[:n] for n in range(len(before) + 1)] or set(texts(paths)) == {"new"}
        if len(names) == 1:
            assert texts(paths) in (before, ["new"]), "one file is never away"
        with plugged(None), contextlib.suppress(UserError):
            export(paths, "next", overwrite=False)  # which puts back, and then refuses unless nothing is there
        assert texts(paths) in (before, ["new"] * len(paths), ["next"] * len(paths)), f"after {left} changes"
        assert (texts(paths) == ["next"] * len(paths)) <= (before == [])
        export(paths, "last")
        assert texts(paths) == ["last"] * len(paths)
        shown = {name for name in os.listdir(folder) if not name.endswith(".partial")}
        assert shown == {*names, "other"}, "nothing else is left but what a kill left unfinished"


def test_a_crash_while_old_files_are_put_back_is_made_up_for(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_text(f"old {path.name}")
    with plugged(5), contextlib.suppress(PulledPlug):  # both are aside, and one new one is there
        export(paths, "new")
    assert texts(paths) == ["new"]
    for left in range(10):
        with plugged(left), contextlib.suppress(PulledPlug, UserError):
            export(paths, "next", overwrite=False)
        assert set(texts(paths)) in ({"old"}, {"new"}, set())
    assert texts(paths) == ["old", "old"]


def test_an_error_in_the_midst_leaves_the_old_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, real = [tmp_path / name for name in ("a", "b")], os.rename
    for path in paths:
        path.write_text(f"old {path.name}")

    def rename(old: Any, new: Any, **folders: Any) -> None:
        if str(new) == str(paths[1]) and ".partial" in str(old):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(new))
        real(old, new, **folders)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(PermissionError):
        export(paths, "new")
    assert texts(paths) == ["old", "old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("state", ["moving", "replaced"])
def test_a_link_that_takes_the_place_of_a_hidden_folder_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """As another user may do in a folder that everyone may write to, between a look at its files and what follows."""
    paths, home = [tmp_path / name for name in ("a", "b")], tmp_path / "home"
    hidden, aside = tmp_path / f".a.{state}", tmp_path / "aside"
    home.mkdir()
    for path in (*paths, home / "a", home / "b"):
        path.write_text(f"old {path.name}")
    listdir, mkdir = os.listdir, os.mkdir

    def swap() -> None:
        if hidden.is_dir() and not hidden.is_symlink():
            os.rename(hidden, aside)
            hidden.symlink_to(home)

    def listed(path: Any = ".") -> list[str]:
        swap()
        return listdir(path)

    def made(*arguments: Any, **more: Any) -> None:
        mkdir(*arguments, **more)
        swap()

    if state == "replaced":
        hidden.mkdir()
        (hidden / "a").write_text("older")
    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os, "mkdir", made)
    with contextlib.suppress(UserError, OSError):
        export(paths, "new")
    monkeypatch.undo()
    assert hidden.is_symlink(), "the attack took place"
    assert texts([home / "a", home / "b"]) == ["old", "old"]
    assert sorted(os.listdir(home)) == ["a", "b"]


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
    values = np.arange(36, dtype=np.float32).reshape(6, 2, 3)
    order = np.array([3, 0, 5, 1, 4, 2])
    places = np.argsort(order)
    parts = [(places[:0], values[:0]), (places[:4], values[:4]), (places[4:], values[4:])]
    with reordered(tmp_path, (6, 2, 3), "float32", parts) as rows:
        for part in (slice(None), slice(2, 3), slice(1, 5), slice(4, 99), slice(6, 7)):
            np.testing.assert_array_equal(rows[part], values[order][part])
        assert (len(rows), rows[0:1].dtype) == (6, np.float32)
        np.testing.assert_array_equal(np.concatenate(list(in_blocks(rows, 4))), values[order])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"), reordered(tmp_path, (6, 2), "float32", []):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of another user")
@pytest.mark.parametrize("state", ["moving", "moved", "replaced"])
def test_hidden_folders_of_another_user_are_left_alone(tmp_path: Path, state: str) -> None:
    """As one may put beside an export in /tmp: its files would take the places of ours."""
    paths = [tmp_path / name for name in ("x.a", "x.b")]
    export(paths, "old")
    planted = tmp_path / f".x.a.{state}"
    planted.mkdir()
    (planted / "x.a").write_text("theirs")
    os.chown(planted, 65534, 65534)
    with pytest.raises(UserError, match="exists; give --overwrite"):
        export(paths, "new", overwrite=False)
    assert texts(paths) == ["old", "old"]
    assert (planted / "x.a").read_text() == "theirs"
