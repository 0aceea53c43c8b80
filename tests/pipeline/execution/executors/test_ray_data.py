"""What is asked of Ray and what comes back, with stand-ins for the workers; nodes and actors that die meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.data
import ray.exceptions
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.main import signals_stop
from pipeline.execution.executors import ray_data
from pipeline.execution.executors.ray_cluster import Pool
from pipeline.execution.executors.ray_data import MAX_BLOCKS, MAX_SINGLE, _actors, _context, blocks, report
from pipeline.execution.work import ShardResult
from pipeline.messages.errors import RunError, Stopped

STAND_IN = """
import os, random, signal, sys, time
from types import SimpleNamespace
import numpy as np
import ray
from ray.cluster_utils import Cluster
from pipeline.execution.executors.local import Local
from pipeline.execution.executors import ray_data
from pipeline.execution.executors.ray_cluster import size_pool
from pipeline.execution.work import ShardResult

class StandIn:
    def __init__(self, work):
        self.work = work

    def __call__(self, batch):
        yield from ray_data.report(self.work.do(int(index)) for index in batch["shards"][0])

def results(do, shards, cluster):
    work = SimpleNamespace(plan=SimpleNamespace(device="cpu"), do=do)
    pool = size_pool(cluster, "cpu", 1, len(shards))
    return ray_data.run_shards(work, shards, pool, cluster.wait_for_actors_s, StandIn)
"""


def run_script(body: str, timeout: float = 200) -> str:
    """In a process of its own, as the session's Ray is a single node; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN + body], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@given(st.lists(st.integers(0, 10**7), unique=True, max_size=300).map(sorted))
def test_few_shards_are_single(shards: list[int]) -> None:
    assert list(blocks(shards)) == [[shard] for shard in shards]


@pytest.mark.parametrize("n", [MAX_BLOCKS, MAX_BLOCKS + 1, 12_345, 10**6])
def test_many_shards_are_grouped_and_the_last_ones_single(n: int) -> None:
    made = list(blocks(np.arange(n) * 2))
    assert [shard for block in made for shard in block] == list(range(0, 2 * n, 2))
    assert len(made) <= MAX_BLOCKS
    assert {len(block) for block in made[-MAX_SINGLE:]} == {1}
    grouped = [len(block) for block in made[: len(made) - MAX_SINGLE]]
    assert max(grouped) - min(grouped) <= 1
    assert min(grouped) >= 1
    assert type(made[0][0]) is int


def test_results_are_reported_one_by_one_and_quick_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 1.1, 1.2, 3.0, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    taken = []

    def work() -> Iterator[ShardResult]:
        for index in range(4):
            taken.append(index)
            yield ShardResult(index, 5, "", False)

    reports = report(work())
    assert next(reports) == {name: [value] for name, value in asdict(ShardResult(0, 5, "", False)).items()}
    assert taken == [0], "the first is out before the second begins"
    assert [batch["shard"] for batch in reports] == [[1, 2, 3]]


def test_what_ray_is_asked_for() -> None:
    asked = _actors(Pool(2, 2, {"CPU": 3, "GPU": 0.5, "tpu": 1}), 2)
    assert (asked["num_cpus"], asked["num_gpus"], asked["resources"]) == (3, 0.5, {"tpu": 1})
    assert (asked["compute"].min_size, asked["compute"].max_size) == (2, 2)
    assert (asked["compute"].max_concurrent_calls_per_actor, asked["compute"].enable_true_multi_threading) == (2, True)
    growing = _actors(Pool(1, 5, {"CPU": 1}), 1)
    assert (growing["compute"].max_concurrent_calls_per_actor, growing["compute"].max_tasks_in_flight_per_actor) == (
        1,
        2,
    )
    assert (growing["compute"].min_size, growing["compute"].max_size, growing["num_gpus"]) == (5, 5, 0)
    assert "label_selector" not in asked
    avoiding = _actors(Pool(1, 1, {"CPU": 1}, ("a", "b")), 1)
    assert avoiding["label_selector"] == {"ray.io/node-id": "!in(a,b)"}
    assert _context(7).wait_for_min_actors_s == 7


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run on a Ray that has just died."""

    class Dead:
        def map_batches(self, *args: Any, **options: Any) -> Dead:
            return self

        def iter_batches(self, **options: Any) -> Iterator[Any]:
            raise ray.exceptions.ActorDiedError
            yield

    monkeypatch.setattr(ray.data, "from_items", lambda *args, **options: Dead())
    work: Any = SimpleNamespace(plan=SimpleNamespace(device="cpu"))
    return ray_data.run_shards(work, [0], Pool(1, 1, {"CPU": 1}), 5)


def test_the_end_of_ray_is_a_failure(failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "NOTICE_S", 0)
    with pytest.raises(RunError, match="Ray failed: The actor died"), signals_stop():
        list(failing)


def test_the_end_of_ray_is_a_stop_where_whoever_stops_us_began_with_ray(failing: Any) -> None:
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
    with pytest.raises(Stopped) as caught, signals_stop():
        list(failing)
    assert caught.value.exit_code == 75


@pytest.mark.ray
@pytest.mark.slow
def test_kills_and_a_lost_node_are_survived(tmp_path: Path) -> None:
    """Six shards kill their actor once; then one of two nodes goes away for good in the midst of the work."""
    out = run_script(f"""
def do(index):
    marker = f"{tmp_path}/killed-{{index}}"
    if index < 6 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return ShardResult(index, 1, "", False)

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen = []
for result in results(do, np.arange(40), Local(actors=2)):
    seen.append(result.shard)
    if len(seen) == 20:
        cluster.remove_node(other)
        cluster.add_node(num_cpus=1)
print("seen", sorted(seen) == list(range(40)))
ray.shutdown()
cluster.shutdown()
""")
    assert "seen True" in out.splitlines(), out
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.ray
@pytest.mark.slow
def test_shares_of_gpus_and_custom_resources_are_reserved() -> None:
    out = run_script("""
def do(index):
    time.sleep(0.3)
    share = ray.get_runtime_context().get_assigned_resources()
    return ShardResult(index, os.getpid(), f"{share.get('GPU')} {share.get('tpu')}", False)

ray.init("local", num_cpus=4, num_gpus=1, resources={"tpu": 2}, log_to_driver=False, include_dashboard=False)
config = Local(gpus_per_actor=0.5, resources={"tpu": 1})
found = list(results(do, np.arange(12), config))
print(len({result.n_rows for result in found}), {result.error for result in found})
""")
    assert out.splitlines()[-1] == "2 {'0.5 1.0'}"


@pytest.mark.ray
@pytest.mark.slow
def test_actors_that_do_not_start_are_given_up() -> None:
    out = run_script("""
from pipeline.messages.errors import RunError
ray.init("local", num_cpus=1, log_to_driver=False, include_dashboard=False)
hog = ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote()
time.sleep(2)
started = time.time()
try:
    list(results(None, np.arange(3), Local(actors=1, wait_for_actors_s=3)))
except RunError as error:
    print(error, time.time() - started < 20)
""")
    assert "1 actors with 1 CPU each did not start within 3 s" in out
    assert "the cluster has 1 node with 1 CPU in all, and others may be using it True" in out


@pytest.mark.ray
@pytest.mark.slow
def test_a_growing_pool_begins_with_the_least_actors_and_asks_for_all_at_once() -> None:
    out = run_script("""
from pipeline.messages.errors import RunError
ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)

def do(index):
    time.sleep(0.3)
    return ShardResult(index, os.getpid(), "", False)

print(len({result.n_rows for result in results(do, np.arange(12), Local(min_actors=1, max_actors=5))}))
try:
    list(results(do, np.arange(12), Local(min_actors=3, max_actors=5, wait_for_actors_s=3)))
except RunError as error:
    print(error)
""")
    assert out.splitlines()[-2] == "2"
    assert out.splitlines()[-1].startswith(
        "3 actors with 1 CPU each did not start within 3 s (cluster.wait_for_actors_s)"
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_users_own_code_is_found_by_actors(tmp_path: Path) -> None:
    (tmp_path / "sent_along.py").write_text("ANSWER = 42\n")
    out = run_script(f"""
from pipeline.config.schema import EngineConfig
from pipeline.execution.executors.local import LocalRayExecutor

def do(index):
    from pipeline.execution.executors.ray_cluster import enter_sent
    from pipeline.models import own_modules
    enter_sent()
    with own_modules.asked_for("sent_along.Model"):
        import sent_along
    return ShardResult(index, sent_along.ANSWER, sent_along.__file__, False)

with LocalRayExecutor(Local(actors=1, code={str(tmp_path)!r}), EngineConfig()) as executor:
    executor.connect()
    found = next(results(do, [3], Local()))
    print(found.n_rows, found.error.startswith({str(tmp_path)!r}))
""")
    assert out.splitlines()[-1] == "42 False", "found, and in the copy that was sent"


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_is_avoided_gets_no_actor() -> None:
    """Two nodes with room for one actor each; then the other one of them."""
    out = run_script("""
from pipeline.execution.executors.ray_cluster import nodes

def do(index):
    return ShardResult(index, 1, ray.get_runtime_context().get_node_id(), False)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
work = SimpleNamespace(plan=SimpleNamespace(device="cpu"), do=do)
ids = [node["NodeID"] for node in nodes()]
for avoided in ids:
    pool = size_pool(Local(actors=2), "cpu", 1, 6, [avoided])
    used = {result.error for result in ray_data.run_shards(work, list(range(6)), pool, 60, StandIn)}
    print(pool.most, used == set(ids) - {avoided})
ray.shutdown()
cluster.shutdown()
""")
    assert out.splitlines()[-2:] == ["1 True", "1 True"]
