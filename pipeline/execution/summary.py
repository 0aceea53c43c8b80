"""What a command says when it is done, to people and to programs."""

from dataclasses import dataclass
from typing import Any

from pipeline.messages.progress import duration
from pipeline.messages.visible import in_lines
from pipeline.planning.convergence import describe_deltas

N_NAMED = 3  # operations that a summary names


@dataclass(frozen=True)
class Summary:
    """What a command did, and where the store stands.

    Attributes:
        store: its path.
        complete: whether every row is there.
        rows, shards: of the whole store.
        rows_computed: by this command.
        shards_done: of the whole store.
        seconds: that this command took.
        rows_per_second: while attributing.
        deltas: the run's convergence deltas; None while the store is not complete.
        failures: of the shards that were given up, a line each.
        not_exact: operations of the model that are attributed otherwise than by an exact rule.
    """

    store: str
    complete: bool
    rows: int
    shards: int
    rows_computed: int
    shards_done: int
    seconds: float
    rows_per_second: float
    deltas: dict[str, Any] | None
    not_exact: list[str]
    failures: list[str]

    def text(self) -> str:
        """For people, a few lines."""
        if not self.complete:
            done = f"{self.shards_done} of {self.shards} shards are done"
            return in_lines([f"{self.store}: {done}, {self.rows_computed} rows now"])
        if self.rows_computed:
            took = duration(self.seconds)
            speed = f"{self.rows_computed} of them in {took}, {self.rows_per_second:.1f} rows/s while attributing"
        else:
            speed = "finished before, nothing to do"
        lines = [f"{self.store}: {self.rows} rows, complete ({speed})"]
        lines += [] if self.deltas is None else [describe_deltas(self.deltas)]
        if self.not_exact:
            named = "; ".join(self.not_exact[:N_NAMED])
            more = f"; and {len(self.not_exact) - N_NAMED} more" if len(self.not_exact) > N_NAMED else ""
            lines.append(f"not by an exact rule: {named}{more}")
        return in_lines(lines)
