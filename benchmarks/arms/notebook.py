"""Arm (c): a step as notebooks take it. A `DataLoader` with one worker brings the batches; Adam as it comes."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.arms.sequential import Sequential
from benchmarks.plain import PlainAttentionLSTM
from benchmarks.problem import LR, WEIGHT_DECAY, Problem


class Notebook(Sequential):
    """As `Sequential`, with the batches put together by another process and the loss on the sigmoid.

    Starting that process is part of every call of `train`, as it is of every epoch.
    """

    def _optimizer(self, model: PlainAttentionLSTM) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._dataset = TensorDataset(self._x.cpu(), self._y.cpu())

    def _batches(self, variant: int, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = self._index[:steps, variant].tolist()
        loader = DataLoader(self._dataset, batch_sampler=order, num_workers=1)
        for x, y in loader:
            yield x.to(self._problem.device), y.to(self._problem.device)

    def _loss(self, model: PlainAttentionLSTM, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(torch.sigmoid(model(x)), y)
