"""Disks that are full, read-only, or gone while the run goes on: one line, and nothing that only looks whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Commands, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, environment, evil

ROOM = 4_000_000  # bytes of the small disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave so many bytes; the file that takes the others."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - free)))
    return ballast


@pytest.mark.parametrize(
    "free", [0, 120_000, *(pytest.param(free, marks=pytest.mark.slow) for free in range(30_000, 330_000, 30_000))]
)
def test_a_full_disk(
    inputs: Inputs,
    digest_of: Callable[..., str],
    disk: Path,
    capfd: pytest.CaptureFixture[str],
    free: int,
) -> None:
    """Full while preparing, or in the midst of a shard, or of completing."""
    store, more = disk / "a.zarr", "store.rows_per_shard=6"
    command = ["run", *inputs.overrides(store, more)]
    ballast = fill(disk, free)
    code = dispatch(command)
    out, err = capfd.readouterr()
    if code == 0:
        assert free >= 200_000
    else:
        check_refused(code, out, err)
        assert "No space left on device" in err
        with pytest.raises(UserError):
            pipeline.open_store(store)
        ballast.unlink()
        assert dispatch(command) == 0, capfd.readouterr().err
    check_whole(store, digest_of(more))


def check_refused(code: int, out: str, err: str) -> None:
    """One line that says what is wrong, besides those that say how far it has got."""
    assert code in (1, 2)
    assert out == ""
    lines = err.splitlines()
    assert lines[-1].startswith("dlshap: error: "), err
    assert [line for line in lines if "error" in line] == lines[-1:]
    assert all(line.startswith("dlshap: ") or "(raylet)" in line for line in lines), err  # Ray says what it does


def test_a_read_only_disk(
    inputs: Inputs, digest_of: Callable[..., str], disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = disk / "a.zarr"
    command = ["run", *inputs.overrides(store)]
    assert dispatch([*command, "run.shards=0-1"]) == 0
    capfd.readouterr()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code = dispatch(command)
    out, err = capfd.readouterr()
    check_refused(code, out, err)
    assert "Read-only file system" in err
    assert str(store) in err
    code = dispatch(["run", *inputs.overrides(disk / "b.zarr")])
    check_refused(code, *capfd.readouterr())
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert dispatch(command) == 0
    check_whole(store, digest_of())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert dispatch(command) == 0, "a finished store needs no writing"
    check_whole(store, digest_of())
    assert not (disk / "b.zarr.run").exists()


@pytest.mark.parametrize("gone", ["store", *(pytest.param(gone, marks=pytest.mark.slow) for gone in ("run", "both"))])
def test_the_store_is_removed_while_the_run_goes_on(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, gone: str
) -> None:
    store = tmp_path / "a.zarr"
    around = environment(tmp_path / "chaos", evil("compute", "sleep", None, FOR_EVER, 0.3))
    arguments = ["run", *inputs.overrides(store, TARGET, "store.rows_per_shard=3")]
    command = commands.fork(arguments, around)
    done = Path(f"{store}.run/done")
    wait_until(lambda: done.is_dir() and any(done.iterdir()), 60)
    for folder in (store, Path(f"{store}.run")):
        if gone in ("both", {"a.zarr": "store"}.get(folder.name, "run")):
            while folder.exists():  # it is being written to
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.01)
    assert command.wait() in (1, 2), command.err
    check_refused(command.wait(), command.out, command.err)
    assert str(store) in command.error
    with pytest.raises(UserError):
        pipeline.open_store(store)
    again = commands.run(arguments)
    if again.wait() != 0:  # what is left must be removed, and it says so
        assert "remove it" in again.error
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(f"{store}.run", ignore_errors=True)
        again = commands.run(arguments)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of("store.rows_per_shard=3"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_full_disk_under_ray(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], disk: Path, tmp_path: Path
) -> None:
    store, more = disk / "a.zarr", "store.rows_per_shard=3"
    arguments = ["run", *inputs.overrides(store, TARGET, more, "cluster=local", "cluster.actors=2")]
    around = environment(tmp_path / "chaos", evil("compute", "sleep", None, FOR_EVER, 0.5))
    command = commands.start(arguments, around)
    done = Path(f"{store}.run/done")
    wait_until(lambda: done.is_dir() and any(done.iterdir()), 120)
    ballast = fill(disk, 0)
    assert command.wait() == 1
    check_refused(1, command.out, command.err)
    assert "No space left on device" in command.error
    commands.require_none_left()
    ballast.unlink()
    again = commands.run(["run", *inputs.overrides(store, TARGET, more)])
    assert again.wait() == 0, again.err
    check_whole(store, digest_of(more))
