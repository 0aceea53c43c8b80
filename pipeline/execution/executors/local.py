"""cluster=local: Ray on this machine, started for the run and stopped after it."""

import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.config.schema import EngineConfig
from pipeline.execution import executor
from pipeline.execution.executors import reaper
from pipeline.execution.executors.ray_settings import RayConfig
from pipeline.execution.host import environment
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.messages.errors import GOES_ON, RunError, Stopped
from pipeline.messages.progress import LOG
from pipeline.store.backends.scratch import keep_folder, remove_folder

NOTICE_S = 0.3  # in which it shows whether whoever stops this command stops Ray too
REAPED_S = 6.0
OBJECT_STORE_BYTES = 200 * 2**20  # shard indices and short results are all that goes through it


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """What is started within this context ends with it, or with this process, however that ends; see reaper.py."""
    name, value = "DLSHAP_RAY", secrets.token_hex(8)
    script = [sys.executable, "-I", "-S", reaper.__file__, f"{name}={value}"]
    reaping = subprocess.Popen(script, stdin=subprocess.PIPE, process_group=0)
    try:
        with environment({name: value}, replace=True):
            yield
    finally:
        assert reaping.stdin is not None
        reaping.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it ends soon, and holds up nobody
            reaping.wait(REAPED_S)


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
        self._leave: Callable[[int], None] | None = None
        self._leaving: threading.Thread | None = None
        self._lets_go = threading.Event()

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
        problem = RunError("Ray cannot be started on this machine (cluster=none does without it)")
        after_ray = self.enter_context(contextlib.ExitStack())
        after_ray.callback(remove_folder, folder)
        for apart in (
            none_left(),
            ray_private.on_loopback(),
            ray_private.own_token(),
            ray_private.own_process_groups(),
        ):
            self.enter_context(apart)
        disconnected = threading.Event()
        self.callback(disconnected.set)
        try:
            self.enter_context(connected(options, ray_private.STARTED_WITH, self.cluster.code, problem))
        except RunError:
            after_ray.pop_all()
            keep_folder(folder)  # it has Ray's logs, which the error speaks of
            raise
        self.enter_context(ray_watched([own_node(own_node_address())], self.last_words, disconnected))
        self.enter_context(self._watched_on_the_way_out())

    def ended_by(self, error: BaseException) -> None:
        super().ended_by(error)
        if isinstance(error, Stopped) and not error.reason and self._leave is not None:
            self._leaving = threading.Thread(target=self._leave, args=[error.exit_code], daemon=True)
            self._leaving.start()

    @contextlib.contextmanager
    def _watched_on_the_way_out(self) -> Iterator[None]:
        """Where a scheduler stops Ray's processes with this one, leave before Ray's native part does: without its
        own, it ends this process with exit code 1 and without a word."""
        from pipeline.execution.executors import ray_private

        def leave(exit_code: int) -> None:
            while not self._lets_go.is_set():
                if ray_private.is_ending():
                    LOG.error(GOES_ON)
                    os._exit(exit_code)
                time.sleep(0.01)

        self._leave = leave
        try:
            yield
        finally:
            if self._leaving is not None:
                self._leaving.join(NOTICE_S)
            self._lets_go.set()

    def work(self, spec: WorkSpec, shards: np.ndarray) -> Generator[ShardResult, None, None]:
        self.connect()
        from pipeline.execution.executors.ray_cluster import size_pool
        from pipeline.execution.executors.ray_data import run_shards

        pool = size_pool(self.cluster, spec.plan.device, spec.plan.threads, len(shards))
        return run_shards(spec, shards, pool, self.cluster.wait_for_actors_s, meter=self.meter)
