"""A run from beginning to end: agree on the plan, work on the shards that are left, and complete the store."""

import contextlib
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from dlshap_core.audit import Audit
from pipeline.actor import Outcome, Work, Worker
from pipeline.commits import RunDirectory
from pipeline.config import Config, to_dict
from pipeline.deltas import QUANTILES, complaint, exceed, quantile
from pipeline.errors import RunError, UserError
from pipeline.fingerprint import InputFacts, differences
from pipeline.flight import Desk
from pipeline.hardware import device_kind, resolve_device, shards_in_flight
from pipeline.intake import Nowhere, first_good, known_facts, take_in
from pipeline.journal import Journal, journal
from pipeline.models import LoadedModel, load_model
from pipeline.models.folds import fold_paths
from pipeline.plan import Plan
from pipeline.prepare import Machine, absolute, fingerprint_of, settle_batch_size, stage
from pipeline.progress import RowProgress, note
from pipeline.reader import plan_of
from pipeline.references import settle, unused
from pipeline.resume import Standing, recorded, take_stock
from pipeline.shards import remaining, select
from pipeline.sources import open_source
from pipeline.store import ROOT, complete_store, read_attributes, read_names
from pipeline.summary import Summary
from pipeline.trial import audit_model
from pipeline.verify import wrong_sizes
from pipeline.wording import counted

ROUNDS = 2  # the second for shards whose records turn out to be wrong
MAX_FAILURES = 10  # shards that may fail before the first succeeds


def run_config(config: Config) -> Summary:
    """Do what a configuration describes, or what is left of it.

    Raises:
        UserError: bad input or configuration; nothing is left behind.
        RunError: the work failed, and what is committed stays; or convergence deltas are over the threshold, and
            engine.on_nonconvergence=fail.
    """
    summary = _run(config)
    if summary.failures:
        raise RunError(failed(summary))
    if not summary.complete and config.run.shards is None:
        raise RunError(
            f"{summary.store}: all shards were worked on, but only {summary.shards_done} of {summary.shards} are done: "
            f"something else removes or changes its files, or those of {summary.store}.run; run the same command again"
        )
    threshold = config.engine.warning_threshold
    if summary.deltas is not None and exceed(summary.deltas, threshold):
        if config.engine.on_nonconvergence == "fail":
            raise RunError(f"{summary.store} is complete, but {complaint(summary.deltas, threshold)}")
        note(f"warning: {complaint(summary.deltas, threshold)}")
    return summary


def failed(summary: Summary) -> str:
    """What to say of shards that failed."""
    n, more = len(summary.failures), ""
    if n > 1:
        more = f"; and {n - 1} more, which `dlshap status {summary.store}` lists"
    return (
        f"{n} of {summary.shards} shards failed, {summary.shards_done} are done, and the same command tries the others "
        f"again: {summary.failures[0]}{more}"
    )


def _run(config: Config) -> Summary:
    started = time.monotonic()
    directory = RunDirectory(config.store.path, config.store.options)
    _attributes(directory)  # refuses what is not a store before anything is loaded
    with contextlib.ExitStack() as stack:
        machine = _find_machine(config, stack)
        loaded = load_model(config.model)
        for line in loaded.notes:
            note(line)
        plan = agree_on_plan(config, directory, loaded, machine)
        attributes = _present(directory)
        if n_left_out := attributes["dataset"]["n_left_out"]:
            note(f"left out, as dataset.on_bad=skip says: {counted(n_left_out, 'bad row')}; the store lists them")
        if attributes["complete"]:
            return _finished(directory, plan, attributes, started)
        log = stack.enter_context(journal(directory.run, store=directory.url, rows=plan.n_rows, shards=plan.n_shards))
        stack.enter_context(_result_of_failure(directory))
        chosen = select(plan.n_shards, config.run.shards)
        directory.forget_failures(chosen)
        todo, n_rows, began = remaining(chosen, recorded(directory, plan)), 0, time.monotonic()
        is_connected = False
        for _ in range(ROUNDS):
            log.note("stock", chosen=len(chosen), todo=len(todo))
            if len(todo) and not is_connected:
                _connect(config, machine, stack)
                is_connected, began = True, time.monotonic()
            # Closed, so that nothing is still at work when Ray is shut down after an error.
            with contextlib.closing(_work(config, plan, directory, todo)) as outcomes:
                n_rows += _work_through(outcomes, plan, chosen, todo, log)
            summary, damaged = finalize(directory, plan, chosen, n_rows, began, started, loaded.description["head"])
            todo = damaged[(damaged >= chosen.start) & (damaged < chosen.stop)]
            if not len(todo):
                break
        return summary


@contextlib.contextmanager
def _result_of_failure(directory: RunDirectory) -> Iterator[None]:
    """A command that does not come to its end says so to programs too."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # the place may be what failed
            reason = " ".join(str(error).split()) or type(error).__name__
            directory.write_result({"store": directory.url, "complete": False, "error": reason})
        raise


def _work_through(outcomes: Iterator[Outcome], plan: Plan, chosen: range, todo: np.ndarray, log: Journal) -> int:
    """Follow the work, and stop it where going on makes no sense; returns the rows that were committed.

    Raises:
        RunError: the place or a machine fails, or shards fail and none succeeds.
    """
    n_todo, n_chosen = _n_rows(plan, todo), _n_rows(plan, np.arange(chosen.start, chosen.stop))
    n_done = n_failed = 0
    with RowProgress("attributing", n_chosen, n_chosen - n_todo) as progress:
        for outcome in outcomes:
            if not outcome.error:
                n_done += outcome.n_rows
                progress.advance(outcome.n_rows)
                log.note("shard", shard=outcome.shard, rows=outcome.n_rows)
                continue
            n_failed += 1
            log.note("failure", shard=outcome.shard, error=outcome.error, fatal=outcome.fatal)
            if outcome.fatal:
                raise RunError(outcome.error)
            if n_failed >= MAX_FAILURES and not n_done:
                raise RunError(f"the first {n_failed} shards failed, and none succeeded: {outcome.error}")
            if n_failed < MAX_FAILURES:
                progress.say(outcome.error)
    return n_done


def _n_rows(plan: Plan, shards: np.ndarray) -> int:
    """Rows in some shards; indices ascending."""
    full = len(shards) * plan.rows_per_shard
    has_last = len(shards) > 0 and int(shards[-1]) == plan.n_shards - 1
    return full - (plan.n_shards * plan.rows_per_shard - plan.n_rows if has_last else 0)


def audit_config(config: Config) -> Audit:
    """The audit of a configuration's model on the first sequence of its input that can be used; always a new one.

    Raises:
        UserError: bad input or configuration, or the model fails.
    """
    elsewhere = config.cluster.address is not None and config.engine.device.startswith("cuda")
    device = resolve_device("auto" if elsewhere else config.engine.device)
    loaded = load_model(config.model)
    for line in loaded.notes:
        note(line)
    codes, name, args = first_good(open_source(config.dataset), config.dataset)
    return audit_model(loaded, codes, name, config, device, args)


def _attributes(directory: RunDirectory) -> dict[str, Any] | None:
    """Attributes of the store; None where there is none, or one whose own file is not there yet or no longer."""
    if directory.store.size(ROOT) is None and directory.read_plan() is not None:
        return None
    return read_attributes(directory.store)


def _present(directory: RunDirectory) -> dict[str, Any]:
    """Attributes of a store that was there a moment ago.

    Raises:
        RunError: it is gone.
    """
    attributes = _attributes(directory)
    if attributes is None:
        raise RunError(f"{directory.url} was removed or given up meanwhile; run the same command again")
    return attributes


def _find_machine(config: Config, stack: contextlib.ExitStack) -> Machine:
    """Where the numbers will be computed; for a cluster elsewhere, as the cluster says."""
    if config.cluster.name == "address":
        from pipeline.cluster import connected, remote_device

        stack.enter_context(connected(config.cluster, config.engine.threads))
        return Machine(*remote_device(config.engine.device, config.cluster))
    device = resolve_device(config.engine.device)
    return Machine(device, device_kind(device))


def _connect(config: Config, machine: Machine, stack: contextlib.ExitStack) -> None:
    if config.cluster.name == "local":
        from pipeline.cluster import connected  # Ray takes seconds to import, and is not needed without work

        stack.enter_context(connected(config.cluster, config.engine.threads))


def agree_on_plan(config: Config, directory: RunDirectory, loaded: LoadedModel, machine: Machine) -> Plan:
    """The plan of the run: the one that is there, if it is the same run, or a new one with a prepared store.

    Raises:
        UserError: the store belongs to another run, or the input is bad.
    """
    attributes = _attributes(directory)
    if attributes is not None and attributes["complete"]:
        plan = plan_of(attributes)
        _require_same(directory, plan, config, loaded, machine)
        return plan
    if not directory.prepared:
        with _claimed(directory, "preparing"):
            return _prepare(config, directory, loaded, machine)
    return _resume(config, directory, loaded, machine)


@contextlib.contextmanager
def _claimed(directory: RunDirectory, doing: str) -> Iterator[None]:
    """Alone with the run.

    Raises:
        UserError: the place cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            claim = directory.claim(lambda who: note(f"waiting for {who}, which is {doing} {directory.url}"))
            stack.enter_context(claim)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write to {directory.run.url}: {reason}; check store.path") from error
        yield


def _prepare(config: Config, directory: RunDirectory, loaded: LoadedModel, machine: Machine) -> Plan:
    """Under the claim: make the store, unless someone else just did or stopped right before saying so."""
    if directory.store.size(ROOT) is not None:
        if directory.read_plan() is None:
            directory.discard()
            raise UserError(
                f"{directory.url} is not complete and its plan is gone; remove it, or give another store.path"
            )
        directory.mark_prepared()
        return _resume(config, directory, loaded, machine)
    if (line := unused(config.references)) is not None:
        note(line)
    with directory.staging() as staged:
        try:
            with RowProgress("reading", None) as progress:
                plan, files = stage(staged, config, open_source(config.dataset), loaded, machine, progress.advance)
        except ValueError:
            directory.discard()
            raise
        directory.publish(staged, plan, files)
    return plan


def _resume(config: Config, directory: RunDirectory, loaded: LoadedModel, machine: Machine) -> Plan:
    plan = directory.read_plan()
    if plan is not None and directory.asked_for():
        with _claimed(directory, "restoring"):
            _restore(config, directory, loaded, machine, plan)
        return plan
    if plan is None or directory.store.size(ROOT) is None:
        raise UserError(f"{directory.run.url} is there without its store; remove it to begin again")
    _require_same(directory, plan, config, loaded, machine)
    return plan


def _restore(config: Config, directory: RunDirectory, loaded: LoadedModel, machine: Machine, plan: Plan) -> None:
    """Make the damaged files of the sequences and the layout from the input again."""
    if not directory.asked_for():
        return  # someone else just did
    note(f"making {len(directory.asked_for())} damaged files of {directory.url} from the input again")
    with directory.staging() as staged:
        with RowProgress("reading", None) as progress:
            again, files = stage(staged, config, open_source(config.dataset), loaded, machine, progress.advance)
        _require_equal(directory, plan.fingerprint, again.fingerprint)
        directory.restore(staged, files)


def _require_same(directory: RunDirectory, plan: Plan, config: Config, loaded: LoadedModel, machine: Machine) -> None:
    """Refuse to go on with a store whose values depend on something else than this run's would."""
    facts = _facts(directory, config)
    references = settle(config.references, facts)
    batch_size = settle_batch_size(config, facts, machine, references, plan.batch_size)
    wanted = fingerprint_of(config, loaded, facts, machine, references, batch_size)
    _require_equal(directory, plan.fingerprint, wanted)


def _facts(directory: RunDirectory, config: Config) -> InputFacts:
    """What the run depends on of its input, which is read again unless its files are those that were read before."""
    attributes = _present(directory)
    if (known := known_facts(attributes["input"], config.dataset)) is not None:
        return known
    with RowProgress("comparing the input", None) as progress:
        source = open_source(config.dataset)
        return take_in(source, config.dataset, lambda *first: Nowhere(), progress.advance).facts


def _require_equal(directory: RunDirectory, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    if different := differences(stored, wanted):
        raise UserError(
            f"{directory.url} belongs to another run: {'; '.join(different)}. Give another store.path, or remove it"
        )


def _work(config: Config, plan: Plan, directory: RunDirectory, shards: np.ndarray) -> Generator[Outcome, None, None]:
    """Work on shards, here or on Ray; yields what comes of each."""
    if not len(shards):
        return
    settings = absolute(to_dict(config))
    model = settings["model"]
    for key in ("checkpoint", "bias"):
        paths = fold_paths(model[key], f"model.{key}")  # a pattern may match other files elsewhere
        model = {**model, key: paths if len(paths) > 1 else paths[0]}
    search = [os.getcwd(), *filter(None, [settings["cluster"]["code"]])]
    mixed = config.cluster.mixed_devices == "allow"
    work = Work(directory.url, config.store.options, plan, model, search, mixed)
    if config.cluster.name == "none":
        yield from _work_here(work, shards)
    else:
        from pipeline.job import run_shards

        yield from run_shards(work, shards.tolist(), config.cluster)


def _work_here(work: Work, shards: np.ndarray) -> Generator[Outcome, None, None]:
    """In this process. What needs the device is done by this thread, which signals reach."""
    of_plan, in_flight = (work.plan.shard(int(index)) for index in shards), shards_in_flight(work.plan.device)
    if in_flight == 1:
        yield from map(Worker(work).do, of_plan)
    else:
        desk = Desk()
        yield from desk.serve(Worker(work, desk).do, of_plan, in_flight)


def finalize(
    directory: RunDirectory, plan: Plan, chosen: range, rows_computed: int, began: float, started: float, head: str
) -> tuple[Summary, np.ndarray]:
    """Complete the store if every shard is done, and say how things stand.

    Args:
        directory, plan: of the run.
        chosen: the shards that this command was to do, whose failures are its own.
        rows_computed: by this command.
        began, started: when attributing and when the command began (monotonic, seconds).
        head: the model's.

    Returns:
        How things stand; and the shards whose done records were found to be wrong, which are to be done again.
    """
    seconds = time.monotonic() - began
    with _claimed(directory, "completing"):
        attributes = _present(directory)
        deltas, failures, damaged = None, [], np.empty(0, dtype=np.int64)
        if attributes["complete"]:
            deltas, n_done = attributes["run"]["deltas"], plan.n_shards
        else:
            is_recorded = recorded(directory, plan)
            failures = [failure for failure in directory.failures() if failure.shard in chosen]
            n_done = int(is_recorded.sum())
            if is_recorded.all() and not directory.asked_for():
                standing = take_stock(directory, plan)
                n_done, damaged = standing.n_done, np.flatnonzero(~standing.is_done)
                for index in damaged.tolist():
                    directory.revoke(index)
                if standing.complete:
                    deltas = _complete(directory, plan, standing, head)
        summary = Summary(
            store=directory.url,
            complete=deltas is not None,
            rows=plan.n_rows,
            shards=plan.n_shards,
            rows_computed=rows_computed,
            shards_done=n_done,
            seconds=time.monotonic() - started,
            rows_per_second=rows_computed / max(seconds, 1e-9),
            deltas=deltas,
            not_exact=attributes.get("not_exact", []),
            failures=[failure.error for failure in failures],
        )
        directory.write_result(asdict(summary))
    return summary, damaged


def _complete(directory: RunDirectory, plan: Plan, standing: Standing, head: str) -> dict[str, Any]:
    """Every shard is done: say so in the store; returns the convergence deltas of the run."""
    assert standing.deltas is not None
    total = standing.deltas
    deltas = {
        "judged": plan.judged,
        "head": head,
        "threshold": plan.warning_threshold,
        "share_over": total["n_over"] / total["n"],
        "n_not_finite": total["n_not_finite"],
        **{name: quantile(total, share) for name, share in QUANTILES.items()},
        "largest": total["largest"],
        "worst": read_names(directory.store, [total["worst_row"]])[0],
        "worst_row": total["worst_row"],
    }
    passed = "failed" if exceed(deltas, plan.warning_threshold) else "passed"
    attributes = {
        "run": {"deltas": deltas, "shard_seconds": standing.seconds, "rows": plan.n_rows},
        "convergence": passed if plan.judged else "not judged",
    }
    complete_store(directory.store, plan, standing.n_bytes, standing.crc32, directory.prepared_files(), attributes)
    directory.tidy()
    return deltas


def _finished(directory: RunDirectory, plan: Plan, attributes: dict[str, Any], started: float) -> Summary:
    if damaged := wrong_sizes(directory.store, plan):
        raise RunError(
            f"{directory.url} was complete, but {len(damaged)} of its files are gone or of another size, {damaged[0]} "
            f"first; `dlshap verify {directory.url}` reads all of it, with --repair the same command makes them anew"
        )
    return Summary(
        store=directory.url,
        complete=True,
        rows=plan.n_rows,
        shards=plan.n_shards,
        rows_computed=0,
        shards_done=plan.n_shards,
        seconds=time.monotonic() - started,
        rows_per_second=0.0,
        deltas=attributes["run"]["deltas"],
        not_exact=attributes.get("not_exact", []),
        failures=[],
    )
