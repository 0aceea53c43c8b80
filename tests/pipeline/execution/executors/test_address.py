"""What a cluster has room for, which addresses are refused, and what nodes lack: without a Ray, or with a stand-in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cluster
from pipeline.cluster import Pool, fits, gpus_per_actor, inventory, pool, require_answer
from pipeline.config import ClusterConfig
from pipeline.errors import UserError

NODES = [{"CPU": 6.0, "GPU": 1.0, "node:1.2.3.4": 1.0, "memory": 9e9}, {"CPU": 2.0, "GPU": 1.0, "tpu": 3.0}]


@pytest.mark.parametrize(
    ("asked", "device", "threads", "n_shards", "size"),
    [
        ({}, "cpu", 1, 100, 8),
        ({}, "cpu", 3, 100, 2),
        ({}, "cpu", 1, 3, 3),
        ({}, "cuda", 2, 100, 2),
        ({}, "cuda", 4, 100, 1),
        ({"gpus_per_actor": 0.5}, "cuda", 1, 100, 4),
        ({"gpus_per_actor": 0.5}, "cpu", 1, 100, 4),
        ({"gpus_per_actor": 0.1}, "cuda", 1, 100, 8),
        ({"resources": {"tpu": 1.5}}, "cpu", 1, 100, 2),
        ({"actors": 5}, "cpu", 1, 100, 5),
        ({"actors": 5}, "cpu", 1, 2, 2),
        ({"actors": 500}, "cpu", 1, 2, 2),
    ],
)
def test_the_pool_fills_the_nodes_and_no_more(
    asked: dict[str, Any], device: str, threads: int, n_shards: int, size: int
) -> None:
    made = pool(ClusterConfig(**asked), device, threads, n_shards, NODES)
    assert (made.least, made.most) == (size, size)


@pytest.mark.parametrize(
    ("asked", "device", "threads", "parts"),
    [
        ({"actors": 9}, "cpu", 1, ["cluster.actors=9 with 1 CPU each", "has room for 8"]),
        ({"actors": 3}, "cuda", 1, ["cluster.actors=3 with 1 CPU, 1 GPU each", "has room for 2"]),
        ({}, "cpu", 9, ["9 CPU each", "has room for 0", "2 nodes with 8 CPU, 2 GPU, 3 tpu in all"]),
        ({"resources": {"fpga": 1}}, "cpu", 1, ["1 CPU, 1 fpga each", "has room for 0", "2 nodes with 8 CPU"]),
        ({"gpus_per_actor": 2}, "cuda", 1, ["2 GPU each", "has room for 0"]),
    ],
)
def test_what_the_cluster_has_no_room_for_is_refused(
    asked: dict[str, Any], device: str, threads: int, parts: list[str]
) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*lower what is asked for[^\n]*$") as caught:
        pool(ClusterConfig(**asked), device, threads, 100, NODES)
    for part in parts:
        assert part in str(caught.value)


def test_a_cluster_that_grows_may_be_empty_now() -> None:
    assert pool(ClusterConfig(max_actors=4), "cuda", 1, 100, []) == Pool(1, 4, {"CPU": 1, "GPU": 1})
    assert pool(ClusterConfig(min_actors=2, max_actors=4), "cpu", 1, 3, NODES) == Pool(2, 3, {"CPU": 1})
    assert pool(ClusterConfig(min_actors=2, max_actors=4), "cpu", 1, 1, NODES) == Pool(1, 1, {"CPU": 1})
    assert inventory([]) == "0 nodes with nothing in all"


@given(st.integers(1, 50), st.integers(0, 64))
def test_shares_add_up_to_whole_gpus(parts: int, gpus: int) -> None:
    share = gpus_per_actor(ClusterConfig(gpus_per_actor=int(10_000 / parts) / 10_000), "cpu")
    assert fits({"GPU": gpus}, {"GPU": share}) >= gpus * parts


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


def test_what_listens_and_says_nothing_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT_S", 0.3)
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
            cluster.connected(ClusterConfig(name="address", address="auto"), 1),
        ):
            pass


def test_addresses_that_ray_looks_up_are_left_to_it() -> None:
    assert require_answer("auto") is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_a_running_ray_answers_and_its_nodes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    require_answer(ray.get_runtime_context().gcs_address)
    each = Pool(1, 1, {"CPU": 1})
    monkeypatch.setattr(cluster, "check_node", lambda work: [])
    cluster.check_nodes(None, each)
    monkeypatch.setattr(cluster, "check_node", lambda work: ["x.fa is not there", "it is raining"])
    with pytest.raises(
        UserError, match=r"^1 of 1 nodes cannot .*: node \S+ \(\S+\): x.fa is not there; it is raining$"
    ):
        cluster.check_nodes(None, each)
    monkeypatch.setattr(cluster, "check_node", lambda work: 1 / 0)
    with pytest.raises(UserError, match=r"node \S+ \(\S+\): ZeroDivisionError: division by zero"):
        cluster.check_nodes(None, each)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_the_device_of_a_cluster_is_asked_for_in_time() -> None:
    config = ClusterConfig(name="address", address="auto", wait_for_actors_s=60)
    assert cluster.remote_device("cpu", config)[0] == "cpu"
    with pytest.raises(UserError, match=r"engine\.device=cuda, but no node of the cluster has a GPU; it has 1 node"):
        cluster.remote_device("cuda", config)
    absent = replace(config, resources={"fpga": 1.0}, wait_for_actors_s=1)
    with pytest.raises(UserError, match=r"no node of the cluster began a task with 1 CPU, 1 fpga within 1 s"):
        cluster.remote_device("cpu", absent)


def test_code_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cluster\.code=.*nothing is not a folder"):
        cluster._runtime_env(ClusterConfig(code=str(tmp_path / "nothing")))
    assert cluster._runtime_env(ClusterConfig(code=str(tmp_path))) == {"working_dir": str(tmp_path)}
