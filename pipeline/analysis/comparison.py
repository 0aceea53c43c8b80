"""What differs between two stores of the same sequences. They are read side by side, block by block.

Memory grows by a few numbers for each row. Shape legend: M rows that are finished in both, B rows of a block,
L positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.analysis import variant_effects
from pipeline.analysis.kmers import Kmer, KmerTotals
from pipeline.messages.errors import UserError
from pipeline.messages.progress import Advance
from pipeline.messages.visible import brief
from pipeline.messages.words import counted
from pipeline.planning.fingerprint import differences
from pipeline.store.reader import Block, Store
from pipeline.store.schema import computed_arrays, layout_of

JUDGED = ("attribution", "hypothetical", "prediction", "reference_prediction")  # by a tolerance
QUANTILES = (0.5, 0.9, 0.99)
K = 6  # bases of a k-mer
ROWS_AT_ONCE = 256  # so that what is computed stays in the processor's cache
SITE_WIDTH = 20  # bases of the stretch of a row that changed most
_DROPPED_BITS = 16  # of a float32 number, whose order is that of its bits: 7 of its significand stay
_FEWEST = 1 << _DROPPED_BITS - 1


class Sizes:
    """Quantiles of |values| from counts of numbers that agree in their first 7 binary digits: to 0.4%.

    Attributes:
        n: finite values counted.
        largest: of them, exactly.
    """

    def __init__(self) -> None:
        self.n, self.largest = 0, 0.0
        self._counts = np.zeros(1 << 32 - _DROPPED_BITS - 1, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape; those that are not finite are left out."""
        sizes = np.abs(values[np.isfinite(values)]).astype(np.float32)
        if len(sizes):
            self.n += len(sizes)
            self.largest = max(self.largest, float(sizes.max()))
            self._counts += np.bincount(sizes.view(np.uint32) >> _DROPPED_BITS, minlength=len(self._counts))

    def quantile(self, part: float) -> float:
        """The size that this part of the values does not exceed; NaN where none was counted."""
        if not self.n:
            return float("nan")
        place = int(np.searchsorted(np.cumsum(self._counts), part * self.n))
        if place == 0:
            return 0.0
        middle = np.array([place << _DROPPED_BITS | _FEWEST], dtype=np.uint32).view(np.float32)
        return min(float(middle[0]), self.largest)


@dataclass
class ArrayComparison:
    """One array of both stores, of the targets that are compared.

    Attributes:
        name: of the array.
        identical: whether all values have the same bits.
        difference: sizes of the differences.
        a, b: sizes of the values.
        n_not_finite: values that differ and are not finite in one store or in both; NaN equals NaN.
    """

    name: str
    identical: bool = True
    difference: Sizes = field(default_factory=Sizes)
    a: Sizes = field(default_factory=Sizes)
    b: Sizes = field(default_factory=Sizes)
    n_not_finite: int = 0

    @property
    def relative(self) -> float:
        """The largest difference, as a share of the largest value of either store."""
        if self.n_not_finite:
            return float("inf")
        largest = max(self.a.largest, self.b.largest)
        return self.difference.largest / largest if largest else 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.identical = self.identical and a.tobytes() == b.tobytes()
        not_finite = ~(np.isfinite(a) & np.isfinite(b)) & ~(np.isnan(a) & np.isnan(b))
        self.n_not_finite += int((not_finite & (a != b)).sum())
        self.a.add(a)
        self.b.add(b)
        with np.errstate(invalid="ignore"):  # infinite in both
            self.difference.add(np.asarray(a) - b)


@dataclass(frozen=True)
class TargetComparison:
    """One target of each store. Attributions are scaled by their root mean square in the store where `change` is meant,
    so that models with outputs of different sizes can be compared.

    Attributes:
        a, b: indices on the target axes.
        rows: (M,) indices in the stores.
        prediction: (M, 2) of each store.
        correlation: (M,) Pearson's, of the attributions along the sequence; NaN where either is the same everywhere, or
            not finite.
        rms: (M, 2) root mean square of the attributions of a row.
        largest: (M,) the largest |difference| of the attributions, not scaled.
        change: (M,) root mean square of the difference of the scaled attributions; NaN where one is not finite.
        scale: root mean square of all finite attributions of each store.
        gained, lost: k-mers that gather more, and less, scaled attribution in the second store.
    """

    a: int
    b: int
    rows: np.ndarray
    prediction: np.ndarray
    correlation: np.ndarray
    rms: np.ndarray
    largest: np.ndarray
    change: np.ndarray
    scale: tuple[float, float]
    gained: list[Kmer]
    lost: list[Kmer]

    @property
    def units(self) -> tuple[float, float]:
        """`scale`, and 1 for a store whose attributions are all 0: what they are divided by to be compared."""
        return _units(self.scale)

    def correlation_quantiles(self) -> dict[str, float]:
        """What half of the rows that have a correlation reach, and 90% of them, and all; empty without such a row."""
        known = self.correlation[np.isfinite(self.correlation)]
        found = np.quantile(known, [0.5, 0.1, 0]).tolist() if len(known) else []
        return dict(zip(("median", "percentile_10", "lowest"), found, strict=False))

    def most_changed(self, most: int) -> np.ndarray:
        """Places among the M rows, by falling change; rows without one are left out."""
        order = np.lexsort((-self.largest, -np.nan_to_num(self.change, nan=-1.0)))
        return order[np.isfinite(self.change[order]) & (self.largest[order] > 0)][:most]


@dataclass(frozen=True)
class Comparison:
    """Two stores of the same sequences.

    Attributes:
        a, b: the stores.
        rows: (M,) indices of the rows that are finished in both.
        settings: a phrase for each thing that their values depend on and that differs.
        arrays: what was compared value by value.
        not_compared: a phrase for each array that cannot be, with the reason.
        targets: the pairs of targets.
    """

    a: Store
    b: Store
    rows: np.ndarray
    settings: list[str]
    arrays: list[ArrayComparison]
    not_compared: list[str]
    targets: list[TargetComparison]

    @property
    def identical(self) -> bool:
        """Whether all values that were compared have the same bits."""
        return all(array.identical for array in self.arrays)

    @property
    def largest(self) -> float:
        """The largest relative difference of the values that a tolerance is about."""
        return max(array.relative for array in self.arrays if array.name in JUDGED)


def compare(a: Store, b: Store, pairs: Sequence[tuple[int, int]], advance: Advance) -> Comparison:
    """Compare two stores, target by target.

    Args:
        pairs: indices on the target axes of `a` and `b`.
        advance: told of rows that were read.

    Raises:
        UserError: their sequences differ, or no row is finished in both.
    """
    _require_same_lengths(a, b)
    rows = np.flatnonzero(a.present & b.present)
    if not len(rows):
        raise UserError(f"no row is finished in both of {a.url} and {b.url}")
    names, not_compared = _comparable(a, b)
    arrays = {name: ArrayComparison(name) for name in names}
    gathered = [_Gathering() for _ in pairs]
    for block in a.blocks(["codes", *names], rows, pairs[0][0]):
        _require_same_codes(a, b, block)
        for index, (pair, gathering) in enumerate(zip(pairs, gathered, strict=True)):
            first = block.values if index == 0 else a.take(names, block.rows, pair[0])
            second = b.take(names, block.rows, pair[1])
            _add(block["codes"], first, second, arrays, gathering)
            advance(len(block.rows))
    length = int(a.codes.shape[1])
    targets = [gathering.result(pair, rows, length) for pair, gathering in zip(pairs, gathered, strict=True)]
    settings = _settings(a, b)
    return Comparison(a, b, rows, settings, list(arrays.values()), not_compared, targets)


def pair_targets(a: Store, b: Store, wanted: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Which targets of two stores are compared: those of the same label, or the only one of each.

    Args:
        wanted: labels, or LABEL_OF_A=LABEL_OF_B; if none are given, all that can be paired.

    Raises:
        UserError: a label that there is not, or nothing to pair.
    """
    if not wanted:
        if len(a.targets) == len(b.targets) == 1:
            return [(0, 0)]
        wanted = [label for label in a.targets if label in b.targets]
        if not wanted:
            raise UserError(
                f"no target of {a.url} ({_some(a.targets)}) is one of {b.url} ({_some(b.targets)}); say which to "
                f"compare: --target {a.targets[0]}={b.targets[0]}"
            )
    pairs = []
    for text in dict.fromkeys(wanted):
        first, _, second = (text, "", text) if text in a.targets else text.partition("=")
        for store, label in ((a, first), (b, second or first)):
            if label not in store.targets:
                raise UserError(f"--target {text}: {store.url} has {_some(store.targets)}, not {label}")
        pairs.append((a.targets.index(first), b.targets.index(second or first)))
    return pairs


def most_changed_bases(a: np.ndarray, b: np.ndarray, units: tuple[float, float]) -> tuple[int, int]:
    """[start, end) of the SITE_WIDTH bases of a row where its (L,) attributions, each in its unit, differ most."""
    return variant_effects.strongest_change(a / units[0] - b / units[1], SITE_WIDTH)


def _units(scale: tuple[float, float]) -> tuple[float, float]:
    return scale[0] or 1.0, scale[1] or 1.0


def _some(labels: Sequence[str], most: int = 6) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(map(brief, labels[:most])) + more


def _require_same_lengths(a: Store, b: Store) -> None:
    if a.codes.shape != b.codes.shape:
        (n_a, length_a), (n_b, length_b) = a.codes.shape, b.codes.shape
        raise UserError(
            f"{a.url} has {counted(n_a, 'sequence')} of {length_a} bases, {b.url} has {n_b} of {length_b}; stores are "
            "compared row by row: run both models on the same input"
        )


def _comparable(a: Store, b: Store) -> tuple[list[str], list[str]]:
    """Arrays of floating-point numbers of the rows, that both stores have in one shape; and why others are left out."""
    names, reasons = [], []
    layouts = layout_of(a.plan), layout_of(b.plan)
    for name in dict.fromkeys([*computed_arrays(a.plan), *computed_arrays(b.plan)]):
        if not all(name in layout for layout in layouts):
            reasons.append(f"{name}: only {(a if name in layouts[0] else b).url} has it")
            continue
        (dims, dtype), (other_dims, _) = (layout[name] for layout in layouts)
        if dims[0] != "sequence" or not dtype.startswith("float"):
            continue
        tails = [
            [size for dim, size in zip(dims, store[name].shape, strict=True) if dim != "target"] for store in (a, b)
        ]
        if dims != other_dims or tails[0] != tails[1]:
            reasons.append(f"{name}: {a[name].shape} values and {b[name].shape}")
        else:
            names.append(name)
    return names, reasons


def _settings(a: Store, b: Store) -> list[str]:
    """What the values depend on and differs; of the code of the models only that it does, where nothing else tells."""
    fields = [dict(store.attrs.get("fingerprint", {})) for store in (a, b)]
    code = [{key: each.pop(key) for key in list(each) if key.startswith("model.settings.")} for each in fields]
    phrases = differences(fields[0], fields[1], sides=("in the first", "in the second"))
    found = [phrase.removeprefix("settings.") for phrase in phrases]
    tells = any(phrase.startswith("model.") for phrase in found)
    return found + (["the code or the settings of the model differ"] if code[0] != code[1] and not tells else [])


@dataclass
class _Gathering:
    """What is added up over the blocks of one pair of targets."""

    kmers: tuple[KmerTotals, KmerTotals] = field(default_factory=lambda: (KmerTotals(K), KmerTotals(K)))
    columns: list[np.ndarray] = field(default_factory=list)  # (B, 8) of each block

    def add(self, codes: np.ndarray, a: np.ndarray, b: np.ndarray, prediction: np.ndarray) -> None:
        finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
        for totals, values in zip(self.kmers, (a, b), strict=True):
            totals.add(codes[finite], values[finite])
        with np.errstate(invalid="ignore"):
            largest = np.abs(a - b).max(axis=1)
            a, b = a.astype(np.float64), b.astype(np.float64)
            sums = [np.einsum("bl,bl->b", *each) for each in ((a, a), (b, b), (a, b))]
            centred = [each - each.mean(axis=1, keepdims=True) for each in (a, b)]
            product = np.einsum("bl,bl->b", *centred)
            sizes = np.sqrt(np.prod([np.einsum("bl,bl->b", each, each) for each in centred], axis=0))
            correlation = np.where(sizes > 0, product / np.where(sizes > 0, sizes, 1), np.nan).clip(-1, 1)
        self.columns.append(np.column_stack([prediction, correlation, *sums, largest, finite]))

    def result(self, pair: tuple[int, int], rows: np.ndarray, length: int) -> TargetComparison:
        """Of all blocks."""
        found = np.concatenate(self.columns)
        prediction, (correlation, aa, bb, ab, largest, finite) = found[:, :2], found[:, 2:].T
        n = max(1, int(finite.sum()) * length)
        scale_a, scale_b = (float(np.sqrt(each[finite > 0].sum() / n)) for each in (aa, bb))
        unit_a, unit_b = _units((scale_a, scale_b))
        squared = aa / unit_a**2 - 2 * ab / (unit_a * unit_b) + bb / unit_b**2
        change = np.where(finite > 0, np.sqrt(np.maximum(squared, 0) / length), np.nan)
        gains = self.kmers[1].beyond(self.kmers[0], unit_b, unit_a)
        return TargetComparison(
            a=pair[0],
            b=pair[1],
            rows=rows,
            prediction=prediction,
            correlation=correlation,
            rms=np.sqrt(np.column_stack([aa, bb]) / length),
            largest=largest,
            change=change,
            scale=(scale_a, scale_b),
            gained=gains.strongest(8),
            lost=gains.strongest(8, negative=True),
        )


def _add(
    codes: np.ndarray,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    arrays: Mapping[str, ArrayComparison],
    gathering: _Gathering,
) -> None:
    """The same rows of both stores, ROWS_AT_ONCE at most at a time."""
    for start in range(0, len(codes), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        for name, array in arrays.items():
            array.add(first[name][some], second[name][some])
        prediction = np.column_stack([first["prediction"][some], second["prediction"][some]])
        gathering.add(codes[some], first["attribution"][some], second["attribution"][some], prediction)


def _require_same_codes(a: Store, b: Store, block: Block) -> None:
    differ = (block["codes"] != b.take(["codes"], block.rows)["codes"]).any(axis=1)
    if differ.any():
        row = int(block.rows[np.argmax(differ)])
        names = [brief(str(store.rows["name"][row])) for store in (a, b)]
        raise UserError(
            f"row {row} is another sequence in {a.url} ({names[0]}) than in {b.url} ({names[1]}); stores are compared "
            "row by row: run both models on the same input"
        )
