"""Which cells does a variant need? A mask learned for one variant and one stay, after Enguehard 2023.

For a frozen model f and one stay x, a mask m and a perturbation n = NN(x) that minimise

    L(f(x), f(m * x + (1 - m) * n)) + sparsity * mean(m) + mean(|n|)        with m in [0, 1]

L is the cross-entropy, in nats, against the model's own probabilities for x: m is large where the prediction cannot be
kept without the value itself (the paper's preservation game). What stands in the other cells is not given, as with
older masks, but learned, and drawn to 0, the training mean. mean() is over the cells.

What the objective implies: where m = 1 a cell costs `sparsity`, and where the network writes the same value it costs
|x|. So no cell with |x| < sparsity is worth keeping (x in standard deviations), however much the model needs it.

NN is one bidirectional recurrent layer and a linear one. The paper's recurrence is a GRU; here it is an LSTM on x and
another one on x with its steps reversed, as `vmapens.nn` computes those for all pairs at once. The paper trains one
network for a batch of stays; here every pair of a variant and a stay has its own mask, network and optimiser state, all
from one initialisation, so that a mask is a function of its pair alone.

A pair is a row of a `Stack`. One step is `vmap` over variants of the gradient of the objectives' sum over stays, the
network under a second `vmap`, over stays, and the model called with all stays at once.

Axes: V variants, S stays, T steps, F features, C logits.
Ground truth: one pair at a time in plain PyTorch; `tests/test_analysis_extremal_mask.py` holds the bound.

Source:
    Enguehard 2023, "Learning Perturbations to Explain Time Series Predictions", ICML, arXiv:2305.18840.
"""

from collections.abc import Callable
from itertools import repeat

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor
from torch.func import functional_call, grad, vmap

from vmapens.ensemble import optimizer
from vmapens.ensemble.seeds import construct
from vmapens.ensemble.stack import Stack, stack_modules
from vmapens.ensemble.step import Parameters, one_variant, predict
from vmapens.nn.isolation import per_variant
from vmapens.nn.loss import TaskKind
from vmapens.nn.lstm import LSTM
from vmapens.nn.threads import spread_over

_GROUP = 8  # variants and stays learned together; the kernels compute 8 samples of a variant in the time of one

Gradients = Callable[[Parameters, Parameters, Tensor, Tensor], tuple[Parameters, Tensor]]
"""(learned [V, S, ...], frozen [V, ...], x [S, T, F], target [V, S, ...]) -> (gradients of learned, losses [V])."""


class Explanation(torch.nn.Module):
    """What is learned for one pair: the mask, and the network that writes the perturbation.

    Args:
        steps: T.
        features: F.
        hidden: Hidden units of each direction.
    """

    def __init__(self, steps: int, features: int, hidden: int) -> None:
        super().__init__()
        self.mask = torch.nn.Parameter(torch.full((steps, features), 0.5))
        self.forwards = LSTM(features, hidden, batch_first=True)
        self.backwards = LSTM(features, hidden, batch_first=True)
        self.linear = torch.nn.Linear(2 * hidden, features)

    def forward(self, x: Float[Tensor, "T F"]) -> tuple[Float[Tensor, "T F"], Float[Tensor, "T F"]]:
        """Mask and perturbation."""
        ahead = self.forwards(x.unsqueeze(0))[0]
        back = self.backwards(x.flip(0).unsqueeze(0))[0].flip(1)
        return self.mask, self.linear(torch.cat([ahead, back], dim=-1)).squeeze(0)


def extremal_masks(
    model: torch.nn.Module,
    kind: TaskKind,
    stack: Stack,
    x: Float[Tensor, "S T F"],
    *,
    steps: int = 100,
    lr: float = 0.05,
    sparsity: float = 0.1,
    hidden: int = 32,
    seed: int = 0,
) -> Float32[np.ndarray, "V S T F"]:
    """Learn a mask for every variant and stay. A larger weight: the prediction needs the cell more.

    Mask and network are trained by Adam, the mask from 0.5 and cut to [0, 1] after each step. Most cells end at exactly
    0 and so are tied.

    The defaults were chosen by how well the masks of trained attention-LSTMs find the planted cells of a synthetic
    cohort (24 x 12 cells, 4 variants, 8 stays; average precision 0.20, chance 0.01), among learning rates of 0.01 to
    0.1, 50 to 300 steps and a sparsity of 0.03 to 1. The author's experiment on MIMIC-III has 500 steps at 0.01, F
    hidden units and a sparsity of 1, which leaves 3 % of the cells above 0 here and finds less (0.14). More steps find
    less, too: the network learns to write what the model needs.

    Args:
        model: One module of the stack's architecture; its own parameters are not used.
        kind: Of the task.
        stack: The variants, frozen, in the precision and on the device of x.
        x: Stays, standardised: 0 is the training mean.
        steps: Of Adam, 1 or more.
        lr: Its learning rate, above 0.
        sparsity: Weight of the mask's mean, 0 or more.
        hidden: Hidden units of each direction of the network.
        seed: Of the networks' initialisation, which all pairs share.

    Returns:
        In [0, 1]; NaN for a variant of which a loss was not finite. On a CPU a variant's masks are the same bytes
        whichever other variants are asked for, if its model's are; a stay's are the same to rounding, which the steps
        amplify, whichever other stays are.

    Raises:
        ValueError: If an argument is outside its range.

    Source:
        Enguehard 2023, arXiv:2305.18840.
    """
    if steps < 1 or hidden < 1 or not lr > 0 or not sparsity >= 0:
        raise ValueError(
            f"steps {steps}, hidden {hidden}, lr {lr} and sparsity {sparsity}: "
            "wanted steps and hidden of 1 or more, lr above 0, sparsity of 0 or more."
        )
    explanation = construct(lambda: Explanation(x.shape[1], x.shape[2], hidden), seed)[0]
    objective = _objective(explanation, model, kind, sparsity)
    gradients = vmap(grad(objective, has_aux=True), in_dims=(0, 0, None, 0))
    masks = np.empty((len(stack.theta), *x.shape), np.float32)
    with spread_over():
        for v in range(0, len(masks), _GROUP):
            for s in range(0, len(x), _GROUP):
                variants, stays = stack.rows(v, v + _GROUP), x[s : s + _GROUP]
                target = predict(model, kind, variants, stays).to(x.dtype)
                own = _learn(gradients, explanation, variants.views(), stays, target, steps=steps, lr=lr)
                masks[v : v + _GROUP, s : s + _GROUP] = own.cpu().numpy()
    return masks


def _objective(
    explanation: torch.nn.Module, model: torch.nn.Module, kind: TaskKind, sparsity: float
) -> Callable[..., tuple[Tensor, Tensor]]:
    """One variant's objective, summed over stays: (learned [S, ...], frozen, x, target) -> (it, it detached)."""
    logits_of = one_variant(model, "logits")

    def explain(learned: Parameters, x: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = functional_call(explanation, learned, (x,))
        return result

    def objective(learned: Parameters, frozen: Parameters, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mask, perturbation = vmap(explain)(learned, x)
        logits = logits_of(frozen, mask * x + (1 - mask) * perturbation)
        kept = per_variant(_CROSS_ENTROPY[kind], logits, target)
        # Not |mask|, which is the same in [0, 1], but for its gradient at 0: there PyTorch's is 0, and no price at all.
        price = sparsity * mask + perturbation.abs()
        total = kept + price.mean(dim=(1, 2)).sum()
        return total, total.detach()

    return objective


def _binary(logits: Float[Tensor, "S 1"], probability: Float[Tensor, "S"]) -> Float[Tensor, ""]:
    return F.binary_cross_entropy_with_logits(logits[:, 0], probability, reduction="sum")


def _multiclass(logits: Float[Tensor, "S C"], probability: Float[Tensor, "S C"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, probability, reduction="sum")


_CROSS_ENTROPY = {"binary": _binary, "multiclass": _multiclass}


def _learn(
    gradients: Gradients,
    explanation: torch.nn.Module,
    frozen: Parameters,
    x: Float[Tensor, "S T F"],
    target: Float[Tensor, "V S ..."],
    *,
    steps: int,
    lr: float,
) -> Float[Tensor, "V S T F"]:
    """The masks after so many steps of Adam, from `explanation` for each pair; NaN where a loss was not finite."""
    V, S = target.shape[:2]
    pairs = stack_modules(repeat(explanation, V * S), V * S, x.dtype).to(x.device)
    settings = torch.tensor([[lr], [0.0]], dtype=torch.float64, device=x.device).expand(2, V * S)
    state = optimizer.init(pairs.theta, *settings)
    learned: Parameters = {name: parameter.unflatten(0, (V, S)) for name, parameter in pairs.views().items()}
    finite = torch.ones(V, dtype=torch.bool, device=x.device)
    for step in range(1, steps + 1):
        grads, losses = gradients(learned, frozen, x, target)
        finite &= losses.isfinite()
        parts = {(column.start, column.stop): grads[column.name].flatten(0, 1) for column in pairs.columns}
        optimizer.update_parts_(pairs.theta, parts, state, step)
        learned["mask"].clamp_(0, 1)
    return learned["mask"].masked_fill(~finite.view(V, 1, 1, 1), torch.nan)
