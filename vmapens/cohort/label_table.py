"""Join the labels of any table to an imported cohort: a task that the source itself does not have.

A table has one row a stay: CSV (plain or gzip, UTF-8, commas) or Parquet, told by its first bytes. Stays are matched by
their ids, never by their place. In both, text counts without the blanks around it, and what R and pandas write where
there is nothing (`MISSING`) is null.
"""

import dataclasses
import gzip
import zlib
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

import polars as pl

from vmapens.cohort.classes import label_task, problem_of_labels, without_missing
from vmapens.cohort.hours import hours_of, refuse_seconds
from vmapens.cohort.identity import first_five, one_row_each
from vmapens.cohort.importers.archive import is_utf8
from vmapens.cohort.parquet import UNREADABLE, collect, is_index, is_pattern, scan
from vmapens.cohort.schema import NO_PATIENTS, CohortInfo, require_task_name
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError, first_line

MAX_BYTES = 2**30
"""Of a CSV, as text."""

_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_WHOLE = r"^-?(0|[1-9]\d{0,17})$"
_REAL = r"^-?(0|[1-9]\d{0,17})?(\.\d+)?([eE][+-]?\d+)?$"
_LARGEST_FLOAT_ID = 2**53
"""From here on, not every whole number is a float64."""


def join_labels(
    imported: Imported,
    file: Path,
    *,
    column: str,
    id_column: str | None = None,
    task: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
) -> Imported:
    """Add a column of a table to a cohort as a task.

    Args:
        imported: A cohort that is not written yet. Its tables are not changed, but what is read and left out here is
            counted in the `read` and `dropped` of its `info`, into which a stream may still be counting.
        file: The table.
        column: Labels: truth values, whole numbers from 0 (0..C-1), or text, whose sorted values are the classes; null
            or `MISSING` = not in the task. Text that is nothing but numbers is numbers, in a Parquet file as in a CSV.
        id_column: Which stay a row is about; 7, 7.0 and "7" are one id. Where the ids of the cohort are text, text
            stays as it is written, and "7.0" is not "7". Default: `sample` if there is such a column, else the first
            that is not one of the others named here, nor the index of pandas or R (`is_index`).
        task: Name of the task. Default: that of the column.
        group_column: The patient of each stay: becomes `group`, text as it is written. A stay without one stands for
            itself.
        time_column: When the outcome came: a duration, or hours, from the start of the stay. Null: never, or unknown.

    Returns:
        The cohort with the task, its last one. Stays without a label are kept, and not in the task. A note says which
            column the ids were, and a warning if fewer than half of the stays have a row.

    Raises:
        CohortError: If the table cannot be read, has no such column, no rows or no id of the cohort, or contradicts
            itself; its ids or patients are fractions; its labels are no classes; the task's name is taken; the cohort
            has groups already; or an outcome came before the end of the window, where a model could see it.
    """
    info, series, labels = imported
    name = task or column
    require_task_name(name, (*labels.columns, *(feature.name for feature in info.features)))
    table = _read_table(file)
    columns = list(table.collect_schema())
    given = {"label": column, "group": group_column, "time": time_column, "sample": id_column}
    wanted = {role: found for role, found in given.items() if found is not None}
    if absent := sorted(set(wanted.values()) - set(columns)):
        raise CohortError(f"{file} has no column {', '.join(absent)}; it has {', '.join(columns[:20])}.")
    if group_column and "group" in labels.columns:
        raise CohortError(
            f"{file}: the cohort has the patients already (`group`), so `{group_column}` cannot be; leave it out."
        )
    ids = wanted.setdefault("sample", id_column or _ids_among(columns, set(wanted.values()), file))
    raw = collect(table.select(pl.col(found).alias(role) for role, found in wanted.items()), file)
    if raw.is_empty():
        raise CohortError(f"{file} has columns ({', '.join(columns[:20])}) but no rows: wanted one a stay.")
    counts: Counter[str] = Counter()
    where = f"{file.name} for task `{name}`"
    text = raw.with_columns(map(_stripped, raw.iter_columns()))
    rows = text.with_columns(map(without_missing, text.iter_columns()))
    counts[f"values of {where} that are a word for nothing (NA, NaN, null, ...): read as empty"] = sum(
        (rows.null_count() - text.null_count()).row(0)
    )
    as_written = {"group", "sample"} if labels.schema["sample"] == pl.String else {"group"}
    rows = rows.with_columns(_typed(values) for values in rows.iter_columns() if values.name not in as_written)
    rows = rows.with_columns(_as_text(rows["sample"], ids, file))
    matched = _matched(rows, ids, labels, file, where, counts)
    notes = [*info.notes, f"Labels of {file.name} are matched by its column `{ids}`."]
    notes += _warn_of_few(rows["sample"], matched["sample"], labels["sample"], ids, file)
    if problem := problem_of_labels(matched["label"]):
        raise CohortError(f"{file}: column `{column}` {problem}.")
    codes, made = label_task(matched["label"], name, str(file), f"Column `{column}` of {file.name}.")
    matched = matched.with_columns(codes.alias("label"))
    if group_column:
        matched = matched.with_columns(_as_text(matched["group"], group_column, file))
    if time_column:
        matched = matched.with_columns(_hours(matched["time"], time_column, file))
        notes.append(_refuse_early(matched, info, time_column, file))
    matched = one_row_each(matched, ["sample"], where, counts)
    counts[f"stays without a row in {where}: kept, not in the task"] = labels.height - matched.height
    counts[f"stays without a label in {where}: kept, not in the task"] = matched["label"].null_count()
    roles = {"label": name} | ({"group": "group"} if group_column else {})
    joined = labels.join(matched.select("sample", *roles).rename(roles), on="sample", how="left", maintain_order="left")
    if group_column:
        counts[f"stays without a patient in {where}: each counts as its own group"] = joined["group"].null_count()
        notes = [note for note in notes if note != NO_PATIENTS]
        notes.append(f"Patients (`group`) are column `{group_column}` of {file.name}.")
    info.read[f"rows of {where}"] = rows.height
    for what, count in counts.items():
        info.dropped[what] = count
    return Imported(dataclasses.replace(info, tasks=(*info.tasks, made), notes=tuple(notes)), series, joined)


def _ids_among(columns: Sequence[str], taken: Set[str], file: Path) -> str:
    """The column of ids where none is named."""
    free = [name for name in columns if name not in taken and not is_index(name)]
    if not free:
        raise CohortError(
            f"{file} has no column of ids beside {', '.join(columns)}; add one, or name one of these with --label-id."
        )
    return "sample" if "sample" in free else free[0]


def _read_table(file: Path) -> pl.LazyFrame:
    """The table; of a CSV, all columns are text."""
    if file.exists() and not file.is_file():
        raise CohortError(f"{file} is no file: wanted a table, CSV or Parquet.")
    try:
        with file.open("rb") as opened:
            head = opened.read(4)
        if head == _PARQUET:
            return scan([file])
        with gzip.open(file) if head.startswith(_GZIP) else file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CohortError(f"{file} does not exist.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CohortError(f"{file} cannot be read to its end: {first_line(error)}; fetch it again.") from error
    if len(data) > MAX_BYTES:
        raise CohortError(f"{file} holds more than {MAX_BYTES:,} bytes of text; write it as Parquet.")
    if b"\0" in data or not is_utf8(data):
        raise CohortError(f"{file} is neither Parquet nor UTF-8 text; write it again as one of them.")
    if b"\r" in data and b"\n" not in data:
        raise CohortError(f"{file}: its lines end in CR alone, wanted LF or CR LF; write it again.")
    try:
        table = pl.read_csv(data, infer_schema=False)
    except UNREADABLE as error:
        raise CohortError(f"{file} cannot be read as CSV: {first_line(error)}; write it again.") from error
    names = [name.strip() for name in table.columns]
    if len(names) < 2 or len(set(names)) < len(names) or any(map(is_pattern, names)):
        raise CohortError(
            f"{file}: the columns are called {', '.join(names)}; wanted two or more, all different, between commas."
        )
    table.columns = names
    return table.lazy()


def _stripped(values: pl.Series) -> pl.Series:
    """Text without the blanks around it, and null where nothing is left; no other type changes."""
    if not isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum):
        return values
    text = values.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)


def _typed(values: pl.Series) -> pl.Series:
    """Text that is nothing but numbers as numbers; a leading zero makes it a name."""
    if values.dtype != pl.String:
        return values
    if values.str.contains(_WHOLE).all():
        return values.cast(pl.Int64)
    number = values.cast(pl.Float64, strict=False)
    return number if values.str.contains(_REAL).all() and number.null_count() == values.null_count() else values


def _as_text(values: pl.Series, column: str, file: Path) -> pl.Series:
    """Ids as text, whole numbers without a point."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
        broken = values.filter((values != values.floor()) | (values.abs() >= _LARGEST_FLOAT_ID))
        if len(broken):
            raise CohortError(
                f"{file}: column `{column}` holds {len(broken)} numbers that are no ids "
                f"({first_five(map(str, broken))}), wanted whole numbers or text; name another column, "
                "or put a letter before each."
            )
        return values.cast(pl.Int64).cast(pl.String)
    if values.dtype.is_integer() or values.dtype in (pl.String, pl.Null):
        return values.cast(pl.String)
    raise CohortError(f"{file}: column `{column}` is {values.dtype}, wanted ids: whole numbers or text.")


def _matched(
    rows: pl.DataFrame, ids: str, labels: pl.DataFrame, file: Path, where: str, counts: Counter[str]
) -> pl.DataFrame:
    """The rows whose id, as text, is in the cohort; their ids are of the type of its ids then."""
    text = rows["sample"]
    keyed = rows.with_columns(text.cast(labels.schema["sample"], strict=False))
    matched = keyed.join(labels.select("sample"), on="sample", how="semi")
    if matched.is_empty():
        theirs, ours = (first_five(some.drop_nulls().cast(pl.String).to_list()) for some in (text, labels["sample"]))
        raise CohortError(
            f"{file}: no id of column `{ids}` ({theirs or 'all empty'}) is a stay of the cohort ({ours}); name the "
            "column of the ids, or the table of these stays."
        )
    counts[f"rows of {where} without an id: left out"] = text.null_count()
    counts[f"rows of {where} of other stays: left out"] = rows.height - text.null_count() - matched.height
    return matched


def _warn_of_few(theirs: pl.Series, matched: pl.Series, ours: pl.Series, ids: str, file: Path) -> list[str]:
    """A warning if fewer than half of the stays are in the table."""
    found = matched.n_unique()
    if 2 * found >= len(ours):
        return []
    without = ours.filter(~ours.is_in(matched.implode())).sort()[0]
    others = theirs.filter(~theirs.is_in(ours.cast(pl.String).implode())).drop_nulls().sort()
    other = f"`{others[0]}` of the table is none of them" if len(others) else "the table has no other ids"
    return [
        f"warning: {found} of {len(ours)} stays of the cohort have a row in {file.name}, matched by its column "
        f"`{ids}`: `{without}` has none, and {other}; see that it is the table of these stays."
    ]


def _hours(values: pl.Series, column: str, file: Path) -> pl.Series:
    table = values.alias(column).to_frame()
    hours = table.select(hours_of(column, table, file)).to_series()
    if values.dtype.is_numeric():
        refuse_seconds(hours, file)
    return hours.alias("time")


def _refuse_early(rows: pl.DataFrame, info: CohortInfo, column: str, file: Path) -> str:
    """See that no outcome came within the window; a note of when the first came."""
    end = info.steps * info.minutes_per_step / 60
    known = rows.filter(pl.col("label").is_not_null() & pl.col("time").is_not_null())
    early = known.filter(pl.col("time") < end)["sample"]
    if len(early):
        raise CohortError(
            f"{file}: by column `{column}` the outcome of {early.n_unique()} stays came before the window of {end:g} h "
            f"ends ({first_five(early.cast(pl.String).to_list())}), so a model would see it; choose fewer steps, or "
            "leave these stays out of the table."
        )
    if known.is_empty():
        return f"Column `{column}` of {file.name} gives no time of an outcome."
    return f"By `{column}` of {file.name} the first outcome comes {known['time'].sort()[0]:g} h into the stay."
