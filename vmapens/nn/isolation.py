"""Make an operation independent of the other variants, to the bit.

Under plain `vmap` an operation on V variants is one operation on a longer tensor, and its result depends on V: a batch
of one takes another matrix path than a batch of many, and `exp` and its kin are computed by vector instructions in
the middle of a tensor but not at its end. `per_variant` calls the function once per variant, on that variant's own
tensors; so a variant has the same bytes in any company. On a GPU the promise is equality to rounding, and the function
runs under `vmap` as it is.
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from vmapens.nn.threads import over_variants

Operation = Callable[..., Tensor]


def per_variant(function: Operation, *tensors: Tensor) -> Tensor:
    """Call `function(*tensors)` so that under `torch.func.vmap` each variant is computed by itself.

    Differentiable once, by recomputing the function in the backward; meant for the small operations around a kernel.

    Args:
        function: A plain function of one variant's tensors, with one tensor as its result. No randomness.
        tensors: Its arguments.

    Returns:
        What `function` returns.

    >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> torch.func.vmap(lambda row: per_variant(torch.sum, row))(x)
    tensor([1., 5.])
    """
    result: Tensor = _PerVariant.apply(function, *tensors)  # type: ignore[no-untyped-call]
    return result


def by_variant(tensors: tuple[Any, ...], in_dims: tuple[int | None, ...], count: int) -> list[tuple[Any, ...]]:
    """The arguments of each variant: its part of a tensor that has an axis of variants; all others as they are."""
    parts = [
        repeat(argument, count) if dim is None or not isinstance(argument, Tensor) else argument.unbind(dim)
        for argument, dim in zip(tensors, in_dims, strict=True)
    ]
    return list(zip(*parts, strict=True))


def aligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous and at an address that is a multiple of 64 bytes.

    Matrix libraries may take another path, and round otherwise, where a matrix starts at an odd address.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def _needs_vmap(tensor: Tensor) -> bool:
    recorded = tensor.requires_grad and torch.is_grad_enabled()
    return tensor.is_cuda or recorded or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _stack_variants(
    one: Callable[..., Any], whole: Callable[..., Any], in_dims: tuple[Any, ...], count: int, arguments: tuple[Any, ...]
) -> Any:
    """Apply `one` to each variant's arguments and stack its results, a tensor or a tuple of them, in front.

    `whole` goes under `vmap` instead on a GPU, below another transform (whose rules are found in the calling thread
    only), and where plain autograd records what is done (`vmap(f)(parameters).backward()`).
    """
    if any(isinstance(argument, Tensor) and _needs_vmap(argument) for argument in arguments):
        return torch.vmap(whole, in_dims)(*arguments)
    results: list[Any] = [None] * count
    own = by_variant(arguments, in_dims, count)

    def work(v: int) -> None:  # each tensor as if it stood alone
        results[v] = one(*[aligned(entry) if isinstance(entry, Tensor) else entry for entry in own[v]])

    over_variants(work, count)
    if isinstance(results[0], tuple):
        return tuple(torch.stack(entries) for entries in zip(*results, strict=True))
    return torch.stack(results)


class _PerVariant(torch.autograd.Function):
    @staticmethod
    def forward(function: Operation, *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = tuple(ctx.needs_input_grad[1:])
        gradients = iter(_Gradient.apply(ctx.function, needed, grad, *ctx.saved_tensors))  # type: ignore[no-untyped-call]
        return (None, *(next(gradients) if need else None for need in needed))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Operation, *tensors: Tensor) -> tuple[Tensor, int]:
        return _stack_variants(function, function, in_dims[1:], info.batch_size, tensors), 0


class _Gradient(torch.autograd.Function):
    """The vector-Jacobian product of a plain function, for those of its tensors that need one."""

    @staticmethod
    def forward(function: Operation, needed: tuple[bool, ...], grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
            result = function(*leaves)
            return torch.autograd.grad(result, [leaf for leaf in leaves if leaf.requires_grad], grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError("per_variant is differentiable once; write the function without it for more.")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], function: Operation, needed: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        one, whole = partial(_Gradient.forward, function, needed), partial(_vector_jacobian, function, needed)
        gradients = _stack_variants(one, whole, in_dims[2:], info.batch_size, tensors)
        return gradients, (0,) * len(gradients)


def _vector_jacobian(
    function: Operation, needed: tuple[bool, ...], grad: Tensor, *tensors: Tensor
) -> tuple[Tensor, ...]:
    """`_Gradient.forward` in a form that `vmap` can transform, 2.5 times dearer to call."""

    def of_needed(*some: Tensor) -> Tensor:
        given = iter(some)
        return function(*(next(given) if need else t for t, need in zip(tensors, needed, strict=True)))

    some = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    gradients: tuple[Tensor, ...] = torch.func.vjp(of_needed, *some)[1](grad)
    return gradients
