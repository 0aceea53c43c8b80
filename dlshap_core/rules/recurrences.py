"""Rules of a whole direction of a recurrent layer that starts from zeros: the cells of `recurrent`, written out.

Given the hidden states, which torch computes at once, the gates of all steps are one matrix product, and so are their
multipliers: only what flows back from step to step is left to a loop. A cell unrolled into torch's operations has the
same multipliers at twenty times the cost. On a CPU in single precision kernels do all of it.

Shape legend: T steps, B rows, I inputs, H hidden units; gates are (T, B, gates, H).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from dlshap_core.kernels import fused
from dlshap_core.kernels import recurrences as kernels
from dlshap_core.kernels.threads import in_parts
from dlshap_core.rules import operators
from dlshap_core.rules.call import Call
from dlshap_core.rules.gradients import pull_back
from dlshap_core.rules.kinds import PairRule
from dlshap_core.rules.products import mean_of_both
from dlshap_core.rules.protocol import Pass
from dlshap_core.rules.rows import RowPairing
from dlshap_core.rules.secants import ramp, sigmoid, tanh
from dlshap_core.torch_private import version

_Both = Callable[[Tensor, Tensor], Tensor]


_MULTIPLICATIONS = 64  # that take as long as an element of other kernels
_IS_ZEROS = "_dlshap_is_zeros"


def mark_zeros(x: Tensor) -> None:
    """Remember that a tensor holds zeros, as long as it is not written to: looking would wait for a GPU."""
    if not x.is_inference():  # of which torch counts no versions
        setattr(x, _IS_ZEROS, version(x))


def are_zeros(states: Sequence[Tensor]) -> bool:
    return all((hasattr(z, _IS_ZEROS) and getattr(z, _IS_ZEROS) == version(z)) or not bool(z.any()) for z in states)


def fits(steps: Tensor, states: tuple[Tensor, ...], parameters: list[Tensor]) -> bool:
    """Whether all is floating point, and neither where a direction starts nor its weights vary."""
    return not any(z.requires_grad or not z.is_floating_point() for z in (*states, *parameters))


def lstm(steps: Tensor, *parameters: Tensor) -> Tensor:
    """Hidden states and memories (T, B, 2 H) of steps (T, B, I), with torch's w_ih, w_hh and, if any, b_ih, b_hh."""
    if has_torch_function_unary(steps):
        return handle_torch_function(lstm, (steps,), steps, *parameters)
    hidden, *_, memory = _lstm_parts(steps, parameters)
    return torch.cat([hidden, memory], -1)


def gru(steps: Tensor, *parameters: Tensor) -> Tensor:
    """The same of hidden states (T, B, H)."""
    if has_torch_function_unary(steps):
        return handle_torch_function(gru, (steps,), steps, *parameters)
    return _hidden("gru", steps, parameters)


def rnn_tanh(steps: Tensor, *parameters: Tensor) -> Tensor:
    """As `gru`."""
    if has_torch_function_unary(steps):
        return handle_torch_function(rnn_tanh, (steps,), steps, *parameters)
    return _hidden("rnn_tanh", steps, parameters)


def rnn_relu(steps: Tensor, *parameters: Tensor) -> Tensor:
    """As `gru`."""
    if has_torch_function_unary(steps):
        return handle_torch_function(rnn_relu, (steps,), steps, *parameters)
    return _hidden("rnn_relu", steps, parameters)


def _hidden(name: str, steps: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """Hidden states (T, B, H) of torch's function of this name."""
    zeros = steps.new_zeros(1, steps.shape[1], parameters[1].shape[1])
    initial = (zeros, zeros) if name == "lstm" else zeros
    layer = getattr(torch, name)
    with warnings.catch_warnings():
        # cuDNN wants all weights in one piece, and torch copies them
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        return layer(steps, initial, list(parameters), len(parameters) == 4, 1, 0.0, False, False, False)[0]


def _before(states: Tensor) -> Tensor:
    """The state that each step starts from: zeros, then all but the last."""
    return F.pad(states, (0, 0, 0, 0, 1, 0))[:-1]


def _gates(z: Tensor, weight: Tensor, bias: tuple[Tensor, ...], n: int) -> Tensor:
    return F.linear(z, weight, *bias).unflatten(-1, (n, -1))


def _lstm_parts(steps: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (T, B, H), gates before their sigmoids and tanh, in torch's order i, f, g, o, and after, and
    memories."""
    w_ih, w_hh, *biases = parameters
    hidden = _hidden("lstm", steps, parameters)
    gates = _gates(steps, w_ih, (biases[0] + biases[1],) if biases else (), 4)
    gates[1:] += _gates(hidden[:-1], w_hh, (), 4)
    values = gates.sigmoid()
    values[:, :, 2] = gates[:, :, 2].tanh()
    enter, forget, content, _ = values.unbind(2)
    memory = enter * content
    for t in range(1, len(memory)):
        memory[t].addcmul_(forget[t], memory[t - 1])
    return hidden, gates, values, memory


def _combiner(rows: RowPairing) -> tuple[Callable[[_Both, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """What takes a secant of both sides, and the mean of both sides, to the rows of the references."""

    def of_both(secant: _Both, x: Tensor, r: Tensor) -> Tensor:
        both = rows.paired(x, r)
        found = operators.secant(None, *both, secant.__name__, []) if operators.is_for(r) else secant(*both)
        return found.reshape(r.shape).to(r.dtype)

    def mean(x: Tensor, r: Tensor) -> Tensor:
        both = rows.paired(x, r)
        return (mean_of_both(*both) if operators.is_for(r) else torch.add(*both) / 2).reshape(r.shape)

    return of_both, mean


def _check_rows(rows: RowPairing, observed: Tensor, reference: Tensor) -> None:
    if rows.axis(observed, reference) not in (1, None):
        raise ValueError("its steps are the sequences of a batch; see batch_first")


def _lstm_rule(rows: RowPairing, observed: Tensor, reference: Tensor, *parameters: Tensor) -> Tensor:
    """c = f c + i g, h = o tanh(c): midpoint products of the secants of the gates and of tanh(c)."""
    _check_rows(rows, observed, reference)
    of_both, mean = _combiner(rows)
    _, gates_x, values_x, memory_x = _lstm_parts(observed, parameters)
    hidden, gates_r, values_r, memory_r = _lstm_parts(reference.detach(), parameters)
    enter, forget, content, leave = mean(values_x, values_r).unbind(2)
    to_gates = of_both(sigmoid, gates_x, gates_r)
    to_gates[:, :, 2] = of_both(tanh, gates_x[:, :, 2], gates_r[:, :, 2])
    before = mean(_before(memory_x), _before(memory_r))
    for k, factor in enumerate((content, before, enter, mean(memory_x.tanh(), memory_r.tanh()))):
        to_gates[:, :, k] *= factor
    to_memory = leave * of_both(tanh, memory_x, memory_r)
    forget = forget.clone()
    w_ih, w_hh = parameters[:2]
    n_units = w_hh.shape[1]

    def pullback(gradient: Tensor) -> Tensor:
        at_hidden, at_memory = gradient.split(n_units, -1)
        at_gates = torch.empty_like(gates_r)
        d_hidden = d_memory = torch.zeros_like(at_hidden[0])
        for t in range(len(gradient) - 1, -1, -1):
            d_hidden = d_hidden + at_hidden[t]
            d_memory = (d_memory + at_memory[t]).addcmul_(d_hidden, to_memory[t])
            torch.mul(d_memory.unsqueeze(1), to_gates[t, :, :3], out=at_gates[t, :, :3])
            torch.mul(d_hidden, to_gates[t, :, 3], out=at_gates[t, :, 3])
            d_memory = d_memory * forget[t]
            d_hidden = at_gates[t].flatten(1) @ w_hh
        return at_gates.flatten(2) @ w_ih

    return pull_back(reference, torch.cat([hidden, memory_r], -1), pullback)


def _gru_parts(steps: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states, those before, gates r and z before their sigmoids, W_n h + b_n, r, z and n before and after."""
    w_ih, w_hh, *biases = parameters
    hidden = _hidden("gru", steps, parameters)
    before = _before(hidden)
    reset_i, update_i, content_i = _gates(steps, w_ih, tuple(biases[:1]), 3).unbind(2)
    reset_h, update_h, content_h = _gates(before, w_hh, tuple(biases[1:]), 3).unbind(2)
    gate_r, gate_z = reset_i + reset_h, update_i + update_h
    reset, update = gate_r.sigmoid(), gate_z.sigmoid()
    gate_n = content_i + reset * content_h
    return hidden, before, gate_r, gate_z, content_h, reset, update, gate_n, gate_n.tanh()


def _gru_rule(rows: RowPairing, observed: Tensor, reference: Tensor, *parameters: Tensor) -> Tensor:
    """h = n + z (h - n), n = tanh(a + r b): midpoint products of the secants of the gates."""
    _check_rows(rows, observed, reference)
    of_both, mean = _combiner(rows)
    x = _gru_parts(observed, parameters)
    r = _gru_parts(reference.detach(), parameters)
    hidden, (m_reset, m_update) = r[0], (of_both(sigmoid, x[k], r[k]) for k in (2, 3))
    step = mean(x[1] - x[8], r[1] - r[8])
    content_h, reset, keep = (mean(x[k], r[k]) for k in (4, 5, 6))
    to_content = (1 - keep) * of_both(tanh, x[7], r[7])
    to_gates = torch.stack([to_content * content_h * m_reset, step * m_update, to_content * reset], 2)
    w_ih, w_hh = parameters[:2]

    def pullback(gradient: Tensor) -> Tensor:
        flows = torch.empty_like(gradient)
        d_hidden = torch.zeros_like(gradient[0])
        for t in range(len(gradient) - 1, -1, -1):
            torch.add(d_hidden, gradient[t], out=flows[t])
            at_gates = (flows[t].unsqueeze(1) * to_gates[t]).flatten(1)
            d_hidden = torch.addmm(flows[t] * keep[t], at_gates, w_hh)
        at_inputs = torch.stack([*(flows.unsqueeze(2) * to_gates[:, :, :2]).unbind(2), flows * to_content], 2)
        return at_inputs.flatten(2) @ w_ih

    return pull_back(reference, hidden, pullback)


def _rnn_rule(
    name: str, secant: _Both, rows: RowPairing, observed: Tensor, reference: Tensor, *parameters: Tensor
) -> Tensor:
    """h = tanh(a) or max(a, 0): the secant."""
    _check_rows(rows, observed, reference)
    w_ih, w_hh, *biases = parameters

    def parts(steps: Tensor) -> tuple[Tensor, Tensor]:
        hidden = _hidden(name, steps, parameters)
        gates = F.linear(steps, w_ih, biases[0] + biases[1] if biases else None)
        gates[1:] += F.linear(hidden[:-1], w_hh)
        return hidden, gates

    hidden, gates = parts(reference.detach())
    multipliers = _combiner(rows)[0](secant, parts(observed)[1], gates)

    def pullback(gradient: Tensor) -> Tensor:
        at_gates = gradient * multipliers
        for t in range(len(gradient) - 1, 0, -1):
            at_gates[t - 1].addcmul_(at_gates[t] @ w_hh, multipliers[t - 1])
        return at_gates @ w_ih

    return pull_back(reference, hidden, pullback)


@dataclass(frozen=True)
class _Layer(PairRule):
    """A rule of the above; on a CPU in single precision by kernels, what they need of the observed side made once."""

    cell: kernels.Cell = field(kw_only=True)

    def run(self, forward: Pass, call: Call) -> Any:
        steps, parameters = call.args[0], call.args[1:]
        if not fused.takes(steps) or steps.dtype != torch.float32:
            return super().run(forward, call)
        if forward.replaying:
            return self._replayed(forward.rows, forward.recorded(call.name, 1)[0], steps, parameters)
        states, kept = self._forward(steps.detach(), parameters, steps.new_empty(0, 0, 0), self.cell.n_kept)
        forward.record(call, [kept])

        def refuse(*_: Tensor) -> NoReturn:
            forward.refuse("grad", "forward computes gradients of its own")

        return pull_back(steps, states, refuse, steps)

    def _replayed(self, rows: RowPairing, x: Tensor, steps: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        _check_rows(rows, x[..., :1], steps[..., :1])
        if x.shape[1] != steps.shape[1]:
            x = x[:, : rows.n_sequences].contiguous()
        states, multipliers = self._forward(steps.detach(), parameters, x, self.cell.n_multipliers)
        w_ih, w_hh = parameters[:2]

        def pullback(gradient: Tensor, multipliers: Tensor) -> Tensor:
            at_gates = gradient.new_empty(*gradient.shape[:2], len(w_hh))
            tensors = [gradient.contiguous(), multipliers, _in_tiles(w_hh), at_gates]
            self._in_parts(kernels.back, tensors, at_gates)
            return fused.linear(at_gates, w_ih.T.contiguous())

        return pull_back(steps, states, pullback, multipliers)

    def _forward(self, steps: Tensor, parameters: tuple[Tensor, ...], x: Tensor, n_out: int) -> tuple[Tensor, Tensor]:
        """States (T, B, n H), and so many values of each unit: those kept of the observed side, or multipliers."""
        w_ih, w_hh, *biases = parameters
        start = biases[1].contiguous() if biases else w_hh.new_zeros(len(w_hh))
        bias = None if not biases else biases[0] if self.cell is kernels.GRU else biases[0] + start
        inputs = fused.linear(steps, w_ih, bias).contiguous()
        n_units = w_hh.shape[1]
        states = inputs.new_empty(*inputs.shape[:2], self.cell.n_states * n_units)
        out = inputs.new_empty(*inputs.shape[:2], n_out * n_units)
        self._in_parts(kernels.forward, [inputs, start, _in_tiles(w_hh.T), x, out, states], inputs)
        return states, out

    def _in_parts(self, kernel: Callable[..., None], tensors: list[Tensor], gates: Tensor) -> None:
        arrays: list[Any] = [self.cell.kind, *(z.numpy() for z in tensors)]
        in_parts(kernel, arrays, gates.shape[1], gates.numel() * max(1, gates.shape[2] // _MULTIPLICATIONS))


def _in_tiles(weight: Tensor) -> Tensor:
    """(K, N) as the kernels' products take it: tiles of columns, each in one piece."""
    n_inner, n_columns = weight.shape
    padded = F.pad(weight, (0, -n_columns % kernels.TILE, 0, -n_inner % 4))
    return padded.unflatten(1, (-1, kernels.TILE)).transpose(0, 1).flatten(1)


lstm.dlshap_kind = _Layer(_lstm_rule, "recurrent", cell=kernels.LSTM)  # type: ignore[attr-defined]
gru.dlshap_kind = _Layer(_gru_rule, "recurrent", cell=kernels.GRU)  # type: ignore[attr-defined]
for _function, _secant, _cell in ((rnn_tanh, tanh, kernels.RNN_TANH), (rnn_relu, ramp, kernels.RNN_RELU)):
    _rule = partial(_rnn_rule, _function.__name__, _secant)
    _function.dlshap_kind = _Layer(_rule, "recurrent", cell=_cell)  # type: ignore[attr-defined]
