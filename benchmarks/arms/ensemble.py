"""Arm (a): the step that `vmapens train` takes, in the groups of variants in which it takes it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.arms import Named
from benchmarks.problem import LR, WEIGHT_DECAY, Problem
from vmapens.ensemble import optimizer
from vmapens.ensemble.memory import needs
from vmapens.ensemble.stack import stack_modules
from vmapens.ensemble.step import gradients, train_step
from vmapens.nn.threads import spread_over
from vmapens.spec import ModelSpec, RunSpec, TrainSpec


class Ensemble:
    """All variants in one stack; groups of `width` variants, each through all steps, as `ensemble.epoch` does."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        size, V = problem.size, problem.variants
        self._x, self._y = problem.data()
        self._index = problem.batches()
        self._model = next(problem.modules())
        self._stack = stack_modules(problem.modules(), V).to(torch.device(problem.device))
        lr, decay = (torch.full((V,), value, device=problem.device) for value in (LR, WEIGHT_DECAY))
        self._state = optimizer.init(self._stack.theta[:, : self._stack.trained_width], lr, decay)
        self._gradients = gradients(self._model, "binary")
        self.width = needs(
            RunSpec(model=ModelSpec(hidden=size.hidden), train=TrainSpec(batch_size=size.batch)),
            parameters=self._stack.parameters_per_variant,
            variants=V,
            shape=(size.samples, size.steps, size.features),
            outputs=1,
            saved=0,
            evaluated=0,
            attention_cells=0,
            device=torch.device(problem.device),
        ).width
        self._steps = 0

    @contextmanager
    def settings(self) -> Iterator[None]:
        """As `vmapens train`: as many threads as torch has, each with a variant of its own."""
        with spread_over():
            yield

    def gradients(self) -> tuple[np.ndarray, Named]:
        """Of the first batch; see `Arm`."""
        stack, index = self._stack.rows(0, self._problem.checked), self._index[0, : self._problem.checked]
        grads, losses = self._gradients(
            stack.views(trained=True), stack.views(trained=False), self._x, index, self._y[index]
        )
        return losses.cpu().numpy(), {name: grad.cpu().numpy() for name, grad in grads.items()}

    def train(self, steps: int) -> np.ndarray:
        """See `Arm`."""
        V = self._problem.variants
        losses = torch.empty(steps, V, device=self._problem.device)
        for start in range(0, V, self.width):
            stop = min(start + self.width, V)
            stack, state = self._stack.rows(start, stop), self._state.rows(start, stop)
            for step in range(steps):
                number = self._steps + step + 1
                index = self._index[step, start:stop]
                losses[step, start:stop] = train_step(self._gradients, stack, state, self._x, self._y, index, number)
        self._steps += steps
        return losses.cpu().numpy()

    def parameters(self) -> Named:
        """See `Arm`."""
        views = self._stack.rows(0, self._problem.checked).views()
        return {name: view.cpu().numpy().copy() for name, view in views.items()}
