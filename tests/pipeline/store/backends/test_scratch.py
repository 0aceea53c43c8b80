"""Folders that killed processes left go at the next start, and nothing else does."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store.backends import scratch

KILLED = "import sys; from pipeline.store.backends.scratch import make_folder as f; print(f(sys.argv[1]), flush=True)"


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The name of a folder that a killed process left, in the folder of that name."""
    parent = tmp_path_factory.mktemp("left")
    code = f"{KILLED}; import os; os.kill(os.getpid(), {signal.SIGKILL})"
    found = subprocess.run([sys.executable, "-c", code, str(parent)], capture_output=True, check=False).stdout
    return found.strip()


def folder_of_dead(parent: Path) -> Path:
    """As a killed process leaves one: nobody holds its lock."""
    folder = Path(scratch.make_folder(str(parent)))
    os.close(scratch._held.pop(str(folder)))
    (folder / "ray").mkdir(mode=0o777)
    (folder / "ray" / "x").write_text("x")
    return folder


def test_what_a_killed_process_left_is_removed(left: bytes) -> None:
    folder = Path(os.fsdecode(left))
    assert folder.is_dir()
    with_others = [folder.with_name("dlshap-fault-x.txt"), folder.with_name("other"), folder.with_name("dlshap-")]
    with_others[0].write_text("x")
    for other in with_others[1:]:
        other.mkdir()
    scratch.remove_left(str(folder.parent))
    assert not folder.exists()
    assert all(other.exists() for other in with_others)


def test_what_is_used_or_kept_stays(tmp_path: Path) -> None:
    used, kept = (scratch.make_folder(str(tmp_path)) for _ in range(2))
    scratch.keep_folder(kept)
    with subprocess.Popen(
        [sys.executable, "-c", f"{KILLED}; sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        other = os.fsdecode(process.stdout.readline().strip())
        scratch.remove_left(str(tmp_path))
        assert {*map(str, tmp_path.iterdir())} == {used, kept, other}
        process.kill()
    scratch.remove_left(str(tmp_path))
    scratch.remove_folder(used)
    assert {*map(str, tmp_path.iterdir())} == {kept}


def _link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def _linked_lock(folder: Path) -> None:
    (folder / "dlshap.lock").rename(folder / "lock")
    (folder / "dlshap.lock").symlink_to("lock")


def _pipe(folder: Path) -> None:
    (folder / "dlshap.lock").unlink()
    os.mkfifo(folder / "dlshap.lock", 0o600)


@pytest.mark.parametrize(
    "change",
    [
        _link,
        _linked_lock,
        _pipe,
        lambda folder: (folder / "dlshap.lock").unlink(),
        lambda folder: (folder / "dlshap.lock").write_text("x"),
        lambda folder: folder.chmod(0o770),
        lambda folder: folder.parent.chmod(0o777),
        lambda folder: folder.parent.chmod(0o770),
        lambda folder: (folder / "dlshap.lock").chmod(0o666),
    ],
)
def test_what_others_may_have_made_stays(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = folder_of_dead(tmp_path)
    change(folder)
    scratch.remove_left(str(tmp_path))
    assert (folder / "ray" / "x").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of another user")
def test_folders_of_another_user_stay(tmp_path: Path) -> None:
    for name in ("", "dlshap.lock"):
        folder = folder_of_dead(tmp_path)
        os.chown(folder / name, 65534, 65534)
        scratch.remove_left(str(tmp_path))
        assert (folder / "ray" / "x").exists()


def test_links_in_it_are_not_followed(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o1777)
    folder = folder_of_dead(parent)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    (folder / "a").symlink_to(tmp_path / "home")
    (folder / "b").symlink_to(tmp_path / "home" / "thesis.txt")
    scratch.remove_left(str(parent))
    assert not folder.exists()
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_where_there_are_no_locks_nothing_is_removed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    kept, used = (Path(scratch.make_folder(str(tmp_path))) for _ in range(2))
    scratch.remove_left(str(tmp_path))
    scratch.keep_folder(str(kept))
    scratch.remove_folder(str(used))
    assert list(tmp_path.iterdir()) == [kept]


def test_a_folder_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch.scratch_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not any(tmp_path.iterdir())
    scratch.remove_left(str(tmp_path / "nothing"))
