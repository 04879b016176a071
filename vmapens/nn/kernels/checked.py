"""The Triton kernels where they were seen to agree with the batched path, else that path: what a GPU runs.

Before a problem's sizes are first computed on a device, two variants and a few steps of them are computed both ways:
the kernels are compiled for exactly these sizes, and what does not compile, does not fit the chip, or does not agree is
not used. That is said once, as a warning, and the run goes on.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from vmapens.errors import first_line
from vmapens.nn.kernels import Classified, Gradients, Inputs, Kernel, Plan, States, agreement, batched
from vmapens.nn.loss import TaskKind

TOLERANCE = {"fp32": 1e-4, "tf32": 3e-2, "bf16": 2e-1}
"""Distances up to which a result agrees: a few times what rounding, carried back through 16 steps, makes of the
gradient of h_0, the worst of all (at the paper's size 7.5e-2 with bfloat16 operands cut off, not rounded)."""

_STEPS = 16  # Triton compiles once more for lengths that are not multiples of 16
_verdicts: dict[tuple[object, ...], bool] = {}
_said: set[tuple[object, str]] = set()  # devices and precisions that a warning was given for


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`."""
    return _kernel(inputs, plan).forward(inputs, plan)


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    return _kernel(inputs, plan).backward(inputs, plan, grads, kept, need_x)


def classify(inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: TaskKind) -> Classified:
    """See `Classify`; the head is checked by itself."""
    B, (C, H) = inputs.h0.shape[1], weight.shape[1:]
    key = (weight.device, "head", kind, B, C, H)
    head = batched.head
    if trusted(key, Plan(), lambda: agreement.head_distances((2, B, H, C), kind, weight.device)):
        from vmapens.nn.kernels.triton.head import head
    return batched.classify_by(_kernel(inputs, plan), head, inputs, plan, weight, bias, y, kind)


def memory(sizes: tuple[int, int, int, int], plan: Plan) -> tuple[int, int]:
    """See `Kernel.memory`: the larger of both."""
    from vmapens.nn.kernels import triton

    ours, twins = triton.memory(sizes, plan), batched.memory(sizes, plan)
    return max(ours[0], twins[0]), max(ours[1], twins[1])


def _kernel(inputs: Inputs, plan: Plan) -> Kernel:
    """The same answer for a forward and its backward: what was kept has that kernel's layout."""
    _, B, H = inputs.h0.shape
    T, F = inputs.x.shape[2:]
    sizes = (2, B, min(T, _STEPS), F, H)
    key = (inputs.x.device, plan.precision, plan.gate_over, plan.all_states, inputs.rows is None, sizes)

    def agrees() -> dict[str, float]:
        from vmapens.nn.kernels import triton

        pool = None if inputs.rows is None else B
        small = agreement.made_inputs(sizes, gate_over=plan.gate_over, pool=pool, device=inputs.x.device)
        return agreement.distances(triton, small, replace(plan, keep=True), twin=batched)

    if not trusted(key, plan, agrees):
        return batched
    from vmapens.nn.kernels import triton

    return triton


def trusted(key: tuple[object, ...], plan: Plan, distances: Callable[[], dict[str, float]]) -> bool:
    """Whether a kernel's distances from its twin are within the plan's tolerance; asked once a key.

    Args:
        key: What the kernel is compiled for.
        plan: Its precision decides the tolerance.
        distances: Compiles and runs the kernel. What it raises counts as disagreement.
    """
    if key in _verdicts:
        return _verdicts[key]
    reason = ""
    try:
        far = {name: value for name, value in distances().items() if not value <= TOLERANCE[plan.precision]}
        if far:
            reason = "they disagree with it: " + ", ".join(f"{name} by {far[name]:.1e}" for name in sorted(far))
    except Exception as error:  # a compiler can fail in any way
        reason = f"they failed: {first_line(error)}"
    _verdicts[key] = not reason
    if reason and (key[0], plan.precision) not in _said:
        _said.add((key[0], plan.precision))
        warnings.warn(
            f"on {key[0]} in {plan.precision} the batched path computes, which is slower, not the Triton kernels: "
            f"{reason}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _verdicts[key]
