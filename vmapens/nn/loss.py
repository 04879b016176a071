"""The paper's losses: cross-entropy on the sigmoid, and on the softmax; means over the batch."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TaskKind = Literal["binary", "multiclass"]


def _binary(logits: Float[Tensor, "B 1"], y: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    probability = torch.sigmoid(logits[:, 0])
    lost = probability.isnan()  # a diverged variant: PyTorch's loss would stop all the others with it
    return F.binary_cross_entropy(probability.masked_fill(lost, 0.5), y).masked_fill(lost.any(), torch.nan)


def _multiclass(logits: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, y)


LOSSES = {"binary": _binary, "multiclass": _multiclass}
"""Functions (logits [B, C], targets [B]) -> mean loss."""


def targets(y: Int[Tensor, "N"], kind: TaskKind, dtype: torch.dtype) -> Tensor:
    """Labels as the task's loss wants them."""
    return y.to(dtype) if kind == "binary" else y
