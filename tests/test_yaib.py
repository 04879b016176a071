"""YAIB cohorts: what the three files say arrives on the hourly grid, and what does not arrive is counted or refused."""

import tarfile
from datetime import timedelta

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from vmapens.cohort.importers.yaib import DYN, OUTC, STA, read_yaib
from vmapens.cohort.importers.yaib_features import FEATURES
from vmapens.cohort.load import load_cohort
from vmapens.cohort.schema import NO_PATIENTS, read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError
from vmapens.spec import CohortSpec

HOUR = timedelta(hours=1)
COUNTS = {1: 4, 2: 6, 3: 2, 4: 4}
"""Hourly rows of each made stay."""


def made():
    """The three tables of four stays."""
    keys = [(stay, hour) for stay, count in COUNTS.items() for hour in range(count)]
    dyn = pl.DataFrame(
        {
            "stay_id": pl.Series([stay for stay, _ in keys], dtype=pl.Int32),
            "time": pl.Series([hour * HOUR for _, hour in keys], dtype=pl.Duration("ms")),
            "hr": [None if hour == 1 else 60.0 + 10 * stay + hour for stay, hour in keys],
            "own": [float(stay) for stay, _ in keys],
        }
    )
    sta = pl.DataFrame(
        {"stay_id": [1, 2, 3, 4], "age": [50.0, None, 70.0, 80.0], "sex": ["Male", "Female", None, "Male"]},
        schema_overrides={"stay_id": pl.Int32},
    )
    outc = pl.DataFrame({"stay_id": [1, 2, 3, 4], "label": [0, 1, 0, 1]}, schema_overrides={"stay_id": pl.Int32})
    return {DYN: dyn, STA: sta, OUTC: outc}


def save(folder, tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(folder / name)
    return folder


def imported(tmp_path, tables, name="cohort", **options):
    """Info, series and labels of a cohort that was written from made tables."""
    source = save(tmp_path / f"{name}-source", tables)
    info = write_cohort(tmp_path / name, *read_yaib(source, **({"steps": 4} | options)))
    assert info == read_info(tmp_path / name)
    return info, *(pl.read_parquet(tmp_path / name / f"{table}.parquet") for table in ("series", "labels"))


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shuffled(tables, seed=1):
    return {name: table.sample(fraction=1, shuffle=True, seed=seed) for name, table in tables.items()}


@pytest.fixture(scope="session")
def demo(shared_data, tmp_path_factory):
    archive = shared_data / "yaib-demo-hourly.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    folder = tmp_path_factory.mktemp("yaib")
    with tarfile.open(archive, "r:xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "yaib-demo"


def test_rows_arrive_in_the_step_of_their_hour_and_static_columns_beside_the_labels(tmp_path):
    info, series, labels = imported(tmp_path, made(), task="mortality")
    assert (info.steps, info.minutes_per_step) == (4, 60.0)
    assert [feature.name for feature in info.features] == ["hr", "own", "age", "sex"]
    assert (info.features[0].unit, info.features[0].group) == ("bpm", "circulation")
    assert (info.features[1].unit, info.features[1].group) == ("", "")
    assert info.features[3].unit == "0 Female, 1 Male"
    assert series["sample"].to_list() == [1] * 4 + [2] * 4 + [4] * 4
    assert series["step"].to_list() == [0, 1, 2, 3] * 3
    assert series["hr"].to_list() == [70, None, 72, 73, 80, None, 82, 83, 100, None, 102, 103]
    assert labels.columns == ["sample", "age", "sex", "mortality"]
    assert labels.rows() == [(1, 50, 1, 0), (2, None, 0, 1), (4, 80, 1, 1)]
    assert (info.tasks[0].name, info.tasks[0].kind, info.tasks[0].classes) == ("mortality", "binary", ("0", "1"))
    assert info.read == {
        "rows of dyn.parquet": 16,
        "rows of outc.parquet": 4,
        "rows of sta.parquet": 4,
        "stays of dyn.parquet": 4,
    }
    assert info.dropped == {
        "rows of dyn.parquet from step 4 on: left out": 2,
        "stays whose last row comes before step 3: left out": 1,
    }
    assert NO_PATIENTS in info.notes
    assert "`sex` is 0 for Female and 1 for Male." in info.notes


def test_short_stays_are_kept_if_asked_for_and_their_last_values_are_carried_forward(tmp_path):
    tables = made()
    more = [
        table.with_columns(pl.col("stay_id") + 10 * copy) for table in tables.values() for copy in range(12)
    ]  # 48 stays
    tables = {name: pl.concat(more[place * 12 : place * 12 + 12]) for place, name in enumerate(tables)}
    info, series, labels = imported(tmp_path, tables, short="fill")
    assert series.filter(pl.col("sample") == 3)["step"].to_list() == [0, 1]
    assert labels.height == 48
    assert info.dropped["stays whose last row comes before step 3: kept, not measured after it"] == 12
    cohort = load_cohort(CohortSpec(str(tmp_path / "cohort"), "label"))
    stay = cohort.samples.index("3")
    assert cohort.x[stay, :, 0].unique().numel() == 1
    assert cohort.observed[stay, :, 0].tolist() == [True, False, False, False]


def test_rows_outside_the_window_or_without_keys_are_counted(tmp_path):
    tables = made()
    odd = pl.DataFrame(
        {"stay_id": [1, 1, None, 9], "time": [-1 * HOUR, None, HOUR, -HOUR / 2], "hr": [1.0] * 4, "own": [1.0] * 4}
    )
    tables[DYN] = pl.concat([tables[DYN], odd.cast({"stay_id": pl.Int32, "time": pl.Duration("ms")})])
    info, series, _ = imported(tmp_path, tables, short="fill")
    assert info.dropped["rows of dyn.parquet before step 0: left out"] == 2
    assert info.dropped["rows of dyn.parquet without a stay_id or a time: left out"] == 2
    assert info.dropped["stays without a row in the window: left out"] == 1
    assert series["sample"].unique().sort().to_list() == [1, 2, 3, 4]


def test_an_hour_keeps_the_last_measured_value_and_at_one_time_the_largest(tmp_path):
    tables = made()
    rows = [
        (1, 2 * HOUR + HOUR / 2, None, 7.0),  # later in hour 2; hr was measured before
        (1, 2 * HOUR + HOUR / 3, 99.0, 6.0),
        (2, 3 * HOUR, 5.0, 50.0),  # at the very time of a row with hr 83, own 2
        (4, 0 * HOUR, 100.0, 4.0),  # the same row again
    ]
    extra = pl.DataFrame(rows, tables[DYN].schema, orient="row")
    tables[DYN] = pl.concat([tables[DYN], extra])
    info, series, _ = imported(tmp_path, tables)
    cell = {(row[0], row[1]): row[2:] for row in series.rows()}
    assert cell[1, 2] == (99.0, 7.0)
    assert cell[2, 3] == (83.0, 50.0)
    assert series.height == 12
    what = "rows of dyn.parquet"
    assert info.dropped[f"{what} that repeat another one: left out"] == 1
    assert (
        info.dropped[f"{what} that differ from another one of the same stay and time: the largest values are kept"] == 1
    )
    assert info.dropped[f"{what} followed by a later one in the same hour: the last measured values are kept"] == 2
    assert imported(tmp_path, shuffled(tables), "again")[1].equals(series)


@pytest.mark.parametrize("unit", ["ms", "us", "ns", "whole hours", "hours"])
def test_durations_of_any_unit_and_hours_are_the_same_cohort(tmp_path, unit):
    tables = made()
    imported(tmp_path, tables, "plain")
    hours = pl.col("time").dt.total_hours()
    times = {"whole hours": hours, "hours": hours.cast(pl.Float64) - 1e-13}  # as computed times may fall short
    times |= {unit: pl.col("time").cast(pl.Duration(unit)) for unit in ("ms", "us", "ns")}
    tables[DYN] = tables[DYN].with_columns(time=times[unit])
    imported(tmp_path, tables)
    assert cohort_bytes(tmp_path / "cohort") == cohort_bytes(tmp_path / "plain")


def test_seconds_in_which_duckdb_writes_a_duration_are_refused(tmp_path):
    source = save(tmp_path / "source", made())
    arrow = pq.read_table(source / DYN)
    seconds = arrow["time"].cast("duration[s]")
    pq.write_table(arrow.set_column(1, "time", seconds), source / DYN)
    read_yaib(source, steps=4)
    duckdb.sql(f"COPY (SELECT * FROM '{source / DYN}') TO '{tmp_path / 'again.parquet'}' (FORMAT parquet)")
    (tmp_path / "again.parquet").replace(source / DYN)
    assert pl.read_parquet_schema(source / DYN)["time"] == pl.Int64
    with pytest.raises(
        CohortError, match=r"all of column `time` are multiples of 3600, up to 1.*, as of an hourly dura"
    ):
        read_yaib(source, steps=4)


def test_times_in_minutes_are_refused(tmp_path):
    tables = made()
    tables[DYN] = tables[DYN].with_columns(time=pl.col("time").dt.total_minutes())
    with pytest.raises(
        CohortError, match=r"column `time` are multiples of 60, up to \d+, as of times in minutes; wanted"
    ):
        imported(tmp_path, tables)


def test_the_order_of_rows_does_not_matter(tmp_path):
    tables = made()
    imported(tmp_path, tables, "plain")
    for seed in range(3):
        imported(tmp_path, shuffled(tables, seed), f"shuffled-{seed}")
        assert cohort_bytes(tmp_path / f"shuffled-{seed}") == cohort_bytes(tmp_path / "plain")


def test_rows_that_repeat_change_no_table(tmp_path):
    tables = made()
    _, series, labels = imported(tmp_path, tables, "plain")
    twice = {name: pl.concat([table, table]) for name, table in tables.items()}
    info, series_twice, labels_twice = imported(tmp_path, shuffled(twice), "twice")
    assert series_twice.equals(series)
    assert labels_twice.equals(labels)
    assert info.dropped["rows of dyn.parquet that repeat another one: left out"] == 12
    assert info.dropped["rows of sta.parquet that repeat another one: left out"] == 4
    assert info.dropped["rows of outc.parquet that repeat another one: left out"] == 4


@pytest.mark.parametrize(
    ("label", "codes", "kind", "classes"),
    [
        ([False, True, None, True], [0, 1, 1], "binary", ("false", "true")),
        ([0.0, 1.0, 5.5, float("nan")], [0, 1, None], "binary", ("0", "1")),  # 5.5 is of a stay that is left out
        ([2, 0, 1, 1], [2, 0, 1], "multiclass", ("0", "1", "2")),
        (["sepsis", "heart", None, "sepsis"], [1, 0, 1], "binary", ("heart", "sepsis")),
    ],
)
def test_labels_may_be_truth_values_whole_numbers_or_text(tmp_path, label, codes, kind, classes):
    tables = made()
    tables[OUTC] = tables[OUTC].with_columns(label=pl.Series(label))
    info, _, labels = imported(tmp_path, tables)
    assert labels["label"].to_list() == codes
    assert labels["label"].dtype == pl.Int32
    assert (info.tasks[0].kind, info.tasks[0].classes) == (kind, classes)


def test_a_class_without_a_stay_is_said(tmp_path):
    tables = made()
    tables[OUTC] = tables[OUTC].with_columns(label=pl.Series([0, 3, 0, 3]))
    info, _, _ = imported(tmp_path, tables)
    assert info.tasks[0].note == "Column `label` of outc.parquet. No stay is of 2 of 4 classes (1, 2)."


def test_stays_that_a_file_lacks_or_has_more_are_counted(tmp_path):
    tables = made()
    tables[STA] = pl.concat([tables[STA][1:], tables[STA][:1].with_columns(stay_id=pl.lit(77, pl.Int32))])
    other = pl.DataFrame({"stay_id": [None, 88, 99], "label": [1, 1, None]}, tables[OUTC].schema)
    tables[OUTC] = pl.concat([tables[OUTC][:3], other])
    info, _, labels = imported(tmp_path, tables)
    assert labels.rows() == [(1, None, None, 0), (2, None, 0, 1), (4, 80, 1, None)]
    assert info.dropped["stays without a row in sta.parquet: kept, without static columns"] == 1
    assert info.dropped["stays of sta.parquet without a row in dyn.parquet: left out"] == 1
    assert info.dropped["stays without a label in outc.parquet: kept, not in the task"] == 1
    assert info.dropped["stays of outc.parquet without a row in dyn.parquet: left out"] == 2
    assert info.dropped["rows of outc.parquet without a stay_id: left out"] == 1


def test_static_text_of_two_values_becomes_a_number_and_other_text_is_named(tmp_path):
    tables = made()
    tables[STA] = tables[STA].with_columns(
        ethnic=pl.Series(["a", "b", "c", "c"]),
        ward=pl.Series(["south", "north", "south", "south"], dtype=pl.Categorical),
        born=pl.Series([None] * 4, dtype=pl.Date),
        codes=pl.Series([[1], [2], [3], []]),
        ventilated=pl.Series([True, False, None, None]),
        bmi=pl.Series([1e39, 20.0, 20.0, float("nan")]),
    )
    tables[DYN] = tables[DYN].with_columns(
        text=pl.lit("x"), hr=pl.when(pl.col("own") == 4).then(-1e300).otherwise("hr")
    )
    info, series, labels = imported(tmp_path, tables)
    assert [feature.name for feature in info.features] == ["hr", "own", "age", "sex", "ward", "ventilated", "bmi"]
    assert labels["ward"].to_list() == [1, 0, 1]
    assert labels["ventilated"].to_list() == [1, 0, None]
    assert labels["bmi"].to_list() == [None, 20, None]
    assert series.filter(pl.col("sample") == 4)["hr"].null_count() == 4
    assert info.dropped["values of sta.parquet that are infinite in float32: set to missing"] == 1
    assert info.dropped["values of dyn.parquet that are infinite in float32: set to missing"] == 4
    assert "`ward` is 0 for north and 1 for south." in info.notes
    assert "Columns of dyn.parquet that are no numbers are left out: text." in info.notes
    left_out = [note.split("`")[1] for note in info.notes if "is left out" in note]
    assert left_out == ["ethnic", "born", "codes"]


def test_ids_may_be_text(tmp_path):
    tables = {name: table.with_columns(pl.col("stay_id").cast(pl.String)) for name, table in made().items()}
    _, series, labels = imported(tmp_path, tables)
    assert labels["sample"].to_list() == ["1", "2", "4"]
    assert series.schema["sample"] == pl.String


def test_outcomes_that_are_no_classes_are_passed_over_if_other_labels_will_come(tmp_path):
    tables = made()
    by_hour = tables[DYN].select("stay_id", "time", label=pl.col("own") / 2)
    cases = {
        "outc.parquet has a label for each hour (a column `time`), wanted one a stay: passed over.": by_hour,
        "outc.parquet is no task: column `label` holds 1 numbers that are no class (0.5), wanted whole numbers from 0; "
        "there is no regression here, so cut such values into classes: passed over.": by_hour.drop("time").unique(),
        "outc.parquet has no column `label`, but stay_id, los: passed over.": tables[OUTC].rename({"label": "los"}),
        "outc.parquet is not there: passed over.": None,
    }
    for place, (note, table) in enumerate(cases.items()):
        files = {name: tables[name] for name in (DYN, STA)} | ({} if table is None else {OUTC: table})
        info, series, labels = imported(tmp_path, files, f"optional-{place}", outcomes="optional")
        assert info.notes[-1] == note
        assert info.tasks == ()
        assert labels.columns == ["sample", "age", "sex"]
        assert series.height == 12
        with pytest.raises(CohortError, match=r"outc\.parquet") as caught:
            read_yaib(tmp_path / f"optional-{place}-source", steps=4)
        assert "\n" not in str(caught.value)
        assert table is None or "give it with --labels FILE --label-column COLUMN" in str(caught.value)
    info, _, _ = imported(tmp_path, tables, outcomes="optional")
    assert [task.name for task in info.tasks] == ["label"]


def changed(name, **columns):
    return lambda tables: tables | {name: tables[name].with_columns(**columns)}


def more(name, **columns):
    return lambda tables: tables | {name: pl.concat([tables[name], tables[name].with_columns(**columns)])}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (changed(DYN, time=pl.lit("1")), {}, "column `time` is String, wanted a duration, or hours as numbers"),
        (
            changed(DYN, time=pl.lit(0).cast(pl.Datetime)),
            {},
            "`time` is Datetime.*; subtract the start of the stay, which gives a duration",
        ),
        (lambda t: t | {DYN: t[DYN].drop("time")}, {}, "dyn.parquet: column `time` is not there"),
        (lambda t: t | {DYN: t[DYN].drop("stay_id")}, {}, "column `stay_id` is not there"),
        (lambda t: t | {DYN: t[DYN].drop("hr", "own")}, {}, "has no column of numbers beside"),
        (lambda t: t | {DYN: t[DYN].clear()}, {}, "has no stay: none of 0 rows"),
        (changed(DYN, age=1.0), {}, "sta.parquet: a column is called age"),
        (changed(DYN, label=1.0), {}, "dyn.parquet: a column is called label"),
        (changed(STA, split=1.0), {}, "a column is called split"),
        (changed(STA, sample=1.0), {}, "a column is called sample"),
        (changed(STA, stay_id=pl.col("stay_id").cast(pl.String)), {}, "`stay_id` is String, but Int64 in dyn.parquet"),
        (changed(STA, stay_id=pl.col("stay_id") / 2), {}, "`stay_id` is Float64, wanted whole numbers or text"),
        (more(STA, age=pl.lit(1.0)), {}, "sta.parquet: 4 of sample have several rows that differ .1, 2, 3, 4."),
        (more(OUTC, label=1 - pl.col("label")), {}, "outc.parquet: 4 of sample have several rows that differ"),
        (changed(OUTC, label=-pl.col("label")), {}, "holds 2 numbers that are no class .-1."),
        (changed(OUTC, label=pl.lit(1)), {}, "has 1 different values in these stays, wanted two classes or more"),
        (changed(OUTC, label=pl.lit(None)), {}, "has 0 different values in these stays"),
        (changed(OUTC, label=pl.lit(float("inf"))), {}, "goes up to inf, wanted classes from 0 to 99"),
        (changed(OUTC, label=pl.lit([1])), {}, "is List.Int64., wanted whole numbers from 0, truth values or text"),
        (changed(OUTC, label=pl.lit(HOUR)), {}, "is Duration"),
        (
            dict,
            {"steps": 7},
            "none of 4 stays can be kept: the last row of all is in step 5, the window ends with step 6",
        ),
        (dict, {"steps": 0}, "steps is 0, wanted a whole number"),
        (dict, {"task": "split"}, "the task cannot be called `split`"),
        (
            dict,
            {"task": "time"},
            "the task cannot be called `time`: the cohort has a column .* another name with --task",
        ),
        (dict, {"task": "*"}, "the task cannot be called `[*]`: no column can"),
        (dict, {"task": ""}, "the task cannot be called ``: no column can"),
    ],
)
def test_what_cannot_be_imported_is_one_clear_line(tmp_path, change, options, message):
    source = save(tmp_path / "source", change(made()))
    with pytest.raises(CohortError, match=message) as caught:
        write_cohort(tmp_path / "out", *read_yaib(source, **({"steps": 4} | options)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_files_is_named_with_what_it_holds(tmp_path):
    with pytest.raises(
        CohortError, match=r"nowhere is no folder: wanted that of a YAIB cohort, with dyn.parquet, outc"
    ):
        read_yaib(tmp_path / "nowhere")
    save(tmp_path / "mortality24" / "eicu_demo", made())
    with pytest.raises(
        CohortError, match=r"has no dyn.parquet, outc.parquet, sta.parquet, but eicu_demo; name the fol"
    ):
        read_yaib(tmp_path / "mortality24")


@pytest.mark.parametrize("name", [DYN, STA, OUTC])
def test_damaged_files_are_refused(tmp_path, name):
    source = save(tmp_path / "source", made())
    whole = (source / name).read_bytes()
    generator = np.random.default_rng(0)
    damaged = [whole[:size] for size in (0, 3, 11, len(whole) // 2, len(whole) - 1)] + [b"stay_id,time\n1,2\n"]
    for _ in range(20):  # a changed byte may be harmless, or is refused; it is no other exception
        data = bytearray(whole)
        data[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(data))
    refused = []
    for place, data in enumerate(damaged):
        (source / name).write_bytes(data)
        try:
            write_cohort(tmp_path / f"out-{place}", *read_yaib(source, steps=4))
        except CohortError as error:
            refused.append((place, str(error)))
    assert [place for place, _ in refused][:6] == list(range(6))
    assert not any("\n" in line for _, line in refused)


@pytest.mark.parametrize(("source", "stays", "deaths"), [("eicu_demo", 1367, 70), ("mimic_demo", 99, 21)])
def test_mortality_of_the_demos(tmp_path, demo, source, stays, deaths):
    folder = demo / "mortality24" / source
    info = write_cohort(tmp_path / "out", *read_yaib(folder, task="mortality"))
    labels = pl.read_parquet(tmp_path / "out" / "labels.parquet")
    series = pl.read_parquet(tmp_path / "out" / "series.parquet")
    assert labels.height == stays
    assert labels["mortality"].sum() == deaths
    assert series.height == stays * 24
    assert [feature.name for feature in info.features[48:]] == ["age", "sex", "height", "weight"]
    assert all(feature.name in FEATURES and feature.group for feature in info.features)
    assert info.dropped == {"rows of dyn.parquet from step 24 on: left out": stays}

    rows = {name: pq.read_table(folder / name).to_pylist() for name in (DYN, STA, OUTC)}
    hours = [(row["stay_id"], row["time"].total_seconds() / 3600, row) for row in rows[DYN] if row["stay_id"] % 20 == 1]
    twin = {(stay, int(hour)): row for stay, hour, row in hours if hour < 24}
    some = series.filter(pl.col("sample") % 20 == 1).to_dicts()
    assert len(some) == len(twin) > 0
    for row in some:
        wanted = twin[row["sample"], row["step"]]
        assert all(
            row[f.name] == (None if wanted[f.name] is None else np.float32(wanted[f.name])) for f in info.features[:48]
        )
    label = {row["stay_id"]: row["label"] for row in rows[OUTC]}
    sex = {row["stay_id"]: {"Male": 1, "Female": 0}.get(row["sex"]) for row in rows[STA]}
    assert dict(labels.select("sample", "mortality").rows()) == label
    assert dict(labels.select("sample", "sex").rows()) == sex


def test_a_demo_in_another_order_of_rows_is_the_same_cohort(tmp_path, demo):
    folder = demo / "mortality24" / "eicu_demo"
    write_cohort(tmp_path / "out", *read_yaib(folder))
    source = save(tmp_path / "source", shuffled({name: pl.read_parquet(folder / name) for name in (DYN, STA, OUTC)}))
    write_cohort(tmp_path / "again", *read_yaib(source))
    assert cohort_bytes(tmp_path / "again") == cohort_bytes(tmp_path / "out")


def test_hourly_labels_and_regression_of_the_demos_are_refused(demo):
    for task in ("aki", "los", "sepsis"):
        with pytest.raises(
            CohortError, match=r"has a label for each hour .a column `time`., wanted one a stay; make a"
        ):
            read_yaib(demo / task / "eicu_demo")
    with pytest.raises(CohortError, match=r"numbers that are no class .0.21, 0.26, 0.28.*no regression here"):
        read_yaib(demo / "kidney_function" / "eicu_demo")


def test_stays_of_any_length_come_from_the_demo_of_length_of_stay(demo):
    info, _, labels = read_yaib(demo / "los" / "eicu_demo", outcomes="optional")
    assert info.dropped["stays whose last row comes before step 23: left out"] == 630
    assert labels.height == 2267 - 630
    info, _, labels = read_yaib(demo / "los" / "eicu_demo", outcomes="optional", short="fill")
    assert info.dropped["stays whose last row comes before step 23: kept, not measured after it"] == 630
    assert labels.height == 2267


def test_the_row_numbers_of_pandas_are_no_feature(tmp_path):
    tables = {name: table.with_row_index("__index_level_0__") for name, table in made().items()}
    info, *_ = imported(tmp_path, tables)
    assert [feature.name for feature in info.features] == ["hr", "own", "age", "sex"]


def test_ids_beyond_int64_are_refused(tmp_path):
    tables = made()
    tables[DYN] = tables[DYN].with_columns(pl.col("stay_id").cast(pl.UInt64) + 2**63)
    with pytest.raises(CohortError, match=r"a stay_id is 2\^63 or more; write them as text, in all three files"):
        imported(tmp_path, tables)
