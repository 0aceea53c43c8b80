"""What a report says of one target, gathered block by block: memory does not grow with the length of the sequences.

Every row counts in the predictions and the convergence deltas. What is read off attributions comes from all rows too,
up to MAX_BASES bases; of a larger store from runs of rows spread evenly over it, and the report says so.

Shape legend: M finished rows, S rows whose attributions are read, B rows of a block, R references, L positions,
W bases of a site.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlshap_core.sequences import UNKNOWN
from pipeline.analysis.kmers import KmerTotals
from pipeline.messages.progress import Advance
from pipeline.planning import convergence
from pipeline.store.reader import Block, Store

MAX_BASES = 250_000_000  # of one target, read in about half a minute
RUN_ROWS = 1024  # rows of a run of a sample
SITE_WIDTH = 20  # bases that a site's attribution is summed over
ROWS_AT_ONCE = 256  # of a block, so that what is computed stays in the processor's cache


@dataclass(frozen=True)
class Scalars:
    """Per row, of one target.

    Attributes:
        rows: (M,) int64 indices in the store.
        prediction, reference: (M,) the prediction, and the mean of those of its references.
        worst: (M,) the largest |convergence delta| over the references; infinite where one is not finite.
        deltas: their summary, see pipeline/planning/convergence.py.
    """

    rows: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray
    worst: np.ndarray
    deltas: dict[str, Any]

    @property
    def finite(self) -> np.ndarray:
        """(M,) bool: the rows whose predictions are all finite."""
        return np.isfinite(self.prediction) & np.isfinite(self.reference)

    def worst_rows(self, most: int) -> np.ndarray:
        """Places among the M rows with the largest deltas, the worst first."""
        return np.argsort(-self.worst, kind="stable")[:most]


@dataclass(frozen=True)
class Attributions:
    """Of one target, over the rows whose attributions are finite.

    Attributes:
        rows: (S,) int64 indices in the store.
        n_read: rows that were read; the others are left out.
        profile: (L,) mean |attribution| at each position.
        n_unknown: unknown bases (N) in these rows.
        kmers: sums over all of these rows.
        width: bases of a site.
        strongest, lowest: (S,) the largest and the smallest sum over a site of each row.
        strongest_at, lowest_at: (S,) where these sites begin, 0-based in the sequence.
    """

    rows: np.ndarray
    n_read: int
    profile: np.ndarray
    n_unknown: int
    kmers: KmerTotals
    width: int
    strongest: np.ndarray
    lowest: np.ndarray
    strongest_at: np.ndarray
    lowest_at: np.ndarray


def measure_scalars(store: Store, target: int, threshold: float) -> Scalars:
    """Predictions and convergence deltas of every finished row; pairs with |delta| over the threshold are counted."""
    rows = np.flatnonzero(store.present)
    names = ["prediction", "reference_prediction", "convergence_delta"]
    parts, summaries = [], []
    thresholds = replace(convergence.Thresholds.of(store.plan), absolute=threshold, judged=())
    for block in store.blocks(names, rows, target):
        predictions, of_references, deltas = (block[name] for name in names)
        sizes = np.abs(np.nan_to_num(deltas.astype(np.float64), nan=np.inf))
        reference = of_references.mean(axis=1, dtype=np.float64)
        parts.append((predictions.astype(np.float64), reference, sizes.max(axis=1)))
        pairs = (deltas[:, None], predictions[:, None], of_references[:, None])
        summaries.append(convergence.summarise(*pairs, int(block.rows[0]), thresholds))
    prediction, reference, worst = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Scalars(rows, prediction, reference, worst, convergence.combine(summaries))


def sample(rows: np.ndarray, length: int, max_bases: int = MAX_BASES) -> np.ndarray:
    """The rows whose attributions are read: all of (M,) ascending ones, or runs of RUN_ROWS spread evenly.

    `length` is in bases of a row, `max_bases` the most to read, as nearly as whole runs come to.
    """
    if len(rows) * length <= max_bases:
        return rows
    n_runs = -(-len(rows) // RUN_ROWS)
    wanted = max(1, max_bases // (length * RUN_ROWS))
    runs = np.unique(np.linspace(0, n_runs - 1, min(wanted, n_runs)).astype(np.int64))
    return np.concatenate([rows[run * RUN_ROWS : (run + 1) * RUN_ROWS] for run in runs])


def measure_attributions(store: Store, target: int, rows: np.ndarray, k: int, advance: Advance) -> Attributions:
    """What the attributions of some finished rows, (n,) ascending indices, show for a target; k: bases of a k-mer."""
    length = int(store.codes.shape[1])
    gathering = _Gathering(length, min(SITE_WIDTH, length), KmerTotals(k))
    for block in store.blocks(["codes", "attribution"], rows, target):
        for start in range(0, len(block.rows), ROWS_AT_ONCE):
            gathering.add(block, slice(start, start + ROWS_AT_ONCE))
        advance(len(block.rows))
    return gathering.result(len(rows))


class _Gathering:
    """Sums over the blocks that have been seen."""

    def __init__(self, length: int, width: int, kmers: KmerTotals) -> None:
        self.width, self.kmers = width, kmers
        self.n_unknown = 0
        self.total = np.zeros(length)
        self.rows: list[np.ndarray] = []
        self.sites: list[tuple[np.ndarray, ...]] = []

    def add(self, block: Block, part: slice) -> None:
        """Some rows of a block; those with attributions that are not finite are left out."""
        rows, codes, attribution = block.rows[part], block["codes"][part], block["attribution"][part]
        if not np.isfinite(attribution.sum(dtype=np.float64)):
            good = np.isfinite(attribution).all(axis=1)
            rows, codes, attribution = rows[good], codes[good], attribution[good]
        if not len(rows):
            return
        self.total += np.abs(attribution).sum(axis=0, dtype=np.float64)
        self.n_unknown += int((codes == UNKNOWN).sum())
        self.kmers.add(codes, attribution)
        self.rows.append(rows)
        self.sites.append(_extremes(attribution, self.width))

    def result(self, n_read: int) -> Attributions:
        if not self.rows:
            rows, columns = np.empty(0, dtype=np.int64), [np.empty(0)] * 4
        else:
            rows = np.concatenate(self.rows)
            columns = [np.concatenate(column) for column in zip(*self.sites, strict=True)]
        profile = self.total / max(len(rows), 1)
        return Attributions(rows, n_read, profile, self.n_unknown, self.kmers, self.width, *columns)


def _extremes(attribution: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
    """The largest and the smallest sum of (B, L) attributions over `width` bases, and where each begins: (B,) each."""
    sums = np.zeros((len(attribution), attribution.shape[1] + 1))
    np.cumsum(attribution, axis=1, dtype=np.float64, out=sums[:, 1:])
    windows = sums[:, width:] - sums[:, :-width]
    high, low, rows = windows.argmax(axis=1), windows.argmin(axis=1), np.arange(len(windows))
    return windows[rows, high], windows[rows, low], high, low
