"""Logos drawn to scale."""

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import PatchCollection

from dlshap_core.sequences import encode
from pipeline.report.logos import draw_logo


def drawn_boxes(codes: np.ndarray, attribution: np.ndarray, start: int = 0) -> list[tuple[float, ...]]:
    """(left, bottom, right, top) of each letter drawn."""
    figure, axes = plt.subplots()
    draw_logo(axes, codes, attribution, start)
    (letters,) = (artist for artist in axes.collections if isinstance(artist, PatchCollection))
    boxes = [tuple(path.get_extents().extents.round(6)) for path in letters.get_paths()]
    plt.close(figure)
    return boxes


def test_a_letter_is_as_high_as_its_attribution_and_one_position_wide():
    assert drawn_boxes(encode("ACG"), np.array([2.0, -1.0, 0.5]), start=100) == [
        (100, 0, 101, 2),
        (101, -1, 102, 0),
        (102, 0, 103, 0.5),
    ]


def test_unknown_bases_and_zeros_draw_nothing():
    assert drawn_boxes(encode("ANT"), np.array([1.0, 3.0, 0.0])) == [(0, 0, 1, 1)]
