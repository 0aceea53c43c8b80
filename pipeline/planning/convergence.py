"""Convergence deltas in brief: summaries of shards that add up to the summary of a run. Pure functions.

A pair is over the relative threshold where its delta is more than that share of the difference of its predictions,
beyond what rounding does to predictions: a threshold in the output's own units says nothing of an output of 1e-6.

A summary holds a histogram of |delta| (ten bins to a factor of ten), so that quantiles of any number of rows need no
second look at them; a quantile is the upper edge of its bin, at most 26% too large and never above the largest |delta|.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.messages.visible import shown
from pipeline.messages.words import some
from pipeline.planning.number_types import NUMBER_TYPES
from pipeline.planning.plan import Plan

EDGES = np.logspace(-12, 4, 161)  # bin 0 is below the first edge, the last bin above the last one or not finite

N_NAMED = 5  # targets that a line names
STEPS = 16  # of rounding, of a prediction: what deep models lose, also beside a large constant
QUANTILES = {"median": 0.5, "q90": 0.9, "q99": 0.99}
QUANTILE_NAMES = {"median": "half of them", "q90": "90%", "q99": "99%"}


@dataclass(frozen=True)
class Thresholds:
    """What a delta is compared with.

    Attributes:
        absolute: in units of the model's output.
        relative: a share of the difference of predictions.
        rounding: a share of the predictions themselves, which is not counted.
        judged: whether each target's are; empty: all.
    """

    absolute: float
    relative: float
    rounding: float
    judged: tuple[bool, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> "Thresholds":
        """Those of a run."""
        step = max(NUMBER_TYPES[plan.dtype].epsilon, NUMBER_TYPES["float32"].epsilon)  # in which predictions are stored
        judged = [at not in plan.not_judged for at in range(len(plan.targets))] if plan.not_judged else []
        return cls(plan.warning_threshold, plan.relative_threshold, STEPS * step, tuple(judged))


def summarise(
    deltas_NTR: np.ndarray, prediction_NT: np.ndarray, reference_NTR: np.ndarray, first_row: int, thresholds: Thresholds
) -> dict[str, Any]:
    """Summary of the (N, T, R) convergence deltas of rows first_row, first_row + 1, ..., with their predictions.

    A delta that is not finite counts as over the thresholds and as the worst. Behind the targets of one fold and strand
    come those of the next.
    """
    if thresholds.judged:
        judged = np.resize(thresholds.judged, deltas_NTR.shape[1])
        deltas_NTR, prediction_NT, reference_NTR = (
            each[:, judged] for each in (deltas_NTR, prediction_NT, reference_NTR)
        )
    sizes = np.abs(np.nan_to_num(deltas_NTR.astype(np.float64), nan=np.inf))
    per_row = sizes.reshape(len(sizes), -1).max(axis=1)
    counts = np.bincount(np.searchsorted(EDGES, sizes.ravel(), side="right"), minlength=len(EDGES) + 1)
    return {
        "n": int(sizes.size),
        "n_over": int((sizes > thresholds.absolute).sum()),
        "n_over_relative": int((~(sizes <= _allowed(prediction_NT, reference_NTR, thresholds))).sum()),
        "n_not_finite": int((~np.isfinite(sizes)).sum()),
        "largest": _finite(per_row.max()),
        "worst_row": first_row + int(per_row.argmax()),
        "counts": {str(int(bin_)): int(counts[bin_]) for bin_ in np.flatnonzero(counts)},
    }


def _allowed(prediction_NT: np.ndarray, reference_NTR: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """How large each delta may be: (N, T, R)."""
    y, y0 = prediction_NT[..., None].astype(np.float64), reference_NTR.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return thresholds.relative * np.abs(y - y0) + thresholds.rounding * np.maximum(np.abs(y), np.abs(y0))


def combine(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The summary of several, none of them empty."""
    counts = ("n", "n_over", "n_over_relative", "n_not_finite")
    total: dict[str, Any] = {**dict.fromkeys(counts, 0), "largest": -1.0, "worst_row": -1, "counts": {}}
    for summary in summaries:
        for key in counts:
            total[key] += summary.get(key, 0)  # stores of before the relative threshold have no count of it
        for bin_, count in summary["counts"].items():
            total["counts"][bin_] = total["counts"].get(bin_, 0) + count
        if _worse(summary["largest"], total["largest"]):
            total["largest"], total["worst_row"] = summary["largest"], summary["worst_row"]
    return total


def quantile(summary: dict[str, Any], share: float) -> float | None:
    """The upper edge of the bin below which `share` of the |delta| lie, or the largest; None: it is not finite."""
    wanted, seen = share * summary["n"], 0
    largest: float | None = summary["largest"]
    for bin_ in sorted(int(bin_) for bin_ in summary["counts"]):
        seen += summary["counts"][str(bin_)]
        if seen >= wanted:
            if bin_ == len(EDGES):
                return largest
            return float(EDGES[bin_]) if largest is None else min(float(EDGES[bin_]), largest)
    return None


def exceed(deltas: Mapping[str, Any], threshold: float) -> bool:
    """Whether the deltas of a run (see finalize.py) are over the threshold; without completeness, none count."""
    is_over = deltas["largest"] is None or deltas["largest"] > threshold or deltas.get("share_over_relative", 0) > 0
    return bool(deltas["judged"]) and is_over


def describe_deltas(deltas: Mapping[str, Any]) -> str:
    """The deltas of a run in a line."""
    if not deltas["judged"]:
        return (
            f"convergence deltas: recorded, not judged (head {deltas['head']} does not sum to the difference by design)"
        )
    quantiles = ", ".join(f"{_text(deltas[key], '.1g')} ({name})" for key, name in QUANTILE_NAMES.items())
    return (
        f"convergence deltas: at most {quantiles}; largest {_text(deltas['largest'], '.2g')} at "
        f"{shown(deltas['worst'])}, {deltas['share_over']:.2%} over {deltas['threshold']:g}{over_relative(deltas)}"
        f"{not_judged(deltas)}"
    )


def not_judged(deltas: Mapping[str, Any]) -> str:
    """The targets whose deltas are recorded alone, as the end of a sentence."""
    targets = deltas.get("not_judged", [])
    return f"; those of {some(targets, N_NAMED)} are not judged, as they do not sum by design" if targets else ""


def over_relative(deltas: Mapping[str, Any]) -> str:
    """The share of pairs over the relative threshold, as the end of a sentence."""
    if "share_over_relative" not in deltas:
        return ""
    return f", {deltas['share_over_relative']:.2%} over {deltas['relative_threshold']:.3g} of the difference explained"


def complaint(deltas: Mapping[str, Any], threshold: float) -> str:
    """What to say of deltas that exceed a threshold."""
    if deltas["largest"] is not None and deltas["largest"] <= threshold:
        return (
            f"contributions do not sum to the difference of predictions: for {deltas['share_over_relative']:.2%} of "
            f"the pairs the convergence delta is over engine.relative_threshold={deltas['relative_threshold']:g} of "
            f"that difference (and none is over engine.warning_threshold={threshold:g}); `dlshap audit` shows how each "
            f"operation of the model is treated"
        )
    return (
        f"contributions do not sum to the difference of predictions: the largest convergence delta, "
        f"{_text(deltas['largest'], '.2g')} at sequence {shown(deltas['worst'])} (row {deltas['worst_row']}), is over "
        f"engine.warning_threshold={threshold:g}; `dlshap audit` shows how each operation of the model is treated"
    )


def _text(value: float | None, form: str) -> str:
    return "not finite" if value is None else f"{value:{form}}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _worse(one: float | None, other: float | None) -> bool:
    """None is not finite, the worst of all."""
    return other is not None and (one is None or one > other)
