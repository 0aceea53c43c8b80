"""The work on Ray: shard descriptors through Ray Data to a pool of actors that each hold the model.

An actor is called by as many threads at a time as it has shards in flight (see flight.py).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from pipeline.actor import Outcome, Work, Worker
from pipeline.blocks import blocks
from pipeline.cluster import Pool, check_nodes, describe, inventory, nodes, size_pool
from pipeline.config import ClusterConfig
from pipeline.errors import RunError
from pipeline.hardware import shards_in_flight

NAMES = [field.name for field in fields(Outcome)]
REPORT_S = 0.5  # an output of a busy actor costs it about 0.1 s: shards shorter than this are reported together


class ShardActor:
    """The face of `Worker` for Ray Data: a block of shard indices in, outcomes out as the shards are done."""

    def __init__(self, work: Work) -> None:
        self._worker, self._plan = Worker(work), work.plan

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        """Work on the shards that the column `shards` lists."""
        yield from report(self._worker.do(self._plan.shard(int(index))) for index in batch["shards"][0])


def report(outcomes: Iterator[Outcome]) -> Iterator[dict[str, list[Any]]]:
    """Outcomes as columns, each as soon as it is there, or with the next where they come quickly."""
    held: list[Outcome] = []
    last = time.monotonic()
    for outcome in outcomes:
        held.append(outcome)
        if time.monotonic() - last >= REPORT_S:
            yield _columns(held)
            held, last = [], time.monotonic()
    if held:
        yield _columns(held)


def _columns(outcomes: list[Outcome]) -> dict[str, list[Any]]:
    return {name: [getattr(outcome, name) for outcome in outcomes] for name in NAMES}


def run_shards(
    work: Work, shards: Sequence[int] | np.ndarray, cluster: ClusterConfig, actor: type = ShardActor
) -> Iterator[Outcome]:
    """Work on shards; yields what comes of each, in no particular order.

    Args:
        work: what the actors are given.
        shards: indices, ascending.
        cluster: how many actors, and what each of them gets.
        actor: what does the work.

    Raises:
        UserError: the cluster has no room for the actors, or a node of it cannot do the work.
        RunError: the actors did not start in time, or Ray itself failed.
    """
    pool = size_pool(cluster, work.plan.device, work.plan.threads, len(shards))
    if cluster.name == "address":
        check_nodes(work, pool)
    with DataContext.current(_context(cluster)):
        descriptors = [{"shards": block} for block in blocks(shards)]
        outcomes = ray.data.from_items(descriptors, override_num_blocks=len(descriptors)).map_batches(
            actor, fn_constructor_args=(work,), batch_size=1, **_actors(pool, shards_in_flight(work.plan.device))
        )
    try:
        for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
            for values in zip(*(batch[name] for name in NAMES), strict=True):
                shard, n_rows, error, fatal = values
                yield Outcome(int(shard), int(n_rows), str(error), bool(fatal))
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            f"{pool.least} actors with {describe(pool.each)} each did not start within {cluster.wait_for_actors_s} s "
            f"(cluster.wait_for_actors_s); the cluster has {inventory([node['Resources'] for node in nodes()])}, and "
            f"others may be using it"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray failed: {' '.join(str(error).split())[:500]}") from error


def _actors(pool: Pool, in_flight: int) -> dict[str, Any]:
    """What Ray is asked for. An actor that dies is begun again and its block with it, for ever (Ray Data's own default
    for actors, max_restarts and max_task_retries of -1): the worker knows when to give a shard up."""
    custom = {name: amount for name, amount in pool.each.items() if name not in ("CPU", "GPU")}
    fixed = pool.least == pool.most
    size: dict[str, Any] = {"size": pool.most} if fixed else {"min_size": pool.least, "max_size": pool.most}
    threads: dict[str, Any] = {
        "max_concurrent_calls_per_actor": in_flight,
        "enable_true_multi_threading": in_flight > 1,
        "max_tasks_in_flight_per_actor": in_flight + 1,  # one waits in the actor, so that none is waited for
    }
    return {
        "compute": ActorPoolStrategy(**size, **threads),
        "num_cpus": pool.each.get("CPU", 0),
        "num_gpus": pool.each.get("GPU", 0),
        "resources": custom,
    }


def _context(cluster: ClusterConfig) -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = cluster.wait_for_actors_s
    context.target_max_block_size = 1  # byte: an outcome leaves the actor when it is there, not with the next ones
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return context
