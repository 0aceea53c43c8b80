"""Pictures of a report, as SVG that stands inside a page: its colours are the page's, and its text is text.

matplotlib draws with colours that stand for roles; they become the page's CSS variables, so that one drawing serves
light, dark and paper.
"""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.planning.convergence import EDGES
from pipeline.report.formatting import power_of_ten, tick
from pipeline.report.logos import COLORS, draw_logo
from pipeline.report.measure import Scalars
from pipeline.report.sites import Site

INK, MUTED, ACCENT, WARN = "#010203", "#010204", "#010205", "#010206"
ROLES = {INK: "ink", MUTED: "muted", ACCENT: "accent", WARN: "warn"} | {
    color: f"base-{base}" for base, color in COLORS.items()
}
MOST_DOTS = 1000  # rows drawn one by one; more are counted in cells
BINS = 50  # of a histogram
CELLS = 40  # on either side of a picture of counts
MOST_POINTS = 1500  # of a line
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "dlshap",
    "text.usetex": False,  # whatever a matplotlibrc of the working folder says: TeX is a program that it would steer
}


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches; a screen has 96 points of them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str, title: str) -> str:
    """A figure in the colours of ROLES as an <svg> element; `name` (letters, digits, hyphens) is unique on a page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*'DejaVu Sans'[^;\"]*", r"font: \1 var(--font)", text)
    for color, role in ROLES.items():
        text = re.sub(color, f"var(--{role})", text, flags=re.IGNORECASE)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = f'<svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 {size[1]} {size[2]}" width="{size[1]}pt">'
    return re.sub(r"\s*\n\s*", "\n", head + text[text.index(">") + 1 :])


def predictions(scalars: Scalars, of: str, name: str) -> str:
    """Prediction of each row, `of` a target, against its references' mean; "" where no row has finite ones."""
    x, y = scalars.reference[scalars.finite], scalars.prediction[scalars.finite]
    if not len(x):
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(5, 4)
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        margin = 0.04 * (high - low) or 0.5
        drawn = _points(axes, x, y)
        axes.axline((low, low), slope=1, color=MUTED, linewidth=0.8, dashes=(4, 3))
        axes.set_xlim(float(x.min()) - margin, float(x.max()) + margin)
        axes.set_ylim(float(y.min()) - margin, float(y.max()) + margin)
        axes.set_xlabel(f"mean prediction of its references: {of}", parse_math=False)
        axes.set_ylabel(f"prediction of the sequence: {of}", parse_math=False)
        return _svg(
            figure, name, f"Predictions ({of}) of {len(x):,} sequences against those of their references; {drawn}."
        )


def _points(axes: Axes, x: np.ndarray, y: np.ndarray) -> str:
    """Dots, or cells where there are many; and what they are, in words."""
    if len(x) > MOST_DOTS:
        return _cells(axes, x, y)
    size, opacity = (9, 0.45) if len(x) > 200 else (26, 0.75)
    axes.scatter(x, y, s=size, color=ACCENT, alpha=opacity, linewidths=0)
    return "each dot is a sequence"


def _cells(axes: Axes, x: np.ndarray, y: np.ndarray) -> str:
    """Counts of rows as cells of one colour, the stronger the more rows."""
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=CELLS)
    full = np.argwhere(counts > 0)
    corners = [(x_edges[i], y_edges[j], x_edges[i + 1] - x_edges[i], y_edges[j + 1] - y_edges[j]) for i, j in full]
    strength = 0.15 + 0.85 * np.log1p(counts[full[:, 0], full[:, 1]]) / np.log1p(counts.max())
    colors = [to_rgba(ACCENT, round(float(value), 1)) for value in strength]
    cells = [Rectangle((left, low), width, height) for left, low, width, height in corners]
    axes.add_collection(PatchCollection(cells, facecolors=colors, linewidths=0, antialiaseds=False))
    return f"the stronger the colour, the more sequences, up to {int(counts.max()):,} in a cell"


def side_by_side(x: np.ndarray, y: np.ndarray, of: Sequence[str], name: str) -> str:
    """Finite predictions of the same (n,) rows, one or more, in two stores; `of` says what each predicts."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(5, 3.2)
        drawn = _points(axes, x, y)
        axes.set_xlabel(f"prediction in the first: {of[0]}", parse_math=False)
        axes.set_ylabel(f"in the second: {of[1]}", parse_math=False)
        return _svg(figure, name, f"Predictions of {len(x):,} sequences in both stores; {drawn}.")


def convergence(scalars: Scalars, threshold: float, name: str) -> str:
    """Histogram of |convergence delta| over all pairs, in the bins of planning/convergence.py, with the threshold."""
    counts = {int(bin_): n for bin_, n in scalars.deltas["counts"].items()}
    inner = {bin_: n for bin_, n in counts.items() if 0 < bin_ < len(EDGES)}
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(5, 4)
        left, right = np.log10(threshold) - 1, np.log10(threshold) + 0.5
        if inner:
            left = min(left, np.log10(EDGES[min(inner) - 1]) - 0.3)
            right = max(right, np.log10(EDGES[max(inner)]) + 0.3)
            starts = np.log10([EDGES[bin_ - 1] for bin_ in inner])
            colors = [WARN if EDGES[bin_ - 1] >= threshold * 0.999 else ACCENT for bin_ in inner]
            axes.bar(starts, list(inner.values()), width=0.1, align="edge", color=colors, linewidth=0, aa=False)
        axes.axvline(float(np.log10(threshold)), color=WARN, linewidth=1.2, dashes=(4, 3))
        text: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "top", "color": INK, "size": 9}
        text |= {"xycoords": ("data", "axes fraction"), "xytext": (-2, 0), "textcoords": "offset points"}
        axes.annotate("threshold", (float(np.log10(threshold)), 0.98), **text)
        axes.set_xlim(left, right)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(round(value))))
        _whole(axes.yaxis, nbins=6)
        axes.set_xlabel("size of the convergence delta")
        axes.set_ylabel("sequence-reference pairs")
        return _svg(figure, name, f"Histogram of the sizes of convergence deltas; the threshold is {threshold:g}.")


def histogram(values: np.ndarray, limits: tuple[float, float], label: str, what: str, name: str) -> str:
    """How (n,) finite values, one or more, are distributed; `label` and `limits` are of the axis, `what` is counted."""
    counts, edges = np.histogram(values, bins=BINS, range=limits)
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(5, 3.2)
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=ACCENT, linewidth=0, aa=False)
        axes.set_xlim(*limits)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        _whole(axes.yaxis, nbins=6)
        axes.set_xlabel(label)
        axes.set_ylabel(what)
        return _svg(figure, name, f"Histogram: {label}, of {len(values):,} {what}.")


def spread(prediction: np.ndarray, spread_of_folds: np.ndarray, name: str) -> str:
    """How far the folds' predictions of each row lie apart, against their mean; (n,) finite values each."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(5, 3.2)
        drawn = _points(axes, prediction, spread_of_folds)
        axes.set_ylim(0, float(spread_of_folds.max()) * 1.05 or 1.0)
        _plain(axes)
        axes.set_xlabel("mean prediction of the folds")
        axes.set_ylabel("largest less smallest")
        return _svg(figure, name, f"Spread of the folds' predictions of {len(prediction):,} sequences; {drawn}.")


def profile(values: np.ndarray, of: str, name: str) -> str:
    """Mean |attribution|, `of` a target, at each of (L,) positions."""
    width = -(-len(values) // MOST_POINTS)
    starts = np.arange(0, len(values), width)
    means = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
    with matplotlib.rc_context(STYLE):
        figure, axes = _new(9, 2.5)
        edges = np.append(starts, len(values))
        axes.stairs(means, edges, fill=True, color=ACCENT, alpha=0.35, linewidth=0)
        axes.stairs(means, edges, color=ACCENT, linewidth=1)
        axes.set_xlim(0, len(values))
        axes.set_ylim(0, None)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _plain(axes)
        axes.set_xlabel("position in the sequence (bp)")
        axes.set_ylabel(f"mean |attribution|\n{of}", parse_math=False)
        return _svg(figure, name, f"Mean size of the attribution at each of {len(values):,} positions.")


def logos(sites: Sequence[Site], limits: tuple[float, float], name: str) -> list[str]:
    """A logo of each site; all with the same limits of attribution."""
    return [_logo(site, limits, f"{name}-{index}") for index, site in enumerate(sites)]


def limits_of(sites: Sequence[Site]) -> tuple[float, float]:
    """The lowest and the highest attribution that is drawn of any, and a little room."""
    low = min([0.0, *(float(site.attribution.min()) for site in sites)])
    high = max([0.0, *(float(site.attribution.max()) for site in sites)])
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _logo(site: Site, limits: tuple[float, float], name: str) -> str:
    """The bases of a site shaded, and those around it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 1.35))  # a fixed frame: the logos of a page line up, and are drawn in half the time
        figure.patch.set_visible(False)
        axes = figure.add_axes((0.12, 0.17, 0.84, 0.79))
        axes.patch.set_visible(False)
        axes.axvspan(site.start, site.end, color=MUTED, alpha=0.12, linewidth=0)
        draw_logo(axes, site.codes, site.attribution, site.first)
        for line in axes.lines:
            line.set_color(MUTED)
        axes.set_ylim(*limits)
        _whole(axes.xaxis, nbins=5, steps=[1, 2, 5, 10])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        _plain(axes)
        title = f"Logo of {site.name}, positions {site.start:,} to {site.end:,}: {site.text}"
        return _svg(figure, name, title)


def _whole(axis: Axis, **ticks: Any) -> None:
    """Whole numbers at an axis; `ticks` are for MaxNLocator."""
    axis.set_major_locator(MaxNLocator(integer=True, **ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _plain(axes: Axes) -> None:
    """Numbers of the y axis one by one, without an offset or a factor in a corner."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
