"""The recurrence as fused Triton kernels: the path of a GPU, for float32 tensors.

Forward: `attention.project` gathers, attends, multiplies and projects; `recurrence` walks through the steps. Backward:
`recurrence` walks back; `attention.gate_gradient` computes the attention again and goes back through it; `product` adds
up the weights' gradients. In training `head` stands between both: logits, loss, and their gradients. Kept are the gates
[V, T, B, 4*HP], the cells and the hidden states [V, T+1, B, HP], in bfloat16 where the plan's precision is bf16;
nothing else of the batch. Operands are rounded as the plan's precision says; sums, softmax and the state that goes from
step to step are float32.

Attention over time, whose softmax needs all steps, is computed by the batched path's functions, and the recurrence
over its result by the kernels here; so is the gradient of x behind the attention, which training does not ask for. More
than 1024 features go through the batched path altogether.

Offsets are 64 bits: gates have 9.4e9 elements at paper size. Each program owns what it writes, so results are the same
bytes in every run. With TRITON_INTERPRET=1 in the environment the kernels run on CPU tensors, for tests.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import triton
from torch import Tensor

from vmapens.nn.kernels import Classified, Gradients, Inputs, Plan, States, batched
from vmapens.nn.kernels.triton import attention, head, product, recurrence
from vmapens.nn.kernels.triton.size import Size, padded
from vmapens.nn.loss import TaskKind

_MOST_VARIANTS = 65535  # of CUDA's second grid axis
_SCRATCH_SHARE = 8  # of a GPU's memory, one part of so many is for what a group of variants needs for a moment
_SCRATCH_ON_CPU = 2**28  # bytes


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`."""
    size = Size.of(inputs, plan)
    if size.wide:
        return batched.forward(inputs, plan)
    with torch.cuda.device_of(inputs.x):
        return _forward(size, inputs, plan)


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    size = Size.of(inputs, plan)
    if size.wide:
        return batched.backward(inputs, plan, grads, kept, need_x)
    with torch.cuda.device_of(inputs.x):
        return _backward(size, inputs, plan, grads, kept or _forward(size, inputs, replace(plan, keep=True))[1], need_x)


def classify(inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: TaskKind) -> Classified:
    """See `Classify`."""
    return batched.classify_by(sys.modules[__name__], head.head, inputs, plan, weight, bias, y, kind)


def memory(sizes: tuple[int, int, int, int], plan: Plan) -> tuple[int, int]:
    """See `Kernel.memory`: the scratch of a group of variants, and per variant the kept gates, cells and states."""
    B, T, _, H = sizes
    kept = (2 if plan.precision == "bf16" else 4) * B * (T * 6 + 2) * padded(H)
    over_time = batched.memory(sizes, plan)[1] if plan.gate_over == "time" else 0
    return 2 * _scratch_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu")), kept + over_time


def _forward(size: Size, inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    V, B, T, H, HP = size.V, size.B, size.T, size.H, size.HP
    make = partial(inputs.x.new_empty, dtype=size.dtype)
    every_state = plan.keep or plan.all_states
    hidden = make((V, T + 1 if every_state else 2, B, HP))
    cells = make((V, T + 1 if plan.keep else 1, B, HP))
    h_last, c_last = (size.packed_state(state, V, inputs.x) for state in (inputs.h0, inputs.c0))
    hidden[:, 0], cells[:, 0] = h_last, c_last
    gates = make((V, T, B, 4 * HP)) if plan.keep else None
    for own in _groups(size, inputs.x.device, 0 if plan.keep else 4 * HP):
        part = _without_time(batched.part_of(inputs, own), plan)
        place = make((len(part.h0), T, B, 4 * HP)) if gates is None else gates[own]
        _project(size, part, place)
        _recur(size, plan, place, cells[own], hidden[own], h_last[own], c_last[own], part.w_hh)
    states = hidden[:, 1:, :, :H].transpose(1, 2).float().contiguous() if plan.all_states else None
    if states is not None and states.data_ptr() == hidden[:, 1:].data_ptr():
        states = states.clone()  # what is given must not share memory with what is kept
    last = States(states, h_last[..., :H].contiguous(), c_last[..., :H].contiguous())
    return last, [] if gates is None else [gates, cells, hidden]


def _backward(size: Size, inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    gates, cells, hidden = kept
    V, H, HP, F, columns = size.V, size.H, size.HP, size.F, size.scratch_columns
    make = inputs.x.new_empty
    d_w_ih, d_w_hh, d_bias = make(V, 4 * H, F), make(V, 4 * H, H), make(V, 4 * H)
    dh, dc = (size.packed_state(grad, V, inputs.x) for grad in (grads.h, grads.c))
    gate = batched.GateGradients(inputs, need_x)
    fused = plan.gate_over == "feature"
    for own in _groups(size, inputs.x.device, 4 * HP + (2 * columns if fused else 0)):
        whole = batched.part_of(inputs, own)
        part, count = _without_time(whole, plan), len(whole.h0)
        d_pre = make(count, size.T, size.B, 4 * HP, dtype=size.dtype)
        d_all = None if grads.all is None else grads.all[own]
        _recur_back(size, gates[own], cells[own], d_pre, d_all, dh[own], dc[own], part.w_hh)
        _product(size, 4, d_pre, hidden[own], d_w_hh[own])
        if fused:
            gated, d_scores = (make(count, size.T * size.B, columns, dtype=size.dtype) for _ in range(2))
            if F == size.FP:  # the kernel's tile ends before the column of ones
                gated[..., F:], gated[..., F], d_scores[..., F:] = 0, 1, 0
            _gate_gradient(size, part, d_pre, gated, d_scores, None if gate.x is None else gate.x[own])
            _product(size, 4, d_pre, gated, d_w_ih[own], d_bias[own])
            assert gate.weight is not None
            assert gate.bias is not None
            _product(size, 1, d_scores, part, gate.weight[own], gate.bias[own])
            if gate.x is not None and part.gate_weight is not None:
                d_rows = d_scores[..., :F].float() @ part.gate_weight
                gate.x[own] += d_rows.unflatten(1, (size.T, size.B)).transpose(1, 2)
        else:
            _product(size, 4, d_pre, part, d_w_ih[own], d_bias[own])
            if need_x or plan.gate_over == "time":
                real = d_pre.unflatten(-1, (4, HP))[..., :H].flatten(3).float().flatten(1, 2)
                d_gated = (real @ part.w_ih).unflatten(1, (size.T, size.B))
                if plan.gate_over == "time":
                    gate.add_time(own, d_gated)
                elif gate.x is not None:
                    gate.x[own] = d_gated.transpose(1, 2)
    d_h0, d_c0 = dh[..., :H].contiguous(), dc[..., :H].contiguous()
    return Gradients(gate.x, d_h0, d_c0, d_w_ih, d_w_hh, d_bias, d_bias.clone(), gate.weight, gate.bias)


def _groups(size: Size, device: torch.device, per_row: int) -> list[slice]:
    """Ranges of variants whose scratch, `per_row` elements for each step and sample, fits; of almost equal length."""
    most = max(
        1, min(_MOST_VARIANTS, _scratch_bytes(device) // max(1, per_row * size.T * size.B * size.dtype.itemsize))
    )
    count = -(-size.V // most)
    return [slice(size.V * k // count, size.V * (k + 1) // count) for k in range(count)]


def _scratch_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _SCRATCH_ON_CPU
    return torch.cuda.get_device_properties(device).total_memory // _SCRATCH_SHARE


def _without_time(part: Inputs, plan: Plan) -> Inputs:
    """The same inputs, or, with attention over time, those of a plain LSTM over x * attention."""
    if plan.gate_over != "time":
        return part
    return part._replace(x=batched.time_gated(part).transpose(1, 2), gate_weight=None, gate_bias=None, rows=None)


def _project(size: Size, part: Inputs, gates: Tensor) -> None:
    x, rows = part.x, part.x if part.rows is None else part.rows.contiguous()
    tile, block = size.row_tile, size.block
    attention.project[(triton.cdiv(size.T * size.B, tile), len(gates))](
        x, rows, *size.packed_gate(part), size.packed_gates(part.w_ih), size.packed_bias(part), gates,
        size.T, size.B, size.F, *_strides(x),
        HAS_ROWS=part.rows is not None, HAS_GATE=part.gate_weight is not None, HP=size.HP, FP=size.FP,
        M=tile, N=min(block, 4 * size.HP), K=min(block, size.FP), PRECISION=size.precision, **size.options(stages=2),
    )  # fmt: skip


def _gate_gradient(
    size: Size, part: Inputs, d_pre: Tensor, gated: Tensor, d_scores: Tensor, d_x: Tensor | None
) -> None:
    x, rows = part.x, part.x if part.rows is None else part.rows.contiguous()
    tile = size.row_tile
    attention.gate_gradient[(triton.cdiv(size.T * size.B, tile), len(d_pre))](
        x, rows, *size.packed_gate(part), size.packed_gates(part.w_ih), d_pre,
        gated, d_scores, x if d_x is None else d_x,
        size.T, size.B, size.F, *_strides(x), size.scratch_columns,
        HAS_ROWS=part.rows is not None, NEED_X=d_x is not None, HP=size.HP, FP=size.FP,
        M=tile, K=min(size.block, size.FP), PRECISION=size.precision, **size.options(stages=2),
    )  # fmt: skip


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of x; 0 from a variant to the next where there is one variant only, as for samples that many of them share.

    Triton compiles by whether a stride is a multiple of 16, and code that was compiled otherwise may add otherwise.
    """
    return (0 if len(x) == 1 else x.stride(0), *x.stride()[1:])


def _product(
    size: Size, groups: int, left: Tensor, right: Tensor | Inputs, out: Tensor, sums: Tensor | None = None
) -> None:
    """``out = left.T @ right``, and sums of left's columns, which come in groups; right may be the inputs' own x."""
    gathered = isinstance(right, Inputs)
    x = right.x if isinstance(right, Inputs) else right
    rows = right.rows if isinstance(right, Inputs) else None
    columns = left.shape[-1]
    strides = _strides(x) if gathered else (x.stride(0), 0, 0, 0)
    M, N = (min(size.product_tile, padded(length)) for length in (columns, out.shape[2] + 1))
    grid = (triton.cdiv(columns, M) * triton.cdiv(out.shape[2] + (sums is not None), N), len(left))
    product.product[grid](
        left, x, x if rows is None else rows.contiguous(), out, out if sums is None else sums,
        size.T, size.B, columns, columns // groups, out.shape[1] // groups, left.stride(0), columns,
        out.shape[2], x.shape[-1], strides[0], x.stride(-2), *strides[1:],
        GATHER=gathered, HAS_ROWS=rows is not None, ONES=int(sums is not None),
        M=M, N=N, K=size.block, PRECISION=size.precision, **size.options(stages=2),
    )  # fmt: skip


def _recur(
    size: Size, plan: Plan, gates: Tensor, cells: Tensor, hidden: Tensor, h_last: Tensor, c_last: Tensor, w_hh: Tensor
) -> None:
    w_hh = size.packed_gates(w_hh)
    constants = {"KEEP": plan.keep, "HP": size.HP, "M": size.batch_tile, "PRECISION": size.precision}
    tiles = triton.cdiv(size.B, size.batch_tile)
    if size.on_chip:
        recurrence.forward_on_chip[(tiles, len(gates))](
            gates, cells, hidden, h_last, c_last, w_hh,
            size.T, size.B, gates.stride(0), cells.stride(0), hidden.stride(0),
            STATES=hidden.shape[1] > 2 or plan.keep or plan.all_states, **constants, **size.options(stages=1),
        )  # fmt: skip
        return
    block = min(size.block, size.HP)
    slots = hidden.shape[1]
    for t in range(size.T):
        recurrence.forward_step[(tiles * (size.HP // block), len(gates))](
            gates[:, t], hidden[:, t % slots], cells[:, t + 1 if plan.keep else 0], hidden[:, (t + 1) % slots],
            h_last, c_last, w_hh, size.B, gates.stride(0), hidden.stride(0), cells.stride(0), hidden.stride(0),
            N=block, K=block, **constants, **size.options(stages=2),
        )  # fmt: skip


def _recur_back(
    size: Size,
    gates: Tensor,
    cells: Tensor,
    d_pre: Tensor,
    d_all: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    w_hh: Tensor,
) -> None:
    w_hh = size.packed_gates(w_hh)
    constants = {"HAS_ALL": d_all is not None, "HP": size.HP, "M": size.batch_tile, "PRECISION": size.precision}
    tiles = triton.cdiv(size.B, size.batch_tile)
    given = dh.unsqueeze(2).expand(-1, -1, size.T, -1) if d_all is None else d_all  # a dummy where there is none
    all_v, all_b, all_t, _ = given.stride()
    if size.on_chip:
        recurrence.backward_on_chip[(tiles, len(gates))](
            gates, cells, d_pre, given[:, :, -1], dh, dc, w_hh, size.T, size.B, size.H, all_v, all_b, all_t, 0.0,
            **constants, **size.options(stages=1),
        )  # fmt: skip
        return
    block = min(size.block, size.HP)
    for t in range(size.T - 1, -2, -1):
        now, later = max(t, 0), min(t + 1, size.T - 1)
        recurrence.backward_step[(tiles * (size.HP // block), len(gates))](
            gates[:, now], cells[:, now], d_pre[:, later], d_pre[:, now], given[:, :, now], dh, dc, w_hh,
            size.B, size.H, gates.stride(0), cells.stride(0), all_v, all_b,
            FIRST=t == size.T - 1, LAST=t < 0, N=block, K=block, **constants, **size.options(stages=2),
        )  # fmt: skip
