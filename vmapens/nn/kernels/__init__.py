"""Kernels: softmax gate, LSTM and their gradients, for a whole range of variants at a time.

A kernel is a module with the functions of `Kernel`, over the tensors below. `reference` is the plain truth, in any
precision, on any device; `choose` picks the fastest that can do the work:

- on a CPU, in float32: `compiled` (machine code of our own; the extra `cpu`), else `onednn`; in float64 `reference`;
- on a GPU, in float32: `checked`, which is `triton` (the extra `gpu`) where it agrees with `batched`, else that;
- anywhere else: `batched`, plain PyTorch for all variants at once.

Axes: V variants, B batch, T steps, F features, H hidden; G = 4H gates in PyTorch's order: input, forget, cell, output.
Layout: the variant axis leads every tensor; a variant's own slice is contiguous or has stride 0.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from vmapens.errors import SpecError
from vmapens.spec import Precision, TrainSpec


class Inputs(NamedTuple):
    """What the recurrence is a function of.

    x [V, B, T, F]; h0, c0 [V, B, H]; w_ih [V, 4H, F]; w_hh [V, 4H, H]; b_ih, b_hh [V, 4H]; and, where there is a gate
    over n = F features or n = T steps, gate_weight [V, n, n] and gate_bias [V, n].

    With rows [V, B], x is [V, N, T, F], shared by the variants (stride 0), and variant v's batch is x[v, rows[v]]: a
    kernel gathers it where it needs it. No gradient of x then.
    """

    x: Tensor
    h0: Tensor
    c0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    rows: Tensor | None = None

    def variant(self, v: int) -> "Inputs":
        """Variant v alone, its axis kept."""
        return Inputs(*(None if tensor is None else tensor[v : v + 1] for tensor in self))  # type: ignore[arg-type]

    def gathered(self) -> "Inputs":
        """The same with x [V, B, T, F] and no rows."""
        if self.rows is None:
            return self
        x = torch.stack([pool.index_select(0, rows) for pool, rows in zip(self.x, self.rows, strict=True)])
        return self._replace(x=x, rows=None)


class Gradients(NamedTuple):
    """Gradients of `Inputs` but the rows, field by field; None where not asked for, or the input is absent."""

    x: Tensor | None
    h0: Tensor
    c0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    gate_weight: Tensor | None
    gate_bias: Tensor | None


class Classified(NamedTuple):
    """Losses [V], gradients of the inputs' parameters, and of a linear layer's weight [V, C, H] and bias [V, C]."""

    loss: Tensor
    inputs: Gradients
    weight: Tensor
    bias: Tensor


class States(NamedTuple):
    """What the recurrence gives, or their gradients: all states [V, B, T, H], last h and c [V, B, H].

    `all` is None where only the last state was asked for, or where nothing depends on it.
    """

    all: Tensor | None
    h: Tensor | None
    c: Tensor | None


Arithmetic = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Plan:
    """What is asked of a kernel.

    Args:
        gate_over: Axis that the gate's softmax runs over; None for a plain LSTM.
        all_states: Give the states of all steps, not of the last alone.
        keep: Keep what the backward needs; without it the backward computes the forward again.
        precision: Of the products' operands; sums are in the tensors' own precision.
    """

    gate_over: Literal["feature", "time"] | None = None
    all_states: bool = False
    keep: bool = False
    precision: Arithmetic = "fp32"


@runtime_checkable
class Kernel(Protocol):
    """The interface that the kernel modules share; one may also have the function of `Classify`."""

    def forward(self, inputs: Inputs, plan: Plan) -> tuple[States, list[Tensor]]:
        """Compute the states, and, if `plan.keep`, tensors for the backward in a layout of the kernel's own."""
        ...

    def backward(self, inputs: Inputs, plan: Plan, grads: States, kept: Sequence[Tensor], need_x: bool) -> Gradients:
        """Compute the gradient of each input; of x only if it is needed, else None in its place."""
        ...

    def memory(self, sizes: tuple[int, int, int, int], plan: Plan) -> tuple[int, int]:
        """Bytes that a batch of sizes (B, T, F, H) takes, per thread and per variant: in training if `plan.keep`."""
        ...


class Classify(Protocol):
    """What the kernels have that compute a loss together with all gradients."""

    def classify(
        self, inputs: Inputs, plan: Plan, weight: Tensor, bias: Tensor, y: Tensor, kind: Literal["binary", "multiclass"]
    ) -> Classified:
        """Compute the mean loss of a linear layer on the last hidden state, and its gradients.

        Args:
            inputs: As in `Kernel.forward`.
            plan: As in `Kernel.forward`.
            weight: Of the linear layer [V, C, H].
            bias: [V, C].
            y: Labels [V, B], as `nn.loss.LOSSES` wants them.
            kind: Of the loss.
        """
        ...


Name = Literal["auto", "reference", "onednn", "compiled", "batched", "triton"]
_chosen: Name = "auto"
_precision: Arithmetic = "fp32"


@contextmanager
def use_kernel(name: Name) -> Iterator[None]:
    """Choose the kernel by name within the block, for tests and benchmarks; `auto` is the default."""
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@contextmanager
def use_precision(name: Precision) -> Iterator[None]:
    """Set the operands' precision within the block, for whatever starts there; a backward follows its forward.

    `auto` is fp32, everywhere: a faster one becomes the default on a GPU once variants trained in it were shown to be
    statistically the same (`make gpu-check` prints that comparison; nobody has run it yet).
    """
    global _precision
    before, _precision = _precision, "fp32" if name == "auto" else name
    try:
        yield
    finally:
        _precision = before


def precision() -> Arithmetic:
    """The operands' precision that is in force."""
    return _precision


def choose(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The fastest kernel for tensors of this kind.

    Raises:
        SpecError: If `use_kernel` named one that cannot do it.
    """
    from vmapens.nn.kernels import batched, checked, onednn, reference

    able = device.type == "cpu" and dtype == torch.float32
    if _chosen in ("onednn", "compiled") and not able:
        raise SpecError(f"the {_chosen} kernel computes float32 on a CPU, not {dtype} on {device}; use `auto`.")
    if _chosen == "compiled" and not _has_numba():
        raise SpecError("the compiled kernel needs Numba: install the extra `cpu`, or use `auto`.")
    if _chosen == "triton" and (dtype != torch.float32 or not has_triton()):
        raise SpecError(f"the Triton kernels compute float32 tensors, not {dtype}, with triton installed; use `auto`.")
    if _chosen == "triton":
        from vmapens.nn.kernels import triton

        return triton
    if _chosen == "compiled" or (_chosen == "auto" and able and _has_numba()):
        from vmapens.nn.kernels import compiled

        return compiled
    if _chosen != "auto":
        return {"reference": reference, "onednn": onednn, "batched": batched}[_chosen]
    if device.type == "cpu":
        return onednn if able and torch.backends.mkldnn.is_available() else reference
    return checked if device.type == "cuda" and dtype == torch.float32 and has_triton() else batched


def version(device: torch.device) -> str:
    """The kernel that computes float32 there, and what made it: with other ones a variant's bytes differ."""
    name: str = choose(device, torch.float32).__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    if name != "compiled":
        return name
    from vmapens.nn.kernels.compiled.lanes import LANES

    return f"compiled, {LANES} lanes, numba {importlib.metadata.version('numba')}"


def is_compiled(tensor: Tensor) -> bool:
    """Whether tensors like this one are computed by the compiled kernel, and so may its kin be."""
    able = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return able and _chosen in ("auto", "compiled") and _has_numba()


@cache
def has_triton() -> bool:
    """Whether the extra `gpu` is installed."""
    return importlib.util.find_spec("triton") is not None


@cache
def _has_numba() -> bool:
    """Whether the extra `cpu` is installed, and takes the NumPy that is there."""
    try:
        importlib.import_module("vmapens.nn.kernels.compiled")
    except ImportError:
        return False
    return True


def compute_device(spec: TrainSpec) -> torch.device:
    """Where to compute, by `spec.device` and what is there.

    Raises:
        SpecError: If a GPU is asked for and there is none, or no kernel there offers `spec.precision`.
    """
    cuda = torch.cuda.is_available()
    if spec.device == "cuda" and not cuda:
        raise SpecError("device is cuda, but torch sees no GPU; use --device cpu, or install a CUDA build of torch.")
    device = torch.device("cuda" if spec.device != "cpu" and cuda else "cpu")
    if spec.precision not in ("auto", "fp32", *_offered(device)):
        hint = ", ".join(("fp32", *_offered(device)))
        raise SpecError(f"precision is {spec.precision}, but no kernel here offers it on {device}; use {hint}.")
    return device


def _offered(device: torch.device) -> tuple[str, ...]:
    """Precisions beside fp32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return ("tf32", "bf16") if has_triton() else ("tf32",)
    if device.type == "cpu" and _has_numba():
        from vmapens.nn.kernels.compiled.lanes import HAS_BF16

        return ("bf16",) if HAS_BF16 else ()
    return ()
