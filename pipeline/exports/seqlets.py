"""Seqlets: stretches whose attribution stands out, as BED6 and more columns.

tangermeme's recursive caller finds them: every stretch of `min_length` to `max_length` bases within a seqlet has a
p-value below the threshold. Negative ones are found on the negated attributions; where one overlaps a positive seqlet
it is left out.

The null of a p-value: as many positions, drawn independently from all attributions that are exported of that target
(of the same sign first), sum to at least as much. Attributions of neighbouring bases are not independent, and the null
holds the signal too: p-values rank seqlets, and are no error rates.

With a MEME file, TOM-TOM (memelite) compares the bases of each seqlet with its motifs, on both strands.

All attributions of a target lie in a file on the disk, not in memory, which holds the seqlets alone. Lines are in the
order of the genome, coordinates in the forward frame.

Shape legend: M rows, S seqlets.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from dlshap_core.sequences import ALPHABET
from dlshap_core.sequences import decode as bases_of
from pipeline.exports.base import Export, Written
from pipeline.exports.files import RowFile, appearing, in_blocks, reordered
from pipeline.exports.selection import Selection
from pipeline.exports.tangermeme_private import N_BINS, decode
from pipeline.exports.text import field, windows_of
from pipeline.messages.errors import UserError, require_extra
from pipeline.messages.progress import Advance
from pipeline.messages.words import counted

COLUMNS = ("chrom", "start", "end", "name", "score", "strand", "row", "target", "attribution", "p_value")
MOTIF_COLUMNS = ("motif", "motif_p_value")
FEW_MOTIFS = 25  # below which memelite says that p-values depend on which motifs there are
BATCH = 4096  # stretches that are compared with motifs at once
NULL = (
    "p_value: the chance that as many positions, drawn independently from all attributions exported of the target and "
    "sign, sum to as much; neighbours are not independent, so that it ranks seqlets and is no error rate"
)


@dataclass(frozen=True)
class Seqlets:
    """(S,) each: the place of the row in the selection, the target's index, [start, end) in the window, the summed
    attribution and its p-value."""

    place: np.ndarray
    target: np.ndarray
    start: np.ndarray
    end: np.ndarray
    attribution: np.ndarray
    p_value: np.ndarray

    def take(self, which: np.ndarray) -> "Seqlets":
        """Some of them, in that order."""
        return Seqlets(*(getattr(self, each.name)[which] for each in fields(self)))

    @staticmethod
    def joined(parts: "Sequence[Seqlets]") -> "Seqlets":
        """One after the other."""
        return Seqlets(*(np.concatenate([getattr(part, e.name) for part in parts]) for e in fields(Seqlets)))


@dataclass(frozen=True)
class Nearest:
    """(S,) each: the nearest motif of a seqlet, its p-value, and the strand that it lies on."""

    motif: list[str]
    p_value: np.ndarray
    strand: list[str]


def export(
    selection: Selection,
    out: Path,
    overwrite: bool,
    advance: Advance,
    p_value: float,
    min_length: int,
    max_length: int,
    meme: Path | None,
) -> Written:
    """Write the seqlets to the file `out`; see `Export.write`.

    Args:
        p_value: the largest that a stretch of a seqlet may have.
        min_length, max_length: bases of a seqlet.
        meme: a file of motifs.

    Raises:
        UserError: a library is not installed, an option means nothing here, an attribution is not finite, or the file
            exists already.
    """
    if not 0 < p_value <= 1:
        raise UserError(f"--p-value {p_value}: expected a number above 0, at most 1")
    if not 0 < min_length <= max_length <= selection.width:
        raise UserError(
            f"--min-length {min_length} --max-length {max_length}: expected lengths in that order, from 1 to the "
            f"{selection.width} bases of the sequences"
        )
    require_extra("motifs", "tangermeme.seqlet")
    known = None if meme is None else read_motifs(meme)
    with appearing([out], overwrite) as (hidden,):
        found = Seqlets.joined(
            [
                _call(replace(selection, targets=(target,)), hidden.parent, advance, p_value, (min_length, max_length))
                for target in selection.targets
            ]
        )
        chroms, left = windows_of(selection)
        found = found.take(_genome_order(found, chroms, left))
        nearest = None if known is None else _nearest(_bases(selection, found), known)
        _write(hidden, selection, found, (chroms, left), nearest)
    n_negative = int((found.attribution < 0).sum())
    notes = [f"{counted(len(found.place), 'seqlet')}, {n_negative} of them negative", NULL]
    if known is not None and len(known) < FEW_MOTIFS:
        notes.append(
            f"warning: {meme} has {counted(len(known), 'motif')}, which TOM-TOM's p-values are drawn from; with "
            f"fewer than {FEW_MOTIFS} they depend on which these are: give a whole database"
        )
    return Written([out], len(selection), notes)


def _call(selection: Selection, folder: Path, advance: Advance, p_value: float, lengths: tuple[int, int]) -> Seqlets:
    """The seqlets of one target, positive ones first."""
    shape, ends = (len(selection), selection.width), Ends()
    with reordered(folder, shape, "float32", ends.seen(_finite(selection, advance))) as rows:
        positive, negative = (
            _one_sign(rows, selection.target, sign, ends, p_value, lengths) for sign in (np.float32(1), np.float32(-1))
        )
    return Seqlets.joined([positive, negative.take(~_overlapping(negative, positive, selection.width))])


class Ends:
    """The smallest and the largest of values that pass by."""

    def __init__(self) -> None:
        self.lowest, self.highest = np.float32(np.inf), np.float32(-np.inf)

    def seen(self, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for places, values in parts:
            if values.size:
                self.lowest, self.highest = min(self.lowest, values.min()), max(self.highest, values.max())
            yield places, values


def _one_sign(
    rows: RowFile, target: int, sign: np.float32, ends: Ends, p_value: float, lengths: tuple[int, int]
) -> Seqlets:
    """The seqlets of the attributions, or of the negated ones; what `recursive_seqlets` finds in all rows at once."""
    lowest, highest = sorted((sign * ends.lowest, sign * ends.highest))
    nothing = Seqlets(*(np.empty(0, dtype) for dtype in (np.int64,) * 4 + (np.float64,) * 2))
    if lowest == highest:
        return nothing
    width = float(highest - lowest) / (N_BINS - 1)
    counts = np.zeros(N_BINS, dtype=np.int64)
    for values in in_blocks(rows):
        bins = np.floor((sign * values - lowest).astype(np.float64) / width).astype(np.int64)
        counts += np.bincount(bins.ravel().clip(0, N_BINS - 1), minlength=N_BINS)
    tails = _tails(counts / counts.sum(), lengths[1])
    parts, first = [nothing], 0
    for values in in_blocks(rows):
        row, start, end, total, p = decode(sign * values, tails, lowest, width, p_value, lengths)
        parts.append(Seqlets(first + row, np.full(len(row), target), start, end, sign * total, p))
        first += len(values)
    return Seqlets.joined(parts)


def _tails(frequency: np.ndarray, longest: int) -> np.ndarray:
    """(longest + 1, bins): the chance that the bins of so many positions, drawn independently, sum to at least as much.

    Sums are in tangermeme's order, and have its bits.
    """
    n_bins = len(frequency)
    tails, sums = np.zeros((longest + 1, n_bins * longest + 1)), frequency
    for length in range(1, longest + 1):
        if length > 1:
            longer = np.zeros(len(sums) + n_bins - 1)
            for b in np.flatnonzero(frequency)[::-1]:
                longer[b : b + len(sums)] += sums * frequency[b]
            sums = longer
        tails[length, : len(sums)] = np.cumsum(sums[::-1])[::-1]
    return tails


def _finite(selection: Selection, advance: Advance) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The attributions for `files.reordered`; UserError for one that is no number: it would spoil the null of all."""
    for places, values in selection.placed("attribution", np.arange(len(selection)), advance):
        if not (finite := np.isfinite(values).all(axis=1)).all():
            row = int(selection.rows[places[int(finite.argmin())]])
            raise UserError(
                f"the attributions of row {row} of {selection.store.url} are not finite; choose rows without it"
            )
        yield places, values


def _overlapping(some: Seqlets, others: Seqlets, width: int) -> np.ndarray:
    """(S,) bool: which share a base with one of the others, which do not overlap each other."""
    if not len(others.place):
        return np.zeros(len(some.place), dtype=bool)
    order = np.lexsort((others.start, others.place))
    other_start, other_end = (
        others.place[order] * (width + 1) + getattr(others, name)[order] for name in ("start", "end")
    )
    start, end = (some.place * (width + 1) + getattr(some, name) for name in ("start", "end"))
    before = np.searchsorted(other_start, end) - 1  # the last one that begins before the end
    return np.asarray((before >= 0) & (other_end[before] > start))


def _genome_order(found: Seqlets, chroms: list[str], left: np.ndarray) -> np.ndarray:
    """(S,) the seqlets by chromosome, start, end, target and row."""
    _, rank = np.unique(np.array(chroms, dtype="U"), return_inverse=True)
    start, end = (left[found.place] + of_window for of_window in (found.start, found.end))
    return np.lexsort((found.place, found.target, end, start, rank[found.place]))


# --- motifs ---------------------------------------------------------------------------------------------------------


def read_motifs(path: Path) -> dict[str, np.ndarray]:
    """The (4, W) frequencies of the motifs of a MEME file, by what its MOTIF lines say; UserError where it is none."""
    require_extra("motifs", "memelite")
    from memelite.io import read_meme

    if not path.is_file():
        raise UserError(f"--meme {path}: no such file")
    try:
        motifs: dict[str, np.ndarray] = read_meme(str(path))
    except (ValueError, IndexError, AttributeError) as error:  # what comes of a line that is not as expected
        raise UserError(f"--meme {path}: it cannot be read as a MEME file of DNA motifs: {error}") from error
    if not motifs:
        raise UserError(f"--meme {path}: it holds no motif; expected a MEME file, with lines that begin with MOTIF")
    return motifs


def _bases(selection: Selection, found: Seqlets) -> np.ndarray:
    """(S,) the text of each seqlet, in the forward frame."""
    texts = np.empty(len(found.place), dtype=object)
    by_row = np.argsort(found.place, kind="stable")
    row_of = found.place[by_row]
    for block in selection.blocks(["codes"]):
        places = np.searchsorted(selection.rows, block.rows)
        for place, codes in zip(places, block["codes"], strict=True):
            for i in by_row[np.searchsorted(row_of, place) : np.searchsorted(row_of, place, side="right")]:
                texts[i] = bases_of(codes[found.start[i] : found.end[i]])
    return texts


def _nearest(texts: np.ndarray, motifs: dict[str, np.ndarray]) -> Nearest:
    """The motif with the smallest p-value for each text."""
    from memelite import tomtom

    names, matrices = list(motifs), list(motifs.values())
    unique, of_text = np.unique(texts.astype("U"), return_inverse=True)
    index, p_value, reverse = (np.zeros(len(unique), dtype) for dtype in (np.int64, np.float64, bool))
    for first in range(0, len(unique), BATCH):
        some = slice(first, first + BATCH)
        queries = [(np.array(list(text)) == np.array(list(ALPHABET))[:, None]).astype(float) for text in unique[some]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="tomtom was given", category=UserWarning)  # told in a note
            p_value[some], _, _, _, reverse[some], index[some] = tomtom(queries, matrices, n_nearest=1)[..., 0]
    return Nearest([names[i] for i in index[of_text]], p_value[of_text], ["-" if r else "+" for r in reverse[of_text]])


# --- the file -------------------------------------------------------------------------------------------------------


def _write(
    path: Path,
    selection: Selection,
    found: Seqlets,
    windows: tuple[list[str], np.ndarray],
    nearest: Nearest | None,
) -> None:
    """A line for each seqlet, after two of comments: the null, and the names of the columns."""
    (chroms, left), names, labels = windows, selection.column("name"), selection.store.targets
    score = np.round(-10 * np.log10(np.maximum(found.p_value, 1e-100))).clip(0, 1000).astype(int)
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {NULL}\n#" + "\t".join([*COLUMNS, *([] if nearest is None else MOTIF_COLUMNS)]) + "\n")
        for i, place in enumerate(found.place.tolist()):
            columns = [
                chroms[place],
                left[place] + found.start[i],
                left[place] + found.end[i],
                field(names[place]),
                score[i],
                "." if nearest is None else nearest.strand[i],
                selection.rows[place],
                field(labels[found.target[i]]),
                f"{found.attribution[i]:.6g}",
                f"{found.p_value[i]:.4g}",
            ]
            if nearest is not None:
                columns += [field(nearest.motif[i]), f"{nearest.p_value[i]:.4g}"]
            file.write("\t".join(map(str, columns)) + "\n")


EXPORT = Export(
    name="seqlets",
    help="stretches whose attribution stands out, as BED with p-values (tangermeme's recursive caller), and the "
    "nearest motif of each (TOM-TOM)",
    write=export,
    options={
        "p_value": {
            "metavar": "P",
            "type": float,
            "default": 0.01,
            "help": "the largest p-value of any stretch within a seqlet (default: 0.01): the chance that as many "
            "positions, drawn independently from all exported attributions, sum to as much",
        },
        "min_length": {"metavar": "N", "type": int, "default": 4, "help": "least number of bases (default: 4)"},
        "max_length": {"metavar": "N", "type": int, "default": 25, "help": "largest number of bases (default: 25)"},
        "meme": {
            "metavar": "FILE",
            "type": Path,
            "help": "motifs in MEME's format; the nearest to each seqlet is named",
        },
    },
    alleles=("ref", "alt", "both"),
    every_target=True,
)
