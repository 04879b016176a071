"""Softmax gate, LSTM and last state as one autograd Function whose `vmap` rule hands all variants to one kernel.

`torch.nn.LSTM` has no batching rule, and a Python loop over steps under `vmap` is 10 to 50 times slower than running
the variants one after the other. So the Function below always speaks of stacked tensors [V, ...]: a plain call has
V = 1, and each level of `vmap` folds its axis into V. Forward and backward both are Functions with that rule, so
`vmap`, `vmap(grad)`, plain autograd and `no_grad` work alike. Ground truth: `kernels/reference.py`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.kernels import Gradients, Inputs, Plan, States, choose, precision

_INPUTS = len(Inputs._fields)
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
    stacked = [None if tensor is None else tensor.unsqueeze(0) for tensor in inputs]
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in stacked)
    plan = Plan(plan.gate_over, plan.all_states, keep=differentiated, precision=precision())
    states, h, c, *_ = _Recurrence.apply(plan, *stacked)  # type: ignore[no-untyped-call]
    return states.squeeze(0) if plan.all_states else None, h.squeeze(0), c.squeeze(0)


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
        raise NotImplementedError("the fused LSTM is differentiable once; use torch.nn.LSTM for second derivatives.")

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
