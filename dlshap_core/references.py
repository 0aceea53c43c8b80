"""Reference sequences as tensors: seeded shuffles of one-hot sequences (see `shuffles`).

Shape legend: N sequences, R references, A alphabet, L length.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlshap_core.one_hot import one_hot, to_codes, validate_one_hot
from dlshap_core.shuffles import as_generator_seeds, permute_codes, shuffle_codes, shuffle_codes_locally, shuffle_rows

__all__ = [
    "dinucleotide_shuffle",
    "dinucleotide_shuffle_uniform",
    "permute_codes",
    "shuffle",
    "shuffle_codes",
    "shuffle_codes_locally",
    "shuffle_with_tracks",
]


def dinucleotide_shuffle(
    X: Tensor,
    start: int = 0,
    end: int = -1,
    n: int = 20,
    random_state: int | Sequence[int] | np.ndarray | None = None,
    verbose: bool = False,
    allow_N: bool = False,
) -> Tensor:
    """Shuffle a region of each sequence, keeping the count of every dinucleotide and both ends of the region.

    Args:
        X: (N, A, L) one-hot.
        start: first position of the region, 0-based.
        end: end of the region, exclusive; a negative end counts from the end of the sequence and is inclusive.
        n: shuffles of each sequence.
        random_state: row i is drawn with the seed random_state + i; a sequence of N integers seeds each row; None
            draws a new seed.
        verbose: warn when a position of a sequence is the same in all its shuffles.
        allow_N: accept unknown bases (all-zero columns); they are shuffled as one more character.

    Returns:
        (N, n, A, L), of X's dtype and on its device.

    Raises:
        ValueError: X is not one-hot, a bad region or seed, or more than one shuffle was asked for and all shuffles of
            a sequence are identical (poly-A, say).
    """
    return _shuffled(X, (start, end), n, random_state, verbose, allow_N, is_uniform=False)


def dinucleotide_shuffle_uniform(
    X: Tensor,
    start: int = 0,
    end: int = -1,
    n: int = 20,
    random_state: int | Sequence[int] | np.ndarray | None = None,
    verbose: bool = False,
    allow_N: bool = False,
) -> Tensor:
    """As `dinucleotide_shuffle`, but every sequence with the same dinucleotides and ends is equally likely."""
    return _shuffled(X, (start, end), n, random_state, verbose, allow_N, is_uniform=True)


def _shuffled(
    X: Tensor,
    region: tuple[int, int],
    n: int,
    random_state: int | Sequence[int] | np.ndarray | None,
    verbose: bool,
    allow_N: bool,
    is_uniform: bool,
) -> Tensor:
    validate_one_hot(X, "X", allow_N=allow_N)
    start, end = _region(X.shape[-1], *region)
    codes = np.ascontiguousarray(to_codes(X[:, :, start:end]).cpu().numpy())
    shuffled = np.empty((X.shape[0], 1, n, end - start), dtype=np.uint8)
    seeds_N1 = _row_seeds(random_state, X.shape[0])[:, None]
    shuffle_rows(codes, X.shape[1] + 1, seeds_N1, is_uniform, False, shuffled)
    _check_shuffled(shuffled[:, 0], verbose)

    encoded = one_hot(torch.from_numpy(shuffled[:, 0]).to(X.device), X.dtype, n_letters=X.shape[1])
    if end - start == X.shape[-1]:
        return encoded
    result = X.unsqueeze(1).repeat(1, n, 1, 1)
    result[..., start:end] = encoded
    return result


def shuffle(
    X: Tensor, start: int = 0, end: int = -1, n: int = 1, random_state: int | np.random.RandomState | None = None
) -> Tensor:
    """Permute the positions of a region, keeping the count of every base. All rows get the same permutations.

    Args:
        X: (N, A, L) one-hot; unknown bases (all-zero columns) move like the others.
        start: first position of the region, 0-based.
        end: end of the region, exclusive; a negative end counts from the end of the sequence and is inclusive.
        n: shuffles of each sequence.
        random_state: a seed or a numpy RandomState; None draws a new one.

    Returns:
        (N, n, A, L), of X's dtype and on its device.

    Raises:
        ValueError: X is not one-hot, or the region is empty or leaves the sequence.
        RuntimeError: n is less than 1.
    """
    validate_one_hot(X, "X", allow_N=True)
    if n < 1:
        raise RuntimeError(f"n must be at least 1 shuffle, not {n}")
    start, end = _region(X.shape[-1], start, end)
    generator = random_state if isinstance(random_state, np.random.RandomState) else np.random.RandomState(random_state)
    result = X.unsqueeze(1).repeat(1, n, 1, 1)
    for k in range(n):
        order = np.arange(end - start)
        generator.shuffle(order)
        result[:, k, :, start:end] = X[:, :, start:end][:, :, torch.from_numpy(order).to(X.device)]
    return result


def shuffle_with_tracks(X: Tensor, seeds: Sequence[int] | np.ndarray, n_bases: int = 4, aligned: bool = True) -> Tensor:
    """Dinucleotide shuffles of inputs that carry further tracks beside the bases (splice sites, codon phase).

    Args:
        X: (N, A, L); the first `n_bases` channels are one-hot bases, the others are tracks of any values.
        seeds: R seeds; the bases of reference k are drawn from seeds[k], as by `shuffle_codes`.
        n_bases: channels of the alphabet.
        aligned: move a position's tracks with its base; otherwise they stay where they are.

    Returns:
        (N, R, A, L), of X's dtype and on its device.
    """
    codes = np.ascontiguousarray(to_codes(X[:, :n_bases]).cpu().numpy())
    positions = np.empty((codes.shape[0], len(seeds), 1, codes.shape[1]), dtype=np.int64)
    seeds_NR = np.tile(as_generator_seeds(seeds), (codes.shape[0], 1))
    shuffle_rows(codes, n_bases + 1, seeds_NR, False, True, positions)
    order = torch.from_numpy(positions).to(X.device).expand(-1, -1, X.shape[1], -1)
    repeated = X.unsqueeze(1).expand(-1, len(seeds), -1, -1)
    shuffled = repeated.gather(-1, order)
    return shuffled if aligned else torch.cat([shuffled[:, :, :n_bases], repeated[:, :, n_bases:]], dim=2)


def _region(length: int, start: int, end: int) -> tuple[int, int]:
    end = length + 1 + end if end < 0 else end
    if not 0 <= start < end <= length:
        raise ValueError(f"the region {start}:{end} is empty or leaves the sequence of length {length}")
    return start, end


def _row_seeds(random_state: int | Sequence[int] | np.ndarray | None, n_rows: int) -> np.ndarray:
    if random_state is None:
        random_state = int(np.random.default_rng().integers(0, 2**31 - 1 - n_rows))
    seeds = np.asarray(random_state)
    if not np.issubdtype(seeds.dtype, np.integer):
        raise ValueError(f"random_state must be None, an integer, or one integer per sequence, not {random_state!r}")
    if seeds.ndim == 0:
        seeds = seeds + np.arange(n_rows)
    elif seeds.shape != (n_rows,):
        raise ValueError(f"random_state holds {seeds.shape} seeds for {n_rows} sequences; give one per sequence")
    return as_generator_seeds(seeds)


def _check_shuffled(shuffled: np.ndarray, verbose: bool) -> None:
    """Raise when all shuffles of a sequence agree; with `verbose`, warn when all agree at some inner position."""
    if not verbose and shuffled.shape[1] < 2:
        return
    inner = shuffled[:, :, 1:-1]
    conserved = (inner == inner[:, :1]).all(axis=1)
    if verbose and conserved.any():
        warnings.warn("a position is the same in all dinucleotide shuffles of a sequence", RuntimeWarning, stacklevel=4)
    if shuffled.shape[1] > 1 and conserved.all(axis=1).any():
        row = int(np.flatnonzero(conserved.all(axis=1))[0])
        raise ValueError(
            f"all {shuffled.shape[1]} dinucleotide shuffles of sequence {row} are identical: it has too few different "
            f"dinucleotides to be shuffled; leave it out or give references"
        )
