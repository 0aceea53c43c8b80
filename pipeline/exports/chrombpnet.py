"""ChromBPNet's layout: `PREFIX.counts_scores.h5` (or profile_scores) and `PREFIX.interpreted_regions.bed`.

The HDF5 file holds `raw/seq` int8, `shap/seq` (hypothetical) and `projected_shap/seq` (the observed base's), (M, 4, L)
each, with gzip, which every HDF5 reads. The regions are ten columns; a tool that reads them centres on column 2 plus
column 10.
"""

from pathlib import Path

from dlshap_core.sequences import one_hot_array
from pipeline.exports.base import Export, Written
from pipeline.exports.files import appearing
from pipeline.exports.float16 import DTYPE_OPTION, Rounding
from pipeline.exports.selection import Selection
from pipeline.exports.text import write_narrow_peak
from pipeline.messages.errors import require_extra
from pipeline.messages.progress import Advance

HEADS = ("counts", "profile")
REGIONS = "interpreted_regions.bed"
CHUNK_BYTES = 1 << 20


def export(
    selection: Selection, prefix: Path, overwrite: bool, advance: Advance, head: str | None, dtype: str
) -> Written:
    """Write the rows as `chrombpnet contribs_bw` would; see `Export.write`.

    Raises:
        UserError: h5py is not installed, a value is too large for the dtype, or a file exists already.
    """
    if head is None:
        head = "profile" if selection.store.head_of(selection.target).startswith("profile") else "counts"
    rounding = Rounding(dtype)
    scores, regions = (prefix.with_name(f"{prefix.name}.{end}") for end in (f"{head}_scores.h5", REGIONS))
    paths = [scores, regions] if selection.has_loci else [scores]
    with appearing(paths, overwrite) as partial:
        _write_h5(partial[0], selection, rounding, advance)
        write_narrow_peak(selection, partial[1:])
    missing = [] if selection.has_loci else ["the input had no loci: there are no interpreted regions to write"]
    return Written(paths, len(selection), [*rounding.notes(), *missing])


def _write_h5(path: Path, selection: Selection, rounding: Rounding, advance: Advance) -> None:
    require_extra("exports", "h5py")
    import h5py

    shape = (len(selection), 4, selection.width)
    chunk = (min(len(selection), max(1, CHUNK_BYTES // (4 * selection.width))), 4, selection.width)
    names = {"raw/seq": "int8", "shap/seq": rounding.dtype, "projected_shap/seq": rounding.dtype}
    with h5py.File(path, "w") as file:
        arrays = {
            name: file.create_dataset(name, shape, kind, chunks=chunk, compression="gzip", compression_opts=1)
            for name, kind in names.items()
        }
        done = 0
        for block in selection.blocks(["codes", "hypothetical"]):
            rows = slice(done, done + len(block.rows))
            encoded, rounded = one_hot_array(block["codes"]), rounding(block["hypothetical"])
            arrays["raw/seq"][rows], arrays["shap/seq"][rows] = encoded, rounded
            arrays["projected_shap/seq"][rows] = rounded * encoded
            done = rows.stop
            advance(len(block.rows))


EXPORT = Export(
    name="chrombpnet",
    help="the layout of ChromBPNet's own scores: OUT.counts_scores.h5 and OUT.interpreted_regions.bed",
    write=export,
    out="prefix of the files' names",
    options={
        "head": {"choices": HEADS, "help": "the head in the file's name (default: the model's)"},
        "dtype": DTYPE_OPTION,
    },
    alleles=("both", "ref", "alt"),
)
