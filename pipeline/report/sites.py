"""The sites of a report: where on a sequence most attribution lies, and what is drawn around it."""

from dataclasses import dataclass

import numpy as np

from dlshap_core.sequences import decode
from pipeline.messages.visible import brief
from pipeline.report.measure import Attributions
from pipeline.store.reader import Store

FLANK = 10  # bases drawn on either side of a site
LOOKED_AT = 50  # candidates for each site that is wanted; the rest are taken for the same place again


@dataclass(frozen=True)
class Site:
    """A stretch of a row, with what is drawn of it.

    Attributes:
        row: index in the store.
        name, locus: of the row; the locus is "" where it has none.
        start, end: of the site in the sequence, 0-based, half-open.
        first: position of the first base that is drawn.
        codes, attribution: (D,) drawn.
        total: attribution summed over the site.
        prediction: of the row.
    """

    row: int
    name: str
    locus: str
    start: int
    end: int
    first: int
    codes: np.ndarray
    attribution: np.ndarray
    total: float
    prediction: float

    @property
    def text(self) -> str:
        """The bases of the site."""
        return decode(self.codes[self.start - self.first : self.end - self.first])


def name_of(store: Store, row: int) -> str:
    """What the input calls a row, as it may be drawn and told: the beginning of a long name."""
    return brief(str(store.rows["name"][row]))


def locus_of(store: Store, row: int) -> str:
    """chr1:1,000-2,114, "" where the input had no loci; with (-) where the codes are of the minus strand."""
    start, end = int(store.rows["start"][row]), int(store.rows["end"][row])
    if start < 0:
        return ""
    return f"{brief(str(store.rows['chrom'][row]))}:{start:,}-{end:,}{' (-)' if store.on_minus_strand[row] else ''}"


def on_genome(store: Store, row: int, start: int, end: int) -> tuple[str, int, int] | None:
    """Where [start, end) of a row's sequence lies; None where the row has no locus."""
    left, right = int(store.rows["start"][row]), int(store.rows["end"][row])
    if left < 0:
        return None
    chrom = str(store.rows["chrom"][row])
    return (chrom, right - end, right - start) if store.on_minus_strand[row] else (chrom, left + start, left + end)


def choose_sites(store: Store, found: Attributions, target: int, most: int, lowest: bool = False) -> list[Site]:
    """At most `most` sites with the largest sums of attribution above 0, one of a sequence, no locus twice.

    With `lowest` those with the lowest sums, which are below 0.
    """
    sums, starts = (-found.lowest, found.lowest_at) if lowest else (found.strongest, found.strongest_at)
    chosen: list[tuple[int, int]] = []
    taken: list[tuple[str, int, int]] = []
    for place in np.argsort(-sums, kind="stable")[: most * LOOKED_AT].tolist():
        if len(chosen) == most or sums[place] <= 0:
            break
        row, start = int(found.rows[place]), int(starts[place])
        here = on_genome(store, row, start, start + found.width)
        if here is not None:
            if any(here[0] == chrom and here[1] < right and left < here[2] for chrom, left, right in taken):
                continue
            taken.append(here)
        chosen.append((row, start))
    return [read_site(store, row, start, start + found.width, target) for row, start in chosen]


def around(start: int, end: int, length: int) -> slice:
    """The positions that are drawn of [start, end) in a sequence of `length` bases: FLANK more on either side."""
    width = min(end - start + 2 * FLANK, length)
    first = min(max(start - FLANK, 0), length - width)
    return slice(first, first + width)


def read_site(store: Store, row: int, start: int, end: int, target: int) -> Site:
    """The site [start, end) of a row, for a target, an index."""
    shown = around(start, end, int(store.codes.shape[1]))
    attribution = np.asarray(store.attribution[row, target, shown])
    return Site(
        row=row,
        name=name_of(store, row),
        locus=locus_of(store, row),
        start=start,
        end=end,
        first=shown.start,
        codes=np.asarray(store.codes[row, shown]),
        attribution=attribution,
        total=float(attribution[start - shown.start : end - shown.start].sum(dtype=np.float64)),
        prediction=float(np.asarray(store.prediction[row, target])),
    )
