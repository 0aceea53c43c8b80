"""Windows of a genome with the GC content of each sequence.

The windows lie end to end from the start of each chromosome; those with an unknown base are left out, of equal ones the
first is kept, and of more than fit in MAX_POOL_BYTES every second, third, ... is taken. They are kept in the store,
sorted by their GC content in percent, so that workers need no genome.

The references of a sequence are drawn one after the other, each window at most once. Reference k comes from the windows
of the nearest percentages that together hold WINDOWS_EACH * (k + 1) windows or more; percentages that are equally near
are taken together. SHAKE-256 of `random_state` and the sequence's codes gives the numbers that decide. A window that is
the sequence itself, on either strand, is passed over. So a reference is a pure function of (windows, sequence,
random_state, k): neither the other rows nor the number of references matter.
"""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlshap_core.sequences import UNKNOWN, encode, reverse_complement
from pipeline.config.settings import setting
from pipeline.inputs.facts import InputFacts
from pipeline.inputs.genome import open_genome
from pipeline.inputs.text import require_file
from pipeline.messages.errors import UserError
from pipeline.messages.words import counted
from pipeline.planning.plan import Plan
from pipeline.references.base import Draw, ResolvedReferences, ShardReferences, shared
from pipeline.references.kind import Drawn, Pool

MAX_POOL_BYTES = 1 << 27
WINDOWS_EACH = 10  # windows for each reference to choose from, so that sequences of one GC content share about a tenth
MAX_OWN = 2  # windows that may be passed over: the sequence and its reverse complement


@dataclass
class Genomic(Drawn):
    """Windows of a genome, drawn for each sequence from those of its GC content."""

    name: str = "genomic"
    genome: str = setting("genome FASTA, plain or compressed", fingerprint="resolved", is_file=True, is_plain=True)

    def require_files(self) -> None:
        require_file(self.genome, "references.genome")

    def resolve(self, facts: InputFacts) -> ResolvedReferences:
        """Read the windows. Raises UserError where the genome has too few without unknown bases."""
        windows = list(_windows(require_file(self.genome, "references.genome"), facts.length))
        notes = self._require_enough(len(windows), facts.length)
        codes = np.stack(windows)
        percent = np.array([gc_percent(window) for window in codes]).round().astype(int)
        pool = codes[np.argsort(percent, kind="stable")]
        found, counts = np.unique(percent, return_counts=True)
        stops = np.cumsum(counts)
        bins = np.stack([found, stops - counts, stops], axis=1).tolist()
        digest = hashlib.sha256(f"{pool.shape}\n".encode() + pool.tobytes()).hexdigest()
        fingerprint = {"n_shuffles": self.n, "windows": digest, "drawn_by": "sequence"}
        plan = {"name": self.name, "bins": bins, "drawn_by": "sequence"}
        return ResolvedReferences(self.n, plan, fingerprint, pool, notes)

    def _require_enough(self, n_windows: int, length: int) -> list[str]:
        """Raises UserError where windows are too few; a warning where they are few."""
        found = f"references.genome={self.genome} has {counted(n_windows, 'different window')} of {length} known bases"
        asked, needed = f"references.n_shuffles={self.n}", self.n + MAX_OWN
        if n_windows < needed:
            lower = f", or lower references.n_shuffles to {n_windows - MAX_OWN}" if n_windows > MAX_OWN else ""
            raise UserError(
                f"{found}; {asked} needs {needed} ({MAX_OWN} more, as a sequence's own window, on either strand, is "
                f"not its reference): give a larger genome{lower}"
            )
        if n_windows >= WINDOWS_EACH * self.n:
            return []
        return [
            f"warning: {found}, fewer than {WINDOWS_EACH * self.n} ({WINDOWS_EACH} for each of {asked}): "
            f"sequences share many references, and these match their GC content less closely"
        ]

    @classmethod
    def load(cls, plan: Plan, pool: Pool) -> Draw:
        """Draws from the windows that the store keeps. Raises UserError where dlshap 0.1 drew by another rule."""
        if "drawn_by" not in plan.references:
            raise UserError(
                "dlshap 0.1 drew these windows of a genome by another rule, which this version does not have; use "
                "dlshap 0.1 to draw them again"
            )
        windows, bins = pool(), np.array(plan.references["bins"])

        def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
            rows = [_drawn(row, windows, bins, plan) for row in codes_NL[:: plan.rows_per_group]]
            return shared(np.stack(rows), plan.rows_per_group)

        return draw


def gc_percent(codes: np.ndarray) -> float:
    """How many percent of the known bases of (L,) codes are C or G."""
    n_gc, n_known = _gc(codes)
    return 100 * n_gc / max(1, n_known)


def _gc(codes: np.ndarray) -> tuple[int, int]:
    """How many bases of (L,) codes are C or G, and how many are known."""
    counts = np.bincount(codes, minlength=UNKNOWN + 1)
    return int(counts[1] + counts[2]), int(counts[:UNKNOWN].sum())


def _drawn(codes: np.ndarray, pool: np.ndarray, bins: np.ndarray, plan: Plan) -> np.ndarray:
    """(R, L) references of (L,) codes, from (P, L) windows.

    A Fisher-Yates shuffle of the windows in the order of their nearness, whose range grows with each draw; `moved`
    holds the places of that order that another window has taken.
    """
    n_draws = plan.n_references + MAX_OWN
    key = struct.pack("<q", plan.random_state) + codes.tobytes()
    numbers = np.frombuffer(hashlib.shake_256(key).digest(8 * n_draws), dtype="<u8").tolist()
    order, n_nearest = _nearest(codes, bins, n_draws)
    moved: dict[int, int] = {}
    chosen = []
    for i, (number, n) in enumerate(zip(numbers, n_nearest, strict=True)):
        place = i + number % (n - i)
        chosen.append(moved.get(place, place))
        moved[place] = moved.get(i, i)
    windows = pool[order[chosen]]
    is_own = (windows == codes).all(axis=1) | (windows == reverse_complement(codes)).all(axis=1)
    return windows[~is_own][: plan.n_references]


def _nearest(codes: np.ndarray, bins: np.ndarray, n_draws: int) -> tuple[np.ndarray, list[int]]:
    """Indices of windows, those of the nearest GC content first; and from how many of them each draw is.

    Distances are whole numbers, percent times known bases: whether two are equal does not hang on rounding.
    """
    n_gc, n_known = _gc(codes)
    distance = np.abs(bins[:, 0] * n_known - 100 * n_gc)
    by_distance = np.argsort(distance, kind="stable")
    starts, stops = bins[by_distance, 1], bins[by_distance, 2]
    last_as_near = np.searchsorted(distance[by_distance], distance[by_distance], side="right") - 1
    n_within = np.cumsum(stops - starts)[last_as_near]
    wanted = np.minimum(WINDOWS_EACH * np.arange(1, n_draws + 1), n_within[-1])
    n_nearest = n_within[np.searchsorted(n_within, wanted)]
    n_bins = int(np.searchsorted(n_within, n_nearest[-1], side="right"))
    order = [np.arange(start, stop) for start, stop in zip(starts[:n_bins], stops[:n_bins], strict=True)]
    return np.concatenate(order), n_nearest.tolist()


def _windows(path: Path, length: int) -> Iterator[np.ndarray]:
    """Codes of the different windows without an unknown base, evenly thinned to MAX_POOL_BYTES."""
    seen = set()
    with closing(open_genome(path)) as genome:
        n_windows = {chrom: size // length for chrom, size in genome.lengths.items() if size >= length}
        stride = -(-sum(n_windows.values()) * length // MAX_POOL_BYTES) or 1
        genome.expect(set(n_windows))
        n_passed = 0
        for chrom, n in n_windows.items():
            for window in range(-n_passed % stride, n, stride):
                start = window * length
                codes = _encoded(genome.fetch(chrom, start, start + length), f"genome {path}, {chrom} from {start}")
                digest = hashlib.blake2b(codes.tobytes(), digest_size=16).digest()
                if not (codes == UNKNOWN).any() and digest not in seen:
                    seen.add(digest)
                    yield codes
            genome.release(chrom)
            n_passed += n


def _encoded(letters: bytes, where: str) -> np.ndarray:
    try:
        return encode(letters)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
