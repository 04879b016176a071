"""The weights' gradients: a product of two tall matrices over all their rows, one for each variant.

Each program owns one tile of the result and adds up all rows in their order, so that a result is the same bytes in
every run: no atomic additions, no splitting of the sum.
"""

from typing import no_type_check

import triton
import triton.language as tl

from vmapens.nn.kernels.triton.arithmetic import dot
from vmapens.nn.kernels.triton.attention import rows_of


@triton.jit
@no_type_check
def product(
    left, right, rows, out, sums,
    T, B, left_columns, left_group, left_units, left_v, left_r, right_columns, right_width, right_v, right_r,
    x_n, x_t, x_f,
    GATHER: tl.constexpr, HAS_ROWS: tl.constexpr, ONES: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``out = left.T @ right`` over the T*B rows of one variant, and ``sums``, the column sums of left.

    Grid (ceil(left_columns / M) * ceil((right_columns + ONES) / N), V). left [V, T*B, left_columns] with row stride
    left_r; its columns come in groups of left_group, of which left_units are real (HP and H for gates), and the others
    are not written. right [V, T*B, right_width] with row stride right_r, its first right_columns real, or, where
    GATHER, x [V, N, T, F] read by `rows_of`. out [V, rows, right_columns] and sums [V, rows] in float32, rows = groups
    * left_units. The sums come free: where ONES is 1, a column of ones stands after the last real one of right (in
    memory, or made here where GATHER). Widths that are multiples of 16 are loaded 16 bytes at a time.

    Bytes a variant: each tile reads M + N columns of all rows, mostly from the L2 cache. Operations: 2*T*B *
    left_columns * right_columns. Floor on one H200 at paper size, V = 1000, for d_w_ih and d_w_hh: 8.6 ms (bf16),
    16.9 ms (TF32).
    Twin: the `baddbmm_` of `batched.backward`.
    """
    v = tl.program_id(1).to(tl.int64)
    across = tl.cdiv(right_columns + ONES, N)
    m = (tl.program_id(0) // across) * M + tl.arange(0, M)
    n = (tl.program_id(0) % across) * N + tl.arange(0, N)
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, T * B, K):
        r = start + tl.arange(0, K)
        inside = r < T * B
        a = tl.load(
            left + v * left_v + r.to(tl.int64)[None, :] * left_r + m[:, None],
            mask=inside[None, :] & (m < left_columns)[:, None],
            other=0.0,
        )
        if GATHER:
            place = right + rows_of(rows, v, r, B, right_v, x_n, x_t, inside, HAS_ROWS)
            b = tl.load(
                place[:, None] + (n.to(tl.int64) * x_f)[None, :],
                mask=inside[:, None] & (n < right_columns)[None, :],
                other=0.0,
            )
            b = tl.where((n == right_columns)[None, :], 1.0, b).to(left.dtype.element_ty)
        else:
            b = tl.load(
                right + v * right_v + r.to(tl.int64)[:, None] * right_r + n[None, :],
                mask=inside[:, None] & (n < right_width)[None, :],
                other=0.0,
            )
        total = dot(a, b, total, PRECISION)
    row = (m // left_group) * left_units + m % left_group
    real = (m < left_columns) & (m % left_group < left_units)
    own = v * (left_columns // left_group * left_units) + row
    tl.store(out + own[:, None] * right_columns + n[None, :], total, mask=real[:, None] & (n < right_columns)[None, :])
    if ONES:
        place = sums + own[:, None] + tl.zeros([1, N], tl.int64)
        tl.store(place, total, mask=real[:, None] & (n == right_columns)[None, :])
