"""Workers that are killed at every point of a shard, without Ray: the command dies with them, and is given again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.messages.errors import UserError
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Commands, record, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, IN_FLIGHT, POINTS, environment, evil, happened


@pytest.mark.slow
def test_killed_once_at_every_point(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    """Every command but the last is killed; none of them leaves what looks finished."""
    store, folder = tmp_path / "a.zarr", tmp_path / "chaos"
    command = ["run", *inputs.overrides(store, TARGET, "store.rows_per_shard=3")]
    around = environment(folder, *(evil(point, "kill", shard) for shard, point in enumerate(POINTS)))
    for n in range(len(POINTS)):
        assert commands.run(command, **around).wait() == -signal.SIGKILL
        assert len(happened(folder)) == n + 1
        with pytest.raises(UserError, match="not complete"):
            pipeline.open_store(store)
    last = commands.run(command, **around)
    assert last.wait() == 0, last.err
    check_whole(store, digest_of("store.rows_per_shard=3"))
    commands.require_none_left()


WAYS = {"kill": "ended by SIGKILL", "exit": "exit code 3", "crash": "ended by SIGSEGV"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("way", "in_flight"), [*((way, 1) for way in WAYS), ("kill", 2)])
def test_a_shard_that_always_kills_is_named_by_the_third_command(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, way: str, in_flight: int
) -> None:
    store, command = tmp_path / "a.zarr", ["run", *inputs.overrides(tmp_path / "a.zarr", TARGET)]
    around = environment(tmp_path / "chaos", evil("device", way, 2, FOR_EVER)) | {IN_FLIGHT: str(in_flight)}
    codes = [commands.run(command, **around).wait() for _ in range(2)]
    assert codes == [{"kill": -signal.SIGKILL, "exit": 3, "crash": -signal.SIGSEGV}[way]] * 2
    third = commands.run(command, 240, **around)  # it starts a process for each kill that it looks at
    assert third.wait() == 1
    check_named(store, third.error, WAYS[way])
    status = commands.run(["status", str(store)])
    assert "failed: shard 2 (rows 12 to 17)" in status.out
    again = commands.run(command, 240, **around)
    assert (again.wait(), again.error) == (1, third.error), "nothing has changed, and it says so at once"
    mended = commands.run(command)
    assert mended.wait() == 0, mended.err
    check_whole(store, digest_of())
    commands.require_none_left()


@pytest.mark.slow
def test_kills_from_outside_of_a_shard_s_own_process_condemn_no_shard(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path
) -> None:
    store, rng = tmp_path / "a.zarr", random.Random(0)
    arguments = ["run", *inputs.overrides(store, TARGET)]
    kills = environment(tmp_path / "kills", evil("compute", "kill", 1, 2))
    for _ in range(2):
        assert commands.run(arguments, **kills).wait() == -signal.SIGKILL
    command = commands.fork(arguments, environment(tmp_path / "chaos", evil("compute", "sleep", 1, FOR_EVER, 3)))
    for _ in range(4):
        (own,) = wait_until(commands.left, 60)  # the forked command itself is not among them
        time.sleep(rng.uniform(0.1, 3))
        own.kill()
        wait_until(lambda own=own: own not in commands.left(), 60)
    assert command.wait() == 0, command.err
    check_whole(store, digest_of())
    commands.require_none_left()


def check_named(store: Path, error: str, how: str) -> None:
    """Shard, rows, sequences, the way it ended; and the others are done."""
    assert error.startswith("dlshap: error: 1 of 4 shards failed, 3 are done, and the same command tries the others")
    assert "shard 2 (rows 12 to 17), sequences 's12', 's13', 's14' and 3 more, failed" in error
    assert how in error
    directory = RunDirectory(store)
    assert directory.done_indices() == [0, 1, 3]
    (failure,) = directory.failures()
    assert how in failure.error
    assert record(store)["complete"] is False
    assert [how in line for line in record(store)["failures"]] == [True]
