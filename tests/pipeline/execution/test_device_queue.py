"""Shards in flight: what overlaps and what does not, what an error and a stop do, and the same bits in the end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.execution import shard
from pipeline.execution.device import shards_in_flight
from pipeline.execution.device_queue import DeviceAccess, DeviceLock, DeviceQueue, QueueClosed
from pipeline.messages.errors import RunError
from pipeline.references.dinucleotide_shuffle import DinucleotideShuffle
from pipeline.store.backends.local import LocalBackend
from tests.pipeline.conftest import Inputs, values
from tests.pipeline.plug import PulledPlug, plugged

PATIENCE_S = 20  # for what must happen meanwhile


class Device:
    """A stand-in that is busy until something else has happened meanwhile, and notes when it was busy."""

    def __init__(self) -> None:
        self.busy: list[tuple[float, float]] = []
        self.threads: set[int] = set()

    def work(self, until: Callable[[], bool]) -> None:
        start, meanwhile = time.perf_counter(), False
        while not meanwhile and time.perf_counter() < start + PATIENCE_S:
            time.sleep(0.002)
            meanwhile = until()
        assert meanwhile, "nothing else happens while the device is busy"
        self.busy.append((start, time.perf_counter()))
        self.threads.add(threading.get_ident())

    @property
    def is_shared(self) -> bool:
        """Whether two were ever on it at the same time."""
        spans = sorted(self.busy)
        return any(stop > start for (_, stop), (start, _) in itertools.pairwise(spans))


def test_a_gpu_has_two_shards_in_flight_and_a_cpu_one() -> None:
    assert [shards_in_flight(device) for device in ("cpu", "cuda", "cuda:1")] == [1, 2, 2]


@pytest.mark.parametrize("kind", [DeviceLock, DeviceQueue])
def test_one_shard_is_on_the_device_while_the_others_are_read_and_written(kind: type[DeviceLock | DeviceQueue]) -> None:
    fake, queue = Device(), DeviceQueue()
    on_device: DeviceAccess = queue if kind is DeviceQueue else DeviceLock()
    was_read, begun, written = [], [], []

    def do(shard: int) -> int:
        was_read.append(shard)

        def compute() -> None:
            begun.append(shard)
            n = len(begun)  # shards are not asked to come in order
            fake.work(lambda: len(written) >= n - 1 and len(was_read) >= min(6, n + 1))

        on_device(compute)
        written.append(shard)
        return shard

    assert sorted(queue.serve(do, range(6), 2)) == list(range(6))
    assert len(fake.busy) == 6
    assert not fake.is_shared
    assert (fake.threads == {threading.get_ident()}) == (kind is DeviceQueue)


def test_nothing_is_begun_after_the_end() -> None:
    begun: list[int] = []
    queue = DeviceQueue()

    def do(shard: int) -> int:
        begun.append(shard)
        queue(lambda: None)
        return shard

    served = queue.serve(do, range(50), 2)
    first = [next(served) for _ in range(3)]
    served.close()
    assert sorted(begun) == list(range(len(begun)))
    assert len(first) <= len(begun) <= 3 + 2 + 2, "two may wait to be yielded, and two for the queue"


def test_items_that_cannot_be_made_end_the_work() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(DeviceQueue().serve(lambda item: item, items(), 2))


def test_an_error_on_the_device_is_the_askers() -> None:
    queue = DeviceQueue()

    def fail() -> None:
        raise KeyError("of the shard")

    def do(shard: int) -> str:
        try:
            queue(fail)
        except KeyError as error:
            return f"{shard} {error}"
        return "nothing"

    assert sorted(queue.serve(do, range(3), 2)) == [f"{shard} 'of the shard'" for shard in range(3)]


def test_a_stop_reaches_the_device_and_whoever_waits_for_it() -> None:
    """The way of a signal: an exception out of the blue in the thread that serves."""
    queue, left, waits = DeviceQueue(), [], threading.Event()

    def stop() -> None:
        waits.wait(5)
        raise KeyboardInterrupt

    def do(shard: int) -> None:
        try:
            if shard == 1:
                threading.Timer(0.05, waits.set).start()
            queue(stop)
        except BaseException as error:
            left.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt):
        list(queue.serve(do, range(9), 2))
    assert left in ([KeyboardInterrupt, QueueClosed], [QueueClosed, KeyboardInterrupt])
    with pytest.raises(QueueClosed):
        queue(lambda: None)


@pytest.fixture
def overlapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU does as a GPU would."""
    monkeypatch.setattr("pipeline.execution.executors.none.shards_in_flight", lambda device: 2)


@pytest.mark.usefixtures("overlapped")
def test_a_run_overlaps_and_writes_the_same_bits(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, drawn, written = Device(), [], []
    real_draw = DinucleotideShuffle.shuffle
    real_attribute, real_write = shard.attribute_rows, shard.write_shard

    def draw(*args: Any) -> Any:
        drawn.append(None)
        return real_draw(*args)

    def attribute_rows(*args: Any) -> Any:
        n = len(fake.busy) + 1
        fake.work(lambda: len(written) >= n - 1 and len(drawn) >= min(4, n + 1))
        return real_attribute(*args)

    def write_shard(*args: Any) -> Any:
        files = real_write(*args)
        written.append(None)
        return files

    monkeypatch.setattr(DinucleotideShuffle, "shuffle", staticmethod(draw))
    monkeypatch.setattr(shard, "attribute_rows", attribute_rows)
    monkeypatch.setattr(shard, "write_shard", write_shard)
    store = tmp_path / "a.zarr"
    assert pipeline.run(inputs.overrides(store)).complete
    assert values(store) == values(finished)
    assert len(fake.busy) == 4
    assert not fake.is_shared
    assert fake.threads == {threading.get_ident()}


@pytest.mark.usefixtures("overlapped")
def test_a_shard_that_fails_is_named_and_the_others_finish(
    inputs: Inputs, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shard.attribute_rows

    def attribute_rows(folds: Any, plan: Any, codes: Any, references: Any, *more: Any) -> Any:
        if codes.tobytes() == third:
            raise ValueError("not this one")
        return real(folds, plan, codes, references, *more)

    third = np.asarray(pipeline.open_store(finished).codes[12:18]).tobytes()
    monkeypatch.setattr(shard, "attribute_rows", attribute_rows)
    with pytest.raises(RunError, match=r"1 of 4 shards failed, 3 are done.*shard 2 .*not this one"):
        pipeline.run(inputs.overrides(tmp_path / "a.zarr"))


@pytest.mark.usefixtures("overlapped")
def test_crashes_in_the_midst_of_two_shards_are_resumed(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    for left in range(20, 70, 16):
        store = tmp_path / f"{left}.zarr"
        with plugged(left), pytest.raises(PulledPlug):
            pipeline.run(inputs.overrides(store))
        assert pipeline.run(inputs.overrides(store)).complete, f"after {left} changes"
        assert values(store) == values(finished)
        assert not list(LocalBackend(Path(f"{store}.run")).files("attempts/"))
