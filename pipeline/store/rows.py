"""Which rows are meant: by name, by locus, by overlap with a region. Coordinates are 0-based and half-open."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.messages.errors import UserError

_REGION = re.compile(r"(?P<chrom>.+):(?P<start>\d[\d,]{0,23})-(?P<end>\d[\d,]{0,23})")
_BEYOND = np.iinfo(np.int64).max
N_NAMED = 5  # of what is missing, in an error


@dataclass(frozen=True)
class Region:
    """Bases [start, end) of a chromosome."""

    chrom: str
    start: int
    end: int

    @staticmethod
    def parse(text: str) -> "Region":
        """`chr1:100-200`, commas allowed, or `chr1` for all of it; UserError where the end is not after the start."""
        if (match := _REGION.fullmatch(text.strip())) is None:
            return Region(text.strip(), 0, _BEYOND)
        start, end = int(match["start"].replace(",", "")), int(match["end"].replace(",", ""))
        if end <= start:
            raise UserError(
                f"region {text}: the end does not lie behind the start; expected chr1:100-200, 0-based, end exclusive"
            )
        return Region(match["chrom"], start, end)

    @staticmethod
    def of(text: str) -> "Region | None":
        """As `parse`, for `chr1:100-200` alone; None for a name or a chromosome."""
        return Region.parse(text) if _REGION.fullmatch(text.strip()) else None

    def __str__(self) -> str:
        return self.chrom if self.end == _BEYOND else f"{self.chrom}:{self.start}-{self.end}"


def rows_named(column: np.ndarray, names: Iterable[str]) -> np.ndarray:
    """The rows of a (N,) column that have one of the names, ascending; several rows may have the same name.

    Raises:
        UserError: no row has one of the names.
    """
    wanted = set(names)
    found = np.fromiter((name in wanted for name in column), dtype=bool, count=len(column))
    if missing := sorted(wanted - {str(name) for name in column[found]}):
        first = ", ".join(repr(name) for name in missing[:N_NAMED]) + (", ..." if len(missing) > N_NAMED else "")
        raise UserError(f"{len(missing)} of {len(wanted)} names are not in the store: {first}")
    return np.flatnonzero(found)


def rows_overlapping(chrom: np.ndarray, start: np.ndarray, end: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """The rows whose window shares at least one base with one of the regions, ascending.

    Args:
        chrom, start, end: (N,) the windows of the rows; start is -1 where a row has none.

    Raises:
        UserError: no row has a window, or none lies on the chromosome of a region.
    """
    require_loci(start)
    hit = np.zeros(len(start), dtype=bool)
    for region in regions:
        on_chrom = chrom == region.chrom
        if not on_chrom.any():
            raise UserError(f"region {region}: no row lies on {region.chrom!r}; {_known_chroms(chrom, region.chrom)}")
        hit |= on_chrom & (start < region.end) & (end > region.start)
    return np.flatnonzero(hit)


def require_loci(start: np.ndarray) -> None:
    """Raises UserError when no row has a window on a genome."""
    if not (start >= 0).any():
        raise UserError(
            "the input of this store had no loci (dataset=loci has them): its rows can be named, not located"
        )


def _known_chroms(chrom: np.ndarray, wanted: str) -> str:
    known = sorted({str(name) for name in np.unique(chrom)} - {""})
    other = wanted.removeprefix("chr") if wanted.startswith("chr") else f"chr{wanted}"
    if other in known:
        return f"the store calls it {other!r}"
    return f"the store has {', '.join(known[:N_NAMED])}{', ...' if len(known) > N_NAMED else ''}"
