"""One line for each variant: locus, alleles, what the alternate allele changes in prediction and attribution.

`variant` is its name, `row` the store's row of the reference allele (the alternate one's is the next), `vcf_position`
the place of its first base as a VCF counts (from 1), `ref` and `alt` its alleles in their shortest form (empty where
they are longer than the window), `start` and `end` the window, 0-based and half-open.

Columns of a target end in its label: `prediction_ref_0`, `prediction_alt_0`, `prediction_difference_0` (alternate minus
reference), `reference_spread_0` (the standard deviation of the predictions at the references, which both alleles
share), `reference_pair_share_0` (the share of pairs of references that are predicted at least as far apart as the
alleles; NaN with one reference), `worst_delta_0` (signed, the one of largest absolute value of either allele),
`change_start_0` and `change_end_0` (the K bases of the genome with the largest sum of |attribution difference|, 0-based
and half-open), `change_0` (the signed sum of the difference over them), `change_size_0` (the sum of sizes) and, where
the store keeps the spread over references, `change_sd_at_most_0` (what the standard deviation of `change_0` over the
references is at most: the sum of that of each base; NaN behind an insertion or a deletion).
Attributions are compared base by base of the reference window: see analysis/variant_effects.py. Where the store keeps
the values of each fold, also `fold_agreement_0` (of the attribution differences, see analysis/fold_agreement.py) and
`prediction_difference_spread_0` (largest less smallest of the folds').
"""

from typing import Any

import numpy as np

from pipeline.analysis import fold_agreement
from pipeline.analysis.variant_effects import (
    Variant,
    against_references,
    difference,
    most_spread,
    strongest_change,
    variants_of,
    with_both_alleles,
)
from pipeline.exports.row_table import worst
from pipeline.exports.selection import Selection
from pipeline.messages.words import counted
from pipeline.store.reader import Block, Store

ARRAYS_READ = ("codes", "attribution", "prediction", "reference_prediction", "convergence_delta")


def rows_of(selection: Selection) -> tuple[np.ndarray, list[str]]:
    """The rows of the store that are read, both of each variant, and notes."""
    rows = with_both_alleles(selection.rows)
    return rows, [f"a line for each of {counted(len(rows) // 2, 'variant')}, two rows of the store"]


def tabulate(store: Store, block: Block, labels: dict[int, str], k: int) -> dict[str, Any]:
    """The columns of some variants, both rows of each, lists and arrays."""
    table, first = store.rows, block.rows[::2]
    variants = variants_of(store, block)
    columns: dict[str, Any] = {
        "variant": [variant.name for variant in variants],
        "row": first,
        "chrom": [variant.chrom for variant in variants],
        "vcf_position": [variant.position + 1 for variant in variants],
        "ref": [variant.ref for variant in variants],
        "alt": [variant.alt for variant in variants],
        "start": table["start"][first],
        "end": table["end"][first],
    }
    for index, label in labels.items():
        prediction = block["prediction"][:, index]
        deltas = block["convergence_delta"][:, index].reshape(len(first), -1)
        of_variants = prediction[1::2] - prediction[::2]
        spread, share = against_references(of_variants, block["reference_prediction"][::2, index])
        sd = _spread_of(store, first, index)
        changes = _changes(block["attribution"][:, index], sd, variants, table["start"][first], k)
        columns |= {
            f"prediction_ref_{label}": prediction[::2],
            f"prediction_alt_{label}": prediction[1::2],
            f"prediction_difference_{label}": of_variants,
            f"reference_spread_{label}": spread,
            f"reference_pair_share_{label}": share,
            f"worst_delta_{label}": worst(deltas),
            **{f"{name}_{label}": values for name, values in changes.items()},
        }
        if "attribution_by_fold" in block.values:
            attribution, prediction = (block[name][:, :, index] for name in fold_agreement.ARRAYS_READ)
            columns |= {
                f"{name}_{label}": values for name, values in _of_folds(attribution, prediction, variants).items()
            }
    return columns


def _spread_of(store: Store, first: np.ndarray, target: int) -> np.ndarray | None:
    """(V, L) standard deviations of the attribution differences of the variants whose reference alleles are rows
    `first`; None where the store has none."""
    if not store.plan.spread:
        return None
    places = first // 2
    start = int(places[0])
    return store.of_variants("attribution_difference_sd", slice(start, int(places[-1]) + 1), target)[places - start]


def _changes(
    attribution: np.ndarray, sd: np.ndarray | None, variants: list[Variant], left: np.ndarray, k: int
) -> dict[str, list[Any]]:
    """Where the (2V, L) attributions of each variant change most, and by how much."""
    names = ["change_start", "change_end", "change", "change_size", *([] if sd is None else ["change_sd_at_most"])]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    each = zip(variants, attribution[::2], attribution[1::2], left.tolist(), strict=True)
    for place, (variant, ref, alt, begin) in enumerate(each):
        change = difference(ref, alt, *variant.lengths)
        start, end = strongest_change(change, k)
        columns["change_start"].append(begin + start)
        columns["change_end"].append(begin + end)
        columns["change"].append(float(change[start:end].sum()))
        columns["change_size"].append(float(np.abs(change[start:end]).sum()))
        if sd is not None:
            columns["change_sd_at_most"].append(most_spread(sd[place], *variant.lengths, start, end))
    return columns


def _of_folds(attribution: np.ndarray, prediction: np.ndarray, variants: list[Variant]) -> dict[str, Any]:
    """What the folds say of each variant, from (2V, F, L) attributions and (2V, F) predictions."""
    pairs = zip(variants, attribution[::2], attribution[1::2], strict=True)
    changes = (difference(ref, alt, *variant.lengths)[None] for variant, ref, alt in pairs)
    agreement = [float(fold_agreement.of_row(fold_agreement.agreement(change))[0]) for change in changes]
    spread = fold_agreement.spread(prediction[1::2].astype(np.float64) - prediction[::2])
    return {"fold_agreement": agreement, "prediction_difference_spread": spread}
