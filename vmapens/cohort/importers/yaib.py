"""Cohorts of Yet Another ICU Benchmark: hourly measurements, static columns and outcomes in three Parquet files.

`dyn.parquet`   `stay_id`, `time` (a duration, hourly), one column a feature; null = not measured.
`sta.parquet`   `stay_id`, `age`, `sex`, `height`, `weight`, ...
`outc.parquet`  `stay_id`, `label`; where each hour has a label of its own, `time` too.

Source:
    https://github.com/rvandewater/YAIB-cohorts, whose scripts write these files; van de Water et al. 2024.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from vmapens.cohort.classes import label_task, problem_of_labels
from vmapens.cohort.hours import hours_of, refuse_seconds
from vmapens.cohort.identity import first_five, one_row_each
from vmapens.cohort.importers.yaib_features import FEATURES
from vmapens.cohort.mapping import last_of_each_step
from vmapens.cohort.parquet import collect, is_index, number_columns, scan
from vmapens.cohort.schema import NO_PATIENTS, RESERVED, CohortInfo, Feature, Task, require_task_name
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError

DYN, STA, OUTC = "dyn.parquet", "sta.parquet", "outc.parquet"

SOURCE = (
    "A cohort of Yet Another ICU Benchmark, https://github.com/rvandewater/YAIB-cohorts. Cite van de Water R, Schmidt "
    "HNA, Elbers P, Thoral P, Arnrich B, Rockenschaub P. Yet Another ICU Benchmark: A Flexible Multi-Center Framework "
    "for Clinical ML. ICLR 2024, arXiv:2306.05109; and the data that the cohort was made from."
)
LICENCE = "that of the data that the YAIB cohort was made from (of the eICU and MIMIC-III demos: ODbL 1.0)"

_KEYS = {"stay_id", "time"}
_EARLY = 1e-9
"""An hour less that much still begins, so that 7 of a computed time does not fall just short of itself."""


def read_yaib(
    folder: Path,
    *,
    steps: int = 24,
    short: Literal["drop", "fill"] = "drop",
    task: str = "label",
    outcomes: Literal["require", "optional"] = "require",
) -> Imported:
    """Read the folder of one task and one source.

    The grid has T hourly steps, step = floor(hour); rows outside are left out. Of several rows in one hour the last
    measured value of each feature stays, of several at the same time the largest. Static columns of numbers are
    features with one value a stay, and so is text of two values: 0 and 1, in sorted order (sex: female 0, male 1).

    Args:
        folder: Holds `dyn.parquet`, `sta.parquet`, `outc.parquet`.
        steps: T >= 1, the hours from admission that a model may see.
        short: What becomes of stays whose last row comes before step T - 1: left out ("drop"), or kept with their later
            steps not measured ("fill").
        task: Name of the task. The labels are truth values, whole numbers from 0, or text; null = not in the task.
        outcomes: Whether `outc.parquet` must give one class a stay. If that is "optional", because other labels will be
            joined (`join_labels`), outcomes by the hour, real numbers and a missing file are passed over, with a note;
            the cohort then has no task yet.

    Returns:
        The cohort, not written yet. All stays of `dyn.parquet` that are long enough; a stay without a label, or without
        static columns, is kept.

    Raises:
        CohortError: If a file is missing, damaged or lacks a column; outcomes are required and are by the hour or no
            classes; no stay is long enough; or a stay has two different rows in `sta.parquet` or `outc.parquet`.

    Source:
        https://github.com/rvandewater/YAIB-cohorts.
    """
    if not 1 <= steps < 2**31:
        raise CohortError(f"steps is {steps}, wanted a whole number of hours above 0 and below 2^31.")
    require_task_name(task, _KEYS)
    taken = {*RESERVED, *_KEYS, task}
    _require_files(folder, {DYN, STA, OUTC} if outcomes == "require" else {DYN, STA})
    account = _Account(notes=["One hour a step: floor of the hour.", NO_PATIENTS])
    if short == "fill":
        account.notes.append("Stays that end within the window are not measured after their end: their length shows.")
    rows, timed = _rows(folder / DYN, taken, account)
    stays, kept = _stays(rows, folder / DYN, steps, short, account)
    series = _series(rows, timed, kept, steps, folder / DYN, account)
    labels, static = _with_static(folder / STA, stays, kept, {*taken, *timed}, account)
    labels, tasks = _with_outcomes(folder / OUTC, stays, labels, task, outcomes == "require", account)
    info = CohortInfo(
        steps=steps,
        minutes_per_step=60.0,
        features=(*(FEATURES.get(name, Feature(name)) for name in timed), *static),
        tasks=tasks,
        source=SOURCE,
        licence=LICENCE,
        read=account.read,
        dropped=account.dropped,
        notes=tuple(account.notes),
    )
    return Imported(info, series, labels)


@dataclass(frozen=True)
class _Account:
    """What `CohortInfo` says of the import, while it grows."""

    notes: list[str]
    read: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def _require_files(folder: Path, files: set[str]) -> None:
    if not folder.is_dir():
        raise CohortError(f"{folder} is no folder: wanted that of a YAIB cohort, with {', '.join(sorted(files))}.")
    if missing := sorted(name for name in files if not (folder / name).exists()):
        inside = first_five(path.name for path in folder.iterdir()) or "nothing"
        raise CohortError(
            f"{folder} has no {', '.join(missing)}, but {inside}; name the folder of one task and one source."
        )


def _sample(raw: pl.LazyFrame, path: Path) -> pl.Expr:
    kind = raw.collect_schema().get("stay_id")
    if kind is not None and kind.is_integer():
        if kind == pl.UInt64 and (collect(raw.select(pl.col("stay_id").max()), path).item() or 0) >= 2**63:
            raise CohortError(f"{path}: a stay_id is 2^63 or more; write them as text, in all three files.")
        return pl.col("stay_id").cast(pl.Int64, strict=False).alias("sample")
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return pl.col("stay_id").cast(pl.String).alias("sample")
    got = "is not there" if kind is None else f"is {kind}"
    raise CohortError(f"{path}: column `stay_id` {got}, wanted whole numbers or text; cast it.")


def _finite(value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_finite()).then(value)


def _columns(raw: pl.LazyFrame, path: Path, taken: set[str]) -> list[str]:
    """The columns of a file that may become features."""
    names = [name for name in raw.collect_schema() if name not in _KEYS and not is_index(name)]
    if clash := sorted(taken & set(names)):
        raise CohortError(
            f"{path}: a column is called {', '.join(clash)}, as one of the cohort, its task or {DYN} is; rename it."
        )
    return names


def _rows(path: Path, taken: set[str], account: _Account) -> tuple[pl.LazyFrame, list[str]]:
    """`sample`, `step` and `time` (hours), null where they cannot be read, and the features; and their names."""
    raw = scan([path])
    hours = hours_of("time", raw, path)
    if raw.collect_schema()["time"].is_numeric():
        refuse_seconds(collect(raw.select(time=hours), path)["time"], path)
    numbers = number_columns(raw)
    columns = _columns(raw, path, taken)
    names = [name for name in columns if name in numbers]
    if not names:
        raise CohortError(f"{path} has no column of numbers beside `stay_id` and `time`; wanted one for each feature.")
    other = sorted(set(columns) - numbers)
    if other:
        account.notes.append(f"Columns of {DYN} that are no numbers are left out: {', '.join(other)}.")
    values = [pl.col(name).cast(pl.Float64).fill_nan(None).cast(pl.Float32) for name in names]
    step = (hours + _EARLY).floor().cast(pl.Int32, strict=False)
    return raw.select(_sample(raw, path), step.alias("step"), hours.alias("time"), *values), names


def _stays(
    rows: pl.LazyFrame, path: Path, steps: int, short: str, account: _Account
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`sample` of all stays of the file, and of those that are kept, sorted."""
    dropped = account.dropped
    keys = collect(rows.select("sample", "step"), path)
    account.read[f"rows of {DYN}"] = keys.height
    fine = keys.drop_nulls()
    dropped[f"rows of {DYN} without a stay_id or a time: left out"] = keys.height - fine.height
    dropped[f"rows of {DYN} before step 0: left out"] = fine.filter(pl.col("step") < 0).height
    dropped[f"rows of {DYN} from step {steps} on: left out"] = fine.filter(pl.col("step") >= steps).height
    inside = pl.col("step").is_between(0, steps - 1)
    stays = fine.group_by("sample").agg(last=pl.col("step").max(), rows=inside.sum()).sort("sample")
    account.read[f"stays of {DYN}"] = stays.height
    ends_early = pl.col("last") < steps - 1
    what = f"stays whose last row comes before step {steps - 1}"
    if short == "drop":
        dropped[f"{what}: left out"] = stays.filter(ends_early).height
        long = stays.filter(~ends_early)
    else:
        dropped[f"{what}: kept, not measured after it"] = stays.filter(ends_early & (pl.col("rows") > 0)).height
        long = stays
    kept = long.filter(pl.col("rows") > 0)
    dropped["stays without a row in the window: left out"] = long.height - kept.height
    if stays.is_empty():
        raise CohortError(f"{path} has no stay: none of {keys.height} rows has a stay_id and a time.")
    if kept.is_empty():
        raise CohortError(
            f"{path}: none of {stays.height} stays can be kept: the last row of all is in step "
            f"{stays['last'].sort()[-1]}, the window ends with step {steps - 1}; choose fewer steps, or fill short "
            "stays."
        )
    return stays.select("sample"), kept.select("sample")


def _series(
    rows: pl.LazyFrame, names: list[str], kept: pl.DataFrame, steps: int, path: Path, account: _Account
) -> pl.LazyFrame:
    """One row a stay and step, of the stays that are kept."""
    inside = rows.filter(pl.col("step").is_between(0, steps - 1)).join(kept.lazy(), on="sample", how="semi")
    dropped = account.dropped
    infinite = collect(inside.select(pl.col(name).is_infinite().sum() for name in names), path)
    dropped[f"values of {DYN} that are infinite in float32: set to missing"] = sum(infinite.row(0))
    inside = inside.with_columns(_finite(pl.col(name)).alias(name) for name in names)
    keys = collect(inside.select("sample", "step", "time"), path)
    if keys.n_unique(["sample", "step"]) == keys.height:
        return inside.drop("time")
    key = ["sample", "time"]
    twice = keys.lazy().select(key).filter(pl.struct(key).is_duplicated()).unique()
    same_time = collect(inside.join(twice, on=key, how="semi"), path)
    different = same_time.unique()
    times = keys.n_unique(key)
    dropped[f"rows of {DYN} that repeat another one: left out"] = same_time.height - different.height
    dropped[f"rows of {DYN} that differ from another one of the same stay and time: the largest values are kept"] = (
        different.height - different.n_unique(key)
    )
    dropped[f"rows of {DYN} followed by a later one in the same hour: the last measured values are kept"] = (
        times - keys.n_unique(["sample", "step"])
    )
    return last_of_each_step(inside, names)


def _rows_of_stays(
    raw: pl.LazyFrame, path: Path, columns: list[str], stays: pl.DataFrame, account: _Account
) -> pl.DataFrame:
    """`sample` and some columns of a file with one row a stay, of stays that are in `dyn.parquet`."""
    table = collect(raw.select(_sample(raw, path), *columns), path)
    if table.schema["sample"] != stays.schema["sample"]:
        raise CohortError(
            f"{path}: column `stay_id` is {table.schema['sample']}, but {stays.schema['sample']} in {DYN}, wanted one "
            "type; write them again."
        )
    account.read[f"rows of {path.name}"] = table.height
    named = table.drop_nulls("sample")
    account.dropped[f"rows of {path.name} without a stay_id: left out"] = table.height - named.height
    known = named.join(stays, on="sample", how="semi")
    account.dropped[f"stays of {path.name} without a row in {DYN}: left out"] = (
        named["sample"].n_unique() - known["sample"].n_unique()
    )
    return one_row_each(known, ["sample"], path.name, account.dropped)


def _with_static(
    path: Path, stays: pl.DataFrame, kept: pl.DataFrame, taken: set[str], account: _Account
) -> tuple[pl.DataFrame, list[Feature]]:
    """The stays that are kept with their static columns as float32, and the features that these are."""
    raw = scan([path])
    table = _rows_of_stays(raw, path, _columns(raw, path, taken), stays, account)
    absent = kept.join(table, on="sample", how="anti").height
    account.dropped[f"stays without a row in {STA}: kept, without static columns"] = absent
    labels = kept.join(table, on="sample", how="left", maintain_order="left")
    features: list[Feature] = []
    for column in table.columns[1:]:
        values, feature = labels[column], FEATURES.get(column, Feature(column))
        if isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum):
            values = values.cast(pl.String)
            found = sorted(values.drop_nulls().unique().to_list())
            if len(found) == 2:
                values = values == found[1]
                feature = dataclasses.replace(feature, unit=f"0 {found[0]}, 1 {found[1]}")
                account.notes.append(f"`{column}` is 0 for {found[0]} and 1 for {found[1]}.")
        if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null)):
            account.notes.append(f"Column `{column}` of {STA} is left out: neither numbers nor text of two values.")
            continue
        number = values.cast(pl.Float64).fill_nan(None).cast(pl.Float32).alias(column)
        account.dropped[f"values of {STA} that are infinite in float32: set to missing"] += int(
            number.is_infinite().sum()
        )
        labels = labels.with_columns(number).with_columns(_finite(pl.col(column)).alias(column))
        features.append(feature)
    return labels.select("sample", *(feature.name for feature in features)), features


def _with_outcomes(
    path: Path, stays: pl.DataFrame, labels: pl.DataFrame, name: str, required: bool, account: _Account
) -> tuple[pl.DataFrame, tuple[Task, ...]]:
    """The labels with the task of `outc.parquet`, if that gives one class a stay."""
    label = pl.Series("label", [])
    raw = scan([path]) if path.exists() else pl.LazyFrame()
    schema = raw.collect_schema()
    if not schema:
        problem = "is not there"
    elif "label" not in schema:
        problem = f"has no column `label`, but {', '.join(schema)}"
    elif "time" in schema:
        problem = "has a label for each hour (a column `time`), wanted one a stay"
    else:
        table = _rows_of_stays(raw, path, ["label"], stays, account)
        label = labels.select("sample").join(table, on="sample", how="left", maintain_order="left")["label"]
        problem = problem_of_labels(label)
        problem = f"is no task: column `label` {problem}" if problem else ""
    if problem and required:
        raise CohortError(
            f"{path} {problem}; make a table with one class a stay, and give it with --labels FILE --label-column "
            "COLUMN."
        )
    if problem:
        account.notes.append(f"{path.name} {problem}: passed over.")
        return labels, ()
    codes, task = label_task(label, name, str(path), f"Column `label` of {OUTC}.")
    account.dropped[f"stays without a label in {OUTC}: kept, not in the task"] = codes.null_count()
    return labels.with_columns(codes), (task,)
