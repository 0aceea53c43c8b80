"""Object stores that fail, hang and lose answers; workers killed while they write to one; two drivers on one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.messages.errors import UserError
from tests.pipeline.conftest import Inputs
from tests.pipeline.faults.commands import Commands, wait_until
from tests.pipeline.faults.conftest import TARGET, check_whole
from tests.pipeline.faults.evils import FOR_EVER, POINTS, environment, evil, happened
from tests.pipeline.object_store import Bucket, Fault, FaultyProxy

LATER: tuple[Fault, ...] = ("later", "", "", "", "")
LOST: tuple[Fault, ...] = ("lost", "", "", "", "cut", "", "", "reset", "", "")


def on(bucket: Bucket) -> list[str]:
    """Where the store lies."""
    return [f"store.options.endpoint={bucket.endpoint}", "store.options.region=us-east-1"]


def in_turn(proxy: FaultyProxy, faults: tuple[Fault, ...], hang: int = -1) -> None:
    """These faults again and again; the request of this number hangs."""
    numbers = itertools.count()

    def rule(method: str, path: str) -> Fault:
        number = next(numbers)
        return "hang" if number == hang else faults[number % len(faults)]

    proxy.rule = rule


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are given up after 2 s, places after 6 s, in this process."""
    monkeypatch.setattr("pipeline.store.backends.object_store.Timeouts.__init__.__defaults__", (2.0, 6.0))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "faults", [pytest.param(faults, marks=pytest.mark.slow) for faults in (LATER, LOST)], ids=["later", "lost"]
)
def test_a_store_that_fails_now_and_then(
    inputs: Inputs, digest_of: Callable[..., str], bucket: Bucket, proxy: FaultyProxy, faults: tuple[Fault, ...]
) -> None:
    behind = bucket.behind(proxy)
    in_turn(proxy, faults, hang=40)
    two_shards = "store.rows_per_shard=12"  # every fault costs a pause
    assert pipeline.run(inputs.overrides(f"{bucket.url}/a.zarr", *on(behind), two_shards)).complete
    assert proxy.done["hang"] == 1
    assert sum(proxy.done[fault] for fault in set(faults) if fault) > 20
    check_whole(f"{bucket.url}/a.zarr", digest_of(two_shards), bucket.options)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("from_start", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault", ["denied", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("later", "hang", "reset"))]
)
def test_a_store_that_always_fails_is_given_up(
    inputs: Inputs,
    digest_of: Callable[..., str],
    bucket: Bucket,
    proxy: FaultyProxy,
    capfd: pytest.CaptureFixture[str],
    fault: Fault,
    from_start: bool,
) -> None:
    url, behind = f"{bucket.url}/a.zarr", bucket.behind(proxy)
    command = ["run", *inputs.overrides(url, *on(behind))]
    if from_start:
        proxy.always(fault)
    else:
        proxy.always(fault, "PUT", "prediction/c.2")  # in the midst of a shard
    started = time.monotonic()
    assert dispatch(command) in (1, 2)
    assert time.monotonic() - started < 30
    err = capfd.readouterr().err.splitlines()
    assert url in err[-1]
    assert [line for line in err if "error" in line] == err[-1:]
    assert len(err[-1]) < 600
    proxy.rule = lambda method, path: ""
    with pytest.raises(UserError):
        pipeline.open_store(url, options=bucket.options)
    assert dispatch(command) == 0
    check_whole(url, digest_of(), bucket.options)


@pytest.mark.slow
def test_killed_at_every_point(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], bucket: Bucket, tmp_path: Path
) -> None:
    url, folder = f"{bucket.url}/a.zarr", tmp_path / "chaos"
    points = [point for point in POINTS if point != "half"]
    around = environment(folder, *(evil(point, "kill", shard) for shard, point in enumerate(points)))
    command = ["run", *inputs.overrides(url, *on(bucket), TARGET, "store.rows_per_shard=3")]
    for n in range(len(points)):
        assert commands.run(command, **around).wait() == -9
        assert len(happened(folder)) == n + 1
    last = commands.run(command, **around)
    assert last.wait() == 0, last.err
    check_whole(url, digest_of("store.rows_per_shard=3"), bucket.options)


@pytest.mark.slow
def test_two_drivers_on_one_store(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], bucket: Bucket, tmp_path: Path
) -> None:
    url = f"{bucket.url}/a.zarr"
    around = environment(tmp_path / "chaos", evil("compute", "sleep", None, FOR_EVER, 0.1))
    both = [commands.fork(["run", *inputs.overrides(url, *on(bucket), TARGET)], around) for _ in range(2)]
    for command in both:
        assert command.wait() == 0, command.err
    check_whole(url, digest_of(), bucket.options)


@pytest.mark.slow
def test_a_driver_killed_while_preparing_holds_its_lock_for_a_lease(
    inputs: Inputs, commands: Commands, digest_of: Callable[..., str], bucket: Bucket, proxy: FaultyProxy
) -> None:
    """Killed in the midst of the upload: the next one waits for the lease to run out, then begins again."""
    url = f"{bucket.url}/a.zarr"
    behind = bucket.behind(proxy)
    proxy.always("hang", "PUT", "codes/c.2")
    command = ["run", *inputs.overrides(url, *on(behind))]
    first = commands.fork(command)
    wait_until(lambda: proxy.done["hang"], 60)
    first.kill()
    proxy.rule = lambda method, path: ""
    started = time.monotonic()
    again = commands.run(command)
    assert again.wait() == 0, again.err
    assert 20 < time.monotonic() - started < 60
    assert "waiting for process" in again.err
    check_whole(url, digest_of(), bucket.options)


@pytest.mark.ray
@pytest.mark.slow
def test_everything_at_once_under_ray(
    inputs: Inputs,
    commands: Commands,
    digest_of: Callable[..., str],
    bucket: Bucket,
    proxy: FaultyProxy,
    tmp_path: Path,
) -> None:
    """One request in five fails, some answers are lost, one hangs, and workers are killed at every point."""
    url, folder, behind = f"{bucket.url}/a.zarr", tmp_path / "chaos", bucket.behind(proxy)
    points = [point for point in POINTS if point != "half"]
    around = environment(folder, *(evil(point, "kill", shard) for shard, point in enumerate(points)))
    in_turn(proxy, (*LATER, *LOST), hang=100)
    overrides = inputs.overrides(
        url, *on(behind), TARGET, "store.rows_per_shard=3", "cluster=local", "cluster.actors=2"
    )
    command = commands.start(["run", *overrides], around)
    assert command.wait(280) == 0, command.err
    assert proxy.done["hang"] == 1
    assert len(happened(folder)) == len(points)
    check_whole(url, digest_of("store.rows_per_shard=3"), bucket.options)
    commands.require_none_left()
