"""What a run would cost, before anything is spent: its input is read, a few of its rows go through its model, and the
rest is arithmetic (see costs.py). Nothing is written but, as by a run, the audit's cache.
"""

import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.args import Args, arg_names
from pipeline.commits import RunDirectory
from pipeline.config import ClusterConfig, Config
from pipeline.costs import Cost, Measured, Workload, cost
from pipeline.ensemble import Attributed, attribute_rows
from pipeline.errors import UserError
from pipeline.hardware import device_kind, require_numbers, resolve_device, shards_in_flight
from pipeline.intake import take_in
from pipeline.models import LoadedModel, load_model
from pipeline.one_shard import shard_values
from pipeline.places import LocalPlace
from pipeline.plan import Plan
from pipeline.prepare import Machine, make_plan
from pipeline.progress import RowProgress, duration, note
from pipeline.references import open_references, require_files, settle
from pipeline.references.base import ShardReferences
from pipeline.sources import open_source
from pipeline.store import TABLE, ShardCodec, StagedStore, read_attributes
from pipeline.trial import Trial, try_model
from pipeline.wording import counted

TIMED_S = 3.0  # device seconds that the trial aims at
MAX_TIMED_ROWS = 64


@dataclass(frozen=True)
class Estimate:
    """What was found and what follows from it.

    Attributes:
        workload: what is to be done.
        cost: what it costs.
        device: where rows were timed, and the device's kind.
        timed_rows: how many.
        row_s: seconds of each, references drawn within.
        actors_are_known: whether their number follows from the settings; else the wall time is of one.
        left_out: bad rows.
    """

    workload: Workload
    cost: Cost
    device: str
    timed_rows: int
    row_s: float
    actors_are_known: bool
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        work, cost = self.workload, self.cost
        last = work.n_rows - (work.n_shards - 1) * work.rows_per_shard
        sizes = f"{work.rows_per_shard} rows" + (f", the last {last}" if last != work.rows_per_shard else "")
        actors = counted(work.actors, "actor")
        if not self.actors_are_known:
            actors += ", as how many the cluster has is not known here"
        left_out = f"; {counted(self.left_out, 'bad row')} left out" if self.left_out else ""
        pairs = [f"{cost.pairs:,}: rows", counted(work.n_references, "reference")]
        pairs += [counted(n, noun) for n, noun in ((work.n_folds, "fold"), (work.n_strands, "strand")) if n > 1]
        hours = f"{cost.device_s / 3600:,.1f} hours" if cost.device_s >= 3600 else duration(cost.device_s)
        files = f"{cost.objects:,} files"
        lines = [
            ("rows", f"{work.n_rows:,} of {work.length:,} bases{left_out}"),
            ("shards", f"{cost.shards:,} of {sizes}; {duration(cost.shard_s)} each"),
            ("pairs", f"{' x '.join(pairs)}; {counted(work.n_targets, 'target')}"),
            ("device", f"{hours} of {self.device} ({counted(self.timed_rows, 'row')} timed)"),
            ("store", f"{size(cost.store_bytes)}, and {size(cost.run_bytes)} of records, in {files}"),
            ("wall", f"{duration(cost.wall_s)} with {actors}; {duration(cost.read_s)} of it to read the input"),
            ("resume", f"{duration(cost.resume_s)} lost by an interruption, at most"),
        ]
        return "\n".join(f"{name:<8}{text}" for name, text in lines)


class _First:
    """Keeps the first rows, and drops the others."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, **row: Any) -> None:
        if len(self.rows) < MAX_TIMED_ROWS:
            self.rows.append(row)

    def stacked(self, name: str) -> np.ndarray:
        """(n, ...) values of the rows that are kept."""
        return np.stack([row[name] for row in self.rows])


@dataclass(frozen=True)
class _Intended:
    """A run as it would be: its plan, what its references are drawn from, codes (N, L) and further inputs (N, ...) of
    its first rows, how many rows are left out, and the seconds that reading took."""

    plan: Plan
    pool: np.ndarray
    codes: np.ndarray
    args: Args
    n_left_out: int
    read_s: float


def estimate_config(config: Config) -> Estimate:
    """What a run of a configuration would cost on devices like this machine's.

    Raises:
        UserError: what `run` refuses before its first shard.
    """
    read_attributes(RunDirectory(config.store.path, config.store.options).store)  # refuses what is not a store
    elsewhere = config.cluster.address is not None and config.engine.device.startswith("cuda")
    device = resolve_device("auto" if elsewhere else config.engine.device)
    loaded = load_model(config.model)
    for line in loaded.notes:
        note(line)
    intended = _read(config, loaded, Machine(device, device_kind(device)))
    plan = intended.plan
    measured, n_timed = measure(intended, loaded)
    actors = actors_of(config.cluster, device, plan.threads)
    work = workload(plan, actors or 1, config.cluster.name != "none")
    found = cost(work, measured)
    slower = max(0.0, intended.read_s - found.read_s)  # the input may be on a slow disk, or compressed
    return Estimate(
        workload=work,
        cost=replace(found, wall_s=found.wall_s + slower, read_s=found.read_s + slower),
        device=plan.device_kind,
        timed_rows=n_timed,
        row_s=measured.row_s,
        actors_are_known=actors is not None,
        left_out=intended.n_left_out,
    )


def _read(config: Config, loaded: LoadedModel, machine: Machine) -> _Intended:
    """A pass over the input as `run` makes it, but that only the first rows are kept."""
    trials: list[Trial] = []
    sink, tried_s = _First(), 0.0

    def begin(codes: np.ndarray, name: str, args: Args) -> _First:
        nonlocal tried_s
        began = time.perf_counter()
        trials.append(try_model(loaded, codes, name, config, machine.device, args))
        tried_s = time.perf_counter() - began
        return sink

    require_files(config.references)
    require_numbers(config.engine.dtype, machine.device)
    started = time.perf_counter()
    with RowProgress("reading", None) as progress:
        intake = take_in(open_source(config.dataset), config.dataset, begin, progress.advance)
    read_s = time.perf_counter() - started - tried_s
    references = settle(config.references, intake.facts)
    plan = make_plan(config, loaded, intake.facts, machine, references, trials[0], intake.args)
    pool = np.zeros((0, plan.length), np.uint8) if references.pool is None else references.pool
    args = [sink.stacked(name) for name in arg_names(len(plan.args))]
    return _Intended(plan, pool, sink.stacked("codes"), args, intake.n_bad, read_s)


def measure(intended: _Intended, loaded: LoadedModel) -> tuple[Measured, int]:
    """Time first rows through the model as an actor would, and compress what comes of them.

    Returns:
        Seconds and bytes of a row, and how many rows that is by.

    Raises:
        UserError: the rows do not go through the model.
    """
    plan, codes, pool = intended.plan, intended.codes, intended.pool
    draw = open_references(plan, lambda: pool)

    def attribute_first(n: int) -> tuple[ShardReferences, Attributed, float]:
        started = time.perf_counter()
        references = draw(codes[:n], 0)
        if shards_in_flight(plan.device) > 1:  # another shard has the device meanwhile
            started = time.perf_counter()
        result = attribute_rows(loaded.folds, plan, codes[:n], references, [arg[:n] for arg in intended.args])
        return references, result, time.perf_counter() - started

    group, n_batch = plan.rows_per_group, max(1, plan.batch_size // plan.n_references)
    n_batch = min(len(codes), -(-n_batch // group) * group)
    try:
        attribute_first(n_batch)  # what is compiled and cached
        batch_s = attribute_first(n_batch)[2]
        n = max(1, min(len(codes) // n_batch, round(TIMED_S / batch_s))) * n_batch
        references, result, seconds = attribute_first(n)
    except RuntimeError as error:  # out of memory, for one
        raise UserError(f"the first rows do not go through the model: {' '.join(str(error).split())}") from error
    values = shard_values(codes[:n], references, result, plan)
    given = {"codes": codes, **dict(zip(arg_names(len(intended.args)), intended.args, strict=True))}
    return Measured(seconds / n, _bytes_of(plan, {name: rows[:n] for name, rows in given.items()}, values) / n), n


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
        codec = ShardCodec(LocalPlace(staged.path))
        return sum(len(codec.encode(name, few.shard(0), rows)) for name, rows in {**given, **values}.items())


def workload(plan: Plan, actors: int, on_ray: bool) -> Workload:
    """What a plan asks for, in the terms of costs.py."""
    return Workload(
        n_rows=plan.n_rows,
        length=plan.length,
        n_targets=len(plan.targets),
        n_references=plan.n_references,
        n_folds=len(plan.folds),
        rows_per_shard=plan.rows_per_shard,
        n_strands=2 if plan.reverse_complement else 1,
        per_fold=plan.per_fold,
        rows_per_group=plan.rows_per_group,
        n_args=len(plan.args),
        actors=actors,
        on_ray=on_ray,
    )


def actors_of(cluster: ClusterConfig, device: str, threads: int) -> int | None:
    """How many actors the settings make, or this machine has room for; None where only a cluster elsewhere knows."""
    if cluster.name == "none":
        return 1
    if cluster.max_actors is not None:
        return cluster.max_actors
    if cluster.actors != "auto":
        return int(cluster.actors)
    if cluster.name != "local":
        return None
    cores = len(os.sched_getaffinity(0)) // threads
    if device == "cpu":
        return max(1, cores)
    each = 1.0 if cluster.gpus_per_actor == "auto" else float(cluster.gpus_per_actor)
    return max(1, min(cores, int(torch.cuda.device_count() / each))) if each else max(1, cores)


def size(n_bytes: float) -> str:
    """An amount of bytes for people: 3.2 MB, 1.4 TB."""
    unit = min(int(math.log10(max(n_bytes, 1)) // 3), 5)
    return f"{n_bytes / 1000**unit:.{0 if unit == 0 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[unit]}"
