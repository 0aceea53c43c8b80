"""Tables of a store, in any format: a line for each row, or for each variant."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.analysis import fold_agreement
from pipeline.analysis.variant_effects import has_variants
from pipeline.exports import row_table, variant_table
from pipeline.exports.base import Written
from pipeline.exports.files import appearing
from pipeline.exports.selection import Selection
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance

Columns = dict[str, Any]  # lists and arrays by name, of some rows
Write = Callable[[Path, Iterator[Columns]], None]
_HELP = "bases of the strongest k-mer, or of a variant's strongest change (default: 10)"
K_OPTION = {"k": {"metavar": "K", "type": int, "default": 10, "help": _HELP}}


def export(write: Write, selection: Selection, out: Path, overwrite: bool, advance: Advance, k: int) -> Written:
    """Write the table to the file `out`; a variant with one selected row has both.

    Args:
        write: writes a file of the format, some rows at a time.
        k: bases of the strongest k-mer, or that a change is summed over.

    Raises:
        UserError: the sequences are shorter than k, or the file exists already.
    """
    if not 0 < k <= selection.width:
        raise UserError(f"--k {k}: the sequences have {selection.width} bases")
    store = selection.store
    table = variant_table if has_variants(store.plan) else row_table
    rows, notes = table.rows_of(selection)
    labels = {index: store.targets[index] for index in selection.targets}
    arrays = [*table.ARRAYS_READ, *(fold_agreement.ARRAYS_READ if fold_agreement.has_folds(store.plan) else ())]
    if table is row_table and store.plan.spread:
        arrays.append("attribution_sd")

    def tabulated() -> Iterator[Columns]:
        for block in store.blocks(arrays, rows):
            yield table.tabulate(store, block, labels, k)
            advance(len(block.rows))

    with appearing([out], overwrite) as (partial,):
        write(partial, tabulated())
    names = [(label, store.target_names[index]) for index, label in labels.items()]
    notes += [
        f"columns that end in _{label}: {name}" for label, name in names if name not in (label, f"target {label}")
    ]
    return Written([out], len(rows), notes)
