"""How well the folds of a model agree, row by row; of stores made with store.per_fold=true.

Shape legend: B rows, F folds, L positions.
"""

import numpy as np

from pipeline.planning.plan import Plan

ARRAYS_READ = ("attribution_by_fold", "prediction_by_fold")


def has_folds(plan: Plan) -> bool:
    """Whether the store of a run can be asked: it keeps the values of each of several folds."""
    return plan.per_fold and len(plan.folds) > 1


def agreement(attribution_BFL: np.ndarray) -> np.ndarray:
    """(B, F) float64: Pearson's correlation of each fold, along the sequence, with the mean of the other folds.

    NaN where either is the same at all positions, or not finite. There are two folds or more.
    """
    folds = attribution_BFL.astype(np.float64)
    folds -= folds.mean(axis=2, keepdims=True)
    others = folds.sum(axis=1, keepdims=True) - folds  # their sum: the scale does not matter
    products = np.einsum("bfl,bfl->bf", folds, others)
    sizes = np.sqrt(np.einsum("bfl,bfl->bf", folds, folds) * np.einsum("bfl,bfl->bf", others, others))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sizes > 0, products / sizes, np.nan).clip(-1, 1))


def of_row(agreement_BF: np.ndarray) -> np.ndarray:
    """(B,) the agreement of a row: the mean over its folds; NaN where one has none."""
    return np.asarray(agreement_BF.mean(axis=1))


def spread(prediction_BF: np.ndarray) -> np.ndarray:
    """(B,) the largest prediction of any fold, less the smallest."""
    return np.asarray(np.ptp(prediction_BF.astype(np.float64), axis=1))
