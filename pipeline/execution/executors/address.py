"""cluster=address: a running Ray cluster, whose nodes are asked first whether they can do the work."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config.schema import EngineConfig
from pipeline.config.settings import setting
from pipeline.execution import executor
from pipeline.execution.device import Machine, resolve_device
from pipeline.execution.executors import ray_private
from pipeline.execution.executors.head_watch import NoRayAnswers, greet, head, own_node, ray_watched
from pipeline.execution.executors.ray_cluster import (
    Pool,
    actor_needs,
    connected,
    describe,
    enter_sent,
    fits,
    gpus_per_actor,
    inventory,
    nodes,
    own_node_address,
    size_pool,
)
from pipeline.execution.executors.ray_data import run_shards
from pipeline.execution.executors.ray_settings import RayConfig
from pipeline.execution.host import environment
from pipeline.execution.node_check import node_problems
from pipeline.execution.work import ShardResult, WorkSpec
from pipeline.messages.errors import RunError, UserError
from pipeline.messages.progress import LOG

ANSWER_TIMEOUT_S = 10
MAX_AVOIDED = 3  # nodes that may fail one after the other before the first shard is done
MAX_CALLS = 4  # on nodes that die one after the other
NODE_TIMEOUT_S = 180  # of the check of a node, which imports torch there and reads the checkpoint


@dataclass
class Address(RayConfig):
    """A Ray cluster that is running."""

    name: str = "address"
    address: str | None = setting("host:port of the cluster's head, or auto: the one that this machine is in", None)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.address:
            yield "cluster=address needs cluster.address; set cluster.address=host:port, or =auto"
        elif self.address.startswith("ray://"):
            yield (
                f"cluster.address={self.address} is an address of Ray Client, which cannot do this work; run "
                f"the command on a machine of the cluster with cluster.address=auto, or submit it with `ray job submit`"
            )

    def executor(self, engine: EngineConfig) -> "AddressExecutor":
        return AddressExecutor(self, engine)


class AddressExecutor(executor.Executor):
    """The cluster's nodes say what device they have, and whether each of them can work on the run."""

    def __init__(self, cluster: Address, engine: EngineConfig) -> None:
        super().__init__(engine)
        self.cluster = cluster

    def n_actors(self, device: str) -> int | None:
        return self.cluster.asked

    def device_here(self) -> str:
        return resolve_device("auto" if self.engine.device.startswith("cuda") else self.engine.device)

    def machine(self) -> Machine:
        """The GPU of another machine is tried there; CPUs differ less, and this machine has one."""
        self.connect()
        found, node = remote_machine(self.engine.device, self.cluster)
        if not found.device.startswith("cuda"):
            return found
        needs, wait_s = actor_needs(self.cluster, found.device, self.engine.threads), self.cluster.wait_for_actors_s
        return replace(found, elsewhere=partial(call_on_node, needs=needs, wait_s=wait_s, node=node))

    def machine_to_try(self) -> Machine:
        """The same, or, of a cluster that cannot be reached (it need not be there yet), this machine. CPUs are tried
        here, whatever those of the nodes are."""
        try:
            self.connect()
        except UserError as error:
            LOG.warning(f"{error}; the device of this machine stands for those of the cluster")
            return Machine.here(self.device_here())
        found = self.machine()
        return found if found.elsewhere is not None else Machine.here(found.device)

    def connect(self) -> None:
        """Reach the cluster, unless this process is connected to one."""
        if ray.is_initialized():
            return
        address = str(self.cluster.address)
        require_welcome(address)
        LOG.info(f"connecting to the Ray cluster at {address}")
        problem = UserError(f"cluster.address={address}: no Ray cluster can be reached")
        disconnected = threading.Event()
        self.callback(disconnected.set)
        self.enter_context(connected({"address": address}, ray_private.CONNECTED_WITH, self.cluster.code, problem))
        its_head = ray.get_runtime_context().gcs_address
        parts = [own_node(own_node_address()), head(its_head, ray_private.keeps_state(its_head))]
        self.enter_context(ray_watched(parts, self.last_words, disconnected))

    def work(self, spec: WorkSpec, shards: np.ndarray) -> Generator[ShardResult, None, None]:
        """Nodes that cannot work on the run are left out with the reason, and their shards are done by the others."""
        left = dict.fromkeys(shards.tolist())
        avoided: dict[str, str] = {}
        checked: set[str] = set()
        while left:
            n_before = len(left)
            pool = self._pool(spec, len(left), avoided, checked)
            work = run_shards(spec, list(left), pool, self.cluster.wait_for_actors_s, meter=self.meter)
            with contextlib.closing(work) as results:
                for result in results:
                    if result.fatal and self._goes_on(result, pool, avoided, len(left) < n_before):
                        break
                    left.pop(result.shard, None)
                    yield result
                else:
                    return

    def _pool(self, spec: WorkSpec, n_shards: int, avoided: dict[str, str], checked: set[str]) -> Pool:
        """The actors for so many shards, on nodes that can do the work; the others are added to those avoided."""
        each = actor_needs(self.cluster, spec.plan.device, spec.plan.threads)
        able = [node for node in nodes() if node["NodeID"] not in avoided and fits(node["Resources"], each)]
        for node, problem in check_nodes(spec, [node for node in able if node["NodeID"] not in checked]):
            text = f"left out, as it cannot work on this run: {problem}"
            LOG.warning(text)
            self.meter.note_node(text)
            avoided[node] = problem
        checked.update(node["NodeID"] for node in able)
        if able and all(node["NodeID"] in avoided for node in able) and self.cluster.max_actors is None:
            raise UserError(f"no node can work on this run: {' | '.join(avoided.values())}")
        return size_pool(self.cluster, spec.plan.device, spec.plan.threads, n_shards, avoided)

    def _goes_on(self, result: ShardResult, pool: Pool, avoided: dict[str, str], has_progress: bool) -> bool:
        """Whether others can go on without the node that this result is of, which is avoided from now on.

        Where node after node fails, and no shard is done in between, the storage or the run is at fault.
        """
        avoided[result.node] = result.error
        others = [node for node in nodes() if node["NodeID"] not in avoided and fits(node["Resources"], pool.each)]
        if not others or not (has_progress or len(avoided) < MAX_AVOIDED):
            return False
        text = f"the node is left out from now on, and others go on: {result.error}"
        LOG.warning(text)
        self.meter.note_node(text)
        return True


def require_welcome(address: str) -> None:
    """Refuse a cluster that this process cannot connect to, with the reason.

    Raises:
        UserError: none is found or answers, or it will not have this process.
    """
    given = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    try:
        its_head = given or ray_private.found_address()
    except ConnectionError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster is found on this machine; give its head as host:port, have "
            f"this machine join one with `ray start --address=host:port`, or use cluster=local"
        ) from error
    require_answer(its_head)
    with environment(ray_private.CONNECTED_WITH), ray_private.quiet_start():
        problem = ray_private.refusal(its_head, is_found=not given)
    if problem is not None:
        raise UserError(f"cluster.address={address}: the Ray cluster at {its_head} cannot be used: {problem}")


def require_answer(address: str) -> None:
    """Refuse an address where no Ray can be, within ANSWER_TIMEOUT_S: Ray itself goes on trying for minutes.

    Raises:
        UserError: nothing listens there, or what listens says nothing, or something else.
    """
    if not re.fullmatch(r"\[?[^/\]]+\]?:\d+", address):
        raise UserError(f"cluster.address={address}; expected host:port of the head of a Ray cluster, or auto")
    advice = "start one with `ray start --head`, or use cluster=local"
    try:
        greet(address, ANSWER_TIMEOUT_S)
    except TimeoutError as error:
        raise UserError(
            f"cluster.address={address}: something listens there and did not answer within {ANSWER_TIMEOUT_S} s; is it "
            f"the port of a Ray head, and is that head well? Otherwise {advice}"
        ) from error
    except NoRayAnswers as error:
        raise UserError(f"cluster.address={address}: {error}; {advice}") from error
    except OSError as error:
        raise UserError(
            f"cluster.address={address}: no Ray cluster answers there ({error.strerror or error}); {advice}"
        ) from error


def remote_machine(device: str, cluster: RayConfig) -> tuple[Machine, str]:
    """The device of a connected cluster, as one of its nodes finds it, and the id of that node.

    Raises:
        UserError: the cluster has no such device, or its nodes do not begin a task within cluster.wait_for_actors_s.
    """
    has_gpu = any(node["Resources"].get("GPU", 0) > 0 for node in nodes())
    uses_gpu = device.startswith("cuda") or (device == "auto" and has_gpu)
    if device.startswith("cuda") and not has_gpu and cluster.max_actors is None:
        raise UserError(f"engine.device={device}, but no node of the cluster has a GPU; it has {inventory()}")

    def look() -> tuple[Machine, str]:
        return Machine.here(device), ray.get_runtime_context().get_node_id()

    needs = {"CPU": 1.0, "GPU": gpus_per_actor(cluster, "cuda" if uses_gpu else "cpu"), **cluster.reserved}
    found: tuple[Machine, str] = call_on_node(look, needs, cluster.wait_for_actors_s)
    return found


def call_on_node(function: Callable[[], Any], needs: Mapping[str, float], wait_s: int, node: str | None = None) -> Any:
    """What a function returns that is called on a node which has these resources free: the one with the id `node`,
    unless that is gone. Where a node dies meanwhile, it is called again on another.

    Raises:
        UserError: the function's own, or no node begins within `wait_s` seconds.
        RunError: it fails otherwise, or the cluster does.
    """

    class Caller:
        def call(self, function: Callable[[], Any]) -> Any:
            enter_sent()
            return function()

    custom = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    amounts: dict[str, Any] = {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "resources": custom}
    if node is not None:
        amounts["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
    actor = ray.remote(**amounts)(Caller)
    n_calls = 0
    while True:  # Ray's own restarts wait without end for a node
        n_calls += 1
        caller: Any = actor.remote()
        try:
            ray.get(caller.__ray_ready__.remote(), timeout=wait_s)
            return ray.get(caller.call.remote(function))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (UserError, RunError)):
                raise type(error.cause)(str(error.cause)) from error
            raise RunError(
                f"a node fails: {type(error.cause).__name__}: {' '.join(str(error.cause).split())}"
            ) from error
        except ray.exceptions.GetTimeoutError as error:
            raise UserError(
                f"no node of the cluster began a task with {describe(needs)} within {wait_s} s "
                f"(cluster.wait_for_actors_s); it has {inventory()}"
            ) from error
        except ray.exceptions.RayError as error:
            if n_calls == MAX_CALLS or not isinstance(error, ray.exceptions.RayActorError):
                raise RunError(f"the cluster cannot run a task: {' '.join(str(error).split())[:500]}") from error
        finally:
            ray.kill(caller)


def check_nodes(work: WorkSpec, able: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Have nodes say whether they can work on this run; yields each that cannot, by its id, as soon as it says why."""

    def look(work: WorkSpec) -> list[str]:
        enter_sent()
        return node_problems(work)

    check = ray.remote(num_cpus=0, max_retries=2)(look)  # Ray kills tasks where memory is short for a moment
    tasks = {}
    for node in able:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[check.options(scheduling_strategy=here).remote(work)] = node
    until, waiting = time.monotonic() + NODE_TIMEOUT_S, list(tasks)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        for task in ready or waiting:
            node = tasks[task]
            if found := _found(task):
                where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                yield node["NodeID"], f"{where}: {'; '.join(found)}"
        if not ready:
            return


def _found(task: Any) -> list[str]:
    try:
        return list(ray.get(task, timeout=0.1))
    except ray.exceptions.GetTimeoutError:
        return [f"no answer within {NODE_TIMEOUT_S} s"]
    except ray.exceptions.RayTaskError as error:
        return [f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"]
    except ray.exceptions.RayError as error:
        return [" ".join(str(error).split())[:500]]
