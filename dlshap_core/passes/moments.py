"""Mean and spread of what comes in parts, without keeping the parts.

Shape legend: N sequences, T targets, L length, S sequences and K references in a batch.
"""

import torch
from torch import Tensor


def moments(values: Tensor, dim: int) -> Tensor:
    """(2, ...) float64: the mean along an axis, and the sum of squared deviations from it."""
    values = values.double()
    mean = values.mean(dim, keepdim=True)
    return torch.stack([mean.squeeze(dim), (values - mean).square().sum(dim)])


class Moments:
    """Merges the moments of parts of the references of each of N sequences: the update of Chan, Golub and LeVeque,
    which loses no digits where the mean is large beside the spread."""

    def __init__(self, n_sequences: int, n_targets: int, length: int) -> None:
        shape = (n_sequences, n_targets, length)
        self._mean, self._squares = torch.zeros(2, *shape, dtype=torch.float64, device="cpu")
        self._n = torch.zeros(n_sequences, 1, 1, dtype=torch.float64, device="cpu")

    def add(self, rows: slice, found: Tensor, n: int) -> None:
        """Take the `moments` (2, S, T, L) of n more references of some sequences, on the CPU."""
        before, (mean, squares) = self._n[rows], found
        after = before + n
        step = mean - self._mean[rows]
        self._mean[rows] += step * (n / after)
        self._squares[rows] += squares + step.square() * (before * n / after)
        self._n[rows] = after

    def deviation(self) -> Tensor:
        """(N, T, L) the standard deviation, with n - 1; NaN of a single reference."""
        return (self._squares / (self._n - 1)).sqrt()
