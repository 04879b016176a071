"""Compile the Triton kernels of one problem for an H200 on a machine that has none; one line of JSON for each kernel.

`python tests/hopper.py PRECISION V,B,T,F,H`, without TRITON_INTERPRET. The kernels' own host code runs on tensors
without memory, and each launch compiles instead: to machine code, by the assembler that Triton brings along.
"""

import json
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from vmapens.nn.kernels import Inputs, Plan, triton
from vmapens.nn.kernels.triton.head import head


class Hopper:
    """What the compiler asks a driver for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(precision: str, sizes: str) -> None:
    driver.set_active(Hopper())
    launch = jit.JITFunction.run
    seen: set[int] = set()

    def compile_only(kernel: Any, *arguments: Any, grid: object, warmup: bool, **options: Any) -> None:
        made = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        if id(made) not in seen:
            seen.add(id(made))
            unit = "wgmma" if "wgmma" in made.asm["ptx"] else "mma" if "mma.sync" in made.asm["ptx"] else "none"
            line = {"kernel": kernel.fn.__name__, "shared_bytes": made.metadata.shared, "matrix_unit": unit}
            print(json.dumps(line | {"machine_code_bytes": len(made.asm["cubin"])}), flush=True)  # noqa: T201

    jit.JITFunction.run = compile_only
    V, B, T, F, H = map(int, sizes.split(","))
    shapes = [(1, 1000, T, F), (V, B, H), (V, B, H), (V, 4 * H, F), (V, 4 * H, H), (V, 4 * H), (V, 4 * H), (V, F, F)]
    tensors = [torch.empty(shape, device="meta") for shape in [*shapes, (V, F)]]
    rows = torch.empty(V, B, dtype=torch.int64, device="meta")
    inputs = Inputs(tensors[0].expand(V, 1000, T, F), *tensors[1:], rows)
    for keep in (True, False):
        plan = Plan("feature", keep=keep, precision=precision)  # type: ignore[arg-type]
        states, kept = triton.forward(inputs, plan)
        if keep:
            triton.backward(inputs, plan, states._replace(all=None), kept, False)
    for kind, classes, of_y in (("binary", 1, torch.float32), ("multiclass", 25, torch.int64)):
        weight, bias = (torch.empty(shape, device="meta") for shape in [(V, classes, H), (V, classes)])
        head(states.h, weight, bias, torch.empty(V, B, dtype=of_y, device="meta"), kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
