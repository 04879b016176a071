"""One training step of many variants: `vmap(grad_and_value(loss))` over the rows, then one elementwise update.

This is the only `vmap` over training. It knows no model by name: a model is any module whose `forward(x [B, T, F])`
gives `(logits [B, C], attention [B, ...])` and whose operations `torch.func` can transform. Four methods are optional.
Three spare work: `logits(x)`, logits alone; `attend(x)`, attention alone; `loss(x [N, T, F], rows [B], y [B], kind)`,
the mean loss of the batch x[rows], for a model that gathers and differentiates better than `vmap` would. One lets
analyses hold the attention still: `logits_given(x, attention [B or 1, ...])`, logits with these weights in its place.

On a CPU whatever stands around the model's own operations is computed variant by variant (`vmapens.nn.isolation`),
so that a built-in model's variant has the same bytes in any company.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from vmapens.ensemble import optimizer
from vmapens.ensemble.optimizer import AdamState
from vmapens.ensemble.stack import Stack
from vmapens.nn.isolation import aligned, per_variant
from vmapens.nn.loss import LOSSES, TaskKind

Parameters = dict[str, Tensor]
Method = Literal["logits", "attend", "logits_given", "loss"]
Gradients = Callable[[Parameters, Parameters, Tensor, Tensor, Tensor], tuple[Parameters, Tensor]]

PREDICTION_BATCH = 256
"""Samples per batch of predictions; part of what their bytes are, as the path of a matrix product depends on it."""


class _Call(torch.nn.Module):
    """A module whose forward is one method of another, so that `functional_call` can reach it."""

    def __init__(self, model: torch.nn.Module, method: Method) -> None:
        super().__init__()
        self.model = model
        self._method = method

    def forward(self, *arguments: Any) -> Tensor:
        own = getattr(type(self.model), self._method, None)  # of the class: a layer may have that name, too
        if own is not None:
            result: Tensor = own(self.model, *arguments)
            return result
        logits, attention = self.model(*arguments)
        return logits if self._method == "logits" else attention  # type: ignore[no-any-return]


def _within(parameters: Parameters) -> Parameters:
    return {f"model.{name}": tensor for name, tensor in parameters.items()}


def one_variant(model: torch.nn.Module, method: Literal["logits", "attend", "logits_given"]) -> Callable[..., Tensor]:
    """The model's logits or attention as a function of its parameters and x [B, T, F]; logits given attention, too.

    Only a model that `holds_attention` has logits given attention.
    """
    call = _Call(model, method)

    def function(parameters: Parameters, *arguments: Tensor) -> Tensor:
        result: Tensor = functional_call(call, _within(parameters), arguments)
        return result

    return function


def holds_attention(model: torch.nn.Module) -> bool:
    """Whether the model can say its logits given attention."""
    return callable(getattr(type(model), "logits_given", None))


def gradients(model: torch.nn.Module, kind: TaskKind) -> Gradients:
    """The function (trained, fixed, x [N, T, F], rows [V, B], y [V, B]) -> (gradients by name, losses [V])."""
    logits_of = one_variant(model, "logits")
    own = _Call(model, "loss") if hasattr(type(model), "loss") else None

    def loss(trained: Parameters, fixed: Parameters, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
        parameters = {**trained, **fixed}
        if own is not None:
            result: Tensor = functional_call(own, _within(parameters), (x, rows, y, kind))
            return result
        batch = per_variant(lambda x, rows: x.index_select(0, rows), x, rows)
        return per_variant(LOSSES[kind], logits_of(parameters, batch), y)

    return vmap(grad_and_value(loss), in_dims=(0, 0, None, 0, 0))


def train_step(
    gradients: Gradients,
    stack: Stack,
    state: AdamState,
    x: Tensor,
    y: Tensor,
    index: Int[Tensor, "V B"],
    step: int,
    *,
    clip_norm: float = 0.0,
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
        clip_norm: Largest Euclidean norm of a variant's gradient; 0: any.

    Returns:
        Each variant's loss before the step.

    Raises:
        RuntimeError: If memory runs out; nothing has changed then.
    """
    grads, losses = gradients(stack.views(trained=True), stack.views(trained=False), x, index, y[index])
    parts = {(column.start, column.stop): grads[column.name] for column in stack.columns if column.trained}
    optimizer.update_parts_(stack.theta[:, : stack.trained_width], parts, state, step, clip_norm=clip_norm)
    return losses


def predict(
    model: torch.nn.Module,
    kind: TaskKind,
    stack: Stack,
    x: Float[Tensor, "N T F"],
    rows: Int[Tensor, "S"] | None = None,
    *,
    batch: int = PREDICTION_BATCH,
) -> Float[Tensor, "V S *C"]:
    """Probabilities under every variant, in float32: [V, S] of class 1 for a binary task, else [V, S, C].

    Of x[rows], which is gathered a batch at a time; of all of x without rows.
    """
    logits_of = one_variant(model, "logits")

    def probability(parameters: Parameters, x: Tensor) -> Tensor:
        activation = _sigmoid if kind == "binary" else _softmax
        return per_variant(activation, logits_of(parameters, x))

    return _in_batches(probability, stack, x, batch, rows)


def _sigmoid(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits[:, 0])


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=-1)


def attend(model: torch.nn.Module, stack: Stack, x: Float[Tensor, "S T F"]) -> Float[Tensor, "V S ..."]:
    """Attention of the samples under every variant, in float32; the axes are the model's `attention_axes`.

    On a CPU each sample goes by itself, so that its attention is the same bytes whichever others are asked for.
    """
    return _in_batches(one_variant(model, "attend"), stack, x, PREDICTION_BATCH if x.is_cuda else 1)


def _in_batches(
    function: Callable[[Parameters, Tensor], Tensor], stack: Stack, x: Tensor, batch: int, rows: Tensor | None = None
) -> Tensor:
    """A function of one variant and a batch, over all variants and samples, or those of some rows; float32."""
    stacked = vmap(function, in_dims=(0, None))
    parameters = stack.views()
    count = len(x if rows is None else rows)
    result: Tensor | None = None
    with torch.no_grad():
        for start in range(0, count, batch):
            own = slice(start, start + batch)
            values = stacked(parameters, aligned(x[own] if rows is None else x[rows[own]]))
            if values.shape[1] == count:  # all of it: no copy
                return values.float()
            if result is None:
                result = torch.empty(len(stack.theta), count, *values.shape[2:], device=x.device)
            result[:, own] = values
    assert result is not None, "no samples"
    return result
