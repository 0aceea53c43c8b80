"""Kernels of recurrent layers against torch's layers, and against cells unrolled in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlshap_core.kernels import recurrences as kernels
from dlshap_core.kernels import threads
from dlshap_core.rules import recurrences
from tests.core.toolbox import multipliers, relative_difference, seeded, sequences

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN of ReLU": partial(nn.RNN, nonlinearity="relu"),
}
LENGTH = 7


class Recurrent(nn.Module):
    """A layer on the letters, times a number, read out unevenly; of an LSTM the memories, too."""

    def __init__(self, name: str, n_units: int, scale: float = 1.5, bidirectional: bool = False) -> None:
        super().__init__()
        self.layer = LAYERS[name](4, n_units, batch_first=True, bidirectional=bidirectional)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        output, last = self.layer(self.scale * x.mT)
        last = torch.cat(last if isinstance(last, tuple) else (last,), -1)[0]
        return ((output * weights(output[0])).sum((1, 2)) + (last * weights(last[0])).sum(1))[:, None]


def weights(z: Tensor) -> Tensor:
    return torch.arange(z.numel(), dtype=z.dtype).cos().view(z.shape)


def pairs(n: int = 3, n_references: int = 3) -> tuple[Tensor, Tensor]:
    """Sequences and references, of which the first is the sequence itself."""
    X = sequences(n, LENGTH, seed=1)
    references = sequences(n * n_references, LENGTH, seed=2).unflatten(0, (n, n_references))
    references[:, 0] = X
    return X, references


def unrolled(model: Callable[[], nn.Module], X: Tensor, references: Tensor) -> Tensor:
    """The multipliers by cells in float64."""
    with mock.patch.object(recurrences, "fits", return_value=False):
        return multipliers(seeded(model), X, references)


@pytest.fixture
def calls() -> object:
    with mock.patch.object(kernels, "forward", wraps=kernels.forward) as forward:
        yield forward
        assert forward.called


# 16 units of an LSTM and 64 of an RNN fill a tile of columns; products take four rows and four factors at a time.
@pytest.mark.parametrize("n_units", [1, 4, 5, 16, 17, 64, 65])
@pytest.mark.parametrize("name", LAYERS)
def test_as_cells_in_float64(name: str, n_units: int, calls: object) -> None:
    X, references = pairs()
    model = partial(Recurrent, name, n_units)
    expected = unrolled(model, X, references)
    for batch_size in (1, 2, 9):
        found = multipliers(seeded(model, dtype=torch.float32), X, references, batch_size=batch_size)
        assert relative_difference(found, expected) < 2e-5, batch_size


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_few_steps(name: str, n_steps: int, calls: object) -> None:
    X, references = pairs()
    X, references = X[..., :n_steps], references[..., -n_steps:]
    model = partial(Recurrent, name, 5, bidirectional=True)
    found = multipliers(seeded(model, dtype=torch.float32), X, references)
    assert relative_difference(found, unrolled(model, X, references)) < 2e-5


@pytest.mark.parametrize("scale", [1e-4, 10.0, 300.0])
@pytest.mark.parametrize("name", LAYERS)
def test_gates_that_hardly_change_and_saturated_ones(name: str, scale: float, calls: object) -> None:
    X, references = pairs()
    model = partial(Recurrent, name, 6, scale)
    found = multipliers(seeded(model, dtype=torch.float32), X, references)
    assert relative_difference(found, unrolled(model, X, references)) < 5e-5


@pytest.mark.parametrize("n_sequences", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_threads_do_not_change_a_bit(name: str, n_sequences: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_SMALLEST_PART", 1)
    X, references = pairs(n_sequences, 5)
    model = seeded(lambda: Recurrent(name, 9, bidirectional=True), dtype=torch.float32)
    found = []
    for n_threads in (1, 2, 3, 7):
        with mock.patch.object(torch, "get_num_threads", return_value=n_threads):
            found.append(multipliers(model, X, references))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_torchs_and_what_is_no_number_stays_in_its_row(name: str) -> None:
    layer = seeded(lambda: LAYERS[name](4, 9), dtype=torch.float32).requires_grad_(False)
    steps = 4 * torch.randn(LENGTH, 6, 4, generator=torch.Generator().manual_seed(0))
    steps[3, 2], steps[4, 5] = torch.nan, torch.inf
    function = getattr(recurrences, {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}.get(name, "rnn_relu"))
    parameters = [*layer.parameters()]
    found, _ = function.dlshap_kind._forward(steps, parameters, torch.empty(0, 0, 0), function.dlshap_kind.cell.n_kept)
    expected = function(steps, *parameters)
    assert expected[3:, 2].isnan().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(("n_rows", "n_inner", "n_columns"), [(1, 4, 64), (4, 3, 65), (5, 8, 64), (7, 129, 200)])
def test_products(n_rows: int, n_inner: int, n_columns: int) -> None:
    random = np.random.default_rng(0)
    a, weight = (random.standard_normal(shape) for shape in ((n_rows, n_inner), (n_inner, n_columns)))
    tiles = recurrences._in_tiles(torch.from_numpy(weight).float()).numpy()
    padded = np.zeros((n_rows, tiles.shape[1] // kernels.TILE), np.float32)
    padded[:, :n_inner] = a
    out = np.ones((n_rows, len(tiles) * kernels.TILE), np.float32)
    kernels._add_product(padded, tiles, out)
    np.testing.assert_allclose(out[:, :n_columns], 1 + a @ weight, rtol=1e-5, atol=1e-5)
