"""Which rows of a store are exported, and which target; and their values, along the genome.

Rows whose codes are of the minus strand are turned back, so that everything exported is in the forward frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.sequences import UNKNOWN
from pipeline.errors import UserError
from pipeline.reader import Block, Store
from pipeline.windows import centred
from pipeline.wording import counted

ALLELES = ("ref", "alt")  # of the rows of a store of variants, in turn
Advance = Callable[[int], None]  # told how many more rows are done


@dataclass(frozen=True)
class Filters:
    """What is asked for; a row must pass all of it.

    Attributes:
        names: rows that have one of these names; all if empty.
        regions: rows whose window shares a base with one of these (chr1:100-200, 0-based half-open); all if empty.
        top: only the so many rows with the largest sum of |attribution| in the exported window.
        max_rows: only so many rows, drawn at random.
        seed: of the draw.
        allele: of a store of variants only these rows, ref or alt; both if not given.
    """

    names: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    top: int | None = None
    max_rows: int | None = None
    seed: int = 0
    allele: str | None = None


@dataclass(frozen=True)
class Selection:
    """Rows (M,) ascending and a target of a store, and the positions of each row, in the forward frame."""

    store: Store
    rows: np.ndarray
    target: int
    window: slice

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self, names: Sequence[str]) -> Iterator[Block]:
        """The arrays of the rows in order, of the target and the window, in the forward frame; see `Store.blocks`."""
        minus = self.store.on_minus_strand[self.rows]
        if not minus.any():
            yield from self.store.blocks(names, self.rows, self.target, self.window)
            return
        done = 0
        for block in self.store.blocks(names, self.rows, self.target):
            rows = np.flatnonzero(minus[done : done + len(block.rows)])
            values = {name: turned(name, values, rows) for name, values in block.values.items()}
            yield Block(block.rows, {name: array[..., self.window] for name, array in values.items()})
            done += len(block.rows)

    @property
    def width(self) -> int:
        """Bases of the window."""
        return int(self.window.stop - self.window.start)

    def column(self, name: str) -> np.ndarray:
        """(M,) one column of the row table."""
        return np.asarray(self.store.rows[name][self.rows])

    def text(self, name: str) -> np.ndarray:
        """(M,) one column of the row table as fixed-width text, which files can hold."""
        return np.array(self.column(name).tolist(), dtype="U")

    @property
    def has_loci(self) -> bool:
        """Whether the place of every row on a genome is known."""
        return bool((self.column("start") >= 0).all())

    @property
    def start(self) -> np.ndarray:
        """(M,) int64 where the window of each row starts on the genome."""
        return self.column("start") + self.window.start

    @property
    def centre(self) -> np.ndarray:
        """(M,) int64 the base of the genome that each row is centred on."""
        return self.column("start") + int(self.store.codes.shape[1]) // 2


def select(store: Store, filters: Filters, target: str | None, window: int | None) -> Selection:
    """What an export is of.

    Args:
        store: complete or not; rows that are not there are left out.
        filters: of its rows.
        target: its label; the only one if not given.
        window: bases around the centre; the whole sequences if not given.

    Raises:
        UserError: nothing is left, a name or region or target is not there, or the window does not fit.
    """
    length = int(store.codes.shape[1])
    positions = slice(0, length) if window is None else centred(length, window)
    index = target_index(store, target)
    keep = store.present
    if filters.names:
        keep &= np.isin(np.arange(len(store)), store.rows_named(*filters.names))
    if filters.regions:
        keep &= np.isin(np.arange(len(store)), store.rows_overlapping(*filters.regions))
    if filters.allele is not None:
        keep &= np.arange(len(store)) % len(ALLELES) == ALLELES.index(filters.allele)
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise UserError(f"no row of {store.url} is left to export; {_asked(filters)}")
    if filters.top is not None and filters.top < len(rows):
        signal = signals(Selection(store, rows, index, positions))
        rows = np.sort(rows[np.argsort(-signal, kind="stable")[: filters.top]])
    if filters.max_rows is not None and filters.max_rows < len(rows):
        rows = np.sort(np.random.default_rng(filters.seed).choice(rows, filters.max_rows, replace=False))
    return Selection(store, rows, index, positions)


def _asked(filters: Filters) -> str:
    asked = [counted(len(filters.names), "name")] if filters.names else []
    asked += [f"regions {', '.join(filters.regions)}"] if filters.regions else []
    asked += [f"{filters.allele} alleles"] if filters.allele is not None else []
    return f"asked for were {' and '.join(asked)}" if asked else "none is there yet"


def target_index(store: Store, label: str | None) -> int:
    """The place of a target on the target axis.

    Raises:
        UserError: there is no such target, or none is named and there are several.
    """
    labels = store.targets
    if label is None and len(labels) == 1:
        return 0
    if label is None:
        raise UserError(f"{store.url} has {len(labels)} targets; choose one with --target: {', '.join(labels)}")
    if label not in labels:
        raise UserError(f"--target {label}: {store.url} has {', '.join(labels)}")
    return labels.index(label)


def signals(selection: Selection) -> np.ndarray:
    """(M,) float64: the sum of |attribution| over the window, of each row."""
    blocks = selection.blocks(["attribution"])
    return np.concatenate([np.abs(block["attribution"]).sum(axis=1, dtype=np.float64) for block in blocks])


def turned(name: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """An array (codes, attribution or hypothetical) with some of its rows reverse-complemented.

    Args:
        name: of the array.
        values: (B, L), or (B, 4, L) for hypothetical.
        rows: which.
    """
    values = values.copy()
    other = values[rows][..., ::-1]
    if name == "codes":
        other = np.where(other == UNKNOWN, UNKNOWN, 3 - np.minimum(other, 3)).astype(values.dtype)
    elif name == "hypothetical":
        other = other[:, ::-1]
    values[rows] = other
    return values


def even(length: int, window: int) -> int:
    """The largest even number of bases up to `window` that sequences of `length` bases have."""
    return min(window, length) // 2 * 2
