"""A picture of one sequence, or of part of it, as letters to scale; long ones in several lines on one scale."""

from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.messages.errors import UserError
from pipeline.messages.visible import brief, shown
from pipeline.messages.words import did_you_mean
from pipeline.report.logos import draw_logo
from pipeline.report.sites import locus_of, name_of
from pipeline.store.reader import Store
from pipeline.store.rows import Region

BASES_IN_A_LINE = 150  # on average, at most
BREAK_WITHIN, BREAK_FROM = 15, 5  # bases from where a line would end that it may end at, and looked at around that
MAX_BASES = 6000
INCHES_PER_BASE = 0.105
DPI = 150


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
        UserError: there is no such row, or the part lies outside it or is too long to draw.
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
    if last - first > MAX_BASES:
        raise UserError(f"{last - first} bases are too many for a picture; choose {MAX_BASES} with --start and --end")
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
    origin = int(store.rows["start"][stretch.row]) if stretch.chrom else 0
    lines = _lines(attribution)
    longest = max(last - first for first, last in lines)
    low, high = min(float(attribution.min()), 0.0), max(float(attribution.max()), 0.0)
    margin = 0.05 * (high - low) or 1.0
    # No TeX, whatever a matplotlibrc of the working folder says: it is a program that it would steer.
    with matplotlib.rc_context({"svg.hashsalt": "dlshap", "svg.fonttype": "none", "text.usetex": False}):
        size = (max(longest * INCHES_PER_BASE, 4) + 1, 0.6 + 1.5 * len(lines))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
        for axes, (first, last) in zip(panels, lines, strict=True):
            draw_logo(axes, codes[first:last], attribution[first:last], stretch.start + first)
            axes.set_xlim(stretch.start + first, stretch.start + first + longest)
            axes.set_ylim(low - margin, high + margin)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.spines["bottom"].set_bounds(stretch.start + first, stretch.start + last)
            ticks = _ticks(origin + stretch.start + first, origin + stretch.start + last, longest)
            axes.set_xticks(ticks - origin)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{origin + value:,.0f}"))
        figure.supylabel("attribution", size=9)
        where = f"on {brief(stretch.chrom)}" if stretch.chrom else "in the sequence"
        figure.supxlabel(f"position {where} (bp)", size=9, parse_math=False)
        figure.suptitle(_title(store, stretch.row, name, target), size=10, parse_math=False)
        figure.savefig(path, format=form, dpi=DPI, metadata=_no_date(form))


def _lines(attribution: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each line, nearly even; a break lies where there is least attribution, so not within a motif."""
    length, lines, start = len(attribution), [], 0
    n_lines = -(-length // BASES_IN_A_LINE)
    for line in range(1, n_lines):
        even = line * length // n_lines
        places = np.arange(even - BREAK_WITHIN, even + BREAK_WITHIN + 1)
        around = [np.abs(attribution[place - BREAK_FROM : place + BREAK_FROM]).sum() for place in places]
        end = int(places[np.argmin(around)])
        lines.append((start, end))
        start = end
    return [*lines, (start, length)]


def _ticks(first: int, last: int, longest: int) -> np.ndarray:
    """Round positions of [first, last), equally far apart in every line."""
    step = next(step for step in (1, 2, 5, 10) if step * 20 > longest or step == 10)
    return np.arange(-(-first // step) * step, last + 1, step)


def _title(store: Store, row: int, name: str, target: int) -> str:
    locus = locus_of(store, row)
    parts = [name, locus if locus.replace(",", "") != name else ""]
    parts.append(brief(store.target_names[target]))
    return "   ".join(part for part in parts if part)


def _no_date(form: str) -> dict[str, None]:
    """What makes two pictures of the same differ."""
    return {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
