"""A shard in a process of its own: whose doing it was that the process ended."""

from __future__ import annotations

import pickle
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution import isolated
from pipeline.execution.isolated import MAX_CRASHES, MAX_DEATHS, MAX_KILLS, Death, is_to_blame
from pipeline.execution.isolated_child import StagedLock
from pipeline.execution.work import ShardResult

FROM_OUTSIDE = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]


def kills(times: list[float], stage: str = "computing", number: int = signal.SIGKILL) -> list[Death]:
    return [Death(-number, stage, seconds) for seconds in times]


@pytest.mark.parametrize(
    "death",
    [
        *(Death(-number, "computing", 3.0) for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)),
        Death(3, "computing", 3.0),
        Death(0, "starting", 1.0),
        Death(-signal.SIGKILL, "computing", 3.0, was_out_of_memory=True),
    ],
    ids=str,
)
def test_a_shard_is_to_blame_for_what_only_it_can_have_done(death: Death) -> None:
    assert not is_to_blame([death] * (MAX_CRASHES - 1))
    assert is_to_blame([death] * MAX_CRASHES)
    assert is_to_blame([death, *kills([1.0, 9.0]), death]), "with kills from outside in between"


@pytest.mark.parametrize("number", FROM_OUTSIDE)
@pytest.mark.parametrize("seed", range(10))
def test_thirty_kills_at_any_time_condemn_no_shard(number: int, seed: int) -> None:
    rng = random.Random(seed)
    deaths = kills([rng.uniform(0.3, 20) for _ in range(30)], number=number)
    assert not any(is_to_blame(deaths[:n]) for n in range(1, 31))


def test_kills_at_the_same_point_again_and_again_are_the_shard_s_doing() -> None:
    deaths = kills([6.8, 6.6, 6.0, 6.4, 6.3, 6.6])
    assert len(deaths) == MAX_KILLS
    assert [is_to_blame(deaths[:n]) for n in range(1, 7)] == [False] * 5 + [True]
    assert is_to_blame([*kills([1.0, 12.0]), *deaths]), "the last ones count"
    assert not is_to_blame([*deaths[:3], *kills([9.5]), *deaths[3:]])
    assert not is_to_blame([*deaths[:3], *kills([5.0], "writing"), *deaths[3:]]), "of another stage"


def test_kills_before_it_has_begun_are_not_its_doing() -> None:
    deaths = kills([0.5] * 30, "starting")
    assert not any(is_to_blame(deaths[:n]) for n in range(1, 31))


def test_nothing_goes_on_for_ever() -> None:
    deaths = kills([float(n % 7) for n in range(MAX_DEATHS)])
    assert [is_to_blame(deaths[:n]) for n in (MAX_DEATHS - 1, MAX_DEATHS)] == [False, True]


def scripted(monkeypatch: pytest.MonkeyPatch, ends: list[Death | ShardResult]) -> list[float]:
    """Processes end like this, one after the other; the pauses between them."""
    left, pauses = iter(ends), []

    def run(task: bytes) -> tuple[bytes | None, Death | None]:
        end = next(left)
        return (None, end) if isinstance(end, Death) else (pickle.dumps(end), None)

    monkeypatch.setattr(isolated, "_run", run)
    monkeypatch.setattr("pipeline.execution.isolated.time.sleep", pauses.append)
    return pauses


def test_a_shard_that_is_killed_thirty_times_is_done_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, done = random.Random(0), ShardResult(3, 6)
    pauses = scripted(monkeypatch, [*kills([rng.uniform(0.3, 20) for _ in range(30)]), done])
    nothing: Any = None
    assert isolated.attribute(nothing, nothing) == done
    assert pauses[:4] == [1.0, 2.0, 2.0, 2.0]


def test_how_it_ended_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    pauses = scripted(monkeypatch, [Death(-signal.SIGSEGV, "computing", seconds) for seconds in (1.0, 7.0)])
    assert isolated.attribute(nothing, nothing) == "ended by SIGSEGV while computing"
    assert pauses == [], "nothing will be over by waiting"
    scripted(monkeypatch, kills([3.0] * MAX_KILLS))
    assert isolated.attribute(nothing, nothing) == "ended by SIGKILL while computing"


# --- real processes -------------------------------------------------------------------------------------------------


class Does:
    """What a process does when it takes it from its pipe."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.what


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGSEGV])
def test_the_end_of_a_process_is_seen(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    result, death = isolated._run(pickle.dumps(Does(signal.raise_signal, number)))
    assert (result, death is not None) == (None, True)
    assert death is not None
    assert (death.code, death.stage, death.was_out_of_memory) == (-number, "starting", False)
    assert 0 < death.processor_s < 60


@pytest.mark.parametrize(("of_all", "is_it"), [(1 << 20, True), (1 << 50, False)], ids=["most", "little"])
def test_the_memory_killer_took_what_held_most(monkeypatch: pytest.MonkeyPatch, of_all: int, is_it: bool) -> None:
    n_killed = iter([4, 5])
    monkeypatch.setattr(isolated, "_memory_kills", lambda: next(n_killed))
    monkeypatch.setattr(isolated.memory, "total", lambda: of_all)
    _, death = isolated._run(pickle.dumps(Does(signal.raise_signal, signal.SIGKILL)))
    assert death is not None
    assert (death.was_out_of_memory, death.is_own_doing) == (is_it, is_it)


def test_what_the_group_may_have_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated.memory, "groups", lambda: iter([tmp_path]))
    assert (isolated._memory_kills(), isolated.memory.total() > 1 << 26) == (0, True)
    (tmp_path / "memory.events").write_text("low 0\nhigh 3\noom 2\noom_kill 7\n")
    (tmp_path / "memory.max").write_text("4096\n")
    assert (isolated._memory_kills(), isolated.memory.total()) == (7, 4096)


def test_what_a_process_was_at_is_known() -> None:
    with tempfile.TemporaryFile() as file:
        assert isolated._read_stage(file) == "starting"
        lock, seen = StagedLock(file.fileno()), []
        assert lock(lambda: seen.append(isolated._read_stage(file)) or 5) == 5
        assert (seen, isolated._read_stage(file)) == (["computing"], "writing")
