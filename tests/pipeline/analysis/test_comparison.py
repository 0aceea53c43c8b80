"""What `compare` finds, against numpy's own figures."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis.comparison import ArrayComparison, Sizes, most_changed_bases


@pytest.mark.parametrize("spread", [1.0, 1e-30, 1e30])
def test_quantiles_are_numpys_to_their_digits(spread: float) -> None:
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(50, 2000)) ** 5 * spread).astype(np.float32)
    sizes = Sizes()
    for part in np.array_split(values, 7):
        sizes.add(part)
    assert (sizes.n, sizes.largest) == (values.size, float(np.abs(values).max()))
    for part in (0.01, 0.5, 0.9, 0.99):
        assert sizes.quantile(part) == pytest.approx(np.quantile(np.abs(values), part), rel=0.004 + 1e-3)
    assert sizes.quantile(1) <= sizes.largest


def test_quantiles_of_little() -> None:
    sizes = Sizes()
    assert np.isnan(sizes.quantile(0.5))
    sizes.add(np.array([np.nan, np.inf], dtype=np.float32))
    assert (sizes.n, sizes.largest) == (0, 0.0)
    sizes.add(np.zeros(3, dtype=np.float32))
    assert sizes.quantile(0.99) == 0
    sizes.add(np.array([3.0], dtype=np.float32))
    assert sizes.quantile(1) == pytest.approx(3, rel=0.004)


def test_an_array_is_the_same_to_the_bit_or_is_not() -> None:
    a = np.array([1.0, -0.0, np.nan, np.inf], dtype=np.float32)
    same = ArrayComparison("prediction")
    same.add(a, a.copy())
    assert (same.identical, same.relative, same.n_not_finite) == (True, 0.0, 0)
    signed = ArrayComparison("prediction")
    signed.add(a, np.abs(a))
    assert (signed.identical, signed.relative) == (False, 0.0), "0 and -0 are other bits of the same value"
    lost = ArrayComparison("prediction")
    lost.add(a, np.where(np.isnan(a), np.float32(0), a))
    assert (lost.identical, lost.relative, lost.n_not_finite) == (False, np.inf, 1)
    turned = ArrayComparison("prediction")
    turned.add(a, -a)
    assert (turned.relative, turned.n_not_finite) == (np.inf, 1), "infinite, and on the other side"


def test_the_stretch_that_changed_most_is_in_units_of_each_store() -> None:
    a = np.zeros(100)
    a[10:14] = 1.0
    b = 50 * a
    b[60:64] += 20.0
    assert most_changed_bases(a, b, (1.0, 50.0))[0] in range(44, 61)
    assert most_changed_bases(a[:8], b[:8], (1.0, 50.0)) == (0, 8)
