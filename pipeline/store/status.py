"""How a run stands, from its protocol files alone: no cluster is asked, and nothing is written."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.messages.errors import STOPPED_BY, UserError
from pipeline.messages.progress import duration
from pipeline.messages.visible import in_lines
from pipeline.messages.words import counted
from pipeline.planning.plan import Plan
from pipeline.store.attributes import plan_of, read_attributes
from pipeline.store.backends.base import StoredFile
from pipeline.store.metrics import read_metrics
from pipeline.store.presence import HEARTBEAT_S, SILENT_S, SeenCommand, read_commands
from pipeline.store.records import DoneRecord
from pipeline.store.run_directory import UNDER_WAY, RunDirectory

WINDOW_S = 600.0  # speed is that of the last ten minutes
LATE_S = 3 * HEARTBEAT_S  # after which the silence of a command is told
N_NEWEST = 64  # done records that say which hosts do how much
N_NAMED = 20  # failures and the like that the text names
SLOW = 2.0  # times as slow as others
LONG, LONG_S = 5.0, 60.0  # times as long as others took, and seconds at least
_OF_SIGNALS = {str(exit_code): text for exit_code, text in STOPPED_BY.items()}  # as version 0.1 wrote them


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        store: its url.
        state: preparing, under way, stopped (no command works on it), "done, not completed yet" or complete.
        rows, shards: of the run; None while the input is being read.
        rows_done, shards_done: of them.
        rows_per_second: over the last minutes; None where nothing was committed in them.
        seconds_left: at that speed.
        seconds_since_last: since a shard was committed; None where none is.
        in_work: shards that processes work on, or were killed over since the command began; 0 where none works on it.
        failures: shards that were given up, a line each.
        seconds_silent: since a command that works on it, or seems to, gave a sign of life; None where none does.
        rows_per_second_by_host: how the speed is made up, from the newest done records.
        rows_per_second_by_actor: the same by host:process.
        broken: devices that broke in the midst of a shard, a line each.
        stragglers: actors that are slower than others, and shards that take longer, a line each.
        actors_wanted, actors_running: of the command that works; None where it has not said so, or has no Ray.
        limited_by: why fewer run than are wanted.
        nodes: that joined, were lost or left out since that command began, a line each.
        error: what ended the last command before it was through; None where nothing did, or one is at work.
    """

    store: str
    state: str
    rows: int | None = None
    shards: int | None = None
    rows_done: int = 0
    shards_done: int = 0
    rows_per_second: float | None = None
    seconds_left: float | None = None
    seconds_since_last: float | None = None
    in_work: int = 0
    failures: list[str] = field(default_factory=list)
    error: str | None = None
    seconds_silent: float | None = None
    rows_per_second_by_host: dict[str, float] = field(default_factory=dict)
    rows_per_second_by_actor: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    stragglers: list[str] = field(default_factory=list)
    actors_wanted: int | None = None
    actors_running: int | None = None
    limited_by: str = ""
    nodes: list[str] = field(default_factory=list)

    @property
    def is_going_on(self) -> bool:
        """Whether a command works on the run, as far as can be seen."""
        return self.seconds_silent is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        if self.rows is None:
            return in_lines([f"{self.store}: {self.state}", *self._of_silence(), *self._of_command()])
        line = f"{self.store}: {self.state}, {self.shards_done} of {self.shards} shards"
        line += f" ({self.rows_done} of {self.rows} rows)"
        if self.state == "complete":
            return in_lines([line])
        if self.rows_per_second is not None:
            line += f", {self.rows_per_second:.1f} rows/s over the last minutes"
        if self.seconds_left is not None:
            line += f", {duration(self.seconds_left)} left"
        if self.seconds_since_last is not None:
            line += f", the last shard {duration(self.seconds_since_last)} ago"
        lines = [line, f"in work: {counted(self.in_work, 'shard')}"] if self.in_work else [line]
        lines += [*self._of_pool(), *self._of_silence()]
        lines += [f"failed: {failure}" for failure in self.failures[:N_NAMED]]
        if len(self.failures) > N_NAMED:
            lines.append(f"failed: {len(self.failures) - N_NAMED} more")
        return in_lines([*lines, *self._of_command()])

    def _of_pool(self) -> list[str]:
        lines = []
        if self.actors_wanted is not None:
            limit = f"; limited by {self.limited_by}" if self.limited_by else ""
            lines.append(f"actors: {self.actors_running} of {self.actors_wanted} are up{limit}")
        speeds = {"host": self.rows_per_second_by_host, "actor": self.rows_per_second_by_actor}
        lines += [f"by {name}: {_named(by)}" for name, by in speeds.items() if len(by) > 1]
        lines += [f"broken: {text}" for text in self.broken[:N_NAMED]]
        lines += [f"slow: {text}" for text in self.stragglers[:N_NAMED]]
        return lines + self.nodes[-N_NAMED:]

    def _of_silence(self) -> list[str]:
        if self.seconds_silent is None or self.seconds_silent <= LATE_S:
            return []
        silent = duration(self.seconds_silent)
        return [f"no sign of life of its command for {silent}: it may have died (certain after {duration(SILENT_S)})"]

    def _of_command(self) -> list[str]:
        return [] if self.error is None else [f"the last command ended: {self.error}"]


def read_status(directory: RunDirectory, now: float | None = None) -> Status:
    """How the run of a store stands; `now` is in seconds since 1970 by the backend's clock.

    Raises:
        UserError: there is neither a store nor a run.
    """
    plan = directory.read_plan()
    has_begun = plan is not None or directory.run.size("claim") is not None
    attributes = _attributes(directory, has_begun)
    if attributes is not None and attributes["complete"]:
        plan = plan_of(attributes)
        return Status(directory.url, "complete", plan.n_rows, plan.n_shards, plan.n_rows, plan.n_shards)
    if not has_begun and attributes is None:
        raise UserError(f"{directory.url} does not exist, and no run of it has begun")
    if not has_begun:
        raise UserError(f"{directory.url} is not complete, and {directory.run.url} is gone: what is done is not known")
    now = time.time() if now is None else now
    commands = read_commands(directory.run, now)
    is_at_work = not all(command.is_gone for command in commands)
    error = None if is_at_work else _end_of_last(directory, commands)
    silent = min((max(0.0, now - seen.time) for seen in commands if not seen.is_gone), default=None)
    if plan is None or not directory.prepared:
        return Status(directory.url, "preparing" if is_at_work else "stopped", error=error, seconds_silent=silent)
    began = max((seen.command.began for seen in commands if not seen.is_gone), default=0.0)
    entries = [entry for entry in directory.run.files("done/") if entry.key.endswith(".json")]
    times = np.array([entry.modified for entry in entries])
    rows = np.array([_rows(plan, entry.key) for entry in entries], dtype=np.int64)
    attempts = list(directory.run.files("attempts/"))
    in_work = {entry.key.partition("/")[2].partition("-")[0] for entry in attempts}
    failures = [failure.error for failure in directory.failures()]
    status = status_of(directory.url, plan, times, rows, len(in_work), failures, now, is_at_work, error, began)
    if silent is not None and silent > LATE_S:
        status = replace(status, seconds_left=None)
    newest = [entries[i].key for i in np.argsort(-times)[:N_NEWEST]] if status.rows_per_second else []
    records = list(_records(directory, newest))
    speed = status.rows_per_second or 0.0
    status = replace(
        status,
        seconds_silent=silent,
        rows_per_second_by_host=shares(speed, [record.worker.rpartition(":")[0] for record in records]),
        rows_per_second_by_actor=shares(speed, [record.worker for record in records]),
        broken=directory.broken_devices(),
        stragglers=[*slow_actors(records), *slow_shards(records, attempts, now)] if is_at_work else [],
    )
    metrics = read_metrics(directory.run)
    if metrics is None or metrics.command not in {seen.command.id for seen in commands if not seen.is_gone}:
        return status
    pool = (metrics.actors_wanted, metrics.actors_running, metrics.limited_by)
    return replace(status, actors_wanted=pool[0], actors_running=pool[1], limited_by=pool[2], nodes=metrics.nodes)


def _named(speeds: Mapping[str, float]) -> str:
    """The fastest first: a 2.0 rows/s, b 1.0 rows/s; and 3 more."""
    fastest = sorted(speeds.items(), key=lambda each: (-each[1], each[0]))
    more = f"; and {len(fastest) - N_NAMED} more" if len(fastest) > N_NAMED else ""
    return ", ".join(f"{name} {speed:.1f} rows/s" for name, speed in fastest[:N_NAMED]) + more


def shares(speed: float, names: Sequence[str]) -> dict[str, float]:
    """A speed, shared out by how often each name comes."""
    return {name: speed * names.count(name) / len(names) for name in dict.fromkeys(names)}


def slow_actors(records: Sequence[DoneRecord]) -> Iterator[str]:
    """Actors that take SLOW times as long for a row as the middle one of all."""
    by_actor: dict[str, list[float]] = {}
    for record in records:
        by_actor.setdefault(record.worker, []).append(record.seconds / (record.stop - record.start))
    took = {actor: float(np.median(seconds)) for actor, seconds in by_actor.items()}
    usual = sorted(took.values())[(len(took) - 1) // 2] if took else 0.0
    for actor, seconds in sorted(took.items()):
        if seconds > SLOW * usual:
            yield f"{actor} takes {seconds:.3g} s for a row, the middle one of {len(took)} actors {usual:.3g} s"


def slow_shards(records: Sequence[DoneRecord], attempts: Sequence[StoredFile], now: float) -> Iterator[str]:
    """Shards that have been in work for LONG times as long as others took, and not only for seconds."""
    if not records:
        return
    usual = float(np.median([record.seconds for record in records]))
    for entry in sorted(attempts, key=lambda entry: entry.modified):
        age, shard = now - entry.modified, entry.key.partition("/")[2].partition("-")[0]
        if shard.isdecimal() and age > max(LONG * usual, LONG_S):
            yield (
                f"shard {int(shard)} has been in work for {duration(age)}, others took {duration(usual)}: it is slow, "
                f"or its process was killed"
            )


def _records(directory: RunDirectory, keys: Sequence[str]) -> Iterator[DoneRecord]:
    """Done records, but for those that are damaged or gone."""
    for key in keys:
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            yield DoneRecord.from_json(directory.run.read(key))


def _end_of_last(directory: RunDirectory, commands: Sequence[SeenCommand]) -> str | None:
    """What ended the last command before it was through, where none is at work."""
    result, ended, named = directory.read_result(), 0.0, None
    if result is not None and result.get("state") != UNDER_WAY:
        ended = max((entry.modified for entry in directory.run.files("result.json")), default=0.0)
        named = result.get("command")
    for gone in commands:
        # A command that is killed on its way out has said why it ends, and may have given signs of life after that.
        if gone.time > ended and asdict(gone.command) != named:
            return f"{gone.command} was killed, or its machine stopped"
    if result is None:
        return None
    if result.get("state") == UNDER_WAY:
        return "it was killed, or its machine stopped"
    error = result.get("error")
    return None if error is None else _OF_SIGNALS.get(str(error), str(error))


def _attributes(directory: RunDirectory, has_begun: bool) -> dict[str, Any] | None:
    """Attributes of the store; None where a run has begun whose store is missing, not yet whole, or damaged."""
    try:
        return read_attributes(directory.store)
    except UserError:
        if not has_begun:
            raise
        return None


def status_of(
    url: str,
    plan: Plan,
    times: np.ndarray,
    rows: np.ndarray,
    in_work: int,
    failures: Sequence[str],
    now: float,
    is_at_work: bool,
    error: str | None = None,
    began: float = 0.0,
) -> Status:
    """The same as a function of values; see `Status`.

    Args:
        times: (D,) when each of the D done shards was committed, seconds since 1970.
        rows: (D,) rows of each.
        is_at_work: whether a command is.
        began: when the newest command at work did, whose start-up is no part of the speed.
    """
    n_done = int(rows.sum())
    if len(times):
        now = max(now, float(times.max()))  # the clock of the backend may be ahead
    since = now - float(times.max()) if len(times) else None
    recent = times > max(now - WINDOW_S, began)
    # The first shard in the window began before it: its rows are not counted, the time from its end on is.
    speed = None
    if recent.sum() >= 2:
        first = int(np.flatnonzero(recent)[times[recent].argmin()])
        elapsed = max(now - float(times[first]), 1e-3)
        speed = float(rows[recent].sum() - rows[first]) / elapsed
    if not is_at_work:
        speed, in_work = None, 0
    left = (plan.n_rows - n_done) / speed if speed else None
    state = "done, not completed yet" if n_done == plan.n_rows else "under way" if is_at_work else "stopped"
    of_run = (plan.n_rows, plan.n_shards, n_done, len(times))
    return Status(url, state, *of_run, speed, left, since, in_work, list(failures), error)


def _rows(plan: Plan, key: str) -> int:
    name = key.rpartition("/")[2].removesuffix(".json")
    return len(plan.shard(int(name))) if re.fullmatch("[0-9]{8,15}", name) and int(name) < plan.n_shards else 0
