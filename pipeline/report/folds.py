"""What a report says of the folds of a model, of one target: how well they agree, and on which rows least.

Shape legend: S rows that are read, F folds, B rows of a block.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline import agreement
from pipeline.reader import Store
from pipeline.report import figures
from pipeline.report.measure import MAX_BASES, sample
from pipeline.report.sites import locus_of

N_LEAST = 8  # rows that are named


@dataclass(frozen=True)
class Fold:
    """One fold: its mean agreement with the others, its mean prediction, and how far that of a row is off the mean."""

    name: str
    agreement: float
    prediction: float
    off: float


@dataclass(frozen=True)
class Doubtful:
    """A row that the folds agree little on."""

    index: int
    name: str
    locus: str
    agreement: float
    prediction: float
    spread: float


@dataclass(frozen=True)
class Folds:
    """Of the rows that were read; figures are SVG elements, empty where there is nothing to draw.

    Attributes:
        rows: (S,) int64 indices in the store.
        agreement: (S,) of each row; NaN where a fold has the same attribution at all positions, or none that is finite.
        spread: (S,) the largest prediction of any fold, less the smallest.
        folds: in the store's order.
        least: the rows with the least agreement, the worst first.
        histogram, spreads: figures.
    """

    rows: np.ndarray
    agreement: np.ndarray
    spread: np.ndarray
    folds: list[Fold]
    least: list[Doubtful]
    histogram: Markup
    spreads: Markup

    def quantile(self, share: float) -> float:
        """Of the agreement, over the rows that have one."""
        known = self.agreement[np.isfinite(self.agreement)]
        return float(np.quantile(known, share)) if len(known) else float("nan")

    @property
    def median_spread(self) -> float:
        """Of the predictions that are finite."""
        known = self.spread[np.isfinite(self.spread)]
        return float(np.median(known)) if len(known) else float("nan")

    @property
    def n_known(self) -> int:
        """Rows that have an agreement."""
        return int(np.isfinite(self.agreement).sum())


def measure_folds(store: Store, target: int, prefix: str) -> Folds | None:
    """How well the folds agree; None where the store does not keep the values of each of several.

    Args:
        store: with one row at least.
        target: index on the target axis.
        prefix: of the figures' names.
    """
    plan = store.plan
    if not agreement.has_folds(plan):
        return None
    names, length = plan.folds, int(store.codes.shape[1])
    rows = sample(np.flatnonzero(store.present), length, MAX_BASES // len(names))
    agreements, predictions = [], []
    for block in store.blocks(agreement.ARRAYS, rows, target):
        agreements.append(agreement.agreement(block["attribution_by_fold"]))
        predictions.append(block["prediction_by_fold"].astype(np.float64))
    per_fold, prediction = np.concatenate(agreements), np.concatenate(predictions)
    of_row, spread, mean = agreement.of_row(per_fold), agreement.spread(prediction), prediction.mean(axis=1)
    known, finite = np.isfinite(of_row), np.isfinite(mean)
    worst = np.flatnonzero(known)[np.argsort(of_row[known], kind="stable")[:N_LEAST]]
    return Folds(
        rows=rows,
        agreement=of_row,
        spread=spread,
        folds=[
            Fold(
                name,
                _mean(per_fold[:, fold][known]),
                _mean(prediction[finite, fold]),
                _mean(np.abs(prediction[finite, fold] - mean[finite])),
            )
            for fold, name in enumerate(names)
        ],
        least=[
            Doubtful(
                int(rows[place]),
                str(store.rows["name"][rows[place]]),
                locus_of(store, int(rows[place])),
                float(of_row[place]),
                float(mean[place]),
                float(spread[place]),
            )
            for place in worst
        ],
        histogram=Markup(_histogram(of_row[known], f"{prefix}-agreement")) if known.any() else Markup(""),
        spreads=Markup(figures.spread(mean[finite], spread[finite], f"{prefix}-spread"))
        if finite.any()
        else Markup(""),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _histogram(values: np.ndarray, name: str) -> str:
    low = max(-1.0, np.floor(10 * float(values.min())) / 10)
    return figures.histogram(values, (min(low, 0.9), 1.0), "agreement of the folds", "sequences", name)
