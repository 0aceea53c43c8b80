"""One line for each row: name, locus, predictions, worst convergence delta, strongest k-mer.

Columns of a target end in its label: `prediction_0`, `mean_reference_prediction_0`, `worst_delta_0` (signed, the one of
largest absolute value), `kmer_0` (the K bases in a row with the largest sum of |attribution|), `kmer_start_0` (its
0-based place in the sequence) and `kmer_attribution_0` (that sum). Where the store keeps the values of each fold, also
`fold_agreement_0` (see analysis/fold_agreement.py) and `prediction_spread_0` (largest less smallest of the folds').
Where it keeps the spread over references, also `reference_correlation_0` (the expected correlation of the row's
attributions with those of infinitely many references, see analysis/reference_spread.py).

Of variants there is a line for each variant instead: see variant_table.py.
"""

from typing import Any

import numpy as np

from dlshap_core.sequences import decode
from pipeline.analysis import fold_agreement, reference_spread
from pipeline.exports.selection import Selection
from pipeline.store.reader import Block, Store
from pipeline.store.schema import TABLE

ARRAYS_READ = ("codes", "attribution", "prediction", "reference_prediction", "convergence_delta")


def rows_of(selection: Selection) -> tuple[np.ndarray, list[str]]:
    """The rows of the store that are read, and notes."""
    return selection.rows, []


def tabulate(store: Store, block: Block, labels: dict[int, str], k: int) -> dict[str, Any]:
    """The columns of some rows, lists and arrays."""
    table = store.rows
    columns: dict[str, Any] = {"row": block.rows}
    columns |= {name: table[name][block.rows].tolist() for name in TABLE}
    for index, label in labels.items():
        start, total = strongest(block["attribution"][:, index], k)
        of_references = block["reference_prediction"][:, index]
        columns |= {
            f"prediction_{label}": block["prediction"][:, index],
            f"mean_reference_prediction_{label}": of_references.mean(axis=1, dtype=np.float64),
            f"worst_delta_{label}": worst(block["convergence_delta"][:, index]),
            f"kmer_{label}": [decode(row[i : i + k]) for row, i in zip(block["codes"], start, strict=True)],
            f"kmer_start_{label}": start,
            f"kmer_attribution_{label}": total,
        }
        if "attribution_sd" in block.values:
            attribution, sd = (block[name][:, index] for name in reference_spread.ARRAYS_READ)
            found = reference_spread.certainty(attribution, sd, store.plan.n_references)
            columns[f"reference_correlation_{label}"] = found.correlation
        if "attribution_by_fold" in block.values:
            attribution, prediction = (block[name][:, :, index] for name in fold_agreement.ARRAYS_READ)
            per_fold = fold_agreement.agreement(attribution)
            columns[f"fold_agreement_{label}"] = fold_agreement.of_row(per_fold)
            columns[f"prediction_spread_{label}"] = fold_agreement.spread(prediction)
    return columns


def worst(deltas: np.ndarray) -> np.ndarray:
    """(B,) the delta of largest absolute value of each row of (B, n), signed."""
    return np.take_along_axis(deltas, np.abs(deltas).argmax(axis=1)[:, None], axis=1)[:, 0]


def strongest(attribution: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) where the k bases with the largest sum of |attribution|, (B, L), first start, and (B,) that sum."""
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(attribution), k, axis=1)
    sums = windows.sum(axis=2, dtype=np.float64)
    start = sums.argmax(axis=1)
    return start, sums[np.arange(len(sums)), start]
