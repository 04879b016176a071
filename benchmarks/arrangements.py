"""Nothing changes a variant: `vmapens train` in random arrangements, each variant held against itself trained alone.

    python -m benchmarks run arrangements --device cpu --seconds 60

One line of JSON an arrangement: kernel, device, form of attention, variants, block, width, threads, the largest
absolute difference by kind of value, and the number of bytes that differ. On a CPU all of them are zero.
"""

import argparse
import dataclasses
import itertools
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.torch
import torch
from polars import selectors

from benchmarks.arrangement import FORMS, Arrangement, Outcome, Variant, draw, sweep
from benchmarks.harness import Line, circumstances, report
from vmapens.cohort.load import Cohort
from vmapens.cohort.schema import CohortInfo, Feature, Task
from vmapens.nn.kernels import use_kernel, version
from vmapens.nn.threads import spread_over
from vmapens.plan import plan
from vmapens.run import Run
from vmapens.spec import AttendOver, CohortSpec, ModelSpec, RunSpec, TrainSpec
from vmapens.training import execute


def made_cohort(samples: int, steps: int, features: int, classes: int = 2, seed: int = 0) -> Cohort:
    """Noise, split 6 : 2 : 2, with labels that follow the first feature's mean; nothing is written."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, steps, features, generator=generator)
    ranks = (x[:, :, 0].mean(dim=1) + torch.randn(samples, generator=generator)).argsort().argsort()
    names = tuple(f"f{number}" for number in range(features))
    task = Task("made", "binary" if classes == 2 else "multiclass", tuple(map(str, range(classes))))
    parts = np.array(["train", "valid", "train", "test", "train"])
    return Cohort(
        x=x,
        observed=torch.ones(x.shape, dtype=torch.bool),
        y=ranks * classes // samples,
        samples=tuple(map(str, range(samples))),
        split=parts[np.arange(samples) % len(parts)],
        patient=np.arange(samples),
        features=pl.DataFrame(
            {"index": range(features), "feature": names, "unit": "", "group": "", "mean": 0.0, "std": 1.0},
            schema_overrides={"index": pl.Int32},
        ),
        task=task,
        info=CohortInfo(steps, 60.0, tuple(map(Feature, names)), (task,), source="made", licence="none"),
        fingerprint=f"made {samples} {steps} {features} {classes} {seed}",
        warnings=(),
        spec=CohortSpec(task="made"),
    )


def train(spec: RunSpec, cohort: Cohort, arrangement: Arrangement, *, model: Any = None) -> Outcome:
    """Train an arrangement as `vmapens train` does and read its run directory.

    Args:
        spec: All that no arrangement changes.
        cohort: Loaded.
        arrangement: The rest.
        model: As in `vmapens.train`.
    """
    own = dataclasses.replace(spec.train, lr=arrangement.lr, weight_decay=arrangement.weight_decay)
    spec = dataclasses.replace(spec, train=own, variants=arrangement.design, block=arrangement.block)
    ready = plan(spec, cohort=cohort, model=model)
    ready = dataclasses.replace(ready, needs=dataclasses.replace(ready.needs, width=arrangement.width))
    with tempfile.TemporaryDirectory() as folder, spread_over(arrangement.threads):
        return outcome_of(execute(ready, Path(folder, "run")))


def outcome_of(run: Run) -> Outcome:
    """All that a run directory says of its variants."""
    table = run.variants.with_columns(pl.col("bootstrap_seed").fill_null(-1))
    states = [safetensors.torch.load_file(run.paths.block(*block) / "state.safetensors") for block in run.blocks]
    history = run.history.sort("variant", "epoch").partition_by("variant", maintain_order=True)
    return Outcome(
        [Variant(*row) for row in table.select(field.name for field in dataclasses.fields(Variant)).iter_rows()],
        {
            **{which: run.weights(which).theta.numpy() for which in ("best", "last")},
            **{name: torch.cat([state[name] for state in states]).numpy() for name in ("first", "second")},
            "kept_epoch": table["kept_epoch"].to_numpy(),
            "history": [frame.select(selectors.numeric().exclude("variant")).to_numpy() for frame in history],
            "metrics": run.metrics["value"].to_numpy().reshape(len(table), -1),
            "predictions": run.predictions["probability"].to_numpy().reshape(len(table), -1),
            "attention": run.attention(),
        },
    )


def main(arguments: Sequence[str]) -> None:
    """Run arrangements until the time is over, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run arrangements", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--kernel", choices=("auto", "onednn", "compiled", "batched"), default="auto")
    parser.add_argument("--attend-over", choices=FORMS, action="append", help="again for more (default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    options = parser.parse_args(arguments)
    forms: Sequence[AttendOver] = options.attend_over or FORMS
    cohort = made_cohort(samples=335, steps=48, features=37)
    circumstance = circumstances(options.device)
    with use_kernel(options.kernel):
        shared: Line = {"benchmark": "arrangements", "kernel": version(torch.device(options.device))}
        shared |= {"arithmetic": options.precision, "shape": [201, 48, 37, 32]}
        for form in forms:
            spec = RunSpec(
                model=ModelSpec(attend_over=form),
                train=TrainSpec(epochs=2, device=options.device, precision=options.precision),
                save_attention="test:3",
            )
            arrangements = map(draw, itertools.repeat(random.Random(options.seed)))
            for line in sweep(partial(train, spec, cohort), arrangements, options.seconds / len(forms)):
                report([shared | {"attend_over": form} | line | circumstance], options.out)
