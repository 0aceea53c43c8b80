"""What is asked of Ray and what comes back, with stand-ins for the workers; nodes and actors that die meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.actor import Outcome
from pipeline.blocks import MAX_BLOCKS, MAX_SINGLE, blocks
from pipeline.cluster import Pool
from pipeline.config import ClusterConfig
from pipeline.job import _actors, _context, report

STAND_IN = """
import os, random, signal, sys, time
from types import SimpleNamespace
import numpy as np
import ray
from ray.cluster_utils import Cluster
from pipeline import job
from pipeline.actor import Outcome
from pipeline.config import ClusterConfig

class StandIn:
    def __init__(self, work):
        self.work = work

    def __call__(self, batch):
        yield from job.report(self.work.do(int(index)) for index in batch["shards"][0])

def work(do):
    return SimpleNamespace(plan=SimpleNamespace(device="cpu", threads=1), do=do)
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


def test_outcomes_are_reported_one_by_one_and_quick_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 1.1, 1.2, 3.0, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    taken = []

    def work() -> Iterator[Outcome]:
        for index in range(4):
            taken.append(index)
            yield Outcome(index, 5, "", False)

    reports = report(work())
    assert next(reports) == {"shard": [0], "n_rows": [5], "error": [""], "fatal": [False]}
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
    assert (growing["compute"].min_size, growing["compute"].max_size, growing["num_gpus"]) == (1, 5, 0)
    assert _context(ClusterConfig(wait_for_actors_s=7)).wait_for_min_actors_s == 7


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
    return Outcome(index, 1, "", False)

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen = []
for outcome in job.run_shards(work(do), np.arange(40), ClusterConfig(actors=2), StandIn):
    seen.append(outcome.shard)
    if len(seen) == 20:
        cluster.remove_node(other)
        cluster.add_node(num_cpus=1)
print("seen", sorted(seen) == list(range(40)))
ray.shutdown()
cluster.shutdown()
""")
    assert out.splitlines()[-1] == "seen True"
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.ray
@pytest.mark.slow
def test_shares_of_gpus_and_custom_resources_are_reserved() -> None:
    out = run_script("""
def do(index):
    time.sleep(0.3)
    share = ray.get_runtime_context().get_assigned_resources()
    return Outcome(index, os.getpid(), f"{share.get('GPU')} {share.get('tpu')}", False)

ray.init(num_cpus=4, num_gpus=1, resources={"tpu": 2}, log_to_driver=False, include_dashboard=False)
config = ClusterConfig(gpus_per_actor=0.5, resources={"tpu": 1})
found = list(job.run_shards(work(do), np.arange(12), config, StandIn))
print(len({outcome.n_rows for outcome in found}), {outcome.error for outcome in found})
""")
    assert out.splitlines()[-1] == "2 {'0.5 1.0'}"


@pytest.mark.ray
@pytest.mark.slow
def test_actors_that_do_not_start_are_given_up() -> None:
    out = run_script("""
from pipeline.errors import RunError
ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
hog = ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote()
time.sleep(2)
started = time.time()
try:
    list(job.run_shards(work(None), np.arange(3), ClusterConfig(actors=1, wait_for_actors_s=3), StandIn))
except RunError as error:
    print(error, time.time() - started < 20)
""")
    assert "1 actors with 1 CPU each did not start within 3 s" in out
    assert "the cluster has 1 node with 1 CPU in all, and others may be using it True" in out


@pytest.mark.ray
@pytest.mark.slow
def test_the_users_own_code_is_found_by_actors(tmp_path: Path) -> None:
    (tmp_path / "sent_along.py").write_text("ANSWER = 42\n")
    out = run_script(f"""
from pipeline.cluster import connected

def do(index):
    import sent_along
    return Outcome(index, sent_along.ANSWER, sent_along.__file__, False)

with connected(ClusterConfig(actors=1, code={str(tmp_path)!r}), 1):
    found = next(job.run_shards(work(do), [3], ClusterConfig(), StandIn))
    print(found.n_rows, found.error.startswith({str(tmp_path)!r}))
""")
    assert out.splitlines()[-1] == "42 False", "found, and in the copy that was sent"
