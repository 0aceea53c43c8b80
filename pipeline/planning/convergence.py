"""Convergence deltas in brief: summaries of shards that add up to the summary of a run. Pure functions.

A summary holds a histogram of |delta| (ten bins to a factor of ten), so that quantiles of any number of rows need no
second look at them; a quantile is the upper edge of its bin, at most 26% too large.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

EDGES = np.logspace(-12, 4, 161)  # bin 0 is below the first edge, the last bin above the last one or not finite

QUANTILES = {"median": 0.5, "q90": 0.9, "q99": 0.99}
QUANTILE_NAMES = {"median": "half of them", "q90": "90%", "q99": "99%"}


def summarise(deltas_NTR: np.ndarray, first_row: int, threshold: float) -> dict[str, Any]:
    """Summary of the (N, T, R) convergence deltas of rows first_row, first_row + 1, ...

    A delta that is not finite counts as over the threshold and as the worst.
    """
    sizes = np.abs(np.nan_to_num(deltas_NTR.astype(np.float64), nan=np.inf))
    per_row = sizes.reshape(len(sizes), -1).max(axis=1)
    counts = np.bincount(np.searchsorted(EDGES, sizes.ravel(), side="right"), minlength=len(EDGES) + 1)
    return {
        "n": int(sizes.size),
        "n_over": int((sizes > threshold).sum()),
        "n_not_finite": int((~np.isfinite(sizes)).sum()),
        "largest": _finite(per_row.max()),
        "worst_row": first_row + int(per_row.argmax()),
        "counts": {str(int(bin_)): int(counts[bin_]) for bin_ in np.flatnonzero(counts)},
    }


def combine(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The summary of several, none of them empty."""
    total: dict[str, Any] = {"n": 0, "n_over": 0, "n_not_finite": 0, "largest": -1.0, "worst_row": -1, "counts": {}}
    for summary in summaries:
        for key in ("n", "n_over", "n_not_finite"):
            total[key] += summary[key]
        for bin_, count in summary["counts"].items():
            total["counts"][bin_] = total["counts"].get(bin_, 0) + count
        if _worse(summary["largest"], total["largest"]):
            total["largest"], total["worst_row"] = summary["largest"], summary["worst_row"]
    return total


def quantile(summary: dict[str, Any], share: float) -> float | None:
    """The upper edge of the bin below which `share` of the |delta| lie; None where that is not finite."""
    wanted, seen = share * summary["n"], 0
    for bin_ in sorted(int(bin_) for bin_ in summary["counts"]):
        seen += summary["counts"][str(bin_)]
        if seen >= wanted:
            return float(EDGES[bin_]) if bin_ < len(EDGES) else summary["largest"]
    return None


def exceed(deltas: Mapping[str, Any], threshold: float) -> bool:
    """Whether the deltas of a run (see driver.py) should be smaller: heads that do not sum by design are not judged."""
    return bool(deltas["judged"]) and (deltas["largest"] is None or deltas["largest"] > threshold)


def describe_deltas(deltas: Mapping[str, Any]) -> str:
    """The deltas of a run in a line."""
    if not deltas["judged"]:
        return (
            f"convergence deltas: recorded, not judged (head {deltas['head']} does not sum to the difference by design)"
        )
    quantiles = ", ".join(f"{_text(deltas[key], '.1g')} ({name})" for key, name in QUANTILE_NAMES.items())
    return (
        f"convergence deltas: at most {quantiles}; largest {_text(deltas['largest'], '.2g')} at {deltas['worst']!r}, "
        f"{deltas['share_over']:.2%} over {deltas['threshold']:g}"
    )


def complaint(deltas: Mapping[str, Any], threshold: float) -> str:
    """What to say of deltas that exceed the threshold."""
    return (
        f"contributions do not sum to the difference of predictions: the largest convergence delta, "
        f"{_text(deltas['largest'], '.2g')} at sequence {deltas['worst']!r} (row {deltas['worst_row']}), is over "
        f"engine.warning_threshold={threshold:g}; `dlshap audit` shows how each operation of the model is treated"
    )


def _text(value: float | None, form: str) -> str:
    return "not finite" if value is None else f"{value:{form}}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _worse(one: float | None, other: float | None) -> bool:
    """None is not finite, the worst of all."""
    return other is not None and (one is None or one > other)
