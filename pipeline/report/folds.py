"""What a report says of the folds of a model, of one target: how well they agree, and on which rows least.

Shape legend: S rows that are read, F folds, B rows of a block.
"""

from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.analysis import fold_agreement
from pipeline.report import figures, formatting
from pipeline.report.measure import MAX_BASES, sample
from pipeline.report.sites import locus_of, name_of
from pipeline.store.reader import Store

N_LEAST = 8  # rows that are named


def measure_folds(store: Store, target: int, prefix: str) -> dict[str, Any] | None:
    """How well the folds agree on a target, an index; None where the store does not keep the values of each of several.

    `prefix` begins the figures' names. Rows where a fold has the same attribution at all positions, or none that is
    finite, have no agreement. Figures are SVG elements, empty where there is nothing to draw.
    """
    plan = store.plan
    if not fold_agreement.has_folds(plan):
        return None
    names, length = plan.folds, int(store.codes.shape[1])
    rows = sample(np.flatnonzero(store.present), length, MAX_BASES // len(names))
    agreements, predictions = [], []
    for block in store.blocks(fold_agreement.ARRAYS_READ, rows, target):
        agreements.append(fold_agreement.agreement(block["attribution_by_fold"]))
        predictions.append(block["prediction_by_fold"].astype(np.float64))
    per_fold, prediction = np.concatenate(agreements), np.concatenate(predictions)
    of_row, spread, mean = fold_agreement.of_row(per_fold), fold_agreement.spread(prediction), prediction.mean(axis=1)
    known, finite = np.isfinite(of_row), np.isfinite(mean)
    worst = np.flatnonzero(known)[np.argsort(of_row[known], kind="stable")[:N_LEAST]]
    agreement, apart = of_row[known], spread[finite]
    return {
        "n_read": len(rows),
        "n_known": len(agreement),
        "median": float(np.quantile(agreement, 0.5)) if len(agreement) else None,
        "low": float(np.quantile(agreement, 0.1)) if len(agreement) else None,
        "median_spread": float(np.median(apart)) if len(apart) else None,
        "folds": [
            {
                "name": name,
                "agreement": formatting.mean(per_fold[:, fold][known]),
                "prediction": formatting.mean(prediction[finite, fold]),
                "off": formatting.mean(np.abs(prediction[finite, fold] - mean[finite])),
            }
            for fold, name in enumerate(names)
        ],
        "least": [
            {
                "index": row,
                "name": name_of(store, row),
                "locus": locus_of(store, row),
                "agreement": float(of_row[place]),
                "prediction": float(mean[place]),
                "spread": float(spread[place]),
            }
            for place, row in zip(worst, rows[worst].tolist(), strict=True)
        ],
        "histogram": _histogram(agreement, f"{prefix}-agreement") if len(agreement) else "",
        "spreads": Markup(figures.spread(mean[finite], apart, f"{prefix}-spread")) if len(apart) else "",
    }


def _histogram(values: np.ndarray, name: str) -> Markup:
    low = max(-1.0, np.floor(10 * float(values.min())) / 10)
    return Markup(figures.histogram(values, (min(low, 0.9), 1.0), "agreement of the folds", "sequences", name))
