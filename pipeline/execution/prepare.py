"""What is decided before the first shard: the input is read into a store in the making, and the run is planned.

Nothing lies at the store's path before the whole input has been found good.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import entries
from pipeline.args import Args, arg_names, args_of
from pipeline.commits import FileRecord
from pipeline.config import Config, to_dict
from pipeline.fingerprint import InputFacts, auto_batch_size, make_fingerprint
from pipeline.hardware import describe, require_numbers
from pipeline.intake import Sink, rows_per_group, signature, take_in, to_store
from pipeline.models import LoadedModel
from pipeline.plan import Plan
from pipeline.references import Settled, require_files, settle
from pipeline.rounding import MANTISSA_BITS
from pipeline.sources import Source
from pipeline.store import StagedStore
from pipeline.trial import Trial, not_exact, try_model


@dataclass(frozen=True)
class Machine:
    """Where the run is computed: the device's name (cpu, cuda, ...) and its kind (see hardware.py)."""

    device: str
    kind: str

    @property
    def device_here(self) -> str:
        """The same, or the CPU where the computing is done on other machines and this one has no GPU."""
        return self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu"


def fingerprint_of(
    config: Config, loaded: LoadedModel, facts: InputFacts, machine: Machine, references: Settled, batch_size: int
) -> dict[str, Any]:
    """What the values of this run depend on."""
    return make_fingerprint(
        model={
            "weights": loaded.weights_hash,
            "code": loaded.code_hash,
            "head": loaded.description["head"],
            "output": loaded.description["output"],
        },
        data={
            "sha256": facts.sha256,
            "rows": facts.n_rows,
            "length": facts.length,
            **dict(zip(arg_names(len(facts.args)), facts.args, strict=True)),
        },
        settings={
            **references.fingerprint,
            "seed": config.seed,
            "engine.targets": config.engine.targets,
            "engine.dtype": config.engine.dtype,
            "engine.batch_size": batch_size,
            "engine.threads": config.engine.threads,
            "engine.deterministic": config.engine.deterministic,
            "engine.reverse_complement": config.engine.reverse_complement,
            "store.per_fold": config.store.per_fold,
            "store.precision_bits": config.store.precision_bits or MANTISSA_BITS,
            "dataset.alleles": rows_per_group(config.dataset) > 1,
            "store.rows_per_shard": config.store.rows_per_shard,
        },
        machine={
            "device": "any" if config.cluster.mixed_devices == "allow" else machine.kind,
            "engine": importlib.metadata.version("dlshap"),
            "torch": torch.__version__,
        },
    )


def settle_batch_size(
    config: Config,
    facts: InputFacts,
    machine: Machine,
    references: Settled,
    planned: int | None = None,
    most: int | None = None,
) -> int:
    """Pairs in a batch; auto is settled once: a run that goes on uses what was `planned`. `most` fit the device."""
    if config.engine.batch_size != "auto":
        return int(config.engine.batch_size)
    return planned or auto_batch_size(facts.length, references.n, machine.device, most)


def make_plan(
    config: Config,
    loaded: LoadedModel,
    facts: InputFacts,
    machine: Machine,
    references: Settled,
    trial: Trial,
    args: list[dict[str, Any]],
) -> Plan:
    """Everything resolved."""
    batch_size = settle_batch_size(config, facts, machine, references, most=trial.pairs_that_fit)
    return Plan(
        n_rows=facts.n_rows,
        length=facts.length,
        targets=trial.targets,
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
        folds=list(loaded.labels),
        per_fold=config.store.per_fold,
        rows_per_group=rows_per_group(config.dataset),
        reverse_complement=config.engine.reverse_complement == "average",
        args=args,
        precision_bits=config.store.precision_bits or MANTISSA_BITS,
        fingerprint=fingerprint_of(config, loaded, facts, machine, references, batch_size),
    )


PATHS = {  # settings of each group that name files or folders
    "model": ["checkpoint", "bias"],
    "dataset": ["path", "genome", "loci", "vcf", "blacklist"],
    "references": ["path", "genome"],
    "cluster": ["code"],
    "store": ["path"],
}


def absolute(config: dict[str, Any]) -> dict[str, Any]:
    """Settings with the paths of files as they are from anywhere."""
    found = {group: dict(values) if isinstance(values, dict) else values for group, values in config.items()}
    found["dataset"]["args"] = entries.absolute(config["dataset"]["args"])
    for group, names in PATHS.items():
        for name in names:
            found[group][name] = _absolute(config[group][name])
    return found


def _absolute(path: Any) -> Any:
    """A path, several, or none."""
    if isinstance(path, list):
        return [_absolute(one) for one in path]
    return str(Path(path).expanduser().absolute()) if path and "://" not in path else path


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

    def begin(codes: np.ndarray, name: str, args: Args) -> Sink:
        trials.append(try_model(loaded, codes, name, config, machine.device_here, args))
        staged.append(StagedStore(path, len(codes), config.store.rows_per_shard, args_of(args)))
        return staged[0]

    require_files(config.references)
    require_numbers(config.engine.dtype, machine.device)
    before = signature(config.dataset)
    intake = take_in(source, config.dataset, begin, progress)
    references = settle(config.references, intake.facts)
    plan = make_plan(config, loaded, intake.facts, machine, references, trials[0], intake.args)
    attributes = {
        "title": "DeepLIFT/SHAP attributions of DNA sequences",
        "config": absolute(to_dict(config)),
        "fingerprint": plan.fingerprint,
        "plan": {key: value for key, value in asdict(plan).items() if key != "fingerprint"},
        "model": loaded.description,
        "input": to_store(before, intake.facts),
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
