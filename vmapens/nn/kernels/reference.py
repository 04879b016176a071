"""The recurrence in plain PyTorch: the truth that every other kernel is held against.

Nothing is clever here: a loop over steps, and the chain rule written out. Works in any floating precision on any
device. On a CPU each variant is computed by itself, so that it has the same bytes in any company.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vmapens.nn.kernels import Gradients, Inputs, Plan, States
from vmapens.nn.threads import over_variants


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`. Keeps nothing."""
    if inputs.x.is_cuda:
        return _forward(inputs.gathered(), plan), []
    parts: list[States] = [States(None, None, None)] * len(inputs.x)

    def work(v: int) -> None:
        with torch.no_grad():
            parts[v] = _forward(inputs.variant(v).gathered(), plan)

    over_variants(work, len(parts))
    return States(*map(_join, zip(*parts, strict=True))), []


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    if inputs.x.is_cuda:
        return _backward(inputs.gathered(), plan, grads, need_x)
    parts: dict[int, Gradients] = {}

    def work(v: int) -> None:
        with torch.no_grad():
            own = States(*(None if grad is None else grad[v : v + 1] for grad in grads))
            parts[v] = _backward(inputs.variant(v).gathered(), plan, own, need_x)

    over_variants(work, len(inputs.x))
    in_order = [parts[v] for v in range(len(inputs.x))]
    return Gradients(*map(_join, zip(*in_order, strict=True)))  # type: ignore[arg-type]


def _join(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None


def gate(inputs: Inputs, plan: Plan) -> Tensor | None:
    """Attention weights [V, B, T, F]: softmax over features per step, or over steps per feature; None without gate."""
    if inputs.gate_weight is None or inputs.gate_bias is None:
        return None
    rows = inputs.x if plan.gate_over == "feature" else inputs.x.mT
    scores = rows @ inputs.gate_weight.mT.unsqueeze(1) + inputs.gate_bias[:, None, None, :]
    weights = torch.softmax(scores, dim=-1)
    return weights if plan.gate_over == "feature" else weights.mT


def _steps(inputs: Inputs, gated: Tensor) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, ...]]]:
    """Hidden states h_0..h_T, cell states c_0..c_T and the gates (i, f, g, o) of each step."""
    hidden, cells = [inputs.h0], [inputs.c0]
    gates: list[tuple[Tensor, ...]] = []
    projected = gated @ inputs.w_ih.mT.unsqueeze(1)
    bias = (inputs.b_ih + inputs.b_hh).unsqueeze(1)
    for t in range(gated.shape[2]):
        i, f, g, o = (projected[:, :, t] + hidden[-1] @ inputs.w_hh.mT + bias).chunk(4, dim=-1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        cells.append(f * cells[-1] + i * g)
        hidden.append(o * torch.tanh(cells[-1]))
        gates.append((i, f, g, o))
    return hidden, cells, gates


def _forward(inputs: Inputs, plan: Plan) -> States:
    weights = gate(inputs, plan)
    hidden, cells, _ = _steps(inputs, inputs.x if weights is None else inputs.x * weights)
    return States(torch.stack(hidden[1:], dim=2) if plan.all_states else None, hidden[-1], cells[-1])


def _backward(inputs: Inputs, plan: Plan, grads: States, need_x: bool) -> Gradients:
    x, weights = inputs.x, gate(inputs, plan)
    gated = x if weights is None else x * weights
    hidden, cells, gates = _steps(inputs, gated)

    dh = torch.zeros_like(inputs.h0) if grads.h is None else grads.h
    dc = torch.zeros_like(inputs.c0) if grads.c is None else grads.c
    d_gates: list[Tensor] = []
    for t in reversed(range(x.shape[2])):
        i, f, g, o = gates[t]
        if grads.all is not None:
            dh = dh + grads.all[:, :, t]
        tanh_c = torch.tanh(cells[t + 1])
        dc = dc + dh * o * (1 - tanh_c**2)
        d_step = (dc * g * i * (1 - i), dc * cells[t] * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o))
        d_gates.append(torch.cat(d_step, dim=-1))
        dh, dc = d_gates[-1] @ inputs.w_hh, dc * f
    d_pre = torch.stack(d_gates[::-1], dim=2)  # [V, B, T, 4H], before the nonlinearities

    flat = d_pre.flatten(1, 2)
    d_w_ih = flat.mT @ gated.flatten(1, 2)
    d_w_hh = flat.mT @ torch.stack(hidden[:-1], dim=2).flatten(1, 2)
    d_bias = flat.sum(dim=1)

    d_x = d_pre @ inputs.w_ih.unsqueeze(1) if need_x or weights is not None else None  # so far of the gated x
    d_gate_weight = d_gate_bias = None
    if weights is not None and d_x is not None and inputs.gate_weight is not None:
        d_weights = d_x * x
        d_x = d_x * weights
        if plan.gate_over == "time":
            weights, d_weights = weights.mT, d_weights.mT
        rows = x if plan.gate_over == "feature" else x.mT
        d_scores = weights * (d_weights - (d_weights * weights).sum(dim=-1, keepdim=True))
        d_gate_weight = d_scores.flatten(1, 2).mT @ rows.flatten(1, 2)
        d_gate_bias = d_scores.flatten(1, 2).sum(dim=1)
        d_rows = d_scores @ inputs.gate_weight.unsqueeze(1)
        d_x = d_x + (d_rows if plan.gate_over == "feature" else d_rows.mT)
    return Gradients(d_x if need_x else None, dh, dc, d_w_ih, d_w_hh, d_bias, d_bias, d_gate_weight, d_gate_bias)
