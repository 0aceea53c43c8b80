"""The driver: killed in every phase, stopped by signals, and two of them at once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline.store.done_shards import check_shards
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Command, Commands, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, IN_FLIGHT, environment, evil, happened

ON_RAY = ("cluster=local", "cluster.actors=2")
SLEEPY = "tests.pipeline.faults.sleepy"  # imported for its model, it makes preparing and completing slow


def phase(store: Path, command: Command, name: str) -> Callable[[], bool]:
    """Whether a command has come to a phase."""
    run = Path(f"{store}.run")
    there: Mapping[str, Callable[[], bool]] = {
        "preparing": lambda: (run / "staged.zarr").is_dir(),
        "attributing": lambda: (run / "done").is_dir() and any((run / "done").iterdir()),
        "completing": lambda: (run / "completing").exists(),
    }
    return lambda: there[name]() or command.poll() is not None


def slow_run(inputs: Inputs, store: Path, folder: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """A command whose every phase takes about a second or more."""
    overrides = inputs.overrides(store, f"model._target_={SLEEPY}.SleepyNet", "store.rows_per_shard=3", *more)
    return ["run", *overrides], environment(folder, evil("compute", "sleep", None, FOR_EVER, 0.2))


PHASES = ["attributing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("preparing", "completing"))]


@pytest.mark.parametrize("name", PHASES)
def test_killed_in_a_phase_and_given_again_at_once(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, name: str
) -> None:
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    command = commands.fork(arguments, around)
    wait_until(phase(store, command, name), 60)
    command.kill()
    assert command.wait() == -signal.SIGKILL
    again = commands.run(arguments, **around)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of("store.rows_per_shard=3"))
    commands.require_none_left()


@pytest.mark.ray
@pytest.mark.slow
def test_killed_with_workers_that_still_write(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    """The new driver begins while the old one's Ray notices that it is alone."""
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos", *ON_RAY)
    command = commands.start(arguments, around)
    wait_until(phase(store, command, "attributing"), 240)
    zombies = command.workers()
    command.kill()
    assert zombies
    again = commands.run(slow_run(inputs, store, tmp_path / "chaos")[0], **around)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of("store.rows_per_shard=3"))
    commands.require_none_left(60)
    check_whole(store, digest_of("store.rows_per_shard=3"))


@pytest.mark.ray
@pytest.mark.slow
def test_ten_kills_in_a_row(inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path) -> None:
    """At any time; the next one starts at once. Every other one works on Ray."""
    store, rng = tmp_path / "a.zarr", random.Random(1)
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    on_ray, _ = slow_run(inputs, store, tmp_path / "chaos", *ON_RAY)
    n_before = 0
    for n in range(10):
        command = commands.fork(arguments, around) if n % 2 else commands.start(on_ray, around)
        time.sleep(rng.uniform(0.2, 1.2 if n % 2 else 14))
        command.kill()
        directory = RunDirectory(store)
        plan = directory.read_plan() if directory.prepared else None
        if plan is not None:
            assert check_shards(directory, plan).n_done >= n_before, "what is done stays done"
            n_before = check_shards(directory, plan).n_done
    last = commands.run(arguments, **around)
    assert last.wait() == 0, last.err
    check_whole(store, digest_of("store.rows_per_shard=3"))
    commands.require_none_left(60)


STOPS = {"term": (signal.SIGTERM, 75), "int": (signal.SIGINT, 130)}


def stop(command: Command, how: str) -> float:
    """Send the signal as a scheduler or a terminal does; the seconds until the command has ended."""
    number, code = STOPS[how.partition(" ")[0]]
    started = time.monotonic()
    (os.kill if how == "term" else os.killpg)(command.pid, number)
    assert command.wait(30) == code, command.err
    return time.monotonic() - started


def check_stopped(command: Command) -> None:
    assert command.error == "dlshap: stopped; what is committed is kept, and the same command goes on from there"
    assert all(line.startswith("dlshap: ") for line in command.err.splitlines()), command.err
    assert command.out == ""


@pytest.mark.parametrize("how", ["term", pytest.param("int", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PHASES)
def test_stopped_in_a_phase(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, name: str, how: str
) -> None:
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    command = commands.fork(arguments, around)
    wait_until(phase(store, command, name), 60)
    assert stop(command, how) < 10
    check_stopped(command)
    commands.require_none_left(5)
    again = commands.run(arguments, **around)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of("store.rows_per_shard=3"))


@pytest.mark.parametrize("point", ["device", pytest.param("computed", marks=pytest.mark.slow)])
def test_stopped_with_two_shards_in_flight(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, point: str
) -> None:
    """What is on the device is abandoned, what is being written is finished."""
    store, seconds = tmp_path / "a.zarr", {"device": 60, "computed": 1}[point]
    arguments = ["run", *inputs.overrides(store, TARGET)]
    around = environment(tmp_path / "chaos", evil(point, "sleep", 1, 1, seconds)) | {IN_FLIGHT: "2"}
    command = commands.fork(arguments, around)
    wait_until(lambda: happened(tmp_path / "chaos") or command.poll() is not None, 60)
    assert stop(command, "term") < 10
    check_stopped(command)
    commands.require_none_left(5)
    done = RunDirectory(store).done_indices()
    assert (1 in done) == (point == "computed")
    assert list(Path(f"{store}.run/attempts").iterdir()) == []
    again = commands.run(arguments)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of())


@pytest.mark.slow
@pytest.mark.parametrize("how", STOPS)
def test_stopped_while_a_shard_is_in_a_process_of_its_own(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, how: str
) -> None:
    store = tmp_path / "a.zarr"
    arguments = ["run", *inputs.overrides(store, TARGET)]
    kills = environment(tmp_path / "kills", evil("compute", "kill", 1, 2))
    for _ in range(2):
        assert commands.run(arguments, **kills).wait() == -signal.SIGKILL
    command = commands.fork(arguments, environment(tmp_path / "chaos", evil("compute", "sleep", 1, 1, 60)))
    wait_until(lambda: happened(tmp_path / "chaos"), 60)
    assert len(commands.left()) == 1
    assert stop(command, how) < 10
    check_stopped(command)
    commands.require_none_left(5)
    again = commands.run(arguments)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [*STOPS, "term to all"])
def test_stopped_on_ray(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, how: str
) -> None:
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    on_ray, _ = slow_run(inputs, store, tmp_path / "chaos", *ON_RAY)
    command = commands.start(on_ray, around)
    wait_until(phase(store, command, "attributing"), 240)
    assert stop(command, how) < 25
    check_stopped(command)
    commands.require_none_left(5)
    again = commands.run(arguments, **around)
    assert again.wait() == 0, again.err
    check_whole(store, digest_of("store.rows_per_shard=3"))


def test_two_at_once(inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    both = [commands.fork(arguments, around) for _ in range(2)]
    for command in both:
        assert command.wait() == 0, command.err
        assert "complete" in command.out
    check_whole(store, digest_of("store.rows_per_shard=3"))


def test_parts_of_a_job_array_at_once(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    """One of them is killed, and the task given again; then the last part."""
    store = tmp_path / "a.zarr"
    arguments, around = slow_run(inputs, store, tmp_path / "chaos")
    first, second = (commands.fork([*arguments, f"run.shards={part}"], around) for part in ("0-2", "3-5"))
    wait_until(phase(store, first, "attributing"), 60)
    first.kill()
    first = commands.fork([*arguments, "run.shards=0-2"], around)
    for command in (first, second):
        assert command.wait() == 0, command.err
        assert "complete" not in command.out
    assert RunDirectory(store).done_indices() == list(range(6))
    last = commands.run([*arguments, "run.shards=6-7"], **around)
    assert last.wait() == 0, last.err
    check_whole(store, digest_of("store.rows_per_shard=3"))
