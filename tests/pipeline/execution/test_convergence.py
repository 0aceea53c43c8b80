"""Convergence deltas of a run: what it says of them, and how it ends where they are too large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.planning.convergence import QUANTILES, Thresholds, complaint, describe_deltas, exceed
from pipeline.store.run_directory import RunDirectory
from tests.pipeline.conftest import N_ROWS, Inputs, values

DELTAS: dict[str, Any] = {
    "judged": True,
    "head": "none",
    "threshold": 1e-3,
    "share_over": 0.25,
    "n_not_finite": 0,
    "median": 1e-7,
    "q90": 2e-4,
    "q99": 5e-3,
    "largest": 7e-3,
    "worst": "peak_9",
    "worst_row": 8,
}
RELATIVE = {**DELTAS, "relative_threshold": 0.01, "share_over_relative": 0.125}
UNJUDGED = {**DELTAS, "judged": False, "head": "profile_detached"}
NOT_FINITE = {**DELTAS, "largest": None, "q99": None}


@pytest.mark.parametrize(
    ("deltas", "threshold", "expected"),
    [
        (DELTAS, 1e-3, True),
        (DELTAS, 7e-3, False),
        (DELTAS, 0.1, False),
        (RELATIVE, 0.1, True),
        ({**RELATIVE, "share_over_relative": 0.0}, 0.1, False),
        ({**RELATIVE, "judged": False}, 0.1, False),
        (UNJUDGED, 1e-3, False),
        (NOT_FINITE, 1e9, True),
        ({**NOT_FINITE, "judged": False}, 1e-3, False),
    ],
)
def test_the_largest_is_judged_where_deltas_should_be_zero(
    deltas: dict[str, Any], threshold: float, expected: bool
) -> None:
    assert exceed(deltas, threshold) is expected


def test_they_are_described_in_a_line() -> None:
    assert describe_deltas(DELTAS) == (
        "convergence deltas: at most 1e-07 (half of them), 0.0002 (90%), 0.005 (99%); "
        "largest 0.007 at 'peak_9', 25.00% over 0.001"
    )
    assert describe_deltas(RELATIVE).endswith("25.00% over 0.001, 12.50% over 0.01 of the difference explained")
    said = complaint(RELATIVE, 0.1)
    assert "for 12.50% of the pairs the convergence delta is over engine.relative_threshold=0.01" in said
    assert "largest not finite at 'peak_9'" in describe_deltas(NOT_FINITE)
    assert "recorded, not judged (head profile_detached" in describe_deltas(UNJUDGED)
    assert "0.007 at sequence 'peak_9' (row 8), is over engine.warning_threshold=0.001" in complaint(DELTAS, 1e-3)


def test_a_run_summarises_the_deltas_that_it_stores(finished: Path) -> None:
    store = pipeline.open_store(finished)
    sizes, deltas = np.abs(np.asarray(store.convergence_delta[:])), store.attrs["run"]["deltas"]
    assert deltas["largest"] == sizes.max()
    assert deltas["worst"] == f"s{sizes.max(axis=(1, 2)).argmax()}"
    assert deltas["share_over"] == deltas["share_over_relative"] == 0
    for name, share in QUANTILES.items():
        exact = float(np.quantile(sizes, share, method="inverted_cdf"))
        assert exact <= deltas[name] <= max(1.26 * exact, 1e-12)
    assert store.attrs["convergence"] == "passed"


def test_a_share_of_a_small_difference_is_over_the_relative_threshold(
    inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zarr"
    command = ["run", *inputs.overrides(path, "engine.relative_threshold=1e-9", "engine.dtype=bfloat16")]
    more = ["engine.warning_threshold=1e9", "engine.on_nonconvergence=fail"]
    store_of_exact_deltas = Thresholds(1e9, 1e-9, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Thresholds, "of", classmethod(lambda cls, plan: store_of_exact_deltas))
        assert dispatch([*command, *more]) == 1
    assert "over engine.relative_threshold=1e-09 of that difference" in capfd.readouterr().err
    store = pipeline.open_store(path)
    assert store.attrs["convergence"] == "failed"
    assert 0 < store.attrs["run"]["deltas"]["share_over_relative"] <= 1
    assert store.attrs["run"]["deltas"]["share_over"] == 0


def test_failing_leaves_a_complete_store_that_says_so(
    inputs: Inputs, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zarr"
    command = ["run", *inputs.overrides(path, "engine.warning_threshold=1e-12")]
    assert dispatch([*command, "engine.on_nonconvergence=fail"]) == 1
    out, err = capfd.readouterr()
    store = pipeline.open_store(path)
    worst = store.attrs["run"]["deltas"]["worst"]
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith(f"dlshap: error: {path} is complete, but contributions do not sum to the difference")
    assert f"at sequence {worst!r} (row {worst[1:]}), is over engine.warning_threshold=1e-12" in line
    assert (store.complete, len(store), store.attrs["convergence"]) == (True, N_ROWS, "failed")
    assert values(path) == values(finished)
    assert json.loads(RunDirectory(path).run.read("result.json"))["complete"] is True

    assert dispatch([*command, "engine.on_nonconvergence=fail"]) == 1, "the same command does not forget"
    capfd.readouterr()
    assert dispatch(command) == 0
    out, err = capfd.readouterr()
    assert "finished before, nothing to do" in out
    assert err.splitlines()[-1].startswith("dlshap: warning: contributions do not sum to the difference")
    assert dispatch([*command, "engine.on_nonconvergence=fail", "engine.warning_threshold=0.001"]) == 0
    assert "warning" not in capfd.readouterr().err


def test_heads_that_do_not_sum_by_design_are_not_judged(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.prepare.INCOMPLETE", frozenset({"none"}))
    overrides = ["engine.warning_threshold=1e-12", "engine.on_nonconvergence=fail"]
    summary = pipeline.run(inputs.overrides(tmp_path / "a.zarr", *overrides))
    assert "recorded, not judged" in summary.text()
    assert pipeline.open_store(tmp_path / "a.zarr").attrs["convergence"] == "not judged"
