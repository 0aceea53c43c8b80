"""How well folds agree, against numpy's own correlation."""

from __future__ import annotations

import numpy as np

from pipeline.analysis.fold_agreement import agreement, of_row, spread


def test_each_fold_is_correlated_with_the_mean_of_the_others() -> None:
    folds = np.random.default_rng(0).normal(size=(5, 3, 40)).astype(np.float32) + 2
    found = agreement(folds)
    for row in range(5):
        for fold in range(3):
            others = np.delete(folds[row], fold, axis=0).mean(axis=0)
            assert np.isclose(found[row, fold], np.corrcoef(folds[row, fold], others)[0, 1], atol=1e-6)
    np.testing.assert_allclose(of_row(found), found.mean(axis=1))


def test_equal_folds_agree_and_opposite_ones_do_not() -> None:
    one = np.random.default_rng(0).normal(size=40)
    np.testing.assert_allclose(agreement(np.stack([one, 3 * one, one + 1])[None]), 1)
    np.testing.assert_allclose(agreement(np.stack([one, -one])[None]), -1)


def test_a_fold_without_any_attribution_has_no_agreement() -> None:
    one = np.random.default_rng(0).normal(size=40)
    found = agreement(np.stack([[one, one, np.zeros(40)], [one, one, np.full(40, np.nan)]]))
    assert np.isnan(found[0, 2])
    assert np.isnan(of_row(found)).all()


def test_the_spread_is_of_the_predictions() -> None:
    assert spread(np.array([[1.0, -2.0, 0.5], [3.0, 3.0, 3.0]], dtype=np.float32)).tolist() == [3.0, 0.0]
