"""`open_run`: everything that a run directory holds, read back piece by piece."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from vmapens import arrow
from vmapens.atomic import atomic_path
from vmapens.cohort.schema import Task
from vmapens.directory import BEST, HISTORY, RunPaths, read_manifest
from vmapens.ensemble.block import OK
from vmapens.ensemble.stack import Column, Stack, columns_of
from vmapens.errors import RunError, SpecError, first_line
from vmapens.machine import free_memory
from vmapens.nn.factory import model_factory
from vmapens.spec import BUILT_IN, RunSpec, from_table
from vmapens.weights import read_columns, read_weights

_SPLITS = pl.Schema({"sample": pl.String, "split": pl.String})
_SEEDS = dict.fromkeys(("init_seed", "order_seed", "bootstrap_seed"), pl.Int64)
_RATES = dict.fromkeys(("lr", "weight_decay"), pl.Float64)
_KEPT = {"status": pl.String, "kept_epoch": pl.Int32, "trained_epochs": pl.Int32}
_VARIANTS = pl.Schema({"variant": pl.Int32, **_SEEDS, **_RATES, **_KEPT})
_FEATURES = pl.Schema(
    {"index": pl.Int32, **dict.fromkeys(("feature", "unit", "group"), pl.String), "mean": pl.Float64, "std": pl.Float64}
)
_METRICS = pl.Schema({"variant": pl.Int32, "split": pl.String, "metric": pl.String, "value": pl.Float64})
_HISTORY = pl.Schema({"variant": pl.Int32, "epoch": pl.Int32, "train_loss": pl.Float64, "valid_loss": pl.Float64})
_INPUTS = pl.Schema({"sample": pl.String, "y": pl.Int32})
_INDEX = pl.Schema({"sample": pl.String, "part": pl.Int32})
_MOST_PARTS = 1_000_000
_ROW_BYTES = 16  # of a table, at least


@dataclass(frozen=True)
class Run:
    """A finished run, read back piece by piece."""

    paths: RunPaths
    manifest: dict[str, Any]

    @cached_property
    def spec(self) -> RunSpec:
        """The resolved settings."""
        try:
            return from_table(self.manifest["spec"])
        except SpecError as error:
            raise RunError(f"{self.paths.manifest} has a wrong spec: {error}") from error

    @cached_property
    def task(self) -> Task:
        """The task that the variants were trained for."""
        task = self.manifest["task"]
        return Task(**{**task, "classes": tuple(task["classes"])})

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Half-open ranges of variants."""
        return [(start, stop) for start, stop in self.manifest["blocks"]]

    @cached_property
    def variants(self) -> pl.DataFrame:
        """The table of variants with status, kept epoch and number of trained epochs."""
        frame = self._parquet(self.paths.variants, _VARIANTS)
        if frame["variant"].to_list() != list(range(self.blocks[-1][1])):
            raise RunError(f"{self.paths.variants} holds other variants than run.json; train the run again.")
        return frame

    @cached_property
    def splits(self) -> pl.DataFrame:
        """Columns sample, split."""
        return self._parquet(self.paths.splits, _SPLITS)

    @cached_property
    def features(self) -> pl.DataFrame:
        """Columns index, feature, unit, group, mean, std."""
        return self._parquet(self.paths.features, _FEATURES)

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """Columns variant, split, metric, value."""
        return self._parquet(self.paths.metrics, _METRICS)

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """Columns variant, sample, split, y, probability."""
        outputs = self.task.outputs
        probability = pl.Float32() if outputs == 1 else pl.Array(pl.Float32, outputs)
        columns = pl.Schema({"variant": pl.Int32, **_SPLITS, "y": pl.Int32, "probability": probability})
        return self._parquet(self.paths.predictions, columns)

    @cached_property
    def history(self) -> pl.DataFrame:
        """Columns variant, epoch, train_loss, valid_loss, and the metric of the kept epoch; all blocks."""
        parts = [self._parquet(self.paths.block(*block) / HISTORY, _HISTORY) for block in self.blocks]
        if any(part.schema != parts[0].schema for part in parts):
            raise RunError(f"the blocks of {self.paths.root} have histories of other columns; train the run again.")
        return pl.concat(parts)

    @cached_property
    def inputs(self) -> pl.DataFrame:
        """What the saved samples looked like: sample, y, value, scaled, measured."""
        frame = pl.from_arrow(arrow.read_table(self.paths.inputs))
        assert isinstance(frame, pl.DataFrame)
        return _checked(frame, _INPUTS, self.paths.inputs)

    def summary(self) -> pl.DataFrame:
        """Scores over the variants that did not fail: split, metric, variants, mean, sd (of the sample), min, max."""
        good = self.variants.filter(pl.col("status") == OK).select("variant")
        scores = self.metrics.join(good, on="variant", how="semi").group_by("split", "metric")
        value = pl.col("value")
        numbers = (pl.len().alias("variants"), value.mean().alias("mean"), value.std().fill_null(0.0).alias("sd"))
        return scores.agg(*numbers, value.min().alias("min"), value.max().alias("max")).sort("split", "metric")

    def weights(self, which: str = "best", *, block: tuple[int, int] | None = None) -> Stack:
        """Parameters of all variants, or of one block.

        Args:
            which: `best` (each variant's kept epoch), `last`, or `epoch-0005` for a snapshot.
            block: A member of `blocks`.
        """
        chosen = self.blocks if block is None else [block]
        stacks = [read_weights(self.paths.block(*entry) / f"{which}.safetensors") for entry in chosen]
        for (start, stop), stack in zip(chosen, stacks, strict=True):
            if len(stack.theta) != stop - start or stack.columns != stacks[0].columns:
                raise self._foreign_weights(start, stop)
        return stacks[0] if len(stacks) == 1 else Stack(torch.cat([s.theta for s in stacks]), stacks[0].columns)

    def _foreign_weights(self, start: int, stop: int) -> RunError:
        return RunError(f"{self.paths.block(start, stop)} holds weights of another run; --resume the training.")

    def state_dict(self, variant: int, which: str = "best") -> dict[str, torch.Tensor]:
        """One variant's parameters under the names of a plain PyTorch module.

        Raises:
            RunError: If there is no such variant.
        """
        start, stop = self.block_of(variant)
        return self.weights(which, block=(start, stop)).state_dict(variant - start)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Where each parameter stands in a row of the weights."""
        start, stop = self.blocks[0]
        columns, count = read_columns(self.paths.block(start, stop) / BEST)
        if count != stop - start:
            raise self._foreign_weights(start, stop)
        return columns

    def factory(self, named: str = BUILT_IN) -> Callable[[], torch.nn.Module]:
        """What builds one module of the run's architecture, drawing from the global generator as plain PyTorch does.

        Args:
            named: `attention-lstm`, or the `package:Class` that the run was trained with. A run directory is data,
                perhaps of someone else: what it names is only imported if the caller names it, too.

        Raises:
            RunError: If the run was made from Python with a factory, is of another model than `named`, or its module
                cannot be imported any more.
        """
        sizes = self.manifest["model"]
        if sizes["made_from"] == "python":
            raise RunError(f"{self.paths.root} was trained from Python with {sizes['class']}: give that model again.")
        spec = self.spec.model
        if spec.name != named:
            raise RunError(
                f"{self.paths.root} was trained with `{spec.name}`, not with `{named}`; code that a run names is only "
                f"imported if you name it, too: --model {spec.name}."
            )
        try:
            return model_factory(spec, features=sizes["features"], steps=sizes["steps"], outputs=sizes["outputs"])
        except SpecError as error:
            raise self._not_built(error) from error

    def model(self, named: str = BUILT_IN) -> torch.nn.Module:
        """A module of the run's architecture; its parameters are of no meaning.

        Args:
            named: As in `factory`.

        Raises:
            RunError: As `factory`, or if the kept weights are of another architecture.
        """
        factory = self.factory(named)
        try:
            if self.spec.model.name == BUILT_IN:
                with torch.device("meta"):  # sizes that the weights do not have are not asked for
                    self._check_columns(factory())
            with torch.random.fork_rng(devices=[]):
                return factory()
        except (SpecError, TypeError) as error:
            raise self._not_built(error) from error

    def _not_built(self, error: Exception) -> RunError:
        return RunError(f"{self.paths.root}: its model cannot be built again ({error}).")

    def _check_columns(self, module: torch.nn.Module) -> None:
        if columns_of(module) != self.columns:
            raise RunError(
                f"{self.paths.root} holds weights of other names or shapes than {type(module).__name__} has."
            )

    def attention(
        self, samples: Sequence[str] | str | None = None, variants: Sequence[int] | int | None = None
    ) -> np.ndarray:
        """Attention read from the Arrow files: of one sample or one variant in the time that its own bytes take.

        Args:
            samples: Ids, or one id; None takes every saved sample in the order of `saved_samples`.
            variants: Numbers in the table of variants, or one; None takes all.

        Returns:
            [V, S, T, F] (or [V, S, T]), float32; without the axis S for one id, without V for one number.

        Raises:
            RunError: If a sample was not saved, or there is no such variant.
        """
        ids = self.saved_samples if samples is None else [samples] if isinstance(samples, str) else samples
        every = range(self.blocks[-1][1])
        numbers = every if variants is None else [variants] if isinstance(variants, int) else variants
        index = self.attention_parts
        missing = sorted(set(ids) - set(index))
        if missing or not ids:
            some = f"{len(missing)} samples ({', '.join(missing[:5])})" if missing else "any sample asked for"
            raise RunError(f"no attention is saved for {some}; run `vmapens attend` for them.")
        for variant in numbers:
            self.block_of(variant)
        result: np.ndarray | None = None
        for start, stop in self.blocks:
            own = [(row, variant) for row, variant in enumerate(numbers) if start <= variant < stop]
            for part in sorted({index[sample] for sample in ids}) if own else []:
                path = self.paths.attention(start, stop, part)
                file = arrow.AttentionFile(path, start, stop - start, whole=samples is None and variants is None)
                columns = [column for column, sample in enumerate(ids) if index[sample] == part]
                found = [file.rows(variant, [ids[column] for column in columns]) for _, variant in own]
                if result is not None and found[0][0].shape != result.shape[2:]:
                    raise RunError(f"{path} holds attention of another shape than the parts before; was it changed?")
                if result is None:
                    result = np.empty((len(numbers), len(ids), *found[0][0].shape), np.float32)
                for (row, _), values in zip(own, found, strict=True):
                    for column, value in zip(columns, values, strict=True):
                        result[row, column] = value
        if result is None:
            raise RunError(f"no variant of {self.paths.root} is asked for: name one or more.")
        result = result[:, 0] if isinstance(samples, str) else result
        return result[0] if isinstance(variants, int) else result

    @cached_property
    def attention_parts(self) -> dict[str, int]:
        """Which part of each block's folder holds which saved sample."""
        path = self.paths.attention_index
        if not path.exists():
            return {}
        index = self._parquet(path, _INDEX).select(_INDEX.names())
        good = index["part"].is_between(0, _MOST_PARTS) & index["sample"].is_not_null()
        if not good.fill_null(value=False).all():
            raise RunError(f"{path} names samples or parts that cannot be; was it changed?")
        return dict(index.iter_rows())

    @property
    def samples_of_parts(self) -> dict[int, list[str]]:
        """The saved samples of each part of a block's folder."""
        parts: dict[int, list[str]] = {}
        for sample, part in self.attention_parts.items():
            parts.setdefault(part, []).append(sample)
        return parts

    @property
    def saved_samples(self) -> list[str]:
        """Ids of the samples whose attention is saved."""
        return list(self.attention_parts)

    def block_of(self, variant: int) -> tuple[int, int]:
        """The block that holds a variant.

        Raises:
            RunError: If there is no such variant.
        """
        for start, stop in self.blocks:
            if start <= variant < stop:
                return start, stop
        raise RunError(f"variant {variant} is not in {self.paths.root}, which has 0 to {self.blocks[-1][1] - 1}.")

    def _parquet(self, path: Path, columns: Mapping[str, Any]) -> pl.DataFrame:
        # With pyarrow, because Polars panics over some damaged files.
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows * _ROW_BYTES > free_memory():
                    raise ValueError(f"it has {file.metadata.num_rows:,} rows, more than fit in memory")
                table = file.read()
            table.validate(full=True)
            frame = pl.from_arrow(table)
        except (
            OSError,
            ValueError,
            MemoryError,
            pa.ArrowException,
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
        ) as error:
            raise RunError(
                f"{path} cannot be read ({first_line(error)}): remove it, and --resume the training."
            ) from error
        assert isinstance(frame, pl.DataFrame)
        return _checked(frame, columns, path)


def _checked(frame: pl.DataFrame, columns: Mapping[str, Any], path: Path) -> pl.DataFrame:
    wrong = [f"{name} is {frame.schema.get(name)}" for name, kind in columns.items() if frame.schema.get(name) != kind]
    if wrong:
        raise RunError(f"{path} is not the table that vmapens writes ({', '.join(wrong[:5])}); train the run again.")
    return frame


def open_run(path: Path | str) -> Run:
    """Open a finished run directory.

    Raises:
        RunError: If it is not a run, or not finished.
    """
    paths = RunPaths(Path(path))
    for other in paths.root.rglob("*"):
        if other.exists() and not (other.is_file() or other.is_dir()):  # a pipe would be waited for
            raise RunError(f"{other} is no file: a run holds nothing else; remove it.")
    manifest = read_manifest(paths)
    if manifest["state"] != "done":
        raise RunError(
            f"{path} is not finished (state `{manifest['state']}`): finish it with `vmapens train --resume`."
        )
    return Run(paths, manifest)


def export_variant(run: Path, variant: int, out: Path) -> None:
    """Write the kept weights of one variant as a plain state_dict, `.pt` or `.safetensors` by the name of `out`.

    Raises:
        RunError: If there is no such variant, it failed, `out` exists or has another ending.
        OutputError: If `out` cannot be written.
    """
    if out.suffix not in (".pt", ".safetensors"):
        raise RunError(f"{out} ends in `{out.suffix}`: name a .pt or a .safetensors file.")
    if out.exists():
        raise RunError(f"{out} exists already: choose another --out.")
    opened = open_run(run)
    tensors = opened.state_dict(variant)
    if opened.variants["status"][variant] != OK:
        epoch = opened.variants["trained_epochs"][variant]
        raise RunError(f"variant {variant} failed: it diverged in epoch {epoch}; export another.")
    with atomic_path(out) as temporary:
        if out.suffix == ".pt":
            with temporary.open("wb") as file:
                torch.save(tensors, file)
        else:
            safetensors.torch.save_file(tensors, temporary)
