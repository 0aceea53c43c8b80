"""The spread over references: what one pass gives is what the multipliers of every pair give by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dlshap_core import deep_lift_shap
from dlshap_core.passes.moments import Moments, moments
from tests.core.toolbox import explain, seeded, sequences, shuffled

N, R, L = 3, 7, 30


def net(n_channels: int = 4) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(n_channels, 6, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(78, 8), nn.GELU()),
        nn.Linear(8, 2),
    )


def by_hand(X: Tensor, references: Tensor, multipliers: Tensor) -> Tensor:
    """(N, T, R, L): sum_c x[c] (m[c] - sum_c' r[c'] m[c']), pair by pair."""
    found = torch.empty(*multipliers.shape[:3], X.shape[2], dtype=multipliers.dtype)
    for n in range(len(X)):
        for t in range(multipliers.shape[1]):
            for k in range(references.shape[1]):
                m, r = multipliers[n, t, k, :4], references[n, k, :4]
                found[n, t, k] = (X[n, :4] * (m - (r * m).sum(0))).sum(0)
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 16, 64])
def test_the_spread_of_one_pass_is_that_of_the_pairs(batch_size: int) -> None:
    model = seeded(net)
    X, references = sequences(N, L), shuffled(sequences(N, L), R)
    X[0, :, 4:6] = 0  # unknown bases
    X[1, :, 9] = torch.tensor([0.5, 0.25, 0.25, 0.5])  # no base that anyone has seen
    kept = {"per_reference": True, "spread": True, "targets": "all", "batch_size": batch_size}
    result = explain(model, X, references, **kept)
    expected = by_hand(X, references, result.multipliers)
    torch.testing.assert_close(result.observed, expected)
    torch.testing.assert_close(result.attribution_sd, expected.std(2))
    torch.testing.assert_close(result.observed.mean(2), (result.hypothetical * X[:, None]).sum(2))
    assert (result.attribution_sd[0, :, 4:6] == 0).all()
    plain = explain(model, X, references, targets="all", batch_size=batch_size)
    assert plain.observed is plain.attribution_sd is None
    torch.testing.assert_close(plain.hypothetical, result.hypothetical, rtol=0, atol=0)


def test_channels_that_are_no_bases_have_no_part_in_it() -> None:
    track = torch.rand(N, 1, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    X = torch.cat([sequences(N, L), track], 1)
    references = torch.cat([shuffled(X[:, :4], R), (track / 2)[:, None].expand(N, R, 1, L)], 2)
    result = explain(seeded(lambda: net(5)), X, references, n_bases=4, spread=True)
    torch.testing.assert_close(result.attribution_sd, by_hand(X, references, result.multipliers).std(2))


@given(
    mean=st.sampled_from([0.0, 1.0, -1e3, 1e8]),
    spread=st.sampled_from([0.0, 1e-3, 1.0]),
    cuts=st.lists(st.integers(1, 29), max_size=4),
)
def test_parts_are_merged_without_losing_digits(mean: float, spread: float, cuts: list[int]) -> None:
    noise = torch.randn(2, 1, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = mean + spread * noise
    merged, edges = Moments(2, 1, 4), [0, *sorted(set(cuts)), 30]
    for start, stop in itertools.pairwise(edges):
        merged.add(slice(0, 2), moments(values[:, :, start:stop], 2), stop - start)
    exact = values.numpy().astype(np.longdouble).std(axis=2, ddof=1)
    np.testing.assert_allclose(merged.deviation().numpy(), exact.astype(np.float64), rtol=1e-5, atol=0)
    assert Moments(1, 1, 1).deviation().shape == (1, 1, 1)


def test_one_reference_has_no_spread() -> None:
    X = sequences(N, L)
    assert explain(seeded(net), X, shuffled(X, 1), spread=True).attribution_sd.isnan().all()
    with pytest.raises(ValueError, match="return_sd=True needs at least 2 references of each sequence, not 1"):
        deep_lift_shap(seeded(net), X, n_shuffles=1, return_sd=True, device="cpu")


def test_the_face_returns_it_beside_the_rest() -> None:
    X, model = sequences(N, L), seeded(net)
    asked = {"n_shuffles": R, "random_state": 3, "device": "cpu", "batch_size": 5}
    found = deep_lift_shap(model, X, return_sd=True, **asked)
    attributions, sd, references = found
    torch.testing.assert_close(attributions, deep_lift_shap(model, X, **asked), rtol=0, atol=0)
    assert references is None
    raw = deep_lift_shap(model, X, raw_outputs=True, return_references=True, return_sd=True, **asked)
    torch.testing.assert_close(sd, by_hand(X, raw.references, raw.attributions[:, None])[:, 0].std(1))
    both = deep_lift_shap(model, X, target=[0, 1], return_sd=True, **asked)
    torch.testing.assert_close(both.sd[:, 0], sd)
    assert both.sd.shape == (N, 2, L)
