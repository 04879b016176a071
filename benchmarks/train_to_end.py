"""Training from the cohort in memory to files on disk: this project against sequential scripts, per variant and epoch.

Every arm trains all epochs, chooses each variant's best by AUROC, and writes its weights and its probabilities on the
valid and test splits; `vmapens train` writes its whole run directory, without attention. Every timed run goes through
the gate.
"""

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import vmapens
from benchmarks.arms import present
from benchmarks.epoch import detail, sequential_threads
from benchmarks.experiment import Experiment, add_cohort_options, cohort_folder
from benchmarks.gate import GateError, hold
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
from benchmarks.script import SCRIPTS

ARMS = "abc"
VARIANTS_TIMED = {"b": 8, "c": 1}
"""Sequential variants that are timed: one costs what another does."""

TOLERANCES = {"loss": 1e-4, "auroc": 1e-3, "probability": 1e-3}
"""Rounding grows from epoch to epoch; where two epochs score alike up to rounding, either may be kept."""


@dataclass(frozen=True)
class Trained:
    """What one whole training came to.

    Args:
        history: [V, E, 3], training loss, valid loss and valid AUROC of every epoch.
        kept_epoch: [V].
        probability: [V, N] on the test split, under each one's kept epoch.
    """

    history: np.ndarray
    kept_epoch: np.ndarray
    probability: np.ndarray


def by_vmapens(experiment: Experiment, out: Path) -> Trained:
    """Arm (a): `vmapens.train`."""
    run = vmapens.train(None, experiment.loaded, experiment.spec, out / "run")
    V, E = experiment.variants, experiment.epochs
    history = run.history.sort("variant", "epoch").select("train_loss", "valid_loss", "valid_auroc").to_numpy()
    predictions = run.predictions.filter(split="test")
    return Trained(
        history.reshape(V, E, 3),
        run.variants.sort("variant")["kept_epoch"].to_numpy(),
        np.stack([part["probability"].to_numpy() for part in predictions.partition_by("variant")]),
    )


def by_script(experiment: Experiment, out: Path, letter: str) -> Trained:
    """Arms (b) and (c): one variant after the other."""
    cohort = experiment.loaded
    splits = {name: cohort.x[cohort.rows(name)].to(experiment.device) for name in ("valid", "test")}
    history, kept, tested = [], [], []
    for seed in range(experiment.variants):
        script = SCRIPTS[letter](experiment, seed)
        history.append([script.epoch() for _ in range(experiment.epochs)])
        kept.append(script.kept_epoch)
        torch.save(script.take_best(), out / f"variant-{seed}.pt")
        predicted = {name: script.predict(x) for name, x in splits.items()}
        np.savez(out / f"variant-{seed}.npz", valid=predicted["valid"], test=predicted["test"])
        tested.append(predicted["test"])
    return Trained(np.array(history), np.array(kept), np.stack(tested))


def train(letter: str, experiment: Experiment) -> Trained:
    """Train with the arm of that letter, into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        if letter == "a":
            return by_vmapens(experiment, Path(folder))
        return by_script(experiment, Path(folder), letter)


def check(letter: str, own: Trained, reference: Trained) -> dict[str, float]:
    """Hold an arm's result against the reference's; see `gate.check`.

    Probabilities are compared of the variants that kept the same epoch.

    Raises:
        GateError: If they differ by more than `TOLERANCES`, or an arm kept a worse epoch.
    """
    found: dict[str, float] = {}
    count = min(len(own.history), len(reference.history))
    apart = np.abs(own.history[:count] - reference.history[:count])
    hold(found, letter, "loss", "some epoch", apart[..., :2] / reference.history[:count, :, :2], TOLERANCES)
    hold(found, letter, "auroc", "some epoch", apart[..., 2], TOLERANCES)
    kept, wanted = own.kept_epoch[:count], reference.kept_epoch[:count]
    auroc = reference.history[:count, :, 2]
    worse = auroc[np.arange(count), wanted - 1] - auroc[np.arange(count), kept - 1]
    hold(found, letter, "auroc", "the kept epoch", worse, TOLERANCES)
    same = kept == wanted
    if not same.any():
        raise GateError(
            f"arm ({letter}) kept epochs {kept.tolist()}, the reference {wanted.tolist()}. No ratio is given."
        )
    apart = np.abs(own.probability[:count][same] - reference.probability[:count][same])
    hold(found, letter, "probability", "the test split", apart, TOLERANCES)
    return found


def measure(experiment: Experiment, *, arms: str = ARMS, repeats: int = 3, commit: str = "") -> Line:
    """Train to the end with every arm in turn, and compare.

    Raises:
        GateError: If an arm computes something else than the reference, which is (b), or (a) without it.
    """
    where = circumstances(experiment.device, commit)
    line = experiment.described("train_to_end") | {"epochs": experiment.epochs, "unit": "epoch of one variant"}
    letters, left_out = present(arms, experiment.device)
    own = {letter: experiment.of(VARIANTS_TIMED.get(letter, experiment.variants)) for letter in letters}
    results: dict[str, list[Trained]] = {letter: [] for letter in letters}
    with numerics():
        threads = sequential_threads(letters, experiment)
        details = {letter: detail(letter, own[letter], threads.get(letter), one_epoch) for letter in letters}

        def task(letter: str) -> Task:
            def settings() -> AbstractContextManager[None]:
                return torch_threads(threads[letter]) if letter in threads else nullcontext()

            def short() -> object:
                return train(letter, replace(own[letter], variants=1, epochs=1))

            def whole() -> None:
                results[letter].append(train(letter, own[letter]))

            return Task(settings, short, whole, own[letter].variants * experiment.epochs)

        seconds = interleave({letter: task(letter) for letter in letters}, repeats)
    reference = "b" if "b" in letters else "a"
    gate: dict[str, dict[str, float] | str] = {reference: "reference"}
    for letter in letters:
        found = [check(letter, result, results[reference][0]) for result in results[letter]]
        if letter != reference:
            gate[letter] = {what: max(one[what] for one in found) for what in found[0]}
    return line | {"repeats": repeats, "gate": gate} | compared(seconds, details) | {"left_out": left_out} | where


def one_epoch(letter: str, experiment: Experiment, threads: int | None) -> None:
    """What the peak of memory is taken of: the cohort loaded, and a training of one epoch."""
    with nullcontext() if threads is None else torch_threads(threads):
        train(letter, replace(experiment, epochs=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as a line of JSON."""
    parser = option_parser("train_to_end", __doc__, ARMS)
    parser.set_defaults(repeats=3)
    add_cohort_options(parser)
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    options = parser.parse_args(arguments)
    with cohort_folder(options.cohort) as folder:
        experiment = Experiment(
            str(folder), options.task, options.size, options.variants, options.epochs, options.device
        )
        line = measure(experiment, arms=options.arms, repeats=options.repeats, commit=options.commit)
    report([line], options.out)
