"""TF-MoDISco: `ohe.npz` and `attr.npz`, (M, 4, W) each under the key arr_0, `rows.tsv` and `rows.bed`.

attr holds hypothetical attributions (float32, as stored): the tool multiplies by the one-hot itself. It reads whole
arrays, crops the centre, and takes seqlets in row order until it has enough, so that the window is cropped here and
rows are shuffled; rows.tsv says which row of the store each of them is. An N is an all-zero column of ohe. rows.bed has
the windows in the order of the arrays, which is what `modisco seqlet-bed` and `seqlet-fasta` take as peaks.
"""

import shlex
from pathlib import Path

import numpy as np

from dlshap_core.sequences import one_hot_array
from pipeline.exports.base import Export, Written
from pipeline.exports.files import Member, appearing, in_blocks, reordered, write_npz
from pipeline.exports.selection import Selection, require_even
from pipeline.exports.text import field, windows_of
from pipeline.messages.progress import Advance
from pipeline.messages.words import counted

MIN_SEQLETS = 100  # `min_metacluster_size` of tfmodisco-lite: it needs more seqlets than that of one sign
FILES = ("ohe.npz", "attr.npz", "rows.tsv", "rows.bed")
COLUMNS = ("export_row", "store_row", "name", "chrom", "start", "end", "strand")


def export(selection: Selection, out: Path, overwrite: bool, advance: Advance) -> Written:
    """Write the rows for TF-MoDISco into the folder `out`, in an order drawn with the selection's seed.

    Raises:
        UserError: the window is odd, or a file exists already.
    """
    require_even(selection.width, "TF-MoDISco")
    shape = (len(selection), 4, selection.width)
    order = np.random.default_rng(selection.seed).permutation(len(selection))
    place_of = np.argsort(order)  # where in the export each row of the selection goes
    paths = [out / name for name in FILES]
    with appearing(paths, overwrite) as (ohe, attr, rows, bed):
        parts = ((places, one_hot_array(codes)) for places, codes in selection.placed("codes", place_of))
        with reordered(ohe.parent, shape, "int8", parts) as array:
            write_npz(ohe, [("arr_0", Member(shape, "int8", in_blocks(array), compress=True))])
        with reordered(attr.parent, shape, "float32", selection.placed("hypothetical", place_of, advance)) as array:
            write_npz(attr, [("arr_0", Member(shape, "float32", in_blocks(array)))])
        _write_rows(rows, selection, order)
        _write_bed(bed, selection, order)
    pair = f"-s {shlex.quote(f'{out}/ohe.npz')} -a {shlex.quote(f'{out}/attr.npz')}"
    run = f"modisco motifs {pair} -w {selection.width} -n 2000 -o modisco_results.h5"
    notes = [f"{counted(selection.width, 'base')} around the centre; next: {run}"]
    return Written(paths, len(selection), [*notes, *_few(len(selection))])


def _few(n_rows: int) -> list[str]:
    """A warning where the tool may find no motif for want of rows."""
    if n_rows > MIN_SEQLETS:
        return []
    return [
        f"warning: {counted(n_rows, 'row')} may be too few: TF-MoDISco looks for motifs where more than {MIN_SEQLETS} "
        f"seqlets have the same sign (min_metacluster_size of tfmodisco-lite), and a row often has one or two"
    ]


def _write_rows(path: Path, selection: Selection, order: np.ndarray) -> None:
    """Which row of the store each row of the export is; the locus is that of its window, -1 where there is none."""
    located = selection.column("start") >= 0
    start = np.where(located, selection.start, -1)
    end = np.where(located, selection.start + selection.width, -1)
    names, chroms, strands = (selection.column(name) for name in ("name", "chrom", "strand"))
    with path.open("w", encoding="utf-8") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for place, i in enumerate(order):
            values = [place, selection.rows[i], names[i], chroms[i], start[i], end[i], strands[i]]
            file.write("\t".join(map(field, values)) + "\n")


def _write_bed(path: Path, selection: Selection, order: np.ndarray) -> None:
    """BED6 of the windows, in the order of the arrays."""
    chroms, start = windows_of(selection)
    names, strands = selection.column("name"), selection.column("strand")
    with path.open("w", encoding="utf-8") as file:
        for i in order:
            values = [field(names[i]), "0", strands[i] if strands[i] in ("+", "-") else "."]
            file.write("\t".join([chroms[i], str(start[i]), str(start[i] + selection.width), *values]) + "\n")


EXPORT = Export(
    name="modisco",
    help="TF-MoDISco: OUT/ohe.npz, OUT/attr.npz (hypothetical attributions), OUT/rows.tsv (the store's row of each "
    "shuffled row), and OUT/rows.bed (the peaks for `modisco seqlet-bed`)",
    write=export,
    out="a folder",
    window=400,  # the tool's own default
    alleles=("ref", "alt", "both"),
    purpose="files for TF-MoDISco",
    suffix="_modisco",
    files=FILES,
)
