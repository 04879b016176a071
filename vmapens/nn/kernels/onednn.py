"""The recurrence by oneDNN's fused LSTM, one variant per thread: the CPU path.

oneDNN is what `torch.nn.LSTM` itself uses on a CPU, and near the machine's limit for one variant; running one variant
on each core beats cutting every variant in two (measured: 1.65 times at small size). Batched matrix products over all
variants lose, because the state of many variants leaves the cache.

Bytes moved and operations per variant: as `torch.nn.LSTM`, plus the gate: 2 * B*T*F*F operations forward, twice that
backward. What is kept for the backward stays one tensor per variant: stacking it would only copy it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vmapens.nn.isolation import aligned
from vmapens.nn.kernels import Gradients, Inputs, Plan, States
from vmapens.nn.threads import over_variants

_LSTM_MODE = 2  # of at::native's rnn modes: relu, tanh, lstm, gru
_KEPT_PER_VARIANT = 4  # steps [T, B, H], last cell [B, H], workspace, attention weights (or an empty tensor)


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`. float32 on a CPU only."""
    count, B, H = inputs.h0.shape
    T = inputs.x.shape[2]
    out = States(
        inputs.x.new_empty(count, B, T, H) if plan.all_states else None,
        inputs.x.new_empty(count, B, H),
        inputs.x.new_empty(count, B, H),
    )
    kept: list[tuple[Tensor, ...]] = [()] * count

    def work(v: int) -> None:
        one = _one(inputs, v)
        with torch.set_grad_enabled(plan.keep):  # without it oneDNN makes no workspace
            weights = _gate(one, plan)
            states, h, c, workspace = _lstm(_gated_steps(one, weights), one)
        _copy(out, v, States(states.transpose(0, 1), h, c))
        if plan.keep:
            kept[v] = (states, c, workspace, weights)

    over_variants(work, count)
    return out, [tensor for entry in kept for tensor in entry]


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    wanted: tuple[Tensor | None, ...] = (inputs.x if need_x else None, *inputs[1:-1])
    out = Gradients(*(None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in wanted))  # type: ignore[arg-type]

    def work(v: int) -> None:
        one = _one(inputs, v)
        own = States(*(None if grad is None else aligned(grad[v]) for grad in grads))
        with torch.enable_grad():
            if kept:
                states, c, workspace, weights = kept[_KEPT_PER_VARIANT * v : _KEPT_PER_VARIANT * (v + 1)]
                gated = _gated_steps(one, weights)
            else:
                weights = _gate(one, plan)
                gated = _gated_steps(one, weights)
                states, _, c, workspace = _lstm(gated, one)
        with torch.no_grad():
            d_gated, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_h0, d_c0 = _lstm_backward(gated, one, states, c, workspace, own)
            d_x, d_gate_weight, d_gate_bias = _gate_backward(one, plan, weights, d_gated.transpose(0, 1), need_x)
            _copy(out, v, (d_x, d_h0, d_c0, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_gate_weight, d_gate_bias))

    over_variants(work, len(inputs.x))
    return out


def _one(inputs: Inputs, v: int) -> Inputs:
    """Variant v without its axis, each tensor as if it stood alone."""
    own = Inputs(*(None if t is None else t.detach()[v] for t in inputs))  # type: ignore[arg-type]
    if own.rows is not None:
        own = own._replace(x=own.x.index_select(0, own.rows), rows=None)
    return Inputs(*(None if t is None else aligned(t) for t in own))  # type: ignore[arg-type]


def _copy(out: tuple[Tensor | None, ...], v: int, result: tuple[Tensor | None, ...]) -> None:
    for place, tensor in zip(out, result, strict=True):
        if place is not None and tensor is not None:
            place[v].copy_(tensor)


def _gate(one: Inputs, plan: Plan) -> Tensor:
    """Attention weights [B, T, F] of one variant; an empty tensor where there is no gate."""
    if one.gate_weight is None:
        return one.x.new_empty(0)
    rows = one.x if plan.gate_over == "feature" else one.x.mT
    weights = torch.softmax(F.linear(rows, one.gate_weight, one.gate_bias), dim=-1)
    return weights if plan.gate_over == "feature" else weights.mT


def _gated_steps(one: Inputs, weights: Tensor) -> Tensor:
    """x, or x * attention, with the steps in front as oneDNN wants it: [T, B, F]."""
    steps = one.x.transpose(0, 1)
    if one.gate_weight is None:
        return steps.contiguous()
    return torch.mul(steps, weights.transpose(0, 1), out=torch.empty(steps.shape, dtype=steps.dtype))


def _lstm(gated: Tensor, one: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States [T, B, H], last h and c [B, H], and the workspace (empty where gradients are off)."""
    weights = (one.w_ih, one.w_hh, one.b_ih, one.b_hh)
    states, h, c, workspace = torch.ops.aten.mkldnn_rnn_layer(
        gated, *weights, one.h0, one.c0, False, [], _LSTM_MODE, one.h0.shape[-1], 1, True, False, False, True
    )
    return states, h, c, states.new_empty(0) if workspace is None else workspace


def _lstm_backward(
    gated: Tensor, one: Inputs, states: Tensor, c: Tensor, workspace: Tensor, grads: States
) -> tuple[Tensor, ...]:
    """Gradients of gated [T, B, F], w_ih, w_hh, b_ih, b_hh, h0, c0."""
    all_states = None if grads.all is None else grads.all.transpose(0, 1).contiguous()
    weights = (one.w_ih, one.w_hh, one.b_ih, one.b_hh)
    shape: tuple[object, ...] = (False, _LSTM_MODE, one.h0.shape[-1], 1, True, True, False, [], False)
    result: tuple[Tensor, ...] = torch.ops.aten.mkldnn_rnn_layer_backward(
        gated, *weights, one.h0, one.c0, states, states[-1], c, all_states, grads.h, grads.c, *shape, workspace
    )
    return result


def _gate_backward(
    one: Inputs, plan: Plan, weights: Tensor, d_gated: Tensor, need_x: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x [B, T, F] (None if not needed) and of the gate's weight and bias, from that of the gated x."""
    if one.gate_weight is None:
        return d_gated, None, None
    over_time = plan.gate_over == "time"
    d_weights = d_gated * one.x
    rows, softmax, d_softmax = (t.mT.contiguous() if over_time else t for t in (one.x, weights, d_weights))
    d_scores = torch.ops.aten._softmax_backward_data(d_softmax, softmax, -1, softmax.dtype)
    flat = d_scores.flatten(0, 1)
    d_x = None
    if need_x:
        d_rows = d_scores @ one.gate_weight
        d_x = d_gated * weights + (d_rows.mT if over_time else d_rows)
    return d_x, flat.mT @ rows.flatten(0, 1), flat.sum(dim=0)
