"""Scores of variants under the names that ChromBPNet's variant scorer gives them, as tab-separated text.

`chr`, `pos` (from 1), `allele1` (reference), `allele2` (alternate; "-" where the windows do not tell an allele),
`variant_id`, `allele1_pred_counts` and `allele2_pred_counts` (exp of the predicted log counts), `logfc` (the base 2
logarithm of the second over the first) and `abs_logfc`. Behind them are columns of ours: `reference_spread` (the
standard deviation of the references' log2 counts) and `reference_pair_share` (the share of pairs of references that
are predicted at least as far apart as the alleles).

Where the store has them (store.null_difference=true), `logfc.pval` (of both tails) and `abs_logfc.pval` are p-values as
the scorer has them: the share of the differences of the alleles of all variants of the store, each within shuffled
sequences, that are at least as large, itself among them.

With a store of peaks of the same model, `allele1_quantile` and `allele2_quantile` are the share of peaks with fewer
predicted counts, of P peaks at least 1 / P; `active_allele_quantile` is the larger one, `quantile_change` the second
less the first, and `abs_quantile_change` its size.
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
from pipeline.planning.fingerprint import differences
from pipeline.store.reader import Store, open_store

COLUMNS = (
    *("chr", "pos", "allele1", "allele2", "variant_id", "allele1_pred_counts", "allele2_pred_counts"),
    *("logfc", "abs_logfc", "reference_spread", "reference_pair_share"),
)
P_VALUES = ("logfc.pval", "abs_logfc.pval")
QUANTILES = (
    *("allele1_quantile", "allele2_quantile", "active_allele_quantile"),
    *("quantile_change", "abs_quantile_change"),
)
SAME = ("model.name", "model.weights", "settings.engine.reverse_complement")  # of the fingerprints, for one prediction
ARRAYS_READ = ("codes", "prediction", "reference_prediction")


def export(selection: Selection, out: Path, overwrite: bool, advance: Advance, peaks: str | None) -> Written:
    """Write the scores to the file `out`, a line for each variant; see `Export.write`.

    Args:
        peaks: a store of peaks, whose predicted counts the alleles' are compared with.

    Raises:
        UserError: the rows are no variants, what was explained is not log counts, or the peaks are of another model.
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
    of_peaks = None if peaks is None else _of_peaks(peaks, store)
    more = [*([] if null is None else P_VALUES), *([] if of_peaks is None else QUANTILES)]
    with appearing([out], overwrite) as (hidden,), hidden.open("w", encoding="utf-8") as file:
        file.write("\t".join([*COLUMNS, *more]) + "\n")
        for block in store.blocks(ARRAYS_READ, rows, selection.target):
            counts = block["prediction"].astype(np.float64)
            logfc = (counts[1::2] - counts[::2]) / math.log(2)
            spread, share = against_references(logfc, block["reference_prediction"][::2] / math.log(2))
            p_values = [] if null is None else [p_value(logfc, null), p_value(np.abs(logfc), np.abs(null), True)]
            quantiles = [] if of_peaks is None else _quantiles(counts, of_peaks)
            columns = [np.exp(counts[::2]), np.exp(counts[1::2]), logfc, np.abs(logfc), spread, share]
            columns += [*p_values, *quantiles]
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
    if of_peaks is not None:
        notes.append(f"quantiles: among the predicted counts of {len(of_peaks):,} rows of {peaks}")
    return Written([out], len(rows), notes)


def _of_peaks(url: str, variants: Store) -> np.ndarray:
    """The predicted log counts of a store of peaks, in ascending order."""
    store = open_store(url)
    targets = [target for target in range(len(store.targets)) if store.head_of(target) == "counts"]
    if has_variants(store.plan) or len(targets) != 1:
        raise UserError(f"--peaks {url}: expected a store of peaks, with log counts as one target (model.head=counts)")
    theirs, ours = ({name: each.attrs["fingerprint"].get(name) for name in SAME} for each in (store, variants))
    if differing := differences(theirs, ours, sides=("there", "for the variants")):
        raise UserError(f"--peaks {url}: {', '.join(differing)}; run the model of the variants on the peaks")
    found = store["prediction"][:, targets[0]]
    return np.sort(np.asarray(found, dtype=np.float64))


def _quantiles(counts: np.ndarray, of_peaks: np.ndarray) -> list[np.ndarray]:
    """The columns QUANTILES of both rows of each variant."""
    share = np.maximum(np.searchsorted(of_peaks, counts, side="left"), 1) / len(of_peaks)
    one, two = share[::2], share[1::2]
    return [one, two, np.maximum(one, two), two - one, np.abs(two - one)]


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
    options={
        "peaks": {
            "metavar": "STORE",
            "help": "a store of peaks of the same model; adds active_allele_quantile and its like",
        },
    },
)
