"""Shuffles: their bits, what they keep, and how they refuse."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tangermeme.ersatz as peer
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlshap_core.one_hot import one_hot, to_codes, validate_one_hot
from dlshap_core.references import (
    dinucleotide_shuffle,
    dinucleotide_shuffle_uniform,
    permute_codes,
    shuffle,
    shuffle_codes,
    shuffle_codes_locally,
    shuffle_with_tracks,
)
from dlshap_core.sequences import decode, encode
from tests import strategies
from tests.core.toolbox import sequences

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "shuffles.json").read_text())
SEEDS = [0, 5, 12345, 2**31 - 3, 2**32 + 7, -3]


def with_unknown(X: torch.Tensor) -> torch.Tensor:
    X = X.clone()
    X[:, :, 4:8] = 0
    X[0, :, 11] = 0
    return X


@pytest.mark.parametrize("record", GOLDEN["dinucleotide_shuffle"], ids=lambda record: record["sequence"][:12])
def test_golden_dinucleotide_shuffles(record: dict[str, Any]) -> None:
    X = one_hot(encode(record["sequence"]))[None]
    drawn = dinucleotide_shuffle(X, n=len(record["shuffles"]), random_state=record["seed"], allow_N=True)
    assert [decode(codes) for codes in to_codes(drawn)[0].numpy()] == record["shuffles"]
    first = shuffle_codes(encode(record["sequence"])[None], [record["seed"]])
    assert decode(first[0, 0]) == record["shuffles"][0]


@pytest.mark.parametrize("record", GOLDEN["shuffle"], ids=lambda record: str(record["length"]))
def test_golden_shuffles(record: dict[str, Any]) -> None:
    X = sequences(2, record["length"])
    drawn = shuffle(X, n=len(record["orders"]), random_state=record["seed"])
    for k, order in enumerate(record["orders"]):
        assert (drawn[:, k] == X[:, :, order]).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 20, 300])
def test_one_shuffle_is_the_peers_bit_for_bit(length: int, seed: int) -> None:
    X = sequences(5, length, seed=length).float()
    expected = peer.dinucleotide_shuffle(X, n=1, random_state=seed)
    assert torch.equal(dinucleotide_shuffle(X, n=1, random_state=seed), expected)


@pytest.mark.parametrize("region", [(0, -1), (3, -4), (2, 50), (0, 60)])
def test_several_shuffles_of_a_region_are_the_peers_bit_for_bit(region: tuple[int, int]) -> None:
    X = sequences(4, 60, seed=1).float()
    expected = peer.dinucleotide_shuffle(X, *region, n=7, random_state=3)
    assert torch.equal(dinucleotide_shuffle(X, *region, n=7, random_state=3), expected)


def test_unknown_bases_and_a_seed_for_each_row_are_the_peers_bit_for_bit() -> None:
    X = with_unknown(sequences(4, 60, seed=1).float())
    expected = peer.dinucleotide_shuffle(X, n=5, random_state=[9, 4, 4, 0], allow_N=True)
    assert torch.equal(dinucleotide_shuffle(X, n=5, random_state=[9, 4, 4, 0], allow_N=True), expected)


def test_shuffle_codes_draws_reference_k_of_every_row_with_seed_k() -> None:
    X = with_unknown(sequences(4, 60, seed=1).float())
    drawn = shuffle_codes(to_codes(X).numpy(), range(30, 34))
    assert drawn.shape == (4, 4, 60)
    assert drawn.dtype == np.uint8
    for k in range(4):
        expected = peer.dinucleotide_shuffle(X, n=1, random_state=[30 + k] * 4, allow_N=True)[:, 0]
        assert torch.equal(one_hot(drawn[:, k], torch.float32), expected)


@pytest.mark.parametrize("region", [(0, -1), (2, -3), (5, 30)])
def test_mononucleotide_shuffles_are_the_peers_bit_for_bit(region: tuple[int, int]) -> None:
    X = sequences(4, 60, seed=1).float()
    assert torch.equal(shuffle(X, *region, n=3, random_state=1), peer.shuffle(X, *region, n=3, random_state=1))


def test_by_hand() -> None:
    # A walk with a single way to go cannot change: A -> C -> G -> T.
    X = one_hot(encode("ACGT"))[None]
    assert torch.equal(dinucleotide_shuffle(X, n=1, random_state=0)[:, 0], X)
    # From A lead three edges, to C, G and T at 1, 3 and 5; the last stays last. Only C and G may change places.
    X = one_hot(encode("ACAGAT"))[None]
    drawn = {decode(to_codes(dinucleotide_shuffle(X, n=1, random_state=seed))[0, 0].numpy()) for seed in range(20)}
    assert drawn == {"ACAGAT", "AGACAT"}


@given(strategies.codes(min_length=1), st.integers(-(2**40), 2**40))
def test_shuffles_keep_dinucleotides_and_ends_and_are_reproducible(codes: np.ndarray, seed: int) -> None:
    drawn = shuffle_codes(codes[None], [seed, seed + 1, seed])
    for walk in drawn[0]:
        assert walk[0] == codes[0]
        assert walk[-1] == codes[-1]
        assert Counter(itertools.pairwise(walk)) == Counter(itertools.pairwise(codes))
    assert (drawn[0, 0] == drawn[0, 2]).all()
    alone = shuffle_codes(np.stack([codes, codes]), [seed + 1])
    assert (alone[1, 0] == drawn[0, 1]).all(), "neither the row nor the other seeds may enter"


@given(strategies.one_hot_sequences(), st.integers(0, 10))
def test_mononucleotide_shuffles_keep_the_composition_and_the_rest(X: torch.Tensor, seed: int) -> None:
    drawn = shuffle(X, 4, 20, n=2, random_state=seed)
    assert torch.equal(drawn.sum(-1), X.sum(-1)[:, None].expand(-1, 2, -1))
    assert torch.equal(drawn[..., :4], X[:, None, :, :4].expand(-1, 2, -1, -1))
    assert torch.equal(drawn[..., 20:], X[:, None, :, 20:].expand(-1, 2, -1, -1))


def test_shuffles_keep_dtype_and_leave_their_input_alone() -> None:
    X = sequences(2)
    before = X.clone()
    assert dinucleotide_shuffle(X, n=2, random_state=0).dtype == torch.int8
    assert shuffle(X, n=2, random_state=np.random.RandomState(1)).dtype == torch.int8
    assert torch.equal(X, before)


def test_without_a_seed_draws_differ() -> None:
    X = sequences(1, 200)
    assert not torch.equal(dinucleotide_shuffle(X, n=1), dinucleotide_shuffle(X, n=1))
    assert not torch.equal(shuffle(X), shuffle(X))


def test_what_cannot_be_shuffled_is_an_error_that_names_the_row() -> None:
    X = sequences(3)
    X[1] = one_hot(encode("A" * X.shape[-1]))
    with pytest.raises(ValueError, match="shuffles of sequence 1 are identical"):
        dinucleotide_shuffle(X, n=2, random_state=0)
    assert torch.equal(dinucleotide_shuffle(X, n=1, random_state=0)[1, 0], X[1])


def test_verbose_warns_of_positions_that_never_change() -> None:
    X = one_hot(encode("ACGTTTGACAGACATTTTACG"))[None]
    with pytest.warns(RuntimeWarning, match="same in all dinucleotide shuffles"):
        dinucleotide_shuffle(X, n=2, random_state=0, verbose=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 10, "end": 5}, "region 10:5"),
        ({"start": 0, "end": 41}, "leaves the sequence of length 40"),
        ({"start": -1}, "region"),
        ({"random_state": [1, 2]}, "one per sequence"),
        ({"random_state": 1.5}, "random_state"),
    ],
)
def test_bad_arguments_of_dinucleotide_shuffle(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dinucleotide_shuffle(sequences(3), n=2, **arguments)


def test_bad_inputs_of_shuffles() -> None:
    with pytest.raises(ValueError, match="unknown characters"):
        dinucleotide_shuffle(with_unknown(sequences(2)), n=2)
    with pytest.raises(ValueError, match="region"):
        shuffle(sequences(2), 5, 5)
    with pytest.raises(RuntimeError, match="at least 1"):
        shuffle(sequences(2), n=0)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.eye(4)[None], "must be a torch.Tensor"),
        (torch.eye(4), "has 2 axes"),
        (2 * torch.eye(4)[None], "one-hot"),
        (0.5 * torch.ones(1, 4, 3), "one-hot"),
        (-torch.eye(4)[None], "one-hot"),
        (torch.ones(1, 4, 3), "one-hot"),
        (torch.zeros(1, 4, 3), "unknown characters"),
        (torch.full((1, 4, 3), torch.nan), "one-hot"),
    ],
)
def test_validate_one_hot_refuses(X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_one_hot(X, "X")


def test_validate_one_hot_may_only_warn_of_values() -> None:
    with pytest.warns(RuntimeWarning, match="one-hot"):
        validate_one_hot(torch.ones(1, 4, 3), "X", only_warn=True)
    with pytest.raises(ValueError, match="axes"):
        validate_one_hot(torch.eye(4), "X", only_warn=True)
    validate_one_hot(torch.zeros(1, 4, 3), "X", allow_N=True)


# --- other shuffles ---------------------------------------------------------------------------------------------------


def all_rearrangements(codes: np.ndarray) -> set[bytes]:
    """Every sequence with the dinucleotides and the first base of this one, found by trying all of them."""
    wanted = Counter(itertools.pairwise(codes.tolist()))
    found = set()

    def extend(walk: list[int], left: Counter[tuple[int, int]]) -> None:
        if not +left:
            found.add(bytes(walk))
        for following in range(4):
            if left[walk[-1], following]:
                left[walk[-1], following] -= 1
                extend([*walk, following], left)
                left[walk[-1], following] += 1

    extend([int(codes[0])], wanted)
    return found


@pytest.mark.parametrize("text", ["ACGATCAGACT", "AACCAACAC", "GATTACATTAGA", "ACACGTGTACAC"])
def test_uniform_shuffles_draw_every_rearrangement_equally_often(text: str) -> None:
    codes = encode(text)
    possible = all_rearrangements(codes)
    assert len(possible) > 2
    n_draws = 300 * len(possible)
    drawn = Counter(walk.tobytes() for walk in shuffle_codes(codes[None], range(n_draws), is_uniform=True)[0])
    assert set(drawn) == possible
    chi_squared = sum((count - 300) ** 2 / 300 for count in drawn.values())
    degrees = len(possible) - 1
    assert chi_squared < degrees + 5 * (2 * degrees) ** 0.5  # five standard deviations


def test_the_peers_shuffle_is_not_uniform() -> None:
    # Its last edges are fixed, so some rearrangements are never drawn.
    codes = encode("GATTACATTAGA")
    drawn = Counter(walk.tobytes() for walk in shuffle_codes(codes[None], range(3000))[0])
    assert set(drawn) < all_rearrangements(codes)


@given(strategies.codes(), st.integers(0, 1000))
def test_uniform_shuffles_keep_dinucleotides_and_ends(codes: np.ndarray, seed: int) -> None:
    (walk, again), _ = shuffle_codes(np.stack([codes, codes]), [seed, seed], is_uniform=True)
    assert (walk == again).all()
    assert (walk[0], walk[-1]) == (codes[0], codes[-1])
    assert Counter(itertools.pairwise(walk)) == Counter(itertools.pairwise(codes))


def test_the_uniform_face_draws_rows_by_their_seeds() -> None:
    X = sequences(3)
    drawn = dinucleotide_shuffle_uniform(X, n=2, random_state=4)
    assert drawn.shape == (3, 2, 4, 40)
    codes = to_codes(X).numpy()
    for row in range(3):
        expected = shuffle_codes(codes[row : row + 1], [4 + row], is_uniform=True)[0, 0]
        assert (to_codes(drawn[row, 0]).numpy() == expected).all()


@given(strategies.codes(min_length=2), st.integers(0, 1000), st.integers(2, 20))
def test_local_shuffles_keep_each_windows_dinucleotides(codes: np.ndarray, seed: int, window: int) -> None:
    (walk,) = shuffle_codes_locally(codes[None], [seed], window)[0]
    for start in range(0, len(codes), window):
        part = slice(start, start + window)
        assert (walk[part] == shuffle_codes(codes[None, part], [seed])[0, 0]).all()


def test_permuted_codes_are_the_mononucleotide_shuffle() -> None:
    X = sequences(3)
    drawn = permute_codes(to_codes(X).numpy(), [5, 6])
    for k in range(2):
        assert torch.equal(one_hot(drawn[:, k]), shuffle(X, n=1, random_state=5 + k)[:, 0])


@pytest.mark.parametrize("aligned", [True, False])
def test_tracks_move_with_their_bases_or_stay(aligned: bool) -> None:
    X = sequences(3).float()
    places = torch.arange(40.0).expand(3, 1, 40)
    drawn = shuffle_with_tracks(torch.cat([X, places], 1), range(2), aligned=aligned)
    expected = one_hot(shuffle_codes(to_codes(X).numpy(), range(2)), torch.float32)
    assert torch.equal(drawn[:, :, :4], expected)
    order = drawn[:, :, 4].long()
    if aligned:
        moved = X[:, None].expand(-1, 2, -1, -1).gather(-1, order[:, :, None].expand(-1, -1, 4, -1))
        assert torch.equal(moved, expected)
        assert torch.equal(order.sort(-1).values, torch.arange(40).expand(3, 2, 40))
    else:
        assert torch.equal(order, torch.arange(40).expand(3, 2, 40))


@pytest.mark.parametrize("shuffle", [shuffle_codes, partial(shuffle_codes_locally, window=3)])
def test_codes_beyond_the_characters_are_refused(shuffle: Callable[..., np.ndarray]) -> None:
    """Compiled code would write elsewhere in memory."""
    codes = np.array([[0, 1, 2, 3, 4, 3]], dtype=np.uint8)
    assert shuffle(codes, [0]).shape == (1, 1, 6)
    codes[0, 2] = 5
    with pytest.raises(ValueError, match="code 5 is none of 5 characters; expected 0 to 4"):
        shuffle(codes, [0])
