"""Attention over time of one variant: a softmax over the steps of each feature, before the recurrence and after it.

The steps are the rows of every matrix here, and a batch's cells (b, f) lie side by side in the columns: Tp = T + 1,
padded to 16, rows of Bp * Fp numbers. Operations: ``2 B F T T`` forward, twice that backward. Twin: `reference.gate`.
"""

import numpy as np

from vmapens.nn.kernels.compiled.jit import jit
from vmapens.nn.kernels.compiled.lanes import Lanes, address, elementwise, exp
from vmapens.nn.kernels.compiled.matrix import multiply


@elementwise(2, 1)
def _maximum(a: Lanes, b: Lanes) -> Lanes:
    return a.call("maxnum", b)


@elementwise(3, 2)
def _exp_and_sum(scores: Lanes, largest: Lanes, total: Lanes) -> tuple[Lanes, Lanes]:
    e = exp(scores - largest)
    return e, total + e


@elementwise(2, 1)
def _quotient(a: Lanes, b: Lanes) -> Lanes:
    return a / b


@elementwise(3, 1)
def _add_product(a: Lanes, b: Lanes, total: Lanes) -> Lanes:
    return a.fma(b, total)


@elementwise(3, 1)
def _softmax_gradient(attention: Lanes, d_attention: Lanes, mean: Lanes) -> Lanes:
    return attention * (d_attention - mean)


@jit
def attend(pool, rows, weights, attention, columns):
    """Set the attention [Tp, Bp, Fp] of a batch; `columns` [Tp, Bp * Fp] is working memory."""
    _, T, F = pool.shape
    Fp, cells = attention.shape[2], columns.shape[1]
    columns[:] = 0
    for b in range(rows.size):
        for t in range(T):
            for j in range(F):
                columns[t, b * Fp + j] = pool[rows[b], t, j]
    columns[T, :] = 1
    flat = attention.reshape(attention.shape[0], cells)
    multiply(flat, weights.gate, columns, T + 1, False)
    largest, total = columns[0], columns[1]
    largest[:] = -np.inf
    total[:] = 0
    for t in range(T):
        _maximum((address(flat[t]), address(largest), address(largest), cells))
    for t in range(T):
        row = address(flat[t])
        _exp_and_sum((row, address(largest), address(total), row, address(total), cells))
    for t in range(T):
        _quotient((address(flat[t]), address(total), address(flat[t]), cells))


@jit
def attend_backward(pool, rows, weights, attention, d_attention, columns, cells_first, s, d_x):
    """From the attention's gradient to `s.d_gate` [Tp, Tp], and on to `d_x` [B, T, F] where that has a size.

    `d_attention` [Tp, Bp, Fp] is used up; `columns` [Tp, Bp * Fp] and `cells_first` [Bp * Fp, Tp] are working memory.
    """
    _, T, F = pool.shape
    Fp, cells = attention.shape[2], columns.shape[1]
    flat, d_flat, mean = attention.reshape(-1, cells), d_attention.reshape(-1, cells), columns[0]
    mean[:] = 0
    for t in range(T):
        _add_product((address(flat[t]), address(d_flat[t]), address(mean), address(mean), cells))
    for t in range(T):
        row = address(d_flat[t])
        _softmax_gradient((address(flat[t]), row, address(mean), row, cells))
    d_flat[T:] = 0
    cells_first[:] = 0
    for b in range(rows.size):
        for j in range(F):
            place = b * Fp + j
            for t in range(T):
                cells_first[place, t] = pool[rows[b], t, j]
            cells_first[place, T] = 1
    multiply(s.d_gate, d_flat, cells_first, cells, False)
    if d_x.size > 0:
        multiply(columns, weights.gate.T, d_flat, T, False)
        for b in range(rows.size):
            for t in range(T):
                for j in range(F):
                    d_x[b, t, j] += columns[t, b * Fp + j]
