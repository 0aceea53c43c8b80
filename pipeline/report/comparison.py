"""The page of a comparison of two stores: one HTML file that needs nothing but itself."""

import importlib.metadata
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.analysis.comparison import QUANTILES, SITE_WIDTH, Comparison, TargetComparison, most_changed_bases
from pipeline.messages.visible import brief
from pipeline.report import figures
from pipeline.report.page import environment
from pipeline.report.sites import Site, locus_of, name_of, read_site
from pipeline.store.reader import Store

N_DRAWN = 6  # rows that changed most


def make_comparison_page(found: Comparison) -> str:
    """The page of two stores that were compared."""
    sections = [_section(found, target, f"t{index}") for index, target in enumerate(found.targets)]
    context = {
        "stores": (found.a.url, found.b.url),
        "names": [store.url.rstrip("/").rpartition("/")[2] for store in (found.a, found.b)],
        "found": found,
        "n_rows": len(found.a),
        "sections": sections,
        "quantiles": QUANTILES,
        "site_width": SITE_WIDTH,
        "version": importlib.metadata.version("dlshap"),
    }
    return environment().get_template("comparison.html").render(context)


def _section(found: Comparison, target: TargetComparison, prefix: str) -> dict[str, Any]:
    """What the page shows of one pair of targets."""
    finite = np.isfinite(target.prediction).all(axis=1)
    known = target.correlation[np.isfinite(target.correlation)]
    words = [brief(store.target_names[index]) for store, index in ((found.a, target.a), (found.b, target.b))]
    pairs = target.prediction[finite]
    limits = (min(0.0, float(known.min())), 1.0) if len(known) else (0.0, 1.0)
    label = "correlation of the attributions along a sequence"
    return {
        "target": target,
        "names": words,
        "n_known": len(known),
        "correlations": target.correlation_quantiles(),
        "histogram": Markup(figures.histogram(known, limits, label, "sequences", f"{prefix}-correlation"))
        if len(known)
        else "",
        "predictions": Markup(figures.side_by_side(pairs[:, 0], pairs[:, 1], words, f"{prefix}-predictions"))
        if len(pairs)
        else "",
        "rows": _rows(found, target, prefix),
    }


def _rows(found: Comparison, target: TargetComparison, prefix: str) -> list[dict[str, Any]]:
    """The rows that changed most, each with its logo in both stores; each store has one scale of its own."""
    places = target.most_changed(N_DRAWN).tolist()
    sites: tuple[list[Site], list[Site]] = ([], [])
    for place in places:
        row = int(target.rows[place])
        a, b = _attribution(found.a, target.a, row), _attribution(found.b, target.b, row)
        start, end = most_changed_bases(a, b, target.units)
        for drawn, store, index in zip(sites, (found.a, found.b), (target.a, target.b), strict=True):
            drawn.append(read_site(store, row, start, end, index))
    limits = _limits(sites, target.units)
    logos = [
        figures.logos(drawn, limit, f"{prefix}-{which}")
        for drawn, limit, which in zip(sites, limits, "ab", strict=True)
    ]
    return [
        {
            "index": int(target.rows[place]),
            "name": name_of(found.a, int(target.rows[place])),
            "locus": locus_of(found.a, int(target.rows[place])),
            "start": sites[0][n].start,
            "end": sites[0][n].end,
            "correlation": float(target.correlation[place]),
            "change": float(target.change[place]),
            "prediction": target.prediction[place].tolist(),
            "logos": [Markup(of_store[n]) for of_store in logos],
            "totals": [drawn[n].total for drawn in sites],
        }
        for n, place in enumerate(places)
    ]


def _limits(
    sites: tuple[list[Site], list[Site]], units: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of attribution for the logos of each store: equal ones in its units."""
    each = [figures.limits_of(drawn) if drawn else (-1.0, 1.0) for drawn in sites]
    low = min(limit[0] / unit for limit, unit in zip(each, units, strict=True))
    high = max(limit[1] / unit for limit, unit in zip(each, units, strict=True))
    return (low * units[0], high * units[0]), (low * units[1], high * units[1])


def _attribution(store: Store, target: int, row: int) -> np.ndarray:
    return np.asarray(store.attribution[row, target], dtype=np.float64)
