"""Sizes of the Triton kernels' tiles, what fits on a chip, and weights packed to these sizes.

Triton wants powers of two and at least 16 on each side of a product, so H and F are padded to HP and FP in what a
kernel owns (weights, gates, states); the caller's own tensors are read and written under masks.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from vmapens.nn.kernels import Inputs, Plan

INTERPRETED: bool = triton.knobs.runtime.interpret  # when the kernels were made; on CPU tensors then
_ON_CHIP_SHARE = 0.6  # of a program's shared memory is for w_hh, the rest for the states on their way
_HOPPER_SHARED_BYTES = 227 * 2**10
_WIDEST = 1024  # features that a program holds at once; beyond that the batched path computes
_INPUT_PRECISION = {"fp32": "ieee", "tf32": "tf32", "bf16": "widened" if INTERPRETED else "ieee"}  # see `dot`


@dataclass(frozen=True)
class Size:
    """One problem's axes as the kernels see them.

    Args:
        V: Variants.
        B: Samples of a batch.
        T: Steps.
        F: Features.
        H: Hidden units.
        HP: H padded.
        FP: F padded.
        dtype: Of operands and of what is kept: float32, or bfloat16.
        precision: Of products of float32 operands, as Triton calls it.
        shared_bytes: Shared memory that a program may take on the device.
    """

    V: int
    B: int
    T: int
    F: int
    H: int
    HP: int
    FP: int
    dtype: torch.dtype
    precision: str
    shared_bytes: int

    @classmethod
    def of(cls, inputs: Inputs, plan: Plan) -> "Size":
        """The sizes of a problem."""
        V, B, H = inputs.h0.shape
        T, F = inputs.x.shape[2:]
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        precision = _INPUT_PRECISION[plan.precision]
        return cls(V, B, T, F, H, padded(H), padded(F), dtype, precision, _shared_bytes(inputs.x.device))

    @property
    def wide(self) -> bool:
        """More features than a program can hold."""
        return self.FP > _WIDEST

    @property
    def on_chip(self) -> bool:
        """Whether w_hh of one variant stays on chip for all steps."""
        return 4 * self.HP**2 * self.dtype.itemsize <= _ON_CHIP_SHARE * self.shared_bytes

    @property
    def batch_tile(self) -> int:
        """Samples of a program of the recurrence: 64, one tile of Hopper's matrix unit, unless the batch is small."""
        return 64 if self.B > 16 else 16

    @property
    def row_tile(self) -> int:
        """Rows of a program that holds all features of a row, so that a tile has 16,384 elements at most."""
        return min(64, max(16, 2**14 // self.FP), padded(self.T * self.B))

    @property
    def product_tile(self) -> int:
        """Rows and columns of a tile of `product` at most; exact float32 products leave the matrix units unused."""
        return 64 if self.precision == "ieee" and self.dtype == torch.float32 else 128

    @property
    def block(self) -> int:
        """Elements of the summed axis that a product takes at a time: 128 bytes of a row, a swizzled line."""
        return 128 // self.dtype.itemsize

    def options(self, *, stages: int) -> dict[str, int | bool]:
        """How a kernel is launched; `stages` loads are on their way in a loop, 1 where shared memory is full."""
        warps = 8 if max(self.HP, self.FP) > 64 else 4
        return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}

    @property
    def scratch_columns(self) -> int:
        """Row stride of what the backward hands from kernel to kernel: F and a column of ones, 32-byte rows."""
        return -(-(self.F + 1) // 16) * 16

    def packed_gates(self, weight: Tensor) -> Tensor:
        """w_ih [V, 4H, F] as [V, 4*HP, FP], w_hh [V, 4H, H] as [V, 4*HP, HP], zeros between, in the operands' type."""
        inner = weight.shape[-1]
        packed = weight.new_zeros(len(weight), 4, self.HP, padded(inner), dtype=self.dtype)
        packed[:, :, : self.H, :inner] = weight.unflatten(1, (4, self.H))
        return packed.flatten(1, 2)

    def packed_bias(self, inputs: Inputs) -> Tensor:
        """b_ih + b_hh as [V, 4*HP], float32."""
        packed = inputs.b_ih.new_zeros(len(inputs.b_ih), 4, self.HP)
        packed[:, :, : self.H] = (inputs.b_ih + inputs.b_hh).unflatten(1, (4, self.H))
        return packed.flatten(1, 2)

    def packed_gate(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The gate's weight as [V, FP, FP] in the operands' type, its bias as [V, FP], -inf beyond F, or dummies."""
        if inputs.gate_weight is None or inputs.gate_bias is None:
            return inputs.b_ih, inputs.b_ih
        count = len(inputs.gate_bias)
        weight = inputs.gate_weight.new_zeros(count, self.FP, self.FP, dtype=self.dtype)
        weight[:, : self.F, : self.F] = inputs.gate_weight
        bias = inputs.gate_bias.new_full((count, self.FP), float("-inf"))
        bias[:, : self.F] = inputs.gate_bias
        return weight, bias

    def packed_state(self, state: Tensor | None, count: int, like: Tensor) -> Tensor:
        """A state [V, B, H] as [V, B, HP], float32; zeros for None."""
        packed = like.new_zeros(count, self.B, self.HP, dtype=torch.float32)
        if state is not None:
            packed[..., : self.H] = state
        return packed


@cache
def _shared_bytes(device: torch.device) -> int:
    """The limit that Triton holds a program to; Hopper's on a CPU, where there is none."""
    if device.type != "cuda":
        return _HOPPER_SHARED_BYTES
    properties: dict[str, int] = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return properties["max_shared_mem"]


def padded(size: int) -> int:
    """The next power of two, 16 at least."""
    return max(16, 1 << (size - 1).bit_length())
