"""Scores of variants under the names that ChromBPNet's variant scorer gives them, as tab-separated text.

`chr`, `pos` (from 1), `allele1` (reference), `allele2` (alternate; "-" where the windows do not tell an allele),
`variant_id`, `allele1_pred_counts` and `allele2_pred_counts` (exp of the predicted log counts), `logfc` (the base 2
logarithm of the second over the first) and `abs_logfc`. Behind them are columns of ours: `reference_spread` (the
standard deviation of the references' log2 counts) and `reference_pair_share` (the share of pairs of references that
are predicted at least as far apart as the alleles). These are not the scorer's p-values, for which it puts both alleles
into shuffled sequences.
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

COLUMNS = (
    *("chr", "pos", "allele1", "allele2", "variant_id", "allele1_pred_counts", "allele2_pred_counts"),
    *("logfc", "abs_logfc", "reference_spread", "reference_pair_share"),
)
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
    rows = with_both_alleles(selection.rows)
    with appearing([out], overwrite) as (hidden,), hidden.open("w", encoding="utf-8") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for block in store.blocks(ARRAYS_READ, rows, selection.target):
            counts = block["prediction"].astype(np.float64)
            logfc = (counts[1::2] - counts[::2]) / math.log(2)
            spread, share = against_references(logfc, block["reference_prediction"][::2] / math.log(2))
            values = zip(
                variants_of(store, block),
                *(np.exp(counts[allele::2]).tolist() for allele in (0, 1)),
                *(column.tolist() for column in (logfc, np.abs(logfc), spread, share)),
                strict=True,
            )
            for variant, *numbers in values:
                alleles = (allele or "-" for allele in (variant.ref, variant.alt))
                names = [variant.chrom, str(variant.position + 1), *alleles, field(variant.name)]
                file.write("\t".join([*names, *(f"{number:.6g}" for number in numbers)]) + "\n")
            advance(len(block.rows))
    return Written(
        [out], len(rows), [f"a line for each of {counted(len(rows) // 2, 'variant')}, two rows of the store"]
    )


EXPORT = Export(
    name="variant-scores",
    help="scores of variants, with the columns of ChromBPNet's variant scorer (chr, pos, allele1, allele2, logfc, ...)",
    write=export,
)
