"""The recurrence in machine code of our own, one variant per thread: the fast CPU path, float32.

oneDNN keeps 7 MB a variant and step at small size, calls a matrix library for products too small for it, and passes
over the gates once per operation. Here one pass over the steps does everything while a step is in the cache
(`variant`), products run at the core's rate (`matrix`), and from samples to weight gradients a variant never leaves its
thread (`classify`). Machine code is made by Numba at the first use and kept on disk; no compiler is needed.

Ground truth: `reference`; bytes, operations and floors: `variant`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmapens.nn.kernels import Gradients, Inputs, Plan, States
from vmapens.nn.kernels.compiled import classifier, time_gate, variant
from vmapens.nn.kernels.compiled.variant import Scratch, Tape, Weights, padded
from vmapens.nn.threads import over_variants

_GATES = {None: variant.NO_GATE, "feature": variant.FEATURE_GATE, "time": variant.TIME_GATE}
_NOTHING, _NO_MATRIX, _NO_VECTOR = (np.zeros((0,) * axes, np.float32) for axes in (3, 2, 1))
_ARENAS = 2  # shapes a thread keeps memory for: a full batch and the last one of an epoch


class Classified(NamedTuple):
    """Losses [V], gradients of the inputs, and of the linear layer's weight [V, C, H] and bias [V, C]."""

    loss: Tensor
    inputs: Gradients
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Shape:
    """Sizes of one variant's work, and the buffers they ask for."""

    B: int
    T: int
    F: int
    H: int
    gate: int

    @classmethod
    def of(cls, inputs: Inputs, plan: Plan) -> "_Shape":
        B, H = inputs.h0.shape[1:]
        T, F = inputs.x.shape[2:]
        return cls(B, T, F, H, _GATES[plan.gate_over])

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """Bp, Fp, Hp, and rows or columns of the padded gate."""
        n = self.T if self.gate == variant.TIME_GATE else self.F
        return padded(self.B, 8), padded(self.F + 1), padded(self.H), padded(n + 1)

    def tape(self) -> Tape:
        Bp, Fp, Hp, Np = self.padded
        steps = Np if self.gate == variant.TIME_GATE else self.T * (self.gate == variant.FEATURE_GATE)
        sizes = (max(1, steps), Bp, Fp), (self.T, Bp, 4 * Hp), (self.T + 1, Bp, Hp), (self.T + 1, Bp, Hp)
        return Tape(*(np.empty(size, np.float32) for size in sizes))


class _Arena:
    """A thread's memory for one shape, used again for each variant and step."""

    def __init__(self, shape: _Shape) -> None:
        Bp, Fp, Hp, Np = shape.padded
        K = padded(shape.F + 1 + Hp)

        def zeros(*size: int) -> np.ndarray:
            return np.zeros(size, np.float32)

        self.tape = shape.tape()
        self.weights = Weights(zeros(4 * Hp, K), zeros(K, 4 * Hp), zeros(Np, Np), zeros(Np, Np))
        self.scratch = Scratch(
            zeros(Bp, Fp), zeros(Bp, K), zeros(Bp, Fp), zeros(Bp, 4 * Hp), zeros(Bp, K), zeros(Bp, Hp), zeros(Bp, Hp),
            zeros(4 * Hp, K), zeros(Np, Np),
        )  # fmt: skip
        over_time = shape.gate == variant.TIME_GATE
        self.columns = zeros(Np, Bp * Fp) if over_time else zeros(0, 0)
        self.d_attention = zeros(Np, Bp, Fp) if over_time else _NOTHING
        self.cells_first = zeros(Bp * Fp, Np) if over_time else zeros(0, 0)


_local = threading.local()


def _arena(shape: _Shape) -> _Arena:
    arenas: dict[_Shape, _Arena] = _local.__dict__.setdefault("arenas", {})
    if shape not in arenas:
        while len(arenas) >= _ARENAS:
            del arenas[next(iter(arenas))]
        arenas[shape] = _Arena(shape)
    return arenas[shape]


class _One(NamedTuple):
    """One variant's inputs as arrays."""

    pool: np.ndarray
    rows: np.ndarray
    h0: np.ndarray
    c0: np.ndarray
    parameters: tuple[np.ndarray, ...]
    """w_ih, w_hh, b_ih, b_hh, and the gate's weight and bias (of no size without a gate)."""

    @classmethod
    def of(cls, inputs: Inputs, v: int) -> "_One":
        gate = (_array_or(inputs.gate_weight, v, _NO_MATRIX), _array_or(inputs.gate_bias, v, _NO_VECTOR))
        rows = np.arange(inputs.x.shape[1]) if inputs.rows is None else inputs.rows[v].numpy()
        weights = (_array(t[v]) for t in (inputs.w_ih, inputs.w_hh, inputs.b_ih, inputs.b_hh))
        return cls(_array(inputs.x[v]), rows, _array(inputs.h0[v]), _array(inputs.c0[v]), (*weights, *gate))


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array


def _array_or(tensor: Tensor | None, v: int, absent: np.ndarray) -> np.ndarray:
    return absent if tensor is None else _array(tensor[v])


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`. float32 on a CPU only."""
    shape, count = _Shape.of(inputs, plan), len(inputs.x)
    B, T, H = shape.B, shape.T, shape.H
    new = inputs.h0.new_empty
    out = States(new(count, B, T, H) if plan.all_states else None, new(count, B, H), new(count, B, H))
    kept: list[tuple[Tensor, ...]] = [()] * count

    def work(v: int) -> None:
        arena = _arena(shape)
        tape = shape.tape() if plan.keep else arena.tape
        _run(_One.of(inputs, v), shape, arena, tape)
        if out.all is not None:
            out.all[v].numpy()[:] = tape.hidden[1:, :B, :H].swapaxes(0, 1)
        assert out.h is not None
        assert out.c is not None
        out.h[v].numpy()[:] = tape.hidden[T, :B, :H]
        out.c[v].numpy()[:] = tape.cells[T, :B, :H]
        if plan.keep:
            kept[v] = tuple(torch.from_numpy(array) for array in tape)

    over_variants(work, count)
    return out, [tensor for entry in kept for tensor in entry]


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    shape = _Shape.of(inputs, plan)
    out = _gradients_of(inputs, need_x)

    def work(v: int) -> None:
        arena, one = _arena(shape), _One.of(inputs, v)
        if kept:
            tape = Tape(*(t.numpy() for t in kept[len(Tape._fields) * v : len(Tape._fields) * (v + 1)]))
            variant.pack(*one.parameters, shape.gate, arena.weights)
        else:
            tape = arena.tape
            _run(one, shape, arena, tape)
        for own, grad in ((arena.scratch.d_hidden, grads.h), (arena.scratch.d_cells, grads.c)):
            own[:] = 0
            if grad is not None:
                own[: shape.B, : shape.H] = grad[v].numpy()
        d_states = _array_or(grads.all, v, _NOTHING)
        _run_backward(one, shape, arena, tape, d_states, out, v)

    over_variants(work, len(inputs.x))
    return out


def classify(
    inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: Literal["binary", "multiclass"]
) -> Classified:
    """Loss of a linear layer on the last hidden state, and all gradients, without leaving the variant's thread.

    Args:
        inputs: As in `Kernel.forward`.
        plan: As in `Kernel.forward`.
        weight: Of the linear layer [V, C, H].
        bias: [V, C].
        y: Labels [V, B], as `nn.loss.LOSSES` wants them.
        kind: Of the loss; the mean over the batch.
    """
    shape, count = _Shape.of(inputs, plan), len(inputs.h0)
    out = Classified(weight.new_empty(count), _gradients_of(inputs, False), _like(weight), _like(bias))

    def work(v: int) -> None:
        arena, one = _arena(shape), _One.of(inputs, v)
        _run(one, shape, arena, arena.tape)
        s = arena.scratch
        s.d_cells[:] = 0
        head = _array(weight[v]), _array(bias[v]), y[v].numpy()
        own = out.weight[v].numpy(), out.bias[v].numpy()
        out.loss[v] = float(classifier.classify(arena.tape.hidden[shape.T], *head, kind == "binary", s.d_hidden, *own))
        _run_backward(one, shape, arena, arena.tape, _NOTHING, out.inputs, v)

    over_variants(work, count)
    return out


def _run(one: _One, shape: _Shape, arena: _Arena, tape: Tape) -> None:
    variant.pack(*one.parameters, shape.gate, arena.weights)
    for states, first in ((tape.hidden, one.h0), (tape.cells, one.c0)):
        states[0] = 0
        states[0, : shape.B, : shape.H] = first
    if shape.gate == variant.TIME_GATE:
        time_gate.attend(one.pool, one.rows, arena.weights, tape.attention, arena.columns)
    variant.forward(one.pool, one.rows, shape.gate, arena.weights, tape, arena.scratch)


def _run_backward(
    one: _One, shape: _Shape, arena: _Arena, tape: Tape, d_states: np.ndarray, out: Gradients, v: int
) -> None:
    s, weights = arena.scratch, arena.weights
    d_x = _array_or(out.x, v, _NOTHING)
    variant.backward(one.pool, one.rows, shape.gate, weights, tape, s, d_states, arena.d_attention, d_x)
    if shape.gate == variant.TIME_GATE:
        time_gate.attend_backward(
            one.pool, one.rows, weights, tape.attention, arena.d_attention, arena.columns, arena.cells_first, s, d_x
        )
    out.h0[v].numpy()[:] = s.d_hidden[: shape.B, : shape.H]
    out.c0[v].numpy()[:] = s.d_cells[: shape.B, : shape.H]
    variant.unpack(
        s, shape.gate, out.w_ih[v].numpy(), out.w_hh[v].numpy(), out.b_ih[v].numpy(),
        _array_or(out.gate_weight, v, _NO_MATRIX), _array_or(out.gate_bias, v, _NO_VECTOR),
    )  # fmt: skip
    out.b_hh[v].copy_(out.b_ih[v])


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)  # not empty_like: a stride of 0 would stay one


def _gradients_of(inputs: Inputs, need_x: bool) -> Gradients:
    wanted = (inputs.x if need_x else None, *inputs[1:-1])
    return Gradients(*(None if tensor is None else _like(tensor) for tensor in wanted))  # type: ignore[arg-type]
