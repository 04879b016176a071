"""One run, opened to be analysed: its good variants as a stack, its cohort, and the stays that are looked at."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vmapens.attention import attention_sizes, choose_samples, cohort_of
from vmapens.cohort.load import Cohort
from vmapens.directory import DONE, RunPaths, read_manifest, snapshot_name
from vmapens.ensemble.block import OK
from vmapens.ensemble.seeds import Factory, construct
from vmapens.ensemble.stack import Stack, columns_of, stack_modules
from vmapens.errors import RunError, SpecError
from vmapens.nn.kernels import compute_device
from vmapens.run import Run, open_run
from vmapens.spec import BUILT_IN, Device

LEAST_VARIANTS = 2


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Args:
        run: A finished run.
        cohort: The one it was trained on.
        factory: Builds one module of its architecture.
        model: One such module; its parameters are of no meaning.
        variants: Numbers of those that did not fail, in the table of variants, increasing.
        device: Where to compute.
    """

    run: Run
    cohort: Cohort
    factory: Factory
    model: torch.nn.Module
    variants: np.ndarray
    device: torch.device

    @classmethod
    def open(
        cls,
        path: Path,
        cohort: Cohort | Path | None = None,
        model: Factory | str | None = None,
        device: Device | None = None,
    ) -> "Subject":
        """Open a run for analysis.

        Args:
            path: The run directory.
            cohort: Loaded already, or where it is now, if not where it was.
            model: What the run was trained with, if not a built-in model: the name of a class, or a factory.
            device: Where to compute, if not where it was trained.

        Raises:
            RunError: If it is no finished run, fewer than two of its variants are good, or its model is another one.
        """
        run = _finished(path)
        variants = run.variants.filter(status=OK)["variant"].to_numpy().astype(np.int64)
        if len(variants) < LEAST_VARIANTS:
            raise RunError(
                f"{path} has {len(variants)} variants that did not fail, of {len(run.variants)}, wanted 2 or more: "
                "there is nothing to compare; train more with --resume --variants N."
            )
        named = BUILT_IN if model is None else model
        factory = run.factory(named) if isinstance(named, str) else named
        module = run.model(named) if isinstance(named, str) else construct(factory, 0)[0]
        if columns_of(module) != run.columns:
            raise RunError(
                f"{path} holds weights of other names or shapes than {type(module).__name__} has: give its own model."
            )
        loaded = cohort if isinstance(cohort, Cohort) else cohort_of(run, cohort)
        spec = run.spec.train if device is None else replace(run.spec.train, device=device, precision="auto")
        return cls(run, loaded, factory, module, variants, compute_device(spec))

    @property
    def name(self) -> str:
        """Of the folder."""
        return str(self.run.paths.root)

    @property
    def form(self) -> str:
        """What its model attends over, and whether that is frozen."""
        spec = self.run.spec.model
        if not _is_built_in(self.run):
            return str(self.run.manifest["model"]["class"])
        return f"frozen {spec.attend_over}" if spec.freeze_attention else spec.attend_over

    @property
    def softmax_over(self) -> str:
        """Axis along which its attention sums to 1: `step`, or `feature`, as is supposed of a model of one's own."""
        over_time = _is_built_in(self.run) and self.run.spec.model.attend_over == "time"
        return "step" if over_time or "feature" not in self.axes else "feature"

    @property
    def is_crossed(self) -> bool:
        """Whether two or more causes vary independently of each other."""
        return self.run.spec.variants.design == "crossed" and len(self.factors) > 1

    @cached_property
    def factors(self) -> dict[str, np.ndarray]:
        """Seeds of the good variants, for each cause that takes more than one value."""
        table = self.run.variants.filter(status=OK)
        names = {"init": "init_seed", "order": "order_seed", "bootstrap": "bootstrap_seed"}
        return {name: table[column].to_numpy() for name, column in names.items() if table[column].n_unique() > 1}

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the attention."""
        attention_sizes(self.model, self.cohort.x[:1])  # says so if the model does not name them
        axes: tuple[str, ...] = tuple(self.model.attention_axes)  # type: ignore[arg-type]
        if axes not in (("step", "feature"), ("step",)):
            raise RunError(
                f"{self.name}: its attention has the axes {', '.join(axes)}, but analyses know (step, feature) and "
                "(step): let `attend` give one of these."
            )
        return axes

    def stack(self, which: str = "best") -> Stack:
        """Weights of the good variants, on the device."""
        stack = self.run.weights(which)
        return Stack(stack.theta[self.variants], stack.columns).to(self.device)

    @cached_property
    def initial(self) -> Stack:
        """The good variants before any training: the snapshot of epoch 0, or built again from their seeds."""
        name = snapshot_name(0).removesuffix(".safetensors")
        if 0 in self.run.spec.train.snapshots:
            return self.stack(name)
        seeds = self.run.variants["init_seed"].to_numpy()[self.variants].tolist()
        built: dict[int, torch.nn.Module] = {}

        def module(seed: int) -> torch.nn.Module:
            if len(set(seeds)) == len(seeds):
                return construct(self.factory, seed)[0]
            if seed not in built:  # a crossed design has few initialisations
                built[seed] = construct(self.factory, seed)[0]
            return built[seed]

        return stack_modules((module(seed) for seed in seeds), len(seeds)).to(self.device)

    def rows(self, which: str) -> Tensor:
        """Rows of the stays that a text names; `saved` are those whose attention is saved.

        Raises:
            SpecError: If it names none.
        """
        if which == "saved":
            which = ",".join(self.run.saved_samples) or "none"
        rows = choose_samples(self.cohort, which, seed=self.run.spec.attention_seed)
        if not len(rows):
            raise SpecError(f"--samples `{which}` names no stay: write test:32, test:positive, all, ids, or @FILE.")
        return rows

    def predictions(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the good variants predict for a split, as written.

        Returns:
            Rows of the cohort [N], labels [N], and probabilities [V, N], or [V, N, C] for a multiclass task.
        """
        rows = self.cohort.rows(split).numpy()
        place = {self.cohort.samples[row]: number for number, row in enumerate(rows.tolist())}
        own = self.run.predictions.filter(pl.col("split") == split)
        number = own["sample"].replace_strict(place, return_dtype=pl.Int64)
        own = own.with_columns(number=number).sort("variant", "number")
        values = own["probability"].to_numpy()
        probability = values.reshape(len(self.run.variants), len(rows), *values.shape[1:])[self.variants]
        return rows, self.cohort.y[rows].numpy(), probability


def open_all(
    paths: list[Path],
    cohort: Path | None = None,
    model: Factory | str | None = None,
    device: Device | None = None,
) -> list[Subject]:
    """Open the run to be analysed and those it is compared with, which share its cohort.

    Args:
        paths: Of the runs, the one to be analysed first.
        cohort: Where it is now, if not where it was.
        model: As in `Subject.open`, for those of the runs that are not of the built-in model.
        device: As in `Subject.open`.

    Raises:
        RunError: If one cannot be analysed, or they cannot be compared; the line says why.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise RunError(f"a run is named twice among {', '.join(map(str, paths))}: name each once.")
    runs = [_finished(path) for path in paths]
    for path, run in zip(paths[1:], runs[1:], strict=True):
        if problem := _difference(run, runs[0]):
            raise RunError(f"{path} cannot be compared with {paths[0]}: {problem}.")
    built_in = [_is_built_in(run) for run in runs]
    models = [None if is_built_in and not all(built_in) else model for is_built_in in built_in]
    first = Subject.open(paths[0], cohort, models[0], device)
    others = zip(paths[1:], models[1:], strict=True)
    return [first, *(Subject.open(path, first.cohort, own, device) for path, own in others)]


def _is_built_in(run: Run) -> bool:
    return run.manifest["model"]["made_from"] == "spec" and run.spec.model.name == BUILT_IN


def _finished(path: Path) -> Run:
    """Open a run.

    Raises:
        RunError: If it is no run, or not finished; the line says how far it is.
    """
    try:
        return open_run(path)
    except RunError:
        paths = RunPaths(path)
        if not paths.manifest.is_file() or (manifest := read_manifest(paths))["state"] == "done":
            raise
        blocks = manifest["blocks"]
        done = [stop - start for start, stop in blocks if (paths.block(start, stop) / DONE).exists()]
        raise RunError(
            f"{path} is not finished (state `{manifest['state']}`): {len(done)} of its {len(blocks)} blocks are "
            f"trained ({sum(done)} of {blocks[-1][1]} variants). Finish it with `vmapens train --resume`; no part of "
            "it can be analysed before."
        ) from None


def _difference(run: Run, first: Run) -> str:
    """Why a run cannot be compared with the first one; "" if it can."""
    task, wanted = run.manifest["task"]["name"], first.manifest["task"]["name"]
    if task != wanted:
        return f"it is of the task {task}, not {wanted}; train it for the same"
    if run.manifest["cohort"]["fingerprint"] != first.manifest["cohort"]["fingerprint"]:
        return "it is of another cohort; train it on the same"
    for name, option in (("sample_ids", "--no-sample-ids"), ("indicators", "--indicators")):
        if getattr(run.spec.cohort, name) != getattr(first.spec.cohort, name):
            return f"only one of the two was trained with {option}; train both with it, or both without"
    if not run.splits.equals(first.splits):
        return "its stays are split otherwise; use the same --split-seed"
    return ""


def chosen_of(stack: Stack, places: np.ndarray) -> Stack:
    """Some variants of a stack."""
    return replace(stack, theta=stack.theta[torch.from_numpy(places)])
