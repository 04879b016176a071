"""The LSTM's time loop and its gradient, in two forms: recurrent weights on chip for all steps, or read at each step.

On chip: a program owns one variant's tile of the batch (M samples), holds w_hh and its own h and c, and walks through
all steps in one launch. By step: one launch a step, a program owns N hidden units of such a tile and reads the w_hh it
needs; for hidden sizes, or precisions, whose w_hh does not fit (`size.on_chip`). Both compute the same sums.

Layout: gates [V, T, B, 4*HP], hidden and cells [V, slots, B, HP] (slot t + 1 is the state after step t, slot 0 the one
before the first), w_hh [V, 4, HP, HP] packed with zeros; h_last, c_last, dh, dc [V, B, HP] float32. Units beyond H have
zero weights, so they stay at zero and send nothing back. A tile is loaded and stored in place of what it was computed
from; each element of a store depends on the load of that element, so that no barrier is needed. Offsets within one
step of one variant are 32 bits (B * 4*HP below 2^31), all others 64.
"""

from typing import no_type_check

import triton
import triton.language as tl

from vmapens.nn.kernels.triton.arithmetic import dot, load, sigmoid, store, tanh


@triton.jit
@no_type_check
def forward_on_chip(
    gates, cells, hidden, h_last, c_last, w_hh,
    T, B, gates_v, cells_v, hidden_v,
    KEEP: tl.constexpr, STATES: tl.constexpr, HP: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps: ``i, f, g, o = pre + h @ w_hh.T``, ``c = f * c + i * g``, ``h = o * tanh(c)``.

    Grid (ceil(B / M), V). gates holds the pre-activations and, where KEEP, is overwritten with the gates; cells slots
    1..T are written where KEEP, hidden slots 1..T where STATES. c_last holds c_0 at the start; hidden slot 0 is h_0.

    Bytes a step and variant: B*4*HP gates read and, where KEEP, written, B*2*HP states written; w_hh once in all.
    Operations: 2*B*4*HP*HP. Floor on one H200 at paper size, V = 1000: 11.0 ms (bf16, memory; 3.1 ms arithmetic).
    Twin: the time loop of `batched.forward`.
    """
    v = tl.program_id(1).to(tl.int64)
    b = tl.program_id(0) * M + tl.arange(0, M)
    inside = (b < B)[:, None]
    j = tl.arange(0, HP)
    tile = b[:, None] * HP + j[None, :]
    wide = b[:, None] * (4 * HP) + j[None, :]
    step, state, cell = gates + v * gates_v, hidden + v * hidden_v, cells + v * cells_v
    weight = w_hh + v * (4 * HP * HP) + j[None, :] * HP + j[:, None]  # transposed: rows are units of h
    w_i = tl.load(weight)
    w_f = tl.load(weight + HP * HP)
    w_g = tl.load(weight + 2 * HP * HP)
    w_o = tl.load(weight + 3 * HP * HP)
    h = load(state + tile, inside)
    c = load(c_last + v * B * HP + tile, inside)
    for _ in range(T):
        operand = h.to(w_i.dtype)
        i = sigmoid(dot(operand, w_i, load(step + wide, inside), PRECISION))
        g = tanh(dot(operand, w_g, load(step + 2 * HP + wide, inside), PRECISION))
        f = sigmoid(dot(operand, w_f, load(step + HP + wide, inside), PRECISION))
        c = f * c + i * g
        o = sigmoid(dot(operand, w_o, load(step + 3 * HP + wide, inside), PRECISION))
        h = o * tanh(c)
        state += B * HP
        cell += B * HP
        if KEEP:
            store(step + wide, i, inside)
            store(step + HP + wide, f, inside)
            store(step + 2 * HP + wide, g, inside)
            store(step + 3 * HP + wide, o, inside)
            store(cell + tile, c, inside)
        if STATES:
            store(state + tile, h, inside)
        step += B * 4 * HP
    store(h_last + v * B * HP + tile, h, inside)
    store(c_last + v * B * HP + tile, c, inside)


@triton.jit
@no_type_check
def backward_on_chip(
    gates, cells, d_pre, d_all, dh_, dc_, w_hh,
    T, B, H, all_v, all_b, all_t, zero,
    HAS_ALL: tl.constexpr, HP: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All steps backwards: the gradient of the gates before their nonlinearities, and of the state before the first.

    Grid (ceil(B / M), V). gates and cells as kept, all T and T + 1 of them; where HAS_ALL, d_all [V, B, H], in any
    strides, is the gradient of the states after the last step, and all_t before it that of the step before. dh_ and dc_
    hold the gradients of the last state at the start, of h_0 and c_0 at the end. Writes d_pre [V, T, B, 4*HP] in the
    precision of w_hh. zero is 0.0.

    Bytes a step and variant: B*4*HP gates and B*HP cells read, B*4*HP written; w_hh once in all. Operations:
    2*B*4*HP*HP. Floor on one H200 at paper size, V = 1000: 9.9 ms (bf16, memory; 3.1 ms arithmetic).
    Twin: the time loop of `batched.backward`.
    """
    v = tl.program_id(1).to(tl.int64)
    b = tl.program_id(0) * M + tl.arange(0, M)
    inside = (b < B)[:, None]
    j = tl.arange(0, HP)
    tile = b[:, None] * HP + j[None, :]
    weight = w_hh + v * (4 * HP * HP) + j[:, None] * HP + j[None, :]
    w_i = tl.load(weight)
    w_f = tl.load(weight + HP * HP)
    w_g = tl.load(weight + 2 * HP * HP)
    w_o = tl.load(weight + 3 * HP * HP)
    wide = b[:, None] * (4 * HP) + j[None, :]
    last = (v * T + T - 1) * B * (4 * HP)
    step, target, cell = gates + last, d_pre + last, cells + (v * (T + 1) + T) * B * HP
    dh = load(dh_ + v * B * HP + tile, inside)
    dc = load(dc_ + v * B * HP + tile, inside)
    given = d_all + v * all_v
    c = tl.load(cell + tile, mask=inside, other=0.0)
    # Triton lays a chain of products out for flash attention, where all warps share the columns: half of them would
    # do the work of the others here. Sums that it cannot fold into the products are no chain.
    nothing = tl.zeros([M, HP], tl.float32) + zero
    for _ in range(T):
        if HAS_ALL:
            dh += load(given + b.to(tl.int64)[:, None] * all_b + j[None, :], inside & (j < H)[None, :])
            given -= all_t
        cell -= B * HP
        # Loads ahead of their use, in the type of memory: they are on their way together, in half the registers. Two
        # come later, when there is room: all at once, the registers of half a tile go to memory at each step.
        o_kept = tl.load(step + 3 * HP + wide, mask=inside, other=0.0)
        i_kept = tl.load(step + wide, mask=inside, other=0.0)
        g_kept = tl.load(step + 2 * HP + wide, mask=inside, other=0.0)
        o, tanh_c = o_kept.to(tl.float32), tanh(c.to(tl.float32))
        d_o = (dh * tanh_c * o * (1.0 - o)).to(w_o.dtype)
        store(target + 3 * HP + wide, d_o, inside)
        dc += dh * o * (1.0 - tanh_c * tanh_c)
        dh = dot(d_o, w_o, nothing, PRECISION)
        i, g = i_kept.to(tl.float32), g_kept.to(tl.float32)
        d_i = (dc * g * i * (1.0 - i)).to(w_i.dtype)
        store(target + wide, d_i, inside)
        f_kept = tl.load(step + HP + wide, mask=inside, other=0.0)
        before = tl.load(cell + tile, mask=inside, other=0.0)
        dh += dot(d_i, w_i, nothing, PRECISION)
        d_g = (dc * i * (1.0 - g * g)).to(w_g.dtype)
        store(target + 2 * HP + wide, d_g, inside)
        dh += dot(d_g, w_g, nothing, PRECISION)
        f = f_kept.to(tl.float32)
        d_f = (dc * before.to(tl.float32) * f * (1.0 - f)).to(w_f.dtype)
        store(target + HP + wide, d_f, inside)
        dh += dot(d_f, w_f, nothing, PRECISION)
        dc *= f
        c = before
        step -= B * 4 * HP
        target -= B * 4 * HP
    store(dh_ + v * B * HP + tile, dh, inside)
    store(dc_ + v * B * HP + tile, dc, inside)


@triton.jit
@no_type_check
def forward_step(
    gates, before, cell, state, h_last, c_last, w_hh,
    B, gates_v, before_v, cell_v, state_v,
    KEEP: tl.constexpr, HP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step as in `forward_on_chip`, for N hidden units; w_hh is read.

    Grid (ceil(B / M) * HP / N, V). gates [V, B, 4*HP] of this step, before and state [V, B, HP] the hidden states
    before and after it, cell [V, B, HP] written where KEEP; each with its own stride of variants. c_last holds c before
    the step and after it; h_last is h after it.

    Bytes a step and variant: as on chip, and w_hh, 4*HP*HP. Operations: 2*B*4*HP*HP. Floor on one H200 at paper size,
    V = 1000, for all steps: 22 ms (TF32, float32 storage) and 17.5 ms for w_hh, both memory.
    Twin: one turn of the time loop of `batched.forward`.
    """
    v = tl.program_id(1).to(tl.int64)
    across: tl.constexpr = HP // N
    b = (tl.program_id(0) // across) * M + tl.arange(0, M)
    j = (tl.program_id(0) % across) * N + tl.arange(0, N)
    inside = (b < B)[:, None]
    tile = b[:, None] * HP + j[None, :]
    step = gates + v * gates_v + b[:, None] * (4 * HP) + j[None, :]
    i, f = load(step, inside), load(step + HP, inside)
    g, o = load(step + 2 * HP, inside), load(step + 3 * HP, inside)
    for start in range(0, HP, K):
        k = start + tl.arange(0, K)
        h = tl.load(before + v * before_v + b[:, None] * HP + k[None, :], mask=inside, other=0.0)
        weight = w_hh + v * (4 * HP * HP) + j[None, :] * HP + k[:, None]
        i = dot(h, tl.load(weight), i, PRECISION)
        f = dot(h, tl.load(weight + HP * HP), f, PRECISION)
        g = dot(h, tl.load(weight + 2 * HP * HP), g, PRECISION)
        o = dot(h, tl.load(weight + 3 * HP * HP), o, PRECISION)
    i, f, g, o = sigmoid(i), sigmoid(f), tanh(g), sigmoid(o)
    own = c_last + v * B * HP + tile
    c = f * load(own, inside) + i * g
    h_new = o * tanh(c)
    store(own, c, inside)
    store(h_last + v * B * HP + tile, h_new, inside)
    store(state + v * state_v + tile, h_new, inside)
    if KEEP:
        store(step, i, inside)
        store(step + HP, f, inside)
        store(step + 2 * HP, g, inside)
        store(step + 3 * HP, o, inside)
        store(cell + v * cell_v + tile, c, inside)


@triton.jit
@no_type_check
def backward_step(
    gates, cells, d_next, d_pre, d_all, dh_, dc_, w_hh,
    B, H, gates_v, cells_v, all_v, all_b,
    FIRST: tl.constexpr, LAST: tl.constexpr, HAS_ALL: tl.constexpr,
    HP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step as in `backward_on_chip`, for N hidden units; w_hh is read.

    Grid (ceil(B / M) * HP / N, V). gates, d_pre and d_next (that of the step after it) [V, B, 4*HP], all with stride
    gates_v; cells [V, 2, B, HP], before and after the step, stride cells_v; d_all [V, B, H]. dc_ is changed in place.
    FIRST: the last step of the sequence, whose dh is in dh_. LAST: there is no step; dh_ becomes the gradient of h_0.

    Bytes a step and variant: as on chip, d_next read again, and w_hh, 4*HP*HP. Operations: 2*B*4*HP*HP. Floor on one
    H200 at paper size, V = 1000, for all steps: 20 ms (TF32, float32 storage) and 17.5 ms for w_hh, both memory.
    Twin: one turn of the time loop of `batched.backward`.
    """
    v = tl.program_id(1).to(tl.int64)
    across: tl.constexpr = HP // N
    b = (tl.program_id(0) // across) * M + tl.arange(0, M)
    j = (tl.program_id(0) % across) * N + tl.arange(0, N)
    inside = (b < B)[:, None]
    tile = b[:, None] * HP + j[None, :]
    if FIRST:
        dh = load(dh_ + v * B * HP + tile, inside)
    else:
        dh = tl.zeros([M, N], tl.float32)
        for start in range(0, 4 * HP, K):
            k = start + tl.arange(0, K)
            later = d_next + v * gates_v + b[:, None] * (4 * HP) + k[None, :]
            weight = tl.load(w_hh + v * (4 * HP * HP) + k[:, None] * HP + j[None, :])
            dh = dot(tl.load(later, mask=inside, other=0.0), weight, dh, PRECISION)
    if LAST:
        store(dh_ + v * B * HP + tile, dh, inside)
    else:
        if HAS_ALL:
            given = d_all + v * all_v + b.to(tl.int64)[:, None] * all_b + j[None, :]
            dh += load(given, inside & (j < H)[None, :])
        place = v * gates_v + b[:, None] * (4 * HP) + j[None, :]
        i, f = load(gates + place, inside), load(gates + place + HP, inside)
        g, o = load(gates + place + 2 * HP, inside), load(gates + place + 3 * HP, inside)
        cell = cells + v * cells_v + tile
        tanh_c = tanh(load(cell + B * HP, inside))
        own = dc_ + v * B * HP + tile
        dc = load(own, inside) + dh * o * (1.0 - tanh_c * tanh_c)
        store(d_pre + place, dc * g * i * (1.0 - i), inside)
        store(d_pre + place + HP, dc * load(cell, inside) * f * (1.0 - f), inside)
        store(d_pre + place + 2 * HP, dc * i * (1.0 - g * g), inside)
        store(d_pre + place + 3 * HP, dh * tanh_c * o * (1.0 - o), inside)
        store(own, dc * f, inside)
