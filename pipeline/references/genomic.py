"""Windows of a genome with the GC content of each sequence.

The windows lie end to end from the start of each chromosome; those with an unknown base are left out, and of more than
fit in MAX_POOL_BYTES every second, third, ... is taken. They are kept in the store, sorted by their GC content in
percent, so that actors need no genome. Reference k of a sequence is drawn from the windows of the nearest percentage by
numpy's legacy generator with the seed `seed + k`.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlshap_core.sequences import UNKNOWN, encode
from pipeline.config import ReferencesConfig
from pipeline.errors import UserError
from pipeline.fingerprint import InputFacts
from pipeline.plan import Plan
from pipeline.references.base import Draw, Settled, ShardReferences, shared
from pipeline.sources.genome import open_genome
from pipeline.sources.text import require_file

MAX_POOL_BYTES = 1 << 27


def settle(config: ReferencesConfig, facts: InputFacts) -> Settled:
    """Read the windows.

    Raises:
        UserError: the genome cannot be read, or has no window without unknown bases.
    """
    assert config.n_shuffles is not None  # see config.problems
    windows = list(_windows(require_file(config.genome, "references.genome"), facts.length))
    if not windows:
        raise UserError(f"references.genome={config.genome} has no window of {facts.length} known bases")
    codes = np.stack(windows)
    percent = np.array([gc_percent(window) for window in codes]).round().astype(int)
    pool = codes[np.argsort(percent, kind="stable")]
    found, counts = np.unique(percent, return_counts=True)
    stops = np.cumsum(counts)
    bins = np.stack([found, stops - counts, stops], axis=1).tolist()
    digest = hashlib.sha256(f"{pool.shape}\n".encode() + pool.tobytes()).hexdigest()
    fingerprint = {"n_shuffles": config.n_shuffles, "windows": digest}
    return Settled(config.n_shuffles, {"name": config.name, "bins": bins}, fingerprint, pool)


def opened(plan: Plan, pool: np.ndarray) -> Draw:
    """Draws from the (P, L) windows that the store keeps."""
    bins = np.array(plan.references["bins"])

    def indices(bin_: int) -> list[int]:
        _, start, stop = bins[bin_]
        seeds = range(plan.seed, plan.seed + plan.n_references)
        return [int(start + np.random.RandomState(seed).randint(stop - start)) for seed in seeds]

    def draw(codes_NL: np.ndarray, first_row: int) -> ShardReferences:
        nearest = [int(np.abs(bins[:, 0] - gc_percent(row)).argmin()) for row in codes_NL[:: plan.rows_per_group]]
        chosen = {bin_: indices(bin_) for bin_ in set(nearest)}
        return shared(np.array(pool[[chosen[bin_] for bin_ in nearest]]), plan.rows_per_group)

    return draw


def gc_percent(codes: np.ndarray) -> float:
    """How many percent of the known bases of (L,) codes are C or G."""
    counts = np.bincount(codes, minlength=UNKNOWN + 1)
    return float(100 * (counts[1] + counts[2]) / max(1, counts[:UNKNOWN].sum()))


def _windows(path: Path, length: int) -> Iterator[np.ndarray]:
    """Codes of the windows without an unknown base, evenly thinned to MAX_POOL_BYTES."""
    genome = open_genome(path)
    try:
        n_windows = {chrom: size // length for chrom, size in genome.lengths.items() if size >= length}
        stride = -(-sum(n_windows.values()) * length // MAX_POOL_BYTES) or 1
        genome.expect(set(n_windows))
        n_passed = 0
        for chrom, n in n_windows.items():
            for window in range(-n_passed % stride, n, stride):
                start = window * length
                codes = _encoded(genome.fetch(chrom, start, start + length), f"genome {path}, {chrom} from {start}")
                if not (codes == UNKNOWN).any():
                    yield codes
            genome.release(chrom)
            n_passed += n
    finally:
        genome.close()


def _encoded(letters: bytes, where: str) -> np.ndarray:
    try:
        return encode(letters)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
