"""What a run would cost, before anything is spent: its input is read, a few of its rows go through its model, and the
rest is arithmetic (see cost.py). Nothing is written but, as by a run, the audit's cache.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.analysis.reference_spread import ARRAYS_READ, WANTED, advised, certainty
from pipeline.config import limits
from pipeline.config.schema import Config
from pipeline.config.settings import expanded
from pipeline.execution.device import shards_in_flight
from pipeline.execution.ensemble import Attributed, attribute_rows
from pipeline.execution.executor import executor_of
from pipeline.execution.gpu_memory import on_device
from pipeline.execution.pair_memory import LONG
from pipeline.execution.pipes import refuse_pipes
from pipeline.execution.preflight import with_model
from pipeline.execution.prepare import draw_from, resolve_run
from pipeline.execution.probe import N_REFERENCES
from pipeline.execution.shard import shard_values
from pipeline.messages.errors import RunError, UserError
from pipeline.messages.progress import LOG, duration
from pipeline.messages.secrets import one_line
from pipeline.messages.visible import in_lines
from pipeline.messages.words import counted, size
from pipeline.models.load import LoadedModel, load_chosen
from pipeline.planning.cost import Cost, Workload, cost
from pipeline.planning.extra_inputs import extra_input_names
from pipeline.planning.plan import Plan
from pipeline.references.base import ShardReferences
from pipeline.store.attributes import read_attributes
from pipeline.store.backends.local import LocalBackend
from pipeline.store.codec import ShardCodec
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import TABLE
from pipeline.store.template import StagedStore

TIMED_S = 3.0  # device seconds that timing aims at
MAX_TIMED_ROWS = 64
LONGEST_S = 30.0  # that the references of one row may take before two of them stand for all


@dataclass(frozen=True)
class CostEstimate:
    """What was found and what follows from it.

    Attributes:
        workload: what is to be done.
        cost: what it costs.
        device: that rows were timed on, and whose it is.
        timed_rows: how many.
        row_s: seconds of each, references drawn within.
        correlation: of the attributions of the median timed row with those of infinitely many references, expected
            from their spread; None where that is not kept, or only two references were timed.
        enough_references: for a correlation of 0.99 of that row; None where there is no telling.
        memory: lines about what a pair of long sequences takes.
        price_per_hour: of what one actor runs on; None where it was not given.
        price: of all actors from the command to its end, in the same currency.
        actors_are_known: whether their number follows from the settings; else the wall time is of one.
        left_out: bad rows.
        free_bytes: of the disk that the store goes to; None where it is an object store.
    """

    workload: Workload
    cost: Cost
    device: str
    timed_rows: int
    row_s: float
    actors_are_known: bool
    left_out: int
    correlation: float | None = None
    enough_references: int | None = None
    memory: tuple[str, ...] = ()
    price_per_hour: float | None = None
    price: float | None = None
    free_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        work, cost = self.workload, self.cost
        last = work.n_rows - (work.n_shards - 1) * work.rows_per_shard
        sizes = f"{work.rows_per_shard} rows" + (f", the last {last}" if last != work.rows_per_shard else "")
        actors = counted(min(work.actors, work.n_shards), "actor")
        unknown = "" if self.actors_are_known else ", as the number of the cluster's actors is not known here"
        left_out = f"; {counted(self.left_out, 'bad row')} left out" if self.left_out else ""
        pairs = [f"{cost.pairs:,}: rows", counted(work.n_references, "reference")]
        pairs += [counted(n, noun) for n, noun in ((work.n_folds, "fold"), (work.n_strands, "strand")) if n > 1]
        files = f"{cost.objects:,} files or objects"
        is_short = self.free_bytes is not None and self.free_bytes < cost.store_bytes + cost.run_bytes
        short = f"; only {size(self.free_bytes or 0)} are free there: give another store.path" if is_short else ""
        pool = f"{_hours(cost.pool_s)} of {actors} in all, each held from the start of the command to its end"
        price = f"; {self.price:,.2f} at {self.price_per_hour:g} an hour" if self.price is not None else ""
        lines = [
            ("rows", f"{work.n_rows:,} of {work.length:,} bases{left_out}"),
            ("shards", f"{cost.shards:,} of {sizes}; {duration(cost.shard_s)} each"),
            ("pairs", f"{' x '.join(pairs)}; {counted(work.n_targets, 'target')}"),
            ("device", f"{_hours(cost.device_s)} of {self.device} ({counted(self.timed_rows, 'row')} timed)"),
            *(("spread", line) for line in self._certainty()),
            *(("memory", line) for line in self.memory),
            ("store", f"{size(cost.store_bytes)}, and {size(cost.run_bytes)} of records, in {files}{short}"),
            (
                "wall",
                f"{duration(cost.wall_s)} with {actors}{unknown}; {duration(cost.read_s)} of it to read the input",
            ),
            ("pool", f"{pool}{price}"),
            ("resume", f"an interruption loses at most {duration(cost.resume_s)}"),
        ]
        return in_lines(f"{name:<8}{text}" for name, text in lines)

    def _certainty(self) -> list[str]:
        if self.correlation is None:
            return []
        line = (
            f"correlation of {self.correlation:.2g} with infinitely many references, from the spread over "
            f"{counted(self.workload.n_references, 'reference')} (median of {counted(self.timed_rows, 'row')})"
        )
        if self.enough_references is None:
            return [f"{line}; most of them are noise alone"]
        return [f"{line}; {WANTED} takes references.n_shuffles={self.enough_references}"]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else duration(seconds)


class _FirstRows:
    """Keeps the first rows, and drops the others."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, **row: Any) -> None:
        if len(self.rows) < MAX_TIMED_ROWS:
            self.rows.append(row)

    def stacked(self, name: str) -> np.ndarray:
        """(n, ...) values of the rows that are kept."""
        return np.stack([row[name] for row in self.rows])


def estimate_config(config: Config, price_per_hour: float | None = None) -> CostEstimate:
    """What a run of a configuration would cost on devices like this machine's.

    Args:
        config: of the run.
        price_per_hour: of what one actor runs on, in any currency.

    Raises:
        UserError: what `run` refuses before its first shard.
    """
    refuse_pipes(config)
    read_attributes(RunDirectory(config.store.path, config.store.options).store)  # refuses what is not a store
    with executor_of(config) as executor, limits.using(config.limits):
        machine, loaded = executor.machine_to_try(), load_chosen(config)
        run = resolve_run(config, loaded, machine, lambda *first: _FirstRows())
        given = {name: run.sink.stacked(name) for name in ("codes", *extra_input_names(len(run.plan.args)))}
        timed = with_model(config, loaded, machine, partial(measure, run.plan, given, run.references.pool))
    actors = executor.n_actors(machine.device)
    work = workload(run.plan, actors or 1, executor.uses_ray)
    found = cost(work, timed.row_s, timed.row_bytes)
    slower = max(0.0, run.read_s - found.read_s)  # the input may be on a slow disk, or compressed
    wall_s = found.wall_s + slower
    pool_s = found.pool_s / found.wall_s * wall_s
    return CostEstimate(
        workload=work,
        cost=replace(found, wall_s=wall_s, pool_s=pool_s, read_s=found.read_s + slower),
        device=str(machine),
        timed_rows=timed.n_rows,
        row_s=timed.row_s,
        actors_are_known=actors is not None,
        left_out=run.ingested.n_bad,
        correlation=timed.correlation,
        enough_references=timed.enough_references,
        memory=run.preflight.fit.notes,
        price_per_hour=price_per_hour,
        price=None if price_per_hour is None else pool_s / 3600 * price_per_hour,
        free_bytes=_free_at(config.store.path),
    )


def _free_at(store: str) -> int | None:
    """Bytes free on the disk of a store that need not be there yet; None where it is on no disk."""
    if "://" in store and not store.startswith("file://"):
        return None
    path = expanded(store.removeprefix("file://")).absolute()
    return shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free


@dataclass(frozen=True)
class Timed:
    """What first rows gave: how many they were, seconds and bytes of each, and the rest as in `CostEstimate`."""

    n_rows: int
    row_s: float
    row_bytes: float
    correlation: float | None = None
    enough_references: int | None = None


def measure(plan: Plan, given: Mapping[str, np.ndarray], pool: np.ndarray | None, loaded: LoadedModel) -> Timed:
    """Time first rows through the model as a worker would, and compress what comes of them.

    Args:
        plan: of the run.
        given: codes (n, L) and extra inputs of the rows.
        pool: sequences of which references are drawn, where they are.
        loaded: the model.

    Raises:
        UserError: the rows do not go through the model.
    """
    draw = draw_from(plan, pool)
    codes, *extra_inputs = given.values()

    def attribute_first(n: int, plan: Plan = plan) -> tuple[ShardReferences, Attributed, float]:
        started = time.perf_counter()
        references = ShardReferences(draw(codes[:n], 0).values[:, : plan.n_references])
        if shards_in_flight(plan.device) > 1:  # another shard has the device meanwhile
            started = time.perf_counter()
        result = attribute_rows(loaded.folds, plan, codes[:n], references, [values[:n] for values in extra_inputs])
        return references, result, time.perf_counter() - started

    group, n_batch = plan.rows_per_group, max(1, plan.batch_size // plan.n_references)
    n_batch = min(len(codes), -(-n_batch // group) * group)
    with _short_of_memory(), on_device(loaded.folds, plan.device):
        if plan.length >= LONG and plan.n_references > N_REFERENCES:
            few = replace(plan, n_references=N_REFERENCES)
            LOG.info(f"timing the first row, with {N_REFERENCES} references")
            references, result, seconds = attribute_first(group, few)
            row_s = seconds / group * plan.n_references / N_REFERENCES
            if row_s > LONGEST_S:
                found = _timed(few, given, group, shard_values(codes[:group], references, result, few), row_s)
                return replace(found, correlation=None, enough_references=None)  # too few to tell a spread by
        LOG.info(f"timing the model, on {counted(n_batch, 'row')} at a time")
        attribute_first(n_batch)  # what is compiled and cached
        batch_s = attribute_first(n_batch)[2]
        n = max(1, min(len(codes) // n_batch, round(TIMED_S / batch_s))) * n_batch
        references, result, seconds = attribute_first(n)
    return _timed(plan, given, n, shard_values(codes[:n], references, result, plan), seconds / n)


@contextlib.contextmanager
def _short_of_memory() -> Iterator[None]:
    """Errors of the first rows, of which short memory is one, as the user's."""
    try:
        yield
    except RunError:  # a device that is broken
        raise
    except RuntimeError as error:
        raise UserError(f"the first rows do not go through the model: {one_line(error)}") from error


def _timed(
    plan: Plan, given: Mapping[str, np.ndarray], n: int, values: Mapping[str, np.ndarray], row_s: float
) -> Timed:
    """Of the first n rows, that took so long each."""
    row_bytes = _bytes_of(plan, {name: rows[:n] for name, rows in given.items()}, values) / n
    if not plan.spread:
        return Timed(n, row_s, row_bytes)
    attribution, sd = (values[name].reshape(-1, plan.length) for name in ARRAYS_READ)
    sure = certainty(attribution, sd, plan.n_references)
    known = sure.correlation[~np.isnan(sure.correlation)]
    return Timed(n, row_s, row_bytes, float(np.median(known)) if len(known) else None, advised(sure.enough))


def _bytes_of(plan: Plan, given: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> int:
    """Bytes of some rows, of what the input gives and of what is computed, compressed as a shard would be."""
    n = len(given["codes"])
    few = replace(plan, n_rows=n, rows_per_shard=n, fingerprint={})
    table = {name: "" if kind is str else 0 for name, kind in TABLE.items()}
    with tempfile.TemporaryDirectory() as folder:
        staged = StagedStore(Path(folder) / "store.zarr", plan.length, n, plan.args)
        for row in zip(*given.values(), strict=True):
            staged.append(**dict(zip(given, row, strict=True)), **table)
        staged.finish(few, {}, None)
        codec = ShardCodec(LocalBackend(staged.path))
        return sum(len(codec.encode(name, few.shard(0), rows)) for name, rows in {**given, **values}.items())


def workload(plan: Plan, actors: int, on_ray: bool) -> Workload:
    """What a plan asks for, in the terms of cost.py."""
    return Workload(
        n_rows=plan.n_rows,
        length=plan.length,
        n_targets=len(plan.targets),
        n_references=plan.n_references,
        n_folds=len(plan.folds),
        rows_per_shard=plan.rows_per_shard,
        n_strands=2 if plan.reverse_complement else 1,
        per_fold=plan.per_fold,
        spread=plan.spread,
        null_difference=plan.null_difference,
        rows_per_group=plan.rows_per_group,
        n_args=len(plan.args),
        actors=actors,
        on_ray=on_ray,
    )
