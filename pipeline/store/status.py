"""How a run stands, from its protocol files alone: no cluster is asked, and nothing is written."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.commits import RunDirectory
from pipeline.errors import EXIT_INTERRUPTED, EXIT_STOPPED, UserError
from pipeline.plan import Plan
from pipeline.progress import duration
from pipeline.reader import plan_of
from pipeline.store import read_attributes
from pipeline.wording import counted

WINDOW_S = 600.0  # speed is that of the last ten minutes
N_NAMED = 20  # failures that the text names
SIGNALS = {str(EXIT_STOPPED): "stopped by SIGTERM", str(EXIT_INTERRUPTED): "stopped by Ctrl-C"}


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        store: its url.
        state: preparing, under way, stopped (nobody seems to work on it), "done, not completed yet" or complete.
        rows, shards: of the run; None while the input is being read.
        rows_done, shards_done: of them.
        rows_per_second: over the last minutes; None where nothing was committed in them.
        seconds_left: at that speed.
        seconds_since_last: since a shard was committed; None where none is.
        in_work: shards that processes work on, or were killed over.
        failures: shards that were given up, a line each.
        error: what ended the last command before it was through; None where nothing did, or one works since then.
    """

    store: str
    state: str
    rows: int | None
    shards: int | None
    rows_done: int
    shards_done: int
    rows_per_second: float | None
    seconds_left: float | None
    seconds_since_last: float | None
    in_work: int
    failures: list[str]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        if self.rows is None:
            return "\n".join([f"{self.store}: {self.state}", *self._of_command()])
        line = f"{self.store}: {self.state}, {self.shards_done} of {self.shards} shards"
        line += f" ({self.rows_done} of {self.rows} rows)"
        if self.state == "complete":
            return line
        if self.rows_per_second is not None:
            line += f", {self.rows_per_second:.1f} rows/s over the last minutes"
        if self.seconds_left is not None:
            line += f", {duration(self.seconds_left)} left"
        if self.seconds_since_last is not None:
            line += f", the last shard {duration(self.seconds_since_last)} ago"
        lines = [line, f"in work: {counted(self.in_work, 'shard')}"] if self.in_work else [line]
        lines += [f"failed: {failure}" for failure in self.failures[:N_NAMED]]
        if len(self.failures) > N_NAMED:
            lines.append(f"failed: {len(self.failures) - N_NAMED} more")
        return "\n".join([*lines, *self._of_command()])

    def _of_command(self) -> list[str]:
        return [] if self.error is None else [f"the last command ended: {self.error}"]


@dataclass(frozen=True)
class Ended:
    """The end of a command: when, by the clock of the place, and the error that it ended with."""

    time: float
    error: str | None


def look(directory: RunDirectory, now: float | None = None) -> Status:
    """How the run of a store stands.

    Args:
        directory: of the run.
        now: seconds since 1970, by the clock of the place; this machine's if not given.

    Raises:
        UserError: there is neither a store nor a run.
    """
    plan = directory.read_plan()
    has_begun = plan is not None or directory.run.size("claim") is not None
    attributes = _attributes(directory, has_begun)
    if attributes is not None and attributes["complete"]:
        plan = plan_of(attributes)
        return Status(
            directory.url, "complete", plan.n_rows, plan.n_shards, plan.n_rows, plan.n_shards, None, None, None, 0, []
        )
    if not has_begun and attributes is None:
        raise UserError(f"{directory.url} does not exist, and no run of it has begun")
    if not has_begun:
        raise UserError(f"{directory.url} is not complete, and {directory.run.url} is gone: what is done is not known")
    if plan is None or not directory.prepared:
        return Status(directory.url, "preparing", None, None, 0, 0, None, None, None, 0, [])
    entries = [entry for entry in directory.run.files("done/") if entry.key.endswith(".json")]
    times = np.array([entry.modified for entry in entries])
    rows = np.array([_rows(plan, entry.key) for entry in entries], dtype=np.int64)
    attempts = list(directory.run.files("attempts/"))
    in_work = {entry.key.partition("/")[2].partition("-")[0] for entry in attempts}
    failures = [failure.error for failure in directory.failures()]
    ended = _ended(directory)
    if ended is not None and any(entry.modified > ended.time for entry in attempts):
        ended = None
    now = time.time() if now is None else now
    return standing(directory.url, plan, times, rows, len(in_work), failures, now, ended)


def _ended(directory: RunDirectory) -> Ended | None:
    """The end of the command that ended last; None where none has, or its record is damaged."""
    for entry in directory.run.files("result.json"):
        if entry.key == "result.json":
            try:
                error = json.loads(directory.run.read(entry.key)).get("error")
            except (FileNotFoundError, ValueError, AttributeError):
                return None
            return Ended(entry.modified, SIGNALS.get(str(error), None if error is None else str(error)))
    return None


def _attributes(directory: RunDirectory, has_begun: bool) -> dict[str, Any] | None:
    """Attributes of the store; None where a run has begun whose store is not there, not yet whole, or damaged."""
    try:
        return read_attributes(directory.store)
    except UserError:
        if not has_begun:
            raise
        return None


def standing(
    url: str,
    plan: Plan,
    times: np.ndarray,
    rows: np.ndarray,
    in_work: int,
    failures: Sequence[str],
    now: float,
    ended: Ended | None = None,
) -> Status:
    """The same as a function of values.

    Args:
        url: of the store.
        plan: of the run.
        times: (D,) when each of the D done shards was committed, seconds since 1970.
        rows: (D,) rows of each.
        in_work: shards that are being worked on.
        failures: shards that were given up.
        now: seconds since 1970.
        ended: the command that ended last, unless a shard was begun since.
    """
    n_done = int(rows.sum())
    if len(times):
        now = max(now, float(times.max()))  # the clock of the place may be ahead
    since = now - float(times.max()) if len(times) else None
    recent = times > now - WINDOW_S
    # The first shard in the window began before it: its rows are not counted, the time from its end on is.
    speed = None
    if recent.sum() >= 2:
        first = int(np.flatnonzero(recent)[times[recent].argmin()])
        elapsed = max(now - float(times[first]), 1e-3)
        speed = float(rows[recent].sum() - rows[first]) / elapsed
    if ended is not None and len(times) and ended.time < float(times.max()):
        ended = None  # another one works since
    if ended is not None and not in_work:
        speed = None
    left = (plan.n_rows - n_done) / speed if speed else None
    state = "done, not completed yet" if n_done == plan.n_rows else "under way" if speed or in_work else "stopped"
    return Status(
        url,
        state,
        plan.n_rows,
        plan.n_shards,
        n_done,
        len(times),
        speed,
        left,
        since,
        in_work,
        list(failures),
        None if ended is None else ended.error,
    )


def _rows(plan: Plan, key: str) -> int:
    name = key.rpartition("/")[2].removesuffix(".json")
    return len(plan.shard(int(name))) if name.isdigit() and int(name) < plan.n_shards else 0
