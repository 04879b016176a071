"""Adam in the L2 form, elementwise on the rows of theta, with a learning rate and a weight decay per variant.

    g <- g + wd * theta            m <- b1 * m + (1 - b1) * g            v <- b2 * v + (1 - b2) * g^2
    theta <- theta - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

with b1 = 0.9, b2 = 0.999, eps = 1e-8. Source: Kingma & Ba 2015, arXiv:1412.6980; the order of operations is that of
`torch.optim.Adam(weight_decay=wd)`, which it equals to rounding. The state is changed in place: it is the largest thing
in memory after the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.kernels import Plan, checked, has_triton, is_compiled
from vmapens.nn.threads import over_variants

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class AdamState:
    """First and second moments of the trained columns, and the settings of each variant (float64)."""

    first: Float[Tensor, "V P"]
    second: Float[Tensor, "V P"]
    lr: Float[Tensor, "V"]
    weight_decay: Float[Tensor, "V"]

    def rows(self, start: int, stop: int) -> "AdamState":
        """Variants start..stop-1, sharing memory."""
        return AdamState(*(t[start:stop] for t in (self.first, self.second, self.lr, self.weight_decay)))


def init(theta: Float[Tensor, "V P"], lr: Float[Tensor, "V"], weight_decay: Float[Tensor, "V"]) -> AdamState:
    """The state before the first step. `theta` holds the trained columns only."""
    return AdamState(torch.zeros_like(theta), torch.zeros_like(theta), lr.double(), weight_decay.double())


def update_(theta: Float[Tensor, "V P"], grad: Float[Tensor, "V P"], state: AdamState, step: int) -> None:
    """Take one step, in place; `grad` is used up.

    Args:
        theta: Trained columns.
        grad: Gradient of the loss; it serves as working memory.
        state: Changed in place.
        step: t, counted from 1.
    """
    if is_compiled(theta):
        _update_compiled(theta, grad, state, step)
        return
    step_size = (state.lr / (1 - _BETA_1**step)).to(theta.dtype).unsqueeze(1)
    root_correction = (1 - _BETA_2**step) ** 0.5
    grad.addcmul_(theta, state.weight_decay.to(theta.dtype).unsqueeze(1))
    state.first.lerp_(grad, 1 - _BETA_1)
    state.second.mul_(_BETA_2).addcmul_(grad, grad, value=1 - _BETA_2)
    denominator = torch.sqrt(state.second, out=grad).div_(root_correction).add_(_EPSILON)
    theta.sub_(torch.div(state.first, denominator, out=denominator).mul_(step_size))


def _update_compiled(theta: Tensor, grad: Tensor, state: AdamState, step: int) -> None:
    from vmapens.nn.kernels.compiled.adam import update

    root_correction = (1 - _BETA_2**step) ** 0.5
    tensors = (t.numpy() for t in (theta, grad.contiguous(), state.first, state.second))
    settings = state.weight_decay.tolist(), (state.lr / (1 - _BETA_1**step)).tolist()
    for *rows, decay, step_size in zip(*tensors, *settings, strict=True):
        update(*rows, decay, _BETA_1, _BETA_2, root_correction, _EPSILON, step_size)


def update_parts_(
    theta: Float[Tensor, "V P"],
    grads: Mapping[tuple[int, int], Float[Tensor, "V ..."]],
    state: AdamState,
    step: int,
    *,
    clip_norm: float = 0.0,
) -> None:
    """Take one step as `update_` does, with the gradient in parts; columns without a part only decay.

    On a GPU with Triton one kernel goes over the columns of each part, which are all that it changes; elsewhere the
    parts are copied into one tensor first. All memory that grows with the parameters is taken before anything changes,
    so that a step that runs out of it can be taken again.

    Args:
        theta: Trained columns.
        grads: Gradient of columns start..stop-1 by (start, stop).
        state: Changed in place.
        step: t, counted from 1.
        clip_norm: A variant whose gradient has a larger Euclidean norm takes it times clip_norm / norm; 0: never.
    """
    if _fused(theta):
        _update_fused_(theta, _clipped(grads, clip_norm) if clip_norm else grads, state, step)
        return
    flat = torch.zeros_like(theta, memory_format=torch.contiguous_format)
    for (start, stop), grad in grads.items():
        flat[:, start:stop] = grad.flatten(1)

    def update(start: int, stop: int) -> None:
        grad = flat[start:stop]
        if clip_norm:
            grad *= _clip_factor(torch.linalg.vector_norm(grad, dim=1, keepdim=True), clip_norm)
        update_(theta[start:stop], grad, state.rows(start, stop), step)

    if theta.device.type == "cpu":
        over_variants(lambda v: update(v, v + 1), len(theta))
    else:
        update(0, len(theta))


def _clip_factor(norm: Float[Tensor, "..."], clip_norm: float) -> Float[Tensor, "..."]:
    """That of `torch.nn.utils.clip_grad_norm_`; NaN for a gradient that is not finite, which so stays visible."""
    return (clip_norm / (norm + 1e-6)).clamp(max=1.0)


def _clipped(grads: Mapping[tuple[int, int], Tensor], clip_norm: float) -> dict[tuple[int, int], Tensor]:
    norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads.values()]
    factor = _clip_factor(torch.linalg.vector_norm(torch.stack(norms), dim=0), clip_norm)
    return {place: grad * factor.view(-1, *[1] * (grad.dim() - 1)) for place, grad in grads.items()}


def _fused(theta: Tensor) -> bool:
    """Whether the Triton kernel computes: on a GPU, where it agrees with `update_` on a made problem."""
    if not (theta.is_cuda and theta.dtype == torch.float32 and has_triton()):
        return False
    return checked.trusted((theta.device, "adam"), Plan(), lambda: fused_distances(theta.device))


def _update_fused_(theta: Tensor, grads: Mapping[tuple[int, int], Tensor], state: AdamState, step: int) -> None:
    from vmapens.nn.kernels.triton import adam

    step_size = (state.lr / (1 - _BETA_1**step)).to(theta.dtype)
    decay = state.weight_decay.to(theta.dtype)
    flat = {place: grad.flatten(1) for place, grad in grads.items()}  # before anything changes: it may take memory
    for (start, stop), grad in flat.items():
        adam.update_(
            theta[:, start:stop],
            grad,
            state.first[:, start:stop],
            state.second[:, start:stop],
            step_size=step_size,
            decay=decay,
            root_correction=(1 - _BETA_2**step) ** 0.5,
            betas=(_BETA_1, _BETA_2),
            epsilon=_EPSILON,
        )


def fused_distances(device: torch.device, *, variants: int = 3, seed: int = 0) -> dict[str, float]:
    """``|got - truth| / |truth|`` of theta's change and the moments after three fused steps of a made problem."""
    generator = torch.Generator(device).manual_seed(seed)
    settings = torch.tensor([[1e-3, 5e-4, 1e-1], [0.0, 1e-6, 1e-1]], device=device)[:, torch.arange(variants) % 3]
    columns = {(0, 1050): (variants, 35, 30), (1056, 1061): (variants, 5)}
    theta = torch.randn(variants, 1072, generator=generator, device=device)
    ours, truth = theta.clone(), theta.double()
    states = init(ours, *settings), init(truth, *settings)
    for step in range(1, 4):
        grads = {place: torch.randn(shape, generator=generator, device=device) for place, shape in columns.items()}
        flat = torch.zeros_like(truth)
        for (start, stop), grad in grads.items():
            flat[:, start:stop] = grad.flatten(1)
        _update_fused_(ours, grads, states[0], step)
        update_(truth, flat, states[1], step)
    real = torch.cat([torch.arange(*place) for place in columns]).to(device)
    pairs = {"theta": (ours - theta, truth - theta), "first": (states[0].first, states[1].first)}
    pairs["second"] = (states[0].second, states[1].second)
    return {name: ((a.double() - b)[:, real].norm() / b[:, real].norm()).item() for name, (a, b) in pairs.items()}
