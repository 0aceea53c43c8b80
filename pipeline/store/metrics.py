"""What a command counts while it works, in `<store>.run/metrics.json`: for `dlshap status`, and for programs."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.planning.plain_values import require_fields
from pipeline.store.backends.base import Backend
from pipeline.store.json_files import parse_object

FILE = "metrics.json"


@dataclass(frozen=True)
class Metrics:
    """The counts of one command; of several commands on one store, those of the one that wrote last.

    Attributes:
        command: its id, as in `commands/`.
        time: when this was written, in seconds since 1970 by the driver's clock.
        rows, shards: that this command has computed.
        shards_found: that others had done when their turn came.
        failures: shards that failed.
        seconds: of the driver, by phase: prepare, attribute, complete.
        actor_seconds: of all actors together, by phase of a shard: read, wait (for the device), device, write.
        device_busy_share: part of the actors' time in which their devices computed, or were waited for; None before the
            first shard.
        actors_wanted, actors_running: None where the command computes without Ray, or Ray has not said so yet.
        limited_by: why fewer run than are wanted; "" where all run.
        nodes: that joined the cluster, were lost, or were left out since the command began, a line each.
        rows_by_actor: rows computed, by host:process.
    """

    command: str
    time: float
    rows: int = 0
    shards: int = 0
    shards_found: int = 0
    failures: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    actor_seconds: dict[str, float] = field(default_factory=dict)
    device_busy_share: float | None = None
    actors_wanted: int | None = None
    actors_running: int | None = None
    limited_by: str = ""
    nodes: list[str] = field(default_factory=list)
    rows_by_actor: dict[str, int] = field(default_factory=dict)


def write_metrics(run: Backend, metrics: Metrics) -> None:
    """Replace the file as a whole; OSError where the backend fails."""
    run.write(FILE, (json.dumps(asdict(metrics), indent=1) + "\n").encode())


def read_metrics(run: Backend) -> Metrics | None:
    """None where there is no such file, or a damaged one."""
    try:
        values: dict[str, Any] = parse_object(run.read(FILE))
        require_fields(values, Metrics, "it")
        return Metrics(**values)
    except (FileNotFoundError, ValueError, TypeError):
        return None
