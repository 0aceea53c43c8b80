"""A Ray that is up: started or reached, how many actors it has room for, and what its nodes have."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from pipeline.execution.executors import ray_private
from pipeline.execution.executors.ray_settings import OF_KIND, RayConfig
from pipeline.execution.host import environment
from pipeline.messages.errors import UserError
from pipeline.models import own_modules

SENT = "dlshap_cluster_code"


@dataclass(frozen=True)
class Pool:
    """How many actors there are, at least and at most, what Ray reserves for each, and nodes that get none."""

    least: int
    most: int
    each: dict[str, float]
    avoided: tuple[str, ...] = ()


@contextlib.contextmanager
def connected(
    options: Mapping[str, Any], variables: Mapping[str, str], code: str | None, problem: Exception
) -> Iterator[None]:
    """Within this context Ray is up, in this process.

    Args:
        options: of ray.init.
        variables: of the environment.
        code: the folder of the user's modules, which is sent to every node; see `enter_sent`.
        problem: what to say where Ray cannot be started or reached, with the reason.

    Raises:
        UserError: `code` is not a folder.
    """
    runtime: dict[str, Any] = {"job_config": ray_private.without_working_folder()}
    with (
        environment(variables),
        ray_private.process_restored(),
        ray_private.words_logged(),
        sent(code) as runtime["runtime_env"],
    ):
        try:
            try:
                with ray_private.quiet_start():
                    ray.init(logging_level=logging.ERROR, log_to_driver=False, **runtime, **options)
            except Exception as error:  # Ray raises that itself where its processes do not come up in time
                raise type(problem)(f"{problem}: {' '.join(str(error).split())[:500]}") from error
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def sent(code: str | None) -> Iterator[dict[str, Any] | None]:
    """What Ray sends to the nodes: within another folder, since workers search that before all others."""
    if code is None:
        yield None
        return
    folder = Path(code).absolute()
    if not folder.is_dir():
        raise UserError(f"cluster.code={code} is not a folder; give the one that holds your modules")
    with tempfile.TemporaryDirectory() as outer:
        (Path(outer) / SENT).symlink_to(folder)
        yield {"working_dir": outer}


def enter_sent() -> None:
    """Have a worker stand in the folder that was sent to its node, if any, and find the user's modules there."""
    if os.path.isdir(SENT):
        os.chdir(SENT)
        own_modules.search_sent(os.getcwd())


def nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def own_node_address() -> str:
    """host:port at which Ray on this machine listens."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in nodes() if node["NodeID"] == here)
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def gpus_per_actor(cluster: RayConfig, device: str) -> float:
    """What Ray reserves of GPUs for an actor that computes on a device."""
    if cluster.gpus_per_actor == "auto":
        return 1 if device.startswith("cuda") else 0
    return float(cluster.gpus_per_actor)


def size_pool(cluster: RayConfig, device: str, threads: int, n_shards: int, avoided: Collection[str] = ()) -> Pool:
    """The pool for a connected cluster without the nodes that are avoided, which may leave fewer actors; see `pool`."""
    resources = [node["Resources"] for node in nodes() if node["NodeID"] not in avoided]
    if avoided and cluster.actors != "auto":
        room = sum(fits(node, actor_needs(cluster, device, threads)) for node in resources)
        cluster = replace(cluster, actors=min(int(cluster.actors), room) or cluster.actors)
    return replace(pool(cluster, device, threads, n_shards, resources), avoided=tuple(sorted(avoided)))


def actor_needs(cluster: RayConfig, device: str, threads: int) -> dict[str, float]:
    """What Ray reserves for each actor."""
    each = {"CPU": threads, "GPU": gpus_per_actor(cluster, device), **cluster.reserved}
    return {name: amount for name, amount in each.items() if amount}


def pool(
    cluster: RayConfig, device: str, threads: int, n_shards: int, resources: Sequence[Mapping[str, float]]
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
    each = actor_needs(cluster, device, threads)
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
    """1 CPU, 0.5 GPU, type A100"""
    kinds = {name: f"type {name.removeprefix(OF_KIND)}" for name in amounts if name.startswith(OF_KIND)}
    return ", ".join(kinds.get(name) or f"{amount:g} {name}" for name, amount in amounts.items() if amount)


def inventory(resources: Sequence[Mapping[str, float]] | None = None) -> str:
    """What nodes have, those of the connected cluster if not given, for errors: 2 nodes with 8 CPU, 1 GPU."""
    resources = [node["Resources"] for node in nodes()] if resources is None else resources
    total: dict[str, float] = {}
    for node in resources:
        for name, amount in node.items():
            if not name.startswith(("node:", OF_KIND)) and "memory" not in name:
                total[name] = total.get(name, 0) + amount
    kinds = sorted({name.removeprefix(OF_KIND) for node in resources for name in node if name.startswith(OF_KIND)})
    of_kinds = f" ({', '.join(kinds)})" if kinds else ""
    n = f"{len(resources)} node{'' if len(resources) == 1 else 's'}"
    return f"{n} with {describe(total) or 'nothing'} in all{of_kinds}"
