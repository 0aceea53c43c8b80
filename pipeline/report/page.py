"""The report: one HTML page that needs nothing but itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dlshap_core.sequences import reverse_complement_text
from pipeline.analysis.next_steps import Step
from pipeline.messages.progress import Advance
from pipeline.messages.visible import brief, visible
from pipeline.planning.convergence import QUANTILES, quantile
from pipeline.report import figures
from pipeline.report.certainty import measure_certainty
from pipeline.report.effects import SITE_WIDTH as CHANGE_WIDTH
from pipeline.report.effects import measure_effects
from pipeline.report.facts import counted_many, run_facts, verdict
from pipeline.report.folds import measure_folds
from pipeline.report.formatting import count, mean, number, share
from pipeline.report.measure import Scalars, measure_attributions, measure_scalars, sample
from pipeline.report.sites import choose_sites, locus_of, name_of
from pipeline.report.steps import Link, links_of
from pipeline.store.reader import Store

K = 6
N_STRONGEST, N_LOWEST = 8, 4  # sites drawn
N_KMERS, N_KMERS_LOWEST = 12, 6
N_WORST = 8  # rows with the largest deltas
LONGEST_ALLELE = 16  # bases that are shown of one
N_TARGETS = 4  # that get a section of their own unless others are asked for


def make_page(
    store: Store, targets: Sequence[int], advance: Advance, folder: Path, steps: Sequence[Step], links: Sequence[Link]
) -> str:
    """The report of a store with one finished row at least.

    Args:
        targets: indices on the target axis, of those that get a section.
        folder: where the page will lie.
        steps: what can be done next; the files of a step that exist in the folder are linked to.
    """
    threshold = store.plan.warning_threshold
    rows = sample(np.flatnonzero(store.present), int(store.codes.shape[1]))
    done = [(step, links_of(step, folder)) for step in steps]
    sections = [_section(store, target, rows, threshold, advance) for target in targets]
    not_shown = _not_shown(store, {store.targets[target] for target in targets})
    more = {"sections": sections, "not_shown": not_shown, "steps": done, "links": links}
    return environment().get_template("page.html").render(_context(store, rows, threshold) | more)


def environment() -> Environment:
    """What the templates of pages are rendered in."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    found.filters |= {
        "count": count,
        "number": number,
        "rc": reverse_complement_text,
        "short": _short,
        "brief": brief,
    }
    found.filters["heading"] = lambda name: name[:1].upper() + name[1:]
    found.globals |= {"share": share, "counted": counted_many, "abs": abs}
    return found


def _visible(value: Any) -> Any:
    """What the page is given, as it may stand in it: names of rows, labels and settings come from anywhere."""
    return type(value)(visible(value, kept="\n")) if isinstance(value, str) else value


def _short(bases: str) -> str:
    """An allele; of a long one its beginning and its length."""
    if len(bases) <= LONGEST_ALLELE:
        return bases
    return f"{bases[: LONGEST_ALLELE - 4]}... ({counted_many(len(bases), 'base')})"


def _context(store: Store, rows: np.ndarray, threshold: float) -> dict[str, Any]:
    attrs = store.attrs
    state, sentence = verdict(store)
    deltas = attrs.get("run", {}).get("deltas")
    return {
        "title": store.url.rstrip("/").rpartition("/")[2],
        "url": store.url,
        "complete": store.complete,
        "n_rows": len(store),
        "n_present": int(store.present.sum()),
        "n_read": len(rows),
        "length": int(store.codes.shape[1]),
        "n_references": store.plan.n_references,
        "targets": store.targets,
        "state": state,
        "verdict": sentence,
        "deltas": deltas,
        "threshold": threshold,
        "relative_threshold": store.plan.relative_threshold,
        "is_mean": len(store.plan.folds) > 1 or store.plan.reverse_complement,
        "n_left_out": int(attrs.get("dataset", {}).get("n_left_out", 0)),
        "facts": run_facts(store),
        "audit": attrs.get("audit", {}).get("operations", []),
        "not_exact": attrs.get("not_exact", []),
        "config": json.dumps(attrs.get("config", {}), indent=2),
        "version": attrs.get("versions", {}).get("dlshap", ""),
        "k": K,
        "change_width": CHANGE_WIDTH,
    }


def _not_shown(store: Store, shown: set[str]) -> list[str]:
    """The labels of targets without a section, with their names where these say more."""
    labelled = zip(store.targets, store.target_names, strict=True)
    return [
        label if name == label or name.endswith(f"target {label}") else f"{label} ({name})"
        for label, name in labelled
        if label not in shown
    ]


def _section(store: Store, target: int, rows: np.ndarray, threshold: float, advance: Advance) -> dict[str, Any]:
    """What the page shows of one target; figures are SVG elements."""
    scalars = measure_scalars(store, target, threshold)
    found = measure_attributions(store, target, rows, K, advance)
    strongest = choose_sites(store, found, target, N_STRONGEST)
    lowest = choose_sites(store, found, target, N_LOWEST, lowest=True)
    name = brief(store.target_names[target])
    limits, prefix = figures.limits_of([*strongest, *lowest]), f"t{target}"
    drawn = [Markup(logo) for logo in figures.logos([*strongest, *lowest], limits, f"{prefix}-logo")]
    prediction, reference = scalars.prediction[scalars.finite], scalars.reference[scalars.finite]
    return {
        "name": name,
        "scalars": scalars,
        "attributions": found,
        "n_above": int((prediction > reference).sum()),
        "mean_prediction": mean(prediction),
        "mean_reference": mean(reference),
        "quantiles": {name: quantile(scalars.deltas, part) for name, part in QUANTILES.items()},
        "worst": [_row(store, scalars, int(place)) for place in scalars.worst_rows(N_WORST)],
        "strongest": list(zip(strongest, drawn, strict=False)),
        "lowest": list(zip(lowest, drawn[len(strongest) :], strict=True)),
        "kmers": found.kmers.strongest(N_KMERS),
        "kmers_lowest": found.kmers.strongest(N_KMERS_LOWEST, negative=True),
        "predictions": Markup(figures.predictions(scalars, name, f"{prefix}-predictions")),
        "convergence": Markup(figures.convergence(scalars, threshold, f"{prefix}-deltas")),
        "profile": Markup(figures.profile(found.profile, name, f"{prefix}-profile")) if len(found.rows) else "",
        "folds": measure_folds(store, target, prefix),
        "certainty": measure_certainty(store, target, prefix),
        "effects": measure_effects(store, target, prefix),
    }


def _row(store: Store, scalars: Scalars, place: int) -> dict[str, Any]:
    """A row with a large convergence delta."""
    row = int(scalars.rows[place])
    return {
        "index": row,
        "name": name_of(store, row),
        "locus": locus_of(store, row),
        "delta": float(scalars.worst[place]),
        "prediction": float(scalars.prediction[place]),
    }
