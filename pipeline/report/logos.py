"""Attributions drawn as letters, to scale.

Letters are outlines placed as one collection of paths: thousands of them take a fraction of a second. A letter's
height is its attribution; negative ones hang upside down below the axis.

Shape legend: A alphabet (4), L length.
"""

from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from dlshap_core.sequences import ALPHABET

# Green, blue, orange, red: as sequence logos are usually coloured.
COLORS = {"A": "#109648", "C": "#255C99", "G": "#F7B32B", "T": "#D62839"}


def draw_logo(axes: Axes, codes: np.ndarray, attribution: np.ndarray, start: int = 0) -> None:
    """Draw the observed bases of a sequence as letters as high as their attributions, and set the limits of the axes.

    Args:
        codes: (L,) uint8, 4 for an unknown base, which is left out.
        attribution: (L,) of the observed bases.
        start: coordinate of the first base, 0-based.
    """
    drawn = [
        (ALPHABET[code], start + position, float(height))
        for position, (code, height) in enumerate(zip(codes, attribution, strict=True))
        if code < len(ALPHABET) and height != 0
    ]
    letters = [PathPatch(_place(*letter)) for letter in drawn]
    colors = [COLORS[letter] for letter, *_ in drawn]
    axes.add_collection(PatchCollection(letters, facecolors=colors, linewidths=0))
    axes.axhline(0, color="0.4", linewidth=0.5)
    axes.set_xlim(start, start + len(codes))
    margin = 0.05 * max(float(np.ptp(attribution, axis=None)), 1e-12)
    axes.set_ylim(min(float(attribution.min()), 0) - margin, max(float(attribution.max()), 0) + margin)


@lru_cache(maxsize=len(ALPHABET))
def _outline(letter: str) -> Path:
    """The letter's outline, filling the unit square."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = path.get_extents()
    return Path((np.asarray(path.vertices) - box.min) / box.size, path.codes)


def _place(letter: str, position: int, height: float) -> Path:
    outline = _outline(letter)
    return Path(np.asarray(outline.vertices) * [1, height] + [position, 0], outline.codes)
