"""Logits, loss and their gradients from the last hidden state: one program a variant, so that none meets another.

PyTorch's own way, a batched product and a sum over the batch, chooses its algorithm by the number of variants. Twin:
`batched.head`.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmapens.nn.kernels import batched
from vmapens.nn.kernels.triton.arithmetic import dot
from vmapens.nn.kernels.triton.size import padded
from vmapens.nn.loss import TaskKind

_LARGEST = 2**13  # elements of a program's tile of the batch; twice as many of the weight


@triton.jit
@no_type_check
def classify(
    hidden, weight, bias, y, loss, d_hidden, d_weight, d_bias,
    B, H, C,
    BINARY: tl.constexpr, M: tl.constexpr, HP: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Mean loss of a variant's batch, and its gradients.

    Grid (V). hidden and d_hidden [V, B, H], weight and d_weight [V, C, H], bias and d_bias [V, C], loss [V], all
    float32; y [V, B], 0.0 or 1.0 where BINARY (C is 1), else classes. Products are exact float32.

    Bytes a variant: hidden read and written, weight and its gradient: 8 * H * (B + C). Operations: 6 * B * CP * HP.
    Floor on one H200 at paper size, V = 1000: 0.02 ms.
    Twin: `batched.head`.
    """
    v = tl.program_id(0).to(tl.int64)
    j, k = tl.arange(0, HP), tl.arange(0, CP)
    unit, real_class = (j < H)[None, :], k < C
    place = k[:, None] * H + j[None, :]
    w = tl.load(weight + v * C * H + place, mask=real_class[:, None] & unit, other=0.0)
    offset = tl.load(bias + v * C + k, mask=real_class, other=0.0)
    total, total_b, total_w = 0.0, tl.zeros([CP], tl.float32), tl.zeros([CP, HP], tl.float32)
    for start in range(0, B, M):
        b = start + tl.arange(0, M)
        inside = b < B
        states = (v * B + b)[:, None] * H + j[None, :]
        h = tl.load(hidden + states, mask=inside[:, None] & unit, other=0.0)
        logits = dot(h, tl.trans(w), tl.zeros([M, CP], tl.float32), "ieee") + offset[None, :]
        real = inside[:, None] & real_class[None, :]
        target = tl.load(y + v * B + b, mask=inside, other=0)
        if BINARY:
            p = 1.0 / (1.0 + tl.exp(-logits))
            hit = target[:, None]
            spread = p * (1.0 - p)
            lost = (hit - 1.0) * floored_log(1.0 - p) - hit * floored_log(p)
            change = (p - hit) / tl.where(spread < 1e-12, 1e-12, spread) * spread
        else:
            shown = tl.where(real_class[None, :], logits, float("-inf"))
            above = shown - tl.max(shown, axis=1)[:, None]
            powers = tl.exp(above)
            sums = tl.sum(powers, axis=1)[:, None]
            hit = k[None, :] == target[:, None]
            lost = tl.where(hit, tl.log(sums) - above, 0.0)
            change = powers / sums - tl.where(hit, 1.0, 0.0)
        total += tl.sum(tl.where(real, lost, 0.0))
        change = tl.where(real, change / B, 0.0)
        total_b += tl.sum(change, axis=0)
        total_w = dot(tl.trans(change), h, total_w, "ieee")
        d_h = dot(change, w, tl.zeros([M, HP], tl.float32), "ieee")
        tl.store(d_hidden + states, d_h, mask=inside[:, None] & unit)
    tl.store(loss + v, total / B)
    tl.store(d_bias + v * C + k, total_b, mask=real_class)
    tl.store(d_weight + v * C * H + place, total_w, mask=real_class[:, None] & unit)


@triton.jit
@no_type_check
def floored_log(p):
    """Logarithm, not below -100, as PyTorch's loss has it; NaN stays NaN."""
    log = tl.log(p)
    return tl.where(log < -100.0, -100.0, log)


def head(hidden: Tensor, weight: Tensor, bias: Tensor, y: Tensor, kind: TaskKind) -> tuple[Tensor, ...]:
    """Loss [V], and the gradients of hidden [V, B, H], weight [V, C, H] and bias [V, C]; y as in `LOSSES`.

    What no program can hold goes through the batched path.
    """
    (V, B, H), C = hidden.shape, weight.shape[1]
    if padded(H) * padded(C) > 2 * _LARGEST:
        return batched.head(hidden, weight, bias, y, kind)
    given = [tensor.contiguous() for tensor in (hidden, weight, bias, y)]
    out = [hidden.new_empty(V), *(torch.empty_like(tensor) for tensor in given[:3])]
    HP = padded(H)
    with torch.cuda.device_of(hidden):
        classify[(V,)](
            *given, *out, B, H, C,
            BINARY=kind == "binary", M=max(16, min(64, padded(B), _LARGEST // HP)), HP=HP, CP=padded(C),
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return tuple(out)
