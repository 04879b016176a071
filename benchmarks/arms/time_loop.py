"""Arm (d): PyTorch's ensembling tutorial. `stack_module_state`, `functional_call`, and `vmap` over a Python time loop.

A loop of cells, because `vmap` has no rule for `nn.LSTM`. Source: docs.pytorch.org, "Model ensembling".
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks.arms import Named
from benchmarks.harness import torch_threads
from benchmarks.plain import PlainAttentionLSTM
from benchmarks.problem import LR, WEIGHT_DECAY, Problem


class LoopAttentionLSTM(PlainAttentionLSTM):
    """The plain module with its LSTM written as a loop of cells."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B] of x [B, T, F]."""
        x = x * torch.softmax(self.attention.attention_dense(x), dim=-1)
        w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[0]
        h = c = x.new_zeros(x.shape[0], self.lstm.hidden_size)
        for row in x.unbind(dim=1):  # not x[:, step], whose backward writes a whole x of zeros at every step
            i, f, g, o = (F.linear(row, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        logits: Tensor = self.dense(h)[:, 0]
        return logits


class TimeLoop:
    """All variants in one call.

    Args:
        problem: What to train.
        threads: Of torch; as many as it has now if absent.
    """

    def __init__(self, problem: Problem, threads: int | None = None) -> None:
        self._problem = problem
        self._threads = threads or torch.get_num_threads()
        self._x, self._y = problem.data()
        self._index = problem.batches()
        models = []
        for module in problem.modules():
            model = LoopAttentionLSTM(problem.size.features, problem.size.hidden)
            model.load_state_dict(module.state_dict())
            models.append(model.to(problem.device))
        self._parameters, _ = stack_module_state(models)
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(functional_call(models[0], parameters, (x,)), y)

        self._gradients = vmap(grad_and_value(loss))

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Its number of threads."""
        with torch_threads(self._threads):
            yield

    def _on_batch(self, step: int) -> tuple[dict[str, Tensor], Tensor]:
        index = self._index[step]
        grads, losses = self._gradients(
            {name: p.detach() for name, p in self._parameters.items()}, self._x[index], self._y[index]
        )
        return grads, losses

    def gradients(self) -> tuple[np.ndarray, Named]:
        """Of the first batch; see `Arm`."""
        grads, losses = self._on_batch(0)
        rows = slice(self._problem.checked)
        return losses[rows].cpu().numpy(), {name: grad[rows].cpu().numpy() for name, grad in grads.items()}

    def train(self, steps: int) -> np.ndarray:
        """See `Arm`."""
        losses = torch.empty(steps, self._problem.variants, device=self._problem.device)
        for step in range(steps):
            grads, losses[step] = self._on_batch(step)
            for name, parameter in self._parameters.items():
                parameter.grad = grads[name]
            self._optimizer.step()
        return losses.cpu().numpy()

    def parameters(self) -> Named:
        """See `Arm`."""
        rows = slice(self._problem.checked)
        return {name: p[rows].detach().cpu().numpy().copy() for name, p in self._parameters.items()}
