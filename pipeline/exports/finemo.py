"""Fi-NeMo: `regions.npz`, and `regions.narrowPeak` whose rows match it.

The npz holds `sequences` int8 (M, 4, W) and `contributions` (M, 4, W), hypothetical, and, where loci are known, `chr`,
`chr_id`, `start`, `peak_id` and `peak_name`, as the tool's own extraction writes them. Rows are in the order of the
store. start = c - W / 2, end = c + W / 2, summit = W / 2 for the centre c, so that both files agree.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.exports import Written, written
from pipeline.exports.files import Member, appearing, write_npz
from pipeline.exports.halves import Rounding
from pipeline.exports.modisco import require_even
from pipeline.exports.selection import Advance, Selection
from pipeline.exports.text import narrow_peak
from pipeline.windows import one_hot_int8

WINDOW = 1000  # the tool's own default


def export(selection: Selection, out: Path, dtype: str, overwrite: bool, advance: Advance) -> Written:
    """Write the rows for Fi-NeMo into the folder `out`.

    Args:
        selection: what to write; its window an even number of bases.
        out: a folder.
        dtype: of the contributions, float16 as the tool's own, or float32.
        overwrite: replace files that are there.
        advance: told of rows that are done.

    Raises:
        UserError: the window is odd, a value is too large for the dtype, or a file is there already.
    """
    require_even(selection.width, "Fi-NeMo")
    rounding = Rounding(dtype)
    paths = [out / "regions.npz"]
    paths += [out / "regions.narrowPeak"] if selection.has_loci else []
    with appearing(paths, overwrite) as partial:
        write_npz(partial[0], _members(selection, rounding, advance))
        if selection.has_loci:
            with partial[1].open("w", encoding="utf-8") as file:
                file.writelines(narrow_peak(selection))
    notes = rounding.notes()
    if not selection.has_loci:
        notes.append("the input of this store had no loci: no narrowPeak, and hits will be placed within rows alone")
    return written(paths, len(selection), notes)


def _members(selection: Selection, rounding: Rounding, advance: Advance) -> Iterator[tuple[str, Member]]:
    shape = (len(selection), 4, selection.width)
    yield "sequences", Member(shape, "int8", _sequences(selection), compress=True)
    yield "contributions", Member(shape, rounding.dtype, _contributions(selection, rounding, advance))
    if selection.has_loci:
        chroms = selection.text("chrom")
        _, first, inverse = np.unique(chroms, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))  # chromosomes are numbered as they come
        yield "chr", Member.of(chroms)
        yield "chr_id", Member.of(order[inverse].astype(np.uint32))
        yield "start", Member.of(selection.start.astype(np.int32))
        yield "peak_id", Member.of(np.arange(len(selection), dtype=np.uint32))
        yield "peak_name", Member.of(selection.text("name"))


def _sequences(selection: Selection) -> Iterator[np.ndarray]:
    for block in selection.blocks(["codes"]):
        yield one_hot_int8(block["codes"])


def _contributions(selection: Selection, rounding: Rounding, advance: Advance) -> Iterator[np.ndarray]:
    for block in selection.blocks(["hypothetical"]):
        yield rounding(block["hypothetical"])
        advance(len(block.rows))
