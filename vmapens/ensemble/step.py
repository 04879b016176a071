"""One training step of many variants: `vmap(grad_and_value(loss))` over the rows, then one elementwise update.

This is the only `vmap` over training. It knows no model by name: a model is any module whose `forward(x [B, T, F])`
gives `(logits [B, C], attention [B, ...])` and whose operations `torch.func` can transform. Two methods are optional
and spare work: `logits(x)`, logits alone, and `attend(x)`, attention alone.

On a CPU whatever stands around the model's own operations is computed variant by variant (`vmapens.nn.isolation`),
so that a built-in model's variant has the same bytes in any company.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from vmapens.ensemble import optimizer
from vmapens.ensemble.optimizer import AdamState
from vmapens.ensemble.stack import Stack
from vmapens.nn.isolation import aligned, per_variant
from vmapens.nn.threads import over_variants

TaskKind = Literal["binary", "multiclass"]
Parameters = dict[str, Tensor]
Gradients = Callable[[Parameters, Parameters, Tensor, Tensor], tuple[Parameters, Tensor]]

PREDICTION_BATCH = 256
"""Samples per batch of predictions; part of what their bytes are, as the path of a matrix product depends on it."""


class _Call(torch.nn.Module):
    """A module whose forward is one method of another, so that `functional_call` can reach it."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self._method = method

    def forward(self, x: Tensor) -> Tensor:
        own = getattr(type(self.model), self._method, None)  # of the class: a layer may have that name, too
        if own is not None:
            result: Tensor = own(self.model, x)
            return result
        logits, attention = self.model(x)
        return logits if self._method == "logits" else attention  # type: ignore[no-any-return]


def one_variant(model: torch.nn.Module, method: Literal["logits", "attend"]) -> Callable[[Parameters, Tensor], Tensor]:
    """The model's logits or attention as a function of its parameters and x [B, T, F]."""
    call = _Call(model, method)

    def function(parameters: Parameters, x: Tensor) -> Tensor:
        result: Tensor = functional_call(call, {f"model.{name}": p for name, p in parameters.items()}, (x,))
        return result

    return function


def _binary_loss(logits: Float[Tensor, "B 1"], y: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    probability = torch.sigmoid(logits[:, 0])
    lost = probability.isnan()  # a diverged variant: PyTorch's loss would stop all the others with it
    return F.binary_cross_entropy(probability.masked_fill(lost, 0.5), y).masked_fill(lost.any(), torch.nan)


def _multiclass_loss(logits: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, y)


LOSSES = {"binary": _binary_loss, "multiclass": _multiclass_loss}
"""The paper's losses: cross-entropy on the sigmoid, and on the softmax; means over the batch."""


def targets(y: Int[Tensor, "N"], kind: TaskKind, dtype: torch.dtype) -> Tensor:
    """Labels as the task's loss wants them."""
    return y.to(dtype) if kind == "binary" else y


def gradients(model: torch.nn.Module, kind: TaskKind) -> Gradients:
    """The function (trained, fixed, x [V, B, T, F], y [V, B]) -> (gradients by name, losses [V]) over all variants."""
    logits_of, loss_of = one_variant(model, "logits"), LOSSES[kind]

    def loss(trained: Parameters, fixed: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return per_variant(loss_of, logits_of({**trained, **fixed}, x), y)

    return vmap(grad_and_value(loss))


def train_step(
    gradients: Gradients, stack: Stack, state: AdamState, x: Tensor, y: Tensor, index: Int[Tensor, "V B"], step: int
) -> Float[Tensor, "V"]:
    """Take one step of every variant of `stack`, each on its own batch; theta and the state change in place.

    Args:
        gradients: From `gradients`.
        stack: The variants.
        state: Their optimiser state.
        x: Training samples [N, T, F], shared.
        y: Their targets [N].
        index: Which samples each variant sees.
        step: Counted from 1.

    Returns:
        Each variant's loss before the step.
    """
    grads, losses = gradients(stack.views(trained=True), stack.views(trained=False), _gather(x, index), y[index])
    width = stack.trained_width
    columns = [column for column in stack.columns if column.trained]

    def update(start: int, stop: int) -> None:
        parts = {(column.start, column.stop): grads[column.name][start:stop] for column in columns}
        optimizer.update_parts_(stack.theta[start:stop, :width], parts, state.rows(start, stop), step)

    if x.is_cuda:
        update(0, len(index))
    else:
        over_variants(lambda v: update(v, v + 1), len(index))
    return losses


def _gather(x: Float[Tensor, "N T F"], index: Int[Tensor, "V B"]) -> Float[Tensor, "V B T F"]:
    if x.is_cuda:
        return x[index]
    batch = x.new_empty(*index.shape, *x.shape[1:])
    over_variants(lambda v: torch.index_select(x, 0, index[v], out=batch[v]), len(index))
    return batch


def predict(
    model: torch.nn.Module, kind: TaskKind, stack: Stack, x: Float[Tensor, "N T F"], *, batch: int = PREDICTION_BATCH
) -> Float[Tensor, "V N *C"]:
    """Probabilities under every variant, in float32: [V, N] of class 1 for a binary task, else [V, N, C]."""
    logits_of = one_variant(model, "logits")

    def probability(parameters: Parameters, x: Tensor) -> Tensor:
        activation = _sigmoid if kind == "binary" else _softmax
        return per_variant(activation, logits_of(parameters, x))

    return _in_batches(probability, stack, x, batch)


def _sigmoid(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits[:, 0])


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1)


def attend(model: torch.nn.Module, stack: Stack, x: Float[Tensor, "S T F"]) -> Float[Tensor, "V S ..."]:
    """Attention of the samples under every variant, in float32; the axes are the model's `attention_axes`.

    On a CPU each sample goes by itself, so that its attention is the same bytes whichever others are asked for.
    """
    return _in_batches(one_variant(model, "attend"), stack, x, PREDICTION_BATCH if x.is_cuda else 1)


def _in_batches(function: Callable[[Parameters, Tensor], Tensor], stack: Stack, x: Tensor, batch: int) -> Tensor:
    """A function of one variant and a batch, over all variants and samples; float32."""
    stacked = vmap(function, in_dims=(0, None))
    parameters = stack.views()
    result: Tensor | None = None
    with torch.no_grad():
        for start in range(0, len(x), batch):
            values = stacked(parameters, aligned(x[start : start + batch]))
            if result is None:
                result = torch.empty(len(stack.theta), len(x), *values.shape[2:], device=x.device)
            result[:, start : start + batch] = values
    assert result is not None, "no samples"
    return result
