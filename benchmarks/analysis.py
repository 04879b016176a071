"""The paper's analysis of many variants, stay by stay: this project against checkpoints that are read again and again.

Size `small` compares (a) with (b) and (c) of `notebook_analysis`: attention drop at three k, mean and SD of every
cell's rank, smallest and largest SD. Before anything is timed they must find the same for every stay. (c) takes long,
so only the first stays are timed (`stays_timed`); what is compared is the time of one stay.

Size `paper` compares nothing: it says what one stay costs `vmapens analyze` at the paper's size, in seconds of CPU time
of all threads, for all that it asks of the attention (figures of the paper, agreement beside its five references). Its
variants have one hidden unit, as attention does not depend on them, and one epoch of training on a few made stays.
"""

import argparse
import contextlib
import json
import pkgutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.arms.sequential import thread_counts
from benchmarks.gate import GateError, hold
from benchmarks.harness import Line, Task, circumstances, compared, interleave, numerics, report, spread
from benchmarks.harness import torch_threads as threads_of_torch
from benchmarks.loading import make, run_module, status
from benchmarks.notebook_analysis import PASSES, Careful, Found, Notebook, Work
from benchmarks.process import peak_mib
from vmapens.analysis.drop import survivors
from vmapens.analysis.ranking import rank_cells, rank_moments
from vmapens.analysis.settings import PARTS, Settings
from vmapens.analysis.stay import StayStudy
from vmapens.analysis.subject import Subject
from vmapens.cohort.load import load_cohort
from vmapens.ensemble.step import attend
from vmapens.nn.threads import spread_over
from vmapens.run import Run, open_run
from vmapens.spec import CohortSpec, ModelSpec, RunSpec, TrainSpec, VariantSpec
from vmapens.training import train

NAMES = {
    "a": "this project, from a run's weights",
    "b": "a careful script: each checkpoint read once, attention alone, sorted once for all k",
    "c": "the notebooks' way: every checkpoint read and run anew for each analysis, stay and k",
}
TOLERANCES = {"drop": 0.0, "rank mean": 1e-6, "rank SD": 1e-6}
"""Counts are equal; means relative; SDs relative, or absolute below one place."""

SIZES = {"small": (48, 37, 32), "paper": (288, 231, 1)}
"""T, F, H."""
_STAYS_MADE = 100

_GPU = {"terabytes_s": 4.3, "teraflops_s": 60.0, "copy_gigabytes_s": 25.0}
"""Of an H200: memory as measured, float32 and the copy to the host as assumed."""


class Product:
    """Arm (a)."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def look(self, stays: Sequence[int]) -> list[Found]:
        """Everything, of some stays; the weights are read from the disk, once."""
        run = open_run(self._work.folder / "run")
        stack, model = run.weights(), run.model()
        with spread_over():
            return [self._found(stay, attend(model, stack, self._work.x[stay : stay + 1])) for stay in stays]

    def _found(self, stay: int, attention: torch.Tensor) -> Found:
        work = self._work
        ranking = rank_cells(attention.numpy().reshape(work.variants, -1), most=work.ks[-1], seed=stay)
        drop = [survivors(ranking.top[:, :k], work.cells, seed=work.seed(stay, k)) for k in work.ks]
        moments = rank_moments(ranking.rank, work.counts)
        sd = np.stack([entry.sd for entry in moments])
        return Found(np.array(drop), moments[-1].mean, sd[-1], sd, sd.min(axis=1), sd.max(axis=1))


ARMS: dict[str, Callable[[Work], Product | Careful | Notebook]] = {"a": Product, "b": Careful, "c": Notebook}


def make_run(
    folder: Path, *, variants: int, steps: int, features: int, hidden: int, samples: int, measured: float = 0.3
) -> Run:
    """Train the variants for one epoch on made stays, of which that share of the cells is measured."""
    (folder / "cohort").mkdir()
    make(folder / "cohort", samples, steps, features, measured)
    spec = RunSpec(
        cohort=CohortSpec(path=str(folder / "cohort"), task="y", fractions=(0.4, 0.3, 0.3)),
        model=ModelSpec(hidden=hidden),
        train=TrainSpec(epochs=1, device="cpu"),
        variants=VariantSpec(init_seeds=tuple(range(variants))),
        save_attention="none",
    )
    return train(None, None, spec, folder / "run")


def make_work(folder: Path, *, variants: int, stays: int, hidden: int, **sizes: Any) -> Work:
    """A run as of `make_run`, its variants as checkpoints, and stays, all different."""
    run = make_run(folder, variants=variants, hidden=hidden, samples=_STAYS_MADE, **sizes)
    (folder / "checkpoints").mkdir()
    stack = run.weights()
    for variant in range(variants):
        own = {name: value.clone() for name, value in stack.state_dict(variant).items()}
        torch.save(own, folder / "checkpoints" / f"{variant}.pt")
    torch.save(load_cohort(run.spec.cohort).x[:stays].clone(), folder / "stays.pt")
    return Work(folder, variants, hidden)


def check(letter: str, own: Sequence[Found], work: Work, reference: Sequence[Found]) -> tuple[Line, Line]:
    """Hold what an arm found against (c), stay by stay.

    Where a variant gives two cells the same weight their order is anyone's: such cells are left out of the ranks, and
    a k between two such cells out of the drop.

    Returns:
        Largest differences; and the shares that were left out: `cells` of the ranks, `drops` of pairs of stay and k.

    Raises:
        GateError: If one is above its tolerance.
    """
    found: dict[str, float] = {}
    notebook, left_out = Notebook(work), Counter[str]()
    for place, (ours, theirs) in enumerate(zip(own, reference, strict=True)):
        weights = np.stack([row.copy() for row in notebook.attention(place, range(work.variants))])
        falling = -np.sort(-weights, axis=1)
        equal = falling[:, 1:] == falling[:, :-1]
        clear = np.array([not equal[:, k - 1].any() for k in work.ks])
        apart = np.abs(ours.drop - theirs.drop)[clear]
        hold(found, letter, "drop", f" of stay {place}", apart.max(initial=0), TOLERANCES)
        tied = np.zeros(work.cells, bool)
        for row, order in zip(equal, np.argsort(-weights, axis=1), strict=True):
            tied[order[:-1][row]] = tied[order[1:][row]] = True
        if tied.all():
            raise GateError(f"stay {place} has no cell without a tie: there is nothing to compare.")
        for what in ("mean", "sd", "sd_after"):
            one, other = (getattr(side, what)[..., ~tied] for side in (ours, theirs))
            name = "rank mean" if what == "mean" else "rank SD"
            hold(found, letter, name, "", np.abs(one - other) / np.maximum(other, 1), TOLERANCES)
        left_out += Counter(cells=int(tied.sum()), drops=int((~clear).sum()))
    shares = {"cells": left_out["cells"] / work.cells, "drops": left_out["drops"] / len(work.ks)}
    return found, {name: round(share / len(own), 4) for name, share in shares.items()}


def compare(work: Work, *, repeats: int, stays_timed: int) -> Line:
    """Hold all arms against (c) on all stays; then time them in turn.

    Each arm takes part once for each number of threads; the number with the lowest median is its time.

    Raises:
        GateError: If an arm finds something else.
    """
    stays = {letter: range(len(work.x)) for letter in ARMS} | {"c": range(min(stays_timed, len(work.x)))}
    peaks = {letter: peak_mib(look, letter, work, list(own)) for letter, own in stays.items()}
    with numerics():
        with threads_of_torch(1):
            found = {letter: arm(work).look(range(len(work.x))) for letter, arm in ARMS.items()}
            checked = {letter: check(letter, found[letter], work, found["c"]) for letter in "ab"}
        tasks: dict[tuple[str, int], Task] = {}
        for letter, arm in ARMS.items():
            for count in thread_counts():
                tasks[letter, count] = _as_task(arm(work), stays[letter], count)
        seconds = interleave(tasks, repeats)
    fastest = {
        letter: min((key for key in tasks if key[0] == letter), key=lambda key: statistics.median(seconds[key]))
        for letter in ARMS
    }
    details: dict[str, Line] = {
        letter: {"what": NAMES[letter], "stays_timed": len(own), "threads": fastest[letter][1]}
        | {"ms_by_threads": {n: spread([1000 * s for s in seconds[a, n]]) for a, n in tasks if a == letter}}
        | {"peak_mib": peaks[letter]}
        for letter, own in stays.items()
    }
    _, T, F = work.x.shape
    line: Line = {"benchmark": "analysis", "size": "small", "variants": work.variants, "stays": len(work.x)}
    line |= {"unit": "stay", "steps": T, "features": F, "hidden": work.hidden, "k": work.ks, "repeats": repeats}
    line |= {"gate": {letter: apart for letter, (apart, _) in checked.items()} | {"c": "reference"}}
    line |= {"ties_left_out": checked["a"][1], "passes_of_c": PASSES}
    return line | compared({letter: seconds[key] for letter, key in fastest.items()}, details)


def look(letter: str, work: Work, stays: list[int]) -> None:
    """What the peak of memory is taken of."""
    ARMS[letter](work).look(stays)


def _as_task(arm: Product | Careful | Notebook, stays: Sequence[int], threads: int) -> Task:
    return Task(lambda: threads_of_torch(threads), lambda: arm.look(stays[:1]), lambda: arm.look(stays), len(stays))


class _Clock:
    """CPU seconds of this process, all threads, and seconds on the wall."""

    def __init__(self) -> None:
        self._begin = time.process_time(), time.perf_counter()

    def __call__(self) -> dict[str, float]:
        cpu, wall = self._begin
        return {"cpu_s": round(time.process_time() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}


@contextlib.contextmanager
def _parts() -> Iterator[Counter[str]]:
    """CPU seconds of the parts of a stay; `ranking` and `divergence` are within `agreement`."""
    spent = Counter[str]()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.process_time() - begin  # type: ignore[assignment]

        return wrapper

    of = {"stay.attributions": "attention", "stay.agreement_on_stay": "agreement", "on_stay.rank_cells": "ranking"}
    of |= {"on_stay.divergence": "divergence", "on_stay.own_divergence": "divergence"}
    with contextlib.ExitStack() as stack:
        for place, name in of.items():
            target = f"vmapens.analysis.{place}"
            stack.enter_context(mock.patch(target, timed(name, pkgutil.resolve_name(target))))
        yield spent


def cost(folder: Path) -> Line:
    """What `vmapens analyze` spends on the attention of a stay of a run, in this process.

    Returns:
        `once` (the run opened, and its variants built as they were before training); for each of two stays, of which
        the second finds memory that the first has left, `all_grains` (cells, cells within a step, features, windows,
        and the measured cells alone) and then `cells` alone, each with `cpu_s`, `wall_s`; the first's
        `parts` in CPU seconds; `peak_mib`.
    """
    clock = _Clock()
    subject = Subject.open(folder / "run")
    initial = subject.initial
    line: Line = {"once": clock()}
    all_measured = replace(subject.cohort, observed=torch.ones_like(subject.cohort.observed))
    alone = replace(subject, cohort=all_measured)
    vars(alone)["initial"] = initial  # not to be built again
    steps, F = subject.cohort.x.shape[1:]
    V = len(subject.variants)
    without = tuple(PARTS)
    asked = {
        "all_grains": (subject, Settings(without=without)),
        "cells": (alone, Settings(without=without, tolerance=0, window=steps)),
    }
    for name, (own, settings) in asked.items():
        study = StayStudy(own, settings, [], None)
        study.names = ["attention"]
        line[name], looking = [], study.look([(0, 1), (1, 2)])
        with spread_over():
            for number in range(2):
                with _parts() as parts:
                    clock = _Clock()
                    next(looking)
                    line[name].append(clock())
                if number == 0:
                    line[f"{name}_parts"] = {part: round(spent, 3) for part, spent in parts.items()}
        line["k"] = study.ks
    line["peak_mib"] = round(status("VmHWM"))
    attention_s = line["cells_parts"]["attention"]
    rest_s = line["cells"][0]["cpu_s"] - attention_s
    return line | {"gpu_projection": projection(V, steps, F, line["k"], rest_s=rest_s)}


def projection(variants: int, steps: int, features: int, ks: Sequence[int], *, rest_s: float) -> Line:
    """What a GPU would make of one stay, cells alone: arithmetic, nothing measured.

    Each part takes as long as its operations or its bytes, whichever is longer, at the rates of `_GPU`.

    Args:
        variants: V.
        steps: T.
        features: F.
        ks: Sizes of the sets.
        rest_s: CPU seconds of all but the attention, as measured: what a GPU leaves to the CPU today.

    Returns:
        `parts` (gigabytes, gigaflops, ms); `as_built_s`, with the attention on the GPU, copied to the host, and the
        rest there; `all_on_gpu_ms`, if all parts were on the GPU.
    """
    V, F, n = variants, features, steps * features
    # Three views (stay, partner, before training) of n float32 each; bytes, operations.
    work = {
        "attention": (3 * V * 4 * (F * F + 3 * n), 3 * V * 2 * n * F),  # weights; scores out and in, softmax out
        "ranking": (3 * V * n * (4 * 16 + 12), 0),  # four passes of a radix sort of pairs, in and out; ranks
        "overlap": (3 * V * sum(ks) * 12, 0),  # places, and what is counted there
        "spearman": (12 * V * n * 4, 12 * V * n * 2),  # passes over ranks
        "divergence": (12 * V * n * 4, 8 * V * n * 20),  # maps in; logarithms
        "pairs": (2 * V * n * 4, 2 * 2 * V * V * n),
        "moments": (V * n * 4, V * n * 4),
    }
    memory, arithmetic = 1e12 * _GPU["terabytes_s"], 1e12 * _GPU["teraflops_s"]
    parts = {
        name: {"gigabytes": round(size / 1e9, 2), "gigaflops": round(flops / 1e9, 1)}
        | {"ms": round(1000 * max(size / memory, flops / arithmetic), 2)}
        for name, (size, flops) in work.items()
    }
    copy_ms = 1000 * 3 * V * n * 4 / (1e9 * _GPU["copy_gigabytes_s"])
    as_built = rest_s + (parts["attention"]["ms"] + copy_ms) / 1000
    total = sum(part["ms"] for part in parts.values())
    return {"what": "a projection, not a measurement", "rates": _GPU, "parts": parts, "copy_ms": round(copy_ms, 1)} | {
        "as_built_s": round(as_built, 2),
        "all_on_gpu_ms": round(total, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `compare`, or of `cost` in a process of its own, as a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run analysis", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--variants", type=int, default=200)
    parser.add_argument(
        "--stays", type=int, default=20, help="of size small, on all of which arms must agree (default 20)"
    )
    parser.add_argument("--stays-timed", type=int, default=2, help="of these, of arm (c) (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, each with one timing of every arm (default 5)")
    parser.add_argument("--folder", type=Path, help="where the run is made and removed (default: the system's)")
    parser.add_argument("--out", type=Path, help="append the line to this file, too")
    parser.add_argument("--commit", default="", help="what to write as commit where there is no git")
    options = parser.parse_args(arguments)
    steps, features, hidden = SIZES[options.size]
    sizes = {"variants": options.variants, "steps": steps, "features": features, "hidden": hidden}
    where = circumstances("cpu", options.commit)  # before there is any load
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.size == "small":
            work = make_work(folder, stays=options.stays, **sizes)
            line = compare(work, repeats=options.repeats, stays_timed=options.stays_timed)
        else:
            make_run(folder, samples=20, **sizes)
            line = {"benchmark": "analysis", "size": "paper", **sizes, "unit": "stay"}
            line |= json.loads(run_module("benchmarks.analysis", name))
        report([line | where], options.out)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(cost(Path(sys.argv[1]))))
