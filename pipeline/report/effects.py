"""What a report says of variants, of one target: how predictions differ, and what the strongest variants change.

Shape legend: V finished variants, D bases that are drawn.
"""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.analysis import variant_effects
from pipeline.analysis.variant_effects import Variant
from pipeline.messages.visible import brief
from pipeline.report import figures
from pipeline.report.sites import Site, around
from pipeline.store.reader import Block, Store
from pipeline.store.schema import ALLELES_PER_VARIANT

N_LISTED, N_DRAWN = 12, 6  # variants with the largest differences
SITE_WIDTH = 20  # bases that a change is summed over
ALLELES_DRAWN = ("reference", "alternate", "difference")


def measure_effects(store: Store, target: int, prefix: str) -> dict[str, Any] | None:
    """What the variants do to a target, an index; None where the rows are no variants.

    `prefix` begins the figures' names. The strongest variants are those with the largest |difference|.
    """
    if not variant_effects.has_variants(store.plan):
        return None
    there = np.flatnonzero(store.present[::ALLELES_PER_VARIANT])
    differences = store.of_variants("prediction_difference", slice(None), target).astype(np.float64)[there]
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
    return {
        "n": len(there),
        "n_not_finite": int((~finite).sum()),
        "n_up": int((known > 0).sum()),
        "median_size": float(np.median(np.abs(known))) if len(known) else None,
        "strongest": strongest,
        "has_spread": store.plan.spread,
        "histogram": Markup(drawn),
    }


def _effect(store: Store, target: int, index: int, name: str, draws: bool) -> dict[str, Any]:
    """One variant: predictions of its alleles, and where its attributions change most, on the genome, and by how much;
    logos if it is drawn."""
    rows = np.arange(index * ALLELES_PER_VARIANT, (index + 1) * ALLELES_PER_VARIANT)
    values = store.take(["codes", "attribution", "prediction", "reference_prediction"], rows, target)
    codes, attribution = values["codes"], values["attribution"]
    (variant,) = variant_effects.variants_of(store, Block(rows, values))
    change = variant_effects.difference(attribution[0], attribution[1], *variant.lengths)
    start, end = variant_effects.strongest_change(change, SITE_WIDTH)
    left = int(store.rows["start"][rows[0]])
    ref, alt = (float(value) for value in values["prediction"])
    drawn = np.stack([*attribution, change])
    one = slice(index, index + 1)
    (difference,) = store.of_variants("prediction_difference", one, target).tolist()
    error = float("nan")
    if store.plan.spread:
        (sd,) = store.of_variants("attribution_difference_sd", one, target)
        most = variant_effects.most_spread(sd, *variant.lengths, start, end)
        error = most / math.sqrt(store.plan.n_references)
    _, share = variant_effects.against_references(np.array([difference]), values["reference_prediction"][:1])
    return {
        "variant": variant,
        "ref": ref,
        "alt": alt,
        "difference": difference,
        "share": float(share[0]),
        "locus": f"{variant.chrom}:{left + start:,}-{left + end:,}",
        "change": float(change[start:end].sum()),
        "error": error,
        "logos": _logos(variant, np.stack([*codes, codes[0]]), drawn, start, end, name) if draws else [],
    }


def _logos(
    variant: Variant, codes: np.ndarray, values: np.ndarray, start: int, end: int, name: str
) -> list[tuple[str, Markup]]:
    """The bases around [start, end) of both alleles and of their difference: (3, L) codes and values, on one scale."""
    shown, sites = around(start, end, codes.shape[1]), []
    for what, code, value in zip(ALLELES_DRAWN, codes, values, strict=True):
        of_variant = (variant.row, f"{brief(variant.name)}, {what}", "")
        drawn = (shown.start, code[shown], value[shown])
        sites.append(Site(*of_variant, start, end, *drawn, float(value[start:end].sum()), float("nan")))
    logos = figures.logos(sites, figures.limits_of(sites), name)
    return [(what, Markup(logo)) for what, logo in zip(ALLELES_DRAWN, logos, strict=True)]
