"""A run from beginning to end: agree on the plan, work on the shards that are left, and complete the store."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dlshap_core.audit import Audit
from pipeline.actor import Work, Worker
from pipeline.commits import RunDirectory
from pipeline.config import Config, to_dict
from pipeline.deltas import QUANTILES, combine, complaint, exceed, quantile
from pipeline.errors import RunError, UserError
from pipeline.fingerprint import differences
from pipeline.hardware import device_kind, resolve_device
from pipeline.models import LoadedModel, load_model
from pipeline.plan import Plan
from pipeline.prepare import Machine, Nowhere, fingerprint_of, first_good, stage, take_in
from pipeline.progress import RowProgress, note
from pipeline.references import settle, unused
from pipeline.shards import Shard, gaps, plan_shards, remaining, select
from pipeline.sources import open_source
from pipeline.store import complete_store, damaged_files, read_attributes, read_names
from pipeline.summary import Summary
from pipeline.trial import audit_model


def run_config(config: Config) -> Summary:
    """Do what a configuration describes, or what is left of it.

    Raises:
        UserError: bad input or configuration; nothing is left behind.
        RunError: the work failed, and what is committed stays; or convergence deltas are over the threshold, and
            engine.on_nonconvergence=fail.
    """
    summary = _run(config)
    threshold = config.engine.warning_threshold
    if summary.deltas is not None and exceed(summary.deltas, threshold):
        if config.engine.on_nonconvergence == "fail":
            raise RunError(f"{summary.store} is complete, but {complaint(summary.deltas, threshold)}")
        note(f"warning: {complaint(summary.deltas, threshold)}")
    return summary


def _run(config: Config) -> Summary:
    started = time.monotonic()
    path = Path(config.store.path).absolute()
    read_attributes(path)  # refuses what is not a store before anything is loaded
    with contextlib.ExitStack() as stack:
        machine = _find_machine(config, stack)
        loaded = load_model(config.model)
        plan = agree_on_plan(config, path, loaded, machine)
        attributes = read_attributes(path)
        assert attributes is not None
        if n_left_out := attributes["dataset"]["n_left_out"]:
            note(f"{n_left_out} bad rows of the input are left out, as dataset.on_bad=skip says; the store lists them")
        if attributes["complete"]:
            return _finished(path, plan, attributes, started)
        shards = plan_shards(plan.n_rows, plan.rows_per_shard)
        chosen = select(shards, config.run.shards)
        directory = RunDirectory(path)
        todo = remaining(chosen, directory.done(shards))
        n_before = sum(map(len, chosen)) - sum(map(len, todo))
        if todo:
            _connect(config, machine, stack)
        began = time.monotonic()
        with RowProgress("attributing", n_before + sum(map(len, todo)), n_before) as progress:
            for n_rows in _work(config, plan, path, todo):
                progress.advance(n_rows)
        return finalize(path, plan, shards, sum(map(len, todo)), began, started, loaded.description["head"])


def audit_config(config: Config) -> Audit:
    """The audit of a configuration's model on the first sequence of its input that can be used; always a new one.

    Raises:
        UserError: bad input or configuration, or the model fails.
    """
    elsewhere = config.cluster.address is not None and config.engine.device.startswith("cuda")
    device = resolve_device("auto" if elsewhere else config.engine.device)
    loaded = load_model(config.model)
    codes, name = first_good(open_source(config.dataset), config.dataset)
    return audit_model(loaded, codes, name, config, device)


def _find_machine(config: Config, stack: contextlib.ExitStack) -> Machine:
    """Where the numbers will be computed; for a cluster elsewhere, as the cluster says."""
    if config.cluster.name == "local" and config.cluster.address is not None:
        from pipeline.job import connected, remote_device

        stack.enter_context(connected(config.cluster, config.engine.threads))
        return Machine(*remote_device(config.engine.device))
    device = resolve_device(config.engine.device)
    return Machine(device, device_kind(device))


def _connect(config: Config, machine: Machine, stack: contextlib.ExitStack) -> None:
    if config.cluster.name == "local" and config.cluster.address is None:
        from pipeline.job import connected  # Ray takes seconds to import, and is not needed without work

        stack.enter_context(connected(config.cluster, config.engine.threads))


def agree_on_plan(config: Config, path: Path, loaded: LoadedModel, machine: Machine) -> Plan:
    """The plan of the run: the one that is there, if it is the same run, or a new one with a prepared store.

    Raises:
        UserError: the store belongs to another run, or the input is bad.
    """
    attributes = read_attributes(path)
    if attributes is not None and attributes.get("complete"):
        _require_same(path, attributes["fingerprint"], config, loaded, machine)
        return Plan(**attributes["plan"], fingerprint=attributes["fingerprint"])
    directory = RunDirectory(path)
    if not directory.prepared:
        with directory.claim(lambda who: note(f"waiting for {who}, which is preparing {path}")):
            return _prepare(config, path, directory, loaded, machine)
    return _resume(config, path, directory, loaded, machine)


def _prepare(config: Config, path: Path, directory: RunDirectory, loaded: LoadedModel, machine: Machine) -> Plan:
    """Under the claim: make the store, unless someone else just did or stopped right before saying so."""
    if path.exists():
        if directory.read_plan() is None:
            directory.discard()
            raise UserError(f"{path} is not complete and its plan is gone; remove it, or give another store.path")
        directory.mark_prepared()
        return _resume(config, path, directory, loaded, machine)
    if (line := unused(config.references)) is not None:
        note(line)
    try:
        with RowProgress("reading", None) as progress:
            plan = stage(directory.staged, config, open_source(config.dataset), loaded, machine, progress.advance)
    except ValueError:
        directory.discard()
        raise
    directory.publish(plan)
    return plan


def _resume(config: Config, path: Path, directory: RunDirectory, loaded: LoadedModel, machine: Machine) -> Plan:
    plan = directory.read_plan()
    if plan is None or not path.exists():
        raise UserError(f"{directory.path} is there without its store; remove it to begin again")
    _require_same(path, plan.fingerprint, config, loaded, machine)
    return plan


def _require_same(
    path: Path, fingerprint: dict[str, Any], config: Config, loaded: LoadedModel, machine: Machine
) -> None:
    """Refuse to go on with a store whose values depend on something else than this run's would."""
    with RowProgress("comparing the input", None) as progress:
        intake = take_in(open_source(config.dataset), config.dataset, lambda codes, name: Nowhere(), progress.advance)
    references = settle(config.references, intake)
    different = differences(fingerprint, fingerprint_of(config, loaded, intake, machine, references))
    if different:
        raise UserError(f"{path} belongs to another run: {'; '.join(different)}. Give another store.path, or remove it")


def _work(config: Config, plan: Plan, path: Path, shards: Sequence[Shard]) -> Iterator[int]:
    """Work on shards, here or on Ray; yields the rows of each that is committed."""
    if not shards:
        return
    model = to_dict(config.model)
    if model["checkpoint"] is not None:
        model["checkpoint"] = os.path.abspath(model["checkpoint"])
    work = Work(str(path), plan, model, [os.getcwd()], config.cluster.mixed_devices == "allow")
    if config.cluster.name == "none":
        worker = Worker(work)
        for shard in shards:
            worker.do(shard)
            yield len(shard)
    else:
        from pipeline.job import run_shards

        yield from run_shards(work, shards, config.cluster)


def finalize(
    path: Path, plan: Plan, shards: list[Shard], rows_computed: int, began: float, started: float, head: str
) -> Summary:
    """Complete the store if every shard is done, and say how things stand.

    Args:
        path: of the store.
        plan, shards: of the run.
        rows_computed: by this command.
        began, started: when attributing and when the command began (monotonic, seconds).
        head: the model's.

    Raises:
        RunError: the done records contradict each other or the files.
    """
    directory = RunDirectory(path)
    with directory.claim(lambda who: note(f"waiting for {who}, which is completing {path}")):
        done = directory.done(shards)
        deltas = None
        attributes = read_attributes(path)
        seconds = time.monotonic() - began
        if attributes is not None and attributes["complete"]:
            deltas = attributes["run"]["deltas"]
        elif len(done) == len(shards):
            records = [done[shard.index] for shard in shards]
            missing = gaps([(record.start, record.stop) for record in records], plan.n_rows)
            if missing:
                raise RunError(f"the done records of {path} do not tile its rows: {missing[:3]}")
            deltas = _deltas(path, plan, combine(record.deltas for record in records), head)
            run = {"deltas": deltas, "shard_seconds": sum(record.seconds for record in records), "rows": plan.n_rows}
            convergence = (
                "not judged" if not plan.judged else "failed" if exceed(deltas, plan.warning_threshold) else "passed"
            )
            complete_store(path, plan, [record.files for record in records], {"run": run, "convergence": convergence})
        summary = Summary(
            store=str(path),
            complete=deltas is not None,
            rows=plan.n_rows,
            shards=len(shards),
            rows_computed=rows_computed,
            shards_done=len(done),
            seconds=time.monotonic() - started,
            rows_per_second=rows_computed / max(seconds, 1e-9),
            deltas=deltas,
            not_exact=(attributes or {}).get("not_exact", []),
        )
        directory.write_result(asdict(summary))
    return summary


def _deltas(path: Path, plan: Plan, total: dict[str, Any], head: str) -> dict[str, Any]:
    """The convergence deltas of the run, for the store and for people."""
    return {
        "judged": plan.judged,
        "head": head,
        "threshold": plan.warning_threshold,
        "share_over": total["n_over"] / total["n"],
        "n_not_finite": total["n_not_finite"],
        **{name: quantile(total, share) for name, share in QUANTILES.items()},
        "largest": total["largest"],
        "worst": read_names(path, [total["worst_row"]])[0],
        "worst_row": total["worst_row"],
    }


def _finished(path: Path, plan: Plan, attributes: dict[str, Any], started: float) -> Summary:
    shards = plan_shards(plan.n_rows, plan.rows_per_shard)
    n_shards = len(shards)
    if damaged := damaged_files(path, shards):
        raise RunError(
            f"{path} was complete, but {len(damaged)} of its files are gone or of another size, {damaged[0]} first; "
            f"remove the store and run again"
        )
    seconds = time.monotonic() - started
    return Summary(
        store=str(path),
        complete=True,
        rows=plan.n_rows,
        shards=n_shards,
        rows_computed=0,
        shards_done=n_shards,
        seconds=seconds,
        rows_per_second=0.0,
        deltas=attributes["run"]["deltas"],
        not_exact=attributes.get("not_exact", []),
    )
