"""Arm (b): the best sequential way. One `nn.LSTM` after the other, each through all its steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arms import Named, as_task
from benchmarks.harness import cores, interleave, torch_threads
from benchmarks.plain import PlainAttentionLSTM
from benchmarks.problem import LR, WEIGHT_DECAY, Problem


class Sequential:
    """One plain module and one optimiser a variant; samples stay in memory and batches are gathered by index.

    Args:
        problem: What to train.
        threads: Of torch; as many as it has now if absent. On a GPU it hardly matters.
    """

    def __init__(self, problem: Problem, threads: int | None = None) -> None:
        self._problem = problem
        self._threads = threads or torch.get_num_threads()
        self._x, self._y = problem.data()
        self._index = problem.batches()
        self._models: list[PlainAttentionLSTM] = []
        for module in problem.modules():
            model = PlainAttentionLSTM(problem.size.features, problem.size.hidden)
            model.load_state_dict(module.state_dict())
            self._models.append(model.to(problem.device))
        self._optimizers = [self._optimizer(model) for model in self._models]

    def _optimizer(self, model: PlainAttentionLSTM) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def _batches(self, variant: int, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        for index in self._index[:steps, variant]:
            yield self._x.index_select(0, index), self._y.index_select(0, index)

    def _loss(self, model: PlainAttentionLSTM, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), y)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Its number of threads."""
        with torch_threads(self._threads):
            yield

    def gradients(self) -> tuple[np.ndarray, Named]:
        """Of the first batch; see `Arm`."""
        losses, found = [], []
        for variant, model in enumerate(self._models[: self._problem.checked]):
            model.zero_grad(set_to_none=True)
            for x, y in self._batches(variant, 1):
                loss = self._loss(model, x, y)
                loss.backward()
                losses.append(loss.item())
            found.append({name: p.grad.cpu().numpy() for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad(set_to_none=True)
        return np.array(losses), {name: np.stack([one[name] for one in found]) for name in found[0]}

    def train(self, steps: int) -> np.ndarray:
        """See `Arm`."""
        losses = torch.empty(steps, len(self._models), device=self._problem.device)
        for variant, (model, optimizer) in enumerate(zip(self._models, self._optimizers, strict=True)):
            for step, (x, y) in enumerate(self._batches(variant, steps)):
                loss = self._loss(model, x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses[step, variant] = loss.detach()
        return losses.cpu().numpy()

    def parameters(self) -> Named:
        """See `Arm`."""
        states = [model.state_dict() for model in self._models[: self._problem.checked]]
        return {name: np.stack([state[name].cpu().numpy() for state in states]) for name in states[0]}


def thread_counts() -> list[int]:
    """Numbers of threads to try: all up to 8 cores; beyond that the powers of two, and the number of cores."""
    most = cores()
    return list(range(1, most + 1)) if most <= 8 else sorted({2**n for n in range(most.bit_length())} | {most})


def best_threads(problem: Problem) -> int:
    """The number of threads with which this arm is fastest, timed in turn.

    The fastest of five rounds counts: other work on the machine slows threads that wait for each other most.
    """
    tasks = {count: as_task(Sequential(problem, count), problem.variants) for count in thread_counts()}
    seconds = interleave(tasks, 5)
    return min(seconds, key=lambda count: min(seconds[count]))
