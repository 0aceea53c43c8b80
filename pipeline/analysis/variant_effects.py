"""What became of each variant: its alleles, and where its attributions changed; of stores made with dataset=variants.

Rows of such a store are the reference and the alternate allele in turn, and the variant's first base lies at position
L // 2 of both windows (see inputs/variants.py).

Shape legend: V variants, R references, L positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlshap_core.sequences import decode
from pipeline.planning.plan import Plan
from pipeline.store.reader import Block, Store
from pipeline.store.schema import ALLELES_PER_VARIANT

MIN_TAIL = 16  # bases behind a variant that must be the same in both windows for its alleles to be told


def has_variants(plan: Plan) -> bool:
    """Whether the rows of a store are alleles of variants."""
    return plan.rows_per_group == ALLELES_PER_VARIANT


def with_both_alleles(rows: np.ndarray) -> np.ndarray:
    """(2V,) ascending: the rows of every variant that one of the rows belongs to."""
    first = np.unique(rows // ALLELES_PER_VARIANT) * ALLELES_PER_VARIANT
    return np.stack([first, first + 1], axis=1).ravel()


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        row: of its reference allele; the alternate one's is the next.
        name: of the rows, without the allele.
        position: of its first base, 0-based.
        ref, alt: its alleles in their shortest form from that base on; "" where the windows do not tell.
    """

    row: int
    name: str
    chrom: str
    position: int
    ref: str
    alt: str

    @property
    def lengths(self) -> tuple[int, int]:
        """Bases of the alleles; 0 and 0 where they are not known."""
        return len(self.ref), len(self.alt)


def variants_of(store: Store, block: Block) -> list[Variant]:
    """The variants of a block that holds both rows of each, and `codes`."""
    middle = int(store.codes.shape[1]) // 2
    found = []
    for row, ref_codes, alt_codes in zip(block.rows[::2], block["codes"][::2], block["codes"][1::2], strict=True):
        n_ref, n_alt = allele_lengths(ref_codes, alt_codes) or (0, 0)
        ref, alt = (decode(codes[middle : middle + n]) for codes, n in ((ref_codes, n_ref), (alt_codes, n_alt)))
        name = str(store.rows["name"][row]).removesuffix(":ref")
        position = int(store.rows["start"][row]) + middle
        found.append(Variant(int(row), name, str(store.rows["chrom"][row]), position, ref, alt))
    return found


def allele_lengths(ref: np.ndarray, alt: np.ndarray) -> tuple[int, int] | None:
    """Bases of the reference and of the alternate allele, from the windows of both.

    That is the shortest pair, of a base at least each, behind which the (L,) uint8 codes are the same. None where fewer
    than MIN_TAIL bases are left behind it: the variant is longer than the window, or the windows are too short.
    """
    length, middle = len(ref), len(ref) // 2
    best: tuple[int, int] | None = None
    for shift in _shifts(length - middle):
        if best is not None and abs(shift) + 2 > sum(best):
            break
        begin_ref, begin_alt = middle + max(0, -shift) + 1, middle + max(0, shift) + 1
        n_tail = length - max(begin_ref, begin_alt)
        differing = np.flatnonzero(ref[begin_ref : begin_ref + n_tail] != alt[begin_alt : begin_alt + n_tail])
        skipped = int(differing[-1]) + 1 if len(differing) else 0
        if n_tail - skipped < MIN_TAIL:
            continue
        pair = begin_ref + skipped - middle, begin_alt + skipped - middle
        if best is None or sum(pair) < sum(best):
            best = pair
    return best


def _shifts(most: int) -> Iterator[int]:
    """0, 1, -1, 2, -2, ...: how many bases longer the alternate allele is."""
    yield 0
    for shift in range(1, most):
        yield from (shift, -shift)


def difference(ref: np.ndarray, alt: np.ndarray, n_ref: int, n_alt: int) -> np.ndarray:
    """Attributions of the alternate allele less those of the reference allele, base by base of the reference window.

    Bases behind an insertion or a deletion are compared with the same bases, which lie at other positions in the
    alternate window; what an insertion adds is put on the last base of the reference allele, what a deletion takes is
    lost from its own bases. Bases that one of the windows does not reach have no difference: 0.

    Args:
        ref, alt: (..., L) attributions of the observed bases.
        n_ref, n_alt: bases of the alleles; equal ones where they are not known.

    Returns:
        (..., L) float64.
    """
    length = ref.shape[-1]
    middle = length // 2
    common = min(n_ref, n_alt)
    n_tail = length - middle - max(n_ref, n_alt)
    aligned = np.array(ref, dtype=np.float64)
    aligned[..., : middle + common] = alt[..., : middle + common]
    aligned[..., middle + common : middle + n_ref] = 0
    aligned[..., middle + n_ref - 1] += alt[..., middle + common : middle + n_alt].sum(axis=-1, dtype=np.float64)
    aligned[..., middle + n_ref : middle + n_ref + n_tail] = alt[..., middle + n_alt : middle + n_alt + n_tail]
    return aligned - ref


def strongest_change(change: np.ndarray, width: int) -> tuple[int, int]:
    """[start, end) of the bases with the largest sum of |change|: `width` of (L,), or all where there are fewer."""
    width = min(width, len(change))
    sums = np.concatenate([[0.0], np.abs(change).cumsum()])
    start = int((sums[width:] - sums[:-width]).argmax())
    return start, start + width


def most_spread(sd_L: np.ndarray, n_ref: int, n_alt: int, start: int, end: int) -> float:
    """The most that a change summed over the bases [start, end) can spread over the references: the sum of the spread
    of each, which it is where all move together.

    NaN where bases behind an insertion or a deletion are among them: of these the spread is not known, as they lie at
    other positions in the alternate window.

    Args:
        sd_L: the standard deviation of the difference of the alleles' attributions at each position.
        n_ref, n_alt: bases of the alleles; equal ones where they are not known.
    """
    in_place = n_ref == n_alt or end <= len(sd_L) // 2 + min(n_ref, n_alt)
    return float(sd_L[start:end].sum(dtype=np.float64)) if in_place else float("nan")


def against_references(difference_V: np.ndarray, reference_prediction_VR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How large a difference of predictions is beside those of the references, which both alleles share.

    Args:
        difference_V: of the predictions of the alleles.
        reference_prediction_VR: the predictions at the references.

    Returns:
        (V,) each, NaN with one reference: the standard deviation of the predictions at the references, and the share of
        pairs of references whose predictions are at least as far apart as those of the alleles.
    """
    predictions = reference_prediction_VR.astype(np.float64)
    n_references = predictions.shape[1]
    if n_references < 2:
        unknown = np.full(len(predictions), np.nan)
        return unknown, unknown
    first, second = np.triu_indices(n_references, k=1)
    size = np.abs(difference_V.astype(np.float64))
    pairs = zip(size.tolist(), predictions, strict=True)
    share = [float((np.abs(of_one[first] - of_one[second]) >= least).mean()) for least, of_one in pairs]
    return predictions.std(axis=1, ddof=1), np.array(share)
