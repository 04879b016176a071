"""From a cohort to a run directory: blocks of variants x epochs, the best epoch of each variant kept.

A variant's arithmetic never meets another's, so blocks change no byte of a result (on a CPU, for built-in models).
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import polars as pl
import pyarrow
import torch
from torch import Tensor

import vmapens
from vmapens import attention as attention_room
from vmapens.cohort.load import Cohort, load_cohort
from vmapens.ensemble import metrics
from vmapens.ensemble.epoch import Block, Data, train_epoch
from vmapens.ensemble.memory import Needs, Width, needs
from vmapens.ensemble.seeds import Factory, construct, orders, variant_table
from vmapens.ensemble.stack import columns_of, stack_modules
from vmapens.ensemble.step import attend, gradients, predict
from vmapens.errors import RunError, SpecError, StackError, VmapensError, first_line
from vmapens.nn import kernels
from vmapens.nn.factory import model_factory
from vmapens.nn.kernels import compute_device, use_kernel, use_precision
from vmapens.nn.loss import targets
from vmapens.nn.threads import spread_over
from vmapens.run import Run, RunPaths, create_run, open_run, read_manifest, write_json, write_parquet, write_weights
from vmapens.spec import BUILT_IN, RunSpec, to_table

_CUT = "warning: memory ran out; going on with {value} variants at once, which changes no result."


@runtime_checkable
class Listener(Protocol):
    """Hears how far a training is."""

    def start(self, variant_epochs: int) -> None:
        """The work is known: this many epochs of one variant."""

    def advance(self, variant_epochs: int) -> None:
        """So many more are done."""

    def say(self, line: str) -> None:
        """A line of interest."""


class Silence:
    """A listener that says nothing."""

    def start(self, variant_epochs: int) -> None:
        """Nothing."""

    def advance(self, variant_epochs: int) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start: everything is read and checked, nothing is written."""

    spec: RunSpec
    cohort: Cohort
    factory: Factory
    made_from: Literal["spec", "python"]
    model: torch.nn.Module
    table: pl.DataFrame
    device: torch.device
    saved: Tensor
    needs: Needs

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of variants."""
        count = len(self.table)
        return [(a, min(a + self.needs.block, count)) for a in range(0, count, self.needs.block)]


def plan(spec: RunSpec, *, model: Factory | None = None, cohort: Cohort | None = None) -> Plan:
    """Read the cohort, build one model, and find every problem that can be found before training.

    Args:
        spec: The run; with `cohort` given, that one's spec takes the place of `spec.cohort`.
        model: A factory of one module; None takes `spec.model`.
        cohort: A loaded cohort; None loads `spec.cohort`.

    Raises:
        VmapensError: With the first problem found.
    """
    device = compute_device(spec.train)
    table = variant_table(spec.variants, spec.train)
    cohort = cohort or load_cohort(spec.cohort)
    spec = dataclasses.replace(spec, cohort=cohort.spec)
    metric = spec.train.select_by or metrics.default_metric(cohort.task.kind)
    _check_metric(metric, cohort, spec.train.select_on)
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, select_by=metric))
    T, F = cohort.x.shape[1:]
    factory = model or model_factory(spec.model, features=F, steps=T, outputs=cohort.task.outputs)
    first = _first_module(factory, cohort)
    if model is not None or spec.model.name != BUILT_IN:  # the built-in model's tests have shown it
        _check_transformable(first, cohort)
    saved = attention_room.choose_samples(cohort, spec.save_attention, seed=spec.attention_seed)
    sizes = attention_room.attention_sizes(first, cohort.x[:1]) if len(saved) else ()
    columns = columns_of(first)
    estimate = needs(
        spec,
        parameters=sum(column.stop - column.start for column in columns),
        variants=len(table),
        shape=(cohort.x.shape[0], T, F),
        outputs=cohort.task.outputs,
        saved=len(saved),
        evaluated=int(np.sum(cohort.split != "train")),
        attention_cells=int(np.prod(sizes)),
        device=device,
    )
    return Plan(spec, cohort, factory, "spec" if model is None else "python", first, table, device, saved, estimate)


def _check_metric(metric: str, cohort: Cohort, split: str) -> None:
    metrics.check(metric, cohort.task.kind)
    y = cohort.y[cohort.rows(split)].numpy()
    classes = len(cohort.task.classes)
    flat = np.full((1, len(y)) if cohort.task.kind == "binary" else (1, len(y), classes), 1 / classes, np.float32)
    if np.isnan(metrics.score(metric, y, flat)).any():
        raise SpecError(
            f"{metric} cannot choose epochs on the {split} split, which has only {len(np.unique(y))} of {classes} "
            "classes; take another --select-by, or merge small classes."
        )


def _first_module(factory: Factory, cohort: Cohort) -> torch.nn.Module:
    """Build the first variant's module and call it once.

    Raises:
        StackError: If it cannot be built, has the wrong signature, or draws random numbers.
    """
    outputs, x = cohort.task.outputs, cohort.x[:2]
    name = "the model"
    try:
        module, state = construct(factory, 0)
        name = type(module).__name__
        with torch.random.fork_rng(devices=[]), torch.no_grad(), use_kernel("reference"):  # the others start slowly
            torch.default_generator.set_state(state)
            logits, attention = module(x)
            drawn = not torch.equal(torch.default_generator.get_state(), state)
    except VmapensError:
        raise
    except Exception as error:
        built_by = f"features={x.shape[2]}, steps={x.shape[1]}, outputs={outputs}"
        raise StackError(
            f"{name} cannot be built with ({built_by}), or fails on x {tuple(x.shape)}: {first_line(error)}"
        ) from error
    if drawn:
        raise StackError(
            f"{name} draws from the global random generator (dropout?): its variants would depend on each other. "
            "Remove it; seeded dropout is not offered yet."
        )
    if tuple(logits.shape) != (len(x), outputs) or attention.shape[0] != len(x):
        got = f"{tuple(logits.shape)} and {tuple(attention.shape)}"
        raise StackError(
            f"{name} gives logits and attention of shape {got}, wanted ({len(x)}, {outputs}) and (2, ...)."
        )
    return module


def _check_transformable(module: torch.nn.Module, cohort: Cohort) -> None:
    """See that two variants of a module give the gradients of one step, logits and attention.

    The first gradient makes torch import its compiler, 1.4 s of CPU time: a dry run of the built-in model goes without.

    Raises:
        StackError: If `torch.func` cannot transform it.
    """
    x, y = cohort.x[:2], targets(cohort.y[:2], cohort.task.kind, cohort.x.dtype)
    stack = stack_modules([module, module], 2)
    try:
        compute = gradients(module, cohort.task.kind)
        rows = torch.arange(len(x)).expand(2, -1)
        compute(stack.views(trained=True), stack.views(trained=False), x, rows, y[rows])
        predict(module, cohort.task.kind, stack, x)
        attend(module, stack, x)
    except Exception as error:
        hint = "torch.nn.LSTM cannot: use vmapens.nn.LSTM"
        name = type(module).__name__
        raise StackError(f"{name} does not run under torch.func.vmap: {first_line(error)} ({hint}).") from error


def train(
    model: Factory | None,
    cohort: Cohort | str | Path | None,
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    drop_state: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Train all variants of a spec and write the run directory.

    Args:
        model: A factory of one module, or None for the model that the spec names.
        cohort: A loaded cohort, a path, or None for the one that the spec names.
        spec: Everything that decides the results.
        out: The run directory, which must not exist.
        overwrite: Replace a run that is there.
        resume: Keep the finished blocks of an interrupted run of the same spec and cohort, and do the others.
        drop_state: Write no optimiser state; the run cannot be given more epochs then.
        listener: Hears of progress.

    Returns:
        The finished run.

    Raises:
        VmapensError: If the input is wrong; nothing is written then.
    """
    if isinstance(cohort, str | Path):
        spec = dataclasses.replace(spec, cohort=dataclasses.replace(spec.cohort, path=str(cohort)))
        cohort = None
    ready = plan(spec, model=model, cohort=cohort)
    return execute(ready, Path(out), overwrite=overwrite, resume=resume, drop_state=drop_state, listener=listener)


def execute(
    ready: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    drop_state: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Carry out a plan; see `train`."""
    listener = listener or Silence()
    manifest = _manifest(ready)
    if resume and (out / "run.json").exists():
        paths = RunPaths(out)
        _check_same_run(read_manifest(paths), manifest, out)
    else:
        paths = create_run(out, overwrite=overwrite)
    write_json(paths.manifest, manifest)
    cohort = ready.cohort
    write_parquet(paths.splits, pl.DataFrame({"sample": list(cohort.samples), "split": cohort.split}))
    write_parquet(paths.features, cohort.features)
    unfinished = [block for block in ready.blocks if not (paths.block(*block) / "done.json").exists()]
    listener.start(sum(stop - start for start, stop in unfinished) * ready.spec.train.epochs)
    with spread_over():
        with use_precision(ready.spec.train.precision):
            data = Data.of(cohort, ready.spec.train, ready.device)
            width = Width(ready.needs.width, on_cut=lambda value: listener.say(_CUT.format(value=value)))
            for start, stop in unfinished:
                _train_block(ready, data, paths, start, stop, width, drop_state, listener)
            del data
        _write_variants(ready, paths)
        run = Run(paths, manifest)
        attention_room.write_predictions(run, ready.model, cohort, ready.device)
        if len(ready.saved):
            attention_room.write_samples(run, ready.model, cohort, ready.saved, ready.device)
    write_json(paths.manifest, {**manifest, "state": "done"})
    return open_run(out)


def _train_block(
    ready: Plan,
    data: Data,
    paths: RunPaths,
    start: int,
    stop: int,
    width: Width,
    drop_state: bool,
    listener: Listener,
) -> None:
    spec, folder = ready.spec.train, paths.block(start, stop)
    table = ready.table[start:stop]
    modules = (construct(ready.factory, seed)[0] for seed in table["init_seed"])
    stack = stack_modules(modules, stop - start).to(ready.device)
    block = Block.start(stack, table, list(orders(ready.factory, table, len(data.x))))
    variants = table.select("variant")
    history: list[pl.DataFrame] = []
    for epoch in range(spec.epochs + 1):
        if epoch > 0:
            scores = train_epoch(ready.model, block, data, spec, epoch=epoch, width=width, on_variants=listener.advance)
            history.append(pl.concat([variants, scores], how="horizontal"))
        if epoch in spec.snapshots:
            write_weights(folder / f"epoch-{epoch:04d}.safetensors", block.stack)
    write_weights(folder / "best.safetensors", block.best)
    write_weights(folder / "last.safetensors", block.stack)
    if not drop_state:
        write_weights(  # the orders of further epochs follow from the seeds and the number of epochs
            folder / "state.safetensors",
            block.stack,
            first=block.state.first,
            second=block.state.second,
            best_score=torch.from_numpy(block.best_score),
            kept_epoch=torch.from_numpy(block.kept_epoch),
            epochs=torch.tensor(spec.epochs),
            steps=torch.tensor(block.steps),
        )
    write_parquet(folder / "history.parquet", pl.concat(history).sort("variant", "epoch"))
    done = {"variants": [start, stop], "epochs": spec.epochs, "kept_epoch": block.kept_epoch.tolist()}
    write_json(folder / "done.json", done)
    listener.say(f"variants {start} to {stop - 1} are trained: {folder}")


def _write_variants(ready: Plan, paths: RunPaths) -> None:
    kept: list[int] = []
    for block in ready.blocks:
        kept += json.loads((paths.block(*block) / "done.json").read_text(encoding="utf-8"))["kept_epoch"]
    status = pl.when(pl.col("kept_epoch") > 0).then(pl.lit("ok")).otherwise(pl.lit("failed")).alias("status")
    write_parquet(
        paths.variants, ready.table.with_columns(pl.Series("kept_epoch", kept, pl.Int32)).with_columns(status)
    )


def _manifest(ready: Plan) -> dict[str, Any]:
    """What run.json says."""
    cohort, model = ready.cohort, ready.model
    T, F = cohort.x.shape[1:]
    return {
        "format_version": vmapens.run.FORMAT_VERSION,
        "state": "running",
        "command": sys.argv,
        "spec": to_table(ready.spec),
        "versions": versions(ready.device),
        "cohort": {
            "fingerprint": cohort.fingerprint,
            "source": cohort.info.source,
            "licence": cohort.info.licence,
            "minutes_per_step": cohort.info.minutes_per_step,
            "samples": {split: len(cohort.rows(split)) for split in ("train", "valid", "test")},
        },
        "task": dataclasses.asdict(cohort.task),
        "model": {
            "made_from": ready.made_from,
            "class": f"{type(model).__module__}:{type(model).__qualname__}",
            "features": F,
            "steps": T,
            "outputs": cohort.task.outputs,
            "parameters": ready.needs.parameters,
            "attention_axes": list(getattr(model, "attention_axes", ())),
        },
        "blocks": [list(block) for block in ready.blocks],
    }


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what the results depend on."""
    return {
        "vmapens": vmapens.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polars": pl.__version__,
        "pyarrow": pyarrow.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "kernel": kernels.version(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _check_same_run(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    """A variant is the same bytes under the same settings, cohort and versions only: nothing else may be mixed."""
    new = json.loads(json.dumps(new))
    keys = ("spec", "cohort", "model", "blocks", "versions")
    before, now = (dict(_leaves({key: manifest[key] for key in keys})) for manifest in (old, new))
    del now["spec.cohort.path"]  # the fingerprint says whether it is the same
    different = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now[key]]
    if different:
        raise RunError(f"{out} cannot be resumed: {'; '.join(different)}. Use the same settings, cohort and versions.")


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
