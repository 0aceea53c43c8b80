"""Exports: rows of a store in the formats that the next tools read.

    selection.py   which rows and which target
    files.py       files that appear whole or not at all; npz, and arrays in another order than the store's
    modisco.py     TF-MoDISco: one-hot and hypothetical attributions, npz
    finemo.py      Fi-NeMo: regions as npz, and the narrowPeak whose rows match
    chrombpnet.py  ChromBPNet's HDF5 layout and interpreted regions
    bigwig.py      a genome browser's track of the observed base's attribution
    summary.py     a line for each row, Parquet or TSV
    variant_table.py  a line for each variant
    tables.py      how both are written

Every export reads blocks of rows and writes them, so that memory does not grow with the store (but for its row table);
coordinates are 0-based and half-open, and the centre of L bases is base L // 2. What goes to a tool that knows of the
genome is in the forward frame: rows that were reverse-complemented for the run are turned back. The summary speaks of
the sequences as they were attributed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.wording import counted


@dataclass(frozen=True)
class Written:
    """What an export has written.

    Attributes:
        files: their paths.
        rows: of the store that are in them.
        notes: what the person should know of, a line each.
    """

    files: list[str]
    rows: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        return "\n".join([f"{counted(self.rows, 'row')} in {', '.join(self.files)}", *self.notes])


def written(files: list[Path], rows: int, notes: list[str]) -> Written:
    """See `Written`."""
    return Written([str(path) for path in files], rows, notes)
