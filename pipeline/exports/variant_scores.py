"""Scores of variants under the names that ChromBPNet's variant scorer gives them, as tab-separated text.

`chr`, `pos` (from 1), `allele1` (reference), `allele2` (alternate; "-" where the windows do not tell an allele),
`variant_id`, `allele1_pred_counts` and `allele2_pred_counts` (exp of the predicted log counts), `logfc` (the base 2
logarithm of the second over the first) and `abs_logfc`. Behind them are columns of ours: `reference_spread` (the
standard deviation of the references' log2 counts) and `reference_pair_share` (the share of pairs of references that
are predicted at least as far apart as the alleles).

Where the store has them (store.null_difference=true), `logfc.pval` (of both tails) and `abs_logfc.pval` are p-values as
the scorer has them: the share of the differences of the alleles of all variants of the store, each within shuffled
sequences, that are at least as large, itself among them.
"""

import math
from pathlib import Path

import numpy as np

from pipeline.analysis.variant_effects import against_references, has_variants, variants_of, with_both_alleles
from pipeline.exports.base import Export, Written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Selection
from pipeline.exports.text import field
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance
from pipeline.messages.words import counted
from pipeline.store.reader import Store

COLUMNS = (
    *("chr", "pos", "allele1", "allele2", "variant_id", "allele1_pred_counts", "allele2_pred_counts"),
    *("logfc", "abs_logfc", "reference_spread", "reference_pair_share"),
)
P_VALUES = ("logfc.pval", "abs_logfc.pval")
ARRAYS_READ = ("codes", "prediction", "reference_prediction")


def export(selection: Selection, out: Path, overwrite: bool, advance: Advance) -> Written:
    """Write the scores to the file `out`, a line for each variant; see `Export.write`.

    Raises:
        UserError: the rows are no variants, or what was explained is not log counts.
    """
    store = selection.store
    if not has_variants(store.plan):
        raise UserError(f"the rows of {store.url} are no variants (dataset=variants)")
    if store.head_of(selection.target) != "counts":
        raise UserError(
            f"{store.url} explains {store.target_names[selection.target]!r}, and these scores are of log counts "
            "(model.head=counts); `dlshap export tsv` has a table of any output"
        )
    rows, null = with_both_alleles(selection.rows), _null(store, selection.target)
    with appearing([out], overwrite) as (hidden,), hidden.open("w", encoding="utf-8") as file:
        file.write("\t".join([*COLUMNS, *([] if null is None else P_VALUES)]) + "\n")
        for block in store.blocks(ARRAYS_READ, rows, selection.target):
            counts = block["prediction"].astype(np.float64)
            logfc = (counts[1::2] - counts[::2]) / math.log(2)
            spread, share = against_references(logfc, block["reference_prediction"][::2] / math.log(2))
            p_values = [] if null is None else [p_value(logfc, null), p_value(np.abs(logfc), np.abs(null), True)]
            columns = [np.exp(counts[::2]), np.exp(counts[1::2]), logfc, np.abs(logfc), spread, share, *p_values]
            values = zip(variants_of(store, block), *(column.tolist() for column in columns), strict=True)
            for variant, *numbers in values:
                alleles = (allele or "-" for allele in (variant.ref, variant.alt))
                names = [variant.chrom, str(variant.position + 1), *alleles, field(variant.name)]
                file.write("\t".join([*names, *(f"{number:.6g}" for number in numbers)]) + "\n")
            advance(len(block.rows))
    notes = [f"a line for each of {counted(len(rows) // 2, 'variant')}, two rows of the store"]
    if null is None:
        notes.append("no p-values: the run did not put alleles into shuffles (store.null_difference=true)")
    else:
        notes.append(f"p-values: against {len(null):,} differences within shuffles, of all variants of the store")
    return Written([out], len(rows), notes)


def _null(store: Store, target: int) -> np.ndarray | None:
    """The log2 fold changes of the alleles within shuffles; None where the store does not have them."""
    if not store.plan.null_difference:
        return None
    found = store.of_variants("null_difference", slice(0, store.plan.n_rows // 2), target).ravel()
    return found[np.isfinite(found)] / math.log(2)


def p_value(values: np.ndarray, null: np.ndarray, is_right: bool = False) -> np.ndarray:
    """The share of the null that is at least as large as each value, itself counted; of both tails, twice that of the
    smaller one, at most 1."""
    null, n = np.sort(null), len(null) + 1
    right = (n - np.searchsorted(null, values, side="left")) / n
    if is_right:
        return right
    left = (np.searchsorted(null, values, side="right") + 1) / n
    return np.minimum(2 * np.minimum(left, right), 1)


EXPORT = Export(
    name="variant-scores",
    help="scores of variants, with the columns of ChromBPNet's variant scorer (chr, pos, allele1, allele2, logfc, ...)",
    write=export,
)
