"""What a command counts."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import pipeline
from pipeline.execution.executors.ray_cluster import Pool
from pipeline.execution.executors.ray_pool import limited_by
from pipeline.execution.meter import Meter, PoolState, changes
from pipeline.store.metrics import read_metrics
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import N_ROWS, Inputs


def test_a_command_writes_its_counts(inputs: Inputs, tmp_path: Path) -> None:
    pipeline.run(inputs.overrides(tmp_path / "a.zarr"))
    found = read_metrics(RunDirectory(tmp_path / "a.zarr").run)
    assert found is not None
    assert (found.rows, found.shards, found.failures, found.actors_wanted) == (N_ROWS, 4, 0, None)
    assert list(found.rows_by_actor.values()) == [N_ROWS]
    assert set(found.seconds) == {"prepare", "attribute", "complete"}
    assert set(found.actor_seconds) == {"read", "wait", "device", "write"}
    assert sum(found.actor_seconds.values()) <= found.seconds["attribute"]
    assert 0 < (found.device_busy_share or 0) <= 1
    result = json.loads((tmp_path / "a.zarr.run" / "result.json").read_text())
    assert found.command == result["command"]["id"]


def test_a_look_at_the_pool_ends_before_its_ray_is_let_go() -> None:
    begun, ended, meter = threading.Event(), list[bool](), Meter()

    def look() -> PoolState:
        begun.set()
        ended.append(not threading.Event().wait(0.1))
        return PoolState(1, 1)

    with meter.watching(look, lambda metrics: None):
        looking = threading.Thread(target=meter._see)
        looking.start()
        assert begun.wait(5)
    assert ended == [True]
    looking.join()


def test_nodes_that_come_and_go_are_told() -> None:
    assert list(changes({"1": "a (10.0.0.1)"}, {"2": "b (10.0.0.2)"})) == [
        "node a (10.0.0.1) is lost, 1 node up; others compute the shards that it had begun",
        "node b (10.0.0.2) has joined, 1 node up",
    ]


@pytest.mark.parametrize(
    ("running", "free", "expected"),
    [
        (2, [], ""),
        (1, [{"CPU": 4, "GPU": 1}], "actors that are starting"),
        (1, [{"CPU": 4}, {"CPU": 3, "GPU": 0.5}], "GPU (0.5 free)"),
        (1, [{"CPU": 4}, {"GPU": 1}], "nodes: none has 2 CPU, 1 GPU free at once"),
        (0, [], "CPU (0 free), GPU (0 free)"),
    ],
)
def test_what_limits_a_pool(running: int, free: list[dict[str, float]], expected: str) -> None:
    assert limited_by(Pool(2, 2, {"CPU": 2, "GPU": 1}), running, free) == expected
