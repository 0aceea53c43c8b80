"""Ray's workers: killed at every point, by their shards, and from outside again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Command, Commands, record, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, IN_FLIGHT, POINTS, environment, evil, happened
from tests.pipeline.faults.test_kills import WAYS, check_named

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ON_RAY = ("cluster=local", "cluster.actors=2")


def test_killed_once_at_every_point(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    store, folder = tmp_path / "a.zarr", tmp_path / "chaos"
    around = environment(folder, *(evil(point, "kill", shard) for shard, point in enumerate(POINTS)))
    command = commands.start(["run", *inputs.overrides(store, TARGET, *ON_RAY, "store.rows_per_shard=3")], around)
    assert command.wait(240) == 0, command.err
    assert len(happened(folder)) == len(POINTS)
    assert "Traceback" not in command.err
    assert not [line for line in command.out.splitlines() if "raylet" in line]
    check_whole(store, digest_of("store.rows_per_shard=3"))
    commands.require_none_left()


@pytest.mark.parametrize(("way", "in_flight"), [*((way, 1) for way in WAYS), ("kill", 2)])
def test_a_shard_that_always_kills_is_named_and_the_others_finish(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, way: str, in_flight: int
) -> None:
    """Those that were in flight with it are not to blame."""
    store = tmp_path / "a.zarr"
    arguments = ["run", *inputs.overrides(store, TARGET, *ON_RAY)]
    around = environment(tmp_path / "chaos", evil("device", way, 2, FOR_EVER)) | {IN_FLIGHT: str(in_flight)}
    command = commands.start(arguments, around)
    assert command.wait(240) == 1, command.err
    check_named(store, command.error, WAYS[way])
    commands.require_none_left()
    mended = commands.run(arguments[:-2])  # without Ray
    assert mended.wait() == 0, mended.err
    check_whole(store, digest_of())


def kill_workers(command: Command, n: int, pause: Callable[[], float], seconds: float) -> int:
    """Kill a worker of the command, wait, and so on until n are dead or the command has ended; how many it was."""
    killed, deadline = 0, time.monotonic() + seconds
    while killed < n and command.poll() is None and time.monotonic() < deadline:
        for worker in command.workers()[:1]:
            try:
                worker.kill()
                worker.wait(10)
                killed += 1
            except psutil.Error:
                continue
        time.sleep(pause())
    return killed


@pytest.mark.timeout(600)
def test_thirty_kills_from_outside_condemn_no_shard(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    """Kills come as soon as a worker is up, loading its model or in the midst of a shard."""
    store, rng = tmp_path / "a.zarr", random.Random(0)
    around = environment(tmp_path / "chaos", evil("compute", "sleep", None, FOR_EVER, 1.0))
    command = commands.start(["run", *inputs.overrides(store, TARGET, *ON_RAY, "store.rows_per_shard=1")], around)
    assert kill_workers(command, 30, lambda: rng.uniform(0.3, 2.5), 280) == 30, command.err
    assert command.wait(200) == 0, command.err
    assert record(store)["failures"] == []
    check_whole(store, digest_of("store.rows_per_shard=1"))
    commands.require_none_left()


@pytest.mark.timeout(300)
def test_kills_from_outside_with_two_shards_in_flight(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    store, rng = tmp_path / "a.zarr", random.Random(0)
    around = environment(tmp_path / "chaos", evil("device", "sleep", None, FOR_EVER, 0.7)) | {IN_FLIGHT: "2"}
    command = commands.start(["run", *inputs.overrides(store, TARGET, *ON_RAY, "store.rows_per_shard=1")], around)
    assert kill_workers(command, 6, lambda: rng.uniform(0.3, 4), 120) == 6, command.err
    assert command.wait(150) == 0, command.err
    assert record(store)["failures"] == []
    check_whole(store, digest_of("store.rows_per_shard=1"))
    commands.require_none_left()


@pytest.mark.timeout(600)
def test_one_actor_that_is_killed_in_nearly_every_shard(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    """Each shard is begun, killed, begun, killed, then worked on in a process of its own, and so on."""
    store, folder = tmp_path / "a.zarr", tmp_path / "chaos"
    around = environment(folder, evil("compute", "sleep", None, FOR_EVER, 2.0))
    overrides = inputs.overrides(store, TARGET, "cluster=local", "cluster.actors=1")
    command = commands.start(["run", *overrides], around)
    attempts = Path(f"{store}.run") / "attempts"

    def in_the_midst() -> float:
        wait_until(lambda: command.poll() is not None or (attempts.is_dir() and any(attempts.iterdir())), 60)
        return random.Random(0).uniform(0.2, 1.8)

    assert kill_workers(command, 14, in_the_midst, 150) >= 10, command.err
    assert command.wait(200) == 0, command.err
    assert record(store)["failures"] == []
    check_whole(store, digest_of())
    commands.require_none_left()
