"""Bit-rounding: exact on chosen numbers, within its bound on any, and in a store from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.execution.verify import verify
from pipeline.messages.errors import UserError
from pipeline.planning.bit_rounding import round_bits
from pipeline.store.run_directory import RunDirectory
from pipeline.store.schema import LAYOUT, ROUNDED
from tests.pipeline.conftest import Inputs

LARGEST, LEAST_NORMAL = float(np.finfo(np.float32).max), 2.0**-126
BITS = st.integers(1, 23)


def rounded(value: float, bits: int) -> float:
    return float(round_bits(np.array([value], dtype=np.float32), bits)[0])


@pytest.mark.parametrize(
    ("value", "bits", "expected"),
    [
        (1 + 1 / 8, 2, 1.0),  # half way between 1 and 1.25: the even one
        (1 + 3 / 8, 2, 1.5),  # half way between 1.25 and 1.5
        (-(1 + 3 / 8), 2, -1.5),
        (1 + 1 / 8 + 2**-23, 2, 1.25),
        (1 + 1 / 8 - 2**-23, 2, 1.0),
        (1 + 15 / 16, 3, 2.0),  # a carry into the exponent
        (1.5, 1, 1.5),
        (1 + 2**-23, 23, 1 + 2**-23),
        (2**-149, 10, 0.0),
        (LARGEST, 7, float.fromhex("0x1.FEp127")),  # not infinity
        (-LARGEST, 1, -float.fromhex("0x1.8p127")),
        (np.inf, 5, np.inf),
        (-np.inf, 5, -np.inf),
    ],
)
def test_chosen_numbers(value: float, bits: int, expected: float) -> None:
    assert rounded(value, bits) == expected


def test_zeros_keep_their_sign_and_nan_its_payload() -> None:
    values = np.array([0x00000000, 0x80000000, 0x7FC00001, 0x7F800001, 0xFFFFFFFF], dtype=np.uint32)
    assert round_bits(values.view(np.float32), 4).view(np.uint32).tolist() == values.tolist()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), BITS)
def test_the_nearest_number_of_so_many_bits(values: list[float], bits: int) -> None:
    given_ = np.array(values, dtype=np.float32)
    before = given_.copy()
    found = round_bits(given_, bits)
    assert np.array_equal(given_, before), "the input is left as it is"
    assert np.isfinite(found).all()
    assert not (found.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1)).any()
    assert np.array_equal(round_bits(found, bits).view(np.uint32), found.view(np.uint32)), "rounded once and for all"
    assert np.array_equal(np.signbit(found), np.signbit(given_))
    exact, error = given_.astype(np.float64), np.abs(found.astype(np.float64) - given_)
    bound = np.maximum(np.abs(exact), LEAST_NORMAL) * 2.0 ** -(bits + 1)
    top = np.abs(exact) > LARGEST * (1 - 2.0 ** -(bits + 1))  # what would become infinite is cut off instead
    assert (error <= np.where(top, 2 * bound, bound)).all()


def test_a_rounded_store(inputs: Inputs, finished: Path, tmp_path: Path) -> None:
    """Attributions are rounded, nothing else; the store says so, is sound, and is not gone on with otherwise."""
    store = tmp_path / "a.zarr"
    assert pipeline.run(inputs.overrides(store, "store.precision_bits=6")).complete
    short, full = pipeline.open_store(store), pipeline.open_store(finished)
    for name in LAYOUT:
        exact, found = np.asarray(full[name][:]), np.asarray(short[name][:])
        expected = round_bits(exact, 6) if name in ROUNDED else exact
        assert found.tobytes() == expected.tobytes(), name
        assert short[name].attrs.get("precision_bits") == (6 if name in ROUNDED else None)
        assert full[name].attrs.get("precision_bits") == (23 if name in ROUNDED else None)
    assert verify(RunDirectory(store)).sound
    assert short.attrs["config"]["store"]["precision_bits"] == 6
    with pytest.raises(UserError, match=r"store\.precision_bits is 6 there and 5 here"):
        pipeline.run(inputs.overrides(store, "store.precision_bits=5"))
    with pytest.raises(UserError, match=r"store\.precision_bits=0; expected 1 to 23"):
        pipeline.run(inputs.overrides(store, "store.precision_bits=0"))


def test_folds_and_differences_are_rounded_too() -> None:
    assert set(ROUNDED) == {
        *("attribution_sd", "attribution_difference_sd"),
        *(f"{name}{form}" for name in ("attribution", "hypothetical") for form in ("", "_by_fold", "_difference")),
    }
