"""The recurrence in machine code of our own, one variant per thread: the fast CPU path, float32.

oneDNN keeps 7 MB a variant and step at small size, calls a matrix library for products too small for it, and passes
over the gates once per operation. Here one pass over the steps does everything while a step is in the cache
(`variant`), products run at the core's rate (`matrix`), and from samples to weight gradients a variant never leaves its
thread (`classify`). Machine code is made by Numba at the first use and kept on disk; no compiler is needed.

Ground truth: `reference`; bytes, operations and floors: `variant`.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vmapens.nn.kernels import Classified, Gradients, Inputs, Plan, States
from vmapens.nn.kernels.compiled import classifier, time_gate, variant
from vmapens.nn.kernels.compiled.variant import Pairs, Scratch, Tape, Weights, padded
from vmapens.nn.threads import over_variants

_GATES = {None: variant.NO_GATE, "feature": variant.FEATURE_GATE, "time": variant.TIME_GATE}
_NOTHING = np.zeros((0, 0, 0), np.float32)
_NO_GATE = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
_ARENAS = 6  # shapes a thread keeps memory for: a full and a last batch, of training and of two splits


@dataclass(frozen=True)
class _Shape:
    """Sizes of one variant's work, and the buffers they ask for."""

    B: int
    T: int
    F: int
    H: int
    gate: int
    bf16: bool = False

    @classmethod
    def of(cls, inputs: Inputs, plan: Plan) -> "_Shape":
        B, H = inputs.h0.shape[1:]
        T, F = inputs.x.shape[2:]
        return cls(B, T, F, H, _GATES[plan.gate_over], plan.precision == "bf16")

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """Bp, Fp, Hp, and rows or columns of the padded gate."""
        n = self.T if self.gate == variant.TIME_GATE else self.F
        return padded(self.B, 8), padded(self.F + 1), padded(self.H), padded(n + 1)

    def tape(self, *, whole: bool) -> Tape:
        """Memory for every step, as a backward needs it, or for the last ones."""
        Bp, Fp, Hp, Np = self.padded
        steps = self.T if whole else 1
        attended = {variant.NO_GATE: 1, variant.FEATURE_GATE: steps, variant.TIME_GATE: Np}[self.gate]
        sizes = (attended, Bp, Fp), (steps, Bp, 4 * Hp), (steps + 1, Bp, Hp), (steps + 1, Bp, Hp)
        return Tape(*(np.empty(size, np.float32) for size in sizes))


class _Arena:
    """A thread's memory for one shape, used again for each variant and step; `whole` says whether of all steps."""

    def __init__(self, shape: _Shape, whole: bool) -> None:
        Bp, Fp, Hp, Np = shape.padded
        K = padded(shape.F + 1 + Hp)

        def zeros(*size: int) -> np.ndarray:
            return np.zeros(size, np.float32)

        self.tape = shape.tape(whole=whole)
        self.weights = Weights(zeros(4 * Hp, K), zeros(K, 4 * Hp), zeros(Np, Np), zeros(Np, Np))
        self.scratch = Scratch(
            zeros(Bp, Fp), zeros(Bp, K), zeros(Bp, Fp), zeros(Bp, 4 * Hp), zeros(Bp, K), zeros(Bp, Hp), zeros(Bp, Hp),
            zeros(4 * Hp, K), zeros(Np, Np),
        )  # fmt: skip
        sizes = (
            (2 * Hp, K), (K // 2, 4 * Hp), (Np // 2, Np), (Bp, Fp // 2), (Bp, K // 2), (Bp, 2 * Hp),
            (Bp // 2, Fp), (Bp // 2, K), (Bp // 2, 4 * Hp), (Bp // 2, Fp),
        )  # fmt: skip
        self.pairs = Pairs(*(np.zeros(size if shape.bf16 else (0, 0), np.uint32) for size in sizes))
        over_time = shape.gate == variant.TIME_GATE
        self.columns = zeros(Np, Bp * Fp) if over_time else zeros(0, 0)
        self.d_attention = zeros(Np, Bp, Fp) if over_time and whole else _NOTHING
        self.cells_first = zeros(Bp * Fp, Np) if over_time and whole else zeros(0, 0)

    @property
    def nbytes(self) -> int:
        arrays = (*self.tape, *self.weights, *self.scratch, *self.pairs)
        return sum(array.nbytes for array in (*arrays, self.columns, self.d_attention, self.cells_first))


_local = threading.local()


def _arena(shape: _Shape, *, whole: bool) -> _Arena:
    arenas: dict[tuple[_Shape, bool], _Arena] = _local.__dict__.setdefault("arenas", {})
    arena = arenas.pop((shape, whole), None) or _Arena(shape, whole)
    arenas[shape, whole] = arena  # last: the first is the one that was not used for longest
    while len(arenas) > _ARENAS:
        del arenas[next(iter(arenas))]
    return arena


class _One(NamedTuple):
    """The inputs of one variant as arrays; the gate's have no size where there is none."""

    x: np.ndarray
    h0: np.ndarray
    c0: np.ndarray
    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray
    b_hh: np.ndarray
    gate_weight: np.ndarray
    gate_bias: np.ndarray
    rows: np.ndarray

    @property
    def parameters(self) -> tuple[np.ndarray, ...]:
        """From w_ih to the gate's bias."""
        return self[3:9]


Arrays = list[np.ndarray | None]


def _checked(inputs: Inputs) -> Inputs:
    """The same, with shared samples in one piece, so that no variant copies them.

    Raises:
        IndexError: If a row is none of the samples: the machine code would read foreign memory.
    """
    x, rows = inputs.x, inputs.rows
    if rows is not None and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < x.shape[1]:
        raise IndexError(f"rows are {int(rows.min())} to {int(rows.max())}, but there are {x.shape[1]} samples.")
    if x.stride(0) == 0 and not x[0].is_contiguous():
        inputs = inputs._replace(x=x[0].contiguous().expand(x.shape))
    return inputs if rows is None else inputs._replace(rows=rows.long())


def _arrays(tensors: Iterable[Tensor | None]) -> Arrays:
    return [None if tensor is None else tensor.detach().numpy() for tensor in tensors]


def _take(arrays: Arrays, v: int, absent: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Variant v of each; `absent` stands for the last ones where there is none. What is contiguous is not copied."""
    offset = len(arrays) - len(absent)
    return [
        absent[place - offset] if array is None else np.ascontiguousarray(array[v])
        for place, array in enumerate(arrays)
    ]


def forward(inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
    """See `Kernel.forward`. float32 on a CPU only."""
    inputs = _checked(inputs)
    shape, count = _Shape.of(inputs, plan), len(inputs.x)
    B, T, H = shape.B, shape.T, shape.H
    new = inputs.h0.new_empty
    out = States(new(count, B, T, H) if plan.all_states else None, new(count, B, H), new(count, B, H))
    given, (states, h, c), absent = _arrays(inputs), _arrays(out), _absent(shape)
    assert h is not None
    assert c is not None
    kept: list[tuple[Tensor, ...]] = [()] * count

    def work(v: int) -> None:
        arena = _arena(shape, whole=plan.all_states and not plan.keep)
        tape = shape.tape(whole=True) if plan.keep else arena.tape
        _run(_One(*_take(given, v, absent)), shape, arena, tape)
        h[v], c[v] = (steps[T % len(steps), :B, :H] for steps in (tape.hidden, tape.cells))
        if states is not None:
            states[v] = tape.hidden[1:, :B, :H].swapaxes(0, 1)
        if plan.keep:
            kept[v] = tuple(torch.from_numpy(array) for array in tape)

    over_variants(work, count)
    return out, [tensor for entry in kept for tensor in entry]


def backward(inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
    """See `Kernel.backward`."""
    inputs = _checked(inputs)
    shape = _Shape.of(inputs, plan)
    out = _gradients_of(inputs, without=() if need_x else ("x",))
    given, incoming, outgoing, tapes = _arrays(inputs), _arrays(grads), _arrays(out), _arrays(kept)
    absent, size = _absent(shape), len(Tape._fields)

    def work(v: int) -> None:
        arena, one = _arena(shape, whole=True), _One(*_take(given, v, absent))
        if tapes:
            tape = Tape(*tapes[size * v : size * (v + 1)])  # type: ignore[arg-type]
            variant.pack(*one.parameters, shape.gate, arena.weights, arena.pairs)
        else:
            tape = arena.tape
            _run(one, shape, arena, tape)
        d_states, d_h, d_c = (_NOTHING if grad is None else np.ascontiguousarray(grad[v]) for grad in incoming)
        for own, grad in ((arena.scratch.d_hidden, d_h), (arena.scratch.d_cells, d_c)):
            own[:] = 0
            if grad.size:
                own[: shape.B, : shape.H] = grad
        _run_backward(one, shape, arena, tape, d_states, outgoing, v)

    over_variants(work, len(inputs.x))
    return out


def classify(
    inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: Literal["binary", "multiclass"]
) -> Classified:
    """See `Classify`; a variant never leaves its thread.

    Raises:
        IndexError: If a label is no class, or a row no sample.
    """
    if kind == "multiclass" and not 0 <= int(y.min()) <= int(y.max()) < weight.shape[1]:
        raise IndexError(f"labels are {int(y.min())} to {int(y.max())}, but there are {weight.shape[1]} classes.")
    inputs = _checked(inputs)
    shape, count = _Shape.of(inputs, plan), len(inputs.h0)
    out = Classified(
        weight.new_empty(count), _gradients_of(inputs, without=("x", "h0", "c0")), _like(weight), _like(bias)
    )
    given, head, outgoing, absent = _arrays(inputs), _arrays((weight, bias, y)), _arrays(out.inputs), _absent(shape)
    loss, d_weight, d_bias = out.loss.numpy(), out.weight.numpy(), out.bias.numpy()

    def work(v: int) -> None:
        arena, one = _arena(shape, whole=True), _One(*_take(given, v, absent))
        _run(one, shape, arena, arena.tape)
        s, last = arena.scratch, arena.tape.hidden[shape.T]
        s.d_cells[:] = 0
        loss[v] = classifier.classify(
            last, *_take(head, v, ()), kind == "binary", s.d_hidden, d_weight[v], d_bias[v]
        )  # fmt: skip
        _run_backward(one, shape, arena, arena.tape, _NOTHING, outgoing, v)

    over_variants(work, count)
    return out


def memory(sizes: tuple[int, int, int, int], plan: Plan) -> tuple[int, int]:
    """See `Kernel.memory`."""
    shape = _Shape(*sizes, _GATES[plan.gate_over], plan.precision == "bf16")
    whole = plan.keep or plan.all_states
    # Pages that are not written to are not taken.
    arena = _Arena(shape, whole)
    return arena.nbytes, sum(array.nbytes for array in arena.tape) * (plan.keep and plan.all_states)


def _run(one: _One, shape: _Shape, arena: _Arena, tape: Tape) -> None:
    """Fill the tape."""
    variant.pack(*one.parameters, shape.gate, arena.weights, arena.pairs)
    for states, first in ((tape.hidden, one.h0), (tape.cells, one.c0)):
        states[0] = 0
        states[0, : shape.B, : shape.H] = first
    if shape.gate == variant.TIME_GATE:
        time_gate.attend(one.x, one.rows, arena.weights, tape.attention, arena.columns)
    variant.forward(one.x, one.rows, shape.gate, arena.weights, arena.pairs, tape, arena.scratch)


def _run_backward(
    one: _One, shape: _Shape, arena: _Arena, tape: Tape, d_states: np.ndarray, out: Arrays, v: int
) -> None:
    """Set variant v of the gradients `out`, from those of the last states in the arena's scratch."""
    s, weights = arena.scratch, arena.weights
    d_x = _NOTHING if out[0] is None else out[0][v]
    variant.backward(one.x, one.rows, shape.gate, weights, arena.pairs, tape, s, d_states, arena.d_attention, d_x)
    if shape.gate == variant.TIME_GATE:
        time_gate.attend_backward(
            one.x, one.rows, weights, tape.attention, arena.d_attention, arena.columns, arena.cells_first, s, d_x
        )
    for own, grad in zip(out[1:3], (s.d_hidden, s.d_cells), strict=True):
        if own is not None:
            own[v] = grad[: shape.B, : shape.H]
    w_ih, w_hh, b_ih, b_hh, gate_weight, gate_bias = _take(out[3:], v, _NO_GATE)
    variant.unpack(s, shape.gate, w_ih, w_hh, b_ih, gate_weight, gate_bias)
    b_hh[:] = b_ih


def _absent(shape: _Shape) -> tuple[np.ndarray, ...]:
    """What stands for a gate that is not there, and for rows where x is the batch itself."""
    return *_NO_GATE, np.arange(shape.B)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)  # not empty_like: a stride of 0 would stay one


def _gradients_of(inputs: Inputs, *, without: tuple[str, ...]) -> Gradients:
    """Room for the gradients of what is there."""
    given = inputs._replace(**dict.fromkeys(without))[:-1]  # type: ignore[arg-type]
    return Gradients(*(None if tensor is None else _like(tensor) for tensor in given))  # type: ignore[arg-type]
