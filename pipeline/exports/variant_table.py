"""One line for each variant: locus, alleles, what the alternate allele changes in prediction and attribution.

`variant` is its name, `row` the store's row of the reference allele (the alternate one's is the next), `vcf_position`
the place of its first base as a VCF counts (from 1), `ref` and `alt` its alleles in their shortest form (empty where
they are longer than the window), `start` and `end` the window, 0-based and half-open.

Columns of a target end in its label: `prediction_ref_0`, `prediction_alt_0`, `prediction_difference_0` (alternate minus
reference), `worst_delta_0` (signed, the one of largest absolute value of either allele), `change_start_0` and
`change_end_0` (the K bases of the genome with the largest sum of |attribution difference|, 0-based and half-open),
`change_0` (the signed sum of the difference over them) and `change_size_0` (the sum of sizes). Attributions are
compared base by base of the reference window: see pipeline/variants.py. Where the store keeps the values of each fold,
also `fold_agreement_0` (of the attribution differences, see pipeline/agreement.py) and
`prediction_difference_spread_0` (largest less smallest of the folds').
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import agreement
from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.tables import OPENERS
from pipeline.reader import Block
from pipeline.variants import Variant, difference, strongest_change, variants_of, with_both_alleles
from pipeline.wording import counted

ARRAYS = ("codes", "attribution", "prediction", "convergence_delta")
LOCUS = {
    "variant": pa.string(),
    "row": pa.int64(),
    "chrom": pa.string(),
    "vcf_position": pa.int64(),
    "ref": pa.string(),
    "alt": pa.string(),
    "start": pa.int64(),
    "end": pa.int64(),
}
OF_TARGET = {
    "prediction_ref": pa.float32(),
    "prediction_alt": pa.float32(),
    "prediction_difference": pa.float32(),
    "worst_delta": pa.float32(),
    "change_start": pa.int64(),
    "change_end": pa.int64(),
    "change": pa.float64(),
    "change_size": pa.float64(),
}
OF_FOLDS = {"fold_agreement": pa.float64(), "prediction_difference_spread": pa.float64()}


def export(
    selection: Selection, targets: list[int], out: Path, kind: str, k: int, overwrite: bool, advance: Advance
) -> Written:
    """Write the table to the file `out`; a variant with one selected row has both.

    Args:
        selection: rows of a store of variants; whole sequences are looked at.
        targets: indices on the target axis, which get columns.
        out: the file.
        kind: parquet or tsv.
        k: bases that a change is summed over.
        overwrite: replace what is there.
        advance: told of rows that are done.

    Raises:
        UserError: the sequences are shorter than k, or a file is there already.
    """
    if not 0 < k <= selection.width:
        raise UserError(f"--k {k}: the sequences have {selection.width} bases")
    store, rows = selection.store, with_both_alleles(selection.rows)
    labels = {index: store.targets[index] for index in targets}
    folds = agreement.has_folds(store.plan)
    names = [*ARRAYS, *(agreement.ARRAYS if folds else ())]
    with (
        appearing([out], overwrite) as (partial,),
        OPENERS[kind](partial, schema(list(labels.values()), folds)) as write,
    ):
        for block in store.blocks(names, rows):
            write(tabulate(selection, block, labels, k))
            advance(len(block.rows))
    n_variants = len(rows) // 2
    return written([out], len(rows), [f"a line for each of {counted(n_variants, 'variant')}, two rows of the store"])


def schema(labels: list[str], folds: bool) -> pa.Schema:
    """The columns, for these labels of targets; with what is said of folds where there are any."""
    of_target = OF_TARGET | (OF_FOLDS if folds else {})
    return pa.schema(
        [*LOCUS.items(), *((f"{name}_{label}", kind) for label in labels for name, kind in of_target.items())]
    )


def tabulate(selection: Selection, block: Block, labels: dict[int, str], k: int) -> dict[str, list[Any]]:
    """The columns of some variants, both rows of each."""
    table, first = selection.store.rows, block.rows[::2]
    variants = variants_of(selection.store, block)
    columns: dict[str, list[Any]] = {
        "variant": [variant.name for variant in variants],
        "row": first.tolist(),
        "chrom": [variant.chrom for variant in variants],
        "vcf_position": [variant.position + 1 for variant in variants],
        "ref": [variant.ref for variant in variants],
        "alt": [variant.alt for variant in variants],
        "start": table["start"][first].tolist(),
        "end": table["end"][first].tolist(),
    }
    for index, label in labels.items():
        prediction = block["prediction"][:, index]
        deltas = block["convergence_delta"][:, index].reshape(len(first), -1)
        worst = np.abs(deltas).argmax(axis=1)
        changes = _changes(block["attribution"][:, index], variants, table["start"][first], k)
        columns |= {
            f"prediction_ref_{label}": list(prediction[::2]),
            f"prediction_alt_{label}": list(prediction[1::2]),
            f"prediction_difference_{label}": list(prediction[1::2] - prediction[::2]),
            f"worst_delta_{label}": list(np.take_along_axis(deltas, worst[:, None], axis=1)[:, 0]),
            **{f"{name}_{label}": values for name, values in changes.items()},
        }
        if "attribution_by_fold" in block.values:
            of_folds = block["attribution_by_fold"][:, :, index], block["prediction_by_fold"][:, :, index]
            columns |= {f"{name}_{label}": values for name, values in _of_folds(*of_folds, variants).items()}
    return columns


def _changes(attribution: np.ndarray, variants: list[Variant], left: np.ndarray, k: int) -> dict[str, list[Any]]:
    """Where the (2V, L) attributions of each variant change most, and by how much."""
    columns: dict[str, list[Any]] = {name: [] for name in ("change_start", "change_end", "change", "change_size")}
    for variant, ref, alt, begin in zip(variants, attribution[::2], attribution[1::2], left.tolist(), strict=True):
        change = difference(ref, alt, *variant.lengths)
        start, end = strongest_change(change, k)
        columns["change_start"].append(begin + start)
        columns["change_end"].append(begin + end)
        columns["change"].append(float(change[start:end].sum()))
        columns["change_size"].append(float(np.abs(change[start:end]).sum()))
    return columns


def _of_folds(attribution: np.ndarray, prediction: np.ndarray, variants: list[Variant]) -> dict[str, list[float]]:
    """What the folds say of each variant, from (2V, F, L) attributions and (2V, F) predictions."""
    pairs = zip(variants, attribution[::2], attribution[1::2], strict=True)
    changes = (difference(ref, alt, *variant.lengths)[None] for variant, ref, alt in pairs)
    return {
        "fold_agreement": [float(agreement.of_row(agreement.agreement(change))[0]) for change in changes],
        "prediction_difference_spread": agreement.spread(
            prediction[1::2].astype(np.float64) - prediction[::2]
        ).tolist(),
    }
