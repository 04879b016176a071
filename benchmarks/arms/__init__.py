"""The ways of training many variants that are held against each other, as one small interface.

(a) this project; (b) the best sequential way; (c) the notebooks' way; (d) `torch.func.vmap` over a Python time loop, as
PyTorch's ensembling tutorial; (e) `jax.vmap` and `lax.scan` under `jit`.
"""

import importlib
import importlib.util
import math
import time
from contextlib import AbstractContextManager
from typing import Protocol, cast

import numpy as np

from benchmarks.harness import Task
from benchmarks.problem import BATCHES, Problem

Named = dict[str, np.ndarray]
"""Arrays [V, ...] of the checked variants, under the parameters' names in `vmapens.nn.AttentionLSTM`."""

LEAST_S = 0.5
"""Seconds that one timing should last; it takes as many steps, up to `BATCHES`."""

NAMES = {
    "a": "this project",
    "b": "sequential nn.LSTM, data in memory, flush-denormal, best thread count, Adam(fused=True)",
    "c": "the notebooks' way: DataLoader with one worker, Python lists, scikit-learn",
    "d": "torch.func.vmap over a Python time loop",
    "e": "jax.vmap and lax.scan under jit, in a process of its own",
}
_PLACES = {
    "a": ("ensemble", "Ensemble"),
    "b": ("sequential", "Sequential"),
    "c": ("notebook", "Notebook"),
    "d": ("time_loop", "TimeLoop"),
    "e": ("jax_scan", "JaxScan"),
}
_NEEDS = {"c": ("sklearn", "scikit-learn"), "e": ("jax", "jax")}


class Arm(Protocol):
    """One way of training the variants of a `Problem`. When a method returns its work is done, on a GPU too."""

    def settings(self) -> AbstractContextManager[None]:
        """The thread counts that this arm wants, to be entered around the other methods."""
        ...

    def gradients(self) -> tuple[np.ndarray, Named]:
        """Losses [V] and gradients on the first batch at the parameters as they are, of the checked variants."""
        ...

    def train(self, steps: int) -> np.ndarray:
        """Take steps on the first batches of every variant, the optimiser's update included; losses [steps, V]."""
        ...

    def parameters(self) -> Named:
        """Parameters as they are, of the checked variants."""
        ...


def build(letter: str, problem: Problem, **options: int) -> Arm:
    """The arm of that letter, in this process."""
    module, name = _PLACES[letter]
    return cast(Arm, getattr(importlib.import_module(f"benchmarks.arms.{module}"), name)(problem, **options))


def present(letters: str, device: str) -> tuple[list[str], dict[str, str]]:
    """Those of the arms that can be measured here, and the reason for each of the others."""
    reasons = {letter: why_left_out(letter, device) for letter in letters}
    left_out = {letter: reason for letter, reason in reasons.items() if reason is not None}
    return [letter for letter in letters if letter not in left_out], left_out


def why_left_out(letter: str, device: str) -> str | None:
    """Why an arm cannot be measured here, or None."""
    if letter == "e" and device != "cpu":
        return "measured on CPUs only"
    if letter in _NEEDS and importlib.util.find_spec(_NEEDS[letter][0]) is None:
        return f"{_NEEDS[letter][1]} is not installed; install the extra `bench`"
    return None


def as_task(arm: Arm, variants: int) -> Task:
    """Steps of an arm as something to be timed, as many as take `LEAST_S`; a unit is a variant's step."""
    with arm.settings():
        arm.train(1)
        start = time.perf_counter()
        arm.train(1)
        one_s = time.perf_counter() - start
    steps = min(BATCHES, math.ceil(LEAST_S / one_s))
    return Task(arm.settings, lambda: arm.train(1), lambda: arm.train(steps), steps * variants)
