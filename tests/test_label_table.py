"""Joined labels: each stay gets the label of its id, and a table that cannot be meant so is refused."""

import csv
import dataclasses
import gzip
import tarfile
from collections import Counter
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from vmapens.cohort.classes import MISSING
from vmapens.cohort.importers.yaib import read_yaib
from vmapens.cohort.label_table import join_labels
from vmapens.cohort.schema import NO_PATIENTS, CohortInfo, Feature, Task
from vmapens.cohort.write import Imported, write_cohort
from vmapens.errors import CohortError

CSV = "stay,unit,patient\n3,surgical,b\n1,medical,a\n2,surgical,a\n9,medical,z\n"


def made(ids=(1, 2, 3, 4), **labels):
    """A cohort of four stays with one feature over 24 hourly steps, and a task."""
    ids = list(ids)
    info = CohortInfo(
        steps=24,
        minutes_per_step=60.0,
        features=(Feature("hr"), Feature("age")),
        tasks=(Task("mortality", "binary", ("0", "1")),),
        source="made",
        licence="none",
        read=Counter(stays=4),
        dropped=Counter(),
        notes=("A note.", NO_PATIENTS),
    )
    columns = {"sample": ids, "mortality": [0, 1, None, 1], "age": [1.0, 2.0, 3.0, 4.0], **labels}
    return Imported(info, pl.DataFrame({"sample": ids, "step": 0, "hr": 80.0}), pl.DataFrame(columns))


def save(folder, table, name="table.csv"):
    path = folder / name
    if isinstance(table, pl.DataFrame):
        table.write_parquet(path)
    else:
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return path


def joined(folder, table, column="unit", cohort=None, **options):
    return join_labels(cohort or made(), save(folder, table), column=column, **options)


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def eicu(shared_data, tmp_path_factory):
    """The YAIB cohort of the eICU demo, and the folder of the demo's own tables."""
    folder = tmp_path_factory.mktemp("eicu")
    for name in ("yaib-demo-hourly", "eicu-crd-demo-2.0-labels"):
        archive = shared_data / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"no {archive}")
        with tarfile.open(archive, "r:xz") as tar:
            tar.extractall(folder, filter="data")
    return read_yaib(folder / "yaib-demo" / "mortality24" / "eicu_demo"), folder / "eicu-crd-demo-2.0"


def test_each_stay_gets_the_label_of_its_id(tmp_path):
    info, series, labels = joined(tmp_path, CSV)
    assert labels.columns == ["sample", "mortality", "age", "unit"]
    assert labels["sample"].to_list() == [1, 2, 3, 4]
    assert labels["unit"].to_list() == [0, 1, 1, None]
    assert info.tasks[-1] == Task("unit", "binary", ("medical", "surgical"), "Column `unit` of table.csv.")
    assert info.read == {"stays": 4, "rows of table.csv for task `unit`": 4}
    assert {what: count for what, count in info.dropped.items() if count} == {
        "rows of table.csv for task `unit` of other stays: left out": 1,
        "stays without a row in table.csv for task `unit`: kept, not in the task": 1,
    }
    assert series.equals(made().series)
    assert labels.drop("unit").equals(made().labels)
    assert [task.name for task in write_cohort(tmp_path / "out", info, series, labels).tasks] == ["mortality", "unit"]


def test_counts_go_where_a_stream_still_counts(tmp_path):
    cohort = made()
    info, _, _ = joined(tmp_path, CSV, cohort=cohort)
    cohort.info.read["stays"] += 1
    assert info.read["stays"] == 5


@pytest.mark.parametrize("kind", ["csv", "gzip", "parquet", "parquet of text", "odd csv"])
def test_what_a_table_is_follows_from_its_content(tmp_path, kind):
    table = pl.read_csv(CSV.encode())
    odd = "\n".join(line.replace(",", " , ") for line in CSV.splitlines())
    content = {
        "csv": CSV,
        "gzip": gzip.compress(CSV.encode()),
        "parquet": table,
        "parquet of text": table.with_columns(pl.col("stay").cast(pl.String), pl.col("unit").cast(pl.Categorical)),
        "odd csv": b"\xef\xbb\xbf" + odd.replace("\n", "\r\n").encode(),
    }[kind]
    info, _, labels = joined(tmp_path, content)
    wanted = joined(tmp_path, CSV)
    assert labels.equals(wanted.labels)
    assert info == wanted.info


@pytest.mark.parametrize("ours", [pl.Int64, pl.Int32, pl.String])
@pytest.mark.parametrize("theirs", [pl.Int32, pl.UInt64, pl.Float64, pl.String, pl.Categorical])
def test_ids_are_matched_by_value_whatever_their_type(tmp_path, ours, theirs):
    plain = made(ids=(141765, 2, 30, 4))
    cohort = plain._replace(
        series=plain.series.cast({"sample": ours}), labels=plain.labels.cast({"sample": ours}).sort("sample")
    )
    ids = pl.Series([4, 141765, 30, None]).cast(pl.String).cast(theirs)
    _, _, labels = joined(tmp_path, pl.DataFrame({"id": ids, "unit": [2, 1, 0, 1]}), cohort=cohort)
    assert labels.schema["sample"] == ours
    found = dict(labels.with_columns(pl.col("sample").cast(pl.Int64)).select("sample", "unit").rows())
    assert found == {141765: 1, 2: None, 30: 0, 4: 2}


def test_text_ids_keep_their_zeros(tmp_path):
    cohort = made(ids=("007", "7", "a", "b"))
    _, _, labels = joined(tmp_path, "id,unit\n007,x\n7,y\nb,x\n", cohort=cohort)
    assert labels["unit"].to_list() == [0, 1, None, 0]


@pytest.mark.parametrize(
    ("values", "codes", "kind", "classes"),
    [
        (["0", "1", "1"], [0, 1, 1], "binary", ("0", "1")),
        (["2", "0", "1"], [2, 0, 1], "multiclass", ("0", "1", "2")),
        (["1.0", "", "0.0"], [1, None, 0], "binary", ("0", "1")),
        (["True", "False", "True"], [1, 0, 1], "binary", ("False", "True")),
        (["b", "c", "a"], [1, 2, 0], "multiclass", ("a", "b", "c")),
        (["01", "1", "1"], [0, 1, 1], "binary", ("01", "1")),
        (["-", "1", "1"], [0, 1, 1], "binary", ("-", "1")),
    ],
)
def test_a_column_of_nothing_but_numbers_is_numbers_and_any_other_text(tmp_path, values, codes, kind, classes):
    rows = "\n".join(f"{place + 1},{value}" for place, value in enumerate(values))
    info, _, labels = joined(tmp_path, f"id,unit\n{rows}\n")
    assert labels["unit"].to_list() == [*codes, None]
    assert (info.tasks[-1].kind, info.tasks[-1].classes) == (kind, classes)


def test_truth_values_of_parquet_are_classes_and_classes_are_those_of_the_cohort(tmp_path):
    table = pl.DataFrame({"sample": [1, 2, 9], "unit": [True, False, None]})
    assert joined(tmp_path, table).info.tasks[-1].classes == ("false", "true")
    text = table.with_columns(unit=pl.Series(["x", "y", "only of another stay"]))
    assert joined(tmp_path, text).info.tasks[-1].classes == ("x", "y")


def test_the_ids_are_those_of_sample_or_of_the_first_column_or_of_the_named_one(tmp_path):
    rows = "first,unit,sample,named\n4,x,1,2\n3,y,2,1\n"
    assert joined(tmp_path, rows).labels["unit"].to_list() == [0, 1, None, None]
    assert joined(tmp_path, rows, id_column="named").labels["unit"].to_list() == [1, 0, None, None]
    other = rows.replace("sample", "other")
    assert joined(tmp_path, other).labels["unit"].to_list() == [None, None, 1, 0]


def test_the_column_of_ids_is_by_default_none_that_is_something_else(tmp_path):
    """The labels, patients and times of these tables are ids of stays, too."""
    rows = "unit,patient,at,stay\n1,4,30,4\n2,3,31,3\n1,2,32,2\n"
    wanted = joined(tmp_path, rows, id_column="stay", group_column="patient", time_column="at")
    found = joined(tmp_path, rows, group_column="patient", time_column="at")
    assert found.labels.equals(wanted.labels)
    assert found.labels.select("unit", "group").rows() == [(None, None), (1, "2"), (2, "3"), (1, "4")]
    assert found.info == wanted.info
    assert joined(tmp_path, "unit,stay\n1,3\n2,4\n").labels["unit"].to_list() == [None, None, 1, 2]
    of_samples = joined(tmp_path, "sample,stay\n1,3\n2,4\n", column="sample", task="unit")
    assert of_samples.labels["unit"].to_list() == [None, None, 1, 2]


def test_a_column_that_is_named_as_ids_may_be_the_labels_too_and_none_is_not_guessed(tmp_path):
    one = pl.DataFrame({"unit": [1, 2, 3]})
    with pytest.raises(CohortError, match=r"has no column of ids beside unit; add one, or name one .* --label-id"):
        joined(tmp_path, one)
    assert joined(tmp_path, one, id_column="unit").labels["unit"].to_list() == [1, 2, 3, None]
    with pytest.raises(CohortError, match="has no column of ids beside patient, unit"):
        joined(tmp_path, "patient,unit\n1,x\n2,y\n", group_column="patient")


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("word", MISSING[1:])
def test_what_r_and_pandas_write_where_there_is_nothing_is_empty_and_counted(tmp_path, word, parquet):
    rows = f"stay,unit,number,patient,at\n1,x,0,17,30\n2,{word},{word},{word},{word}\n3,y,1,18,\n {word} ,x,0,,\n"
    options = {"id_column": "stay", "group_column": "patient", "time_column": "at"}

    def table(text):
        return pl.read_csv(text.encode(), infer_schema=False).with_columns(pl.all().fill_null("")) if parquet else text

    info, _, labels = joined(tmp_path, table(rows), **options)
    assert labels["unit"].to_list() == [0, None, 1, None]
    assert labels["group"].to_list() == ["17", None, "18", None]
    assert info.tasks[-1].classes == ("x", "y")
    what = "table.csv for task `unit`"
    assert info.dropped[f"values of {what} that are a word for nothing (NA, NaN, null, ...): read as empty"] == 4
    assert info.dropped[f"rows of {what} without an id: left out"] == 1
    assert info.dropped[f"stays without a label in {what}: kept, not in the task"] == 1
    assert info.dropped[f"stays without a patient in {what}: each counts as its own group"] == 2
    empty, _, same = joined(tmp_path, table(rows.replace(word, "")), **options)
    assert same.equals(labels)
    assert {name: empty.dropped[name] for name in info.dropped if "read as empty" not in name} == {
        name: count for name, count in info.dropped.items() if "read as empty" not in name
    }
    info, _, labels = joined(tmp_path, table(rows), column="number")
    assert labels["number"].to_list() == [0, None, 1, None]
    assert info.tasks[-1].classes == ("0", "1")


@pytest.mark.parametrize(
    "table", ["sample,unit\n1,None\n2,mild\n3,\n", {"sample": [1, 2, 3], "unit": ["None", "mild", ""]}]
)
def test_none_is_a_class(tmp_path, table):
    info, _, labels = joined(tmp_path, table if isinstance(table, str) else pl.DataFrame(table))
    assert (info.tasks[-1].classes, labels["unit"].to_list()) == (("None", "mild"), [0, 1, None, None])


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "__index_level_0__"])
@pytest.mark.parametrize("parquet", [False, True])
def test_a_column_that_numbers_the_rows_is_the_column_of_ids_only_if_named(tmp_path, index, parquet):
    """Row numbers are ids of other stays, so such labels would be wrong and look right."""
    rows = f"{index},stay,unit\n1,3,x\n2,4,y\n"
    table = pl.read_csv(rows.encode()) if parquet else rows
    info, _, labels = joined(tmp_path, table)
    assert labels["unit"].to_list() == [None, None, 0, 1]
    assert "Labels of table.csv are matched by its column `stay`." in info.notes
    assert joined(tmp_path, table, id_column=index).labels["unit"].to_list() == [0, 1, None, None]
    with pytest.raises(CohortError, match="has no column of ids beside"):
        joined(tmp_path, pl.DataFrame({index: [1, 2], "unit": ["x", "y"]}))


@pytest.mark.parametrize("parquet", [False, True])
def test_where_the_ids_of_the_cohort_are_text_those_of_the_table_are_as_written_without_blanks(tmp_path, parquet):
    cohort = made(ids=("100", "100E0", "1e2", "2E0"))
    rows = "id,unit,patient\n 100E0 ,x,1E2\n2E0,y,10E1\n"
    table = pl.read_csv(rows.encode(), infer_schema=False) if parquet else rows
    _, _, labels = joined(tmp_path, table, cohort=cohort, group_column="patient")
    assert labels["unit"].to_list() == [None, 0, None, 1]
    assert labels["group"].to_list() == [None, "1E2", None, "10E1"]


def test_a_table_of_few_stays_of_the_cohort_is_a_warning(tmp_path):
    ids = range(1, 6)
    info, _, _ = made()
    cohort = Imported(info, pl.DataFrame({"sample": ids, "step": 0, "hr": 80.0}), pl.DataFrame({"sample": ids}))

    def warnings(rows):
        notes = joined(tmp_path, "id,unit\n" + rows, cohort=cohort).info.notes
        return [note for note in notes if note.startswith("warning: ")]

    assert warnings("1,x\n3,y\n5,y\n") == []
    assert warnings("1,x\n1,x\n3,y\n70,y\n8,y\n,x\n") == [
        "warning: 2 of 5 stays of the cohort have a row in table.csv, matched by its column `id`: `2` has none, and "
        "`70` of the table is none of them; see that it is the table of these stays."
    ]
    assert "`2` has none, and the table has no other ids; see" in warnings("1,x\n3,y\n")[0]


@pytest.mark.parametrize("value", [1.5, 0.1, -2.5, 2.0**53, 1e30, float("inf")])
def test_ids_and_patients_that_are_no_whole_numbers_are_refused(tmp_path, value):
    table = pl.DataFrame({"sample": [1.0, 2.0, value], "unit": ["x", "y", "x"], "patient": [value, None, 3.0]})
    message = r"column `{}` holds 1 numbers that are no ids \(.*\), wanted whole numbers or text"
    with pytest.raises(CohortError, match=message.format("sample")) as caught:
        joined(tmp_path, table)
    assert "\n" not in str(caught.value)
    stays = table.with_columns(sample=pl.Series([1, 2, 3]))
    with pytest.raises(CohortError, match=message.format("patient")):
        joined(tmp_path, stays, group_column="patient")
    nan = stays.with_columns(patient=pl.Series([7.0, float("nan"), 8.0]))
    assert joined(tmp_path, nan, group_column="patient").labels["group"].to_list() == ["7", None, "8", None]


def test_the_order_of_rows_does_not_matter_and_rows_that_repeat_are_counted(tmp_path):
    table = pl.DataFrame({"sample": [1, 2, 3, 9], "unit": ["x", "y", "x", "z"], "patient": ["a", "a", None, "z"]})
    options = {"group_column": "patient", "task": "ward"}
    plain = joined(tmp_path, table, **options)
    write_cohort(tmp_path / "plain", *plain)
    for seed in range(3):
        write_cohort(tmp_path / f"{seed}", *joined(tmp_path, table.sample(4, shuffle=True, seed=seed), **options))
        assert cohort_bytes(tmp_path / f"{seed}") == cohort_bytes(tmp_path / "plain")
    twice = joined(tmp_path, pl.concat([table, table.reverse()]), **options)
    assert twice.labels.equals(plain.labels)
    assert twice.info.dropped["rows of table.csv for task `ward` that repeat another one: left out"] == 3


def test_patients_become_groups(tmp_path):
    rows = "id,unit,patient\n1,x,17\n2,y,17\n3,,\n"
    info, _, labels = joined(tmp_path, rows, group_column="patient")
    assert labels["group"].to_list() == ["17", "17", None, None]
    assert labels["unit"].to_list() == [0, 1, None, None]
    assert NO_PATIENTS not in info.notes
    assert info.notes == (
        "A note.",
        "Labels of table.csv are matched by its column `id`.",
        "Patients (`group`) are column `patient` of table.csv.",
    )
    what = "table.csv for task `unit`"
    assert info.dropped[f"stays without a patient in {what}: each counts as its own group"] == 2
    assert info.dropped[f"stays without a label in {what}: kept, not in the task"] == 1
    assert NO_PATIENTS in joined(tmp_path, rows).info.notes
    again = join_labels(Imported(info, made().series, labels), tmp_path / "table.csv", column="unit", task="more")
    assert [task.name for task in again.info.tasks] == ["mortality", "unit", "more"]
    with pytest.raises(CohortError, match=r"the cohort has the patients already .`group`., so `patient` cannot be"):
        join_labels(again, tmp_path / "table.csv", column="unit", task="third", group_column="patient")


def test_outcomes_within_the_window_are_refused(tmp_path):
    hours = pl.DataFrame({"sample": [1, 2, 3, 4], "unit": ["x", "y", "x", None], "at": [24.0, 30.0, None, 3.0]})
    info, _, labels = joined(tmp_path, hours, time_column="at")
    assert labels["unit"].to_list() == [0, 1, 0, None]
    assert info.notes[-1] == "By `at` of table.csv the first outcome comes 24 h into the stay."
    message = (
        "by column `at` the outcome of 2 stays came before the window of 24 h ends .1, 3., so a model would see it"
    )
    early = hours.with_columns(at=pl.Series([23.99, 30.0, -1.0, 3.0]))
    for times in (pl.col("at"), pl.col("at").cast(pl.String), (pl.col("at") * 3.6e6).cast(pl.Duration("ms"))):
        with pytest.raises(CohortError, match=message):
            joined(tmp_path, early.with_columns(times), time_column="at")
    shorter = made()._replace(info=dataclasses.replace(made().info, steps=23))
    almost = early.with_columns(pl.col("at").abs() + 22)
    assert (
        joined(tmp_path, almost, time_column="at", cohort=shorter).info.notes[-1].endswith("comes 23 h into the stay.")
    )
    late = hours.with_columns(at=pl.lit(timedelta(hours=30)))
    assert joined(tmp_path, late, time_column="at").info.notes[-1].endswith("30 h into the stay.")
    with pytest.raises(CohortError, match="all of column `at` are multiples of 3600"):
        joined(tmp_path, late.with_columns(at=pl.lit(30 * 3600)), time_column="at")
    with pytest.raises(
        CohortError, match=r"multiples of 60, up to 1860, as of times in minutes; .*: divide them by 60"
    ):
        joined(tmp_path, late.with_columns(at=pl.Series([1680, 1740, 1800, 1860])), time_column="at")
    few = joined(tmp_path, late.with_columns(at=pl.Series([60, 120, 120, None])), time_column="at")
    assert few.info.notes[-1].endswith("comes 60 h into the stay.")
    with pytest.raises(CohortError, match=r"`at` is Datetime.*; subtract the start of the stay"):
        joined(tmp_path, late.with_columns(at=pl.lit(0).cast(pl.Datetime)), time_column="at")
    with pytest.raises(CohortError, match="column `at` is String, wanted a duration, or hours as numbers"):
        joined(tmp_path, late.with_columns(at=pl.lit("noon")), time_column="at")
    assert joined(tmp_path, late.with_columns(at=None), time_column="at").info.notes[-1] == (
        "Column `at` of table.csv gives no time of an outcome."
    )


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (CSV, {"column": "ward"}, r"has no column ward; it has stay, unit, patient"),
        (CSV, {"id_column": "id", "group_column": "who"}, r"has no column id, who"),
        (CSV, {"task": "mortality"}, r"the task cannot be called `mortality`: the cohort has a column of that name"),
        (CSV, {"task": "hr"}, r"the task cannot be called `hr`"),
        (CSV, {"task": "age"}, r"the task cannot be called `age`"),
        (CSV, {"task": "group"}, r"the task cannot be called `group`"),
        (CSV, {"task": "^a$"}, r"the task cannot be called `\^a\$`: no column can; choose another .* --label-task"),
        (CSV, {"task": "sample"}, r"the task cannot be called `sample`: the cohort has a column of that name"),
        (
            CSV,
            {"id_column": "patient"},
            r"no id of column `patient` \(a, b, z\) is a stay of the cohort \(1, 2, 3, 4\); name the column of the ids",
        ),
        ("id,unit\n,x\n", {}, r"no id of column `id` \(all empty\) is a stay"),
        ("id,unit\n1,x\n1,y\n", {}, r"several rows that differ \(1\)"),
        ("id,unit\n1,x\n2,y\n1,\n", {}, r"several rows that differ \(1\)"),
        ("id,unit\n1,0.45\n2,1\n", {}, r"column `unit` holds 1 numbers that are no class \(0.45\)"),
        ("id,unit\n1,-1\n2,1\n", {}, r"holds 1 numbers that are no class \(-1\)"),
        ("id,unit\n1,100\n2,1\n", {}, r"goes up to 100, wanted classes from 0 to 99"),
        ("id,unit\n1,x\n2,x\n", {}, r"has 1 different values in these stays, wanted two classes or more"),
        ("id,unit\n1,\n2,\n", {}, r"has 0 different values"),
        ("id,unit\n", {}, r"has columns \(id, unit\) but no rows: wanted one a stay"),
        (pl.DataFrame({"id": [], "unit": []}), {}, r"has columns \(id, unit\) but no rows: wanted one a stay"),
        ("id,unit\r1,x\r2,y\r", {}, r"its lines end in CR alone, wanted LF or CR LF"),
        ("id;unit\n1;x\n", {}, r"the columns are called id;unit; wanted two or more, all different, between commas"),
        ("id,unit, unit\n1,x,y\n", {}, r"the columns are called id, unit, unit"),
        ("id,^unit$\n1,x\n", {}, r"the columns are called id, \^unit\$"),
        ("", {}, r"cannot be read as CSV"),
        ("id,unit\n1,x,3\n", {}, r"cannot be read as CSV"),
        (b"id,unit\n1,\xff\n", {}, r"is neither Parquet nor UTF-8 text"),
        (b"id,unit\n1,\0\n", {}, r"is neither Parquet nor UTF-8 text"),
        (b"PAR1", {}, r"cut short at 4 bytes"),
        (gzip.compress(CSV.encode())[:-12], {}, r"cannot be read to its end"),
        (b"\x1f\x8bnothing", {}, r"cannot be read to its end"),
        (
            pl.DataFrame({"sample": [1.5], "unit": ["x"]}),
            {},
            r"column `sample` holds 1 numbers that are no ids \(1.5\)",
        ),
        (pl.DataFrame({"sample": [True], "unit": ["x"]}), {}, r"column `sample` is Boolean, wanted ids"),
        (pl.DataFrame({"sample": [1, 2], "unit": [[1], [2]]}), {}, r"column `unit` is List\(Int64\), wanted whole"),
        (pl.DataFrame({"sample": [1], "unit": [timedelta(1)]}), {}, r"column `unit` is Duration"),
    ],
)
def test_what_cannot_be_joined_is_one_clear_line(tmp_path, table, options, message):
    cohort = made()
    with pytest.raises(CohortError, match=message) as caught:
        joined(tmp_path, table, cohort=cohort, **options)
    assert "\n" not in str(caught.value)
    assert cohort.info.dropped == {}
    assert cohort.info.read == {"stays": 4}


def test_a_text_of_many_values_is_no_label(tmp_path):
    ids = range(120)
    info, _, _ = made()
    cohort = Imported(info, pl.DataFrame({"sample": ids, "step": 0, "hr": 80.0}), pl.DataFrame({"sample": ids}))
    rows = "".join(f"{number},text {number}\n" for number in ids)
    with pytest.raises(CohortError, match="column `unit` has 120 different values, wanted 100 classes at most"):
        joined(tmp_path, f"id,unit\n{rows}", cohort=cohort)


def test_a_path_that_is_no_file_is_named(tmp_path):
    with pytest.raises(CohortError, match=r"nowhere\.csv does not exist"):
        join_labels(made(), tmp_path / "nowhere.csv", column="unit")
    with pytest.raises(CohortError, match="is no file: wanted a table, CSV or Parquet"):
        join_labels(made(), tmp_path, column="unit")


@pytest.mark.parametrize("kind", ["parquet", "gzip"])
def test_damaged_tables_are_refused_or_read_but_raise_nothing_else(tmp_path, kind):
    path = tmp_path / "table"
    pl.read_csv(CSV.encode()).write_parquet(path) if kind == "parquet" else path.write_bytes(
        gzip.compress(CSV.encode())
    )
    whole = path.read_bytes()
    generator = np.random.default_rng(1)
    for place in range(60):
        data = bytearray(whole)
        if place < 20:
            data = data[: int(generator.integers(1, len(whole)))]
        else:
            data[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            join_labels(made(), path, column="unit")
        except CohortError as error:
            refused = str(error)
        else:
            refused = None
        assert refused is None or "\n" not in refused
        assert refused is not None or place >= 20


def test_the_tables_of_eicu_give_patients_and_another_outcome(tmp_path, eicu):
    """Counted by hand: 127 of the 1,367 stays died in hospital, 16 have no status, and there are 1,146 patients."""
    cohort, folder = eicu
    options = {"column": "hospitaldischargestatus", "group_column": "uniquepid", "task": "hospital_death"}
    info, _, labels = join_labels(cohort, folder / "patient.csv", **options)
    assert info.tasks[-1].classes == ("Alive", "Expired")
    assert labels["hospital_death"].sum() == 127
    assert labels["hospital_death"].null_count() == 16
    assert labels["group"].n_unique() == 1146
    with (folder / "patient.csv").open(newline="") as file:
        status = {int(row["patientunitstayid"]): row["hospitaldischargestatus"] for row in csv.DictReader(file)}
    for sample, code in labels.select("sample", "hospital_death").rows():
        assert status[sample] == ("" if code is None else ("Alive", "Expired")[code])


def test_the_end_of_the_stays_of_eicu_comes_after_their_window(tmp_path, eicu):
    cohort, folder = eicu
    hours = pl.col("unitdischargeoffset").cast(pl.Int64) / 60
    table = pl.read_csv(folder / "patient.csv", infer_schema=False).with_columns(hours=hours)
    options = {
        "column": "unitdischargestatus",
        "task": "unit_death",
        "time_column": "hours",
        "id_column": "patientunitstayid",
    }
    info, _, _ = join_labels(cohort, save(tmp_path, table), **options)
    assert info.notes[-1] == "By `hours` of table.csv the first outcome comes 30.0167 h into the stay."
    longer = cohort._replace(info=dataclasses.replace(cohort.info, steps=48))
    with pytest.raises(CohortError, match="stays came before the window of 48 h ends"):
        join_labels(longer, tmp_path / "table.csv", **options)


def test_the_apache_groups_of_eicu_are_a_task_of_the_stays_for_length_of_stay(tmp_path, eicu):
    """As the notes on the data count: 2,107 of 2,267 stays have a group, 15 of the 19 groups have 16 stays or more."""
    _, folder = eicu
    cohort = read_yaib(folder.parent / "yaib-demo" / "los" / "eicu_demo", outcomes="optional", short="fill")
    path = pl.col("admitdxpath").str.split("|").list
    diagnoses = pl.read_csv(folder / "admissiondx.csv", infer_schema=False).filter(path.get(1) == "All Diagnosis")
    table = diagnoses.select("patientunitstayid", apache=pl.concat_str(path.get(2), path.get(4), separator=" "))
    info, _, labels = join_labels(cohort, save(tmp_path, table), column="apache")
    sizes = labels["apache"].drop_nulls().value_counts()["count"]
    assert (labels.height, sizes.sum(), len(info.tasks[0].classes), (sizes >= 16).sum()) == (2267, 2107, 19, 15)
    with pytest.raises(CohortError, match=r"column `admitdxpath` has .* different values, wanted 100 classes at most"):
        join_labels(cohort, folder / "admissiondx.csv", column="admitdxpath", id_column="patientunitstayid")
    other = table.with_columns(apache=pl.lit("another"))
    with pytest.raises(CohortError, match="2107 of sample have several rows that differ"):
        join_labels(cohort, save(tmp_path, pl.concat([table, other])), column="apache", task="again")
