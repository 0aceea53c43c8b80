"""cluster=local: Ray on this machine, started for the run and stopped after it."""

import contextlib
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config.schema import EngineConfig
from pipeline.execution import executor
from pipeline.execution.executors.ray_settings import RayConfig
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.messages.errors import RunError
from pipeline.messages.progress import LOG

OBJECT_STORE_BYTES = 200 * 2**20  # shard indices and short results are all that goes through it


@dataclass
class Local(RayConfig):
    """Ray on this machine, started for the run and stopped after it."""

    name: str = "local"

    def executor(self, engine: EngineConfig) -> "LocalRayExecutor":
        return LocalRayExecutor(self, engine)


class LocalRayExecutor(executor.Executor):
    """Ray takes seconds to import, so that is left until there is work."""

    def __init__(self, cluster: RayConfig, engine: EngineConfig) -> None:
        super().__init__(engine)
        self.cluster = cluster

    def n_actors(self, device: str) -> int:
        return self.cluster.asked or self._room(device)

    def _room(self, device: str) -> int:
        """Workers that this machine has room for."""
        room, share = len(os.sched_getaffinity(0)) // self.engine.threads, self.cluster.gpus_per_actor
        if device != "cpu" and share:
            room = min(room, int(torch.cuda.device_count() / (1.0 if share == "auto" else float(share))))
        return max(1, room)

    def connect(self) -> None:
        """Start Ray, unless this process has one."""
        import ray

        from pipeline.execution.executors import ray_private
        from pipeline.execution.executors.head_watch import own_node, ray_watched
        from pipeline.execution.executors.ray_cluster import connected, own_node_address

        if ray.is_initialized():
            return
        wanted, folder = self.cluster.asked or 1, ray_private.own_folder()
        options = {
            "address": "local",
            "num_cpus": max(wanted * self.engine.threads, len(os.sched_getaffinity(0))),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": f"{folder}/ray",
        }
        LOG.info("starting Ray")
        problem = RunError("Ray cannot be started on this machine")
        after_ray = self.enter_context(contextlib.ExitStack())
        after_ray.callback(shutil.rmtree, folder, ignore_errors=True)
        for apart in (ray_private.on_loopback(), ray_private.own_token(), ray_private.own_process_groups()):
            self.enter_context(apart)
        try:
            self.enter_context(connected(options, ray_private.STARTED_WITH, self.cluster.code, problem))
        except RunError:
            after_ray.pop_all()  # the folder is kept: it has Ray's logs, which the error speaks of
            raise
        self.enter_context(ray_watched([own_node(own_node_address())], self.last_words))

    def work(self, spec: WorkSpec, shards: np.ndarray) -> Generator[ShardResult, None, None]:
        self.connect()
        from pipeline.execution.executors.ray_cluster import size_pool
        from pipeline.execution.executors.ray_data import run_shards

        pool = size_pool(self.cluster, spec.plan.device, spec.plan.threads, len(shards))
        return run_shards(spec, shards, pool, self.cluster.wait_for_actors_s, meter=self.meter)
