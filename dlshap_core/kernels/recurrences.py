"""Compiled kernels of recurrent layers, in single precision; rows as in `secants`.

Rows do not depend on each other: a thread takes its own through all steps, with products of its own, as calling torch's
at each step would take as long as the products themselves.

Shape legend: T steps, B rows of references and fewer of the observed side, H hidden units, G gates in torch's order,
P values of a unit that a cell keeps of a side, M multipliers of a unit.
"""

from dataclasses import dataclass

import numba
import numpy as np

from dlshap_core.kernels.secants import share, sigmoid, sigmoid_secant, single, tanh, tanh_over

TILE = 64  # columns of a product that are summed at once, of four rows


@dataclass(frozen=True)
class Cell:
    """A kind of cell: its number, and how many gates, kept values and multipliers a unit has."""

    kind: int
    n_gates: int
    n_kept: int
    n_multipliers: int
    n_states: int = 1


LSTM, GRU, RNN_TANH, RNN_RELU = Cell(0, 4, 11, 6, 2), Cell(1, 3, 9, 5), Cell(2, 1, 2, 1), Cell(3, 1, 2, 1)
_LSTM, _GRU, _RNN_RELU = LSTM.kind, GRU.kind, RNN_RELU.kind

_ZERO, _HALF, _ONE, _TINY = single(0, 0.5, 1, float(np.finfo(np.float32).tiny))

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


@_compiled
def forward(
    kind: int,
    inputs: np.ndarray,
    start: np.ndarray,
    weight: np.ndarray,
    x: np.ndarray,
    out: np.ndarray,
    states: np.ndarray,
    first: int,
    last: int,
) -> None:
    """All steps of rows first to last.

    Args:
        kind: of the cells.
        inputs: what the inputs give to the gates, (T, B, G H), with all biases but `start`.
        start: a bias of what the state before gives to the gates of a GRU, (G H).
        weight: of this, (H, G H), as `_add_product` takes it.
        x: what was kept of the observed side, (T, S, P H); empty for this side itself.
        out: what is kept of the observed side, or the multipliers, (T, B, M H).
        states: hidden states and, of an LSTM, memories, (T, B, H) or (T, B, 2 H).
    """
    n_steps, n_rows, n_gates = inputs.shape
    n, n_own = states.shape[2] // (2 if kind == _LSTM else 1), last - first
    is_observed = x.shape[1] == 0
    gates = np.zeros((n_own, weight.shape[0] * TILE), np.float32)
    hidden = np.zeros((n_own, weight.shape[1] // TILE), np.float32)
    memory = np.zeros((n_own, n), np.float32)
    scratch = np.empty(x.shape[2], np.float32)
    for t in range(n_steps):
        for i in range(n_own):
            _copy(start if kind == _GRU else inputs[t, first + i], gates[i, :n_gates])
        if t > 0:
            _add_product(hidden, weight, gates)
        for i in range(n_own):
            row = first + i
            result, kept = states[t, row], out[t, row] if is_observed else scratch
            if kind == _LSTM:
                _lstm_forward(gates[i], hidden[i], memory[i], kept)
                _copy(memory[i], result[n:])
            elif kind == _GRU:
                _gru_forward(gates[i], inputs[t, row], hidden[i], kept)
            else:
                _rnn_forward(kind == _RNN_RELU, gates[i, :n], hidden[i], kept)
            _copy(hidden[i], result[:n])
            if not is_observed:
                observed, multipliers = x[t, row // (n_rows // x.shape[1])], out[t, row]
                if kind == _LSTM:
                    _lstm_multipliers(observed, kept, multipliers)
                elif kind == _GRU:
                    _gru_multipliers(observed, kept, multipliers)
                else:
                    _rnn_multipliers(kind == _RNN_RELU, observed, kept, multipliers)


@_compiled
def back(
    kind: int,
    gradient: np.ndarray,
    multipliers: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """What flows to the inputs of the gates (T, B, G H), by what flows to the states as in `forward`; the weight of
    the state is (G H, H), as `_add_product` takes it."""
    n_steps, n_own = gradient.shape[0], last - first
    n = gradient.shape[2] // (2 if kind == _LSTM else 1)
    d_hidden = np.zeros((n_own, weight.shape[0] * TILE), np.float32)
    d_memory = np.zeros((n_own, n), np.float32)
    to_state = np.zeros((n_own, weight.shape[1] // TILE), np.float32)
    for t in range(n_steps - 1, -1, -1):
        for i in range(n_own):
            row = first + i
            flowing, m, result = gradient[t, row], multipliers[t, row], out[t, row]
            _add(flowing, d_hidden[i, :n])
            if kind == _LSTM:
                _lstm_back(flowing[n:], m, d_hidden[i], d_memory[i], to_state[i])
                _copy(to_state[i, : 4 * n], result)
            elif kind == _GRU:
                _gru_back(m, d_hidden[i, :n], to_state[i], result)
            else:
                _scale(d_hidden[i], m, to_state[i, :n])
                _copy(to_state[i, :n], result)
                d_hidden[i] = _ZERO
        _add_product(to_state, weight, d_hidden)


@_compiled
def _add_product(a: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """out (B, n TILE) += a (B, K) times a weight (K, n TILE) that lies in tiles (n, K TILE); K is a multiple of 4."""
    end = a.shape[0] - 1
    sums = np.empty(4 * TILE, np.float32)
    for tile in range(weight.shape[0]):
        columns = slice(tile * TILE, (tile + 1) * TILE)
        for row in range(0, end + 1, 4):
            i, j, k = min(row + 1, end), min(row + 2, end), min(row + 3, end)  # the last row may be made again
            _copy(out[row, columns], sums[:TILE])
            _copy(out[i, columns], sums[TILE : 2 * TILE])
            _copy(out[j, columns], sums[2 * TILE : 3 * TILE])
            _copy(out[k, columns], sums[3 * TILE :])
            _add_products(a[row], a[i], a[j], a[k], weight[tile], sums)
            _copy(sums, out[row, columns])
            _copy(sums[TILE:], out[i, columns])
            _copy(sums[2 * TILE :], out[j, columns])
            _copy(sums[3 * TILE :], out[k, columns])


@_compiled
def _add_products(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, weight: np.ndarray, sums: np.ndarray
) -> None:
    """The same of four rows (K), one tile (K TILE), and sums (4 TILE). Distances in memory are constants, or the loop
    would not be vectorised, and sixteen factors are as many as stay in registers."""
    for k in range(0, a.shape[0] - 3, 4):
        a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
        b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
        c0, c1, c2, c3 = c[k], c[k + 1], c[k + 2], c[k + 3]
        d0, d1, d2, d3 = d[k], d[k + 1], d[k + 2], d[k + 3]
        four = weight[k * TILE : (k + 4) * TILE]
        for h in range(TILE):
            w0, w1, w2, w3 = four[h], four[TILE + h], four[2 * TILE + h], four[3 * TILE + h]
            sums[h] = (((sums[h] + a0 * w0) + a1 * w1) + a2 * w2) + a3 * w3
            sums[TILE + h] = (((sums[TILE + h] + b0 * w0) + b1 * w1) + b2 * w2) + b3 * w3
            sums[2 * TILE + h] = (((sums[2 * TILE + h] + c0 * w0) + c1 * w1) + c2 * w2) + c3 * w3
            sums[3 * TILE + h] = (((sums[3 * TILE + h] + d0 * w0) + d1 * w1) + d2 * w2) + d3 * w3


@_compiled
def _lstm_forward(gates: np.ndarray, hidden: np.ndarray, memory: np.ndarray, kept: np.ndarray) -> None:
    """A step of a row: c = f c + i g, h = o tanh(c). Kept are the gates before and after their sigmoids and tanh, the
    memory before and after, and its tanh."""
    n = memory.shape[0]
    enter, forget, content, leave = kept[4 * n : 5 * n], kept[5 * n : 6 * n], kept[6 * n : 7 * n], kept[7 * n : 8 * n]
    squashed = kept[10 * n :]
    _copy(gates, kept[: 4 * n])
    _sigmoids(gates, kept[4 * n : 6 * n])
    _tanhs(gates[2 * n :], content)
    _sigmoids(gates[3 * n :], leave)
    _copy(memory, kept[8 * n : 9 * n])
    for h in range(n):
        memory[h] = forget[h] * memory[h] + enter[h] * content[h]
    _copy(memory, kept[9 * n : 10 * n])
    _tanhs(memory, squashed)
    _scale(leave, squashed, hidden[:n])


@_compiled
def _lstm_multipliers(x: np.ndarray, r: np.ndarray, out: np.ndarray) -> None:
    """Of what flows to the memory for i, f and g, of what flows to the hidden state for o and the memory, and of what
    flows to the memory for that before."""
    n = out.shape[0] // 6
    i, f, g, o = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n), slice(3 * n, 4 * n)
    v_x, v_r, before, after = x[4 * n : 8 * n], r[4 * n : 8 * n], slice(8 * n, 9 * n), slice(9 * n, 10 * n)
    s_x, s_r = x[10 * n :], r[10 * n :]
    _of_sigmoid(x[i], r[i], v_x[i], v_r[i], v_x[g], v_r[g], out[i])
    _of_sigmoid(x[f], r[f], v_x[f], v_r[f], x[before], r[before], out[f])
    _of_tanh(x[g], r[g], v_x[g], v_r[g], v_x[i], v_r[i], out[g])
    _of_sigmoid(x[o], r[o], v_x[o], v_r[o], s_x, s_r, out[o])
    _of_tanh(x[after], r[after], s_x, s_r, v_x[o], v_r[o], out[4 * n : 5 * n])
    _means(v_x[f], v_r[f], out[5 * n :])


@_compiled
def _lstm_back(
    to_memory: np.ndarray, m: np.ndarray, d_hidden: np.ndarray, d_memory: np.ndarray, to_gates: np.ndarray
) -> None:
    """What flows to the gates; nothing flows from a hidden state to that before but by them."""
    n = d_memory.shape[0]
    for h in range(n):
        d_memory[h] += to_memory[h] + d_hidden[h] * m[4 * n + h]
    for gate in range(3):
        _scale(d_memory, m[gate * n :], to_gates[gate * n : (gate + 1) * n])
    _scale(d_hidden, m[3 * n :], to_gates[3 * n : 4 * n])
    _scale(d_memory, m[5 * n :], d_memory)
    d_hidden[:] = _ZERO


@_compiled
def _gru_forward(gates: np.ndarray, inputs: np.ndarray, hidden: np.ndarray, kept: np.ndarray) -> None:
    """A step of a row: h = n + z (h - n), n = tanh(a + r b). Kept are the gates r, z and n before and after their
    sigmoids and tanh, b, h - n and 1 - z; gates are what the state gives to them."""
    n = inputs.shape[0] // 3
    reset, update, content = kept[3 * n : 4 * n], kept[4 * n : 5 * n], kept[5 * n : 6 * n]
    of_state, step, rest = kept[6 * n : 7 * n], kept[7 * n : 8 * n], kept[8 * n :]
    _copy(inputs, kept[: 3 * n])
    _copy(gates[2 * n :], of_state)
    _add(gates, kept[: 2 * n])
    _sigmoids(kept, kept[3 * n : 5 * n])
    new = kept[2 * n : 3 * n]
    for h in range(n):
        new[h] += reset[h] * of_state[h]
    _tanhs(new, content)
    for h in range(n):
        step[h] = hidden[h] - content[h]
        rest[h] = _ONE - update[h]
    for h in range(n):
        hidden[h] = content[h] + update[h] * step[h]


@_compiled
def _gru_multipliers(x: np.ndarray, r: np.ndarray, out: np.ndarray) -> None:
    """For r, z, b, a and the state before."""
    n = out.shape[0] // 5
    r_gate, z_gate, n_gate = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)
    reset, update, content = slice(3 * n, 4 * n), slice(4 * n, 5 * n), slice(5 * n, 6 * n)
    of_state, step, rest = slice(6 * n, 7 * n), slice(7 * n, 8 * n), slice(8 * n, 9 * n)
    to_content = out[3 * n : 4 * n]
    _of_tanh(x[n_gate], r[n_gate], x[content], r[content], x[rest], r[rest], to_content)
    _of_sigmoid(x[r_gate], r[r_gate], x[reset], r[reset], x[of_state], r[of_state], out[:n])
    _scale(to_content, out, out[:n])
    _of_sigmoid(x[z_gate], r[z_gate], x[update], r[update], x[step], r[step], out[n : 2 * n])
    _means(x[reset], r[reset], out[2 * n : 3 * n])
    _scale(to_content, out[2 * n :], out[2 * n : 3 * n])
    _means(x[update], r[update], out[4 * n :])


@_compiled
def _gru_back(m: np.ndarray, d_hidden: np.ndarray, to_state: np.ndarray, to_inputs: np.ndarray) -> None:
    n = d_hidden.shape[0]
    for gate in range(3):
        _scale(d_hidden, m[gate * n :], to_state[gate * n : (gate + 1) * n])
    _copy(to_state, to_inputs[: 2 * n])
    _scale(d_hidden, m[3 * n :], to_inputs[2 * n :])
    _scale(d_hidden, m[4 * n :], d_hidden)


@_compiled
def _rnn_forward(is_relu: bool, gates: np.ndarray, hidden: np.ndarray, kept: np.ndarray) -> None:
    """A step of a row: h = tanh(a) or max(a, 0). Kept are both."""
    n = gates.shape[0]
    _copy(gates, kept[:n])
    if is_relu:
        for h in range(n):
            hidden[h] = max(gates[h], _ZERO)
    else:
        _tanhs(gates, hidden[:n])
    _copy(hidden, kept[n:])


@_compiled
def _rnn_multipliers(is_relu: bool, x: np.ndarray, r: np.ndarray, out: np.ndarray) -> None:
    n = out.shape[0]
    v_x, v_r = x[n:], r[n:]
    if is_relu:
        for h in range(n):
            out[h] = share(x[h], r[h], _TINY, _ZERO, _ONE)
    else:
        for h in range(n):
            out[h] = tanh_over(x[h] - r[h]) * (_ONE - v_x[h] * v_r[h])


# Loops in functions of their own, as those with many arrays are not vectorised; all are as long as `out`.
@_compiled
def _of_sigmoid(
    g_x: np.ndarray,
    g_r: np.ndarray,
    v_x: np.ndarray,
    v_r: np.ndarray,
    w_x: np.ndarray,
    w_r: np.ndarray,
    out: np.ndarray,
) -> None:
    """The secant of v = sigmoid(g), times the mean of what v is multiplied by, w."""
    for h in range(out.shape[0]):
        out[h] = sigmoid_secant(g_x[h] - g_r[h], v_x[h], v_r[h]) * (_HALF * (w_x[h] + w_r[h]))


@_compiled
def _of_tanh(
    g_x: np.ndarray,
    g_r: np.ndarray,
    v_x: np.ndarray,
    v_r: np.ndarray,
    w_x: np.ndarray,
    w_r: np.ndarray,
    out: np.ndarray,
) -> None:
    """The same of v = tanh(g)."""
    for h in range(out.shape[0]):
        out[h] = tanh_over(g_x[h] - g_r[h]) * (_ONE - v_x[h] * v_r[h]) * (_HALF * (w_x[h] + w_r[h]))


@_compiled
def _sigmoids(z: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] = sigmoid(z[h])


@_compiled
def _tanhs(z: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] = tanh(z[h])


@_compiled
def _means(x: np.ndarray, r: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] = _HALF * (x[h] + r[h])


@_compiled
def _scale(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] = a[h] * b[h]


@_compiled
def _add(z: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] += z[h]


@_compiled
def _copy(z: np.ndarray, out: np.ndarray) -> None:
    for h in range(out.shape[0]):
        out[h] = z[h]
