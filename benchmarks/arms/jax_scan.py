"""Arm (e): JAX. One jitted step: `vmap` over variants of `value_and_grad` of a `lax.scan`, then Adam by hand.

The input projection of all steps is one matrix product before the scan, as a good JAX user would have it, the samples
stay on the device, and parameters and moments are donated. XLA chooses its own threads.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.arms import Named
from benchmarks.problem import LR, WEIGHT_DECAY, Problem

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


def _logits(p: Any, x: Any) -> Any:
    """One variant: logits [B] of x [B, T, F]."""
    scores = x @ p["attention.attention_dense.weight"].T + p["attention.attention_dense.bias"]
    x = x * jax.nn.softmax(scores, axis=-1)
    biases = p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]
    projected = jnp.swapaxes(x, 0, 1) @ p["lstm.weight_ih_l0"].T + biases
    recurrent = p["lstm.weight_hh_l0"].T

    def cell(state: Any, row: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(row + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((x.shape[0], recurrent.shape[0]))
    (last, _), _ = jax.lax.scan(cell, (zeros, zeros), projected)
    return (last @ p["dense.weight"].T + p["dense.bias"])[:, 0]


def _loss(p: Any, x: Any, y: Any, index: Any) -> Any:
    logits = _logits(p, x[index])
    return jnp.mean(jax.nn.softplus(logits) - logits * y[index])


_gradients = jax.vmap(jax.value_and_grad(_loss), in_axes=(0, None, None, 0))


def _step(state: Any, x: Any, y: Any, index: Any) -> Any:
    parameters, first, second, number = state
    losses, grads = _gradients(parameters, x, y, index)
    number = number + 1
    grads = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, grads, parameters)
    first = jax.tree.map(lambda m, g: _BETA_1 * m + (1 - _BETA_1) * g, first, grads)
    second = jax.tree.map(lambda v, g: _BETA_2 * v + (1 - _BETA_2) * g * g, second, grads)
    size, root = LR / (1 - _BETA_1**number), jnp.sqrt(1 - _BETA_2**number)
    parameters = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + _EPSILON), parameters, first, second)
    return (parameters, first, second, number), losses


class JaxScan:
    """All variants in one jitted call."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        x, y = problem.data()
        self._x, self._y = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
        self._index = [jnp.asarray(index.numpy(), dtype=jnp.int32) for index in problem.batches()]
        states = [module.state_dict() for module in problem.modules()]
        parameters = {name: jnp.asarray(np.stack([state[name].numpy() for state in states])) for name in states[0]}
        moments = [jax.tree.map(jnp.zeros_like, parameters) for _ in range(2)]
        self._state = (parameters, *moments, jnp.zeros(()))
        self._step = jax.jit(_step, donate_argnums=0)

    def settings(self) -> AbstractContextManager[None]:
        """Nothing to set."""
        return nullcontext()

    def gradients(self) -> tuple[np.ndarray, Named]:
        """Of the first batch; see `Arm`."""
        losses, grads = jax.jit(_gradients)(self._state[0], self._x, self._y, self._index[0])
        rows = slice(self._problem.checked)
        return np.array(losses[rows]), {name: np.array(grad[rows]) for name, grad in grads.items()}

    def train(self, steps: int) -> np.ndarray:
        """See `Arm`."""
        losses = []
        for step in range(steps):
            self._state, loss = self._step(self._state, self._x, self._y, self._index[step])
            losses.append(loss)
        jax.block_until_ready(self._state)
        return np.stack([np.array(loss) for loss in losses])

    def parameters(self) -> Named:
        """See `Arm`."""
        return {name: np.array(value[: self._problem.checked]) for name, value in self._state[0].items()}
