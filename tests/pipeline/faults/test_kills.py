"""Workers that are killed at every point of a shard, without Ray: the command dies with them, and is given again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.commits import RunDirectory
from pipeline.errors import UserError
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Commands, record
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, IN_FLIGHT, POINTS, environment, evil, happened


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
@pytest.mark.parametrize(("way", "in_flight"), [*((way, 1) for way in WAYS), ("kill", 2)])
def test_a_shard_that_always_kills_is_named_by_the_third_command(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], tmp_path: Path, way: str, in_flight: int
) -> None:
    store, command = tmp_path / "a.zarr", ["run", *inputs.overrides(tmp_path / "a.zarr", TARGET)]
    around = environment(tmp_path / "chaos", evil("device", way, 2, FOR_EVER)) | {IN_FLIGHT: str(in_flight)}
    codes = [commands.run(command, **around).wait() for _ in range(2)]
    assert codes == [{"kill": -signal.SIGKILL, "exit": 3, "crash": -signal.SIGSEGV}[way]] * 2
    third = commands.run(command, **around)
    assert third.wait() == 1
    check_named(store, third.error, WAYS[way])
    status = commands.run(["status", str(store)])
    assert "failed: shard 2 (rows 12 to 17)" in status.out
    again = commands.run(command, **around)
    assert (again.wait(), again.error) == (1, third.error), "nothing has changed, and it says so at once"
    mended = commands.run(command)
    assert mended.wait() == 0, mended.err
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
