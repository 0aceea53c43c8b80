"""How sure attributions are: what a few references say, against what many do."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.analysis.reference_spread import advised, certainty

B, L, MANY = 8, 400, 4000


def drawn(generator: np.random.Generator, n: int, signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(n, B, L) attributions, one of each reference: the signal, and noise that nine neighbours share a part of."""
    white = generator.normal(size=(n, B, L + 8))
    shared = np.cumsum(white, axis=2)
    smooth = (shared[..., 8:] - np.concatenate([np.zeros((n, B, 1)), shared[..., :-9]], axis=2)) / 3
    return signal + noise * smooth


@pytest.mark.parametrize("n", [10, 20, 60])
def test_it_tells_what_infinitely_many_references_would_say(n: int) -> None:
    generator = np.random.default_rng(n)
    signal = generator.normal(size=(B, L)) * (generator.random((B, L)) < 0.1) * np.linspace(0.6, 2, B)[:, None]
    noise = generator.gamma(2, 0.2, size=(B, L))
    told, so, kept, kept_told = [], [], [], []
    for _ in range(40):
        one, other = (drawn(generator, n, signal, noise) for _ in range(2))
        found = certainty(one.mean(axis=0), one.std(axis=0, ddof=1), n)
        told.append(found.correlation)
        so.append([np.corrcoef(a, b)[0, 1] for a, b in zip(one.mean(axis=0), signal, strict=True)])
        strongest = [np.argsort(-np.abs(each.mean(axis=0)), axis=1)[:, :20] for each in (one, other)]
        kept.append([len(np.intersect1d(a, b)) / 20 for a, b in zip(*strongest, strict=True)])
        kept_told.append(found.kept)
    np.testing.assert_allclose(np.mean(told, axis=0), np.mean(so, axis=0), atol=0.04)
    np.testing.assert_allclose(np.mean(kept_told), np.mean(kept), atol=0.1)


def test_so_many_references_are_enough() -> None:
    generator = np.random.default_rng(0)
    signal, noise = generator.normal(size=(B, L)), np.full((B, L), 2.0)
    few = drawn(generator, 50, signal, noise)
    found = certainty(few.mean(axis=0), few.std(axis=0, ddof=1), 50)
    enough = advised(found.enough)
    assert enough is not None
    again = drawn(generator, enough, signal, noise).mean(axis=0)
    reached = [np.corrcoef(a, b)[0, 1] for a, b in zip(again, signal, strict=True)]
    assert np.median(reached) == pytest.approx(0.99, abs=0.002)


def test_rows_that_say_nothing() -> None:
    """All zeros; noise alone; no noise at all; not finite; as short as can be."""
    generator = np.random.default_rng(1)
    attribution, sd = generator.normal(size=(5, 60)), np.full((5, 60), 0.1)
    attribution[0], sd[0] = 0, 0
    sd[1] = 1e6
    sd[2] = 0
    attribution[3, 7] = np.nan
    sd[4, 2] = np.inf
    found = certainty(attribution.astype(np.float32), sd.astype(np.float32), 10)
    assert np.isnan(found.correlation[[0, 3, 4]]).all()
    assert np.isnan(found.enough[[0, 3, 4]]).all()
    assert found.correlation[1:3].tolist() == [0, 1]
    assert found.enough[1:3].tolist() == [np.inf, 1]
    assert found.kept[2] == 1
    assert advised(found.enough) is None
    assert advised(np.array([np.nan])) is None
    assert advised(np.array([1.2, 7.0, np.inf])) == 7
    assert np.isnan(certainty(np.ones((1, 9)), np.ones((1, 9)), 2).kept).all()
