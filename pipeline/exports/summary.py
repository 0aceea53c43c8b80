"""One line for each row: name, locus, predictions, worst convergence delta, strongest k-mer; Parquet or TSV.

Columns of a target end in its label: `prediction_0`, `mean_reference_prediction_0`, `worst_delta_0` (signed, the one of
largest absolute value), `kmer_0` (the K bases in a row with the largest sum of |attribution|), `kmer_start_0` (its
0-based place in the sequence) and `kmer_attribution_0` (that sum). Where the store keeps the values of each fold, also
`fold_agreement_0` (see pipeline/agreement.py) and `prediction_spread_0` (largest less smallest of the folds').

Of variants there is a line for each variant instead: see variant_table.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlshap_core.sequences import decode
from pipeline import agreement
from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.tables import OPENERS
from pipeline.reader import Block
from pipeline.store import TABLE

K = 10
ARRAYS = ("codes", "attribution", "prediction", "reference_prediction", "convergence_delta")
_TYPES = {str: pa.string(), np.int64: pa.int64()}


def export(
    selection: Selection, targets: list[int], out: Path, kind: str, k: int, overwrite: bool, advance: Advance
) -> Written:
    """Write the table to the file `out`.

    Args:
        selection: which rows; whole sequences are looked at.
        targets: indices on the target axis, which get columns.
        out: the file.
        kind: parquet or tsv.
        k: bases of the strongest k-mer.
        overwrite: replace what is there.
        advance: told of rows that are done.

    Raises:
        UserError: the sequences are shorter than k, or a file is there already.
    """
    if not 0 < k <= selection.width:
        raise UserError(f"--k {k}: the sequences have {selection.width} bases")
    store = selection.store
    labels = {index: store.targets[index] for index in targets}
    folds = agreement.has_folds(store.plan)
    columns = schema(list(labels.values()), folds)
    with appearing([out], overwrite) as (partial,), OPENERS[kind](partial, columns) as write:
        for block in store.blocks([*ARRAYS, *(agreement.ARRAYS if folds else ())], selection.rows):
            write(summarise(selection, block, labels, k))
            advance(len(block.rows))
    return written([out], len(selection), [])


def schema(labels: list[str], folds: bool = False) -> pa.Schema:
    """The columns, for these labels of targets; with what is said of folds where there are any."""
    columns = [("row", pa.int64()), *((name, _TYPES[kind]) for name, kind in TABLE.items())]
    for label in labels:
        columns += [
            (f"prediction_{label}", pa.float32()),
            (f"mean_reference_prediction_{label}", pa.float64()),
            (f"worst_delta_{label}", pa.float32()),
            (f"kmer_{label}", pa.string()),
            (f"kmer_start_{label}", pa.int64()),
            (f"kmer_attribution_{label}", pa.float64()),
        ]
        if folds:
            columns += [(f"fold_agreement_{label}", pa.float64()), (f"prediction_spread_{label}", pa.float64())]
    return pa.schema(columns)


def summarise(selection: Selection, block: Block, labels: dict[int, str], k: int) -> dict[str, list[Any]]:
    """The columns of some rows."""
    table = selection.store.rows
    columns: dict[str, list[Any]] = {"row": block.rows.tolist()}
    columns |= {name: table[name][block.rows].tolist() for name in TABLE}
    for index, label in labels.items():
        deltas = block["convergence_delta"][:, index]
        worst = np.abs(deltas).argmax(axis=1)
        start, total = strongest(block["attribution"][:, index], k)
        columns |= {
            f"prediction_{label}": list(block["prediction"][:, index]),
            f"mean_reference_prediction_{label}": _mean(block["reference_prediction"][:, index]).tolist(),
            f"worst_delta_{label}": list(np.take_along_axis(deltas, worst[:, None], axis=1)[:, 0]),
            f"kmer_{label}": [decode(row[i : i + k]) for row, i in zip(block["codes"], start, strict=True)],
            f"kmer_start_{label}": start.tolist(),
            f"kmer_attribution_{label}": total.tolist(),
        }
        if "attribution_by_fold" in block.values:
            per_fold = agreement.agreement(block["attribution_by_fold"][:, :, index])
            columns[f"fold_agreement_{label}"] = agreement.of_row(per_fold).tolist()
            columns[f"prediction_spread_{label}"] = agreement.spread(block["prediction_by_fold"][:, :, index]).tolist()
    return columns


def _mean(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.mean(axis=1, dtype=np.float64))


def strongest(attribution: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the k bases with the largest sum of |attribution| start, the first such place, and the sum.

    Args:
        attribution: (B, L).
        k: at most L.

    Returns:
        (B,) int64 and (B,) float64.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.abs(attribution), k, axis=1)
    sums = windows.sum(axis=2, dtype=np.float64)
    start = sums.argmax(axis=1)
    return start, sums[np.arange(len(sums)), start]
