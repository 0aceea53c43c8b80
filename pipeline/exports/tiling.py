"""Overlapping windows cut so that every base belongs to one of them: the nearest centre wins, ties to the left."""

import numpy as np


def shares(start: np.ndarray, end: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part [first, last) of each window of one chromosome whose bases it is nearest to.

    Two neighbours are cut at the midpoint between their centres; a base in the very middle goes to the left one if that
    reaches so far. All windows are of one length and centred alike, so that only neighbours can compete.

    Args:
        start, end, centre: (M,) 0-based, half-open, centres ascending and each but once.

    Returns:
        first, last: (M,) each; every base of any window lies in exactly one part.
    """
    cut = (centre[:-1] + centre[1:]) // 2 + 1  # the first base that is nearer to the right one
    first, last = start.copy(), end.copy()
    first[1:] = np.maximum(start[1:], np.minimum(cut, end[:-1]))
    last[:-1] = np.minimum(end[:-1], cut)
    return first, last
