"""From a cohort to a run directory: blocks of variants x epochs x steps, the best epoch of each variant kept.

Within a block the variants go through an epoch in groups of `width`, a matter of memory only. A variant's arithmetic
never meets another's, so blocks and widths change no byte of a result (on a CPU, for built-in models).
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import pyarrow
import torch
from torch import Tensor

import vmapens
from vmapens import attention as attention_room
from vmapens.cohort.load import Cohort, load_cohort
from vmapens.ensemble import metrics, optimizer
from vmapens.ensemble.memory import Needs, needs
from vmapens.ensemble.seeds import Factory, Order, construct, orders, variant_table
from vmapens.ensemble.stack import Stack, columns_of, stack_modules
from vmapens.ensemble.step import TaskKind, gradients, predict, targets, train_step
from vmapens.errors import RunError, StackError
from vmapens.nn.factory import model_factory
from vmapens.nn.kernels import compute_device
from vmapens.nn.threads import spread_over
from vmapens.run import Run, RunPaths, create_run, open_run, read_manifest, write_json, write_parquet, write_weights
from vmapens.spec import RunSpec, TrainSpec, to_table


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
class Data:
    """The tensors that training needs, on their device.

    Args:
        kind: Of the task.
        x: Training samples [N, T, F], ids sorted.
        y: Their labels [N].
        valid_x: Samples whose scores go in the history.
        valid_y: Their labels.
        select_x: Samples on which the kept epoch is chosen; the valid ones, unless the paper is replicated.
        select_y: Their labels.
    """

    kind: TaskKind
    x: Tensor
    y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    select_x: Tensor
    select_y: Tensor

    @classmethod
    def of(cls, cohort: Cohort, spec: TrainSpec, device: torch.device) -> "Data":
        """Take a cohort's splits apart."""
        pairs = []
        for split in ("train", "valid", spec.select_on):
            rows = cohort.rows(split)
            pairs += [cohort.x[rows].to(device), cohort.y[rows].to(device)]
        return cls(cohort.task.kind, *pairs)


@dataclass
class Block:
    """The variants that are trained together, and what is known of them so far.

    Args:
        stack: Their parameters as they are now.
        state: Adam's moments.
        orders: Each one's generator of orders.
        best: Parameters of each one's best epoch so far.
        best_score: Its score, -inf before the first.
        kept_epoch: That epoch.
        steps: Steps taken.
    """

    stack: Stack
    state: optimizer.AdamState
    orders: list[Order]
    best: Stack
    best_score: np.ndarray
    kept_epoch: np.ndarray
    steps: int = 0

    @classmethod
    def start(cls, stack: Stack, table: pl.DataFrame, order: list[Order]) -> "Block":
        """The state before the first step."""
        lr, decay = (torch.tensor(table[name].to_numpy(), device=stack.theta.device) for name in ("lr", "weight_decay"))
        state = optimizer.init(stack.theta[:, : stack.trained_width], lr, decay)
        best = Stack(stack.theta.clone(), stack.columns)
        return cls(stack, state, order, best, np.full(len(table), -np.inf), np.zeros(len(table), np.int32))


def train_epoch(
    model: torch.nn.Module,
    block: Block,
    data: Data,
    spec: TrainSpec,
    *,
    epoch: int,
    width: int,
    on_variants: Callable[[int], None] = lambda count: None,
) -> pl.DataFrame:
    """Train every variant of a block for one epoch, score it, and keep its parameters if it is its best.

    Args:
        model: One module of the architecture.
        block: Changed in place.
        data: On the block's device.
        spec: Batch size, metric, split of the choice.
        epoch: Counted from 1.
        width: Variants computed at once.
        on_variants: Hears how many variants have finished the epoch, group by group.

    Returns:
        One row per variant: epoch, train_loss (mean over the epoch's samples, before each step), valid_loss,
        valid_<metric>, and test_<metric> if that split chooses.
    """
    compute = gradients(model, data.kind)
    y = targets(data.y, data.kind, data.x.dtype)
    metric = spec.select_by or metrics.default_metric(data.kind)
    order = torch.stack([variant.next_epoch() for variant in block.orders]).to(data.x.device)
    batches = order.split(spec.batch_size, dim=1)
    rows: list[pl.DataFrame] = []
    for start in range(0, len(order), width):
        stop = min(start + width, len(order))
        stack, state = block.stack.rows(start, stop), block.state.rows(start, stop)
        total = torch.zeros(stop - start, dtype=torch.float64, device=data.x.device)
        for number, index in enumerate(batches, start=block.steps + 1):
            total += train_step(compute, stack, state, data.x, y, index[start:stop], number).double() * index.shape[1]
        rows.append(_score(model, stack, data, metric, spec, total / order.shape[1]))
        score = rows[-1][f"{spec.select_on}_{metric}"].fill_nan(-np.inf).to_numpy()
        score = score if metrics.METRICS[metric].higher_is_better else -score
        better = start + np.flatnonzero(score > block.best_score[start:stop])
        block.best.theta[better] = block.stack.theta[better]
        block.best_score[better] = score[better - start]
        block.kept_epoch[better] = epoch
        on_variants(stop - start)
    block.steps += len(batches)
    return pl.concat(rows).select(pl.lit(epoch, pl.Int32).alias("epoch"), pl.all())


def _score(
    model: torch.nn.Module, stack: Stack, data: Data, metric: str, spec: TrainSpec, train_loss: Tensor
) -> pl.DataFrame:
    valid_y = data.valid_y.cpu().numpy()
    valid = predict(model, data.kind, stack, data.valid_x).cpu().numpy()
    columns = {
        "train_loss": train_loss.cpu().numpy(),
        "valid_loss": metrics.score("log_loss", valid_y, valid),
        f"valid_{metric}": metrics.score(metric, valid_y, valid),
    }
    if spec.select_on != "valid":
        selected = predict(model, data.kind, stack, data.select_x).cpu().numpy()
        columns[f"{spec.select_on}_{metric}"] = metrics.score(metric, data.select_y.cpu().numpy(), selected)
    return pl.DataFrame(columns)


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start: everything is read and checked, nothing is written."""

    spec: RunSpec
    cohort: Cohort
    factory: Factory
    model: torch.nn.Module
    table: pl.DataFrame
    device: torch.device
    saved: Tensor
    needs: Needs
    attention_sizes: tuple[int, ...]

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of variants."""
        count = len(self.table)
        return [(a, min(a + self.needs.block, count)) for a in range(0, count, self.needs.block)]


def plan(spec: RunSpec, *, model: Factory | None = None, cohort: Cohort | None = None) -> Plan:
    """Read the cohort, build one model, and find every problem that can be found before training.

    Args:
        spec: The run; with `cohort` given its `cohort.path` is not read.
        model: A factory of one module; None takes `spec.model`.
        cohort: A loaded cohort; None loads `spec.cohort`.

    Raises:
        VmapensError: With the first problem found.
    """
    device = compute_device(spec.train)
    table = variant_table(spec.variants, spec.train)
    cohort = cohort or load_cohort(spec.cohort)
    metric = spec.train.select_by or metrics.default_metric(cohort.task.kind)
    metrics.check(metric, cohort.task.kind)
    T, F = cohort.x.shape[1:]
    outputs = 1 if cohort.task.kind == "binary" else len(cohort.task.classes)
    factory = model or model_factory(spec.model, features=F, steps=T, outputs=outputs)
    first = _first_module(factory, cohort, outputs)
    saved = attention_room.choose_samples(cohort, spec.save_attention, seed=spec.attention_seed)
    sizes = attention_room.attention_sizes(first, cohort.x[:1]) if len(saved) else ()
    columns = columns_of(first)
    estimate = needs(
        spec,
        parameters=sum(column.stop - column.start for column in columns),
        variants=len(table),
        shape=(cohort.x.shape[0], T, F),
        saved=len(saved),
        evaluated=int(np.sum(cohort.split != "train")),
        attention_cells=int(np.prod(sizes)),
        device=device,
    )
    return Plan(spec, cohort, factory, first, table, device, saved, estimate, sizes)


def _first_module(factory: Factory, cohort: Cohort, outputs: int) -> torch.nn.Module:
    """Build the first variant's module and see that it can be trained.

    Raises:
        StackError: If it has the wrong signature, or draws random numbers.
    """
    module, _ = construct(factory, 0)
    name = type(module).__name__
    with torch.random.fork_rng(devices=[]):
        before = torch.default_generator.get_state()
        try:
            with torch.no_grad():
                logits, attention = module(cohort.x[:2])
        except Exception as error:
            raise StackError(f"{name} fails on x {tuple(cohort.x[:2].shape)}: {error}") from error
        if not torch.equal(before, torch.default_generator.get_state()):
            raise StackError(
                f"{name} draws from the global random generator (dropout?): its variants would depend on each other. "
                "Remove it; seeded dropout is not offered yet."
            )
    if tuple(logits.shape) != (2, outputs) or attention.shape[0] != 2:
        got = f"{tuple(logits.shape)} and {tuple(attention.shape)}"
        raise StackError(f"{name} gives logits and attention of shape {got}, wanted (2, {outputs}) and (2, ...).")
    return module


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
        data = Data.of(cohort, ready.spec.train, ready.device)
        for start, stop in unfinished:
            _train_block(ready, data, paths, start, stop, drop_state, listener)
        _write_variants(ready, paths)
        run = Run(paths, manifest)
        attention_room.write_predictions(run, ready.model, cohort, ready.device)
        if len(ready.saved):
            attention_room.write_samples(run, ready.model, cohort, ready.saved, ready.device)
    write_json(paths.manifest, {**manifest, "state": "done"})
    return open_run(out)


def _train_block(
    ready: Plan, data: Data, paths: RunPaths, start: int, stop: int, drop_state: bool, listener: Listener
) -> None:
    spec, folder = ready.spec.train, paths.block(start, stop)
    table = ready.table[start:stop]
    modules = (construct(ready.factory, seed)[0] for seed in table["init_seed"])
    stack = stack_modules(modules, stop - start)
    stack = Stack(stack.theta.to(ready.device), stack.columns)
    block = Block.start(stack, table, list(orders(ready.factory, table, len(data.x))))
    variants = table.select("variant")
    history: list[pl.DataFrame] = []
    for epoch in range(spec.epochs + 1):
        if epoch > 0:
            scores = train_epoch(
                ready.model, block, data, spec, epoch=epoch, width=ready.needs.width, on_variants=listener.advance
            )
            history.append(pl.concat([variants, scores], how="horizontal"))
        if epoch in spec.snapshots:
            write_weights(folder / f"epoch-{epoch:04d}.safetensors", block.stack)
    write_weights(folder / "best.safetensors", block.best)
    write_weights(folder / "last.safetensors", block.stack)
    if not drop_state:
        moments = {"first": block.state.first, "second": block.state.second}
        write_weights(folder / "state.safetensors", block.stack, **moments, epoch=torch.tensor(spec.epochs))
    write_parquet(folder / "history.parquet", pl.concat(history).sort("variant", "epoch"))
    kept = variants.with_columns(pl.Series("kept_epoch", block.kept_epoch))
    write_parquet(folder / "kept.parquet", kept)
    write_json(folder / "done.json", {"variants": [start, stop], "epochs": spec.epochs})
    listener.say(f"variants {start} to {stop - 1} are trained: {folder}")


def _write_variants(ready: Plan, paths: RunPaths) -> None:
    kept = pl.concat([pl.read_parquet(paths.block(*block) / "kept.parquet") for block in ready.blocks])
    status = pl.when(pl.col("kept_epoch") > 0).then(pl.lit("ok")).otherwise(pl.lit("failed")).alias("status")
    table = ready.table.join(kept, on="variant", how="left", maintain_order="left")
    write_parquet(paths.variants, table.with_columns(status))


def _manifest(ready: Plan) -> dict[str, Any]:
    """What run.json says."""
    cohort, model = ready.cohort, ready.model
    T, F = cohort.x.shape[1:]
    return {
        "format_version": vmapens.run.FORMAT_VERSION,
        "state": "running",
        "command": sys.argv,
        "spec": to_table(ready.spec),
        "versions": versions(),
        "cohort": {
            "fingerprint": cohort.fingerprint,
            "source": cohort.info.source,
            "licence": cohort.info.licence,
            "minutes_per_step": cohort.info.minutes_per_step,
            "samples": {split: len(cohort.rows(split)) for split in ("train", "valid", "test")},
        },
        "task": dataclasses.asdict(cohort.task),
        "model": {
            "class": f"{type(model).__module__}:{type(model).__qualname__}",
            "features": F,
            "steps": T,
            "outputs": 1 if cohort.task.kind == "binary" else len(cohort.task.classes),
            "parameters": sum(column.stop - column.start for column in columns_of(model)),
            "attention_axes": list(getattr(model, "attention_axes", ())),
        },
        "blocks": [list(block) for block in ready.blocks],
    }


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return {
        "vmapens": vmapens.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polars": pl.__version__,
        "pyarrow": pyarrow.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _check_same_run(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    new = json.loads(json.dumps(new))
    keys = ("spec", "cohort", "model", "blocks")
    before, now = (dict(_leaves({key: manifest[key] for key in keys})) for manifest in (old, new))
    different = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now[key]]
    if different:
        raise RunError(f"{out} cannot be resumed: {'; '.join(different)}. Use the same settings and cohort.")


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
