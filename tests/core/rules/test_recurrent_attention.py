"""Recurrent layers and attention: torch's own modules, by sum, and by value against the same layer written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlshap_core import UnsupportedModelError, attribute
from dlshap_core.rules import recurrences
from tests.core.toolbox import (
    Apply,
    explain,
    multipliers,
    relative_difference,
    seeded,
    sequences,
    shuffled,
    worst_delta,
)

LENGTH, WIDTH = 20, 6


class Tokens(nn.Module):
    """Embed each position (B, L, WIDTH), apply a layer, and read out unevenly."""

    def __init__(self, layer: Callable[[], Any]) -> None:
        super().__init__()
        self.embed = nn.Conv1d(4, WIDTH, 3, padding=1)
        self.layer = layer()

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(2 * self.embed(x).mT)
        hidden = (output[0] if isinstance(output, tuple) else output).flatten(1)
        return (hidden * torch.arange(hidden.shape[1], dtype=hidden.dtype).cos()).sum(1, keepdim=True)


class Own(nn.Module):
    """A function that holds a module, so that the module's weights are the model's."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.module, x)


def self_attention(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x, x, need_weights=False)[0]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(WIDTH, 5, batch_first=True),
    "LSTM, two layers, both ways": lambda: nn.LSTM(WIDTH, 4, 2, batch_first=True, bidirectional=True),
    "LSTM, no bias": lambda: nn.LSTM(WIDTH, 4, bias=False, batch_first=True),
    "LSTM, dropout between layers": lambda: nn.LSTM(WIDTH, 4, 2, batch_first=True, dropout=0.5),
    "GRU": lambda: nn.GRU(WIDTH, 5, batch_first=True),
    "GRU, two layers, both ways": lambda: nn.GRU(WIDTH, 4, 2, batch_first=True, bidirectional=True),
    "RNN": lambda: nn.RNN(WIDTH, 5, batch_first=True),
    "RNN, ReLU, both ways": lambda: nn.RNN(WIDTH, 4, nonlinearity="relu", batch_first=True, bidirectional=True),
    "GRU, positions first": lambda: Own(nn.GRU(WIDTH, 5), lambda gru, x: gru(x.transpose(0, 1))[0].transpose(0, 1)),
    "LSTM, last states": lambda: Own(
        nn.LSTM(WIDTH, 4, batch_first=True), lambda lstm, x: torch.cat([*lstm(x)[1]], -1).squeeze(0)
    ),
    "LSTM, given states": lambda: Own(
        nn.LSTM(WIDTH, 4, batch_first=True),
        lambda lstm, x: lstm(x, (x.new_ones(1, len(x), 4), x.new_ones(1, len(x), 4))),
    ),
    "GRU, no bias": lambda: nn.GRU(WIDTH, 4, bias=False, batch_first=True),
    "LSTMCell": lambda: Own(nn.LSTMCell(WIDTH, WIDTH), lambda cell, x: cell(x[:, 1], cell(x[:, 0]))[0]),
    "GRUCell": lambda: Own(nn.GRUCell(WIDTH, WIDTH), lambda cell, x: cell(x[:, 1], cell(x[:, 0]))),
    "RNNCell": lambda: Own(nn.RNNCell(WIDTH, WIDTH), lambda cell, x: cell(x[:, 1], cell(x[:, 0]))),
    "MultiheadAttention": lambda: Own(nn.MultiheadAttention(WIDTH, 2, batch_first=True), self_attention),
    "MultiheadAttention, with weights": lambda: Own(
        nn.MultiheadAttention(WIDTH, 3, batch_first=True), lambda attention, x: attention(x, x, x)[0]
    ),
    "MultiheadAttention, positions first": lambda: Own(
        nn.MultiheadAttention(WIDTH, 2),
        lambda attention, x: self_attention(attention, x.transpose(0, 1)).transpose(0, 1),
    ),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
    "TransformerEncoderLayer, norm first, GELU": lambda: nn.TransformerEncoderLayer(
        WIDTH, 2, 8, activation="gelu", norm_first=True, batch_first=True
    ),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    ),
    "attention pooling": lambda: Own(
        nn.Linear(WIDTH, WIDTH),
        lambda linear, x: (x.unflatten(1, (5, 4)) * linear(x).unflatten(1, (5, 4)).softmax(2)).sum(2),
    ),
    "attention, causal": lambda: Own(
        nn.Identity(), lambda _, x: F.scaled_dot_product_attention(x, x.tanh(), x, is_causal=True)
    ),
    "attention, additive mask": lambda: Own(
        nn.Identity(), lambda _, x: F.scaled_dot_product_attention(x, x, x, attn_mask=distances(x.dtype), scale=0.7)
    ),
    "attention, boolean mask": lambda: Own(
        nn.Identity(), lambda _, x: F.scaled_dot_product_attention(x, x, x, attn_mask=distances(x.dtype) > -0.8)
    ),
    "attention, heads and groups": lambda: Own(
        nn.Identity(),
        lambda _, x: F.scaled_dot_product_attention(
            heads(x, 6), heads(x, 6)[:, :2], heads(x, 6)[:, 2:4], enable_gqa=True
        ),
    ),
}
RECURRENT = [name for name in LAYERS if "RNN" in name or "LSTM" in name or "GRU" in name]


def grouped_attention(z: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(z, z[:, :2], z[:, 2:4], enable_gqa=True)


def distances(dtype: torch.dtype) -> Tensor:
    places = torch.arange(LENGTH, dtype=dtype)
    return -(places[:, None] - places).abs() / 5


def heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor]:
    X = sequences(3, LENGTH)
    return X, shuffled(X, 3)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_sum_to_the_difference(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    result = explain(seeded(lambda: Tokens(LAYERS[name])), *pairs)
    assert worst_delta(result) < 1e-9
    split = explain(seeded(lambda: Tokens(LAYERS[name])), *pairs, batch_size=2)
    assert relative_difference(split.hypothetical, result.hypothetical) < 1e-9
    in_float32 = explain(seeded(lambda: Tokens(LAYERS[name]), dtype=torch.float32), *pairs)
    assert worst_delta(in_float32) < 1e-4
    assert relative_difference(in_float32.hypothetical, result.hypothetical) < 1e-4


@pytest.mark.parametrize("name", [name for name in RECURRENT if name != "LSTM" and "Cell" not in name])
def test_a_direction_at_once_is_its_cells_one_after_another(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    model = seeded(lambda: Tokens(LAYERS[name]))
    found = multipliers(model, *pairs)
    with mock.patch.object(recurrences, "fits", return_value=False):
        assert relative_difference(found, multipliers(model, *pairs)) < 1e-12


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_zeros_that_are_written_to_are_none(kind: type[nn.Module], pairs: tuple[Tensor, Tensor]) -> None:
    class FromState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(1, len(x), 5, dtype=x.dtype)
            state += 0.7
            given = (state, state) if kind is nn.LSTM else state
            return self.layer(x.transpose(1, 2), given)[0].sum((1, 2), keepdim=True).flatten(1)

    model, (X, references) = seeded(FromState), pairs
    result = attribute(model, X, references, device="cpu")
    assert result.convergence_delta.abs().max() < 1e-9


def test_zeros_that_are_made_in_inference_mode(pairs: tuple[Tensor, Tensor]) -> None:
    class FromState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                state = torch.zeros(1, len(x), 5, dtype=x.dtype)
            return self.layer(x.transpose(1, 2), state.clone())[0].sum((1, 2), keepdim=True).flatten(1)

    assert worst_delta(attribute(seeded(FromState), *pairs, device="cpu")) < 1e-9


@pytest.mark.parametrize("name", ["LSTM, two layers, both ways", "GRU", "RNN"])
def test_half_precision_takes_a_direction_at_once(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    model, (X, references) = seeded(lambda: Tokens(LAYERS[name])).float(), pairs
    expected = attribute(model, X, references, device="cpu").hypothetical
    with mock.patch.object(recurrences, "_in_tiles", wraps=recurrences._in_tiles) as at_once:
        found = attribute(model, X, references, device="cpu", dtype=torch.bfloat16).hypothetical
    assert at_once.called
    assert relative_difference(found, expected) < 0.05


def lstm_by_hand(lstm: nn.LSTM, x: Tensor) -> Tensor:
    hidden = memory = torch.zeros(len(x), lstm.hidden_size, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * memory.tanh()
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def gru_by_hand(gru: nn.GRU, x: Tensor) -> Tensor:
    hidden = torch.zeros(len(x), gru.hidden_size, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        r_x, z_x, n_x = (x[:, t] @ gru.weight_ih_l0.T + gru.bias_ih_l0).chunk(3, -1)
        r_h, z_h, n_h = (hidden @ gru.weight_hh_l0.T + gru.bias_hh_l0).chunk(3, -1)
        new = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        hidden = new + (z_x + z_h).sigmoid() * (hidden - new)
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def rnn_by_hand(rnn: nn.RNN, x: Tensor) -> Tensor:
    hidden = torch.zeros(len(x), rnn.hidden_size, dtype=x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        hidden = torch.tanh(
            x[:, t] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + hidden @ rnn.weight_hh_l0.T + rnn.bias_hh_l0
        )
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def attention_by_hand(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
    query, key, value = (heads(part, attention.num_heads) for part in projected.chunk(3, -1))
    weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    return mixed @ attention.out_proj.weight.T + attention.out_proj.bias


def encoder_by_hand(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    x = layer.norm1(x + attention_by_hand(layer.self_attn, x))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


BY_HAND: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "LSTM": (lambda: nn.LSTM(WIDTH, 5, batch_first=True), lstm_by_hand),
    "GRU": (lambda: nn.GRU(WIDTH, 5, batch_first=True), gru_by_hand),
    "RNN": (lambda: nn.RNN(WIDTH, 5, batch_first=True), rnn_by_hand),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), encoder_by_hand),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_layers_agree_with_the_same_written_out(name: str, pairs: tuple[Tensor, Tensor]) -> None:
    make, function = BY_HAND[name]
    module, written_out = seeded(lambda: Tokens(make)), seeded(lambda: Tokens(lambda: Own(make(), function)))
    with torch.no_grad():
        torch.testing.assert_close(module(pairs[0].double()), written_out(pairs[0].double()))
    assert relative_difference(multipliers(module, *pairs), multipliers(written_out, *pairs)) < 1e-9


def test_attention_module_agrees_with_the_same_written_out(pairs: tuple[Tensor, Tensor]) -> None:
    def make(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
        return seeded(lambda: Tokens(lambda: Own(nn.MultiheadAttention(WIDTH, 2, batch_first=True), function)))

    expected = multipliers(make(attention_by_hand), *pairs)
    for function in (self_attention, lambda attention, x: attention(x, x, x)[0]):
        assert relative_difference(multipliers(make(function), *pairs), expected) < 1e-9


@pytest.mark.parametrize("name", ["LSTM", "GRU", "TransformerEncoderLayer", "MultiheadAttention"])
def test_float32_keeps_its_digits_where_nothing_or_little_changes(name: str) -> None:
    X = sequences(2, LENGTH)
    references = X[:, None].repeat(1, 2, 1, 1)
    references[:, 1, :, 7] = references[:, 1, :, 7].roll(1, 1)
    exact = multipliers(seeded(lambda: Tokens(LAYERS[name])), X, references)
    in_float32 = multipliers(seeded(lambda: Tokens(LAYERS[name]), dtype=torch.float32), X, references)
    assert relative_difference(in_float32, exact) < 1e-4


class Packed(nn.Module):
    """A recurrent layer on rows of their own lengths, packed or one after another."""

    def __init__(self, layer: nn.Module, is_packed: bool, has_states: bool) -> None:
        super().__init__()
        self.layer, self.is_packed, self.has_states = layer, is_packed, has_states

    def _states(self, n: int, dtype: torch.dtype) -> Any:
        if not self.has_states:
            return None
        n_states = self.layer.num_layers * (1 + self.layer.bidirectional)
        state = torch.linspace(-1, 1, n_states * 3, dtype=dtype).view(n_states, 1, 3).repeat(1, n, 1)
        return (state, state.cos()) if isinstance(self.layer, nn.LSTM) else state

    def _run(self, z: Any, n: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
        output, last = self.layer(z, self._states(n, dtype))
        return output, torch.cat(last if isinstance(last, tuple) else (last,), -1).transpose(0, 1).flatten(1)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        z, is_sorted = 1.5 * x.mT, lengths is None
        lengths = torch.full((len(x),), LENGTH) if lengths is None else lengths
        if self.is_packed:
            packed = pack_padded_sequence(z, lengths, batch_first=True, enforce_sorted=is_sorted)
            output, last = self._run(packed, len(x), z.dtype)
            output, _ = pad_packed_sequence(output, batch_first=True, total_length=LENGTH)
        else:
            rows = [self._run(row[None, :n], 1, z.dtype) for row, n in zip(z, lengths.tolist(), strict=True)]
            output = torch.cat([F.pad(row, (0, 0, 0, LENGTH - row.shape[1])) for row, _ in rows])
            last = torch.cat([row for _, row in rows])
        weights = torch.arange(output[0].numel(), dtype=z.dtype).cos()
        return (output.flatten(1) @ weights + last.sin().sum(1))[:, None]


@pytest.mark.parametrize("has_lengths", [False, True], ids=["of one length", "of other lengths"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_packed_rows_are_the_rows_alone(name: str, has_lengths: bool, pairs: tuple[Tensor, Tensor]) -> None:
    args = (torch.tensor([LENGTH - 6, LENGTH, LENGTH - 13]),) if has_lengths else ()
    X, references = pairs[0], pairs[1][:, :2]
    layer = partial(getattr(nn, name), 4, 3, 2 if name == "LSTM" else 1, batch_first=True, bidirectional=True)
    for has_states in (False, True):
        first, second = (seeded(lambda p=p: Packed(layer(), p, has_states)) for p in (True, False))  # noqa: B023
        found, expected = explain(first, X, references, args=args), explain(second, X, references, args=args)
        assert worst_delta(found) < 1e-12
        assert relative_difference(found.hypothetical, expected.hypothetical) < 1e-12
        in_float32 = explain(first.float(), X, references, args=args)
        assert relative_difference(in_float32.hypothetical, expected.hypothetical) < 2e-5
    first.double()
    alone = explain(first, X, references, args=args, batch_size=1)
    assert relative_difference(alone.hypothetical, expected.hypothetical) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_rows_of_equal_lengths_stay_in_order(dtype: torch.dtype) -> None:
    """Of more than 16 rows, torch.sort leaves those of equal lengths in no order."""
    X = sequences(5, LENGTH)
    references, lengths = shuffled(X, 5), torch.tensor([4, 6, 6, 4, 4])
    model = seeded(lambda: Packed(nn.RNN(4, 3, batch_first=True), True, False), dtype=dtype)
    found, expected = (multipliers(model, X, references, args=(lengths,), batch_size=n) for n in (25, 1))
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("function", [torch.sort, torch.argsort])
def test_constants_are_sorted_in_the_order_of_equal_ones(function: Callable[..., Any]) -> None:
    def forward(x: Tensor, lengths: Tensor) -> Tensor:
        for found in (function(lengths, 0, True), function(lengths, descending=True)):
            order = found if isinstance(found, Tensor) else found.indices
            assert order.tolist() == sorted(range(len(x)), key=lambda i: -lengths[i].item())
        return torch.tanh(x[order])[order.argsort()].flatten(1)[:, :1]

    X = sequences(5, LENGTH)
    explain(Apply(forward), X, shuffled(X, 5), args=(torch.tensor([4, 6, 6, 4, 4]),))


def test_lengths_made_from_the_input_are_refused(pairs: tuple[Tensor, Tensor]) -> None:
    def forward(lstm: nn.Module, x: Tensor) -> Tensor:
        lengths = (x.sum(1) > 0.5).sum(1).long()
        return lstm(pack_padded_sequence(x.mT, lengths, batch_first=True))[0].data.sum(1)

    with pytest.raises(UnsupportedModelError, match="jumps with it"):
        explain(Own(nn.LSTM(4, 3, batch_first=True), forward), *pairs)
