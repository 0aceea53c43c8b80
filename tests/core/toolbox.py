"""What the tests of the core share: small sequences, references, models, and how far contributions are from summing.

Shape legend: N sequences, R references of each, T targets, A alphabet, L length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlshap_core import Attribution, attribute
from dlshap_core.one_hot import one_hot
from dlshap_core.references import dinucleotide_shuffle

LENGTH = 40


def sequences(n: int = 3, length: int = LENGTH, seed: int = 0) -> Tensor:
    """(N, 4, L) int8 one-hot sequences."""
    return one_hot(np.random.RandomState(seed).randint(0, 4, (n, length)).astype(np.uint8))


def shuffled(X: Tensor, n: int = 3, seed: int = 0) -> Tensor:
    """(N, R, 4, L) dinucleotide shuffles."""
    return dinucleotide_shuffle(X, n=n, random_state=seed)


class Apply(nn.Module):
    """A function as a module; the modules given are its parts."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: Tensor, *args: Tensor) -> Any:
        return self.function(*self.parts, x, *args)


class Sandwich(nn.Module):
    """A convolution, something to test, and a readout that depends unevenly on every element of it."""

    def __init__(self, inner: Callable[[Tensor], Tensor], channels: int = 3, width: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, channels, width)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(2 * self.conv(x)).reshape(len(x), -1)
        weights = torch.linspace(-1, 2, hidden.shape[1], dtype=hidden.dtype, device=hidden.device).cos()
        return (hidden * weights).sum(1, keepdim=True)


def seeded(make: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with reproducible weights, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype).eval()


def explain(model: nn.Module, X: Tensor, references: Any, **options: Any) -> Attribution:
    """`attribute` on the CPU, with the multipliers of every pair."""
    return attribute(model, X, references, **{"device": "cpu", "batch_size": 64, "raw_outputs": True, **options})


def multipliers(model: nn.Module, X: Tensor, references: Any, **options: Any) -> Tensor:
    """(N, R, 4, L) multipliers of the first target."""
    result = explain(model, X, references, **options)
    assert result.multipliers is not None
    return result.multipliers[:, 0]


def worst_delta(result: Attribution) -> float:
    """The largest convergence delta over the largest difference of predictions, which must not be nothing."""
    differences = (result.prediction[..., None] - result.reference_prediction).abs()
    assert differences.max() > 1e-6, "the model does not tell the sequences from the references"
    return (result.convergence_delta.abs().max() / differences.max()).item()


def require_twins(first: nn.Module, second: nn.Module, X: Tensor, references: Tensor) -> Attribution:
    """Two models that compute the same have the same multipliers, in any batches; returns those of the first."""
    results = explain(first, X, references), explain(second, X, references, batch_size=3)
    for result in results:
        assert worst_delta(result) < 1e-12
    torch.testing.assert_close(results[0].prediction, results[1].prediction)
    assert results[0].multipliers is not None
    assert results[1].multipliers is not None
    assert relative_difference(results[0].multipliers, results[1].multipliers) < 1e-12
    return results[0]


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value, which must not be nothing."""
    assert actual.shape == expected.shape
    size = expected.double().abs().max()
    assert size > 0, "nothing to compare with"
    return ((actual.double() - expected.double()).abs().max() / size).item()
