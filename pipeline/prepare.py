"""One pass over the input: every row is checked, hashed and written; then the store is laid out and the run is planned.

Nothing lies at the store's path before the whole input has been found good.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dlshap_core.sequences import UNKNOWN
from pipeline.commits import FileRecord
from pipeline.config import Config, DatasetConfig, to_dict
from pipeline.errors import UserError
from pipeline.fingerprint import InputHash, auto_batch_size, make_fingerprint
from pipeline.hardware import describe
from pipeline.models import LoadedModel
from pipeline.plan import Plan
from pipeline.references import Settled, require_files, settle
from pipeline.sources import Rows, Source
from pipeline.store import TABLE, StagedStore
from pipeline.trial import Trial, not_exact, try_model

N_NAMED = 3  # rows left out that the store names


class Sink(Protocol):
    """Takes the good rows one by one."""

    def append(self, **row: Any) -> None: ...


class Nowhere:
    """Takes rows and keeps none: for a pass that only hashes."""

    def append(self, **row: Any) -> None:
        """Drop it."""


@dataclass
class Intake:
    """What the pass over the input found.

    Attributes:
        n_rows: good rows.
        length: bases in each.
        n_bad: rows that cannot be used.
        problems: of the first few of them.
        base_counts: (4,) int64; how often A, C, G and T occur in the good rows.
        input_hash: over the good rows.
    """

    n_rows: int = 0
    length: int = 0
    n_bad: int = 0
    problems: list[str] = field(default_factory=list)
    base_counts: np.ndarray = field(default_factory=lambda: np.zeros(UNKNOWN, dtype=np.int64))
    input_hash: InputHash = field(default_factory=InputHash)

    def reject(self, problem: str) -> None:
        """Count a bad row."""
        self.n_bad += 1
        if len(self.problems) < N_NAMED:
            self.problems.append(problem)


@dataclass(frozen=True)
class Machine:
    """Where the run is computed: the device's name (cpu, cuda, ...) and its kind (see hardware.py)."""

    device: str
    kind: str

    @property
    def device_here(self) -> str:
        """The same, or the CPU where the computing is done on other machines and this one has no GPU."""
        return self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu"


def take_in(
    source: Source,
    dataset: DatasetConfig,
    begin: Callable[[np.ndarray, str], Sink],
    progress: Callable[[int], None],
) -> Intake:
    """Check and hash every row, and hand the good ones on.

    Args:
        source: the input.
        dataset: `length`, `min_known` and `on_bad` are what a row is judged by.
        begin: called with the codes and name of the first good row, returns where rows go.
        progress: told the number of rows of each batch.

    Raises:
        UserError: bad rows, unless dataset.on_bad=skip; or no good row at all.
    """
    intake, sink = Intake(length=dataset.length or 0), None
    for rows in source.batches():
        for i, codes in enumerate(rows.codes):
            problem = rows.problem[i] or judge(codes, _where(rows, i), intake, dataset)
            if problem is not None or codes is None:
                intake.reject(problem or f"{_where(rows, i)} has no sequence")
                continue
            if sink is None:
                sink = begin(codes, rows.name[i])
                intake.length = len(codes)
            row = {name: getattr(rows, name)[i] for name in TABLE}
            intake.input_hash.add(codes, **{**row, **{name: int(row[name]) for name in ("source_row", "start", "end")}})
            intake.base_counts += np.bincount(codes, minlength=UNKNOWN + 1)[:UNKNOWN]
            intake.n_rows += 1
            if intake.n_bad == 0 or dataset.on_bad == "skip":
                sink.append(codes=codes, **row)
        progress(len(rows))
    _refuse_bad_rows(intake, dataset)
    return intake


def first_good(source: Source, dataset: DatasetConfig) -> tuple[np.ndarray, str]:
    """(L,) codes and name of the first row that can be used.

    Raises:
        UserError: there is none.
    """
    intake = Intake(length=dataset.length or 0)
    for rows in source.batches():
        for i, codes in enumerate(rows.codes):
            problem = rows.problem[i] or judge(codes, _where(rows, i), intake, dataset)
            if problem is None and codes is not None:
                return codes, rows.name[i]
            intake.reject(problem or f"{_where(rows, i)} has no sequence")
    _refuse_bad_rows(intake, dataset)
    raise UserError("the input holds no sequences")


def judge(codes: np.ndarray | None, where: str, intake: Intake, dataset: DatasetConfig) -> str | None:
    """Why (L,) codes cannot be used; None if they can."""
    if codes is None or len(codes) == 0:
        return f"{where} has no sequence"
    if intake.length and len(codes) != intake.length:
        expected = "dataset.length" if dataset.length else "the first sequence"
        return f"{where} has {len(codes)} bases where {expected} has {intake.length}"
    known = np.count_nonzero(codes != UNKNOWN) / len(codes)
    if known < dataset.min_known or known == 0:
        return f"{where}: {known:.0%} of its bases are known (not N), less than dataset.min_known={dataset.min_known}"
    return None


def _where(rows: Rows, i: int) -> str:
    return f"row {rows.source_row[i]} {rows.name[i]!r}"


def _refuse_bad_rows(intake: Intake, dataset: DatasetConfig) -> None:
    if intake.n_bad and (dataset.on_bad == "error" or intake.n_rows == 0):
        total = intake.n_rows + intake.n_bad
        more = f"; and {intake.n_bad - 1} more" if intake.n_bad > 1 else ""
        fix = ". dataset.on_bad=skip leaves them out" if intake.n_rows else ""
        raise UserError(f"{intake.n_bad} of {total} rows cannot be used: {intake.problems[0]}{more}{fix}")
    if intake.n_rows == 0:
        raise UserError("the input holds no sequences")


def fingerprint_of(
    config: Config, loaded: LoadedModel, intake: Intake, machine: Machine, references: Settled, batch_size: int
) -> dict[str, Any]:
    """What the values of this run depend on."""
    return make_fingerprint(
        model={
            "weights": loaded.weights_hash,
            "code": loaded.code_hash,
            "head": loaded.description["head"],
            "output": loaded.description["output"],
        },
        data={"sha256": intake.input_hash.hexdigest(), "rows": intake.n_rows, "length": intake.length},
        settings={
            **references.fingerprint,
            "seed": config.seed,
            "engine.targets": config.engine.targets,
            "engine.dtype": config.engine.dtype,
            "engine.batch_size": batch_size,
            "engine.threads": config.engine.threads,
            "engine.deterministic": config.engine.deterministic,
            "store.rows_per_shard": config.store.rows_per_shard,
        },
        machine={
            "device": "any" if config.cluster.mixed_devices == "allow" else machine.kind,
            "engine": importlib.metadata.version("dlshap"),
            "torch": torch.__version__,
        },
    )


def settle_batch_size(
    config: Config, intake: Intake, machine: Machine, references: Settled, planned: int | None = None
) -> int:
    """Pairs in a batch; auto is settled once: a run that goes on uses what was `planned`."""
    if config.engine.batch_size != "auto":
        return int(config.engine.batch_size)
    return planned or auto_batch_size(intake.length, references.n, machine.device)


def make_plan(
    config: Config, loaded: LoadedModel, intake: Intake, machine: Machine, references: Settled, targets: list[int]
) -> Plan:
    """Everything resolved."""
    batch_size = settle_batch_size(config, intake, machine, references)
    return Plan(
        n_rows=intake.n_rows,
        length=intake.length,
        targets=targets,
        references=references.plan,
        n_references=references.n,
        seed=config.seed,
        batch_size=batch_size,
        rows_per_shard=config.store.rows_per_shard,
        dtype=config.engine.dtype,
        threads=config.engine.threads,
        deterministic=config.engine.deterministic,
        device=machine.device,
        device_kind=machine.kind,
        judged=loaded.sums_to_delta,
        warning_threshold=config.engine.warning_threshold,
        fingerprint=fingerprint_of(config, loaded, intake, machine, references, batch_size),
    )


FILES = {
    "model": ["checkpoint"],
    "dataset": ["path", "genome", "loci"],
    "references": ["path", "genome"],
    "store": ["path"],
}


def absolute(config: dict[str, Any]) -> dict[str, Any]:
    """Settings with the paths of files as they are from anywhere."""
    found = {**config}
    for group, names in FILES.items():
        paths = {
            name: config[group][name] for name in names if config[group][name] and "://" not in config[group][name]
        }
        found[group] = {
            **config[group],
            **{name: str(Path(path).expanduser().absolute()) for name, path in paths.items()},
        }
    return found


def stage(
    path: Path,
    config: Config,
    source: Source,
    loaded: LoadedModel,
    machine: Machine,
    progress: Callable[[int], None],
) -> tuple[Plan, dict[str, FileRecord]]:
    """Read the input into a store in the making, and plan the run.

    Args:
        path: where to make it.
        config, source, loaded, machine: the run.
        progress: told the number of rows of each batch.

    Returns:
        The plan, and a record of the files made; see `StagedStore.finish`.

    Raises:
        UserError: bad input, or a model that cannot be attributed; the caller removes what was begun.
    """
    trials: list[Trial] = []
    staged: list[StagedStore] = []

    def begin(codes: np.ndarray, name: str) -> Sink:
        trials.append(try_model(loaded, codes, name, config, machine.device_here))
        staged.append(StagedStore(path, len(codes), config.store.rows_per_shard))
        return staged[0]

    require_files(config.references)
    intake = take_in(source, config.dataset, begin, progress)
    references = settle(config.references, intake)
    plan = make_plan(config, loaded, intake, machine, references, trials[0].targets)
    attributes = {
        "title": "DeepLIFT/SHAP attributions of DNA sequences",
        "config": absolute(to_dict(config)),
        "fingerprint": plan.fingerprint,
        "plan": {key: value for key, value in asdict(plan).items() if key != "fingerprint"},
        "model": loaded.description,
        "dataset": {**source.description, "n_left_out": intake.n_bad, "left_out": intake.problems},
        "head": loaded.description["head"],
        "audit": trials[0].audit.to_dict(),
        "not_exact": not_exact(trials[0].audit),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "device": machine.kind,
        "bit_identical": config.cluster.mixed_devices != "allow",
        **describe(),
    }
    return plan, staged[0].finish(plan, attributes, references.pool)
