"""Attributions of one stay under all variants: the attention, what passes its gate, and gradients.

An attribution gives every cell a number. What is explained is the signed logit: the log-odds of class 1, or of the
true class where there are several. Gradients go through everything, the attention included.

Axes: V variants, B batch, T steps, F features, C logits. Ground truth: Captum on plain PyTorch modules, one variant at
a time.
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.func import grad, vmap

from vmapens.analysis.tables import ATTRIBUTIONS
from vmapens.ensemble.stack import Stack
from vmapens.ensemble.step import Parameters, attend, one_variant
from vmapens.nn.isolation import per_variant
from vmapens.nn.threads import spread_over

PATH_POINTS = 32
"""Midpoints of the path that integrated gradients are summed over."""

_PASS_MIB = 512.0
_VARIANTS = 16  # in a pass on a CPU, where more gain nothing
_WORKSPACE = 12  # tape, gradients and copies of a batch, as a multiple of it


def signed_logit(logits: Float[Tensor, "B C"], y: int) -> Float[Tensor, "B"]:
    """Log-odds of class 1 if there is one logit, else of class y: ``l_y - log sum_(c != y) exp l_c``.

    Unlike the probability of the predicted class it has one direction for all stays and does not saturate.

    Args:
        logits: One column for a binary task, else one per class.
        y: The true class; of no account in a binary task.

    >>> signed_logit(torch.tensor([[1.5]]), 0)
    tensor([1.5000])
    >>> signed_logit(torch.tensor([[1.0, 3.0]]), 0)
    tensor([-2.])
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    others = torch.arange(logits.shape[1], device=logits.device) != y
    return logits[:, y] - logits[:, others].logsumexp(dim=1)


def importance(name: str, attribution: np.ndarray) -> np.ndarray:
    """What cells are ranked by, larger first: the size of a signed attribution; any other as it is.

    Args:
        name: A key of `tables.ATTRIBUTIONS`. `gated_input` is ranked by its value, `gated_input_size` by its size.
        attribution: Its values.
    """
    return np.abs(attribution) if name in ("gradient_x_input", "integrated_gradients") else attribution


def attributions(
    model: torch.nn.Module,
    stack: Stack,
    x: Float[Tensor, "T F"],
    y: int,
    *,
    names: Collection[str] = tuple(ATTRIBUTIONS),
) -> dict[str, Float32[np.ndarray, "V ..."]]:
    """Attributions of one stay under every variant.

    With a the attention, s the signed logit and z_i = (i - 1/2) / 32 x, i = 1..32, points between the training mean,
    which is 0 after standardising, and x:

    - ``attention``: a, [V, T, F], or with the axes that it has;
    - ``gated_input``: a * x, and ``gated_input_size``: |a * x|, where the attention has the axes (step, feature);
    - ``gradient_x_input``: ds/dx * x;
    - ``integrated_gradients``: x * mean_i ds/dx(z_i), the midpoint rule; its sum is s(x) - s(0) up to the rule's error.

    Args:
        model: One module of the architecture.
        stack: The variants, on the device where to compute.
        x: The stay, standardised.
        y: Its class.
        names: Which of them.

    Returns:
        [V, T, F] by name, float32, in the order of `tables.ATTRIBUTIONS`; what the model does not have is left out.

    Source:
        Shrikumar et al. 2016, arXiv:1605.01713 (gradient x input); Sundararajan et al. 2017, arXiv:1703.01365.
    """
    x = x.to(stack.theta)
    found: dict[str, Float32[np.ndarray, "V ..."]] = {}
    with spread_over():
        if {"attention", "gated_input", "gated_input_size"} & set(names):
            found["attention"] = attend(model, stack, x[None])[:, 0].cpu().numpy()
            if tuple(getattr(model, "attention_axes", ())) == ("step", "feature"):
                found["gated_input"] = found["attention"] * x.float().cpu().numpy()
                found["gated_input_size"] = np.abs(found["gated_input"])
        if {"gradient_x_input", "integrated_gradients"} & set(names):
            found |= _of_gradients(model, stack, x, y)
    return {name: found[name] for name in ATTRIBUTIONS if name in names and name in found}


def _of_gradients(
    model: torch.nn.Module, stack: Stack, x: Float[Tensor, "T F"], y: int
) -> dict[str, Float32[np.ndarray, "V T F"]]:
    """Both that need gradients, from one batch: x itself, then the points of the path."""
    logits_of = one_variant(model, "logits")
    share = (torch.arange(PATH_POINTS, device=x.device, dtype=x.dtype) + 0.5) / PATH_POINTS
    batch = torch.cat([x[None], share[:, None, None] * x])

    def total(batch: Tensor, parameters: Parameters) -> Tensor:
        # Of a sum over samples that do not touch: each sample's own gradient.
        return per_variant(lambda logits: signed_logit(logits, y).sum(), logits_of(parameters, batch))

    gradients_of = vmap(grad(total), in_dims=(None, 0))
    names = ("gradient_x_input", "integrated_gradients")
    found = {name: np.empty((len(stack.theta), *x.shape), np.float32) for name in names}
    for own in passes(stack, _WORKSPACE * batch.nbytes):
        gradients = gradients_of(batch, stack.rows(own.start, own.stop).views())
        found["gradient_x_input"][own] = (gradients[:, 0] * x).cpu().numpy()
        found["integrated_gradients"][own] = (gradients[:, 1:].mean(dim=1) * x).cpu().numpy()
    return found


def passes(stack: Stack, bytes_per_variant: int) -> Iterator[slice]:
    """Ranges of variants to compute at once, so that a pass takes 512 MiB at most, or one variant.

    Args:
        stack: All variants.
        bytes_per_variant: What a pass takes for each.
    """
    most = max(1, int(_PASS_MIB * 2**20 / bytes_per_variant))
    size = most if stack.theta.is_cuda else min(most, _VARIANTS)
    for start in range(0, len(stack.theta), size):
        yield slice(start, min(start + size, len(stack.theta)))
