"""MEDS data sets that the tests make, and a plain reading of them in loops."""

from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from vmapens.cohort.importers.meds import read_meds
from vmapens.cohort.schema import read_info
from vmapens.cohort.write import write_cohort

T0 = datetime(2150, 3, 1, 12)
MICRO = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
EVENTS = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}
VALUES = ["boolean_value", "integer_value", "float_value", "categorical_value"]
LATER = "events in a window with a later (or, at the same time, larger) one of the same cell: left out"
TWICE = "events that repeat another one in the same window: left out"
NOTHING = "samples with nothing measured in their window: kept, missing throughout"


def events(*rows):
    """Rows of (subject, time, code, number)."""
    return pl.DataFrame([(*row, None) for row in rows], schema=EVENTS, orient="row")


def label_table(rows, column="boolean_value"):
    """Rows of (subject, prediction_time, value)."""
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}
    table = pl.DataFrame([row[:2] for row in rows], schema=schema, orient="row")
    columns = {name: pl.lit(None) for name in VALUES} | {column: pl.Series([row[2] for row in rows])}
    return table.with_columns(**columns)


def write_source(folder, table, labels, splits=None, shards=1):
    """A data set: rows go to the shards in turn, so that no subject is in one alone."""
    (folder / "data" / "deep").mkdir(parents=True)
    for shard in range(shards):
        place = folder / "data" / ("deep" if shard % 2 else ".") / f"{shard}.parquet"
        table.gather_every(shards, shard).write_parquet(place, row_group_size=500)
    labels.write_parquet(folder / "labels.parquet")
    if splits is not None:
        (folder / "metadata").mkdir()
        pl.DataFrame(splits, schema=["subject_id", "split"], orient="row").write_parquet(
            folder / "metadata" / "subject_splits.parquet"
        )
    return folder


def written(source, out, **options):
    """Import a data set: what was written."""
    info = write_cohort(out, *read_meds(source, labels=source / "labels.parquet", **options))
    assert info == read_info(out)
    return info, pl.read_parquet(out / "series.parquet"), pl.read_parquet(out / "labels.parquet")


def imported(folder, table, labels, splits=None, **options):
    return written(write_source(folder / "source", table, labels, splits), folder / "cohort", **options)


def cells(series):
    """(sample, step, feature) -> number, of all that was measured."""
    long = series.unpivot(index=["sample", "step"], variable_name="code").drop_nulls("value")
    return {row[:3]: row[3] for row in long.select("sample", "step", "code", "value").rows()}


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def made(seed=0, subjects=40, most_labels=1):
    """Events around the windows of labels, many at edges of steps, with everything that may be wrong with one."""
    generator = np.random.default_rng(seed)
    labels, rows = [], []
    for subject in generator.permutation(np.arange(7, 7 + subjects)).tolist():
        ends = [T0 + HOUR * int(h) for h in generator.choice(30, generator.integers(1, most_labels + 1), replace=False)]
        labels += [(subject, end, bool(generator.random() < 0.4)) for end in ends]
        for _ in range(generator.integers(0, 160)):
            time = T0 + HOUR * int(generator.integers(-15, 35)) + MICRO * int(generator.integers(-1, 2))
            number = float(generator.choice([-0.0, 0.0, 1.5, 2.5, 1e30, np.nan, np.inf, -np.inf]))
            number = None if generator.random() < 0.2 else number + float(generator.integers(0, 3))
            code = None if generator.random() < 0.02 else f"LAB//{generator.integers(8)}//unit"
            rows.append((subject, None if generator.random() < 0.03 else time, code, number))
            if generator.random() < 0.1:
                rows.append(rows[-1])
    rows += [(None, T0, "LAB//1//unit", 1.0), (999_999, T0, "LAB//1//unit", 1.0), (3, T0, "LAB//never", 2.0)]
    return events(*rows), label_table(labels)


def plain_reading(table, labels, window, every, aggregate):
    """Loops over labels and events: cells, and how many events end where."""
    several = labels["subject_id"].is_duplicated().any()
    found, counts, used = {}, Counter(), {}
    for subject, end, _ in labels.select("subject_id", "prediction_time", "boolean_value").rows():
        sample = f"{subject}@{end.isoformat()}" if several else subject
        for place, (whose, time, code, number, _) in enumerate(table.rows()):
            if whose != subject or code is None or time is None or not end - window < time <= end:
                continue
            used[place] = True
            if number is None or not np.isfinite(number):
                continue
            step = int((time - (end - window) - MICRO) // every)
            found.setdefault((sample, step, code), []).append((time, number))
    for place, (subject, time, code, number, _) in enumerate(table.rows()):
        ends = labels.filter(subject_id=subject)["prediction_time"].to_list() if subject is not None else []
        if code is None or subject is None:
            counts["events without a subject or a code: left out"] += 1
        elif not ends:
            counts["events of subjects without a label: left out"] += 1
        elif time is None:
            counts["events without a time (static): left out"] += 1
        elif time > max(ends):
            counts["events after the last prediction_time of their subject: left out"] += 1
        elif place not in used:
            counts["events before the window of their subject, or between two windows: left out"] += 1
        elif number is None:
            counts["events in a window without a number: left out"] += 1
        elif not np.isfinite(number):
            counts["events in a window whose number is infinite, NaN or beyond float32: left out"] += 1
    result = {}
    for cell, numbers in found.items():
        distinct = sorted(set(numbers))
        counts[TWICE] += len(numbers) - len(distinct)
        counts[LATER] += (len(distinct) - 1) * (aggregate == "last")
        result[cell] = (
            distinct[-1][1] if aggregate == "last" else float(np.float32(np.mean([number for _, number in distinct])))
        )
    samples = labels.height
    counts[NOTHING] += samples - len({sample for sample, _, _ in result})
    return result, {what: count for what, count in counts.items() if count}
