"""What a report says of variants, of one target: how predictions differ, and what the strongest variants change.

Shape legend: V variants that are there, D bases that are drawn.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline import variants
from pipeline.reader import Block, Store
from pipeline.report import figures
from pipeline.report.sites import Site
from pipeline.store import ALLELES
from pipeline.variants import Variant

N_LISTED, N_DRAWN = 12, 6  # variants with the largest differences
SITE_WIDTH = 20  # bases that a change is summed over
FLANK = 10  # bases drawn on either side
ALLELES_DRAWN = ("reference", "alternate", "difference")


@dataclass(frozen=True)
class Effect:
    """One variant; where its attributions change most is 0-based in the reference window and on the genome.

    Attributes:
        variant: which.
        ref, alt: predictions of the alleles.
        difference: alternate minus reference.
        start, end: the bases with the largest sum of |attribution difference|.
        locus: of these bases on the genome.
        change: the signed sum of the attribution difference over them.
        logos: of the reference allele, the alternate allele and the difference; none for those that are only listed.
    """

    variant: Variant
    ref: float
    alt: float
    difference: float
    start: int
    end: int
    locus: str
    change: float
    logos: list[tuple[str, Markup]]


@dataclass(frozen=True)
class Effects:
    """Of all variants that are there.

    Attributes:
        n: variants.
        n_not_finite: of them, with a difference of predictions that is not finite.
        differences: (V - n_not_finite,) of predictions.
        strongest: the largest |difference| first.
        histogram: a figure; empty where there is nothing to draw.
    """

    n: int
    n_not_finite: int
    differences: np.ndarray
    strongest: list[Effect]
    histogram: Markup

    @property
    def n_up(self) -> int:
        """Variants whose alternate allele is predicted above the reference allele."""
        return int((self.differences > 0).sum())

    @property
    def median_size(self) -> float:
        """Of |difference|."""
        return float(np.median(np.abs(self.differences))) if len(self.differences) else float("nan")


def measure_effects(store: Store, target: int, prefix: str) -> Effects | None:
    """What the variants do; None where the rows are no variants.

    Args:
        store: with one row at least.
        target: index on the target axis.
        prefix: of the figures' names.
    """
    if not variants.has_variants(store.plan):
        return None
    there = np.flatnonzero(store.present[::ALLELES])
    differences = np.asarray(store["prediction_difference"][:, target], dtype=np.float64)[there]
    finite = np.isfinite(differences)
    order = np.argsort(-np.abs(np.where(finite, differences, 0)), kind="stable")[: min(N_LISTED, int(finite.sum()))]
    strongest = [
        _effect(store, target, int(there[place]), f"{prefix}-variant{n}", draws=n < N_DRAWN)
        for n, place in enumerate(order.tolist())
    ]
    known = differences[finite]
    most = float(np.abs(known).max()) if len(known) else 0.0
    drawn = ""
    if len(known):
        limits = (-most or -1.0, most or 1.0)
        drawn = figures.histogram(known, limits, "difference of predictions", "variants", f"{prefix}-differences")
    return Effects(len(there), int((~finite).sum()), known, strongest, Markup(drawn))


def _effect(store: Store, target: int, index: int, name: str, draws: bool) -> Effect:
    rows = np.arange(index * ALLELES, (index + 1) * ALLELES)
    values = store.take(["codes", "attribution", "prediction"], rows, target)
    codes, attribution = values["codes"], values["attribution"]
    (variant,) = variants.variants_of(store, Block(rows, values))
    change = variants.difference(attribution[0], attribution[1], *variant.lengths)
    start, end = variants.strongest_change(change, SITE_WIDTH)
    left = int(store.rows["start"][rows[0]])
    ref, alt = (float(value) for value in values["prediction"])
    drawn = np.stack([*attribution, change])
    return Effect(
        variant=variant,
        ref=ref,
        alt=alt,
        difference=float(np.asarray(store["prediction_difference"][index, target])),
        start=start,
        end=end,
        locus=f"{variant.chrom}:{left + start:,}-{left + end:,}",
        change=float(change[start:end].sum()),
        logos=_logos(variant, np.stack([*codes, codes[0]]), drawn, start, end, name) if draws else [],
    )


def _logos(
    variant: Variant, codes: np.ndarray, values: np.ndarray, start: int, end: int, name: str
) -> list[tuple[str, Markup]]:
    """The bases around [start, end) of both alleles and of their difference: (3, L) codes and values, on one scale."""
    length = codes.shape[1]
    width = min(end - start + 2 * FLANK, length)
    first = min(max(start - FLANK, 0), length - width)
    shown = slice(first, first + width)
    sites = [
        Site(
            row=variant.row,
            name=f"{variant.name}, {what}",
            locus="",
            start=start,
            end=end,
            first=first,
            codes=code[shown],
            attribution=value[shown],
            total=float(value[start:end].sum()),
            prediction=float("nan"),
        )
        for what, code, value in zip(ALLELES_DRAWN, codes, values, strict=True)
    ]
    limits = figures.limits_of(sites)
    drawn = figures.logos(sites, limits, name)
    return [(what, Markup(logo)) for what, logo in zip(ALLELES_DRAWN, drawn, strict=True)]
