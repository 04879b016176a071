"""The recurrence of all variants at once in plain PyTorch: one batched matrix product a step, its backward by hand.

For any device and floating precision; what a GPU without Triton runs. On a CPU it loses to `onednn`, since the state of
many variants leaves the cache, and a variant's bytes depend on its neighbours there.

Steps lead the batch: what is kept is the gates after their nonlinearities [V, T, B, 4H], the cells [V, T, B, H] and
the hidden states h_0..h_T [V, T+1, B, H]. The steps are worked on in chunks, so that the batch, its attention and the
gradients on their way never stand in memory for all steps (time attention excepted: its softmax needs them all);
attention is computed again in the backward.

Bytes moved a step and variant, beyond the operands of the products: 4H*B written and read five times forward, four
times backward; w_hh read once each way. Operations: 2*B*4H*(F + H) forward, twice that backward; the gate 2*B*F*F and
again three times that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from vmapens.nn.kernels import Classified, Gradients, Inputs, Kernel, Plan, States
from vmapens.nn.loss import TaskKind

Head = Callable[[Tensor, Tensor, Tensor, Tensor, TaskKind], tuple[Tensor, ...]]
"""(hidden [V, B, H], weight [V, C, H], bias [V, C], y [V, B], kind) -> loss [V], and gradients of the first three."""

_ROOM_BYTES = 2**30  # for a chunk's temporaries; fewer cost more launches, and change results by rounding only

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
softmax_backward = torch.ops.aten._softmax_backward_data


@contextmanager
def _products(plan: Plan) -> Iterator[None]:
    """Let a GPU round the operands of float32 products to TF32, or not, whatever the caller's setting is.

    What bfloat16 would save here is lost again in casting, so it is computed in float32.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if plan.precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`."""
    with _products(plan):
        return _forward(inputs, plan)


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    with _products(plan):
        return _backward(inputs, plan, grads, kept or _forward(inputs, replace(plan, keep=True))[1], need_x)


def memory(sizes: tuple[int, int, int, int], plan: Plan) -> tuple[int, int]:
    """See `Kernel.memory`: a chunk's temporaries, and per variant what is kept (and time attention, three times)."""
    B, T, F, H = sizes
    return 2 * _ROOM_BYTES, 4 * B * (T * 6 * H + (3 * T * F if plan.gate_over == "time" else 0))


def head(hidden: Tensor, weight: Tensor, bias: Tensor, y: Tensor, kind: TaskKind) -> tuple[Tensor, ...]:
    """Mean loss [V] of a linear layer, as `nn.loss`, and the gradients of hidden, weight and bias."""
    logits = torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT)
    if kind == "binary":
        y = y.unsqueeze(-1)
        p = torch.sigmoid(logits)
        spread = p * (1 - p)
        loss = (y - 1) * torch.log1p(-p).clamp(min=-100) - y * torch.log(p).clamp(min=-100)
        change = (p - y) / spread.clamp(min=1e-12) * spread / y.shape[1]
    else:
        logs = torch.log_softmax(logits, dim=-1)
        hit = torch.zeros_like(logs).scatter_(-1, y.unsqueeze(-1), 1)
        loss, change = -logs.gather(-1, y.unsqueeze(-1)), (logs.exp() - hit) / y.shape[1]
    return loss.mean(dim=(1, 2)), change @ weight, change.mT @ hidden, change.sum(dim=1)


def classify_by(
    kernel: Kernel, head: Head, inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: TaskKind
) -> Classified:
    """`Classify.classify` by a kernel's forward and backward, with a head between them."""
    plan = replace(plan, keep=True)
    states, kept = kernel.forward(inputs, plan)
    assert states.h is not None
    loss, d_hidden, d_weight, d_bias = head(states.h, weight, bias, y, kind)
    gradients = kernel.backward(inputs, plan, States(None, d_hidden, None), kept, need_x=False)
    return Classified(loss, gradients, d_weight, d_bias)


def _forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    V, B, H = inputs.h0.shape
    T = inputs.x.shape[2]
    x, w_ih = inputs.x, inputs.w_ih.mT
    bias = (inputs.b_ih + inputs.b_hh).unsqueeze(1)
    gated = time_gated(inputs) if plan.gate_over == "time" else None
    chunk = _steps_at_once(inputs)
    gates = x.new_empty(V, T if plan.keep else chunk, B, 4 * H)
    cells = x.new_empty(V, T if plan.keep else 1, B, H)
    every_state = plan.keep or plan.all_states
    hidden = x.new_empty(V, T + 1 if every_state else 2, B, H)
    hidden[:, 0] = inputs.h0
    c, h = inputs.c0, hidden[:, 0]
    for start, stop in chunks(T, chunk):
        place = gates[:, start:stop] if plan.keep else gates[:, : stop - start]
        steps = _gated(inputs, plan, start, stop)[1] if gated is None else gated[:, start:stop]
        torch.baddbmm(bias, steps.flatten(1, 2), w_ih, out=place.flatten(1, 2))
        for t in range(start, stop):
            step = place[:, t - start]
            step.baddbmm_(h, inputs.w_hh.mT)
            step[..., : 2 * H].sigmoid_()
            step[..., 3 * H :].sigmoid_()
            i, f, g, o = step.chunk(4, dim=-1)
            g.tanh_()
            c = torch.mul(f, c, out=cells[:, t if plan.keep else 0]).addcmul_(i, g)
            h = torch.mul(o, c.tanh(), out=hidden[:, t + 1 if every_state else (t + 1) % 2])
    states = hidden[:, 1:].transpose(1, 2).contiguous() if plan.all_states else None
    if states is not None and states.data_ptr() == hidden[:, 1:].data_ptr():
        states = states.clone()  # what is given must not share memory with what is kept
    return States(states, h.clone(), c.clone()), [gates, cells, hidden] if plan.keep else []


def _backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    gates, cells, hidden = kept
    V, T, B, H = cells.shape
    F = inputs.x.shape[-1]
    over_time = plan.gate_over == "time"
    d_w_ih, d_w_hh = inputs.w_ih.new_zeros(V, 4 * H, F), inputs.w_hh.new_zeros(V, 4 * H, H)
    d_bias = inputs.b_ih.new_zeros(V, 4 * H)
    d_gate = GateGradients(inputs, need_x)
    gated = time_gated(inputs) if over_time else None
    d_all = inputs.x.new_empty(V, T, B, F) if over_time else None
    dh = torch.zeros_like(inputs.h0) if grads.h is None else grads.h.clone()
    dc = torch.zeros_like(inputs.c0) if grads.c is None else grads.c.clone()
    chunk = _steps_at_once(inputs)
    room = inputs.x.new_empty(V, chunk, B, 4 * H)
    for start, stop in reversed(list(chunks(T, chunk))):
        d_pre = room[:, : stop - start]
        for t in reversed(range(start, stop)):
            if grads.all is not None:
                dh += grads.all[:, :, t]
            i, f, g, o = gates[:, t].chunk(4, dim=-1)
            d_step = d_pre[:, t - start]
            d_i, d_f, d_g, d_o = d_step.chunk(4, dim=-1)
            tanh_c = cells[:, t].tanh()
            sigmoid_backward(dh * tanh_c, o, grad_input=d_o)
            dc += tanh_backward(dh.mul_(o), tanh_c)
            sigmoid_backward(dc * g, i, grad_input=d_i)
            sigmoid_backward(dc * (cells[:, t - 1] if t > 0 else inputs.c0), f, grad_input=d_f)
            tanh_backward(dc * i, g, grad_input=d_g)
            torch.bmm(d_step, inputs.w_hh, out=dh)
            dc *= f
        flat = d_pre.flatten(1, 2)
        weights, steps = _gated(inputs, plan, start, stop) if gated is None else (None, gated[:, start:stop])
        d_w_ih.baddbmm_(flat.mT, steps.flatten(1, 2))
        d_w_hh.baddbmm_(flat.mT, hidden[:, start:stop].flatten(1, 2))
        d_bias += flat.sum(dim=1)
        if d_all is not None:
            torch.bmm(flat, inputs.w_ih, out=d_all[:, start:stop].flatten(1, 2))
        elif need_x or weights is not None:
            d_gate.add_steps(start, stop, weights, (flat @ inputs.w_ih).unflatten(1, steps.shape[1:3]))
    if d_all is not None:
        d_gate.add_time(slice(None), d_all)
    return Gradients(d_gate.x, dh, dc, d_w_ih, d_w_hh, d_bias, d_bias.clone(), d_gate.weight, d_gate.bias)


def _steps_at_once(inputs: Inputs) -> int:
    """Steps whose gates, batch, attention and gradients fit in the room."""
    V, B, H = inputs.h0.shape
    T, F = inputs.x.shape[2:]
    bytes_per_step = inputs.x.element_size() * V * B * (4 * H + 4 * F)
    return max(1, min(T, _ROOM_BYTES // bytes_per_step))


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges that cover `count`, `size` at a time."""
    for start in range(0, count, size):
        yield start, min(start + size, count)


def steps_of(inputs: Inputs, start: int, stop: int) -> Tensor:
    """Steps start..stop-1 of each variant's batch, steps in front of the batch: [V, stop - start, B, F]."""
    some: Tensor = inputs.x[:, :, start:stop]
    if inputs.rows is not None:
        some = some[torch.arange(len(some), device=some.device)[:, None], inputs.rows]
    return some.transpose(1, 2)


def _softmax(rows: Tensor, inputs: Inputs) -> Tensor:
    """Softmax of the gate's layer over the last axis; rows [V, *, *, n]."""
    assert inputs.gate_weight is not None
    assert inputs.gate_bias is not None
    scores = torch.baddbmm(inputs.gate_bias.unsqueeze(1), rows.flatten(1, 2), inputs.gate_weight.mT)
    return torch.softmax(scores, dim=-1).view_as(rows)


def _gated(inputs: Inputs, plan: Plan, start: int, stop: int) -> tuple[Tensor | None, Tensor]:
    """Attention over features (None without) and x times it, of some steps: [V, stop - start, B, F], contiguous."""
    x = steps_of(inputs, start, stop).contiguous()
    if plan.gate_over is None:
        return None, x
    weights = _softmax(x, inputs)
    return weights, x * weights


def _variants_at_once(inputs: Inputs) -> int:
    """Variants of which the whole batch, its attention and their gradients fit in the room."""
    B, (T, F) = inputs.h0.shape[1], inputs.x.shape[2:]
    return max(1, _ROOM_BYTES // (inputs.x.element_size() * 4 * B * T * F))


def part_of(inputs: Inputs, variants: slice) -> Inputs:
    """Some of the variants."""
    return Inputs(*(None if t is None else t[variants] for t in inputs))  # type: ignore[arg-type]


def time_gated(inputs: Inputs) -> Tensor:
    """X times its attention over time, of all steps: [V, T, B, F]."""
    V, B = inputs.h0.shape[:2]
    T, F = inputs.x.shape[2:]
    gated = inputs.x.new_empty(V, T, B, F)
    for start, stop in chunks(V, _variants_at_once(inputs)):
        own = part_of(inputs, slice(start, stop))
        columns = steps_of(own, 0, T).permute(0, 2, 3, 1).contiguous()  # [V, B, F, T]
        gated[start:stop] = (columns * _softmax(columns, own)).permute(0, 3, 1, 2)
    return gated


def _zeros(like: Tensor | None) -> Tensor | None:
    """Contiguous, whatever the strides of `like`."""
    return None if like is None else like.new_zeros(like.shape)


class GateGradients:
    """Gradients of x and of the gate's layer, added up over chunks of steps or variants."""

    def __init__(self, inputs: Inputs, need_x: bool) -> None:
        V, B = inputs.h0.shape[:2]
        self._inputs = inputs
        self.x = inputs.x.new_empty(V, B, *inputs.x.shape[2:]) if need_x else None
        self.weight = _zeros(inputs.gate_weight)
        self.bias = _zeros(inputs.gate_bias)

    def add_steps(self, start: int, stop: int, weights: Tensor | None, d_gated: Tensor) -> None:
        """Steps start..stop-1, from the gradient of x * attention [V, stop - start, B, F]; None: there is no gate."""
        d_x = d_gated
        if weights is not None:
            d_x = self._layer(self._inputs, slice(None), steps_of(self._inputs, start, stop), weights, d_gated)
        if self.x is not None:
            self.x[:, :, start:stop] = d_x.transpose(1, 2)

    def add_time(self, variants: slice, d_gated: Tensor) -> None:
        """All steps of some variants, from the gradient of x * attention [variants, T, B, F]."""
        first = variants.indices(len(self._inputs.h0))[0]
        for start, stop in chunks(len(d_gated), _variants_at_once(self._inputs)):
            some = slice(first + start, first + stop)
            own = part_of(self._inputs, some)
            columns = steps_of(own, 0, d_gated.shape[1]).permute(0, 2, 3, 1).contiguous()
            d_columns = d_gated[start:stop].permute(0, 2, 3, 1)
            d_x = self._layer(own, some, columns, _softmax(columns, own), d_columns)
            if self.x is not None:
                self.x[some] = d_x.transpose(2, 3)

    def _layer(self, own: Inputs, variants: slice, rows: Tensor, weights: Tensor, d_gated: Tensor) -> Tensor:
        """Add the gradients of weight and bias; give that of the rows, or an unfinished one where none is needed."""
        assert self.weight is not None
        assert self.bias is not None
        assert own.gate_weight is not None
        d_scores = softmax_backward(d_gated * rows, weights, -1, weights.dtype)
        flat = d_scores.flatten(1, 2)
        self.weight[variants].baddbmm_(flat.mT, rows.flatten(1, 2))
        self.bias[variants] += flat.sum(dim=1)
        if self.x is None:
            return d_gated
        return torch.addcmul((flat @ own.gate_weight).view_as(d_scores), d_gated, weights)
