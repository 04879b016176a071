"""How far a kernel is from its plain twin: made problems, all outputs and gradients, one relative distance each.

Used by the tests, by the check on a GPU, and by a kernel's first use on a device (`checked`).
"""

from typing import Literal

import torch
from torch import Tensor

from vmapens.nn.kernels import Gradients, Inputs, Kernel, Plan, States, reference
from vmapens.nn.loss import TaskKind


def made_inputs(
    sizes: tuple[int, int, int, int, int],
    *,
    gate_over: Literal["feature", "time"] | None = None,
    pool: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Random inputs at the scale of a model's first steps of training.

    Args:
        sizes: V, B, T, F, H.
        gate_over: Axis of the gate; None for none.
        pool: Samples N that the variants share and take their rows from; None gives each variant a batch of its own.
        dtype: Of every floating tensor.
        device: Where they are drawn: the same on every device of one kind only.
        seed: Of the drawing.
    """
    V, B, T, F, H = sizes
    n = {"feature": F, "time": T, None: 0}[gate_over]
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device=device).mul_(scale)

    rows = None if pool is None else torch.randint(pool, (V, B), generator=generator, device=device)
    return Inputs(
        normal(V, B, T, F) if pool is None else normal(pool, T, F).expand(V, pool, T, F),
        normal(V, B, H, scale=0.5),
        normal(V, B, H, scale=0.5),
        normal(V, 4 * H, F, scale=H**-0.5),
        normal(V, 4 * H, H, scale=H**-0.5),
        normal(V, 4 * H, scale=H**-0.5),
        normal(V, 4 * H, scale=H**-0.5),
        normal(V, n, n, scale=n**-0.5) if n else None,
        normal(V, n, scale=n**-0.5) if n else None,
        rows,
    )


def made_gradients(inputs: Inputs, plan: Plan, *, seed: int = 1) -> States:
    """Random gradients of the states that the plan asks for."""
    V, B, H = inputs.h0.shape
    generator = torch.Generator(inputs.x.device).manual_seed(seed)
    shapes = [(V, B, inputs.x.shape[2], H) if plan.all_states else None, (V, B, H), (V, B, H)]
    kind = {"dtype": inputs.x.dtype, "device": inputs.x.device}
    return States(*(None if shape is None else torch.randn(shape, generator=generator, **kind) for shape in shapes))  # type: ignore[call-overload]


def results(kernel: Kernel, inputs: Inputs, plan: Plan, grads: States, *, need_x: bool = False) -> dict[str, Tensor]:
    """States (`all`, `h`, `c`) and gradients (`d_x`, `d_h0`, ...) by name, those that are there."""
    states, kept = kernel.forward(inputs, plan)
    gradients = kernel.backward(inputs, plan, grads, kept, need_x)
    found = {**states._asdict(), **{f"d_{name}": value for name, value in gradients._asdict().items()}}
    return {name: value for name, value in found.items() if value is not None}


def distances(
    kernel: Kernel, inputs: Inputs, plan: Plan, *, need_x: bool = False, twin: Kernel = reference
) -> dict[str, float]:
    """``|got - truth| / |truth|`` of each output and gradient, the truth being the twin's in float64.

    Returns:
        Name to distance, in the Euclidean norm; inf where an entry is NaN or of another shape, or one side lacks it.
    """
    grads = made_gradients(inputs, plan)
    got = results(kernel, inputs, plan, grads, need_x=need_x)
    exact = Inputs(*(_double(t) for t in inputs)), States(*(_double(t) for t in grads))  # type: ignore[arg-type]
    truth = results(twin, exact[0], plan, exact[1], need_x=need_x)
    return {
        name: _distance(got.get(name), truth.get(name))
        for name in (*States._fields, *_GRADIENTS)
        if name in got | truth
    }


def made_head(
    sizes: tuple[int, int, int, int], kind: TaskKind, device: torch.device | str = "cpu", *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random hidden states, weight, bias and labels of a problem of sizes V, B, H, C."""
    V, B, H, C = sizes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    y = torch.randint(2 if kind == "binary" else C, (V, B), generator=generator, device=device)
    return normal(V, B, H), normal(V, C, H).mul_(H**-0.5), normal(V, C), y.float() if kind == "binary" else y


def head_distances(sizes: tuple[int, int, int, int], kind: TaskKind, device: torch.device | str) -> dict[str, float]:
    """Distances of the Triton head's loss and gradients from the batched one's in float64."""
    from vmapens.nn.kernels import batched
    from vmapens.nn.kernels.triton.head import head

    given = made_head(sizes, kind, device)
    got, truth = head(*given, kind), batched.head(*(_double(t) for t in given), kind)  # type: ignore[call-arg, arg-type]
    names = ("loss", "d_hidden", "d_weight", "d_bias")
    return {name: _distance(a, b) for name, a, b in zip(names, got, truth, strict=True)}


_GRADIENTS = tuple(f"d_{name}" for name in Gradients._fields)


def _double(tensor: Tensor | None) -> Tensor | None:
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor


def _distance(got: Tensor | None, truth: Tensor | None) -> float:
    if got is None or truth is None or got.shape != truth.shape:
        return float("inf")
    scale = truth.norm().item()
    distance = (got.double() - truth).norm().item() / (scale if scale > 0 else 1.0)
    return distance if distance == distance else float("inf")
