"""Gather, attention over features, softmax * x and the input projection in one kernel, and their gradient in another.

A program owns M rows of one variant; row r = t * B + b is step t of sample b of its batch, so that all rows of a step
lie together. A row's F features stay on chip from the gather to the projection: neither the batch nor its attention
ever stands in memory. Programs of one variant follow each other, so that its weights stay in the L2 cache.

Weights come packed (`pack`): padded with zeros to HP and FP, powers of two, in the operands' precision; the gate's bias
is padded with -inf, so that a column that does not exist has no attention. Products accumulate in float32.
"""

from typing import no_type_check

import triton
import triton.language as tl

from vmapens.nn.kernels.triton.arithmetic import dot


@triton.jit
@no_type_check
def rows_of(rows, v, r, B, x_v, x_n, x_t, inside, HAS_ROWS: tl.constexpr):
    """Offsets in x [V, N, T, F] of the rows r of variant v, in elements, 64 bits: sample rows[v, b] (or b), step t."""
    t = (r // B).to(tl.int64)
    b = (r % B).to(tl.int64)
    sample = tl.load(rows + v * B + b, mask=inside, other=0) if HAS_ROWS else b
    return v * x_v + sample * x_n + t * x_t


@triton.jit
@no_type_check
def attend(place, inside, gate_w, gate_b, v, F, x_f, FP: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    """Attention [M, FP] of the rows at `place`: softmax(x @ gate_w.T + gate_b), K features of the product at a time."""
    f = tl.arange(0, FP)
    bias = tl.load(gate_b + v * FP + f)
    scores = tl.zeros([place.shape[0], FP], tl.float32)
    for start in range(0, FP, K):
        k = start + tl.arange(0, K)
        weight = tl.load(gate_w + v * FP * FP + f[None, :] * FP + k[:, None])
        part = tl.load(
            place[:, None] + (k.to(tl.int64) * x_f)[None, :], mask=inside[:, None] & (k < F)[None, :], other=0.0
        )
        scores = dot(part.to(weight.dtype), weight, scores, PRECISION)
    scores += bias[None, :]
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
@no_type_check
def project(
    x, rows, gate_w, gate_b, w_ih, bias, gates,
    T, B, F, x_v, x_n, x_t, x_f,
    HAS_ROWS: tl.constexpr, HAS_GATE: tl.constexpr, HP: tl.constexpr, FP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gates before their nonlinearities: ``(x * softmax(x @ gate_w.T + gate_b)) @ w_ih.T + bias``.

    Grid (ceil(T*B / M), V). x [V, N, T, F] float32 in any strides, rows [V, B] int64; gate_w [V, FP, FP], gate_b
    [V, FP]; w_ih [V, 4*HP, FP], bias [V, 4*HP]; writes gates [V, T*B, 4*HP]. Without a gate x itself is projected.

    Bytes a variant: reads 4*T*B*F of x and the weights once (from then on the L2 cache gives them to each program),
    writes T*B*4*HP gates. Operations: 2*T*B*FP*(FP + 4*HP). Floor on one H200 at paper size, V = 1000: 8.0 ms (bf16,
    arithmetic; 4.4 ms memory), 15.8 ms (TF32; 8.8 ms memory).
    Twin: `batched.forward` up to the time loop.
    """
    v = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * M + tl.arange(0, M)
    inside = r < T * B
    f = tl.arange(0, FP)
    place = x + rows_of(rows, v, r, B, x_v, x_n, x_t, inside, HAS_ROWS)
    values = tl.load(
        place[:, None] + (f.to(tl.int64) * x_f)[None, :], mask=inside[:, None] & (f < F)[None, :], other=0.0
    )
    if HAS_GATE:
        values *= attend(place, inside, gate_w, gate_b, v, F, x_f, FP, K, PRECISION)
    operand = values.to(w_ih.dtype.element_ty)
    target = gates + (v * T * B + r)[:, None] * (4 * HP)
    for start in range(0, 4 * HP, N):
        n = start + tl.arange(0, N)
        weight = tl.load(w_ih + v * (4 * HP * FP) + n[None, :] * FP + f[:, None])
        total = tl.zeros([M, N], tl.float32) + tl.load(bias + v * (4 * HP) + n)[None, :]
        part = dot(operand, weight, total, PRECISION)
        tl.store(target + n[None, :], part.to(gates.dtype.element_ty), mask=inside[:, None])


@triton.jit
@no_type_check
def gate_gradient(
    x, rows, gate_w, gate_b, w_ih, d_pre, gated, d_scores, d_x,
    T, B, F, x_v, x_n, x_t, x_f, scratch_r,
    HAS_ROWS: tl.constexpr, NEED_X: tl.constexpr, HP: tl.constexpr, FP: tl.constexpr,
    M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the gradient of the gates back to that of the attention's scores; the attention is computed again.

        a = softmax(x @ gate_w.T + gate_b)      gated = x * a           d_gated = d_pre @ w_ih
        d_scores = a * (d_gated * x - sum_f(d_gated * x * a))           d_x = d_gated * a   (its first half)

    Grid (ceil(T*B / M), V). Inputs as `project`; d_pre [V, T*B, 4*HP]. Writes gated and d_scores [V, T*B, scratch_r]
    for the products over all rows that are the weights' gradients, in gated a column of ones after the F real ones, in
    both zeros after that; and d_x [V, B, T, F] float32 where NEED_X. d_pre is in the operands' precision. Columns from
    FP on, where F is FP, are the caller's to fill.

    Bytes a variant: reads 4*T*B*F of x and T*B*4*HP gates, writes 2*T*B*F. Operations: 2*T*B*FP*(FP + 4*HP). Floor on
    one H200 at paper size, V = 1000: with the products that follow, 8.0 ms + 8.6 ms (bf16), 15.8 ms + 16.9 ms (TF32).
    Twin: `batched.backward` after the time loop.
    """
    v = tl.program_id(1).to(tl.int64)
    r = tl.program_id(0) * M + tl.arange(0, M)
    inside = r < T * B
    f = tl.arange(0, FP)
    place = x + rows_of(rows, v, r, B, x_v, x_n, x_t, inside, HAS_ROWS)
    real = inside[:, None] & (f < F)[None, :]
    source = d_pre + (v * T * B + r)[:, None] * (4 * HP)
    d_gated = tl.zeros([M, FP], tl.float32)
    for start in range(0, 4 * HP, K):
        k = start + tl.arange(0, K)
        part = tl.load(source + k[None, :], mask=inside[:, None], other=0.0)
        weight = tl.load(w_ih + v * (4 * HP * FP) + k[:, None] * FP + f[None, :])
        d_gated = dot(part, weight, d_gated, PRECISION)
    attention = attend(place, inside, gate_w, gate_b, v, F, x_f, FP, K, PRECISION)
    values = tl.load(place[:, None] + (f.to(tl.int64) * x_f)[None, :], mask=real, other=0.0)
    target = (v * T * B + r)[:, None] * scratch_r + f[None, :]
    written = inside[:, None] & (f < scratch_r)[None, :]
    with_ones = tl.where((f == F)[None, :], 1.0, values * attention)
    tl.store(gated + target, with_ones.to(gated.dtype.element_ty), mask=written)
    if NEED_X:
        t = (r // B).to(tl.int64)
        b = (r % B).to(tl.int64)
        own = d_x + (((v * B + b) * T + t) * F)[:, None] + f[None, :]
        tl.store(own, d_gated * attention, mask=real)
    d_attention = d_gated * values
    mean = tl.sum(d_attention * attention, axis=1)
    change = attention * (d_attention - mean[:, None])
    tl.store(d_scores + target, change.to(d_scores.dtype.element_ty), mask=written)
