"""Adam in the L2 form, elementwise on the rows of theta, with a learning rate and a weight decay per variant.

    g <- g + wd * theta            m <- b1 * m + (1 - b1) * g            v <- b2 * v + (1 - b2) * g^2
    theta <- theta - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

with b1 = 0.9, b2 = 0.999, eps = 1e-8. Source: Kingma & Ba 2015, arXiv:1412.6980; the order of operations is that of
`torch.optim.Adam(weight_decay=wd)`, which it equals to rounding. The state is changed in place: it is the largest thing
in memory after the data.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vmapens.nn.kernels import is_compiled

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
    tensors = (t.numpy() for t in (theta, grad, state.first, state.second))
    settings = state.weight_decay.tolist(), (state.lr / (1 - _BETA_1**step)).tolist()
    for *rows, decay, step_size in zip(*tensors, *settings, strict=True):
        update(*rows, decay, _BETA_1, _BETA_2, root_correction, _EPSILON, step_size)
