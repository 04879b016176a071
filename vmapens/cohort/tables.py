"""Open a cohort, from a folder or through a mapping: names and types are right, values are not looked at yet.

What is checked here costs no pass over the series. `grid` checks its keys and values, `load` the labels of one task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from vmapens.cohort.identity import first_five
from vmapens.cohort.mapping import Layout, read_mapping
from vmapens.cohort.parquet import collect, count_rows, fingerprint, number_columns, scan
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE, CohortInfo, Task, read_info
from vmapens.cohort.split import SPLITS
from vmapens.errors import CohortError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "development"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "tuning", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "held_out", "holdout"), "test"),
}
"""What other people call the three splits (MEDS: train, tuning, held_out), in lower case."""


@dataclass(frozen=True)
class Tables:
    """A cohort whose rows are still in their files.

    Args:
        info: The grid, the features in the order of the tensor, the tasks.
        series: `sample` (String or Int64), `step` (Int32), and one numeric column per feature that changes with time;
            null or NaN = not measured. Rows in any order.
        labels: `sample` (as in `series`, unique, no nulls), the tasks, optionally `group` (String) and `split` (one of
            `SPLITS`), and static columns. A feature of `info` that is not in `series` stands here: it has one value per
            sample, for all steps.
        files: Everything that it was made of, the mapping included.
        rows: How many the files of the series have.
        layout: What these rows are.
        source: The folder or the TOML file.
        narrow: Where rows of `series` are gathered from a long table: builds the frame of a few features from their
            rows alone.
    """

    info: CohortInfo
    series: pl.LazyFrame
    labels: pl.DataFrame
    files: tuple[Path, ...]
    rows: int
    layout: Layout
    source: Path
    narrow: Callable[[Sequence[str]], pl.LazyFrame] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the files, which are all read for it."""
        return fingerprint(self.files)

    @property
    def static(self) -> tuple[str, ...]:
        """Features with one value per sample, which stand in `labels`."""
        timed = set(self.series.collect_schema().names())
        return tuple(feature.name for feature in self.info.features if feature.name not in timed)

    def pick(self, features: Sequence[str]) -> pl.LazyFrame:
        """`sample`, `step` and these columns of the series: the way to read it a few features at a time."""
        frame = self.series if self.narrow is None else self.narrow(features)
        return _with_key_types(frame.select("sample", "step", *features))


def open_tables(source: Path) -> Tables:
    """Open a cohort folder, or a TOML file that maps other Parquet files (`vmapens.cohort.mapping`).

    Raises:
        CohortError: If a file is missing or unreadable, a column is missing or of a wrong type, or the ids of the
            labels are null or repeated.
    """
    narrow: Callable[[Sequence[str]], pl.LazyFrame] | None = None
    layout: Layout = "plain"
    if source.is_dir():
        info = read_info(source)
        series = scan([source / SERIES_FILE])
        labels = collect(scan([source / LABELS_FILE]), source / LABELS_FILE)
        files: tuple[Path, ...] = (source / INFO_FILE, source / SERIES_FILE, source / LABELS_FILE)
        rows = count_rows([source / SERIES_FILE])
    elif source.suffix == ".toml":
        info, series, labels, files, rows, layout, narrow = read_mapping(source)
    elif source.exists():
        raise CohortError(f"{source} is no cohort: wanted a folder with {INFO_FILE}, or a .toml file that maps one.")
    else:
        raise CohortError(f"{source} does not exist: wanted a cohort folder, or a .toml file that maps one.")
    problems = _problems(info, series, labels)
    if problems:
        raise CohortError(f"{source}: {'; '.join(problems)}.")
    labels = _normal_labels(labels, source)
    return Tables(info, _with_key_types(series), labels, files, rows, layout, source, narrow)


def _with_key_types(frame: pl.LazyFrame) -> pl.LazyFrame:
    # A step beyond int32 becomes null, which `grid` counts as outside.
    kind = pl.String if frame.collect_schema()["sample"] == pl.String else pl.Int64
    return frame.with_columns(pl.col("sample").cast(kind), pl.col("step").cast(pl.Int32, strict=False))


def _problems(info: CohortInfo, series_frame: pl.LazyFrame, labels_frame: pl.DataFrame) -> list[str]:
    found: list[str] = []
    series, labels = series_frame.collect_schema(), labels_frame.schema
    for where, schema in (("series", series), ("labels", labels)):
        kind = schema.get("sample")
        if kind is None:
            found.append(f"the {where} have no column `sample`")
        elif not (kind == pl.String or kind.is_integer()):
            found.append(f"`sample` of the {where} is {kind}, wanted text or whole numbers")
    if not found and (series["sample"] == pl.String) != (labels["sample"] == pl.String):
        found.append(
            f"`sample` is {series['sample']} in the series but {labels['sample']} in the labels, wanted one type"
        )
    if "step" not in series:
        found.append("the series have no column `step`")
    elif not series["step"].is_integer():
        found.append(f"`step` is {series['step']}, wanted whole numbers")
    places = {f.name: series.get(f.name, labels.get(f.name)) for f in info.features}
    reserved = sorted({"sample", "step"} & places.keys())
    if reserved:
        found.append(f"a feature cannot be called {', '.join(reserved)}")
    missing = [name for name, kind in places.items() if kind is None]
    if missing:
        found.append(f"{len(missing)} of {len(places)} features have no column ({first_five(missing)})")
    numbers = number_columns(series_frame) | (number_columns(labels_frame) - set(series))
    wrong = [f"{name} is {kind}" for name, kind in places.items() if kind is not None and name not in numbers]
    if wrong:
        found.append(f"{len(wrong)} feature columns are not numbers ({first_five(wrong)})")
    unlabelled = [task.name for task in info.tasks if task.name not in labels]
    if unlabelled:
        found.append(f"{len(unlabelled)} tasks have no column in the labels ({first_five(unlabelled)})")
    for name in ("group", "split", *(task.name for task in info.tasks)):
        kind = labels.get(name, pl.Null())
        texts = (pl.String, pl.Categorical, pl.Enum) if name in ("group", "split") else (pl.String,)
        if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null, *texts)):
            found.append(f"`{name}` of the labels is {kind}, wanted text or whole numbers")
    leaks = sorted(places.keys() & {"group", "split", *(task.name for task in info.tasks)})
    if leaks:
        found.append(f"{first_five(leaks)} is a label, group or split and cannot be a feature")
    if info.steps < 1:
        found.append(f"the grid has {info.steps} steps, wanted 1 or more")
    if not info.features:
        found.append("there are no features")
    return found


def _normal_labels(labels: pl.DataFrame, source: Path) -> pl.DataFrame:
    kind = pl.String if labels.schema["sample"] == pl.String else pl.Int64
    labels = labels.with_columns(pl.col("sample").cast(kind, strict=False))
    nulls = labels["sample"].null_count()
    if nulls:
        raise CohortError(f"{source}: {nulls} rows of the labels have no `sample`, or one of 2^63 or more.")
    twice = labels.filter(pl.col("sample").is_duplicated())["sample"].cast(pl.String).unique().to_list()
    if twice:
        raise CohortError(
            f"{source}: {len(twice)} samples have several rows in the labels ({first_five(twice)}), wanted one each."
        )
    if "group" in labels.columns:
        labels = labels.with_columns(pl.col("group").cast(pl.String))
    if "split" in labels.columns:
        named = labels.select(pl.col("split").cast(pl.String), name=split_named(pl.col("split")))
        unknown = named.filter(pl.col("name").is_null())["split"].fill_null("null").to_list()
        if unknown:
            raise CohortError(
                f"{source}: {len(unknown)} rows of the labels have a `split` that is none of {', '.join(SPLITS)} "
                f"({first_five(unknown)}); name it, or leave out the column."
            )
        labels = labels.with_columns(split=named["name"])
    return labels


def split_named(said: pl.Expr) -> pl.Expr:
    """The split that a text says, in any of `SPLIT_NAMES` and any case; null if it says none."""
    return said.cast(pl.String).str.to_lowercase().replace_strict(SPLIT_NAMES, default=None)


def groups_in_several_splits(labels: pl.DataFrame) -> list[str]:
    """Groups (patients) that labels with `group` and `split` have in more than one split."""
    apart = labels.drop_nulls("group").group_by("group").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    return apart["group"].cast(pl.String).to_list()


def class_codes(labels: pl.DataFrame, task: Task, where: object) -> pl.Series:
    """The classes of a task as whole numbers; null where a sample is not in it.

    Raises:
        CohortError: If the column is not of numbers, or one of them is no class.
    """
    kind = labels.schema[task.name]
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        raise CohortError(f"{where}: the labels of `{task.name}` are {kind}, wanted whole numbers from 0.")
    code = labels[task.name].cast(pl.Float64).fill_nan(None)
    last = len(task.classes) - 1
    wrong = ((code < 0) | (code > last) | (code != code.floor())).fill_null(value=False)
    if wrong.any():
        values = ", ".join(f"{value:g}" for value in code.filter(wrong).unique().sort()[:5])
        ids = first_five(labels.filter(wrong)["sample"].cast(pl.String).to_list())
        raise CohortError(
            f"{where}: {wrong.sum()} labels of `{task.name}` are no class (values {values}; samples {ids}), wanted "
            f"whole numbers from 0 to {last}, or null; correct them, or the classes of the task."
        )
    return code.cast(pl.Int64)
