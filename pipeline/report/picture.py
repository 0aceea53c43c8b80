"""A picture of one sequence, or of part of it, as letters to scale; of a long one a track, and letters where it is
strongest, on one scale."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief, shown
from pipeline.messages.words import did_you_mean
from pipeline.report.logos import draw_logo
from pipeline.report.sites import locus_of, name_of
from pipeline.store.reader import Store
from pipeline.store.rows import Region

MOST_LETTERS = 150  # bases that are all drawn as letters
IN_DETAIL = 100  # bases of a stretch of a longer sequence
MOST_DETAILS, LEAST_SHARE = 3, 0.25  # stretches, and of the strongest one's attribution
SITE_WIDTH = 20  # bases whose attribution tells how strong a stretch is
MOST_POINTS = 1500  # of a track
INCHES_PER_BASE = 0.1
TRACK_HEIGHT, LINE_HEIGHT = 1.1, 1.6  # inches
DPI = 150
TRACK, SHADE = "#3b5b92", "#e8eaee"


@dataclass(frozen=True)
class Stretch:
    """What is drawn.

    Attributes:
        row: index in the store.
        start, end: positions in its sequence, 0-based, half-open.
        n_others: how many other rows were meant as well.
        chrom: the chromosome whose positions the axis shows; "": it shows those in the sequence.
    """

    row: int
    start: int
    end: int
    n_others: int = 0
    chrom: str = ""


def choose(store: Store, wanted: str, start: int | None, end: int | None) -> Stretch:
    """The row that is called or lies as `wanted` says, and the part of it to draw.

    Args:
        wanted: a name, or a region such as chr1:100-200, 0-based, half-open.
        start, end: within the sequence; the whole of it, or of the region, if not given.

    Raises:
        UserError: there is no such row, or the part lies outside it.
    """
    length = int(store.codes.shape[1])
    named = np.flatnonzero((store.rows["name"] == wanted) & store.present)
    stretch = _named(store, wanted, named) if len(named) else _located(store, wanted)
    first = stretch.start if start is None else start
    last = stretch.end if end is None else end
    if not 0 <= first < last <= length:
        raise UserError(
            f"positions {first} to {last} of {wanted}: expected a part of its {length} bases, 0 to {length}"
        )
    return replace(stretch, start=first, end=last)


def _named(store: Store, wanted: str, rows: np.ndarray) -> Stretch:
    """The first of the rows called so; of a name that is a region within their windows, that region of it."""
    start, end = store.rows["start"][rows], store.rows["end"][rows]
    if (region := Region.of(wanted)) is not None:
        there = (store.rows["chrom"][rows] == region.chrom) & (start < region.end) & (end > region.start)
        if (there & (start >= 0)).any():
            return _covering(store, region, rows[there])
    return Stretch(int(rows[0]), 0, int(store.codes.shape[1]), len(rows) - 1)


def _located(store: Store, wanted: str) -> Stretch:
    """A region of the row that covers most of it."""
    region = Region.of(wanted)
    if region is None:
        names = [str(name) for name in store.rows["name"]]
        raise UserError(f"no row of {store.url} is called {shown(wanted)}{did_you_mean(wanted, names)}")
    overlapping = store.rows_overlapping(region)
    rows = overlapping[store.present[overlapping]]
    if not len(rows):
        raise UserError(f"no row of {store.url} is called {shown(wanted)}, and none shares a base with that region")
    return _covering(store, region, rows)


def _covering(store: Store, region: Region, rows: np.ndarray) -> Stretch:
    """Of rows that share bases with a region, the one that covers most of it, then the one whose centre is nearest."""
    left, right = store.rows["start"][rows], store.rows["end"][rows]
    covered = np.minimum(right, region.end) - np.maximum(left, region.start)
    off_centre = np.abs(left + right - region.start - region.end)
    best = np.lexsort((rows, off_centre, -covered))[0]
    row, low, high = int(rows[best]), int(left[best]), int(right[best])
    begin, end = max(region.start, low) - low, min(region.end, high) - low
    if store.on_minus_strand[row]:
        return Stretch(row, high - low - end, high - low - begin, len(rows) - 1)
    return Stretch(row, begin, end, len(rows) - 1, region.chrom)


def draw(store: Store, stretch: Stretch, target: int, path: Path, form: str) -> None:
    """Draw a stretch for a target, an index, in the form png, svg or pdf; UserError where values are not finite."""
    rows, part = np.array([stretch.row]), slice(stretch.start, stretch.end)
    (block,) = store.blocks(["codes", "attribution"], rows, target, part)
    codes, attribution = block["codes"][0], block["attribution"][0]
    name = name_of(store, stretch.row)
    if not np.isfinite(attribution).all():
        raise UserError(
            f"the attributions of {shown(name)} (row {stretch.row}) are not finite; there is nothing to draw"
        )
    # Positions as they are shown: on the chromosome, or in the sequence.
    first = stretch.start + (int(store.rows["start"][stretch.row]) if stretch.chrom else 0)
    low, high = min(float(attribution.min()), 0.0), max(float(attribution.max()), 0.0)
    margin = 0.05 * (high - low) or 1.0
    is_long = len(codes) > MOST_LETTERS
    lines = _strongest(attribution) if is_long else [(0, len(codes))]
    # No TeX, whatever a matplotlibrc of the working folder says: it is a program that it would steer.
    with matplotlib.rc_context({"svg.hashsalt": "dlshap", "svg.fonttype": "none", "text.usetex": False}):
        heights = [TRACK_HEIGHT] * is_long + [LINE_HEIGHT] * len(lines)
        widest = max(end - start for start, end in lines)
        figure = Figure(figsize=(max(widest * INCHES_PER_BASE, 4) + 1, 0.7 + sum(heights)), layout="constrained")
        panels = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        if is_long:
            _draw_track(panels[0], attribution, first, lines)
        for axes, (start, end) in zip(panels[is_long:], lines, strict=True):
            draw_logo(axes, codes[start:end], attribution[start:end], first + start)
        for axes in panels:
            axes.set_ylim(low - margin, high + margin)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        figure.supylabel(f"attribution ({brief(store.target_names[target], 40)})", size=9, parse_math=False)
        where = f"on {brief(stretch.chrom)}" if stretch.chrom else "in the sequence"
        figure.supxlabel(f"position {where} (bp)", size=9, parse_math=False)
        figure.suptitle(_title(store, stretch.row, name), size=10, parse_math=False)
        figure.savefig(path, format=form, dpi=DPI, metadata=_no_date(form))


def _strongest(attribution: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of the stretches with most attribution, in order, none of them overlapping."""
    sizes, length = np.abs(attribution).astype(np.float64), len(attribution)
    found: list[tuple[int, int]] = []
    strongest = 0.0
    while len(found) < MOST_DETAILS:
        sums = np.convolve(sizes, np.ones(SITE_WIDTH), "valid")
        best = int(sums.argmax())
        strongest = strongest or sums[best]
        if found and (sums[best] < LEAST_SHARE * strongest or not strongest):
            break
        site = sizes[best : best + SITE_WIDTH]
        centre = best + (round(site @ np.arange(SITE_WIDTH) / site.sum()) if strongest else 0)
        before, after = (
            max((end for _, end in found if end <= best + SITE_WIDTH), default=0),
            min((begin for begin, _ in found if begin >= best), default=length),
        )
        if after - before < IN_DETAIL:  # between two that are drawn
            break
        start = min(max(centre - IN_DETAIL // 2, before), after - IN_DETAIL)
        found.append((start, start + IN_DETAIL))
        sizes[start : start + IN_DETAIL] = 0.0
    return sorted(found)


def _draw_track(axes: Axes, attribution: np.ndarray, first: int, lines: Sequence[tuple[int, int]]) -> None:
    """All of a sequence, at position `first`: the largest and the smallest value of each few bases; and where the lines
    are."""
    width = -(-len(attribution) // MOST_POINTS)
    starts = np.arange(0, len(attribution), width)
    edges = np.append(starts, len(attribution)) + first
    for start, end in lines:
        axes.axvspan(first + start, first + end, color=SHADE, linewidth=0)
    for values in (
        np.maximum.reduceat(attribution, starts).clip(0),
        np.minimum.reduceat(attribution, starts).clip(max=0),
    ):
        axes.stairs(values, edges, fill=True, color=TRACK, linewidth=0.6, edgecolor=TRACK)
    axes.axhline(0, color="0.4", linewidth=0.5)
    axes.set_xlim(edges[0], edges[-1])


def _title(store: Store, row: int, name: str) -> str:
    locus = locus_of(store, row)
    return f"{name}   {locus}" if locus and locus.replace(",", "") != name else name


def _no_date(form: str) -> dict[str, None]:
    """What makes two pictures of the same differ."""
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
