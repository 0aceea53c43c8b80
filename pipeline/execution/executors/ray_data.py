"""The work on Ray: indices of shards go through Ray Data to a pool of actors that each hold the model.

An actor is called by as many threads at a time as it has shards in flight (see device_queue.py).
"""

import contextlib
import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.execution.device import shards_in_flight
from pipeline.execution.executors import ray_private
from pipeline.execution.executors.ray_cluster import Pool, describe, enter_sent, inventory
from pipeline.execution.executors.ray_pool import Prometheus, look
from pipeline.execution.host import keep_freed_memory
from pipeline.execution.isolated import EXIT_BROKEN
from pipeline.execution.meter import Meter
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.execution.worker import Worker
from pipeline.messages.errors import RunError

NAMES = [field.name for field in fields(ShardResult)]
MAX_BLOCKS = 10_000  # Ray Data takes 0.7 ms for a block: beyond this many, blocks hold several shards
MAX_SINGLE = 5_000  # of the last shards, which stay single so that the actors end together
NODE_LABEL = "ray.io/node-id"  # that Ray gives every node
NOTICE_S = 4.0  # until it is known that Ray on this machine has died, or that someone stops it and this process
REPORT_S = 0.5  # an output of a busy actor costs it about 0.1 s: shards shorter than this are reported together


class ShardActor:
    """The face of `Worker` for Ray Data: a block of shard indices in, results out as the shards are done."""

    def __init__(self, work: WorkSpec) -> None:
        keep_freed_memory()
        enter_sent()
        self._worker, self._plan = Worker(work), work.plan
        self._ending = threading.Lock()  # what other shards in flight break at is no second time

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        """Work on the shards that the column `shards` lists."""
        yield from report(self._process(int(index)) for index in batch["shards"][0])

    def _process(self, index: int) -> ShardResult:
        result = self._worker.process(self._plan.shard(index))
        if result.is_device_broken:
            self._step_aside(result)
        return replace(result, node=ray.get_runtime_context().get_node_id()) if result.fatal else result

    def _step_aside(self, result: ShardResult) -> None:
        """End this process, in which nothing computes any more: Ray begins another one, which tries its shards again.

        Where the device has broken at another shard before, this returns, and the node is avoided.
        """
        with self._ending:
            if self._worker.may_begin_again(result):
                os._exit(EXIT_BROKEN)


def report(results: Iterator[ShardResult]) -> Iterator[dict[str, list[Any]]]:
    """Results as columns, each as soon as it exists, or with the next where they come quickly."""
    held: list[ShardResult] = []
    last = time.monotonic()
    for result in results:
        held.append(result)
        if time.monotonic() - last >= REPORT_S:
            yield _columns(held)
            held, last = [], time.monotonic()
    if held:
        yield _columns(held)


def _columns(results: list[ShardResult]) -> dict[str, list[Any]]:
    return {name: [getattr(result, name) for result in results] for name in NAMES}


def run_shards(
    work: WorkSpec,
    shards: Sequence[int] | np.ndarray,
    pool: Pool,
    wait_s: int,
    actor: type = ShardActor,
    meter: Meter | None = None,
) -> Generator[ShardResult, None, None]:
    """Work on shards; yields the result of each, in no particular order.

    Args:
        work: what the actors are given.
        shards: indices, in the order in which they are begun.
        pool: how many actors, and what each of them gets.
        wait_s: seconds within which they must have started.
        actor: what does the work.
        meter: is told how the pool stands.

    Raises:
        RunError: the actors did not start in time, or Ray itself failed.
    """
    grows = pool.least < pool.most
    with ray_private.errors_alone("ray.data"), DataContext.current(_context(0 if grows else wait_s)):
        grouped = [{"shards": block} for block in blocks(shards)]
        batches = ray.data.from_items(grouped, override_num_blocks=len(grouped)).map_batches(
            actor, fn_constructor_args=(work,), batch_size=1, **_actors(pool, shards_in_flight(work.plan.device))
        )
    try:
        if grows:
            wait_for_room(pool, wait_s)
        with ray_private.errors_alone("ray.data"), contextlib.ExitStack() as stack:
            if meter is not None:
                stack.enter_context(meter.watching(partial(look, pool, actor.__name__), Prometheus(work.store)))
            for batch in batches.iter_batches(batch_size=None, prefetch_batches=0):
                for values in zip(*(batch[name].tolist() for name in NAMES), strict=True):
                    yield ShardResult(**dict(zip(NAMES, values, strict=True)))
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            f"{pool.least} actors with {describe(pool.each)} each did not start within {wait_s} s "
            f"(cluster.wait_for_actors_s); the cluster has {inventory()}, and others may be using it"
        ) from error
    except ray.exceptions.RayError as error:
        time.sleep(NOTICE_S)  # in which Stopped is raised where whoever stops us began with Ray
        raise RunError(f"Ray failed: {' '.join(str(error).split())[:500]}") from error


def blocks(shards: Sequence[int] | np.ndarray) -> Iterator[list[int]]:
    """The shards, in order: one in each block, or, where they are more than MAX_BLOCKS, equal groups first."""
    n_grouped = len(shards) - MAX_SINGLE if len(shards) > MAX_BLOCKS else 0
    n_groups = MAX_BLOCKS - MAX_SINGLE if n_grouped else 0
    for group in range(n_groups):
        yield [int(i) for i in shards[n_grouped * group // n_groups : n_grouped * (group + 1) // n_groups]]
    for i in shards[n_grouped:]:
        yield [int(i)]


def _actors(pool: Pool, in_flight: int) -> dict[str, Any]:
    """What Ray is asked for. An actor that dies is begun again and its block with it, for ever (Ray Data's own default
    for actors, max_restarts and max_task_retries of -1): the worker knows when to give a shard up."""
    custom = {name: amount for name, amount in pool.each.items() if name not in ("CPU", "GPU")}
    avoided = {"label_selector": _elsewhere(pool)} if pool.avoided else {}
    threads: dict[str, Any] = {
        "max_concurrent_calls_per_actor": in_flight,
        "enable_true_multi_threading": in_flight > 1,
        "max_tasks_in_flight_per_actor": in_flight + 1,  # one waits in the actor, so that none is waited for
    }
    return {
        "compute": ActorPoolStrategy(size=pool.most, **threads),
        "num_cpus": pool.each.get("CPU", 0),
        "num_gpus": pool.each.get("GPU", 0),
        "resources": custom,
        **avoided,
    }


def _elsewhere(pool: Pool) -> dict[str, str]:
    return {NODE_LABEL: f"!in({','.join(pool.avoided)})"}


def wait_for_room(pool: Pool, wait_s: int) -> None:
    """Have a cluster that grows make room for the least number of actors; a group of places is a wish that it meets.

    Raises:
        ray.exceptions.GetTimeoutError: there is no room within `wait_s` seconds.
    """
    elsewhere = {"bundle_label_selector": [_elsewhere(pool)] * pool.least} if pool.avoided else {}
    places = placement_group([pool.each] * pool.least, **elsewhere)
    try:
        if not places.wait(wait_s):
            raise ray.exceptions.GetTimeoutError
    finally:
        remove_placement_group(places)


def _context(wait_s: int) -> DataContext:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = wait_s
    ray_private.report_at_once(context)
    return context
