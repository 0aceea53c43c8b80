"""A run from beginning to end: agree on the plan, compute the shards that are left, and complete the store."""

import contextlib
import shlex
import time
from collections.abc import Iterator

import numpy as np

from pipeline.config import limits
from pipeline.config.schema import Config
from pipeline.execution.agree import Request
from pipeline.execution.executor import Executor, executor_of
from pipeline.execution.finalize import finalize, finished
from pipeline.execution.pipes import refuse_pipes
from pipeline.execution.store_access import attributes_of, present_attributes
from pipeline.execution.summary import Summary
from pipeline.execution.work import WorkSpec, search_folders, sent_model
from pipeline.messages.errors import RunError
from pipeline.messages.progress import LOG, RowProgress
from pipeline.messages.secrets import one_line
from pipeline.messages.words import counted
from pipeline.models.load import load_chosen, require_chosen
from pipeline.planning.convergence import complaint, exceed
from pipeline.planning.plan import Plan
from pipeline.planning.shards import remaining, select, shared_order
from pipeline.store.done_shards import recorded_shards
from pipeline.store.event_log import EventLog, event_log
from pipeline.store.presence import rank_of
from pipeline.store.run_directory import RunDirectory

ROUNDS = 2  # the second for shards whose records turn out to be wrong
MAX_FAILURES = 10  # shards that may fail before the first succeeds


def run_config(config: Config) -> Summary:
    """Do what a configuration describes, or what is left of it.

    Raises:
        UserError: bad input or configuration; nothing is left behind.
        RunError: the work failed, and what is committed stays; or convergence deltas are over the threshold, and
            engine.on_nonconvergence=fail.
    """
    refuse_pipes(config)
    with limits.using(config.limits):
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
        LOG.warning(complaint(summary.deltas, threshold))
    return summary


def failed(summary: Summary) -> str:
    """What to say of shards that failed."""
    n, more = len(summary.failures), ""
    if n > 1:
        more = f"; and {n - 1} more, which `dlshap status {shlex.quote(summary.store)}` lists"
    return (
        f"{n} of {summary.shards} shards failed, {summary.shards_done} are done, and the same command tries the others "
        f"again: {summary.failures[0]}{more}"
    )


def _run(config: Config) -> Summary:
    started = time.monotonic()
    executor = executor_of(config)
    require_chosen(config)
    directory = RunDirectory(config.store.path, config.store.options, config.store.lock_timeout_s)
    known = attributes_of(directory)  # refuses what is not a store before anything is loaded
    with contextlib.ExitStack() as stack:
        stack.enter_context(executor)
        if directory.prepared and not (known and known["complete"]):
            stack.enter_context(directory.at_work())
        plan = Request(config, executor.machine(), load_chosen(config), directory).agree_on_plan()
        chosen = select(plan.n_shards, config.run.shards)
        attributes = present_attributes(directory)
        if n_left_out := attributes["dataset"]["n_left_out"]:
            LOG.info(f"left out, as dataset.on_bad=skip says: {counted(n_left_out, 'bad row')}; the store lists them")
        if attributes["complete"]:
            return finished(directory, plan, attributes, started)
        stack.enter_context(directory.at_work())
        log = stack.enter_context(event_log(directory.run, store=directory.url, rows=plan.n_rows, shards=plan.n_shards))
        stack.enter_context(_result(directory, executor))
        stack.enter_context(executor.meter.kept(directory))
        directory.forget_failures(chosen)
        spec, todo = work_spec(config, plan, directory), remaining(chosen, recorded_shards(directory, plan))
        n_rows, seconds = 0, 0.0
        for _ in range(ROUNDS):
            log.note("stock", chosen=len(chosen), todo=len(todo))
            n_done, took = _work_through(executor, spec, chosen, _in_order(todo, directory), log)
            n_rows, seconds = n_rows + n_done, seconds + took
            summary, damaged = finalize(directory, plan, chosen, n_rows, seconds, started)
            todo = damaged[(damaged >= chosen.start) & (damaged < chosen.stop)]
            if not len(todo):
                break
        return summary


@contextlib.contextmanager
def _result(directory: RunDirectory, executor: Executor) -> Iterator[None]:
    """Programs are told that this command is the last from now on, and why where it does not come to its end."""

    def failed(reason: str) -> None:
        directory.write_result({"store": directory.url, "complete": False, "error": reason})

    directory.begin_result()
    try:
        with executor.heard(failed):
            yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # the backend may be what failed
            failed(one_line(error) or type(error).__name__)
        raise


def _in_order(todo: np.ndarray, directory: RunDirectory) -> np.ndarray:
    """Where other commands work on the same run, each begins elsewhere."""
    rank = rank_of(directory.command, directory.run) if len(todo) else 0
    if rank:
        LOG.info(f"{counted(rank, 'other command')} at work on this store; this one begins with other shards")
    return shared_order(todo, rank)


def work_spec(config: Config, plan: Plan, directory: RunDirectory) -> WorkSpec:
    """What the workers of a run are given."""
    mixed = config.cluster.mixed_devices == "allow"
    timeout_s, gpu_share = config.store.lock_timeout_s, config.cluster.gpu_share
    model, search = sent_model(config), search_folders(config)
    return WorkSpec(
        directory.url, config.store.options, plan, model, search, mixed, timeout_s, config.limits, gpu_share
    )


def _work_through(
    executor: Executor, spec: WorkSpec, chosen: range, todo: np.ndarray, log: EventLog
) -> tuple[int, float]:
    """Have shards computed, and stop where going on makes no sense.

    Returns:
        The rows that were committed by this command, and the seconds from the first shard's begin.

    Raises:
        RunError: the storage or a machine fails, or shards fail and none succeeds.
    """
    n_chosen = spec.plan.n_rows_in(np.arange(chosen.start, chosen.stop))
    n_done = n_found = n_failed = 0
    with contextlib.ExitStack() as stack:
        # Closed, so that nothing is still at work when the executor is let go after an error.
        results = stack.enter_context(contextlib.closing(executor.work(spec, todo))) if len(todo) else ()
        stack.push(lambda _, error, __: None if error is None else executor.ended_by(error))
        started = time.monotonic()
        stack.enter_context(executor.meter.attributing())
        progress = stack.enter_context(RowProgress("attributing", n_chosen, n_chosen - spec.plan.n_rows_in(todo)))
        for result in results:
            executor.meter.count(result)
            if not result.error:
                progress.advance(result.n_rows)
                if result.is_found:
                    n_found += 1
                    log.note("found", shard=result.shard)
                else:
                    n_done += result.n_rows
                    log.note("shard", shard=result.shard, rows=result.n_rows)
                continue
            n_failed += 1
            log.note("failure", shard=result.shard, error=result.error, fatal=result.fatal)
            if result.fatal:
                raise RunError(result.error)
            if n_failed >= MAX_FAILURES and not n_done:
                raise RunError(f"the first {n_failed} shards failed, and none succeeded: {result.error}")
            if n_failed < MAX_FAILURES:
                LOG.warning(result.error)
        if n_found:
            LOG.info(f"{counted(n_found, 'shard')} already done when their turn came, by another command perhaps")
        return n_done, time.monotonic() - started
