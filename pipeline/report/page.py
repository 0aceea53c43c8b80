"""The report: one HTML page that needs nothing but itself."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.deltas import QUANTILES, quantile
from pipeline.kmers import Kmer, reverse_complement
from pipeline.reader import Store
from pipeline.report import figures
from pipeline.report.effects import SITE_WIDTH as CHANGE_WIDTH
from pipeline.report.effects import Effects, measure_effects
from pipeline.report.facts import counted_many, run_facts, verdict
from pipeline.report.folds import Folds, measure_folds
from pipeline.report.measure import (
    Attributions,
    Scalars,
    measure_attributions,
    measure_scalars,
    sample,
)
from pipeline.report.numbers import count, number, share
from pipeline.report.sites import Site, choose_sites, locus_of
from pipeline.report.steps import Link, links_of, next_steps

K = 6
N_STRONGEST, N_LOWEST = 8, 4  # sites drawn
N_KMERS, N_KMERS_LOWEST = 12, 6
N_WORST = 8  # rows with the largest deltas
LONGEST_ALLELE = 16  # bases that are shown of one
N_TARGETS = 4  # that get a section of their own unless others are asked for

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Row:
    """A row with a large convergence delta."""

    index: int
    name: str
    locus: str
    delta: float
    prediction: float


@dataclass(frozen=True)
class Section:
    """All that is said of one target; figures are SVG elements."""

    label: str
    scalars: Scalars
    attributions: Attributions
    quantiles: dict[str, float | None]
    worst: list[Row]
    strongest: list[tuple[Site, Markup]]
    lowest: list[tuple[Site, Markup]]
    kmers: list[Kmer]
    kmers_lowest: list[Kmer]
    predictions: Markup
    convergence: Markup
    profile: Markup
    folds: Folds | None
    effects: Effects | None

    @property
    def n_above(self) -> int:
        """Rows that are predicted above the mean of their references."""
        finite = self.scalars.finite
        return int((self.scalars.prediction[finite] > self.scalars.reference[finite]).sum())

    @property
    def mean_prediction(self) -> float:
        return _mean(self.scalars.prediction[self.scalars.finite])

    @property
    def mean_reference(self) -> float:
        return _mean(self.scalars.reference[self.scalars.finite])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def make_page(store: Store, targets: Sequence[int], advance: Advance, folder: Path, links: Sequence[Link] = ()) -> str:
    """The report of a store.

    Args:
        store: with one row at least.
        targets: indices on the target axis, of those that get a section.
        advance: told of rows as their attributions are read.
        folder: where the page will lie; exports that are there are linked to.
        links: to other files.
    """
    threshold = store.plan.warning_threshold
    rows = sample(np.flatnonzero(store.present), int(store.codes.shape[1]))
    sections = [_section(store, target, rows, threshold, advance) for target in targets]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "number": number, "rc": reverse_complement, "short": _short}
    environment.globals |= {"share": share, "counted": counted_many, "abs": abs}
    return environment.get_template("page.html").render(
        _context(store, sections, rows, threshold)
        | {
            "steps": [(step, links_of(step, folder)) for step in next_steps(store, sections[0].label)],
            "links": links,
        }
    )


def _short(bases: str) -> str:
    """An allele; of a long one its beginning and its length."""
    return (
        bases
        if len(bases) <= LONGEST_ALLELE
        else f"{bases[: LONGEST_ALLELE - 4]}... ({counted_many(len(bases), 'base')})"
    )


def _context(store: Store, sections: list[Section], rows: np.ndarray, threshold: float) -> dict[str, Any]:
    attrs = store.attrs
    shown = {section.label for section in sections}
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
        "sections": sections,
        "not_shown": [label for label in store.targets if label not in shown],
        "state": state,
        "verdict": sentence,
        "deltas": deltas,
        "threshold": threshold,
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


def _section(store: Store, target: int, rows: np.ndarray, threshold: float, advance: Advance) -> Section:
    scalars = measure_scalars(store, target, threshold)
    found = measure_attributions(store, target, rows, K, advance)
    strongest = choose_sites(store, found, target, N_STRONGEST)
    lowest = choose_sites(store, found, target, N_LOWEST, lowest=True)
    limits, prefix = figures.limits_of([*strongest, *lowest]), f"t{target}"
    drawn = [Markup(logo) for logo in figures.logos([*strongest, *lowest], limits, f"{prefix}-logo")]
    return Section(
        label=store.targets[target],
        scalars=scalars,
        attributions=found,
        quantiles={name: _quantile(scalars, part) for name, part in QUANTILES.items()},
        worst=[_row(store, scalars, int(place)) for place in scalars.worst_rows(N_WORST)],
        strongest=list(zip(strongest, drawn, strict=False)),
        lowest=list(zip(lowest, drawn[len(strongest) :], strict=True)),
        kmers=found.kmers.strongest(N_KMERS),
        kmers_lowest=found.kmers.strongest(N_KMERS_LOWEST, negative=True),
        predictions=Markup(figures.predictions(scalars, f"{prefix}-predictions")),
        convergence=Markup(figures.convergence(scalars, threshold, f"{prefix}-deltas")),
        profile=Markup(figures.profile(found.profile, f"{prefix}-profile")) if len(found.rows) else Markup(""),
        folds=measure_folds(store, target, prefix),
        effects=measure_effects(store, target, prefix),
    )


def _quantile(scalars: Scalars, part: float) -> float | None:
    """As pipeline/deltas.py has it, but not above the largest delta."""
    value, largest = quantile(scalars.deltas, part), scalars.deltas["largest"]
    return value if value is None or largest is None else min(value, largest)


def _row(store: Store, scalars: Scalars, place: int) -> Row:
    row = int(scalars.rows[place])
    return Row(
        row,
        str(store.rows["name"][row]),
        locus_of(store, row),
        float(scalars.worst[place]),
        float(scalars.prediction[place]),
    )
