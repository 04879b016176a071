"""What the Triton kernels compute with: products, the gates' nonlinearities, tiles in and out of memory."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def dot(a, b, total, PRECISION: tl.constexpr):
    """``a @ b + total``, summed in float32; PRECISION is that of float32 operands, or `widened`.

    `widened` is for Triton's interpreter, which multiplies bfloat16 as the integers that hold its bits: the operands
    become float32 first, and the products are the same, since that of two bfloat16 numbers is exact in float32.
    """
    if PRECISION == "widened":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
@no_type_check
def tanh(x):
    """``1 - 2 / (1 + exp(2 x))``: within 1.2e-7 of the truth, and +-1 where the power is 0 or infinite."""
    return 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))


@triton.jit
@no_type_check
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
@no_type_check
def load(place, inside):
    """A tile in float32; rows outside the batch are zero."""
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def store(place, value, inside):
    """A tile, rounded to the type of its place."""
    tl.store(place, value.to(place.dtype.element_ty), mask=inside)
