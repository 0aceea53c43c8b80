"""Which addresses are refused, and what nodes lack: without a Ray, or with a stand-in."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import EngineConfig
from pipeline.execution.device import Machine
from pipeline.execution.executors import address as module
from pipeline.execution.executors.address import Address, AddressExecutor, require_answer, require_welcome
from pipeline.execution.executors.ray_cluster import Pool, nodes
from pipeline.execution.work import ShardResult
from pipeline.messages.errors import RunError, UserError


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Listens; answers so, or keeps quiet."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                if answer is not None:
                    connection.sendall(answer)
                else:
                    connection.recv(100)  # until the other side hangs up

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def test_a_cluster_that_is_not_there_is_looked_at_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with AddressExecutor(Address(address="127.0.0.1:1"), EngineConfig(device="cuda")) as executor:
        found = executor.machine_to_try()
        assert (found.elsewhere, found.kind) == (None, Machine.here("auto").kind)
        assert "no Ray cluster answers there" in caplog.text
        assert "the device of this machine stands for those of the cluster" in caplog.text
        there = Machine("cuda", "GPU of there", elsewhere=lambda work: work())
        monkeypatch.setattr(executor, "connect", lambda: None)
        monkeypatch.setattr(executor, "machine", lambda: there)
        assert executor.machine_to_try() == there
        monkeypatch.setattr(executor, "machine", lambda: Machine("cpu", "CPU of there"))
        assert executor.machine_to_try() == Machine.here("cpu"), "which tries it"


def test_what_listens_and_says_nothing_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.3)
    started = time.monotonic()
    with (
        server(None) as address,
        pytest.raises(UserError, match=r"did not answer within 0\.3 s; is it the port of a Ray"),
    ):
        require_answer(address)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"+OK\r\n"])
def test_what_is_no_ray_is_refused(answer: bytes) -> None:
    with server(answer) as address, pytest.raises(UserError, match="what answers there is no Ray cluster"):
        require_answer(address)


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"  # bound, so nobody else listens there either
        with pytest.raises(UserError, match=rf"cluster\.address={address}: no Ray cluster answers there"):
            require_answer(address)


def test_auto_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with server(b"+OK\r\n") as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            pytest.raises(UserError, match=rf"cluster\.address={address}: what answers there is no Ray"),
            AddressExecutor(Address(address="auto"), EngineConfig()) as executor,
        ):
            executor.connect()


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"cluster\.address=local; expected host:port of the head of a Ray cluster, or auto"
    ):
        require_answer("local")


def test_auto_where_no_ray_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: frozenset())
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    with pytest.raises(
        UserError, match=r"cluster\.address=auto: no Ray cluster is found on this machine; give its head"
    ):
        require_welcome("auto")


def test_a_cluster_that_will_not_have_this_process_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require_answer", lambda address: None)
    monkeypatch.setattr(module.ray_private, "refusal", lambda address, is_found: f"rain in {address} {is_found}")
    with pytest.raises(UserError, match=r"^cluster\.address=h:1: the Ray cluster at h:1 cannot .*: rain in h:1 False$"):
        require_welcome("h:1")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_running_ray_answers_and_its_nodes_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    require_answer(ray.get_runtime_context().gcs_address)

    def found() -> list[str]:
        return [problem for _, problem in module.check_nodes(None, nodes())]

    monkeypatch.setattr(module, "node_problems", lambda work: [])
    assert found() == []
    monkeypatch.setattr(module, "node_problems", lambda work: ["x.fa is not there", "it is raining"])
    assert re.fullmatch(r"node \S+ \(\S+\): x.fa is not there; it is raining", found()[0])
    monkeypatch.setattr(module, "node_problems", lambda work: 1 / 0)
    assert re.fullmatch(r"node \S+ \(\S+\): ZeroDivisionError: division by zero", found()[0])
    assert list(module.check_nodes(None, [])) == []

    def dies_once(work: Any) -> list[str]:
        try:
            (tmp_path / "died").mkdir()
        except FileExistsError:
            return []
        os._exit(1)

    monkeypatch.setattr(module, "node_problems", dies_once)
    assert found() == []
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_what_a_node_lacks_is_told_before_the_others_have_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def problems(work: Any) -> list[str]:
        try:
            (tmp_path / "slow").mkdir()
        except FileExistsError:
            return ["quick"]
        while not (tmp_path / "told").exists():
            time.sleep(0.05)
        return ["slow"]

    monkeypatch.setattr(module, "node_problems", problems)
    said = module.check_nodes(None, [*nodes(), *nodes()])
    assert next(said)[1].endswith(": quick")
    (tmp_path / "told").touch()
    assert next(said)[1].endswith(": slow")
    assert next(said, None) is None
    (tmp_path / "told").unlink()
    (tmp_path / "slow").rmdir()
    monkeypatch.setattr(module, "NODE_TIMEOUT_S", 5.0)
    last = [problem.partition(": ")[2] for _, problem in module.check_nodes(None, [*nodes(), *nodes()])]
    assert last == ["quick", "no answer within 5.0 s"]
    (tmp_path / "told").touch()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_the_device_of_a_cluster_is_asked_for_in_time() -> None:
    config = Address(address="auto", wait_for_actors_s=60)
    (only,) = nodes()
    found, node = module.remote_machine("cpu", config)
    assert (found.device, node) == ("cpu", only["NodeID"])
    with pytest.raises(UserError, match=r"engine\.device=cuda, but no node of the cluster has a GPU; it has 1 node"):
        module.remote_machine("cuda", config)
    absent = replace(config, resources={"fpga": 1.0}, wait_for_actors_s=1)
    with pytest.raises(UserError, match=r"no node of the cluster began a task with 1 CPU, 1 fpga within 1 s"):
        module.remote_machine("cpu", absent)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
@pytest.mark.parametrize("n_deaths", [1, 4])
def test_what_a_node_dies_of_is_tried_again_a_few_times(tmp_path: Path, n_deaths: int) -> None:
    def dies() -> str:
        for n in range(n_deaths):
            with contextlib.suppress(FileExistsError):
                (tmp_path / str(n)).mkdir()
                os._exit(1)
        return "alive"

    gone = "0" * 56  # no such node: another serves
    if n_deaths < module.MAX_CALLS:
        assert module.call_on_node(dies, {"CPU": 1.0}, 60, gone) == "alive"
    else:
        with pytest.raises(RunError, match="the cluster cannot run a task: "):
            module.call_on_node(dies, {"CPU": 1.0}, 60, gone)
    assert len(list(tmp_path.iterdir())) == n_deaths


class Cluster:
    """Nodes a, b, c of one CPU each, of which some cannot do the work; each shard falls to the next one of the pool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids = ["a", "b", "c"]
        self.pools: list[tuple[str, ...]] = []
        self.checked: dict[str, str] = {}
        self.asked: list[str] = []
        self.fails: Callable[[str, int], bool] = lambda node, shard: False
        monkeypatch.setattr(module, "nodes", self.nodes)
        monkeypatch.setattr("pipeline.execution.executors.ray_cluster.nodes", self.nodes)
        monkeypatch.setattr(module, "check_nodes", self.check)
        monkeypatch.setattr(module, "run_shards", self.run_shards)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Resources": {"CPU": 1.0}} for name in self.ids]

    def check(self, work: Any, able: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        self.asked += [node["NodeID"] for node in able]
        return ((name, self.checked[name]) for node in able if (name := node["NodeID"]) in self.checked)

    def run_shards(
        self, work: Any, shards: list[int], pool: Pool, wait_s: int, meter: Any
    ) -> Generator[ShardResult, None, None]:
        able = [name for name in self.ids if name not in pool.avoided][: pool.most]
        self.pools.append(tuple(able))
        for n, shard in enumerate(shards):
            node = able[n % len(able)]
            is_bad = self.fails(node, shard)
            yield ShardResult(shard, 2, f"{shard} on {node}: no" if is_bad else "", is_bad, node if is_bad else "")

    def run(self, n_shards: int = 9, **settings: Any) -> tuple[list[int], list[str]]:
        """The shards that are done, and what ends the run, if anything does."""
        found: list[ShardResult] = []
        spec: Any = SimpleNamespace(plan=SimpleNamespace(device="cpu", threads=1))
        with contextlib.closing(
            AddressExecutor(Address(address="auto", **settings), EngineConfig()).work(spec, np.arange(n_shards))
        ) as results:
            for result in results:
                found.append(result)
                if result.fatal:
                    break
        return sorted(each.shard for each in found if not each.fatal), [each.error for each in found if each.fatal]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_a_node_that_cannot_do_the_work_is_left_out(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """It is the second of three, and found by its first shard; the shards are all done, each once."""
    caplog.set_level(logging.INFO, "dlshap")
    cluster.fails = lambda node, shard: node == "b"
    assert cluster.run() == (list(range(9)), [])
    assert cluster.pools == [("a", "b", "c"), ("a", "c")]
    assert "the node is left out from now on, and others go on: 1 on b: no" in caplog.text


def test_a_node_that_is_known_to_be_odd_gets_no_actor(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.checked = {"c": "node c: m.pt is not there"}
    assert cluster.run(actors=3) == (list(range(9)), [])
    assert cluster.pools == [("a", "b")], "fewer than asked for"
    assert "left out, as it cannot work on this run: node c: m.pt is not there" in caplog.text


def test_a_late_node_is_checked_when_actors_are_placed_again(cluster: Cluster) -> None:
    def fails(node: str, shard: int) -> bool:
        if "d" not in cluster.ids:
            cluster.ids.append("d")
            cluster.checked["d"] = "node d: no"
        return node == "a" and shard == 3

    cluster.fails = fails
    assert cluster.run() == (list(range(9)), [])
    assert cluster.pools == [("a", "b", "c"), ("b", "c")]
    assert cluster.asked == list("abcd"), "each once"


def test_where_no_node_can_work_the_run_ends(cluster: Cluster) -> None:
    cluster.checked = {name: f"node {name}: no" for name in "abc"}
    with pytest.raises(UserError, match=r"^no node can work on this run: node a: no \| node b: no \| node c: no$"):
        cluster.run()
    cluster.checked, cluster.ids, cluster.fails = {}, ["a"], lambda node, shard: shard == 2
    assert cluster.run() == ([0, 1], ["2 on a: no"]), "there is no other"


def test_where_node_after_node_fails_the_run_ends_soon(cluster: Cluster) -> None:
    """A full disk: not one of forty nodes after the other."""
    cluster.ids, cluster.fails = list("abcdefgh"), lambda node, shard: True
    assert cluster.run() == ([], ["0 on c: no"])
    assert len(cluster.pools) == 3
