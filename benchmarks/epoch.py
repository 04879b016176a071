"""One epoch with evaluation and its metric, on real patients: this project against sequential scripts, per variant.

The first epoch of every arm is the gate; later ones are timed in turn, each after one that is not timed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from benchmarks.arms import NAMES, Named, present
from benchmarks.arms.sequential import best_threads
from benchmarks.experiment import Experiment, add_cohort_options, cohort_folder
from benchmarks.gate import hold
from benchmarks.harness import (
    Line,
    Task,
    circumstances,
    compared,
    interleave,
    numerics,
    option_parser,
    report,
    torch_threads,
)
from benchmarks.problem import SIZES, Problem
from benchmarks.process import peak_mib
from benchmarks.script import SCRIPTS
from vmapens.ensemble.block import Block
from vmapens.ensemble.epoch import train_epoch
from vmapens.ensemble.seeds import construct, orders
from vmapens.ensemble.stack import stack_modules
from vmapens.nn.threads import spread_over
from vmapens.plan import plan

ARMS = "abc"
VARIANTS_TIMED = {"b": 8, "c": 2}
"""Sequential variants that are timed: one costs what another does."""

TOLERANCES = {"loss": 1e-5, "auroc": 2e-4, "parameter": 1e-5}
"""Seen after 44 steps: 1e-8, 1e-5 and 5e-8. Two scores that only rounding parts move AUROC by half a pair, 1e-5."""


class EpochArm(Protocol):
    """One way of training variants for an epoch."""

    def settings(self) -> AbstractContextManager[None]:
        """To be entered around `epoch`."""
        ...

    def epoch(self) -> np.ndarray:
        """Train, evaluate, keep the best; [3, V] training loss, valid loss, valid AUROC."""
        ...

    def parameters(self) -> Named:
        """Parameters as they are, [V, ...] by name."""
        ...


class Ensemble:
    """Arm (a): what `vmapens train` does for a block of all variants."""

    def __init__(self, experiment: Experiment) -> None:
        self._ready = plan(experiment.spec, cohort=experiment.loaded)
        table, factory = self._ready.table, self._ready.factory
        modules = (construct(factory, seed)[0] for seed in table["init_seed"])
        stack = stack_modules(modules, len(table)).to(self._ready.device)
        self._data = experiment.data
        self._block = Block.start(stack, table, list(orders(factory, table, len(self._data.train))))

    def settings(self) -> AbstractContextManager[None]:
        """As `vmapens train`."""
        return spread_over()

    def epoch(self) -> np.ndarray:
        """See `EpochArm`."""
        ready = self._ready
        train_epoch(ready.model, self._block, self._data, ready.spec.train, width=ready.needs.width)
        return self._block.history[-1].select("train_loss", "valid_loss", "valid_auroc").to_numpy().T

    def parameters(self) -> Named:
        """See `EpochArm`."""
        return {name: view.cpu().numpy().copy() for name, view in self._block.stack.views().items()}


class Scripts:
    """Arms (b) and (c): one script after the other."""

    def __init__(self, experiment: Experiment, letter: str, threads: int | None) -> None:
        self._threads = threads or torch.get_num_threads()
        self._scripts = [SCRIPTS[letter](experiment, seed) for seed in range(experiment.variants)]

    def settings(self) -> AbstractContextManager[None]:
        """Its number of threads."""
        return torch_threads(self._threads)

    def epoch(self) -> np.ndarray:
        """See `EpochArm`."""
        return np.array([script.epoch() for script in self._scripts]).T

    def parameters(self) -> Named:
        """See `EpochArm`."""
        each = [script.parameters() for script in self._scripts]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}


def build(letter: str, experiment: Experiment, threads: int | None) -> EpochArm:
    """The arm of that letter."""
    return Ensemble(experiment) if letter == "a" else Scripts(experiment, letter, threads)


def check(letter: str, scores: np.ndarray, parameters: Named, reference: tuple[np.ndarray, Named]) -> dict[str, float]:
    """Hold an arm's first epoch against the reference's; see `gate.check`.

    Raises:
        GateError: If they differ by more than `TOLERANCES`.
    """
    found: dict[str, float] = {}
    count = min(scores.shape[1], reference[0].shape[1])
    apart = np.abs(scores[:, :count] - reference[0][:, :count])
    hold(found, letter, "loss", "the epoch", apart[:2] / reference[0][:2, :count], TOLERANCES)
    hold(found, letter, "auroc", "the valid split", apart[2], TOLERANCES)
    for name, value in reference[1].items():
        hold(found, letter, "parameter", name, np.abs(parameters[name][:count] - value[:count]), TOLERANCES)
    return found


def measure(experiment: Experiment, *, arms: str = ARMS, repeats: int = 3, commit: str = "") -> Line:
    """Train one epoch with every arm and compare; then time further epochs in turn.

    Raises:
        GateError: If an arm computes something else than the reference, which is (b), or (a) without it.
    """
    where = circumstances(experiment.device, commit)
    line = experiment.described("epoch") | {"unit": "epoch of one variant", "repeats": repeats}
    letters, left_out = present(arms, experiment.device)
    own = {letter: experiment.of(VARIANTS_TIMED.get(letter, experiment.variants)) for letter in letters}
    with numerics():
        threads = sequential_threads(letters, experiment)
        details = {letter: detail(letter, own[letter], threads.get(letter), one_epoch) for letter in letters}
        built = {letter: build(letter, own[letter], threads.get(letter)) for letter in letters}
        outcomes = {}
        for letter, arm in built.items():
            with arm.settings():
                outcomes[letter] = arm.epoch(), arm.parameters()
        reference = "b" if "b" in letters else "a"
        line["gate"] = {
            letter: check(letter, *outcome, outcomes[reference]) if letter != reference else "reference"
            for letter, outcome in outcomes.items()
        }
        tasks = {
            letter: Task(arm.settings, arm.epoch, arm.epoch, own[letter].variants) for letter, arm in built.items()
        }
        seconds = interleave(tasks, repeats)
    return line | compared(seconds, details) | {"left_out": left_out} | where


def sequential_threads(letters: Sequence[str], experiment: Experiment) -> dict[str, int]:
    """Threads of the sequential arms: the best number for (b), measured at this size. (c) has the same.

    Notebooks leave that number alone, and torch then takes every core, which the worker wants as well.
    """
    sequential = [letter for letter in letters if letter in SCRIPTS]
    if not sequential:
        return {}
    return dict.fromkeys(sequential, best_threads(Problem(SIZES[experiment.size], 1, experiment.device)))


def detail(letter: str, experiment: Experiment, threads: int | None, work: Callable[..., None]) -> Line:
    """What a result says of one arm besides its times; the peak of memory is that of `work`."""
    found: Line = {"what": NAMES[letter], "variants_timed": experiment.variants}
    if threads is not None:
        found["threads"] = threads
    return found | {"peak_mib": peak_mib(work, letter, experiment, threads)}


def one_epoch(letter: str, experiment: Experiment, threads: int | None) -> None:
    """What the peak of memory is taken of: the cohort loaded, the arm built, one epoch."""
    arm = build(letter, experiment, threads)
    with arm.settings():
        arm.epoch()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as a line of JSON."""
    parser = option_parser("epoch", __doc__, ARMS)
    add_cohort_options(parser)
    options = parser.parse_args(arguments)
    with cohort_folder(options.cohort) as folder:
        experiment = Experiment(str(folder), options.task, options.size, options.variants, 1, options.device)
        line = measure(experiment, arms=options.arms, repeats=options.repeats, commit=options.commit)
    report([line], options.out)
