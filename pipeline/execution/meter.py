"""Counts what a command does: for metrics.json and `dlshap status`, and for who watches the cluster (Prometheus)."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.execution.work import ShardResult
from pipeline.messages.progress import LOG
from pipeline.messages.words import counted
from pipeline.store.metrics import Metrics, write_metrics
from pipeline.store.presence import HEARTBEAT_S
from pipeline.store.records import PHASES
from pipeline.store.run_directory import RunDirectory

STOP_S = 2.0  # that the end of a command waits for a look at the cluster


@dataclass(frozen=True)
class PoolState:
    """How a pool of actors stands.

    Attributes:
        wanted, running: actors.
        limited_by: why fewer run than are wanted; "" where all do.
        nodes: names of the cluster's nodes that are up, by their ids.
    """

    wanted: int
    running: int
    limited_by: str = ""
    nodes: Mapping[str, str] = field(default_factory=dict)


class Meter:
    """The counts of a command; a thread of its own writes them, as the driver may wait for a shard for long."""

    def __init__(self) -> None:
        self._look: Callable[[], PoolState] | None = None
        self._publish: Callable[[Metrics], None] = lambda metrics: None
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._rows, self._shards, self._found, self._failures = 0, 0, 0, 0
        self._seconds = dict.fromkeys(("prepare", "attribute", "complete"), 0.0)
        self._actor_s, self._of_actor = dict.fromkeys(PHASES, 0.0), Counter[str]()
        self._nodes: list[str] = []
        self._pool: PoolState | None = None
        self._held_s = 0.0  # of the actors together, while attributing
        self._phase, self._since = "prepare", time.monotonic()

    @contextlib.contextmanager
    def kept(self, directory: RunDirectory) -> Iterator[None]:
        """Within this context the counts are written beside a store, every HEARTBEAT_S and at the end."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(HEARTBEAT_S):
                self._see()
                self._write(directory)

        keeping = threading.Thread(target=keep, name="meter", daemon=True)
        keeping.start()
        try:
            yield
        finally:
            ended.set()
            keeping.join(STOP_S)
            self._write(directory)

    @contextlib.contextmanager
    def watching(self, look: Callable[[], PoolState], publish: Callable[[Metrics], None]) -> Iterator[None]:
        """Within this context a pool of actors is looked at, and `publish` is told of all that is written."""
        self._look, self._publish = look, publish
        try:
            yield
        finally:
            self._look = None
            # A look that is under way would start a Ray of its own when this one is gone.
            if self._looking.acquire(timeout=STOP_S):
                self._looking.release()

    @contextlib.contextmanager
    def attributing(self) -> Iterator[None]:
        """The time within this context is that of the shards, the time after it that of completing the store."""
        self._enter("attribute")
        try:
            yield
        finally:
            self._enter("complete")

    def count(self, result: ShardResult) -> None:
        """What became of a shard."""
        with self._lock:
            if result.error:
                self._failures += 1
            elif result.is_found:
                self._found += 1
            else:
                self._shards += 1
                self._rows += result.n_rows
                self._of_actor[result.worker] += result.n_rows
                for phase in PHASES:
                    self._actor_s[phase] += getattr(result, f"{phase}_s")

    def note_node(self, text: str) -> None:
        """A node joined, was lost, or was left out."""
        with self._lock:
            self._nodes.append(text)

    def _see(self) -> None:
        with self._looking:
            if (look := self._look) is None:
                return
            pool = look()
        for text in changes(self._pool.nodes if self._pool else pool.nodes, pool.nodes):
            LOG.info(text)
            self.note_node(text)
        self._pool = pool

    def _enter(self, phase: str) -> None:
        """Time until now belongs to the phase before."""
        with self._lock:
            now = time.monotonic()
            self._seconds[self._phase] += now - self._since
            if self._phase == "attribute":
                self._held_s += (now - self._since) * (self._pool.running if self._pool else 1)
            self._phase, self._since = phase, now

    def _write(self, directory: RunDirectory) -> None:
        self._enter(self._phase)
        metrics = self._metrics(directory.command.id)
        with contextlib.suppress(OSError):  # the backend fails: the work will meet that, or the next time succeeds
            write_metrics(directory.run, metrics)
        self._publish(metrics)

    def _metrics(self, command: str) -> Metrics:
        with self._lock:
            device_s, pool = self._actor_s["device"], self._pool
            return Metrics(
                command=command,
                time=time.time(),
                rows=self._rows,
                shards=self._shards,
                shards_found=self._found,
                failures=self._failures,
                seconds=_rounded(self._seconds),
                actor_seconds=_rounded(self._actor_s),
                device_busy_share=round(device_s / max(self._held_s, device_s), 4) if device_s else None,
                actors_wanted=pool.wanted if pool else None,
                actors_running=pool.running if pool else None,
                limited_by=pool.limited_by if pool else "",
                nodes=list(self._nodes),
                rows_by_actor=dict(self._of_actor),
            )


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """What to say of nodes that came and went; names by their ids."""
    now = f"{counted(len(after), 'node')} up"
    for node in sorted(before.keys() - after.keys()):
        yield f"node {before[node]} is lost, {now}; others compute the shards that it had begun"
    for node in sorted(after.keys() - before.keys()):
        yield f"node {after[node]} has joined, {now}"


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(took, 3) for phase, took in seconds.items()}
