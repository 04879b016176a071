"""Adam over the columns of one parameter, all variants at once, each with its own learning rate and weight decay."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmapens.nn.kernels.triton.size import padded

_BLOCK = 1024


@triton.jit
@no_type_check
def step(
    theta, grad, first, second, step_size, decay,
    count, theta_v, grad_v, first_v, second_v, root_correction, rest_1, beta_2, rest_2, epsilon,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One step, in place.

    Grid (ceil(count / BLOCK), V). theta, first and second [V, count], grad [V, count], each with its own stride of
    variants; step_size (lr / (1 - beta_1^t)) and decay [V]; all float32. root_correction is sqrt(1 - beta_2^t);
    rest_1 and rest_2 are 1 - beta_1 and 1 - beta_2, whose digits a difference in float32 would lose.

    Bytes: each element of the four is read, and of theta, first and second written: 28 * V * count. Operations: about
    15 * V * count. Floor on one H200 at paper size, V = 1000: 1.6 ms (memory).
    Twin: `ensemble.optimizer.update_`, whose order of operations it keeps.
    """
    v = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < count
    value = tl.load(theta + v * theta_v + k, mask=inside, other=0.0)
    g = tl.load(grad + v * grad_v + k, mask=inside, other=0.0) + value * tl.load(decay + v)
    m = tl.load(first + v * first_v + k, mask=inside, other=0.0)
    m += rest_1 * (g - m)
    s = tl.load(second + v * second_v + k, mask=inside, other=0.0) * beta_2 + rest_2 * g * g
    value -= m / (tl.sqrt(s) / root_correction + epsilon) * tl.load(step_size + v)
    tl.store(first + v * first_v + k, m, mask=inside)
    tl.store(second + v * second_v + k, s, mask=inside)
    tl.store(theta + v * theta_v + k, value, mask=inside)


def update_(
    theta: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step_size: Tensor,
    decay: Tensor,
    root_correction: float,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """Take one step of some columns [V, n] in place; theta, first and second are rows of larger tensors."""
    V, count = theta.shape
    grad = grad.contiguous()
    block = min(_BLOCK, padded(count))
    with torch.cuda.device_of(theta):
        step[(triton.cdiv(count, block), V)](
            theta, grad, first, second, step_size, decay,
            count, theta.stride(0), grad.stride(0), first.stride(0), second.stride(0),
            root_correction, 1 - betas[0], betas[1], 1 - betas[1], epsilon,
            BLOCK=block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
