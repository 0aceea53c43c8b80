"""Recurrent layers unrolled step by step: gates are sigmoids and tanhs (secants), states are sums of products
(midpoints)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlshap_core.rules import recurrences

_State = tuple[Tensor, ...]
_Cell = Callable[..., _State]
_Layer = Callable[..., Tensor]  # all states of all steps, one beside the other


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step: c = f c + i g, h = o tanh(c), gates in torch's order i, f, g, o."""
    hidden, memory = hx
    gates = F.linear(input, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)
    enter, forget, content, leave = gates.chunk(4, 1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(content)
    return torch.sigmoid(leave) * torch.tanh(memory), memory


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One step: h = n + z (h - n), gates in torch's order r, z, n."""
    reset_i, update_i, content_i = F.linear(input, w_ih, b_ih).chunk(3, 1)
    reset_h, update_h, content_h = F.linear(hx, w_hh, b_hh).chunk(3, 1)
    update = torch.sigmoid(update_i + update_h)
    content = torch.tanh(content_i + torch.sigmoid(reset_i + reset_h) * content_h)
    return content + update * (hx - content)


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One step: h = tanh(W x + U h)."""
    return torch.tanh(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One step: h = max(W x + U h, 0)."""
    return torch.relu(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def lstm(input: Tensor, hx: tuple[Tensor, Tensor], *rest: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.lstm on padded input: (output, last hidden states, last memories)."""
    outputs, (hidden, memory) = _unroll(lstm_cell, recurrences.lstm, input, hx, *rest, **named)
    return outputs, hidden, memory


def _unroll_single_state(
    cell: Callable[..., Tensor], at_once: _Layer | None = None
) -> Callable[..., tuple[Tensor, Tensor]]:
    def one_state_cell(input: Tensor, state: _State, *parameters: Tensor) -> _State:
        return (cell(input, state[0], *parameters),)

    def layer(input: Tensor, hx: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        outputs, (hidden,) = _unroll(one_state_cell, at_once, input, (hx,), *rest, **named)
        return outputs, hidden

    return layer


gru = _unroll_single_state(gru_cell, recurrences.gru)
rnn_tanh = _unroll_single_state(rnn_tanh_cell)
rnn_relu = _unroll_single_state(rnn_relu_cell)


def _unroll(
    cell: _Cell,
    at_once: _Layer | None,
    input: Tensor,
    initial: _State,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, _State]:
    """The arguments after `initial` are those of torch.lstm after its states."""
    if isinstance(has_biases, list):
        raise ValueError("packed sequences are not supported in recurrent layers; pad them and mask the output")
    steps = input.transpose(0, 1) if batch_first else input
    per_cell = 4 if has_biases else 2
    if len(params) % per_cell or len(params) // per_cell != num_layers * (2 if bidirectional else 1):
        raise ValueError("recurrent layers with projections (proj_size) are not supported")
    final: list[_State] = []
    for _ in range(num_layers):
        directions = []
        for backwards in (False, True) if bidirectional else (False,):
            index = len(final)
            parameters = params[index * per_cell : (index + 1) * per_cell]
            state = tuple(part[index] for part in initial)
            in_order = steps.flip(0) if backwards else steps
            if at_once is not None and recurrences.fits(steps, state, parameters):
                states = at_once(in_order, *parameters).chunk(len(state), -1)
                final.append(tuple(part[-1] for part in states))
                seen = states[0]
            else:
                outputs: list[Tensor] = []
                for step in in_order.unbind():
                    state = cell(step, state, *parameters)
                    outputs.append(state[0])
                final.append(state)
                seen = torch.stack(outputs)
            directions.append(seen.flip(0) if backwards else seen)
        steps = torch.cat(directions, -1)
    output = steps.transpose(0, 1) if batch_first else steps
    return output, tuple(torch.stack(parts) for parts in zip(*final, strict=True))
