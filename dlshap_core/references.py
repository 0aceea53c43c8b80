"""Reference sequences: seeded shuffles that keep the composition of a sequence.

Reference k of a sequence is a pure function of (sequence, seed + k): no batch, shard or row number enters, so anyone
can draw it again. Consecutive seeds share all but one of their references (seed 0 with 20 references uses 0..19, seed
1 uses 1..20); space seeds by the number of references for independent sets.

Shape legend: N sequences, R references, A alphabet, L length.
"""

import itertools
import warnings
from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from dlshap_core.sequences import one_hot, to_codes


@numba.njit(nogil=True, cache=True)
def _shuffle_into(codes: np.ndarray, n_characters: int, seed: int, as_positions: bool, shuffled: np.ndarray) -> None:
    """Fill (n, L) `shuffled` with dinucleotide shuffles of the (L,) `codes`, all drawn from one `seed`.

    A sequence is a walk over its characters; every dinucleotide is an edge. The order of the edges that leave each
    character is permuted, the last one staying last so that the walk reaches the end, and the walk is taken again
    (Altschul and Erickson 1985; the last edges are not redrawn, so not every such sequence is equally likely).
    """
    length = codes.shape[0]
    if length == 0:
        return
    np.random.seed(seed)
    first_edge, edges = _out_edges(codes, n_characters)
    for i in range(shuffled.shape[0]):
        for character in range(n_characters):
            n_edges = first_edge[character + 1] - first_edge[character]
            if n_edges > 2:
                movable = edges[first_edge[character] : first_edge[character + 1] - 1]
                movable[:] = movable[np.random.permutation(n_edges - 1)]
        _walk(codes, first_edge, edges, as_positions, shuffled[i])


@numba.njit(nogil=True, cache=True)
def _out_edges(codes: np.ndarray, n_characters: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the walk over characters: those that leave character a are edges[first[a]:first[a + 1]], in order.

    An edge is the position it leads to.
    """
    first = np.zeros(n_characters + 1, dtype=np.int64)
    for j in range(codes.shape[0] - 1):
        first[codes[j] + 1] += 1
    for character in range(n_characters):
        first[character + 1] += first[character]
    edges = np.empty(codes.shape[0], dtype=np.int64)
    used = first[:-1].copy()
    for j in range(codes.shape[0] - 1):
        edges[used[codes[j]]] = j + 1
        used[codes[j]] += 1
    return first, edges


@numba.njit(nogil=True, cache=True)
def _walk(
    codes: np.ndarray, first_edge: np.ndarray, edges: np.ndarray, as_positions: bool, shuffled: np.ndarray
) -> None:
    """Walk from position 0, leaving each character by its next unused edge; write the characters (or positions) met."""
    used = first_edge[:-1].copy()
    position = 0
    shuffled[0] = position if as_positions else codes[0]
    for j in range(1, codes.shape[0]):
        character = codes[position]
        position = edges[used[character]]
        used[character] += 1
        shuffled[j] = position if as_positions else codes[position]


@numba.njit(nogil=True, cache=True)
def _shuffle_uniformly_into(
    codes: np.ndarray, n_characters: int, seed: int, as_positions: bool, shuffled: np.ndarray
) -> None:
    """Fill (n, L) `shuffled` with shuffles of the (L,) `codes`, each such sequence being equally likely.

    The last edges of the characters form a tree towards the final character. Drawing it uniformly by loop-erased random
    walks (Wilson 1996) and permuting the other edges makes every Eulerian path equally likely (Kandel et al. 1996).
    """
    length = codes.shape[0]
    if length == 0:
        return
    np.random.seed(seed)
    first_edge, edges = _out_edges(codes, n_characters)
    exit_edge = np.empty(n_characters, dtype=np.int64)
    for i in range(shuffled.shape[0]):
        in_tree = np.zeros(n_characters, dtype=np.bool_)
        in_tree[codes[length - 1]] = True
        for character in range(n_characters):
            if first_edge[character] == first_edge[character + 1]:
                continue
            here = character
            while not in_tree[here]:
                exit_edge[here] = np.random.randint(first_edge[here], first_edge[here + 1])
                here = codes[edges[exit_edge[here]]]
            here = character
            while not in_tree[here]:
                in_tree[here] = True
                here = codes[edges[exit_edge[here]]]
        for character in range(n_characters):
            start, stop = first_edge[character], first_edge[character + 1]
            if stop > start and character != codes[length - 1]:
                chosen, stop = exit_edge[character], stop - 1
                edges[chosen], edges[stop] = edges[stop], edges[chosen]
            movable = edges[start:stop]
            movable[:] = movable[np.random.permutation(stop - start)]
        _walk(codes, first_edge, edges, as_positions, shuffled[i])


@numba.njit(nogil=True, cache=True)
def _shuffle_rows(
    codes: np.ndarray, n_characters: int, seeds: np.ndarray, is_uniform: bool, as_positions: bool, shuffled: np.ndarray
) -> None:
    """Shuffle the rows of (N, L) `codes` into (N, R, n, L) `shuffled`: n times in a row from each of (N, R) seeds."""
    for i in range(codes.shape[0]):
        for k in range(seeds.shape[1]):
            if is_uniform:
                _shuffle_uniformly_into(codes[i], n_characters, seeds[i, k], as_positions, shuffled[i, k])
            else:
                _shuffle_into(codes[i], n_characters, seeds[i, k], as_positions, shuffled[i, k])


def shuffle_codes(
    codes: np.ndarray, seeds: Sequence[int] | np.ndarray, n_characters: int = 5, is_uniform: bool = False
) -> np.ndarray:
    """Dinucleotide shuffles of code sequences, one from each seed.

    Args:
        codes: (N, L) uint8; an unknown base (4) is a character like the others.
        seeds: R seeds; reference k of every row is drawn from seeds[k].
        n_characters: how many different codes there may be.
        is_uniform: draw every sequence with the same dinucleotides equally often, instead of as tangermeme does.

    Returns:
        (N, R, L) uint8. The global interpreter lock is released while drawing.
    """
    codes = np.ascontiguousarray(codes, dtype=np.uint8)
    shuffled = np.empty((codes.shape[0], len(seeds), 1, codes.shape[1]), dtype=np.uint8)
    seeds_NR = np.tile(_as_generator_seeds(seeds), (codes.shape[0], 1))
    _shuffle_rows(codes, n_characters, seeds_NR, is_uniform, False, shuffled)
    return shuffled[:, :, 0]


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
    seeds_NR = np.tile(_as_generator_seeds(seeds), (codes.shape[0], 1))
    _shuffle_rows(codes, n_bases + 1, seeds_NR, False, True, positions)
    order = torch.from_numpy(positions).to(X.device).expand(-1, -1, X.shape[1], -1)
    repeated = X.unsqueeze(1).expand(-1, len(seeds), -1, -1)
    shuffled = repeated.gather(-1, order)
    return shuffled if aligned else torch.cat([shuffled[:, :, :n_bases], repeated[:, :, n_bases:]], dim=2)


def permute_codes(codes: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Mononucleotide shuffles of (N, L) codes, one from each of R seeds: (N, R, L) uint8.

    Every row gets the same permutation of positions from the same seed, as with `shuffle`.
    """
    orders = np.stack([np.random.RandomState(seed).permutation(codes.shape[1]) for seed in _as_generator_seeds(seeds)])
    return np.asarray(codes, dtype=np.uint8)[:, orders]


def shuffle_codes_locally(
    codes: np.ndarray, seeds: Sequence[int] | np.ndarray, window: int, n_characters: int = 5
) -> np.ndarray:
    """Dinucleotide shuffles within consecutive windows, for long inputs whose composition changes along them.

    Args:
        codes: (N, L) uint8.
        seeds: R seeds; window w of reference k is drawn from seeds[k], so windows do not depend on each other.
        window: positions in a window; the last one takes what remains. Both ends of every window stay.
        n_characters: how many different codes there may be.

    Returns:
        (N, R, L) uint8.
    """
    edges = [*range(0, codes.shape[1], window), codes.shape[1]]
    parts = [shuffle_codes(codes[:, start:stop], seeds, n_characters) for start, stop in itertools.pairwise(edges)]
    return np.concatenate(parts, axis=-1)


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
    _shuffle_rows(codes, X.shape[1] + 1, seeds_N1, is_uniform, False, shuffled)
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


def validate_one_hot(X: Tensor, name: str, ndim: int = 3, allow_N: bool = False, only_warn: bool = False) -> None:
    """Check that a tensor is one-hot along its last but one axis.

    Args:
        X: (..., A, L).
        name: what to call it in the message.
        ndim: the number of axes it must have.
        allow_N: accept all-zero columns.
        only_warn: warn (RuntimeWarning) about values that are not one-hot instead of raising.

    Raises:
        ValueError: the wrong type, number of axes, or values.
    """
    if not isinstance(X, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, not {type(X).__name__}")
    if X.ndim != ndim:
        raise ValueError(f"{name} has {X.ndim} axes, shape {tuple(X.shape)}; expected {ndim} axes, the last two (A, L)")
    column_sums = X.sum(dim=-2)
    if not bool(((X == 0) | (X == 1)).all()) or not bool((column_sums <= 1).all()):
        _complain(f"{name} must be one-hot encoded: zeros, and at most a single one in each column", only_warn)
    elif not allow_N and not bool((column_sums == 1).all()):
        _complain(f"{name} must be one-hot encoded and holds unknown characters (all-zero columns)", only_warn)


def _complain(message: str, only_warn: bool) -> None:
    if not only_warn:
        raise ValueError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=4)


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
    return _as_generator_seeds(seeds)


def _as_generator_seeds(seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Seeds of the Mersenne twister: 32 bits, so that a larger one wraps around."""
    return (np.asarray(seeds, dtype=np.int64) & 0xFFFFFFFF).astype(np.uint32)


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
