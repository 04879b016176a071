"""Map any Parquet files to a cohort by column name, in a TOML file, without a copy.

A complete example with every key; those marked * must be there, the others show their default or say it::

    steps = 48                      # * T
    minutes_per_step = 60           # *
    source = "YAIB, eICU demo"      # default ""
    licence = "ODbL 1.0"            # default ""
    outside = "drop"                # rows before step 0 or from step T on: "error" (default) or left out and counted

    [series]
    files = ["dyn/*.parquet"]       # * paths and globs, from the folder of this file
    layout = "wide"                 # default; one column a feature
    sample = "stay_id"              # *
    time = "time"                   # *
    time_unit = "duration"          # * "duration" (a Parquet duration), "hours" (a number) or "step" (a whole number)
    features = ["hr", "map"]        # default: every numeric column but the labels, groups, splits, and pandas' index

    [labels]
    file = "outc.parquet"           # *
    sample = "stay_id"              # *
    group = "patient_id"            # default none: each sample stands for itself
    split = "fold"                  # default none: drawn; train, val, validation, tuning, held_out, ... are understood

    [labels.tasks.mortality]        # * one or more; or `tasks = ["label"]` under [labels]
    column = "label"                # default: the name of the task
    kind = "binary"                 # default: binary with two classes, else multiclass
    classes = ["survived", "died"]  # default: the numbers; for a column of text, its sorted values but NA, NaN, null
    note = "death in the unit"      # default ""

    [static]                        # default none
    file = "sta.parquet"            # *
    sample = "stay_id"              # *
    columns = ["age"]               # default: every numeric column but those of the labels; one value for all steps

    [features.hr]                   # for any feature, static ones as well
    unit = "/min"                   # default ""
    group = "circulation"           # default ""

Text that is empty, `NA`, `N/A`, `NaN`, `nan`, `null`, `NULL` or `<NA>` is no label, as null, unless `classes` lists it.

A long table, one measurement a row, has two more columns under [series]; `features` then lists values of the first, and
is by default all of them, sorted::

    layout = "long"
    feature = "code"
    value = "numeric_value"

**Several measurements in one step.** A step holds the last measured value of each feature, by time; of two at the very
same time it is the larger one, so that the order of rows never matters. With whole steps nothing says which is last: a
wide table then may have one row per (sample, step), anything else is an error; a long table takes the larger value.
"""

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from vmapens.cohort.classes import code_classes
from vmapens.cohort.identity import first_five
from vmapens.cohort.parquet import collect, count_rows, is_index, number_columns, scan
from vmapens.cohort.schema import MINUTES, CohortInfo, Feature, Task
from vmapens.cohort.section import Section
from vmapens.errors import CohortError
from vmapens.spec import read_toml

_FILE = {"steps", "minutes_per_step", "source", "licence", "outside", "series", "labels", "static", "features"}
_SERIES = {"files", "layout", "sample", "time", "time_unit", "features", "feature", "value"}
_LABELS = {"file", "sample", "group", "split", "tasks"}
_STATIC = {"file", "sample", "columns"}
_RESERVED = {"sample", "step", "time"}


Layout = Literal["plain", "timed", "long"]
"""One row a step; the last of several rows a step; one row a measurement."""


class Mapped(NamedTuple):
    """What a mapping makes of its files, in the names of a cohort folder; `files` are those that define it.

    `rows` says how many rows the files of the series have, `layout` what is made of them.
    """

    info: CohortInfo
    series: pl.LazyFrame
    labels: pl.DataFrame
    files: tuple[Path, ...]
    rows: int
    layout: Layout
    narrow: Callable[[Sequence[str]], pl.LazyFrame] | None


def read_mapping(path: Path) -> Mapped:
    """Read the TOML file and open what it names.

    Raises:
        CohortError: If the file is not TOML, a key is missing, unknown or of the wrong type, or a file or column that
            it names is not there.
    """
    table = read_toml(path, CohortError)
    root = Section(path, "the file", table, _FILE)
    steps, minutes = root.whole("steps"), root.number("minutes_per_step", *MINUTES)
    outside = root.choice("outside", ("error", "drop"), "error")
    timed, labelled = root.section("series", _SERIES), root.section("labels", _LABELS)
    label_files = labelled.files("file")
    labels, tasks, taken = _labels(labelled, collect(scan(label_files), path))
    long = timed.choice("layout", ("wide", "long"), "wide") == "long"
    series_files = timed.files("files")
    raw = scan(series_files)
    keys = _keys(timed, raw, minutes)
    rows, names = (_long if long else _wide)(timed, raw, keys, taken)
    dropped: dict[str, int] = {}
    if outside == "drop":
        inside = pl.col("step").is_between(0, steps - 1).fill_null(value=False)
        count = collect(rows.select(n=(~inside).sum()), path).item()
        dropped = {f"series rows outside steps 0 to {steps - 1}: left out": int(count)}
        rows = rows.filter(inside)
    narrow = None
    layout: Layout = "plain"
    if long:
        layout, narrow = "long", _Gather(rows)
        series = narrow(names)
    elif timed.text("time_unit") == "step":
        series = rows.drop("time")
    else:
        layout, series = "timed", last_of_each_step(rows, names)
    static_files: list[Path] = []
    if "static" in table:
        static = root.section("static", _STATIC)
        static_files = static.files("file")
        joined = _join_static(static, labels, collect(scan(static_files), path), {*names, *taken})
        names += [name for name in joined.columns if name not in labels.columns]
        labels = joined
    info = CohortInfo(
        steps=steps,
        minutes_per_step=minutes,
        features=_features(root, names),
        tasks=tasks,
        source=root.text("source", ""),
        licence=root.text("licence", ""),
        dropped=dropped,
    )
    files = (path, *series_files, *label_files, *static_files)
    return Mapped(info, series, labels, files, count_rows(series_files), layout, narrow)


def _keys(section: Section, raw: pl.LazyFrame, minutes: float) -> list[pl.Expr]:
    """`sample`, `step` (null where it is no int32) and `time` of a row."""
    schema = raw.collect_schema()
    sample, time = section.column("sample", schema), section.column("time", schema)
    unit = section.choice("time_unit", ("duration", "hours", "step"))
    kind, when = schema[time], pl.col(time)
    if not {"duration": kind == pl.Duration, "hours": kind.is_numeric(), "step": kind.is_integer()}[unit]:
        advice = "; subtract the start of the stay, which gives a duration" if kind == pl.Datetime else ""
        section.fail(f"column `{time}` is {kind}, which does not go with time_unit = `{unit}`{advice}")
    if unit == "duration":
        step = when.dt.total_nanoseconds() // round(minutes * 60e9)
    elif unit == "hours":
        # 1e-9 of a step keeps 0.7 h * 60 / 6 min from falling just short of 7.
        step = (when.cast(pl.Float64) * 60 / minutes + 1e-9).floor()
    else:
        step = when
    return [pl.col(sample).alias("sample"), step.cast(pl.Int32, strict=False).alias("step"), when.alias("time")]


def _wide(section: Section, raw: pl.LazyFrame, keys: list[pl.Expr], taken: set[str]) -> tuple[pl.LazyFrame, list[str]]:
    """Rows with the keys and one column a feature; and the names of the features."""
    schema = raw.collect_schema()
    used = {section.text("sample"), section.text("time"), *taken}
    numeric = [name for name, kind in schema.items() if kind.is_numeric() and name not in used and not is_index(name)]
    names = _chosen(section, numeric, schema, taken)
    numbers = number_columns(raw)
    wrong = [f"{name} is {schema[name]}" for name in names if name not in numbers]
    if wrong:
        section.fail(f"{len(wrong)} feature columns are not numbers ({first_five(wrong)})")
    return raw.select(*keys, *(_measured(name) for name in names)), names


def _long(section: Section, raw: pl.LazyFrame, keys: list[pl.Expr], taken: set[str]) -> tuple[pl.LazyFrame, list[str]]:
    """Rows with the keys, `name` and `value`; and the names of the features."""
    schema = raw.collect_schema()
    name, value = section.column("feature", schema), section.column("value", schema)
    if not schema[value].is_numeric():
        section.fail(f"column `{value}` is {schema[value]}, wanted numbers")
    rows = raw.select(*keys, pl.col(name).cast(pl.String).alias("name"), _measured(value).alias("value"))
    known = collect(rows.select("name").unique(), section.path)["name"].drop_nulls().to_list()
    return rows, _chosen(section, sorted(set(known) - taken), known, taken)


def _chosen(section: Section, default: Sequence[str], known: Container[str], taken: set[str]) -> list[str]:
    names = section.texts("features", list(default))
    absent = [name for name in names if name not in known]
    if absent:
        section.fail(f"{len(absent)} features are not in the files ({first_five(absent)})")
    clash = sorted(_RESERVED & set(names))
    if clash:
        section.fail(f"a feature cannot be called {', '.join(clash)}; choose `features` without it")
    leaks = sorted(taken & set(names))
    if leaks:
        section.fail(f"{first_five(leaks)} is a label, group or split, which a model must not see; leave it out")
    return names


def _measured(column: str) -> pl.Expr:
    # NaN would win as the largest value of a step.
    return pl.col(column).cast(pl.Float64).fill_nan(None).cast(pl.Float32)


def last_of_each_step(rows: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """The last measured value of each feature in a step, by `time`; of two at the same time the larger one."""
    # After the first grouping no two rows of a step share a time, so the second never depends on the order of rows.
    largest = rows.group_by("sample", "step", "time").agg(pl.col(name).max() for name in names)
    measured_at = {name: pl.when(pl.col(name).is_not_null()).then(pl.col("time")) for name in names}
    return largest.group_by("sample", "step").agg(pl.col(name).max_by(measured_at[name]) for name in names)


class _Gather:
    """Gathers a few features of a long table from their rows alone."""

    def __init__(self, rows: pl.LazyFrame) -> None:
        self.rows = rows

    def __call__(self, features: Sequence[str]) -> pl.LazyFrame:
        if not features:
            return self.rows.select("sample", "step").unique()
        value = {name: pl.when(pl.col("name") == name).then(pl.col("value")).alias(name) for name in features}
        mine = self.rows.filter(pl.col("name").is_in(list(features)))
        return last_of_each_step(mine.select("sample", "step", "time", *value.values()), features)


def _labels(section: Section, raw: pl.DataFrame) -> tuple[pl.DataFrame, tuple[Task, ...], set[str]]:
    """The labels, their tasks, and the names that no feature may have: those of labels, groups and splits."""
    schema = raw.schema
    taken = {section.text(key) for key in ("group", "split") if key in section.table}
    columns = [pl.col(section.column("sample", schema)).alias("sample")]
    columns += [pl.col(section.column(key, schema)).alias(key) for key in ("group", "split") if key in section.table]
    wanted = section.table.get("tasks")
    entries: dict[str, object] = {}
    if isinstance(wanted, list):
        entries = {name: {} for name in section.texts("tasks")}
    elif isinstance(wanted, dict):
        entries = wanted
    if not entries:
        section.fail("there are no tasks, wanted [labels.tasks.NAME] or tasks = [NAME, ...]")
    tasks: list[Task] = []
    codes: list[pl.Series] = []
    for name, entry in entries.items():
        one = Section(section.path, f"[labels.tasks.{name}]", entry, {"column", "kind", "classes", "note"})
        if name in {"sample", "group", "split"}:
            one.fail(f"a task cannot be called {name}")
        column = one.column("column", schema, name)
        taken |= {name, column}
        given = one.texts("classes") if "classes" in one.table else None
        code, classes = code_classes(raw[column], f"{one.path}, {one.name}", given)
        kind = one.choice("kind", ("binary", "multiclass"), "binary" if len(classes) == 2 else "multiclass")
        if kind == "binary" and len(classes) != 2:
            one.fail(f"kind is `binary`, but there are {len(classes)} classes ({first_five(classes)})")
        tasks.append(Task(name, "binary" if kind == "binary" else "multiclass", tuple(classes), one.text("note", "")))
        codes.append(code.alias(name))
    return raw.select(columns).with_columns(codes), tuple(tasks), taken


def _join_static(section: Section, labels: pl.DataFrame, raw: pl.DataFrame, taken: set[str]) -> pl.DataFrame:
    sample = section.column("sample", raw.schema)
    if not (raw.schema[sample] == pl.String or raw.schema[sample].is_integer()):
        section.fail(f"`{sample}` is {raw.schema[sample]}, wanted text or whole numbers")
    used = {sample, *taken}
    numeric = [
        name for name, kind in raw.schema.items() if kind.is_numeric() and name not in used and not is_index(name)
    ]
    names = section.texts("columns", numeric)
    absent = [name for name in names if name not in raw.columns]
    if absent:
        section.fail(f"{len(absent)} columns are not in the file ({first_five(absent)})")
    clash = [name for name in names if name in taken or name in labels.columns or name in _RESERVED]
    if clash:
        section.fail(
            f"{len(clash)} columns have a name that is taken ({first_five(clash)}); leave them out of `columns`"
        )
    static = raw.select(pl.col(sample).alias("sample"), *names)
    if static["sample"].drop_nulls().is_duplicated().any():
        twice = static.filter(pl.col("sample").is_duplicated())["sample"].cast(pl.String)
        section.fail(f"{twice.n_unique()} samples have several rows ({first_five(twice.to_list())}), wanted one each")
    if (static.schema["sample"] == pl.String) != (labels.schema["sample"] == pl.String):
        section.fail(f"`{sample}` is {static.schema['sample']}, but {labels.schema['sample']} in the labels")
    return labels.join(static.cast({"sample": labels.schema["sample"]}), on="sample", how="left")


def _features(root: Section, names: Sequence[str]) -> tuple[Feature, ...]:
    entries = root.table.get("features", {})
    if not isinstance(entries, dict):
        root.fail("`features` must be tables: [features.NAME]")
    unknown = sorted(set(entries) - set(names))
    if unknown:
        root.fail(f"[features] describes {len(unknown)} that are not features of this cohort ({first_five(unknown)})")
    found = []
    for name in names:
        entry = Section(root.path, f"[features.{name}]", entries.get(name, {}), {"unit", "group"})
        found.append(Feature(name, entry.text("unit", ""), entry.text("group", "")))
    return tuple(found)
