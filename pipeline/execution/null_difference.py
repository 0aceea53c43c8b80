"""The difference of a variant's alleles where nothing around them is as in the genome: within each of its references.

Both alleles are put into the middle of every reference in turn, and predicted. So ChromBPNet's variant scorer draws
the null of its p-values, within shuffles.

Shape legend: N rows, V variants, R references, T targets, L positions.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dlshap_core.one_hot import one_hot
from pipeline.analysis.variant_effects import allele_lengths

Predict = Callable[[Tensor, np.ndarray], Tensor]
"""Sequences (M, 4, L), and the row (M,) of each, whose extra inputs go with it, to predictions (M, T)."""


def null_difference(
    codes_NL: np.ndarray, references_NRL: np.ndarray, n_targets: int, batch_size: int, predict: Predict
) -> Tensor:
    """(V, T, R): of each variant, predictions with the alternate allele less those with the reference allele, within
    each reference; NaN where the windows do not tell the alleles. At most `batch_size` sequences are predicted at once,
    or the two alleles."""
    n_references = references_NRL.shape[1]
    lengths = [allele_lengths(ref, alt) for ref, alt in zip(codes_NL[::2], codes_NL[1::2], strict=True)]
    found = torch.full((len(lengths), n_targets, n_references), torch.nan, dtype=torch.float64)
    pairs = [(v, k, *known) for v, known in enumerate(lengths) if known is not None for k in range(n_references)]
    step = max(1, batch_size // 2)
    for some in (pairs[start : start + step] for start in range(0, len(pairs), step)):
        placed, rows = [], []
        for v, k, n_ref, n_alt in some:
            for row, n_bases in ((2 * v, n_ref), (2 * v + 1, n_alt)):
                placed.append(_with_allele(references_NRL[2 * v, k], codes_NL[row], n_ref, n_bases))
                rows.append(row)
        y = predict(one_hot(np.stack(placed)), np.array(rows)).double()
        for (v, k, *_), difference in zip(some, y[1::2] - y[::2], strict=True):
            found[v, :, k] = difference
    return found


def _with_allele(reference_L: np.ndarray, codes_L: np.ndarray, n_ref: int, n_bases: int) -> np.ndarray:
    """A reference with the allele of a window, of so many bases, in the place of the reference allele. What is right of
    an insertion is shifted out; bases that a deletion takes go to the right end, as no others are known."""
    middle = len(codes_L) // 2
    allele, right = codes_L[middle : middle + n_bases], reference_L[middle + n_ref :]
    taken = reference_L[middle + n_bases : middle + n_ref]
    return np.concatenate([reference_L[:middle], allele, right, taken])[: len(codes_L)]
