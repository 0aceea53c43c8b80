"""The work on Ray: shard descriptors through Ray Data to a pool of actors that each hold the model."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, DataContext

from pipeline.actor import ShardActor, Work
from pipeline.config import ClusterConfig
from pipeline.errors import RunError, ShardError, UserError
from pipeline.hardware import device_kind, resolve_device
from pipeline.progress import note
from pipeline.shards import Shard, n_blocks

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it writes to stderr what Ray Data does on purpose
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it, a warning
}
ANSWER_TIMEOUT_S = 10
OBJECT_STORE_BYTES = 200 * 2**20  # descriptors and small records are all that goes through it


@contextlib.contextmanager
def connected(cluster: ClusterConfig, threads: int) -> Iterator[None]:
    """A Ray that is up: the one that already is, the cluster at cluster.address, or one started here and stopped again.

    Raises:
        UserError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is not None:
        _require_answer(cluster.address)
        note(f"connecting to the Ray cluster at {cluster.address}")
    else:
        note("starting Ray")
        wanted = threads if cluster.actors == "auto" else cluster.actors * threads
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        options = {
            "address": "local",
            "num_cpus": max(wanted, len(os.sched_getaffinity(0))),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        with _own_signal_handlers(), _silent_stderr():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster.address={cluster.address}: no Ray cluster can be reached ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens at once: Ray itself goes on trying for minutes.

    Raises:
        UserError: nothing answers there within ANSWER_TIMEOUT_S.
    """
    match = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d+)", address)
    if match is None:
        return  # "auto" and the like, which Ray looks up by itself
    try:
        socket.create_connection((match["host"], int(match["port"])), ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error.strerror or error}); start one with "
            f"`ray start --head`, or leave cluster.address out"
        ) from error


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


def remote_device(device: str) -> tuple[str, str]:
    """Device and kind of device (see hardware.py) of a cluster that is connected, as one of its nodes finds them."""
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1

    def look() -> tuple[str, str]:
        found = resolve_device(device)
        return found, device_kind(found)

    remote = ray.remote(num_cpus=1, num_gpus=1 if has_gpu and device != "cpu" else 0)(look)
    try:
        found: tuple[str, str] = ray.get(remote.remote())
    except ray.exceptions.RayTaskError as error:
        raise UserError(str(error.cause)) from error
    return found


def pool_size(actors: int | str, device: str, threads: int, n_shards: int) -> int:
    """How many actors to start: those asked for, or all that the cluster has room for; no more than there are shards.

    Raises:
        UserError: the cluster has no room for them.
    """
    resource, each = ("GPU", 1) if device.startswith("cuda") else ("CPU", threads)
    room = int(ray.cluster_resources().get(resource, 0) // each)
    wanted = min(room if actors == "auto" else int(actors), n_shards)
    if room < max(wanted, 1):
        raise UserError(
            f"cluster.actors={actors} with {each} {resource} each (engine.device={device}, engine.threads={threads}), "
            f"but the cluster has room for {room}; lower cluster.actors or engine.threads"
        )
    return wanted


def run_shards(work: Work, shards: Sequence[Shard], cluster: ClusterConfig) -> Iterator[int]:
    """Work on shards in no particular order; yields the number of rows of each that is committed.

    Raises:
        ShardError: a shard failed.
        RunError: the actors did not start in time, or Ray itself failed.
    """
    plan = work.plan
    uses_gpu = plan.device.startswith("cuda")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = cluster.wait_for_actors_s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    size = pool_size(cluster.actors, plan.device, plan.threads, len(shards))
    descriptors = [asdict(shard) for shard in shards]
    records = ray.data.from_items(descriptors, override_num_blocks=n_blocks(len(descriptors))).map_batches(
        ShardActor,
        batch_size=1,
        compute=ActorPoolStrategy(size=size),
        fn_constructor_args=(work,),
        num_cpus=plan.threads,
        num_gpus=1 if uses_gpu else 0,
    )
    try:
        for batch in records.iter_batches(batch_size=None, prefetch_batches=0):
            for n_rows, error in zip(batch["rows"], batch["error"], strict=True):
                if error:
                    raise ShardError(str(error))
                yield int(n_rows)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        raise RunError(f"Ray failed: {' '.join(str(error).split())[:500]}") from error
