"""Which addresses are refused, and what nodes lack: without a Ray, or with a stand-in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipeline.config.schema import EngineConfig
from pipeline.execution.executors import address as module
from pipeline.execution.executors.address import Address, AddressExecutor, require_answer, require_welcome
from pipeline.execution.executors.ray_cluster import Pool
from pipeline.messages.errors import UserError


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
def test_a_running_ray_answers_and_its_nodes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    require_answer(ray.get_runtime_context().gcs_address)
    each = Pool(1, 1, {"CPU": 1})
    monkeypatch.setattr(module, "node_problems", lambda work: [])
    module.check_nodes(None, each)
    monkeypatch.setattr(module, "node_problems", lambda work: ["x.fa is not there", "it is raining"])
    with pytest.raises(
        UserError, match=r"^1 of 1 nodes cannot .*: node \S+ \(\S+\): x.fa is not there; it is raining$"
    ):
        module.check_nodes(None, each)
    monkeypatch.setattr(module, "node_problems", lambda work: 1 / 0)
    with pytest.raises(UserError, match=r"node \S+ \(\S+\): ZeroDivisionError: division by zero"):
        module.check_nodes(None, each)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_instance")
def test_the_device_of_a_cluster_is_asked_for_in_time() -> None:
    config = Address(address="auto", wait_for_actors_s=60)
    assert module.remote_machine("cpu", config).device == "cpu"
    with pytest.raises(UserError, match=r"engine\.device=cuda, but no node of the cluster has a GPU; it has 1 node"):
        module.remote_machine("cuda", config)
    absent = replace(config, resources={"fpga": 1.0}, wait_for_actors_s=1)
    with pytest.raises(UserError, match=r"no node of the cluster began a task with 1 CPU, 1 fpga within 1 s"):
        module.remote_machine("cpu", absent)
