"""One line for each row: name, locus, predictions, worst convergence delta, strongest k-mer; Parquet or TSV.

Columns of a target end in its label: `prediction_0`, `mean_reference_prediction_0`, `worst_delta_0` (signed, the one of
largest absolute value), `kmer_0` (the K bases in a row with the largest sum of |attribution|), `kmer_start_0` (its
0-based place in the sequence) and `kmer_attribution_0` (that sum).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dlshap_core.sequences import decode
from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.text import field
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
    labels = {index: selection.store.targets[index] for index in targets}
    with appearing([out], overwrite) as (partial,), _OPENERS[kind](partial, schema(list(labels.values()))) as write:
        for block in selection.store.blocks(ARRAYS, selection.rows):
            write(summarise(selection, block, labels, k))
            advance(len(block.rows))
    return written([out], len(selection), [])


def schema(labels: list[str]) -> pa.Schema:
    """The columns, for these labels of targets."""
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


Write = Callable[[dict[str, list[Any]]], None]


@contextlib.contextmanager
def _parquet(path: Path, columns: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, columns) as writer:
        yield lambda values: writer.write_table(pa.table(values, schema=columns))


@contextlib.contextmanager
def _tsv(path: Path, columns: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join(columns.names) + "\n")

        def write(values: dict[str, list[Any]]) -> None:
            for row in zip(*(values[name] for name in columns.names), strict=True):
                file.write("\t".join(map(field, row)) + "\n")

        yield write


_OPENERS = {"parquet": _parquet, "tsv": _tsv}
