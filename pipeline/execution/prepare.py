"""What is decided before the first shard: the input is read into a store in the making, and the run is planned.

Nothing lies at the store's path before the whole input has been found good.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from dlshap_core.batch_size import auto_batch_size
from dlshap_core.heads import INCOMPLETE
from pipeline.config import dataset_args
from pipeline.config.contrasts import Weights
from pipeline.config.registry import plugin_code
from pipeline.config.schema import Config
from pipeline.config.settings import value_settings
from pipeline.execution.device import Machine, device_kind, require_numbers
from pipeline.execution.gpu_memory import on_device
from pipeline.execution.preflight import Preflight, not_exact, run_preflight, with_model
from pipeline.execution.probe import Edges, take
from pipeline.execution.versions import describe, installed_code
from pipeline.inputs.facts import InputFacts
from pipeline.inputs.ingest import Ingested, Sink, ingest, signature, to_store
from pipeline.inputs.open import Source, open_source
from pipeline.messages.progress import LOG, RowProgress
from pipeline.models.load import LoadedModel
from pipeline.models.own_files import named
from pipeline.models.target_names import digest, plain
from pipeline.planning.bit_rounding import MANTISSA_BITS
from pipeline.planning.extra_inputs import ExtraInputs, describe_extra_inputs, extra_input_names, strand_notes
from pipeline.planning.fingerprint import make_fingerprint
from pipeline.planning.plan import Plan
from pipeline.planning.shards import n_shards, select
from pipeline.references.base import Draw, ResolvedReferences
from pipeline.references.resolve import load_references, resolve_references, unused
from pipeline.store.records import FileRecord
from pipeline.store.template import StagedStore

S = TypeVar("S", bound=Sink)


def fingerprint_of(
    config: Config,
    loaded: LoadedModel,
    facts: InputFacts,
    machine: Machine,
    references: ResolvedReferences,
    batch_size: int,
) -> dict[str, Any]:
    """What the values of this run depend on."""
    values = value_settings(config)
    return make_fingerprint(
        model=loaded.identity,
        data={
            "sha256": facts.sha256,
            "rows": facts.n_rows,
            "length": facts.length,
            **dict(zip(extra_input_names(len(facts.args)), facts.args, strict=True)),
        },
        settings={
            **values,
            **({"model._target_": named(str(target))} if (target := values.get("model._target_")) else {}),
            "engine.targets": plain(loaded.asked(config.targets)),
            **({"model.target_names": digest(loaded.target_names)} if loaded.target_names else {}),
            **references.fingerprint,
            "engine.batch_size": batch_size,
            "store.precision_bits": config.store.precision_bits or MANTISSA_BITS,
            "dataset.alleles": config.dataset.rows_per_group > 1,
            **_plugins(config),
        },
        machine={
            "device": "any" if config.cluster.mixed_devices == "allow" else machine.kind,
            "dlshap": importlib.metadata.version("dlshap"),
            "code": installed_code(),
            "torch": torch.__version__,
        },
    )


def _plain(target: int | Weights) -> int | dict[str, float]:
    return target if isinstance(target, int) else {str(place): weight for place, weight in target.items()}


def _labels(preflight: Preflight) -> list[str]:
    """Of the targets, where these are more than their places."""
    labels = list(preflight.labels)
    return [] if labels == [str(target) for target in preflight.targets] else labels


def _not_judged(preflight: Preflight) -> list[int]:
    """The targets whose contributions do not sum to the difference, by the design of their head."""
    return [at for at, heads in enumerate(preflight.heads) if INCOMPLETE.intersection(heads.split(","))]


def _plugins(config: Config) -> dict[str, str]:
    """The code of installed packages that takes part, beside the model's own."""
    chosen = {"model": config.model.name, "references": config.references.name}
    hashes = {group: plugin_code(group, name) for group, name in chosen.items()}
    return {f"{group}.code": sha256 for group, sha256 in hashes.items() if sha256 is not None}


def resolve_batch_size(
    config: Config,
    facts: InputFacts,
    machine: Machine,
    references: ResolvedReferences,
    planned: int | None = None,
    most: int | None = None,
) -> int:
    """Pairs in a batch; auto is resolved once: a resumed run uses what was `planned`. `most` fit the device."""
    if config.engine.batch_size != "auto":
        return int(config.engine.batch_size)
    return planned or auto_batch_size(config.model.length_of(facts.length), references.n, machine.device, most)


def make_plan(
    config: Config,
    loaded: LoadedModel,
    ingested: Ingested,
    machine: Machine,
    references: ResolvedReferences,
    preflight: Preflight,
) -> Plan:
    """Everything resolved, but for the probe."""
    facts, not_judged = ingested.facts, _not_judged(preflight)
    completeness = len(not_judged) < len(preflight.targets)
    batch_size = resolve_batch_size(config, facts, machine, references, most=preflight.pairs_that_fit)
    return Plan(
        n_rows=facts.n_rows,
        length=facts.length,
        targets=[_plain(target) for target in preflight.targets],
        target_labels=_labels(preflight),
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
        completeness=completeness,
        not_judged=not_judged if completeness else [],
        warning_threshold=config.engine.warning_threshold,
        relative_threshold=config.engine.relative_threshold,
        folds=list(loaded.labels),
        per_fold=config.store.per_fold,
        spread=config.store.spread and references.n > 1,
        null_difference=config.store.null_difference,
        rows_per_group=config.dataset.rows_per_group,
        reverse_complement=config.engine.reverse_complement == "average",
        args=ingested.extra_inputs,
        precision_bits=config.store.precision_bits or MANTISSA_BITS,
        random_state=config.random_state,
        spot_check=config.engine.spot_check,
        decisions=preflight.decisions,
        split=list(preflight.fit.split),
        fingerprint=fingerprint_of(config, loaded, facts, machine, references, batch_size),
    )


@dataclass(frozen=True)
class ResolvedRun(Generic[S]):
    """A run whose input has been read.

    Attributes:
        plan: of the run, without its probe.
        source, references, preflight, ingested: what it follows from.
        sink: that took the good rows.
        notes: what to tell of the run beside the notes of the model and of the input, a line each.
        read_s: seconds that reading the input took.
    """

    plan: Plan
    source: Source
    references: ResolvedReferences
    preflight: Preflight
    ingested: Ingested
    sink: S
    notes: list[str]
    read_s: float

    def draw(self) -> Draw:
        """Draws the references of some rows."""
        return draw_from(self.plan, self.references.pool)


def draw_from(plan: Plan, pool: np.ndarray | None) -> Draw:
    """Draws the references of some rows of a plan, of these sequences if of any."""

    def given() -> np.ndarray:
        assert pool is not None  # it is asked for where references are drawn from one
        return pool

    return load_references(plan, given)


def resolve_run(
    config: Config,
    loaded: LoadedModel,
    machine: Machine,
    open_sink: Callable[[np.ndarray, ExtraInputs], S],
) -> ResolvedRun[S]:
    """Read the whole input, try the model on its first sequence, and make the plan.

    Args:
        config, loaded, machine: the run.
        open_sink: called with the codes (L,) and the extra inputs of the first good row; takes all of them.

    Raises:
        UserError: bad input, a model that cannot be attributed, or run.shards names shards that the input does not
            have.
    """
    begun: list[tuple[Preflight, S, float]] = []

    def begin(codes: np.ndarray, name: str, extra_inputs: ExtraInputs) -> S:
        started = time.perf_counter()
        preflight = _try(config, loaded, machine, (codes, name, extra_inputs), progress.step)
        progress.step(None)
        begun.append((preflight, open_sink(codes, extra_inputs), time.perf_counter() - started))
        return begun[0][1]

    config.references.require_files()
    require_numbers(config.engine.dtype, machine.device)
    started = time.perf_counter()
    source = open_source(config.dataset)
    with RowProgress("reading", None) as progress:
        ingested = ingest(source, config.dataset, begin, progress.advance)
    preflight, sink, preflight_s = begun[0]
    read_s = time.perf_counter() - started - preflight_s
    select(n_shards(ingested.n_rows, config.store.rows_per_shard), config.run.shards)
    references = resolve_references(config.references, ingested.facts)
    plan = make_plan(config, loaded, ingested, machine, references, preflight)
    notes = [*preflight.notes, *preflight.fit.notes, *references.notes, *_setting_notes(config, plan)]
    for line in notes:
        LOG.info(line)
    return ResolvedRun(plan, source, references, preflight, ingested, sink, notes, read_s)


def _try(
    config: Config,
    loaded: LoadedModel,
    machine: Machine,
    first: tuple[np.ndarray, str, ExtraInputs],
    step: Callable[[str], None],
) -> Preflight:
    """The preflight on the first row (its codes, name and extra inputs), where the device is."""
    codes, name, extra_inputs = first
    given: dict[str, Any] = {"codes": codes, "name": name, "config": config, "device": machine.device}
    if machine.elsewhere is None:
        given["step"] = step
    else:
        step(f"trying the model on {machine}")
    return with_model(config, loaded, machine, partial(run_preflight, extra_inputs=extra_inputs, **given))


def _setting_notes(config: Config, plan: Plan) -> list[str]:
    notes = []
    if plan.reverse_complement:
        notes += strand_notes([dataset_args.parse(arg).text for arg in config.dataset.args], plan.args, plan.length)
    line = unused(config.references)
    return notes if line is None else [*notes, line]


def stage(path: Path, config: Config, loaded: LoadedModel, machine: Machine) -> tuple[Plan, dict[str, FileRecord]]:
    """Read the input into a store in the making, and plan the run.

    Args:
        path: where to make it.
        config, loaded, machine: the run.

    Returns:
        The plan, and a record of the files made; see `StagedStore.finish`.

    Raises:
        UserError: as of `resolve_run`; the caller removes what was begun.
    """

    def open_sink(codes: np.ndarray, extra_inputs: ExtraInputs) -> Edges:
        kinds = describe_extra_inputs(extra_inputs)
        return Edges(StagedStore(path, len(codes), config.store.rows_per_shard, kinds), config.dataset.rows_per_group)

    before = signature(config.dataset)
    run = resolve_run(config, loaded, machine, open_sink)
    plan = replace(run.plan, probe=_probe(run, loaded, machine))
    attributes = {
        **_attributes(config, loaded, machine, plan, run.preflight, run.references),
        "input": to_store(before, run.ingested.facts),
        "notes": [*loaded.notes, *run.ingested.notes, *run.notes],
        "dataset": {
            **{key: value for key, value in run.source.description.items() if key != "notes"},
            "n_left_out": run.ingested.n_bad,
            "left_out": run.ingested.problems,
        },
    }
    return plan, run.sink.store.finish(plan, attributes, run.references.pool)


def _attributes(
    config: Config,
    loaded: LoadedModel,
    machine: Machine,
    plan: Plan,
    preflight: Preflight,
    references: ResolvedReferences,
) -> dict[str, Any]:
    """What the store keeps of a run beside its input."""
    return {
        "title": "DeepLIFT/SHAP attributions of DNA sequences",
        "config": config.absolute(),
        "fingerprint": plan.fingerprint,
        "plan": {key: value for key, value in plan.to_values().items() if key != "fingerprint"},
        "model": loaded.description,
        "references": references.to_store(),
        "target_names": list(preflight.names),
        "head": loaded.description["head"],
        "target_heads": list(preflight.heads),
        "audit": preflight.audit.to_dict(),
        "not_exact": not_exact(preflight.audit),
        "seed": plan.seed,
        "random_state": plan.random_state,
        "batch_size": plan.batch_size,
        "device": machine.kind,
        "bit_identical": config.cluster.mixed_devices != "allow",
        "spot_check": plan.spot_check,
        **describe(),
    }


def _probe(run: ResolvedRun[Edges], loaded: LoadedModel, machine: Machine) -> dict[str, Any]:
    """The probe of the plan; computed on this machine, whatever the device of the run."""
    here = replace(run.plan, device=machine.device_here)
    with on_device(loaded.folds, here.device):
        return take(loaded.folds, here, run.draw(), run.sink.rows(), device_kind(here.device))
