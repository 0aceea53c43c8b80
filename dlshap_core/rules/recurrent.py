"""Recurrent layers unrolled step by step: gates are sigmoids and tanhs (secants), states are sums of products
(midpoints)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

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


def lstm(input: Tensor, hx: Any, *rest: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As torch.lstm: (output, last hidden states, last memories)."""
    outputs, (hidden, memory) = _unroll(lstm_cell, recurrences.lstm, input, hx, *rest, **named)
    return outputs, hidden, memory


def _unroll_single_state(cell: Callable[..., Tensor], at_once: _Layer) -> Callable[..., tuple[Tensor, Tensor]]:
    def one_state_cell(input: Tensor, state: _State, *parameters: Tensor) -> _State:
        return (cell(input, state[0], *parameters),)

    def layer(input: Tensor, hx: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        is_packed = bool(rest) and isinstance(rest[0], Tensor)  # then `hx` is the number of rows at each step
        states = (hx, (rest[0],), *rest[1:]) if is_packed else ((hx,), *rest)
        outputs, (hidden,) = _unroll(one_state_cell, at_once, input, *states, **named)
        return outputs, hidden

    return layer


gru = _unroll_single_state(gru_cell, recurrences.gru)
rnn_tanh = _unroll_single_state(rnn_tanh_cell, recurrences.rnn_tanh)
rnn_relu = _unroll_single_state(rnn_relu_cell, recurrences.rnn_relu)


def _unroll(cell: _Cell, at_once: _Layer | None, input: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, _State]:
    """The arguments after `input` are those of torch.lstm: states, parameters and settings; of a packed sequence the
    number of rows at each step comes first, and there is no batch_first."""
    if len(rest) < 2 or not isinstance(rest[1], tuple):
        return _unroll_padded(cell, at_once, None, input, *rest, **named)
    batch_sizes, states, *settings = rest
    padded, lengths = pad_packed_sequence(PackedSequence(input, batch_sizes))
    arguments = (padded, states, *settings, False)
    output, final = _unroll_padded(cell, at_once, lengths, *arguments)
    return pack_padded_sequence(output, lengths).data, final


def _unroll_padded(
    cell: _Cell,
    at_once: _Layer | None,
    lengths: Tensor | None,
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
    """The arguments after `initial` are those of torch.lstm after its states; `lengths` are of the rows, where these
    end before the last step."""
    steps = input.transpose(0, 1) if batch_first else input
    per_cell = 4 if has_biases else 2
    if len(params) % per_cell or len(params) // per_cell != num_layers * (2 if bidirectional else 1):
        raise ValueError("recurrent layers with projections (proj_size) are not supported")
    if at_once is not None and not recurrences.are_zeros(initial):
        at_once = None
    final: list[_State] = []
    for _ in range(num_layers):
        directions = []
        for backwards in (False, True) if bidirectional else (False,):
            index = len(final)
            parameters = params[index * per_cell : (index + 1) * per_cell]
            state = tuple(part[index] for part in initial)
            in_order = _reversed(steps, lengths) if backwards else steps
            seen, last = _one_direction(cell, at_once, in_order, state, parameters, lengths)
            final.append(last)
            directions.append(_reversed(seen, lengths) if backwards else seen)
        steps = torch.cat(directions, -1)
    output = steps.transpose(0, 1) if batch_first else steps
    return output, tuple(torch.stack(parts) for parts in zip(*final, strict=True))


def _one_direction(
    cell: _Cell,
    at_once: _Layer | None,
    steps: Tensor,
    state: _State,
    parameters: list[Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, _State]:
    """Outputs of all steps, and the states after the last step of each row."""
    if at_once is not None and recurrences.fits(steps, state, parameters):
        is_autocast = torch.is_autocast_enabled(steps.device.type)
        dtype = torch.get_autocast_dtype(steps.device.type) if is_autocast else steps.dtype
        precise = torch.promote_types(steps.dtype, torch.float32)  # halves have too few digits for secants
        with torch.autocast(steps.device.type, enabled=False):
            states = at_once(steps.to(precise), *(z.to(precise) for z in parameters)).to(dtype).chunk(len(state), -1)
        return states[0], tuple(_last(part, lengths) for part in states)
    of_steps: list[_State] = []
    for step in steps.unbind():
        state = cell(step, state, *parameters)
        of_steps.append(state)
    outputs = torch.stack([states[0] for states in of_steps])
    if lengths is not None:
        state = tuple(_last(torch.stack(part), lengths) for part in zip(*of_steps, strict=True))
    return outputs, state


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, H) of (T, B, H)."""
    return states[-1] if lengths is None else states[lengths - 1, torch.arange(len(lengths))]


def _reversed(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row's own steps in the opposite order; those beyond stay."""
    if lengths is None:
        return steps.flip(0)
    place = torch.arange(len(steps)).unsqueeze(1)
    order = torch.where(place < lengths, lengths - 1 - place, place)
    return steps[order.to(steps.device), torch.arange(len(lengths))]
