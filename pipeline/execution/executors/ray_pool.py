"""How a pool of actors on Ray stands, and what Ray's own metrics are told, which a dashboard gives to Prometheus."""

from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

from pipeline.execution.executors import ray_private
from pipeline.execution.executors.ray_cluster import Pool, describe, fits, nodes
from pipeline.execution.meter import PoolState
from pipeline.store.metrics import Metrics

TOLD = {
    "dlshap_rows": "rows computed by this command",
    "dlshap_shards": "shards computed by this command",
    "dlshap_failures": "shards that failed",
    "dlshap_device_busy_share": "part of the actors' time in which their devices computed",
    "dlshap_actors_wanted": "actors that the command asked for",
    "dlshap_actors_running": "actors that are up",
}


def look(pool: Pool, actor: str) -> PoolState:
    """How the pool stands now.

    Args:
        pool: what was asked for.
        actor: name of the class of its actors.
    """
    up, running = nodes(), ray_private.n_actors_alive(actor)
    able = {node["NodeID"] for node in up} - set(pool.avoided)
    free = [amounts for node, amounts in ray_private.free_by_node().items() if node in able]
    return PoolState(pool.most, running, limited_by(pool, running, free), {each["NodeID"]: name(each) for each in up})


def limited_by(pool: Pool, running: int, free: Collection[Mapping[str, float]]) -> str:
    """Why fewer actors run than are wanted; "" where all do.

    Args:
        pool: what was asked for.
        running: actors that are up.
        free: what is free on each node that may be used.
    """
    if running >= pool.most:
        return ""
    if any(fits(node, pool.each) for node in free):
        return "actors that are starting"
    short = {
        name: sum(node.get(name, 0) for node in free)
        for name, amount in pool.each.items()
        if not any(fits(node, {name: amount}) for node in free)
    }
    if not short:
        return f"nodes: none has {describe(pool.each)} free at once"
    return ", ".join(f"{describe({name: 1}).removeprefix('1 ')} ({left:g} free)" for name, left in short.items())


def name(node: Mapping[str, Any]) -> str:
    """What people call a node: host (address)."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


class Prometheus:
    """Metrics of this command, by its store, where the node of the driver has a Ray dashboard's agent."""

    def __init__(self, store: str) -> None:
        self._store = {"store": store}
        self._gauges = {name: Gauge(name, text, tag_keys=("store",)) for name, text in TOLD.items()}
        self._seconds = Gauge("dlshap_actor_seconds", "of all actors, by phase of a shard", tag_keys=("store", "phase"))

    def __call__(self, metrics: Metrics) -> None:
        """Tell them."""
        if not ray.is_initialized():  # the end of a command, after its Ray
            return
        for name, gauge in self._gauges.items():
            value = getattr(metrics, name.removeprefix("dlshap_"))
            if value is not None:
                gauge.set(value, self._store)
        for phase, seconds in metrics.actor_seconds.items():
            self._seconds.set(seconds, {**self._store, "phase": phase})
