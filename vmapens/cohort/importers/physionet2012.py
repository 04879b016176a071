"""PhysioNet/CinC Challenge 2012: 48 hours of 37 parameters in stays of four kinds of intensive care unit.

One file a stay (`Time,Parameter,Value`, `HH:MM` from 00:00 to 48:00) and one file of outcomes a set. All records are
joined to one buffer and parsed once; the row number is what says which record a row belongs to and which value is last.

Source:
    https://physionet.org/content/challenge-2012/1.0.0/; Silva et al. 2012, Computing in Cardiology 39, 245-248.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmapens.cohort.importers.archive import BYTE_ORDER_MARK, is_utf8, read_files
from vmapens.cohort.importers.physionet2012_ranges import CONSTANT, RANGES_VERSION, SERIES
from vmapens.cohort.schema import NO_PATIENTS, CohortInfo, Feature, Task
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError

STEPS = 48
MISSING = -1

RECORD_HEAD = b"Time,Parameter,Value"
OUTCOMES_HEAD = b"RecordID,SAPS-I"
OUTCOME_COLUMNS = {"RecordID": "sample", "SAPS-I": "saps_i", "SOFA": "sofa", "In-hospital_death": "mortality"}

ICU_TYPES = ("coronary care", "cardiac surgery recovery", "medical", "surgical")

SOURCE = (
    "PhysioNet/Computing in Cardiology Challenge 2012, https://physionet.org/content/challenge-2012/1.0.0/. Cite "
    "Silva I, Moody G, Scott DJ, Celi LA, Mark RG. Predicting in-hospital mortality of ICU patients: the "
    "PhysioNet/Computing in Cardiology Challenge 2012. Comput Cardiol 2012;39:245-248; and Goldberger AL et al. "
    "PhysioBank, PhysioToolkit, and PhysioNet. Circulation 2000;101(23):e215-e220."
)
LICENCE = "Open Data Commons Attribution License v1.0 (ODC-By 1.0)"

_FEATURES = SERIES + CONSTANT
_ICU_TYPE = len(_FEATURES)
_RECORD_ID = _ICU_TYPE + 1
_PARAMETERS = pl.Enum([feature.name for feature in _FEATURES] + ["ICUType", "RecordID"])
_WEIGHT = next(index for index, feature in enumerate(SERIES) if feature.name == "Weight")

_MINUTES = pl.Enum([f"{minute // 60:02d}:{minute % 60:02d}" for minute in range(STEPS * 60 + 1)])
"""Every time there is, so that the code of a time is its minute."""

_LARGEST_ID = 2**53
"""RecordIDs pass through float64, as all values do."""


def read_physionet2012(paths: Sequence[Path]) -> Imported:
    """Read the stays of one or more sets of PhysioNet/CinC 2012.

    The grid has T = 48 hourly steps: step = floor(hour), and 48:00 belongs to step 47. Of several values of a parameter
    in one hour the last stays, of several in one minute the last in the order of the file. -1 and values outside
    `physionet2012_ranges` are missing. The F = 40 features are the 37 parameters (Weight's admission value is a
    measurement at step 0), then Age, Gender and Height, which have the same value in all steps. Stays without any
    measurement are kept. Every stay has 48 rows.

    Tasks: `mortality` (In-hospital_death), `icu_type` (4 classes), `severity` (quartile groups of SAPS-I among the
    stays read; left out if they do not differ). Static columns: `saps_i`, `sofa`, and `set`, as the outcomes' file name
    has it.

    Args:
        paths: Folders, archives (tar, plain or compressed; zip) and single files, in any order. Records and outcomes
            are told by their first line, wherever they lie and whatever they are called.

    Returns:
        The cohort, not written yet; `info.dropped` counts all that did not reach it.

    Raises:
        CohortError: If a path cannot be read, there are no records or no outcomes, or a stay occurs twice with
            different content.

    Source:
        The Challenge's description, https://physionet.org/content/challenge-2012/1.0.0/.
    """
    dropped: Counter[str] = Counter()
    records, outcome_files = _collect(paths, dropped)
    if not records or not outcome_files:
        where = ", ".join(map(str, paths))
        seen = "; ".join(f"{what} ({count})" for what, count in sorted(dropped.items())) or "nothing else"
        raise CohortError(
            f"no outcomes in {where}: got {len(records)} records and {seen}; wanted a file that begins with "
            f"`{OUTCOMES_HEAD.decode()},...`; add the path of Outcomes-a.txt (of your set)."
            if records
            else f"no records in {where}: got {seen}; wanted files that begin with `{RECORD_HEAD.decode()}`; "
            "name the set's folder or archive (set-a.tar.gz)."
        )
    ids = np.array(sorted(records), dtype=np.int64)
    rows_read = sum(body.count(b"\n") for body in records.values())
    rows = _parse(ids, records, dropped)
    series = _grid(ids, rows, dropped)
    labels, tasks, early = _labels(ids, rows, outcome_files, dropped)
    info = CohortInfo(
        steps=STEPS,
        minutes_per_step=60.0,
        features=tuple(Feature(feature.name, feature.unit, feature.group) for feature in _FEATURES),
        tasks=tasks,
        source=SOURCE,
        licence=LICENCE,
        read={"records": len(records), "files of outcomes": len(outcome_files), "rows of records": rows_read},
        dropped=dropped,
        notes=(
            "One hour a step: floor of the hour; values at 48:00 are in step 47.",
            "Of several values in one hour the last is kept; in one minute, the last in the order of the file.",
            f"Impossible values are set to missing by vmapens' ranges, version {RANGES_VERSION}.",
            "Age, Gender and Height have the same value in all steps; the admission weight is a measurement at step 0.",
            "MechVent is only ever 1: missing means not ventilated, or not written down.",
            NO_PATIENTS,
            *early,
        ),
    )
    return Imported(info, series, labels)


def _collect(paths: Sequence[Path], dropped: Counter[str]) -> tuple[dict[int, bytes], set[tuple[str, bytes]]]:
    """The rows of each record by its RecordID; the names and texts of the outcome files."""
    records: dict[int, bytes] = {}
    outcome_files: set[tuple[str, bytes]] = set()
    for name, data in read_files(paths, heads=(RECORD_HEAD, OUTCOMES_HEAD), left_out=dropped):
        text = data.removeprefix(BYTE_ORDER_MARK)
        if not is_utf8(text):
            dropped["files that are not UTF-8 text: left out"] += 1
            continue
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if text.startswith(OUTCOMES_HEAD):
            outcome_files.add((name, text))
            continue
        head, _, body = text.partition(b"\n")
        record = _record_id(body)
        if head.strip() != RECORD_HEAD or record is None:
            dropped["records without a usable header or RecordID: left out"] += 1
            continue
        body = _without_empty_lines(body)
        if records.setdefault(record, body) != body:
            raise CohortError(f"{name}: RecordID {record} occurs twice with different content; give each set once.")
    return records, outcome_files


def _without_empty_lines(body: bytes) -> bytes:
    """The same rows, each ended by a line feed: as many line feeds as rows."""
    if b"\n\n" in body or not body.endswith(b"\n") or body.startswith(b"\n"):
        body = re.sub(rb"\n{2,}", b"\n", body).strip(b"\n") + b"\n"
    return body


def _record_id(body: bytes) -> int | None:
    _, found, rest = body.partition(b",RecordID,")
    digits = rest.partition(b"\n")[0].strip()
    if not found or not digits.isdigit() or len(digits) > 16 or int(digits) >= _LARGEST_ID:
        return None
    return int(digits)


def _parse(ids: NDArray[np.int64], records: Mapping[int, bytes], dropped: Counter[str]) -> pl.DataFrame:
    """All readable rows in the order of the files: `row`, `record` (place in `ids`), `minute`, `parameter`, `value`."""
    bodies = [records[record] for record in ids.tolist()]
    lines = np.array([body.count(b"\n") for body in bodies])
    buffer = b"".join((b"time,name,text,more\n", *bodies))
    table = pl.read_csv(buffer, infer_schema=False, quote_char=None, truncate_ragged_lines=True, row_index_name="row")
    if table.height != lines.sum():
        raise CohortError(f"{table.height} rows read, {lines.sum()} lines found: a record holds control characters.")
    table = table.with_columns(
        record=pl.Series(np.repeat(np.arange(len(ids), dtype=np.int32), lines)),
        minute=pl.col("time").cast(_MINUTES, strict=False).to_physical().cast(pl.Int32),
        parameter=pl.col("name").cast(_PARAMETERS, strict=False).to_physical().cast(pl.Int32),
        value=pl.col("text").cast(pl.Float64, strict=False),
    )
    faults = {
        "rows that are not `HH:MM,Parameter,number`: left out": (
            pl.col("more").is_not_null() | pl.col("value").is_null() | ~pl.col("value").is_finite()
        ),
        "rows with an empty parameter name: left out": pl.col("name").is_null(),
        "rows with a time outside 00:00..48:00: left out": pl.col("minute").is_null(),
        "rows with an unknown parameter name: left out": pl.col("parameter").is_null(),
    }
    fine = pl.lit(True)
    counts = {}
    for what, fault in faults.items():
        counts[what] = (fine & fault).sum()
        fine &= ~fault
    dropped.update(table.select(**counts).row(0, named=True))
    table = table.filter(fine).select("row", "record", "minute", "parameter", "value")
    return _without_record_ids(ids, table)


def _without_record_ids(ids: NDArray[np.int64], rows: pl.DataFrame) -> pl.DataFrame:
    """Drop the RecordID rows, after a look that each file names one record only."""
    named = rows.filter(pl.col("parameter") == _RECORD_ID)
    other = named["value"].to_numpy() != ids[named["record"].to_numpy()]
    if other.any():
        record = ids[named["record"].to_numpy()[other]].min()
        raise CohortError(f"the file of RecordID {record} names another RecordID too: one file must hold one stay.")
    return rows.filter(pl.col("parameter") != _RECORD_ID)


def _grid(ids: NDArray[np.int64], rows: pl.DataFrame, dropped: Counter[str]) -> pl.LazyFrame:
    """The series: 48 rows a stay, null where nothing was measured."""
    rows = rows.filter(pl.col("parameter") < len(_FEATURES)).sort("minute", "row")
    parameter = rows["parameter"].to_numpy()
    value = rows["value"].to_numpy()
    low, high = np.array([(feature.low, feature.high) for feature in _FEATURES]).T
    missing = value == MISSING
    outside = ~missing & ((value < low[parameter]) | (value > high[parameter]))
    for feature, absent, impossible in zip(
        _FEATURES, *(_per_feature(parameter, m) for m in (missing, outside)), strict=True
    ):
        dropped[f"{feature.name} {MISSING} (unknown): set to missing"] += absent
        dropped[f"{feature.name} outside {feature.low:g}..{feature.high:g}: set to missing"] += impossible

    kept = ~(missing | outside)
    record, minute = (rows[name].to_numpy()[kept] for name in ("record", "minute"))
    parameter, value = parameter[kept], value[kept]
    constant = parameter >= len(SERIES)
    step = np.where(constant, 0, np.minimum(minute // 60, STEPS - 1))
    grid = np.full((len(_FEATURES), len(ids), STEPS), np.nan, dtype=np.float32)
    grid[parameter, record, step] = value  # by time, then row number; of equal places NumPy keeps the last
    dropped["values followed by another of the same stay, parameter and hour: the last is kept"] += int(
        len(value) - np.count_nonzero(~np.isnan(grid))
    )
    dropped["values followed by another of the same stay, parameter and minute: counted among those of the hour"] += (
        _same_minute(record, minute, parameter)
    )
    at_admission = constant | ((parameter == _WEIGHT) & (minute == 0))
    measured = np.bincount(record[~at_admission], minlength=len(ids))
    dropped["stays without any measurement after admission: kept, missing throughout"] += int((measured == 0).sum())

    grid[len(SERIES) :] = grid[len(SERIES) :, :, :1]
    names = [feature.name for feature in _FEATURES]
    columns = {name: pl.Series(cells.reshape(-1)) for name, cells in zip(names, grid, strict=True)}
    keys = {"sample": np.repeat(ids, STEPS), "step": np.tile(np.arange(STEPS, dtype=np.int32), len(ids))}
    return pl.DataFrame({**keys, **columns}).lazy().with_columns(pl.col(names).fill_nan(None))


def _per_feature(parameter: NDArray[np.int32], mask: NDArray[np.bool_]) -> list[int]:
    counts: list[int] = np.bincount(parameter[mask], minlength=len(_FEATURES)).tolist()
    return counts


def _same_minute(record: NDArray[np.int32], minute: NDArray[np.int32], parameter: NDArray[np.int32]) -> int:
    place = (record.astype(np.int64) * (STEPS * 60 + 1) + minute) * len(_FEATURES) + parameter
    return len(place) - pl.Series(place).n_unique()


def _labels(
    ids: NDArray[np.int64], rows: pl.DataFrame, outcome_files: Set[tuple[str, bytes]], dropped: Counter[str]
) -> tuple[pl.DataFrame, tuple[Task, ...], list[str]]:
    """One row a stay, the tasks among its columns, and a warning of stays that ended before the grid does."""
    outcomes = _outcomes(outcome_files, dropped)
    stays = pl.DataFrame({"sample": ids, "icu_type": _icu_types(len(ids), rows, dropped)})
    dropped["outcomes without a record: left out"] += outcomes.join(stays, on="sample", how="anti").height
    without = stays.join(outcomes, on="sample", how="anti").height
    dropped["records without an outcome: kept, without mortality, severity and scores"] += without
    if without == stays.height:
        raise CohortError(
            f"none of the {stays.height} records has a row in {', '.join(sorted(name for name, _ in outcome_files))}: "
            "the outcomes are of another set; give the records and outcomes of the same sets."
        )
    labels = stays.join(outcomes, on="sample", how="left").sort("sample")
    tasks = [
        Task("mortality", "binary", ("survived", "died"), "In-hospital_death of the outcomes file."),
        Task("icu_type", "multiclass", ICU_TYPES, "ICUType of the record; never a feature."),
    ]
    dropped["stays whose SAPS-I is unknown: severity unknown"] += labels["saps_i"].null_count() - without
    severity, classes = _severity(labels["saps_i"])
    if len(classes) > 1:
        tasks.append(
            Task(
                "severity",
                "multiclass",
                classes,
                "Quartiles of SAPS-I among the stays read, no published cut points; unknown is null.",
            )
        )
        labels = labels.with_columns(severity=severity)
    early = labels.filter(pl.col("survival").is_between(0, STEPS // 24 - 1)).height
    warning = (
        f"warning: {early} stays died before the window's end (Survival under {STEPS // 24} days): for them, mortality "
        "is not a prediction."
    )
    labels = labels.select("sample", *(task.name for task in tasks), "saps_i", "sofa", "set")
    return labels, tuple(tasks), [warning] * (early > 0)


def _icu_types(stays: int, rows: pl.DataFrame, dropped: Counter[str]) -> pl.Series:
    """Class 0..3 of each stay, null where the record does not say."""
    said = rows.filter(pl.col("parameter") == _ICU_TYPE).sort("row")
    known = said["value"].is_in([1.0, 2.0, 3.0, 4.0])
    types = np.zeros(stays, dtype=np.int32)
    types[said["record"].to_numpy()[known.to_numpy()]] = said["value"].filter(known).to_numpy()
    dropped["stays whose ICUType is not 1..4: icu_type unknown"] += int((types == 0).sum())
    return pl.select(pl.when(pl.Series(types) > 0).then(pl.Series(types) - 1)).to_series()


def _outcomes(files: Set[tuple[str, bytes]], dropped: Counter[str]) -> pl.DataFrame:
    """`sample`, `mortality`, `saps_i`, `sofa`, `survival` (days), `set`, a row a stay; -1 and unreadable are null."""
    tables = []
    for name, data in sorted(files):
        try:
            table = pl.read_csv(data, infer_schema=False, quote_char=None, truncate_ragged_lines=True)
            table = table.rename(str.strip)
        except pl.exceptions.PolarsError as error:
            why = str(error).partition("\n")[0]
            raise CohortError(f"{name} cannot be read as a table of outcomes ({why}); fetch it again.") from error
        if lacking := [column for column in OUTCOME_COLUMNS if column not in table.columns]:
            raise CohortError(
                f"{name}: no column {', '.join(lacking)}; got {', '.join(table.columns)}. Fetch it again."
            )
        if "Survival" not in table.columns:
            table = table.with_columns(Survival=pl.lit(None, pl.String))
        set_name = re.search(r"outcomes-(\w+)\.txt$", PurePosixPath(name).name, re.IGNORECASE)
        numbers = [
            pl.col(old).str.strip_chars().cast(pl.Int64, strict=False).alias(new)
            for old, new in (*OUTCOME_COLUMNS.items(), ("Survival", "survival"))
        ]
        tables.append(table.select(*numbers, set=pl.lit(set_name and set_name[1].lower(), pl.String)))
    everything = pl.concat(tables)
    readable = everything.filter(pl.col("sample").is_not_null() & pl.col("mortality").is_in([0, 1]))
    dropped["rows of outcomes without a RecordID or with a death that is not 0 or 1: left out"] += (
        everything.height - readable.height
    )
    strange = everything.drop_nulls("sample").join(readable, on=["sample", "mortality"], how="anti")
    if len(strange) and readable["mortality"].n_unique() == 1:
        raise CohortError(
            f"{', '.join(sorted(name for name, _ in files))}: In-hospital_death is {readable['mortality'][0]} in "
            f"{len(readable)} rows and neither 0 nor 1 in the other {len(strange)}, wanted 0 and 1; fetch it again."
        )
    scores = [
        pl.when(pl.col(score) >= 0).then(pl.col(score)).cast(pl.Int32, strict=False)
        for score in ("saps_i", "sofa", "survival")
    ]
    stays = readable.select("sample", pl.col("mortality").cast(pl.Int32), *scores, "set")
    stays = stays.group_by("sample", "mortality", "saps_i", "sofa", "survival").agg(pl.col("set").min())
    if twice := stays.filter(pl.col("sample").is_duplicated())["sample"].unique().sort().to_list():
        raise CohortError(f"two different outcomes for RecordID {', '.join(map(str, twice[:5]))}; give each set once.")
    return stays


def _severity(saps: pl.Series) -> tuple[pl.Series, tuple[str, ...]]:
    """The quartile group of each score, and the groups' names; fewer than four where quartiles coincide."""
    known = saps.drop_nulls().to_numpy()
    if known.size == 0:
        return saps, ()
    cuts = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="inverted_cdf"))
    cuts = cuts[cuts < known.max()]
    starts = [known.min(), *(cuts + 1)]
    ends = [*cuts, known.max()]
    names = tuple(f"SAPS-I {start:g} to {end:g}" for start, end in zip(starts, ends, strict=True))
    groups = pl.Series("severity", np.searchsorted(cuts, saps.fill_null(0).to_numpy()), dtype=pl.Int32)
    return pl.select(pl.when(saps.is_not_null()).then(groups)).to_series().alias("severity"), names
