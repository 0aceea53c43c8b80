"""Codes, text and one-hot tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlshap_core.one_hot import one_hot, to_codes
from dlshap_core.sequences import (
    decode,
    encode,
    one_hot_array,
    reverse_complement,
    reverse_complement_bases,
    reverse_complement_text,
)
from tests import strategies


def test_encode_gives_codes_in_the_order_of_the_alphabet() -> None:
    codes = encode("ACGTN")
    assert codes.dtype == np.uint8
    assert codes.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "same_as"),
    [("acgtn", "ACGTN"), ("AUGu", "ATGT"), (b"GATTACA", "GATTACA"), ("ARYSWKMBDHVA", "ANNNNNNNNNNA"), ("", "")],
)
def test_encode_accepts_case_rna_bytes_and_ambiguity(text: str | bytes, same_as: str) -> None:
    assert decode(encode(text)) == same_as


@pytest.mark.parametrize(
    ("text", "character", "position"),
    [
        ("ACGX", "X", 3),
        ("MKLV", "L", 2),
        ("AC GT", " ", 2),
        ("A-C", "-", 1),
        (b"ACG\xff", "\xff", 3),
        ("AC\n", "\n", 2),
    ],
)
def test_encode_names_the_character_and_its_place(text: str | bytes, character: str, position: int) -> None:
    with pytest.raises(ValueError, match=f"position {position}") as caught:
        encode(text)
    assert repr(character) in str(caught.value)


def test_one_hot_by_hand() -> None:
    encoded = one_hot(encode("GAN"))
    assert encoded.dtype == torch.int8
    assert encoded.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_one_hot_keeps_leading_axes_and_takes_tensors_and_dtypes() -> None:
    codes = torch.tensor([[[0, 1, 2], [3, 4, 0]]], dtype=torch.uint8)
    encoded = one_hot(codes, torch.float64)
    assert encoded.shape == (1, 2, 4, 3)
    assert encoded.dtype == torch.float64
    assert encoded.sum(-2).tolist() == [[[1, 1, 1], [1, 0, 1]]]


@given(strategies.codes())
def test_codes_survive_text_and_one_hot(codes: np.ndarray) -> None:
    assert (encode(decode(codes)) == codes).all()
    for dtype in (torch.int8, torch.float32):
        back = to_codes(one_hot(codes, dtype))
        assert back.dtype == torch.uint8
        assert (back.numpy() == codes).all()


@given(st.integers(2, 9))
def test_to_codes_numbers_an_unknown_character_after_the_alphabet(n_characters: int) -> None:
    encoded = torch.eye(n_characters)[None]
    encoded[:, :, 0] = 0
    assert to_codes(encoded).tolist() == [[n_characters, *range(1, n_characters)]]


@pytest.mark.parametrize(("text", "other"), [("ACGTN", "NACGT"), ("", ""), ("AAC", "GTT")])
def test_reverse_complement(text: str, other: str) -> None:
    """Of texts, codes and one-hot encodings alike."""
    codes = reverse_complement(encode(text))
    assert (reverse_complement_text(text), decode(codes)) == (other, other)
    assert (codes.dtype, codes.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(reverse_complement(np.stack([encode(text), encode(other)])), [codes, encode(text)])
    encoded = reverse_complement_bases(one_hot(encode(text)))
    assert torch.equal(encoded, one_hot(codes))
    np.testing.assert_array_equal(reverse_complement_bases(one_hot(encode(text)).numpy()), encoded.numpy())


def test_arrays_and_tensors_are_the_same_one_hot() -> None:
    codes = np.random.RandomState(0).randint(0, 5, (3, 2, 7)).astype(np.uint8)
    found = one_hot_array(codes)
    assert found.dtype == np.int8
    assert np.array_equal(found, one_hot(codes).numpy())
