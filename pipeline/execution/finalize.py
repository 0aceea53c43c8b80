"""The end of a run: the store is completed once every shard is done, and the command says how things stand."""

import contextlib
import shlex
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.execution.store_access import claimed, present_attributes
from pipeline.execution.summary import Summary
from pipeline.messages.errors import RunError
from pipeline.planning.convergence import QUANTILES, exceed, quantile
from pipeline.planning.plan import Plan
from pipeline.store.attributes import root_damage
from pipeline.store.codec import names_of_rows
from pipeline.store.done_shards import CheckedShards, check_shards, recorded_shards, wrong_sizes
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import ROOT
from pipeline.store.template import complete_store


def finalize(
    directory: RunDirectory, plan: Plan, chosen: range, rows_computed: int, seconds: float, started: float
) -> tuple[Summary, np.ndarray]:
    """Complete the store if every shard is done, and say how things stand.

    Args:
        directory, plan: of the run.
        chosen: the shards that this command was to do, whose failures are its own.
        rows_computed, seconds: by this command, while attributing.
        started: when the command began (monotonic, seconds).

    Returns:
        How things stand; and the shards whose done records were found to be wrong, which are to be done again.
    """
    with claimed(directory, "completing"):
        attributes = present_attributes(directory)
        deltas, failures, damaged = None, [], np.empty(0, dtype=np.int64)
        if attributes["complete"]:
            deltas, n_done = attributes["run"]["deltas"], plan.n_shards
        else:
            is_recorded = recorded_shards(directory, plan)
            failures = [failure.error for failure in directory.failures() if failure.shard in chosen]
            n_done = int(is_recorded.sum())
            if is_recorded.all() and not directory.files_to_restore():
                checked = check_shards(directory, plan)
                n_done, damaged = checked.n_done, np.flatnonzero(~checked.is_done)
                for index in damaged.tolist():
                    directory.revoke(index)
                if checked.complete:
                    deltas = _complete(directory, plan, checked, attributes["target_heads"])
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
            failures=failures,
        )
        directory.write_result(asdict(summary))
    return summary, damaged


def _complete(directory: RunDirectory, plan: Plan, checked: CheckedShards, heads: list[str]) -> dict[str, Any]:
    """Every shard is done: say so in the store; returns the convergence deltas of the run. `heads`: of the targets."""
    assert checked.deltas is not None
    total = checked.deltas
    deltas = {
        "judged": plan.completeness,
        "head": ",".join(dict.fromkeys(",".join(heads).split(","))),
        "threshold": plan.warning_threshold,
        "share_over": total["n_over"] / total["n"],
        "relative_threshold": plan.relative_threshold,
        "share_over_relative": total["n_over_relative"] / total["n"],
        "n_not_finite": total["n_not_finite"],
        **{name: quantile(total, share) for name, share in QUANTILES.items()},
        "largest": total["largest"],
        "worst": names_of_rows(directory.store, [total["worst_row"]])[0],
        "worst_row": total["worst_row"],
        "not_judged": [plan.labels[target] for target in plan.not_judged],
    }
    passed = "failed" if exceed(deltas, plan.warning_threshold) else "passed"
    attributes = {
        "run": {"deltas": deltas, "shard_seconds": checked.seconds, "rows": plan.n_rows},
        "convergence": passed if plan.completeness else "not judged",
    }
    complete_store(directory.store, plan, checked.n_bytes, checked.crc32, directory.prepared_files(), attributes)
    directory.tidy()
    return deltas


def finished(directory: RunDirectory, plan: Plan, attributes: dict[str, Any], started: float) -> Summary:
    """What a command says of a store that was complete before it began.

    Raises:
        RunError: some of its files are gone, or of another size.
    """
    own = [ROOT] if root_damage(directory.store.read(ROOT)) else []
    if damaged := own + wrong_sizes(directory.store, attributes):
        raise RunError(
            f"{directory.url} was complete, but {len(damaged)} of its files are gone or not what they were, "
            f"{damaged[0]} first; after `dlshap verify --repair {shlex.quote(directory.url)}` the same command makes "
            "them again"
        )
    summary = Summary(
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
    # What a command left that was killed right after it completed the store; where nothing can be written, it stays.
    with contextlib.suppress(OSError):
        directory.tidy()
        if (last := directory.read_result()) is not None and not last.get("complete"):
            directory.write_result(asdict(summary))
    return summary
