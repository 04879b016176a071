"""Softmax gate, LSTM and last state as one autograd Function whose `vmap` rule hands all variants to one kernel.

`torch.nn.LSTM` has no batching rule, and a Python loop over steps under `vmap` is 10 to 50 times slower than running
the variants one after the other. So the Function below always speaks of stacked tensors [V, ...]: a plain call has
V = 1, and each level of `vmap` folds its axis into V. Forward and backward both are Functions with that rule, so
`vmap`, `vmap(grad)`, plain autograd and `no_grad` work alike. Ground truth: `kernels/reference.py`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.isolation import per_variant
from vmapens.nn.kernels import Gradients, Inputs, Plan, States, choose, precision
from vmapens.nn.loss import LOSSES, TaskKind

_INPUTS = len(Inputs._fields)
_ONCE = "the fused LSTM is differentiable once; use torch.nn.LSTM for second derivatives."
_NO_GRADIENT_OF_X = "samples that are named by rows have no gradient, nor have their first states; gather them first."
_NO_STATES = 0  # columns of the placeholder that stands where no tensor of states was asked for


def recurrence(
    inputs: Inputs, plan: Plan
) -> tuple[Float[Tensor, "B T H"] | None, Float[Tensor, "B H"], Float[Tensor, "B H"]]:
    """Run the gate (if there is one) and the LSTM over one variant's batch.

    ``a = softmax(Linear(x))`` over `plan.gate_over`, then ``LSTM(x * a)``, as in Gandin et al. 2021.

    Args:
        inputs: The tensors of `Inputs` **without** the variant axis; under `vmap` each may be batched or shared.
        plan: What to compute; `keep` and `precision` are decided here.

    Returns:
        All states (None unless `plan.all_states`), last hidden state, last cell state. Differentiable once.
    """
    _check_precision(inputs)
    stacked = [None if tensor is None else tensor.unsqueeze(0) for tensor in inputs]
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in stacked)
    plan = Plan(plan.gate_over, plan.all_states, keep=differentiated, precision=precision())
    states, h, c, *_ = _Recurrence.apply(plan, *stacked)  # type: ignore[no-untyped-call]
    return states.squeeze(0) if plan.all_states else None, h.squeeze(0), c.squeeze(0)


def classifier_loss(
    inputs: Inputs, plan: Plan, weight: Float[Tensor, "C H"], bias: Float[Tensor, "C"], y: Tensor, kind: TaskKind
) -> Float[Tensor, ""]:
    """Mean loss over one variant's batch of a linear layer on the last hidden state.

    Where the kernel offers it, one call computes the loss **and** its gradients, variant by variant while all of it is
    in the cache; the backward then only scales them. Otherwise it is put together from its parts.

    Args:
        inputs: As in `recurrence`.
        plan: As in `recurrence`.
        weight: Of the linear layer.
        bias: Of the linear layer.
        y: Labels [B], in the form that `LOSSES` wants.
        kind: Of the loss.

    Returns:
        The loss. Differentiable once, with respect to the parameters.

    Raises:
        NotImplementedError: In the backward, if a gradient of x, h0 or c0 is asked for, or a second derivative.
        TypeError: If the tensors are not of one precision.
    """
    _check_precision((*inputs, weight, bias))
    kernel = choose(inputs.x.device, inputs.x.dtype)
    if not hasattr(kernel, "classify"):
        logits = per_variant(F.linear, recurrence(inputs, plan)[1], weight, bias)
        return per_variant(LOSSES[kind], logits, y)
    plan = replace(plan, precision=precision())
    stacked = (None if tensor is None else tensor.unsqueeze(0) for tensor in (weight, bias, y, *inputs))
    loss, *_ = _ClassifierLoss.apply(plan, kind, *stacked)  # type: ignore[no-untyped-call]
    return loss.squeeze(0)  # type: ignore[no-any-return]


def _check_precision(tensors: Iterable[Tensor | None]) -> None:
    kinds = {tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()}
    if len(kinds) > 1:
        raise TypeError(f"inputs and parameters are {', '.join(sorted(map(str, kinds)))}; use one precision for all.")


def _fold(tensors: tuple[Tensor | None, ...], in_dims: tuple[int | None, ...], size: int) -> list[Tensor | None]:
    """Merge the axis of a `vmap` into the leading variant axis; a shared tensor is expanded, not copied."""
    folded: list[Tensor | None] = []
    for tensor, dim in zip(tensors, in_dims, strict=True):
        if tensor is not None:
            tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor.flatten(0, 1)
        folded.append(tensor)
    return folded


def _unfold(tensor: Tensor | None, size: int) -> Tensor | None:
    return None if tensor is None else tensor.unflatten(0, (size, -1))


class _Recurrence(torch.autograd.Function):
    """(plan, *inputs) -> (states or a placeholder, h, c, *kept)."""

    @staticmethod
    def forward(plan: Plan, *tensors: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*tensors)
        states, kept = choose(inputs.x.device, inputs.x.dtype).forward(inputs, plan)
        assert states.h is not None
        assert states.c is not None
        everything = states.h.new_empty(len(states.h), _NO_STATES) if states.all is None else states.all
        return everything, states.h, states.c, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[0]
        kept = output[3:]
        ctx.mark_non_differentiable(*kept, *(() if ctx.plan.all_states else output[:1]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if ctx.needs_input_grad[1] and saved[_INPUTS - 1] is not None:
            raise NotImplementedError(_NO_GRADIENT_OF_X)
        gradients = _Gradient.apply(ctx.plan, ctx.needs_input_grad[1], *grads[:3], *saved)  # type: ignore[no-untyped-call]
        present = iter(gradients)
        needed = [
            t is not None and (i > 0 or ctx.needs_input_grad[1]) for i, t in enumerate(saved[: len(Gradients._fields)])
        ]
        return (None, *(next(present) if need else None for need in needed), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], plan: Plan, *tensors: Any) -> Any:
        folded = _fold(tensors, in_dims[1:], info.batch_size)
        states, h, c, *kept = _Recurrence.apply(plan, *folded)  # type: ignore[no-untyped-call]
        results = (_unfold(states, info.batch_size), _unfold(h, info.batch_size), _unfold(c, info.batch_size))
        return (*results, *kept), (0, 0, 0, *(None for _ in kept))


class _Gradient(torch.autograd.Function):
    """(plan, need_x, three gradients of states, inputs, kept) -> the gradients of the inputs that are there."""

    @staticmethod
    def forward(plan: Plan, need_x: bool, *tensors: Any) -> tuple[Tensor, ...]:
        grads, inputs = States(*tensors[:3]), Inputs(*tensors[3 : 3 + _INPUTS])
        kernel = choose(inputs.x.device, inputs.x.dtype)
        gradients = kernel.backward(inputs, plan, grads, tensors[3 + _INPUTS :], need_x)
        return tuple(gradient for gradient in gradients if gradient is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(_ONCE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], plan: Plan, need_x: bool, *tensors: Any) -> Any:
        fixed, size = 3 + _INPUTS, info.batch_size
        folded = _fold(tensors[:fixed], in_dims[2 : 2 + fixed], size)
        # What was kept is one tensor per variant. It fits if the forward was under this vmap; a vmap over the
        # backward alone has more variants than that, and computes the forward again.
        inputs_batched = any(dim is not None for dim in in_dims[5 : 2 + fixed])
        kept = tensors[fixed:] if inputs_batched else ()
        gradients = _Gradient.apply(plan, need_x, *folded, *kept)  # type: ignore[no-untyped-call]
        return tuple(_unfold(gradient, size) for gradient in gradients), (0,) * len(gradients)


class _ClassifierLoss(torch.autograd.Function):
    """(plan, kind, weight, bias, y, *inputs) -> (loss, *gradients of weight, bias and the inputs' parameters)."""

    @staticmethod
    def forward(plan: Plan, kind: TaskKind, *tensors: Any) -> tuple[Tensor, ...]:
        weight, bias, y, *rest = tensors
        inputs = Inputs(*rest)
        kernel: Any = choose(inputs.x.device, inputs.x.dtype)
        result = kernel.classify(inputs, plan, weight, bias, y, kind)
        gradients = (result.weight, result.bias, *result.inputs[3:])
        return result.loss, *(gradient for gradient in gradients if gradient is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.present = [tensor is not None for tensor in inputs[8:-1]]  # of the parameters, between c0 and the rows
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None or any(second is not None for second in of_gradients):
            raise NotImplementedError(_ONCE)
        if any(ctx.needs_input_grad[5:8]):
            raise NotImplementedError(_NO_GRADIENT_OF_X)
        weight, bias, *others = (grad.view(-1, *[1] * (saved.dim() - 1)) * saved for saved in ctx.saved_tensors)
        of_others = iter(others)
        parameters = (next(of_others) if present else None for present in ctx.present)
        return None, None, weight, bias, None, None, None, None, *parameters, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], plan: Plan, kind: TaskKind, *tensors: Any) -> Any:
        folded = _fold(tensors, in_dims[2:], info.batch_size)
        results = _ClassifierLoss.apply(plan, kind, *folded)  # type: ignore[no-untyped-call]
        return tuple(_unfold(result, info.batch_size) for result in results), (0,) * len(results)
