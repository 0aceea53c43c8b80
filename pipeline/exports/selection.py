"""Which rows of a store are exported, and which target; and their values, along the genome.

Rows whose codes are of the minus strand are turned back, so that everything exported is in the forward frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlshap_core.sequences import reverse_complement, reverse_complement_bases
from pipeline.inputs.names import chrom_problem
from pipeline.inputs.variants import ALLELES
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance
from pipeline.messages.words import counted, some
from pipeline.store.reader import Block, Store
from pipeline.store.windows import centred

N_NAMED = 20  # targets, in an error


@dataclass(frozen=True)
class Filters:
    """What is asked for; a row must pass all of it.

    Attributes:
        names: any row if empty.
        regions: the row's window shares a base with one of these (chr1:100-200, 0-based half-open); any row if empty.
        top: the so many rows with the largest sum of |attribution| in the exported window.
        max_rows: so many rows, drawn at random with the `seed`.
        allele: rows of a store of variants, ref or alt.
    """

    names: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    top: int | None = None
    max_rows: int | None = None
    seed: int = 0
    allele: str | None = None


_OTHER_STRAND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "codes": reverse_complement,
    "hypothetical": reverse_complement_bases,
    "attribution": lambda values: values[..., ::-1],  # of the observed base, whichever it is
}


@dataclass(frozen=True)
class Selection:
    """Rows of a store, and what is read of them, in the forward frame.

    Attributes:
        store: to read from.
        rows: (M,) ascending.
        targets: indices on the target axis; more than one only for exports of every target.
        window: positions of each row.
        seed: that the rows were drawn with, and are shuffled with where an export does.
    """

    store: Store
    rows: np.ndarray
    targets: tuple[int, ...]
    window: slice
    seed: int = 0

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
            rows = minus[done : done + len(block.rows)]
            for name, values in block.values.items():
                values[rows] = _OTHER_STRAND[name](values[rows])
            yield Block(block.rows, {name: values[..., self.window] for name, values in block.values.items()})
            done += len(block.rows)

    def placed(
        self, name: str, place_of: np.ndarray, advance: Advance = lambda n_rows: None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """An array in another order, for `files.reordered`; `place_of` is (M,) where each row goes, -1: nowhere."""
        for block in self.blocks([name]):
            places = place_of[np.searchsorted(self.rows, block.rows)]
            yield places[places >= 0], block[name][places >= 0]
            advance(len(block.rows))

    @property
    def target(self) -> int:
        """The only target, or the first of several."""
        return self.targets[0]

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
        """Whether every row has a locus."""
        return bool((self.column("start") >= 0).all())

    @property
    def start(self) -> np.ndarray:
        """(M,) int64 where the window of each row starts on the genome."""
        return self.column("start") + self.window.start

    @property
    def centre(self) -> np.ndarray:
        """(M,) int64 the base of the genome that each row is centred on."""
        return self.column("start") + int(self.store.codes.shape[1]) // 2


def select(
    store: Store, filters: Filters, target: str | None, window: int | None, every_target: bool = False
) -> Selection:
    """The finished rows of a store that an export writes.

    Args:
        store, filters: which rows.
        target: its label; the only one if not given.
        window: bases around the centre; whole sequences if not given.
        every_target: take all targets if none is given, unless rows are chosen by the attribution of one.

    Raises:
        UserError: nothing is left, a name or region or target is not there, or the window does not fit.
    """
    length = int(store.codes.shape[1])
    positions = slice(0, length) if window is None else centred(length, window)
    if every_target and target is None and filters.top is None:
        targets = tuple(range(len(store.targets)))
    else:
        targets = (target_index(store, target),)
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
    _require_plain_chroms(store, rows)
    if filters.top is not None and filters.top < len(rows):
        signal = signals(Selection(store, rows, targets, positions))
        rows = np.sort(rows[np.argsort(-signal, kind="stable")[: filters.top]])
    if filters.max_rows is not None and filters.max_rows < len(rows):
        rows = np.sort(np.random.default_rng(filters.seed).choice(rows, filters.max_rows, replace=False))
    return Selection(store, rows, targets, positions, filters.seed)


def _asked(filters: Filters) -> str:
    asked = [counted(len(filters.names), "name")] if filters.names else []
    asked += [f"regions {', '.join(filters.regions)}"] if filters.regions else []
    asked += [f"{filters.allele} alleles"] if filters.allele is not None else []
    return f"asked for were {' and '.join(asked)}" if asked else "none is finished yet"


def target_index(store: Store, label: str | None) -> int:
    """The index of a target on the target axis; UserError where none is called so, or one of several must be named."""
    labels = store.targets
    if label is None and len(labels) == 1:
        return 0
    if label is None:
        raise UserError(f"{store.url} has {len(labels)} targets; choose one with --target: {some(labels, N_NAMED)}")
    if label not in labels:
        which = "only the target" if len(labels) == 1 else "the targets"
        raise UserError(f"--target {label}: {store.url} has {which} {some(labels, N_NAMED)}")
    return labels.index(label)


def _require_plain_chroms(store: Store, rows: np.ndarray) -> None:
    """Raises UserError for a chromosome that would forge columns or lines of a table; no run writes such a store."""
    chroms = store.rows["chrom"][rows].tolist()
    for name in dict.fromkeys(chroms):
        if (problem := chrom_problem(name)) is not None:
            row = rows[chroms.index(name)]
            raise UserError(f"row {row} of {store.url}: {problem}; this store is not as a run made it")


def signals(selection: Selection) -> np.ndarray:
    """(M,) float64: the sum of |attribution| over the window, of each row."""
    blocks = selection.blocks(["attribution"])
    return np.concatenate([np.abs(block["attribution"]).sum(axis=1, dtype=np.float64) for block in blocks])


def require_even(width: int, tool: str, option: str = "--window") -> None:
    """Raises UserError for an odd number of bases: the tools take half of it on either side of the centre."""
    if width % 2:
        raise UserError(f"{option} {width}: {tool} reads an even number of bases, such as {width - 1}")
