"""What a report says of the references, of one target: how sure the attributions are as these were drawn."""

from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.analysis.reference_spread import ARRAYS_READ, N_TOP, WANTED, Certainty, advised, certainty
from pipeline.report import figures, formatting
from pipeline.report.measure import MAX_BASES, ROWS_AT_ONCE, sample
from pipeline.store.reader import Store

SHARE_READ = 10  # of what the rest of the report reads, one part in so many serves


def measure_certainty(store: Store, target: int, prefix: str) -> dict[str, Any] | None:
    """How sure the attributions of a target, an index, are; None where the store does not keep their spread.

    `prefix` begins the figure's name. Rows whose values are not finite, or all 0, say nothing.
    """
    if not store.plan.spread:
        return None
    n, length = store.plan.n_references, int(store.codes.shape[1])
    rows = sample(np.flatnonzero(store.present), length, MAX_BASES // SHARE_READ)
    parts: list[Certainty] = []
    for block in store.blocks(ARRAYS_READ, rows, target):
        attribution, sd = (block[name] for name in ARRAYS_READ)
        for start in range(0, len(block.rows), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            parts.append(certainty(attribution[some], sd[some], n))
    correlation, enough, kept = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("correlation", "enough", "kept")
    )
    known = np.isfinite(correlation)
    correlation, kept = correlation[known], kept[known & np.isfinite(kept)]
    label = "correlation with infinitely many references"
    return {
        "n_read": len(rows),
        "n_known": len(correlation),
        "n_references": n,
        "median": float(np.median(correlation)) if len(correlation) else None,
        "low": float(np.quantile(correlation, 0.1)) if len(correlation) else None,
        "n_reached": int((correlation >= WANTED).sum()),
        "wanted": WANTED,
        "enough": advised(enough),
        "kept": formatting.mean(kept) if len(kept) else None,
        "n_top": min(N_TOP, length // 10),
        "histogram": Markup(figures.histogram(correlation, (0, 1), label, "sequences", f"{prefix}-certainty"))
        if len(correlation)
        else "",
    }
