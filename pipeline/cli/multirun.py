"""`dlshap run --multirun`: a run of each combination of several values, and what became of them."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from pipeline.cli.faults import fault, first_of
from pipeline.cli.streams import stdout_to_stderr
from pipeline.config.schema import Config
from pipeline.config.sweep import Job, jobs_of
from pipeline.messages import errors
from pipeline.messages.errors import RunError, UserError
from pipeline.messages.progress import LOG, duration
from pipeline.messages.secrets import one_line
from pipeline.messages.visible import in_lines, to_json
from pipeline.messages.words import counted

if TYPE_CHECKING:
    from pipeline.execution.summary import Summary

HEADER = ("job", "state", "rows", "time", "store")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        values: what it has of each sweep.
        store: its path.
        exit_code: that the run alone would have ended with.
        error: why it failed.
        summary: what it did, if it did not fail.
    """

    values: dict[str, str]
    store: str
    exit_code: int
    error: str | None
    summary: "Summary | None"

    @property
    def line(self) -> tuple[str, ...]:
        job = " ".join(f"{key}={value}" for key, value in self.values.items()) or "(one)"
        if self.summary is None:
            return job, f"failed ({self.exit_code})", "", "", self.store
        state = "complete" if self.summary.complete else f"{self.summary.shards_done}/{self.summary.shards} shards"
        return job, state, str(self.summary.rows), duration(self.summary.seconds), self.store


def run(options: argparse.Namespace, config_of: Callable[[Sequence[str]], Config]) -> int:
    """Run every job; a job that fails does not keep the others from running.

    Args:
        options: of the command line.
        config_of: the configuration that a job's overrides describe.

    Returns:
        The exit code: 0 where no job failed, 2 where all that failed were refused, else 1.
    """
    jobs = [(job, _with_own_store(job, config_of(job.overrides))) for job in jobs_of(options.overrides)]
    _require_apart(jobs)
    if options.cfg:
        print(
            "---\n".join(f"# {job.title}\n{OmegaConf.to_yaml(OmegaConf.structured(each))}" for job, each in jobs),
            end="",
        )
        return errors.EXIT_DONE
    outcomes = _run_all(jobs)
    print(_as_json(outcomes) if options.json else _as_text(outcomes))
    failed = {each.exit_code for each in outcomes} - {errors.EXIT_DONE}
    return errors.EXIT_FAILED if errors.EXIT_FAILED in failed else max(failed, default=errors.EXIT_DONE)


def _with_own_store(job: Job, config: Config) -> Config:
    return replace(config, store=replace(config.store, path=job.store(config.store.path)))


def _require_apart(jobs: Sequence[tuple[Job, Config]]) -> None:
    """Raises UserError where two jobs would write one store, or would need different clusters."""
    stores: dict[str, Job] = {}
    for job, config in jobs:
        if (other := stores.setdefault(config.store.path, job)) is not job:
            raise UserError(
                f"the jobs {other.title} and {job.title} would both write {config.store.path}: their values differ in "
                f"signs alone that names of files leave out; run one of them by itself, with a store.path of its own"
            )
        if config.cluster != jobs[0][1].cluster:
            raise UserError(f"{job.title}: the jobs of --multirun share one cluster, and this one chooses another")


def _run_all(jobs: Sequence[tuple[Job, Config]]) -> list[Outcome]:
    from pipeline.execution.host import keep_freed_memory  # torch, Zarr: seconds that a mistyped setting need not wait

    keep_freed_memory()
    outcomes = []
    with stdout_to_stderr(), contextlib.ExitStack() as shared:
        for number, (job, config) in enumerate(jobs, start=1):
            LOG.info(f"job {number} of {len(jobs)}: {job.title}")
            outcomes.append(_outcome(job, config, shared))
    return outcomes


def _outcome(job: Job, config: Config, shared: contextlib.ExitStack) -> Outcome:
    from pipeline.execution.sweep import run_within

    try:
        return Outcome(dict(job.values), config.store.path, errors.EXIT_DONE, None, run_within(shared, config))
    except (Exception, BaseExceptionGroup) as raised:
        error = first_of(raised)
        if not isinstance(error, Exception):  # told to stop
            raise error from None
        known = error if isinstance(error, UserError | RunError | OSError) else fault(error)
        exit_code = errors.EXIT_BAD_INPUT if isinstance(error, UserError) else errors.EXIT_FAILED
        LOG.warning(f"job {job.title} failed: {one_line(known)}")
        return Outcome(dict(job.values), config.store.path, exit_code, one_line(known), None)


def _as_text(outcomes: Sequence[Outcome]) -> str:
    """A line for each job, and what the failed ones said."""
    table = [HEADER, *(each.line for each in outcomes)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    lines += [f"{each.line[0]}: {each.error}" for each in outcomes if each.error]
    n_failed = sum(each.error is not None for each in outcomes)
    lines.append(f"{counted(len(outcomes), 'job')}, {n_failed} failed")
    return in_lines(lines)


def _as_json(outcomes: Sequence[Outcome]) -> str:
    n_failed = sum(each.error is not None for each in outcomes)
    return to_json({"jobs": [asdict(each) for each in outcomes], "failed": n_failed})
