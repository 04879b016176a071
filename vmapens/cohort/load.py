"""From a cohort to the tensors of one task: read, match, split, fill, scale.

`x` is allocated once and everything after happens in place; at paper size (5,000 x 288 x 231) the process grows by well
under 2.5 times the tensor (`python -m benchmarks run load`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vmapens.axes import Labels, Observed, Series
from vmapens.cohort.grid import check_keys, fill_grid
from vmapens.cohort.identity import first_five, sample_order
from vmapens.cohort.memory import require_memory
from vmapens.cohort.scale import Scaling, fit_scaling, forward_fill, standardise
from vmapens.cohort.schema import CohortInfo, Task
from vmapens.cohort.split import SPLITS, check_split, split_samples
from vmapens.cohort.tables import Tables, class_codes, groups_in_several_splits, open_tables
from vmapens.errors import CohortError
from vmapens.spec import CohortSpec


@dataclass(frozen=True)
class Cohort:
    """The samples of one task, ready to train on.

    Args:
        x: Forward-filled and standardised float32; 0 where nothing was measured up to that step. With indicators the
            second half of F is 1 where the first half was not measured in that step, else 0.
        observed: Measured in that very step; a static feature is measured in all steps, an indicator always.
        y: Class of each sample, 0..C-1, int64.
        samples: Ids as text, sorted (whole numbers as numbers); row numbers if `spec.sample_ids` is not set.
        split: "train", "valid" or "test" for each sample.
        patient: Number of each sample's patient (group), 0, 1, ...; samples without one are patients of their own.
        features: One row per feature of `x`: `index`, `feature`, `unit`, `group`, `mean`, `std` (of the training split,
            in raw units; std 0 if constant there; both null if never measured there; 0 and 1 for an indicator).
        task: What `y` says.
        info: The whole cohort as its files describe it.
        fingerprint: SHA-256 over the files.
        warnings: What the user should know and may accept, a sentence each.
        spec: What it was loaded by.
    """

    x: Series
    observed: Observed
    y: Labels
    samples: tuple[str, ...]
    split: np.ndarray
    patient: np.ndarray
    features: pl.DataFrame
    task: Task
    info: CohortInfo
    fingerprint: str
    warnings: tuple[str, ...]
    spec: CohortSpec

    def rows(self, split: str) -> Int[Tensor, "S"]:
        """Row numbers of one split, ascending, int64.

        Raises:
            ValueError: If the name is none of train, valid, test.
        """
        if split not in SPLITS:
            raise ValueError(f"split is `{split}`, wanted one of {', '.join(SPLITS)}")
        return torch.from_numpy(np.flatnonzero(self.split == split).astype(np.int64))


def load_cohort(spec: CohortSpec) -> Cohort:
    """Read the samples that have a label of `spec.task`.

    Raises:
        CohortError: If the files cannot be read, contradict themselves or each other, leave a split without two
            classes, or need more memory than is free. The line says what, where, got, wanted, and what to do.
    """
    warnings: list[str] = []
    tables, task, samples, y, labels = _open(spec, warnings)
    split = _split(labels, samples, y, spec, warnings)
    check_split(split, y, task.classes, tables.source)
    for name in SPLITS:
        absent = sorted(set(range(len(task.classes))) - set(y[split == name].tolist()))
        if absent:
            some = first_five([task.classes[code] for code in absent])
            warnings.append(f"the {name} split has no sample of {len(absent)} of {len(task.classes)} classes ({some}).")

    features = len(tables.info.features)
    shape = (len(samples), tables.info.steps, features * (2 if spec.indicators else 1))
    # NumPy and torch share this memory; all the arithmetic below is in place.
    x = np.full(shape, np.nan, dtype=np.float32)
    values = x[:, :, :features]
    fill_grid(tables, samples, values)
    observed = np.ones(shape, dtype=bool)
    measured = np.isfinite(values, out=observed[:, :, :features])
    unmeasured = int((~measured.any(axis=(1, 2))).sum())
    if unmeasured:
        warnings.append(f"{unmeasured} of {len(samples)} samples have no measurement at all; they are all zeros.")
    forward_fill(values)
    scaling = fit_scaling(values, np.flatnonzero(split == "train"))
    standardise(values, scaling)
    if spec.indicators:
        clash = {f"{feature.name}_missing" for feature in tables.info.features} & {f.name for f in tables.info.features}
        if clash:
            raise CohortError(f"{tables.source}: indicators would repeat the names {first_five(clash)}; rename these.")
        np.logical_not(measured, out=x[:, :, features:], casting="unsafe")
    table = _feature_table(tables.info, scaling, indicators=spec.indicators)
    if scaling.flat:
        names = [tables.info.features[index].name for index in scaling.flat]
        warnings.append(
            f"features that are constant or never measured in the training split became all zeros ({len(names)}): "
            f"{', '.join(names)}."
        )
    return Cohort(
        x=torch.from_numpy(x),
        observed=torch.from_numpy(observed),
        y=torch.from_numpy(y),
        samples=tuple(samples if spec.sample_ids else map(str, range(len(samples)))),
        split=split,
        patient=_patients(labels),
        features=table,
        task=task,
        info=tables.info,
        fingerprint=tables.fingerprint,
        warnings=tuple(warnings),
        spec=spec,
    )


def check_splits(specs: Sequence[CohortSpec]) -> None:
    """See from the labels alone that each of several splits of a cohort can be learnt and measured on.

    Args:
        specs: They differ in `split_seed`, `folds` and `fold` only.

    Raises:
        CohortError: As `load_cohort`, or if the labels bring a split of their own; the line says which split it is.
    """
    tables, task, samples, y, labels = _open(specs[0], [])
    if "split" in labels.columns:
        raise _brings_split(specs[0])
    for spec in specs:
        which = f"split seed {spec.split_seed}" if spec.folds is None else f"fold {spec.fold} of {spec.folds}"
        check_split(_split(labels, samples, y, spec, []), y, task.classes, f"{tables.source}, {which}")


def raw_values(cohort: Cohort, rows: Int[Tensor, "S"]) -> Float[Tensor, "S T F"]:
    """The forward-filled values of chosen samples in raw units, ``x * std + mean``; NaN where still missing.

    Still missing is a cell of a feature that was not measured in that step or any before it, which `observed` tells
    (0 in `x` does not: it is also the training mean). A feature that is constant in the training split comes back as
    that constant, one never measured there as NaN. Exact to float32 rounding of x, about 1e-7 of the feature's SD.

    Args:
        cohort: Where the samples are.
        rows: Their row numbers.
    """
    mean, std = (torch.from_numpy(cohort.features[name].to_numpy().astype(np.float64)) for name in ("mean", "std"))
    known = cohort.observed[rows].to(torch.int8).cummax(dim=1).values.bool()
    raw = (cohort.x[rows].double() * std + mean).float()
    return raw.masked_fill(~known, torch.nan)


def _open(spec: CohortSpec, warnings: list[str]) -> tuple[Tables, Task, list[str], Int[np.ndarray, "N"], pl.DataFrame]:
    """The files, the task, and the ids, classes and labels of its samples, sorted by id."""
    tables = open_tables(Path(spec.path))
    task = tables.info.task(spec.task)
    if spec.unmatched != "drop":  # else their series decide how many samples there are
        require_memory(tables, tables.labels[task.name].count(), spec)
    labels = _match(tables, spec, warnings)
    samples, y, labels = _labelled(labels, task, tables.source)
    require_memory(tables, len(samples), spec)
    return tables, task, samples, y, labels


def _match(tables: Tables, spec: CohortSpec, warnings: list[str]) -> pl.DataFrame:
    """The rows of the labels that `spec.unmatched` lets in."""
    in_series = set(check_keys(tables))
    ids = tables.labels["sample"].cast(pl.String)
    no_series = set(ids.to_list()) - in_series
    no_label = in_series - set(ids.to_list())
    if not no_series and not no_label:
        return tables.labels
    found = [
        f"{len(names)} samples are in the {here} only ({first_five(names)})"
        for names, here in ((no_series, "labels"), (no_label, "series"))
        if names
    ]
    if spec.unmatched == "error":
        raise CohortError(
            f"{tables.source}: {' and '.join(found)}; wanted each in both: --unmatched keep takes those without a "
            "series as never measured and leaves out those without a label, --unmatched drop leaves out both."
        )
    if no_label:
        warnings.append(f"{len(no_label)} samples without a label were left out ({first_five(no_label)}).")
    if no_series and spec.unmatched == "keep":
        warnings.append(
            f"{len(no_series)} samples without a series are kept, never measured ({first_five(no_series)})."
        )
    elif no_series:
        warnings.append(f"{len(no_series)} samples without a series were left out ({first_five(no_series)}).")
        return tables.labels.filter(~ids.is_in(list(no_series)))
    return tables.labels


def _labelled(labels: pl.DataFrame, task: Task, source: Path) -> tuple[list[str], np.ndarray, pl.DataFrame]:
    """Ids, classes and rows of the samples in the task, sorted by id."""
    code = class_codes(labels, task, source)
    labels, code = labels.filter(code.is_not_null()), code.drop_nulls()
    if not len(labels):
        raise CohortError(f"{source}: no sample has a label of `{task.name}`; choose another task, or import it again.")
    ids_as_text = labels["sample"].cast(pl.String).to_list()
    order = sample_order(ids_as_text)
    y = code.to_numpy().astype(np.int64)[order]
    return [ids_as_text[row] for row in order], y, labels[order]


def _patients(labels: pl.DataFrame) -> np.ndarray:
    """A number for each group, in the order of the rows; each row without a group has its own."""
    if "group" not in labels.columns:
        return np.arange(len(labels))
    names = [(row,) if group is None else group for row, group in enumerate(labels["group"].to_list())]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _split(
    labels: pl.DataFrame, samples: Sequence[str], y: np.ndarray, spec: CohortSpec, warnings: list[str]
) -> np.ndarray:
    group = labels["group"].to_list() if "group" in labels.columns else None
    if "split" not in labels.columns:
        return split_samples(
            samples, y, group, seed=spec.split_seed, fractions=spec.fractions, folds=spec.folds, fold=spec.fold
        )
    if spec.folds is not None:
        raise _brings_split(spec)
    if group is not None and (apart := groups_in_several_splits(labels)):
        warnings.append(f"{len(apart)} groups are in several splits, as the labels say ({first_five(apart)}).")
    return labels["split"].to_numpy().astype("<U5")


def _brings_split(spec: CohortSpec) -> CohortError:
    return CohortError(
        f"{spec.path} brings its own split (column `split` of the labels), which no folds or split seeds change: train "
        "one run on it, without them, or drop the split: vmapens import cohort COHORT --drop-split --out OTHER."
    )


def _feature_table(info: CohortInfo, scaling: Scaling, *, indicators: bool) -> pl.DataFrame:
    kept = pl.DataFrame(
        {
            "feature": [feature.name for feature in info.features],
            "unit": [feature.unit for feature in info.features],
            "group": [feature.group for feature in info.features],
            "mean": scaling.mean,
            "std": scaling.std,
        }
    ).with_columns(pl.col("mean", "std").fill_nan(None))
    if indicators:
        missing = kept.with_columns(pl.col("feature") + "_missing", unit=pl.lit(""), mean=pl.lit(0.0), std=pl.lit(1.0))
        kept = pl.concat([kept, missing])
    return kept.with_row_index("index").with_columns(pl.col("index").cast(pl.Int32))
