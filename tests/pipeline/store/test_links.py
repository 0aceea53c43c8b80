"""Links, pipes, devices and others' files in a store or beside it: nothing outside is touched, and nobody hangs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import RunError, UserError
from pipeline.store.backends import tree, turn
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.tree import NotRegular, TooLarge, Tree
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT
from tests.pipeline.conftest import Inputs
from tests.pipeline.damage import copy_of

CHUNK = "attribution/c.0.0.0"
READERS = {
    "status": ["status", "a.zarr"],
    "verify": ["verify", "a.zarr"],
    "report": ["report", "a.zarr"],
    "logo": ["logo", "a.zarr", "s0"],
    "tsv": ["export", "tsv", "a.zarr", "out.tsv"],
}


@pytest.fixture(autouse=True)
def _nobody_hangs() -> Iterator[None]:
    """A test that waits for ever ends with an error."""
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("it hung"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def store(finished: Path, in_folder: Path) -> Path:
    """A copy of a finished store with its protocol files, and beside it a folder of files that are not dlshap's."""
    home = in_folder / "home"
    for folder in ("failures", "attempts", "partial", "commands", "logs", "done"):
        (home / folder).mkdir(parents=True)
        (home / folder / "thesis.txt").write_text("precious")
    (in_folder / "victim.txt").write_text("precious")
    return copy_of(finished, in_folder / "a.zarr", with_run=True)


def require_untouched(folder: Path) -> None:
    assert (folder / "victim.txt").read_text() == "precious"
    assert [path.read_text() for path in sorted((folder / "home").rglob("*.txt"))] == ["precious"] * 6


def ended(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and the line of its error."""
    capfd.readouterr()
    code = dispatch(arguments)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("dlshap: error: ")]
    return code, " ".join(lines) or out


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling link", "pipe"])
@pytest.mark.parametrize("key", ["claim", "logs"])
def test_what_is_written_in_place_is_no_file_of_others(
    inputs: Inputs, in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str], key: str, kind: str
) -> None:
    run, planted = in_folder / "b.zarr.run", in_folder / "b.zarr.run" / key
    run.mkdir()
    if key == "logs":  # the name of a log is known only once it is written
        if "link" not in kind:
            pytest.skip("a folder is no pipe")
        planted.symlink_to(in_folder / ("nothing" if kind == "dangling link" else "home"))
    elif kind == "hard link":
        os.link(in_folder / "victim.txt", planted)
    elif kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.symlink_to(in_folder / ("nothing" if kind == "dangling link" else "victim.txt"))
    code, error = ended(["run", *inputs.overrides("b.zarr")], capfd)
    assert code == 2
    assert f"b.zarr.run/{key} " in error
    assert "remove it" in error
    require_untouched(in_folder)
    assert not (in_folder / "nothing").exists()


def test_a_repair_does_not_write_through_a_link(
    in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (store / CHUNK).unlink()
    claim = in_folder / "a.zarr.run" / "claim"
    claim.unlink(missing_ok=True)
    claim.symlink_to(in_folder / "victim.txt")
    assert ended(["verify", "--repair", "a.zarr"], capfd)[0] == 2
    require_untouched(in_folder)


@pytest.mark.parametrize("command", ["run", "verify", "status"])
def test_a_run_folder_that_is_a_link_is_refused(
    inputs: Inputs, in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    shutil.rmtree("a.zarr.run")
    (in_folder / "a.zarr.run").symlink_to("home")
    given = inputs.overrides("a.zarr") if command == "run" else ["a.zarr"]
    code, error = ended([command, *given], capfd)
    assert code == (0 if command == "verify" else 2)  # which a complete store is enough for
    assert "a.zarr.run is a link" in error
    require_untouched(in_folder)


def test_nothing_is_tidied_up_that_dlshap_did_not_make(inputs: Inputs, in_folder: Path, store: Path) -> None:
    run = in_folder / "a.zarr.run"
    shutil.copytree("home", run, dirs_exist_ok=True)
    (run / "commands" / "0123456789ab").write_text("{}")
    (run / "failures" / "00000007.json").write_text("{}")
    (run / "attempts" / "deeper").symlink_to(in_folder / "home" / "attempts")
    assert dispatch(["run", *inputs.overrides("a.zarr")]) == 0
    assert sorted(path.name for path in run.rglob("*.txt")) == ["thesis.txt"] * 6
    assert not (run / "commands" / "0123456789ab").exists()
    assert not (run / "failures" / "00000007.json").exists()
    require_untouched(in_folder)


def test_what_is_discarded_is_dlshap_s(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a.zarr")
    with directory.claim(pytest.fail):
        directory.run.write("attempts/00000000-0123456789ab", b"")
        (tmp_path / "a.zarr.run" / "notes.txt").write_text("precious")
        directory.discard()
    assert [path.name for path in (tmp_path / "a.zarr.run").rglob("*")] == ["notes.txt"]


@pytest.mark.parametrize("folder", ["failures", "done", "commands", "logs"])
def test_folders_of_a_run_are_not_reached_through_links(
    inputs: Inputs, in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str], folder: str
) -> None:
    run = in_folder / "a.zarr.run"
    shutil.rmtree(run / folder, ignore_errors=True)
    (run / folder).symlink_to(in_folder / "home" / folder)
    (store / CHUNK).unlink()
    ended(["verify", "--repair", "a.zarr"], capfd)
    code, error = ended(["run", *inputs.overrides("a.zarr")], capfd)
    assert code in (1, 2)
    assert "a.zarr" in error
    require_untouched(in_folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to another user")
def test_a_run_folder_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a.zarr")
    directory.run.write("plan.json", b"{}")
    os.chown(tmp_path / "a.zarr.run", 12345, 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        directory.run.write("plan.json", b"{}")
    os.chown(tmp_path, 12345, 12345)  # whose folder it lies in: as a container's root sees it
    directory.run.write("plan.json", b"{}")


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root acts as another user")
def test_another_user_changes_nothing_and_holds_nothing_up(tmp_path: Path) -> None:
    """Also where the umask lets everyone write."""
    before = os.umask(0)
    try:
        with tempfile.TemporaryDirectory() as shared:  # tmp_path is closed to others as a whole
            os.chmod(shared, 0o755)
            directory = RunDirectory(f"{shared}/a.zarr")
            with directory.claim(pytest.fail), directory.staging() as staged:
                (staged / "name").mkdir(parents=True)
                (staged / "name/c.0").write_bytes(b"x")
                directory.store.publish(staged, last="zarr.json")
                directory.run.append("logs/x.jsonl", b"{}")
            tries = [f"touch {shared}/{path}/x" for path in ("a.zarr", "a.zarr/name", "a.zarr.run", "a.zarr.run/logs")]
            tries += [f"flock -n {shared}/a.zarr.run/claim true", f"sh -c 'echo > {shared}/a.zarr/name/c.0'"]
            script = "\n".join(f"{each} 2>&1 || echo refused" for each in [*tries, f"cat {shared}/a.zarr/name/c.0"])
            other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script]
            told = subprocess.run(other, capture_output=True, text=True, check=False).stdout
    finally:
        os.umask(before)
    assert told.count("refused") == told.count("Permission denied") == len(tries), told
    assert told.endswith("\nx"), "it may read what is there"


def test_a_run_folder_that_everyone_may_write_to_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, run = RunDirectory(tmp_path / "a.zarr"), tmp_path / "a.zarr.run"
    directory.run.write("done/00000000.json", b"{}")
    for folder in (run, run / "done"):
        folder.chmod(0o2777)
    assert directory.run.read("done/00000000.json") == b"{}"
    assert run.stat().st_mode & 0o7777 == 0o2777, "whoever only reads changes nothing"
    directory.run.write("done/00000001.json", b"{}")
    assert [folder.stat().st_mode & 0o7777 for folder in (run, run / "done")] == [0o2775] * 2
    run.chmod(0o1777)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", denied)
    with pytest.raises(UserError, match=r"everyone may write to .*a\.zarr\.run .*chmod -R o-w .*a\.zarr\.run"):
        directory.run.write("done/00000001.json", b"{}")


def test_a_path_that_is_no_folder_leaves_nothing(
    inputs: Inputs, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    (in_folder / "nowhere").symlink_to("nothing")
    for path in ("/dev/null", "/dev/zero", str(in_folder / "pipe"), str(in_folder / "nowhere")):
        code, error = ended(["run", *inputs.overrides(path)], capfd)
        assert (code, os.path.lexists(f"{path}.run")) == (2, False)
        assert f"store.path={path} exists and is not a dlshap store" in error


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_a_group_s_own_file_that_is_none_is_refused(
    in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str], kind: str, reader: str
) -> None:
    (store / ROOT).rename("zarr.json")
    if kind == "pipe":
        os.mkfifo(store / ROOT)
    else:
        (store / ROOT).symlink_to("/dev/zero" if kind == "device" else "../zarr.json")
    code, error = ended(READERS[reader], capfd)
    assert code == (1 if reader == "verify" else 2 if reader != "status" else 0)  # which does without
    assert reader == "status" or f"{ROOT}" in error


@pytest.mark.parametrize("reader", ["verify", "report", "tsv"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "linked folder", "huge"])
def test_a_chunk_that_is_none_is_named(
    in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str], kind: str, reader: str
) -> None:
    (store / CHUNK).rename("chunk")
    if kind == "pipe":
        os.mkfifo(store / CHUNK)
    elif kind == "linked folder":
        os.rename("chunk", store / CHUNK)
        (store / "attribution").rename("attribution")
        (store / "attribution").symlink_to("../attribution")
    elif kind == "huge":
        (store / CHUNK).touch()
        os.truncate(store / CHUNK, 1 << 42)
    else:
        (store / CHUNK).symlink_to("/dev/zero" if kind == "device" else "../../chunk")
    code, told = ended(READERS[reader], capfd)
    assert code == (1 if reader == "verify" else 2)
    assert "attribution/c.0.0.0" in told or "attribution is a link" in told


@pytest.mark.parametrize("kind", ["link", "pipe", "huge"])
def test_zarr_follows_no_link_either(in_folder: Path, store: Path, kind: str) -> None:
    opened = pipeline.open_store("a.zarr")
    (store / CHUNK).rename("chunk")
    if kind == "link":
        (store / CHUNK).symlink_to("../../chunk")
    elif kind == "pipe":
        os.mkfifo(store / CHUNK)
    else:
        (store / CHUNK).touch()
        os.truncate(store / CHUNK, 1 << 42)
    with pytest.raises((NotRegular, TooLarge), match=rf"a.zarr/{CHUNK} is "):
        opened.attribution[:]
    assert opened.attribution[20:].shape == (2, 1, 40)


def test_links_of_the_user_s_own_are_followed(
    inputs: Inputs, in_folder: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder that a store lies in may be a link, to scratch say, and so may a store that is read."""
    (in_folder / "scratch").mkdir()
    (in_folder / "here").symlink_to("scratch")
    assert dispatch(["run", *inputs.overrides("here/deeper/b.zarr")]) == 0
    assert dispatch(["verify", "here/deeper/b.zarr"]) == 0
    (in_folder / "link.zarr").symlink_to("a.zarr")
    for reader in READERS.values():
        code, told = ended([part.replace("a.zarr", "link.zarr") for part in reader], capfd)
        assert code == 0, told
    found = pipeline.open_store("link.zarr").attribution[:]
    assert np.array_equal(found, pipeline.open_store("here/deeper/b.zarr").attribution[:])


# --- between a look and a use -----------------------------------------------------------------------------------------


def test_what_is_exchanged_after_the_look_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_text("precious")
    backend, real = LocalBackend(tmp_path / "a"), os.stat
    backend.write("x", b"1")

    for plant, use in (
        (lambda: (tmp_path / "a" / "x").symlink_to("../victim"), lambda: backend.append("x", b"more")),
        (lambda: os.link(tmp_path / "victim", tmp_path / "a" / "x"), lambda: backend.append("x", b"more")),
        (lambda: os.mkfifo(tmp_path / "a" / "x"), lambda: backend.append("x", b"more")),
        (lambda: os.mkfifo(tmp_path / "a" / "x"), lambda: backend.read("x")),
        (lambda: (tmp_path / "a" / "x").symlink_to("../victim"), lambda: backend.read("x")),
    ):

        def exchanging(path: str, plant: Callable[[], None] = plant, **more: Any) -> os.stat_result:
            found = real(path, **more)
            if path == "x":
                (tmp_path / "a" / "x").unlink()
                plant()
            return found

        backend.write("x", b"1")
        with monkeypatch.context() as patch:
            patch.setattr(tree.os, "stat", exchanging)
            with pytest.raises(OSError, match="a/x"):
                use()
        assert (tmp_path / "victim").read_text() == "precious"
        backend.delete("x")


def test_a_folder_is_reached_from_the_one_above(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("precious")
    folder = Tree(tmp_path / "a", may_be_link=False).listed("b")
    (tmp_path / "a" / "b").rename(tmp_path / "a" / "moved")
    (tmp_path / "a" / "b").symlink_to("../other")
    assert os.listdir(folder) == []
    os.close(folder)
    for use in (
        lambda backend: backend.read("b/x"),
        lambda backend: backend.size("b/x"),
        lambda backend: backend.write("b/x", b""),
        lambda backend: backend.delete("b/x"),
        lambda backend: list(backend.files("b/")),
        lambda backend: backend.clear("b/"),
    ):
        with pytest.raises(NotRegular, match="a/b is a link"):
            use(LocalBackend(tmp_path / "a"))
    assert (tmp_path / "other" / "x").read_text() == "precious"


# --- locks ------------------------------------------------------------------------------------------------------------


def test_whoever_waits_says_for_whom_again_and_again_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "SAID_EVERY_S", 0.1)
    monkeypatch.setattr(turn, "LONGEST_PAUSE_S", 0.05)
    heard: list[str] = []
    waiting = RunDirectory(tmp_path / "a.zarr", lock_timeout_s=0.5)
    with RunDirectory(tmp_path / "a.zarr").claim(pytest.fail):
        said = rf"waited 0.5 s for process {os.getpid()} on .*store.lock_timeout_s"
        with pytest.raises(RunError, match=said), waiting.claim(heard.append):
            pytest.fail("held by two")
        assert 3 <= len(heard) <= 6
        assert {who.partition(" on ")[0] for who in heard} == {f"process {os.getpid()}"}
    with waiting.claim(pytest.fail):
        pass


def test_one_of_many_that_wait_is_next(tmp_path: Path) -> None:
    entered: list[int] = []

    def enter(number: int) -> None:
        with RunDirectory(tmp_path / "a.zarr").claim(lambda who: None):
            entered.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(5)]
    with RunDirectory(tmp_path / "a.zarr").claim(pytest.fail):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(entered) == list(range(5))
