"""bigWig: the observed base's attribution along the genome, one value for each base of any window.

Where windows overlap, the one with the nearest centre gives the value, ties going to the left; nothing is averaged. Of
rows with the very same centre the first in the store is taken. Values are in the forward frame. Chromosomes are sorted
by name, as the tools that look them up by bisection need it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import appearing, reordered
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.text import lines_of
from pipeline.exports.tiling import shares
from pipeline.wording import counted

Sizes = dict[str, int]


def export(selection: Selection, out: Path, chrom_sizes: Path | None, overwrite: bool, advance: Advance) -> Written:
    """Write the track to the file `out`.

    Args:
        selection: what to write.
        out: the file.
        chrom_sizes: a table of chromosome and size, such as a genome's .fai; if not given those of the genome of the
            run, and where it is not there the largest end on each chromosome.
        overwrite: replace what is there.
        advance: told of rows that are done.

    Raises:
        UserError: the input had no loci, a window lies outside of its chromosome, pyBigWig is not installed, or a file
            is there already.
    """
    track = _library()
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
        reordered(partial.parent, shape, "float32", _attributions(selection, place_of, advance)) as values,
    ):
        _write(track.open(str(partial), "w"), selection, order, values, sizes)
    return written([out], len(order), notes)


def genome_order(selection: Selection) -> np.ndarray:
    """(K,) places in the selection, by chromosome and centre; of rows with the same centre only the first."""
    chrom, centre = selection.text("chrom"), selection.centre
    order = np.lexsort((np.arange(len(centre)), centre, chrom))
    repeats = (chrom[order][1:] == chrom[order][:-1]) & (centre[order][1:] == centre[order][:-1])
    return order[np.concatenate([[True], ~repeats])]


def _attributions(
    selection: Selection, place_of: np.ndarray, advance: Advance
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for block in selection.blocks(["attribution"]):
        places = place_of[np.searchsorted(selection.rows, block.rows)]
        yield places[places >= 0], block["attribution"][places >= 0]
        advance(len(block.rows))


def _library() -> Any:
    try:
        import pyBigWig
    except ModuleNotFoundError:
        raise UserError("pyBigWig is needed for this export: pip install 'dlshap[exports]'") from None
    return pyBigWig


def _write(file: Any, selection: Selection, order: np.ndarray, values: np.ndarray, sizes: Sizes) -> None:
    """Write the rows of `values`, which are those of `order`, each where it is the nearest, and close the file."""
    chrom, start, centre = selection.text("chrom")[order], selection.start[order], selection.centre[order]
    try:
        file.addHeader([(name, sizes[name]) for name in sorted(sizes)])
        for name in np.unique(chrom):
            there = np.flatnonzero(chrom == name)
            first, last = shares(start[there], start[there] + selection.width, centre[there])
            for row, begin, stop in zip(there, first, last, strict=True):
                part = np.ascontiguousarray(values[row, begin - start[row] : stop - start[row]])
                file.addEntries(str(name), int(begin), values=part, span=1, step=1)
    finally:
        file.close()


# --- sizes of chromosomes -------------------------------------------------------------------------------------------


def _sizes(selection: Selection, given: Path | None) -> tuple[Sizes, list[str]]:
    """The size of each chromosome that has a row, and a note where it is not known."""
    chrom, end = selection.text("chrom"), selection.start + selection.width
    largest = {str(name): int(end[chrom == name].max()) for name in np.unique(chrom)}
    known = selection.store.attrs.get("dataset", {}).get("chrom_sizes") if given is None else read_sizes(given)
    if known is None:
        named = ", ".join(f"{name} {size}" for name, size in list(largest.items())[:3])
        return largest, [f"sizes of chromosomes taken from the largest end ({named}); --chrom-sizes says them"]
    where = given or f"the genome of {selection.store.url}"
    for name, size in largest.items():
        if name not in known:
            raise UserError(f"{where} has no chromosome {name!r}, which rows of the store lie on")
        if size > known[name]:
            raise UserError(f"{where}: {name} has {known[name]} bases, but a row of the store ends at {size}")
    return {name: known[name] for name in largest}, []


def read_sizes(path: Path) -> Sizes:
    """Chromosomes and their sizes, the first two columns of a table. Raises UserError naming the line."""
    sizes = {}
    for number, line in lines_of(path, "--chrom-sizes"):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdigit():
            raise UserError(f"{path}, line {number}: expected a chromosome and its size in bases")
        sizes[fields[0]] = int(fields[1])
    return sizes
