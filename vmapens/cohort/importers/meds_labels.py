"""Labels in the schema of MEDS: a subject, the time of the prediction, and one value that is a class.

Source:
    https://github.com/Medical-Event-Data-Standard/meds, `src/meds/schema.py`, the label schema.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from vmapens.cohort.classes import label_task, problem_of_labels, without_missing
from vmapens.cohort.identity import one_row_each
from vmapens.cohort.importers.event_grid import microseconds
from vmapens.cohort.parquet import collect, scan
from vmapens.cohort.schema import Task
from vmapens.errors import CohortError

_SEVERAL = (
    "Some subjects have several labels: a sample is subject_id@prediction_time. An event that no window takes counts "
    "once; one that repeats another, or has a later one in its cell, counts in each of its windows."
)
_EPOCH = datetime(1970, 1, 1)
_KEY = ["subject_id", "prediction_time"]
_VALUES: dict[str, pl.DataType] = {
    "boolean_value": pl.Boolean(),
    "integer_value": pl.Int64(),
    "float_value": pl.Float64(),
    "categorical_value": pl.String(),
}


@dataclass(frozen=True)
class Labels:
    """The labels, one a sample.

    Args:
        table: `sample` (ascending), `group` (the subject as text), and the task.
        subject: Whose label each row is.
        end: Its prediction_time, in whole microseconds, rounded down.
        task: Names the classes 0..C-1.
        notes: On the samples.
        rows: As many were read.
    """

    table: pl.DataFrame
    subject: Int64[np.ndarray, "N"]
    end: Int64[np.ndarray, "N"]
    task: Task
    notes: tuple[str, ...]
    rows: int


def read_labels(path: Path, task: str, dropped: Counter[str]) -> Labels:
    """Read a file of labels, or a folder of them.

    Args:
        path: The file or folder.
        task: Name of the task.
        dropped: Counts rows without a subject, time or value, and those that are there twice.

    Raises:
        CohortError: If a file cannot be read, a column is missing or of a wrong type, no value column has values or
            several have, two labels of a subject and time differ, or values are no classes.
    """
    files = parquet_files(path) if path.is_dir() else [path]
    if not files:
        raise CohortError(f"{path} holds no .parquet file: wanted labels, with subject_id and prediction_time.")
    raw = pl.concat([_read(file) for file in files])
    given = [name for name in _VALUES if raw[name].null_count() < len(raw)]
    if len(given) != 1:
        raise CohortError(
            f"{path}: {' and '.join(given) or 'no column of'} {'have' if given else 'MEDS has'} values, wanted one of "
            f"{', '.join(_VALUES)}; write labels of one task alone."
        )
    whole = raw.select(*_KEY, value=without_missing(raw[given[0]])).drop_nulls()
    dropped["labels without a subject, a time or a value: left out"] += len(raw) - len(whole)
    _refuse_times(whole["prediction_time"], path)
    named = whole.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))  # as a message should have it
    rows = one_row_each(named, _KEY, "the labels", dropped).with_columns(pl.col("prediction_time").cast(pl.Int64))
    if problem := problem_of_labels(rows["value"]):
        raise CohortError(f"{path}: {given[0]} {problem}.")
    code, labelled = label_task(rows["value"], task, str(path), f"From {given[0]}.")
    several = rows["subject_id"].is_duplicated().any()
    table = rows.select(
        _names(rows) if several else pl.col("subject_id").alias("sample"),
        pl.col("subject_id").cast(pl.String).alias("group"),
        code,
        *_KEY,
    ).sort("sample")
    return Labels(
        table=table.drop(_KEY),
        subject=table["subject_id"].to_numpy(),
        end=table["prediction_time"].to_numpy(),
        task=labelled,
        notes=(_SEVERAL,) * several,
        rows=len(raw),
    )


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder, at any depth, sorted; names with a leading dot are litter of other programs.

    Raises:
        CohortError: If a folder in it is a link, behind which files would be passed over.
    """
    if links := [path for path in folder.rglob("*") if path.is_symlink() and path.is_dir()]:
        raise CohortError(f"{links[0]} is a link to a folder, and links are not followed; put the folder itself there.")
    found = sorted(folder.rglob("*.parquet"))
    return [p for p in found if p.is_file() and not any(n.startswith(".") for n in p.relative_to(folder).parts)]


def _read(path: Path) -> pl.DataFrame:
    """One file: the key, the time as microseconds, and the four value columns, null where it lacks one."""
    lazy = scan([path])
    schema = lazy.collect_schema()
    if lacking := [name for name in _KEY if name not in schema]:
        raise CohortError(f"{path}: no column {', '.join(lacking)}; got {', '.join(schema)}. Wanted the MEDS labels.")
    subject, time = schema["subject_id"], schema["prediction_time"]
    wrong = [] if subject.is_integer() else [f"subject_id is {subject}, wanted whole numbers"]
    unit = getattr(time, "time_unit", "")
    if time not in [pl.Datetime(name) for name in ("ms", "us", "ns")]:
        wrong.append(f"prediction_time is {time}, wanted timestamps without a time zone")
    for name, kind in _VALUES.items():
        if name in schema and not _fits(schema.to_frame()[name]):
            wrong.append(f"{name} is {schema[name]}, wanted {kind}")
    if wrong:
        raise CohortError(f"{path}: {'; '.join(wrong)}; write it so.")
    values = [
        pl.col(name).cast(kind) if name in schema else pl.lit(None, kind).alias(name) for name, kind in _VALUES.items()
    ]
    rows = collect(lazy.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time"), *values), path)
    known = rows["prediction_time"].is_not_null()
    ticks = rows["prediction_time"].to_physical().fill_null(0).to_numpy()
    end = pl.Series(microseconds(ticks, unit, up=False))
    return rows.with_columns(prediction_time=pl.when(known).then(end))


def _fits(column: pl.Series) -> bool:
    """Whether a value column is of its type, or of one that becomes it without loss."""
    got, wanted = column.dtype, _VALUES[column.name]
    if wanted == pl.String:
        return got in (pl.Null, pl.String, pl.Categorical, pl.Enum)
    same_kind = got.is_integer() if wanted == pl.Int64 else got.is_float() if wanted == pl.Float64 else False
    return same_kind or got in (pl.Null, wanted)


def _refuse_times(time: pl.Series, path: Path) -> None:
    first, last = ((bound - _EPOCH) // timedelta(microseconds=1) for bound in (datetime.min, datetime.max))
    wrong = ~time.is_between(first, last)
    if not len(time) or wrong.any():
        what = f"{wrong.sum()} labels have a prediction_time outside the years 1 to 9999" if len(time) else "no labels"
        raise CohortError(f"{path}: {what}; wanted one label or more, with the time of the prediction.")


def _names(rows: pl.DataFrame) -> pl.Series:
    times = (_EPOCH + timedelta(microseconds=time) for time in rows["prediction_time"])
    names = [f"{subject}@{time.isoformat()}" for subject, time in zip(rows["subject_id"], times, strict=True)]
    return pl.Series("sample", names)
