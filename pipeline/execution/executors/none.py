"""cluster=none: the shards are computed in this process, one after the other."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.config.schema import EngineConfig
from pipeline.execution import executor
from pipeline.execution.device import shards_in_flight
from pipeline.execution.device_queue import DeviceQueue
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.execution.worker import Worker


@dataclass
class InThisProcess(executor.ExecutorConfig):
    """No Ray: the shards are worked through in this process."""

    name: str = "none"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.code is not None:
            yield "cluster=none and cluster.code contradict each other; leave cluster.code out, or use Ray"

    def executor(self, engine: EngineConfig) -> "InProcessExecutor":
        return InProcessExecutor(engine)


class InProcessExecutor(executor.Executor):
    """Where several shards are in flight, the calling thread does what needs the device, as signals reach it."""

    uses_ray = False

    def n_actors(self, device: str) -> int:
        return 1

    def work(self, spec: WorkSpec, shards: np.ndarray) -> Generator[ShardResult, None, None]:
        of_plan, in_flight = (spec.plan.shard(int(index)) for index in shards), shards_in_flight(spec.plan.device)
        if in_flight == 1:
            return (result for result in map(Worker(spec).process, of_plan))
        queue = DeviceQueue()
        return queue.serve(Worker(spec, queue).process, of_plan, in_flight)
