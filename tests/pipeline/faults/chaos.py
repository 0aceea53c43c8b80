"""A model whose import brings evil over the process that works on shards, as the environment says.

`DLSHAP_TEST_CHAOS` holds JSON: {"folder": where it is noted what has happened, "evils": [{"at": point, "how": way,
"shard": index or none, "times": number}]}. The points are those of evils.py.
"""

import ctypes
import functools
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pipeline.execution.device as hardware
import pipeline.execution.executors.none as in_process
import pipeline.execution.shard as one_shard
import pipeline.execution.worker as actor
from pipeline.models.example import ExampleNet
from pipeline.store.backends import local
from pipeline.store.backends.local import LocalBackend
from pipeline.store.backends.object_store import ObjectStoreBackend
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import COMPUTED, shard_key
from tests.pipeline.faults.evils import CHAOS, FOR_EVER, IN_FLIGHT


def happen(point: str, shard: int) -> None:
    """A worker passes a point."""
    spec = json.loads(os.environ.get(CHAOS, '{"evils": []}'))
    for number, each in enumerate(spec["evils"]):
        if each["at"] == point and each["shard"] in (None, shard) and _is_next(spec["folder"], number, each, shard):
            _do(each)


def _is_next(folder: str, number: int, each: dict[str, Any], shard: int) -> bool:
    """Whether an evil is still to happen; of several processes that ask at once, one is told so."""
    if each["times"] >= FOR_EVER:
        return True
    for time_ in range(each["times"]):
        try:
            os.close(os.open(f"{folder}/{number}-{time_}-{each['at']}-{shard}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False


def _do(each: dict[str, Any]) -> None:
    ways: dict[str, Callable[[], object]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(3),
        "crash": lambda: ctypes.string_at(0),
        "sleep": lambda: time.sleep(each["seconds"]),
    }
    ways[each["how"]]()


def install() -> None:
    """Put the points into this process."""
    real_attribute, real_write_shard, real_commit = (
        one_shard.attribute_shard,
        one_shard.write_shard,
        RunDirectory.commit,
    )
    real_write_all, real_compute, real_in_flight = local._write_all, one_shard._compute, hardware.shards_in_flight
    writing = {"shard": -1, "key": ""}

    @functools.wraps(real_attribute)
    def attribute_shard(directory: Any, codec: Any, plan: Any, shard: Any, *more: Any) -> Any:
        happen("compute", shard.index)
        return real_attribute(directory, codec, plan, shard, *more)

    @functools.wraps(real_compute)
    def compute(directory: Any, plan: Any, shard: Any, *more: Any) -> Any:
        happen("device", shard.index)
        return real_compute(directory, plan, shard, *more)

    def in_flight(device: str) -> int:
        return int(os.environ.get(IN_FLIGHT, real_in_flight(device)))

    @functools.wraps(real_write_shard)
    def write_shard(backend: Any, codec: Any, shard: Any, values: Any) -> Any:
        happen("computed", shard.index)
        writing["shard"] = shard.index
        try:
            return real_write_shard(backend, codec, shard, values)
        finally:
            writing["shard"] = -1
            happen("written", shard.index)

    def commit(self: RunDirectory, record: Any) -> None:
        real_commit(self, record)
        happen("committed", record.shard)

    def write_all(descriptor: int, data: bytes) -> None:
        if writing["shard"] >= 0 and writing["key"] == shard_key(list(COMPUTED)[1], writing["shard"]):
            real_write_all(descriptor, data[: len(data) // 2])
            happen("half", writing["shard"])
            data = data[len(data) // 2 :]
        real_write_all(descriptor, data)

    def watched(real: Callable[..., None]) -> Callable[..., None]:
        def write(self: Any, key: str, data: bytes) -> None:
            writing["key"] = key
            real(self, key, data)
            if key == shard_key(list(COMPUTED)[2], max(writing["shard"], 0)):
                happen("some", writing["shard"])
            if key.startswith("done/"):
                happen("recorded", int(key[5:13]))

        return write

    actor.attribute_shard, one_shard.write_shard, one_shard._compute = attribute_shard, write_shard, compute
    for module in (hardware, in_process):  # Ray's takes it from the first, once there is work
        module.shards_in_flight = in_flight  # type: ignore[attr-defined]
    RunDirectory.commit = commit  # type: ignore[method-assign]
    local._write_all = write_all
    for backend in (LocalBackend, ObjectStoreBackend):
        backend.write = watched(backend.write)  # type: ignore[method-assign]


class ChaosNet(ExampleNet):
    """The packaged example's network in bad company."""


install()
