"""Fi-NeMo: `regions.npz`, and `regions.narrowPeak` whose rows match it.

The npz holds `sequences` int8 (M, 4, W) and `contributions` (M, 4, W), hypothetical, and, where loci are known, `chr`,
`chr_id`, `start`, `peak_id` and `peak_name`, as the tool's own extraction writes them. Rows are in the order of the
store. start = c - W / 2, end = c + W / 2, summit = W / 2 for the centre c, so that both files agree.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlshap_core.sequences import one_hot_array
from pipeline.exports.base import Export, Written
from pipeline.exports.files import Member, appearing, write_npz
from pipeline.exports.float16 import DTYPE_OPTION, Rounding
from pipeline.exports.selection import Selection, require_even
from pipeline.exports.text import field, write_narrow_peak
from pipeline.messages.progress import Advance

FILES = ("regions.npz", "regions.narrowPeak")


def export(selection: Selection, out: Path, overwrite: bool, advance: Advance, dtype: str) -> Written:
    """Write the rows for Fi-NeMo into the folder `out`; see `Export.write`.

    Raises:
        UserError: the window is odd, a value is too large for the dtype, or a file exists already.
    """
    require_even(selection.width, "Fi-NeMo")
    rounding = Rounding(dtype)
    paths = [out / name for name in (FILES if selection.has_loci else FILES[:1])]
    with appearing(paths, overwrite) as partial:
        write_npz(partial[0], _members(selection, rounding, advance))
        write_narrow_peak(selection, partial[1:])
    missing = [] if selection.has_loci else ["the input had no loci: no narrowPeak, and hits are placed within rows"]
    return Written(paths, len(selection), [*rounding.notes(), *missing])


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
        yield "peak_name", Member.of(np.array([field(name) for name in selection.column("name")], dtype="U"))


def _sequences(selection: Selection) -> Iterator[np.ndarray]:
    for block in selection.blocks(["codes"]):
        yield one_hot_array(block["codes"])


def _contributions(selection: Selection, rounding: Rounding, advance: Advance) -> Iterator[np.ndarray]:
    for block in selection.blocks(["hypothetical"]):
        yield rounding(block["hypothetical"])
        advance(len(block.rows))


EXPORT = Export(
    name="finemo",
    help="Fi-NeMo: OUT/regions.npz, and OUT/regions.narrowPeak whose lines are its rows",
    write=export,
    out="a folder",
    options={"dtype": DTYPE_OPTION},
    window=1000,  # the tool's own default
    alleles=("both", "ref", "alt"),
    purpose="files for Fi-NeMo",
    suffix="_finemo",
    files=FILES,
    needs_loci=True,
)
