"""Properties of random small networks assembled from the rule set (tests/strategies.py has the layers)."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dlshap_core import deep_lift_shap, dinucleotide_shuffle
from dlshap_core.one_hot import one_hot, to_codes
from dlshap_core.references import shuffle_codes
from tests.core.toolbox import explain, relative_difference
from tests.strategies import LAYERS, Network, Recipe, one_hot_sequences, recipes

LENGTH = 24
# Timing single examples would only report a busy machine.
thorough = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
brief = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def network(recipe: Recipe, dtype: torch.dtype = torch.float64) -> nn.Module:
    return Network(recipe, LENGTH).to(dtype).eval()


def drawn(X: Tensor, n: int, seed: int) -> Tensor:
    """(N, n, 4, L) references, one shuffle from each seed."""
    return one_hot(shuffle_codes(to_codes(X).numpy(), range(seed, seed + n)))


def scale_of(model: nn.Module, X: Tensor, references: Tensor) -> float:
    """The size of the predictions, beside which rounding is judged (a difference of predictions may be nothing)."""
    with torch.no_grad():
        predictions = [model(z.to(torch.float64)) for z in (X, references.flatten(0, 1))]
    return max(1e-3, *(y.abs().max().item() for y in predictions))


@thorough
@given(recipes(), one_hot_sequences(length=LENGTH), st.integers(1, 4), st.integers(0, 99))
def test_contributions_sum_to_the_difference(recipe: Recipe, X: Tensor, n: int, seed: int) -> None:
    references = drawn(X, n, seed)
    model = network(recipe)
    scale = scale_of(model, X, references)
    assert explain(model, X, references, targets="all").convergence_delta.abs().max() < 1e-9 * scale
    in_float32 = explain(network(recipe, torch.float32), X, references, targets="all")
    assert in_float32.convergence_delta.abs().max() < 1e-4 * scale


@thorough
@given(
    recipes(),
    one_hot_sequences(length=LENGTH),
    st.integers(1, 5),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_batches_order_and_splitting_change_nothing(
    recipe: Recipe, X: Tensor, n: int, batch_size: int, random: Random
) -> None:
    references = drawn(X, n, 5)
    model = network(recipe)
    expected = explain(model, X, references, targets="all").multipliers
    assert expected is not None
    size = expected.abs().max().clamp_min(1e-6)

    def assert_same(actual: Tensor | None, wanted: Tensor) -> None:
        assert actual is not None
        assert (actual - wanted).abs().max() < 1e-8 * size

    assert_same(explain(model, X, references, targets="all", batch_size=batch_size).multipliers, expected)
    rows = random.sample(range(len(X)), len(X))
    ks = random.sample(range(n), n)
    shuffled = explain(model, X[rows], references[rows][:, ks], targets="all", batch_size=batch_size)
    assert_same(shuffled.multipliers, expected[rows][:, :, ks])
    k = random.randrange(n)
    alone = explain(model, X[rows[:1]], references[rows[:1], k : k + 1], targets=[1])
    assert_same(alone.multipliers, expected[rows[:1], 1:, k : k + 1])


@thorough
@given(recipes(), one_hot_sequences(length=LENGTH), st.integers(0, LENGTH - 1))
def test_float32_keeps_its_digits_at_and_near_no_difference(recipe: Recipe, X: Tensor, position: int) -> None:
    references = X[:, None].repeat(1, 3, 1, 1)
    for k in (1, 2):
        references[:, k, :, position] = references[:, k, :, position].roll(k, 1)
    exact = explain(network(recipe), X, references, targets="all").multipliers
    in_float32 = explain(network(recipe, torch.float32), X, references, targets="all").multipliers
    assert exact is not None
    assert in_float32 is not None
    assert (in_float32.double() - exact).abs().max() < 1e-4 * exact.abs().max().clamp_min(1e-2)


LINEAR = ["conv", "depthwise", "batch_norm", "permute"]


@brief
@given(
    st.builds(
        Recipe,
        layers=st.lists(st.sampled_from(LINEAR), max_size=4).map(tuple),
        readout=st.sampled_from(["flatten", "mean"]),
        seed=st.integers(0, 99),
    ),
    one_hot_sequences(length=LENGTH),
    st.integers(0, 99),
)
def test_multipliers_of_a_linear_network_are_its_jacobian(recipe: Recipe, X: Tensor, seed: int) -> None:
    assert set(recipe.layers) <= set(LAYERS)
    model = network(recipe)
    zero = torch.zeros(1, 4, LENGTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0], zero)[:, 0]
    actual = explain(model, X, drawn(X, 2, seed), targets="all").multipliers
    assert actual is not None
    assert relative_difference(actual, jacobian[None, :, None].expand_as(actual)) < 1e-12


@brief
@given(recipes(max_layers=3), one_hot_sequences(length=LENGTH), st.integers(0, 2**31), st.integers(1, 9))
def test_seeds_reproduce(recipe: Recipe, X: Tensor, seed: int, batch_size: int) -> None:
    model = network(recipe)
    options = {"n_shuffles": 3, "random_state": seed, "device": "cpu", "hypothetical": True}
    first, again = (deep_lift_shap(model, X, batch_size=batch_size, **options) for _ in range(2))
    assert torch.equal(first, again)
    given_ = torch.cat([dinucleotide_shuffle(X, n=1, random_state=[seed + k] * len(X)) for k in range(3)], 1)
    by_tensor = deep_lift_shap(model, X, references=given_, batch_size=batch_size, device="cpu", hypothetical=True)
    assert torch.equal(first, by_tensor)


@brief
@given(recipes(max_layers=3), one_hot_sequences(length=LENGTH), st.floats(-3, 3), st.floats(-3, 3))
def test_attributions_are_linear_in_the_output(recipe: Recipe, X: Tensor, a: float, b: float) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(recipe)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return torch.stack([y[:, 0], y[:, 1], a * y[:, 0] + b * y[:, 1]], 1)

    values = explain(Mixed().eval(), X, drawn(X, 2, 0), targets="all").hypothetical
    torch.testing.assert_close(values[:, 2], a * values[:, 0] + b * values[:, 1], rtol=1e-9, atol=1e-9)
