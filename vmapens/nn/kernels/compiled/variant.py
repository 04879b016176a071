"""One variant, one thread: gate, LSTM and their gradients, step by step while a step's numbers are in the cache.

Layout, with Bp = B padded to 8 rows, Hp = H and Fp = F + 1 padded to 16, all float32, zero where padded:

- a step's input row is ``z = [x * a (F), 1, h (H)]``, padded to K; its weights ``w [4Hp, K]`` hold W_ih, the sum of the
  biases, and W_hh side by side, so that one product gives the gates and one gives all weight gradients;
- the tape, what the backward needs: attention [T, Bp, Fp], gates after their nonlinearity [T, Bp, 4Hp], cell and hidden
  states [T + 1, Bp, Hp]. The gathered x, x * a and tanh(c) are cheaper to compute again than to keep.

Operations per variant and step: ``2 B F F + 8 B H (F + H)`` forward, twice that backward. Bytes moved beyond the cache:
the tape, ``4 B T (Fp + 6 Hp)`` written once and read once. Floor: operations over the core's rate, as the tape of
two variants fits a shared cache at small size. Twin: `reference`.
"""

from typing import NamedTuple

import numpy as np

from vmapens.nn.kernels.compiled.jit import jit
from vmapens.nn.kernels.compiled.lanes import (
    PADDING,
    Lanes,
    address,
    elementwise,
    exp,
    reduction,
    sigmoid,
    tanh,
)
from vmapens.nn.kernels.compiled.matrix import multiply, multiply_pairs, narrow, pair_rows

NO_GATE, FEATURE_GATE, TIME_GATE = 0, 1, 2
_NEVER = np.float32(-1e30)  # score of a padded feature: its attention is below 1e-37


class Weights(NamedTuple):
    """One variant's weights, padded and side by side."""

    w: np.ndarray  # [4Hp, K]
    w_t: np.ndarray  # [K, 4Hp]
    gate: np.ndarray  # [n, n + 1]: weight and bias of the gate; its rows padded to 16
    gate_t: np.ndarray  # [n + 1, n padded]


class Tape(NamedTuple):
    """What the backward needs of the forward; where there is none, a few steps that are written over in turn."""

    attention: np.ndarray  # [T or 1, Bp, Fp]
    gates: np.ndarray  # [T or 1, Bp, 4Hp]
    cells: np.ndarray  # [T + 1 or 2, Bp, Hp]
    hidden: np.ndarray  # [T + 1 or 2, Bp, Hp]


class Scratch(NamedTuple):
    """Working memory of one thread, and the gradients of the padded weights."""

    x: np.ndarray  # [Bp, Fp]: a step's input, then 1
    z: np.ndarray  # [Bp, K]
    scores: np.ndarray  # [Bp, Fp]
    d_gates: np.ndarray  # [Bp, 4Hp]
    d_z: np.ndarray  # [Bp, K]
    d_hidden: np.ndarray  # [Bp, Hp]
    d_cells: np.ndarray  # [Bp, Hp]
    d_w: np.ndarray  # [4Hp, K]
    d_gate: np.ndarray  # [n padded, n + 1 padded]


class Pairs(NamedTuple):
    """The products' operands as pairs of bfloat16 (uint32), along the index that is summed over; of no size in fp32."""

    w: np.ndarray  # [2Hp, K]
    w_t: np.ndarray  # [K / 2, 4Hp]
    gate_t: np.ndarray  # [Fp / 2, Fp]
    x: np.ndarray  # [Bp, Fp / 2]
    z: np.ndarray  # [Bp, K / 2]
    d_gates: np.ndarray  # [Bp, 2Hp]
    x_rows: np.ndarray  # [Bp / 2, Fp]
    z_rows: np.ndarray  # [Bp / 2, K]
    d_gates_rows: np.ndarray  # [Bp / 2, 4Hp]
    d_scores_rows: np.ndarray  # [Bp / 2, Fp]


def padded(size: int, multiple: int = PADDING) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


@elementwise(2, 1)
def _times(a: Lanes, b: Lanes) -> Lanes:
    return a * b


@elementwise(1, 1)
def _copied(a: Lanes) -> Lanes:
    return a


@elementwise(1, 1, scalars=1)
def _exp_above(scores: Lanes, largest: Lanes) -> Lanes:
    return exp(scores - largest)


@elementwise(1, 1, scalars=1)
def _scaled(a: Lanes, factor: Lanes) -> Lanes:
    return a * factor


@reduction(1, -np.inf, "maxnum")
def _largest(a: Lanes) -> Lanes:
    return a


@reduction(1, 0.0, "fadd")
def _sum(a: Lanes) -> Lanes:
    return a


@reduction(3, 0.0, "fadd")
def _sum_of_products(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return a * b * c


@elementwise(3, 1, scalars=1)
def _softmax_gradient(attention: Lanes, d_gated: Lanes, x: Lanes, mean: Lanes) -> Lanes:
    return attention * (d_gated * x - mean)


@elementwise(5, 6)
def _cell(i: Lanes, f: Lanes, g: Lanes, o: Lanes, c: Lanes) -> tuple[Lanes, ...]:
    """Gates before their nonlinearity and the last cell state -> gates, cell state, hidden state."""
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    c = f.fma(c, i * g)
    return i, f, g, o, c, o * tanh(c)


@elementwise(8, 5)
def _cell_gradient(
    i: Lanes, f: Lanes, g: Lanes, o: Lanes, before: Lanes, c: Lanes, d_h: Lanes, d_c: Lanes
) -> tuple[Lanes, ...]:
    """Gradients of the gates before their nonlinearity, and of the last cell state."""
    t = tanh(c)
    d_c = (d_h * o).fma(1.0 - t * t, d_c)
    return (
        d_c * g * i * (1.0 - i),
        d_c * before * f * (1.0 - f),
        d_c * i * (1.0 - g * g),
        d_h * t * o * (1.0 - o),
        d_c * f,
    )


@jit
def pack(w_ih, w_hh, b_ih, b_hh, gate_weight, gate_bias, gate, weights, pairs):
    """Lay one variant's parameters side by side; the padding of `weights` is zero and stays so."""
    F, H = w_ih.shape[1], w_hh.shape[1]
    width = weights.w.shape[0] // 4
    for q in range(4):
        for j in range(H):
            row, to = q * H + j, q * width + j
            for k in range(F):
                weights.w[to, k] = w_ih[row, k]
            weights.w[to, F] = b_ih[row] + b_hh[row]
            for k in range(H):
                weights.w[to, F + 1 + k] = w_hh[row, k]
    for k in range(F + 1 + H):
        for j in range(4 * width):
            weights.w_t[k, j] = weights.w[j, k]
    if gate != NO_GATE:
        n = gate_weight.shape[0]
        for j in range(n):
            for k in range(n):
                weights.gate[j, k] = gate_weight[j, k]
            weights.gate[j, n] = gate_bias[j]
        for k in range(n + 1):
            for j in range(n):
                weights.gate_t[k, j] = weights.gate[j, k]
        for j in range(n, weights.gate_t.shape[1]):
            weights.gate_t[n, j] = _NEVER
    if pairs.w.size > 0:
        pair_rows(weights.w, pairs.w)
        pair_rows(weights.w_t, pairs.w_t)
        if gate == FEATURE_GATE:
            pair_rows(weights.gate_t, pairs.gate_t)


@jit
def _gather(pool, rows, t, x):
    """The batch's inputs of step t, and the 1 beside them that carries the bias."""
    F = pool.shape[2]
    for b in range(rows.size):
        row = pool[rows[b], t]
        for j in range(F):
            x[b, j] = row[j]
        x[b, F] = np.float32(1)


@jit
def _fill_z(x, attention, hidden, gate, F, z):
    """``[x * a, 1, h]`` of one step; `hidden` is the state before it."""
    for b in range(x.shape[0]):
        if gate == NO_GATE:
            _copied((address(x[b]), address(z[b]), x.shape[1]))
        else:
            _times((address(x[b]), address(attention[b]), address(z[b]), x.shape[1]))
        z[b, F] = x[b, F]
        _copied((address(hidden[b]), address(z[b]) + 4 * (F + 1), hidden.shape[1]))


@jit
def _feature_attention(x, weights, pairs, F, scores, attention):
    n = scores.shape[1]
    if pairs.w.size > 0:
        narrow(x, pairs.x)
        multiply_pairs(scores, pairs.x, pairs.gate_t, (F + 2) // 2, False)
    else:
        multiply(scores, x, weights.gate_t, F + 1, False)
    for b in range(x.shape[0]):
        row, out = address(scores[b]), address(attention[b])
        _exp_above((row, out, _largest((row, n)), n))
        _scaled((out, out, np.float32(1) / _sum((out, n)), n))


@jit
def _at(steps, t):
    """Step t of a tape's tensor, which may hold fewer steps than there are."""
    return steps[t % steps.shape[0]]


@jit
def forward(pool, rows, gate, weights, pairs, tape, s):
    """Fill the tape. States before the first step stand in `tape.cells[0]` and `tape.hidden[0]`.

    Args:
        pool: Samples [N, T, F].
        rows: Which of them are the batch [B].
        gate: NO_GATE, FEATURE_GATE, or TIME_GATE; the attention of the last stands in the tape already.
        weights: From `pack`.
        pairs: From `pack`; of no size unless the products' operands are bfloat16.
        tape: Filled.
        s: Working memory.
    """
    T, F = pool.shape[1], pool.shape[2]
    width = tape.cells.shape[2]
    for t in range(T):
        _gather(pool, rows, t, s.x)
        attention, gates = _at(tape.attention, t), _at(tape.gates, t)
        cells, cells_next = _at(tape.cells, t), _at(tape.cells, t + 1)
        hidden, hidden_next = _at(tape.hidden, t), _at(tape.hidden, t + 1)
        if gate == FEATURE_GATE:
            _feature_attention(s.x, weights, pairs, F, s.scores, attention)
        _fill_z(s.x, attention, hidden, gate, F, s.z)
        if pairs.w.size > 0:
            narrow(s.z, pairs.z)
            multiply_pairs(gates, pairs.z, pairs.w_t, (F + 2 + width) // 2, False)
        else:
            multiply(gates, s.z, weights.w_t, F + 1 + width, False)
        for b in range(gates.shape[0]):
            i = address(gates[b])
            f, g, o = i + 4 * width, i + 8 * width, i + 12 * width
            _cell((i, f, g, o, address(cells[b]), i, f, g, o, address(cells_next[b]), address(hidden_next[b]), width))


@jit
def backward(pool, rows, gate, weights, pairs, tape, s, d_states, d_attention, d_x):
    """Fill `s.d_w` and `s.d_gate`; `s.d_hidden` and `s.d_cells` go from the last states' gradients to the first's.

    Args:
        pool: As in `forward`.
        rows: As in `forward`.
        gate: As in `forward`.
        weights: As in `forward`.
        pairs: As in `forward`.
        tape: From `forward`.
        s: Working memory.
        d_states: Gradients of all states [B, T, H]; of no size if there are none.
        d_attention: Set to the gradient of the attention [T, Bp, Fp] for TIME_GATE, whose own gradient is up to the
            caller; of no size otherwise.
        d_x: Set to the gradient of the batch [B, T, F], but not through the gate of TIME_GATE; of no size if not asked
            for.
    """
    T, F = pool.shape[1], pool.shape[2]
    width = tape.cells.shape[2]
    Bp, Fp = s.x.shape
    for t in range(T - 1, -1, -1):
        if d_states.size > 0:
            for b in range(d_states.shape[0]):
                for j in range(d_states.shape[2]):
                    s.d_hidden[b, j] += d_states[b, t, j]
        gates, attention, first = tape.gates[t], _at(tape.attention, t), t == T - 1
        for b in range(Bp):
            i, d_i, d_c = address(gates[b]), address(s.d_gates[b]), address(s.d_cells[b])
            f, g, o = i + 4 * width, i + 8 * width, i + 12 * width
            before, after, d_h = address(tape.cells[t, b]), address(tape.cells[t + 1, b]), address(s.d_hidden[b])
            d_f, d_g, d_o = d_i + 4 * width, d_i + 8 * width, d_i + 12 * width
            _cell_gradient((i, f, g, o, before, after, d_h, d_c, d_i, d_f, d_g, d_o, d_c, width))
        _gather(pool, rows, t, s.x)
        _fill_z(s.x, attention, tape.hidden[t], gate, F, s.z)
        if pairs.w.size > 0:
            narrow(s.d_gates, pairs.d_gates)
            pair_rows(s.d_gates, pairs.d_gates_rows)
            pair_rows(s.z, pairs.z_rows)
            multiply_pairs(s.d_w, pairs.d_gates_rows.T, pairs.z_rows, Bp // 2, not first)
            multiply_pairs(s.d_z, pairs.d_gates, pairs.w, 2 * width, False)
        else:
            multiply(s.d_w, s.d_gates.T, s.z, Bp, not first)
            multiply(s.d_z, s.d_gates, weights.w, 4 * width, False)
        for b in range(Bp):
            _copied((address(s.d_z[b]) + 4 * (F + 1), address(s.d_hidden[b]), width))
        if gate == FEATURE_GATE:
            for b in range(Bp):
                a, d_z, x = address(attention[b]), address(s.d_z[b]), address(s.x[b])
                mean = _sum_of_products((a, d_z, x, Fp))
                _softmax_gradient((a, d_z, x, address(s.scores[b]), mean, Fp))
            if pairs.w.size > 0:
                pair_rows(s.scores, pairs.d_scores_rows)
                pair_rows(s.x, pairs.x_rows)
                multiply_pairs(s.d_gate, pairs.d_scores_rows.T, pairs.x_rows, Bp // 2, not first)
            else:
                multiply(s.d_gate, s.scores.T, s.x, Bp, not first)
        elif gate == TIME_GATE:
            for b in range(Bp):
                _times((address(s.d_z[b]), address(s.x[b]), address(d_attention[t, b]), Fp))
        if d_x.size > 0:
            for b in range(rows.size):
                for j in range(F):
                    d_x[b, t, j] = s.d_z[b, j] * (attention[b, j] if gate != NO_GATE else np.float32(1))
            if gate == FEATURE_GATE:
                multiply(s.d_z[:, :Fp], s.scores, weights.gate, F, False)
                for b in range(rows.size):
                    for j in range(F):
                        d_x[b, t, j] += s.d_z[b, j]


@jit
def unpack(s, gate, w_ih, w_hh, bias, gate_weight, gate_bias):
    """Take the gradients of the padded weights apart; `pack` the other way."""
    F, H = w_ih.shape[1], w_hh.shape[1]
    width = s.d_w.shape[0] // 4
    for q in range(4):
        for j in range(H):
            row, at = q * H + j, q * width + j
            for k in range(F):
                w_ih[row, k] = s.d_w[at, k]
            bias[row] = s.d_w[at, F]
            for k in range(H):
                w_hh[row, k] = s.d_w[at, F + 1 + k]
    if gate != NO_GATE:
        n = gate_bias.shape[0]
        for j in range(n):
            for k in range(n):
                gate_weight[j, k] = s.d_gate[j, k]
            gate_bias[j] = s.d_gate[j, n]
