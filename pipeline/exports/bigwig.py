"""bigWig: the observed base's attribution along the genome, one value for each base of any window.

Where windows overlap, the one with the nearest centre gives the value, ties going to the left; nothing is averaged. Of
rows with the very same centre the first in the store is taken. Values are in the forward frame. Chromosomes are sorted
by name, as the tools that look them up by bisection need it.
"""

from pathlib import Path

import numpy as np

from pipeline.exports.base import Export, Written
from pipeline.exports.bigwig_file import BigWigFile
from pipeline.exports.files import RowFile, appearing, reordered
from pipeline.exports.selection import Selection
from pipeline.exports.text import lines_of
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance
from pipeline.messages.words import counted

Sizes = dict[str, int]

LONGEST = 2**32 - 1  # bases of a chromosome
_MOST_DIGITS = 18


def export(selection: Selection, out: Path, overwrite: bool, advance: Advance, chrom_sizes: Path | None) -> Written:
    """Write the track to the file `out`; see `Export.write`.

    Args:
        chrom_sizes: a table of chromosome and size, such as a genome's .fai; by default the sizes of the run's genome,
            or else the largest end on each chromosome.

    Raises:
        UserError: the input had no loci, a window lies outside its chromosome, or the file exists already.
    """
    if not selection.has_loci:
        raise UserError(f"the input of {selection.store.url} had no loci: there is no genome to draw a track along")
    order = genome_order(selection)
    sizes, notes = _sizes(selection, chrom_sizes)
    if n_same := len(selection) - len(order):
        notes.append(f"{counted(n_same, 'row')} centred on the same base as an earlier one left out")
    shape = (len(order), selection.width)
    place_of = np.full(len(selection), -1)
    place_of[order] = np.arange(len(order))
    with (
        appearing([out], overwrite) as (partial,),
        reordered(partial.parent, shape, "float32", selection.placed("attribution", place_of, advance)) as values,
    ):
        _write(BigWigFile(partial, sizes), selection, order, values)
    return Written([out], len(order), notes)


def genome_order(selection: Selection) -> np.ndarray:
    """(K,) places in the selection, by chromosome and centre; of rows with the same centre only the first."""
    chrom, centre = selection.text("chrom"), selection.centre
    order = np.lexsort((np.arange(len(centre)), centre, chrom))
    repeats = (chrom[order][1:] == chrom[order][:-1]) & (centre[order][1:] == centre[order][:-1])
    return order[np.concatenate([[True], ~repeats])]


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


def _write(file: BigWigFile, selection: Selection, order: np.ndarray, values: RowFile) -> None:
    """Write the rows of `values`, which are those of `order`, each where it is the nearest, and close the file."""
    chrom, start, centre = selection.text("chrom")[order], selection.start[order], selection.centre[order]
    try:
        for name in np.unique(chrom):
            there = np.flatnonzero(chrom == name)
            first, last = shares(start[there], start[there] + selection.width, centre[there])
            for row, begin, stop in zip(there, first, last, strict=True):
                file.add(str(name), int(begin), values[row : row + 1][0, begin - start[row] : stop - start[row]])
        file.close()
    finally:
        file.abandon()


# --- sizes of chromosomes -------------------------------------------------------------------------------------------


def _sizes(selection: Selection, given: Path | None) -> tuple[Sizes, list[str]]:
    """The size of each chromosome that has a row, and a note where it is not known."""
    chrom, end = selection.text("chrom"), selection.start + selection.width
    largest = {str(name): int(end[chrom == name].max()) for name in np.unique(chrom)}
    _require_room(largest, f"a row of {selection.store.url} ends at")
    known = selection.store.attrs.get("dataset", {}).get("chrom_sizes") if given is None else read_sizes(given)
    if known is None:
        named = ", ".join(f"{name} {size}" for name, size in list(largest.items())[:3])
        note = (
            f"chromosomes end at the largest end of a row ({named}), as their sizes are not known; give --chrom-sizes"
        )
        return largest, [note]
    where = given or f"the genome of {selection.store.url}"
    _require_room(known, f"{where} says")
    for name, size in largest.items():
        if name not in known:
            raise UserError(f"{where} has no chromosome {name!r}, which rows of the store lie on")
        if size > known[name]:
            raise UserError(f"{where}: {name} has {known[name]} bases, but a row of the store ends at {size}")
    return {name: known[name] for name in largest}, []


def _require_room(sizes: Sizes, whose: str) -> None:
    for name, size in sizes.items():
        if not 0 < size <= LONGEST:
            raise UserError(f"{whose} {name} {size}; a bigWig holds chromosomes of 1 to {LONGEST} bases")


def read_sizes(path: Path) -> Sizes:
    """Chromosomes and their sizes, the first two columns of a table. Raises UserError naming the line."""
    sizes = {}
    for number, line in lines_of(path, "--chrom-sizes"):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdecimal() or len(fields[1]) > _MOST_DIGITS:
            raise UserError(f"{path}, line {number}: expected a chromosome and its size in bases")
        sizes[fields[0]] = int(fields[1])
    return sizes


EXPORT = Export(
    name="bigwig",
    help="a track of the observed base's attribution; where windows overlap, the nearest centre gives the value",
    write=export,
    options={"chrom_sizes": {"metavar": "FILE", "type": Path, "help": "chromosomes and sizes, such as a .fai"}},
    alleles=("ref",),
    purpose="a track for a genome browser",
    suffix=".bw",
    needs_loci=True,
)
