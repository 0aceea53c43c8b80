"""Crashes at every point of the protocol, one after the other and on top of each other: the same bits in the end."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import pipeline
from pipeline.config.settings import to_dict
from pipeline.execution.verify import verify
from pipeline.execution.work import WorkSpec
from pipeline.execution.worker import Worker
from pipeline.messages.errors import UserError
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import Inputs, values
from tests.pipeline.plug import PulledPlug, plugged

N_SHARDS = 4


def run_until(inputs: Inputs, store: Path, left: int | None, *more: str) -> bool:
    """Run the command until the plug is pulled; whether it came to its end."""
    with plugged(left), contextlib.suppress(PulledPlug):
        pipeline.run(inputs.overrides(store, *more))
        return True
    return False


def check_finished(store: Path, finished: Path) -> None:
    assert values(store) == values(finished)
    findings = verify(RunDirectory(store))
    assert findings.sound, findings.text()
    assert findings.complete
    assert findings.strays == []
    left = {path.relative_to(f"{store}.run").parts[0] for path in Path(f"{store}.run").rglob("*") if path.is_file()}
    assert left <= {"claim", "plan.json", "files.json", "prepared", "done", "logs", "result.json", "metrics.json"}


def n_changes(inputs: Inputs, store: Path) -> int:
    with plugged(None) as plug:
        pipeline.run(inputs.overrides(store))
    return len(plug.used)


def crash_everywhere(inputs: Inputs, finished: Path, tmp_path: Path, step: int) -> None:
    total = n_changes(inputs, tmp_path / "whole.zarr")
    assert total > 60
    for left in range(0, total, step):
        store = tmp_path / f"{left}.zarr"
        assert not run_until(inputs, store, left)
        assert pipeline.run(inputs.overrides(store)).complete, f"after {left} changes"
        check_finished(store, finished)


def test_a_crash_at_some_points_is_resumed(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    crash_everywhere(inputs, finished, tmp_path, 29)


@pytest.mark.slow
def test_a_crash_at_every_point_is_resumed(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    crash_everywhere(inputs, finished, tmp_path, 1)


class Crashes(RuleBasedStateMachine):
    """Drivers and workers of one store that are stopped anywhere, and a zombie that goes on writing."""

    inputs: Inputs
    finished: Path

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.store = Path(self._folder.name) / "a.zarr"

    @rule(left=st.integers(0, 70))
    def drive(self, left: int) -> None:
        run_until(self.inputs, self.store, left)

    @rule(shard=st.integers(0, N_SHARDS - 1), left=st.integers(0, 12))
    def drive_a_part(self, shard: int, left: int) -> None:
        run_until(self.inputs, self.store, left + 3, f"run.shards={shard}")

    @precondition(lambda self: RunDirectory(self.store).prepared)
    @rule(shard=st.integers(0, N_SHARDS - 1), left=st.integers(0, 12))
    def a_zombie_writes(self, shard: int, left: int) -> None:
        """A worker whose driver is gone, and who has not looked whether the shard is done."""
        plan = RunDirectory(self.store).read_plan()
        assert plan is not None
        from pipeline.config.compose import compose_config

        model = to_dict(compose_config(self.inputs.overrides(self.store)))["model"]
        with plugged(left), contextlib.suppress(PulledPlug):
            Worker(WorkSpec(str(self.store), {}, plan, model, [], False)).attribute(plan.shard(shard))

    @invariant()
    def what_looks_whole_is_whole(self) -> None:
        try:
            opened = pipeline.open_store(self.store)
        except UserError:
            return
        assert opened.complete
        assert values(self.store) == values(self.finished)

    def teardown(self) -> None:
        assert pipeline.run(self.inputs.overrides(self.store)).complete
        assert values(self.store) == values(self.finished)
        assert verify(RunDirectory(self.store)).sound
        self._folder.cleanup()


@pytest.mark.parametrize("n", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_crashes_on_top_of_each_other(inputs: Inputs, finished: Path, n: int) -> None:
    machine = type("Machine", (Crashes,), {"inputs": inputs, "finished": finished})
    case = machine.TestCase
    case.settings = settings(max_examples=n, stateful_step_count=6, deadline=None, database=None)
    case("runTest").runTest()
