"""Seeded shuffles of code sequences that keep the composition of a sequence.

Reference k of a sequence is a pure function of (sequence, seed + k): no batch, shard or row number enters, so anyone
can draw it again. Consecutive seeds share all but one of their references (seed 0 with 20 references uses 0..19, seed
1 uses 1..20); space seeds by the number of references for independent sets.

Shape legend: N sequences, R references, L length; n shuffles from one seed.
"""

import itertools
from collections.abc import Sequence

import numba
import numpy as np


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
def shuffle_rows(
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

    Raises:
        ValueError: a code is not below `n_characters`.
    """
    codes = np.ascontiguousarray(codes, dtype=np.uint8)
    if codes.size and (largest := int(codes.max())) >= n_characters:  # which compiled code would not notice
        raise ValueError(f"code {largest} is none of {n_characters} characters; expected 0 to {n_characters - 1}")
    shuffled = np.empty((codes.shape[0], len(seeds), 1, codes.shape[1]), dtype=np.uint8)
    seeds_NR = np.tile(as_generator_seeds(seeds), (codes.shape[0], 1))
    shuffle_rows(codes, n_characters, seeds_NR, is_uniform, False, shuffled)
    return shuffled[:, :, 0]


def permute_codes(codes: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Mononucleotide shuffles of (N, L) codes, one from each of R seeds: (N, R, L) uint8.

    Every row gets the same permutation of positions from the same seed, as with `shuffle`.
    """
    orders = np.stack([np.random.RandomState(seed).permutation(codes.shape[1]) for seed in as_generator_seeds(seeds)])
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


def as_generator_seeds(seeds: Sequence[int] | np.ndarray) -> np.ndarray:
    """Seeds of the Mersenne twister: 32 bits, so that a larger one wraps around."""
    return (np.asarray(seeds, dtype=np.int64) & 0xFFFFFFFF).astype(np.uint32)
