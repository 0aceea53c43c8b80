"""TF-MoDISco: `ohe.npz` and `attr.npz`, (M, 4, W) each under the key arr_0, and `rows.tsv`.

attr holds hypothetical attributions (float32, as stored): the tool multiplies by the one-hot itself. It reads whole
arrays, crops the centre, and takes seqlets in row order until it has enough, so that the window is cropped here and
rows are shuffled; rows.tsv says which row of the store each of them is. An N is an all-zero column of ohe.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import Member, appearing, in_blocks, reordered, write_npz
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.text import field
from pipeline.windows import one_hot_int8
from pipeline.wording import counted

WINDOW = 400  # the tool's own default
COLUMNS = ("export_row", "store_row", "name", "chrom", "start", "end", "strand")


def export(selection: Selection, out: Path, seed: int, overwrite: bool, advance: Advance) -> Written:
    """Write the rows for TF-MoDISco into the folder `out`.

    Args:
        selection: what to write; its window an even number of bases.
        out: a folder.
        seed: of the order of the rows.
        overwrite: replace files that are there.
        advance: told of rows that are done.

    Raises:
        UserError: the window is odd, or a file is there already.
    """
    require_even(selection.width, "TF-MoDISco")
    shape = (len(selection), 4, selection.width)
    order = np.random.default_rng(seed).permutation(len(selection))
    place_of = np.argsort(order)  # where in the export each row of the selection goes
    paths = [out / "ohe.npz", out / "attr.npz", out / "rows.tsv"]
    with appearing(paths, overwrite) as (ohe, attr, rows):
        blocks = selection.blocks(["codes"])
        parts = ((place_of[np.searchsorted(selection.rows, b.rows)], one_hot_int8(b["codes"])) for b in blocks)
        with reordered(ohe.parent, shape, "int8", parts) as array:
            write_npz(ohe, [("arr_0", Member(shape, "int8", in_blocks(array), compress=True))])
        with reordered(attr.parent, shape, "float32", _attributions(selection, place_of, advance)) as array:
            write_npz(attr, [("arr_0", Member(shape, "float32", in_blocks(array)))])
        _write_rows(rows, selection, order)
    run = f"modisco motifs -s {paths[0]} -a {paths[1]} -w {selection.width} -n 2000 -o modisco_results.h5"
    return written(paths, len(selection), [f"{counted(selection.width, 'base')} around the centre; next: {run}"])


def _attributions(
    selection: Selection, place_of: np.ndarray, advance: Advance
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for block in selection.blocks(["hypothetical"]):
        yield place_of[np.searchsorted(selection.rows, block.rows)], block["hypothetical"]
        advance(len(block.rows))


def require_even(width: int, tool: str) -> None:
    """Raises UserError for an odd number of bases: the tools take half of it on either side of the centre."""
    if width % 2:
        raise UserError(f"--window {width}: {tool} reads an even number of bases, such as {width - 1}")


def _write_rows(path: Path, selection: Selection, order: np.ndarray) -> None:
    """Which row of the store each row of the export is; the locus is that of its window, -1 where there is none."""
    located = selection.column("start") >= 0
    start = np.where(located, selection.start, -1)
    end = np.where(located, selection.start + selection.width, -1)
    names, chroms, strands = (selection.column(name) for name in ("name", "chrom", "strand"))
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for place, i in enumerate(order):
            values = [place, selection.rows[i], field(names[i]), chroms[i], start[i], end[i], strands[i]]
            file.write("\t".join(map(str, values)) + "\n")
