"""The Ray cluster: reaching or starting it, what it has room for, and whether its nodes can do the work."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actor import Work, check_node
from pipeline.config import ClusterConfig
from pipeline.errors import RunError, UserError
from pipeline.hardware import device_kind, resolve_device
from pipeline.progress import note

QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}  # it writes to stderr what Ray Data does on purpose
STARTED_WITH = {
    "RAY_USAGE_STATS_ENABLED": "0",
    **QUIET,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it, a warning
    "RAY_process_group_cleanup_enabled": "true",  # workers in groups of their own: a terminal's Ctrl-C is not for them
}
ANSWER_TIMEOUT_S = 10
NODE_TIMEOUT_S = 180  # of the check of a node, which imports torch there and reads the checkpoint
OBJECT_STORE_BYTES = 200 * 2**20  # descriptors and small records are all that goes through it
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and settings, none
HTTP2_SETTINGS = 4  # the kind of frame that a server must answer with


@dataclass(frozen=True)
class Pool:
    """How many actors there are, at least and at most, and what Ray reserves for each."""

    least: int
    most: int
    each: dict[str, float]


@contextlib.contextmanager
def connected(cluster: ClusterConfig, threads: int) -> Iterator[None]:
    """A Ray that is up: the one that already is, the cluster at cluster.address, or one started here and stopped again.

    Raises:
        UserError: no cluster answers at the address, or cluster.code is not a folder.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"runtime_env": _runtime_env(cluster)}
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of Ray Data's statistics, whose actor may be killed too
    if cluster.address is not None:
        require_answer(os.environ.get("RAY_ADDRESS", "auto") if cluster.address == "auto" else cluster.address)
        note(f"connecting to the Ray cluster at {cluster.address}")
        _set_unless_given(QUIET)
        options |= {"address": cluster.address}
    else:
        note("starting Ray")
        options |= _local_options(cluster, threads)
    try:
        with _own_signal_handlers(), _silent_stderr():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:500]
        if cluster.address is None:
            raise RunError(f"Ray cannot be started on this machine: {reason}") from error
        raise UserError(f"cluster.address={cluster.address}: no Ray cluster can be reached: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _set_unless_given(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _local_options(cluster: ClusterConfig, threads: int) -> dict[str, Any]:
    _set_unless_given(STARTED_WITH)
    wanted = cluster.max_actors or (1 if cluster.actors == "auto" else cluster.actors)
    return {
        "address": "local",
        "num_cpus": max(wanted * threads, len(os.sched_getaffinity(0))),
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }


def _runtime_env(cluster: ClusterConfig) -> dict[str, Any] | None:
    """What Ray sends to the nodes: the folder becomes the actors' working directory, searched for modules."""
    if cluster.code is None:
        return None
    folder = Path(cluster.code).absolute()
    if not folder.is_dir():
        raise UserError(f"cluster.code={cluster.code} is not a folder; give the one that holds your modules")
    return {"working_dir": str(folder)}


def require_answer(address: str) -> None:
    """Refuse an address where no Ray can be, within ANSWER_TIMEOUT_S: Ray itself goes on trying for minutes.

    Ray speaks gRPC, which is HTTP/2, whose servers must answer a greeting with a frame of settings.

    Raises:
        UserError: nothing listens there, or what listens says nothing, or something else.
    """
    match = re.fullmatch(r"\[?(?P<host>[^/\]]+)\]?:(?P<port>\d+)", address)
    if match is None:
        return  # "auto" and the like, which Ray looks up by itself
    advice = "start one with `ray start --head`, or use cluster=local"
    try:
        with socket.create_connection((match["host"], int(match["port"])), ANSWER_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return  # it expects a handshake that only Ray knows how to make
            connection.sendall(HTTP2_HELLO)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except TimeoutError as error:
        raise UserError(
            f"cluster.address={address}: something listens there and did not answer within {ANSWER_TIMEOUT_S} s; is it "
            f"the port of a Ray head, and is that head well? Otherwise {advice}"
        ) from error
    except OSError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error.strerror or error}); {advice}"
        ) from error
    if len(answer) < 9 or answer[3] != HTTP2_SETTINGS:
        raise UserError(f"cluster.address={address}: what answers there is no Ray cluster; {advice}")


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray puts its own in place of ours."""
    ours = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ours.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native part announces the log level that it was given. Its failures are exceptions, and are seen."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def remote_device(device: str, cluster: ClusterConfig) -> tuple[str, str]:
    """Device and kind of device (see hardware.py) of a cluster that is connected, as one of its nodes finds them.

    Raises:
        UserError: the cluster has no such device, or its nodes do not begin a task within cluster.wait_for_actors_s.
    """
    has_gpu = any(node["Resources"].get("GPU", 0) > 0 for node in nodes())
    uses_gpu = device.startswith("cuda") or (device == "auto" and has_gpu)
    if device.startswith("cuda") and not has_gpu and cluster.max_actors is None:
        raise UserError(f"engine.device={device}, but no node of the cluster has a GPU; {_inventory()}")

    def look() -> tuple[str, str]:
        found = resolve_device(device)
        return found, device_kind(found)

    gpus = gpus_per_actor(cluster, "cuda" if uses_gpu else "cpu")
    task = ray.remote(num_cpus=1, num_gpus=gpus, resources=dict(cluster.resources), max_retries=3)(look).remote()
    try:
        found: tuple[str, str] = ray.get(task, timeout=cluster.wait_for_actors_s)
    except ray.exceptions.RayTaskError as error:
        raise UserError(str(error.cause)) from error
    except ray.exceptions.GetTimeoutError as error:
        wanted = describe({"CPU": 1, "GPU": gpus, **cluster.resources})
        raise UserError(
            f"no node of the cluster began a task with {wanted} within {cluster.wait_for_actors_s} s "
            f"(cluster.wait_for_actors_s); {_inventory()}"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(f"the cluster cannot run a task: {' '.join(str(error).split())[:500]}") from error
    return found


def gpus_per_actor(cluster: ClusterConfig, device: str) -> float:
    """What Ray reserves of GPUs for an actor that computes on a device."""
    if cluster.gpus_per_actor == "auto":
        return 1 if device.startswith("cuda") else 0
    return float(cluster.gpus_per_actor)


def size_pool(cluster: ClusterConfig, device: str, threads: int, n_shards: int) -> Pool:
    """The pool for a connected cluster; see `pool`."""
    return pool(cluster, device, threads, n_shards, [node["Resources"] for node in nodes()])


def pool(
    cluster: ClusterConfig, device: str, threads: int, n_shards: int, resources: Sequence[Mapping[str, float]]
) -> Pool:
    """As many actors as are asked for, or as there is room for; no more than there are shards.

    Args:
        cluster: what is asked for.
        device: that the actors compute on.
        threads: of each, which are its CPUs.
        n_shards: shards to work on.
        resources: of each node.

    Raises:
        UserError: the cluster has no room for them, and is not asked to grow.
    """
    each = {"CPU": threads, "GPU": gpus_per_actor(cluster, device), **cluster.resources}
    each = {name: amount for name, amount in each.items() if amount}
    if cluster.max_actors is not None:
        most = min(cluster.max_actors, n_shards)
        return Pool(min(cluster.min_actors or 1, most), most, each)
    room = sum(fits(node, each) for node in resources)
    wanted = room if cluster.actors == "auto" else int(cluster.actors)
    if room < max(min(wanted, n_shards), 1):
        asked = f"cluster.actors={cluster.actors} with {describe(each)} each"
        raise UserError(
            f"{asked} (engine.device={device}, engine.threads={threads}), but the cluster has room for {room}: it has "
            f"{inventory(resources)}; lower what is asked for, or give cluster.max_actors on a cluster that grows"
        )
    return Pool(min(wanted, n_shards), min(wanted, n_shards), each)


def fits(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many actors a node has room for. Ray counts in ten thousandths."""
    return min(round(node.get(name, 0) * 10_000) // round(amount * 10_000) for name, amount in each.items())


def describe(amounts: Mapping[str, float]) -> str:
    """1 CPU, 0.5 GPU"""
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items() if amount)


def inventory(resources: Sequence[Mapping[str, float]]) -> str:
    """What nodes have, for errors: 2 nodes with 8 CPU, 1 GPU."""
    total: dict[str, float] = {}
    for node in resources:
        for name, amount in node.items():
            if not name.startswith(("node:", "accelerator_type:")) and "memory" not in name:
                total[name] = total.get(name, 0) + amount
    return f"{len(resources)} node{'' if len(resources) == 1 else 's'} with {describe(total) or 'nothing'} in all"


def _inventory() -> str:
    return f"it has {inventory([node['Resources'] for node in nodes()])}"


def check_nodes(work: Work, pool: Pool) -> None:
    """Have every node that may hold an actor say whether it can work on this run.

    Raises:
        UserError: what each node that cannot lacks.
    """
    able = [node for node in nodes() if fits(node["Resources"], pool.each)]
    check = ray.remote(num_cpus=0, max_retries=0)(check_node)
    tasks = {}
    for node in able:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[check.options(scheduling_strategy=here).remote(work)] = node
    ray.wait(list(tasks), num_returns=len(tasks), timeout=NODE_TIMEOUT_S)
    problems = [
        f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {'; '.join(found)}"
        for task, node in tasks.items()
        if (found := _found(task))
    ]
    if problems:
        raise UserError(f"{len(problems)} of {len(able)} nodes cannot work on this run: {' | '.join(problems)}")


def _found(task: Any) -> list[str]:
    try:
        return list(ray.get(task, timeout=0.1))
    except ray.exceptions.GetTimeoutError:
        return [f"no answer within {NODE_TIMEOUT_S} s"]
    except ray.exceptions.RayTaskError as error:
        return [f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"]
    except ray.exceptions.RayError as error:
        return [" ".join(str(error).split())[:500]]
