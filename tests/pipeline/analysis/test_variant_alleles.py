"""Alleles from windows, and differences of attributions base by base of the reference window."""

from __future__ import annotations

import numpy as np
import pytest

from dlshap_core.sequences import encode
from pipeline.analysis.variant_effects import allele_lengths, difference, strongest_change, with_both_alleles
from tests.pipeline.conftest import random_sequences

LENGTH = 80
MIDDLE = LENGTH // 2
GENOME = random_sequences(1, 4 * LENGTH, seed=5)[0]


def windows(ref: str, alt: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the windows of both alleles of a variant whose REF is put into the genome too."""
    left, right = GENOME[:MIDDLE], GENOME[MIDDLE:]
    both = [encode((left + allele + right)[:LENGTH].encode()) for allele in (ref, alt)]
    return both[0], both[1]


@pytest.mark.parametrize(
    ("ref", "alt"),
    [("A", "G"), ("A", "AT"), ("A", "ACCGT"), ("TC", "T"), ("GATTACA", "G"), ("ACC", "TCG"), ("AGG", "TTTTC")],
)
def test_alleles_are_told_from_the_windows(ref: str, alt: str) -> None:
    assert allele_lengths(*windows(ref, alt)) == (len(ref), len(alt))


def test_alleles_come_in_their_shortest_form() -> None:
    assert allele_lengths(*windows("ACC", "TCC")) == (1, 1)
    assert allele_lengths(*windows("CAAA", "CAAAA")) == (1, 2)


def test_alleles_that_fill_the_window_are_not_told() -> None:
    assert allele_lengths(*windows(GENOME[100:160], "A")) is None
    assert allele_lengths(*windows("A", "C" * LENGTH)) is None


@pytest.mark.parametrize(("ref", "alt"), [("A", "G"), ("A", "ACCGT"), ("GATTACA", "G"), ("ACC", "TTTTC")])
def test_bases_that_a_variant_leaves_alone_are_compared_with_themselves(ref: str, alt: str) -> None:
    of_base = np.random.default_rng(0).normal(size=LENGTH)  # by place in the genome, the same in both windows
    left, right = of_base[:MIDDLE], of_base[MIDDLE:]
    in_ref = np.concatenate([left, np.full(len(ref), 5.0), right])[:LENGTH]
    in_alt = np.concatenate([left, np.full(len(alt), 7.0), right])[:LENGTH]
    found = difference(in_ref, in_alt, len(ref), len(alt))
    expected = np.zeros(LENGTH)
    expected[MIDDLE : MIDDLE + min(len(ref), len(alt))] = 2
    expected[MIDDLE + len(alt) : MIDDLE + len(ref)] = -5
    expected[MIDDLE + len(ref) - 1] += 7 * max(0, len(alt) - len(ref))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(
        difference(np.stack([in_ref] * 2), np.stack([in_alt] * 2), len(ref), len(alt))[1], found
    )


def test_without_alleles_the_difference_is_position_by_position() -> None:
    ref, alt = np.random.default_rng(0).normal(size=(2, 21))
    np.testing.assert_allclose(difference(ref, alt, 0, 0), alt - ref)


def test_both_rows_of_a_variant_are_taken() -> None:
    assert with_both_alleles(np.array([1, 4, 5, 8])).tolist() == [0, 1, 4, 5, 8, 9]


def test_the_strongest_change_is_where_sizes_sum_to_most() -> None:
    assert strongest_change(np.array([0.0, -3, 1, 0, 2, 1, 0]), 2) == (1, 3)
    assert strongest_change(np.zeros(5), 20) == (0, 5)
