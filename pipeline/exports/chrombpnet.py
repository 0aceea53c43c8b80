"""ChromBPNet's layout: `PREFIX.counts_scores.h5` (or profile_scores) and `PREFIX.interpreted_regions.bed`.

The HDF5 file holds `raw/seq` int8, `shap/seq` (hypothetical) and `projected_shap/seq` (the observed base's), (M, 4, L)
each, with gzip, which every HDF5 reads. The regions are ten columns; a tool that reads them centres on column 2 plus
column 10.
"""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.exports import Written, written
from pipeline.exports.files import appearing
from pipeline.exports.halves import Rounding
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.text import narrow_peak
from pipeline.windows import one_hot_int8

HEADS = ("counts", "profile")
CHUNK_BYTES = 1 << 20


def export(
    selection: Selection, prefix: Path, head: str | None, dtype: str, overwrite: bool, advance: Advance
) -> Written:
    """Write the rows as `chrombpnet contribs_bw` would.

    Args:
        selection: what to write, the whole sequences.
        prefix: of the files' names.
        head: one of HEADS; that of the store's model if not given.
        dtype: of the attributions, float16 as the tool's own, or float32.
        overwrite: replace files that are there.
        advance: told of rows that are done.

    Raises:
        UserError: h5py is not installed, a value is too large for the dtype, or a file is there already.
    """
    if head is None:
        head = "profile" if str(selection.store.attrs["head"]).startswith("profile") else "counts"
    rounding = Rounding(dtype)
    paths = [prefix.with_name(f"{prefix.name}.{head}_scores.h5")]
    paths += [prefix.with_name(f"{prefix.name}.interpreted_regions.bed")] if selection.has_loci else []
    with appearing(paths, overwrite) as partial:
        _write_h5(partial[0], selection, rounding, advance)
        if selection.has_loci:
            with partial[1].open("w", encoding="utf-8") as file:
                file.writelines(narrow_peak(selection))
    notes = rounding.notes()
    if not selection.has_loci:
        notes.append("the input of this store had no loci: there are no interpreted regions to write")
    return written(paths, len(selection), notes)


def _write_h5(path: Path, selection: Selection, rounding: Rounding, advance: Advance) -> None:
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError("h5py is needed for this export: pip install 'dlshap[exports]'") from None
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
            encoded, rounded = one_hot_int8(block["codes"]), rounding(block["hypothetical"])
            arrays["raw/seq"][rows], arrays["shap/seq"][rows] = encoded, rounded
            arrays["projected_shap/seq"][rows] = rounded * encoded
            done = rows.stop
            advance(len(block.rows))
