"""Compiled kernels of LSTM layers, in single precision; rows as in `secants`.

Shape legend: T steps, B rows of references and fewer of the observed side, H hidden units; gates are (T, B, 4 H) in
torch's order i, f, g, o.
"""

import numba
import numpy as np

from dlshap_core.kernels.secants import sigmoid_secant, single, tanh_over

N_MULTIPLIERS = 6  # of each unit and step: memory to i, f and g; output to o and to memory; memory to that before

_HALF, _ONE = single(0.5, 1)


@numba.njit(nogil=True, cache=True)
def memories(values: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
    """Memories (T, B, H) of rows first to last by the gates' values: c = f c + i g, from zeros."""
    n = out.shape[2]
    for t in range(out.shape[0]):
        for row in range(first, last):
            gates, before, result = values[t, row], out[max(t - 1, 0), row], out[t, row]
            enter, forget, content = gates[:n], gates[n : 2 * n], gates[2 * n : 3 * n]
            if t == 0:
                for h in range(n):
                    result[h] = enter[h] * content[h]
            else:
                for h in range(n):
                    result[h] = forget[h] * before[h] + enter[h] * content[h]


# In functions of their own, as loops with many arrays are not vectorised.
@numba.njit(inline="always")
def _of_sigmoid(
    g_x: np.ndarray,
    g_r: np.ndarray,
    v_x: np.ndarray,
    v_r: np.ndarray,
    w_x: np.ndarray,
    w_r: np.ndarray,
    out: np.ndarray,
) -> None:
    """The secant of v = sigmoid(g), times the mean of what v is multiplied by, w; all (H,)."""
    for h in range(out.shape[0]):
        out[h] = sigmoid_secant(g_x[h] - g_r[h], v_x[h], v_r[h]) * (_HALF * (w_x[h] + w_r[h]))


@numba.njit(inline="always")
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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def multipliers(
    gates_x: np.ndarray,
    gates_r: np.ndarray,
    values_x: np.ndarray,
    values_r: np.ndarray,
    memory_x: np.ndarray,
    memory_r: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """(T, B, 6 H) for rows first to last, of `N_MULTIPLIERS`; values are gates after their sigmoids and tanh; see
    `rules.recurrences`."""
    n_steps, n_rows, n = memory_r.shape
    n_repeats = n_rows // memory_x.shape[1]
    s_x, s_r = np.empty_like(memory_x[0, 0]), np.empty_like(memory_x[0, 0])
    for t in range(n_steps):
        for row in range(first, last):
            other = row // n_repeats
            g_x, g_r, v_x, v_r = gates_x[t, other], gates_r[t, row], values_x[t, other], values_r[t, row]
            i, f, g, o = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n), slice(3 * n, 4 * n)
            c_x, c_r, m = memory_x[t, other], memory_r[t, row], out[t, row]
            for h in range(n):
                s_x[h], s_r[h] = c_x[h] * tanh_over(c_x[h]), c_r[h] * tanh_over(c_r[h])
            _of_sigmoid(g_x[i], g_r[i], v_x[i], v_r[i], v_x[g], v_r[g], m[i])
            if t > 0:
                _of_sigmoid(g_x[f], g_r[f], v_x[f], v_r[f], memory_x[t - 1, other], memory_r[t - 1, row], m[f])
            else:
                m[f] = 0
            _of_tanh(g_x[g], g_r[g], v_x[g], v_r[g], v_x[i], v_r[i], m[g])
            _of_sigmoid(g_x[o], g_r[o], v_x[o], v_r[o], s_x, s_r, m[o])
            _of_tanh(c_x, c_r, s_x, s_r, v_x[o], v_r[o], m[4 * n : 5 * n])
            for h in range(n):
                m[5 * n + h] = _HALF * (v_x[n + h] + v_r[n + h])


@numba.njit(nogil=True, cache=True)
def step_back(
    t: int,
    gradient: np.ndarray,
    multipliers: np.ndarray,
    d_memory: np.ndarray,
    at_gates: np.ndarray,
    d_hidden: np.ndarray,
) -> None:
    """What flows to the gates of step t, by what flows to its output and its memory, gradient (T, B, 2 H), and to both
    from the next step, (B, H); the memory's is overwritten by what flows on to the step before."""
    n_rows, n = d_hidden.shape
    for row in range(n_rows):
        flowing, m, result = gradient[t, row], multipliers[t, row], at_gates[t, row]
        memory, hidden = d_memory[row], d_hidden[row]
        output = result[3 * n :]
        for h in range(n):
            output[h] = hidden[h] + flowing[h]
        for h in range(n):
            memory[h] += flowing[n + h] + output[h] * m[4 * n + h]
        for gate in range(3):
            of_gate, to_gate = m[gate * n : (gate + 1) * n], result[gate * n : (gate + 1) * n]
            for h in range(n):
                to_gate[h] = memory[h] * of_gate[h]
        for h in range(n):
            output[h] *= m[3 * n + h]
        for h in range(n):
            memory[h] *= m[5 * n + h]
