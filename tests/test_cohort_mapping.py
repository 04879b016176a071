"""Any Parquet files through a TOML mapping: each layout gives what the cohort folder gives."""

import datetime
import re
import textwrap

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import NAMES, load, small_labels, small_series, write_small

from vmapens.cohort import mapping
from vmapens.cohort.describe import describe_cohort
from vmapens.cohort.load import raw_values
from vmapens.cohort.tables import open_tables
from vmapens.errors import CohortError

HEAD = "steps = 6\nminutes_per_step = 60\n"
SERIES = "[series]\nfiles = 'dyn.parquet'\nsample = 'stay'\ntime = 'when'\n"
LABELS = "[labels]\nfile = 'out.parquet'\nsample = 'id'\ntasks = ['died']\n"


def write_mapping(folder, series, labels=None, text=HEAD + SERIES + "time_unit = 'step'\n" + LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    labels = small_labels().rename({"sample": "id"}) if labels is None else labels
    series.write_parquet(folder / "dyn.parquet")
    labels.write_parquet(folder / "out.parquet")
    path = folder / "mapping.toml"
    path.write_text(text)
    return path


def named(series):
    return series.rename({"sample": "stay", "step": "when"})


def long(series):
    return series.unpivot(index=["stay", "when"], variable_name="code", value_name="number").drop_nulls()


def same(a, b):
    return a.x.equal(b.x) and a.observed.equal(b.observed) and a.y.equal(b.y) and a.samples == b.samples


@pytest.fixture
def folder(tmp_path):
    return load(write_small(tmp_path / "cohort"))


HOURS = pl.col("when") + 0.25
DURATION = pl.duration(minutes=pl.col("when").cast(pl.Int64) * 60 + 59)
LAYOUTS = {
    "wide, steps": ("step", pl.col("when").cast(pl.Int16), False),
    "wide, hours": ("hours", HOURS, False),
    "wide, milliseconds": ("duration", DURATION.cast(pl.Duration("ms")), False),
    "wide, nanoseconds": ("duration", DURATION.cast(pl.Duration("ns")), False),
    "long, steps": ("step", pl.col("when"), True),
    "long, hours": ("hours", HOURS.cast(pl.Float32), True),
    "long, microseconds": ("duration", DURATION.cast(pl.Duration("us")), True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 16])
def test_each_layout_gives_what_the_folder_gives(tmp_path, folder, layout, batch, monkeypatch):
    monkeypatch.setattr("vmapens.cohort.grid.COLUMNS_AT_ONCE", batch)
    unit, when, is_long = LAYOUTS[layout]
    rows = named(small_series()).with_columns(when=when)
    text = HEAD + SERIES + f"time_unit = '{unit}'\nfeatures = ['hr', 'map', 'lactate']\n"
    if is_long:
        rows, text = long(rows), text + "layout = 'long'\nfeature = 'code'\nvalue = 'number'\n"
    rows = rows.sample(fraction=1, shuffle=True, seed=0)
    cohort = load(write_mapping(tmp_path / "m", rows, text=text + LABELS))
    assert same(cohort, folder)
    assert cohort.features["feature"].to_list() == list(NAMES)
    assert cohort.task.kind == "binary"


minutes = st.integers(0, 6 * 60 - 1)
measurements = st.lists(
    st.tuples(st.integers(1, 3), minutes, st.sampled_from(NAMES), st.integers(0, 4).map(float)), min_size=1, max_size=40
)


@settings(max_examples=25, deadline=None)
@given(rows=measurements, is_long=st.booleans(), seed=st.integers(0, 9))
def test_the_last_value_of_a_step_wins_and_ties_go_to_the_larger(tmp_path_factory, rows, is_long, seed):
    want = {}
    for stay, minute, name, value in rows:
        key = (stay, minute // 60, name)
        want[key] = max(want.get(key, (-1, -1.0)), (minute, value))
    table = pl.DataFrame(rows, schema=["stay", "when", "code", "number"], orient="row")
    table = table.sample(fraction=1, shuffle=True, seed=seed).with_columns(when=pl.duration(minutes="when"))
    extra = f"time_unit = 'duration'\nfeatures = {list(NAMES)}\n"
    if is_long:
        extra = extra.replace(str(list(NAMES)), str(sorted(table["code"].unique().to_list())))
        extra += "layout = 'long'\nfeature = 'code'\nvalue = 'number'\n"
    else:
        value = {name: pl.when(pl.col("code") == name).then("number").otherwise(float("nan")) for name in NAMES}
        table = table.select("stay", "when", **value)
    path = write_mapping(tmp_path_factory.mktemp("ties"), table, text=HEAD + SERIES + extra + LABELS)
    got = open_tables(path).series.collect().unpivot(index=["sample", "step"]).drop_nulls()
    assert {row[:3]: row[3] for row in got.iter_rows()} == {
        (stay, step, name): value for (stay, step, name), (_, value) in want.items()
    }


def test_the_example_of_the_documentation_runs(tmp_path):
    """YAIB's files, as the module docstring maps them; then the same as a long table."""
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", mapping.__doc__)
    example, long_keys = (textwrap.dedent(block) for block in blocks)
    generator = np.random.default_rng(0)
    stays = pl.int_range(60, 0, -1, eager=True)
    rows = pl.DataFrame({"stay_id": stays}).join(pl.DataFrame({"hour": range(-1, 49)}), how="cross")
    rows = rows.with_columns(
        time=pl.duration(hours="hour").cast(pl.Duration("ms")),
        hr=pl.Series(generator.normal(80, 9, len(rows))),
        map=pl.Series(generator.normal(70, 9, len(rows))),
        resp=1.0,
    ).drop("hour")
    (tmp_path / "dyn").mkdir()
    rows[:900].write_parquet(tmp_path / "dyn" / "0.parquet")
    rows[900:].write_parquet(tmp_path / "dyn" / "1.parquet")
    fold = pl.Series([("train", "val", "held_out", "train")[stay % 4] for stay in stays])
    outcome = pl.DataFrame({"stay_id": stays, "label": stays % 3 == 0, "patient_id": stays // 8, "fold": fold})
    outcome.write_parquet(tmp_path / "outc.parquet")
    pl.DataFrame({"stay_id": stays, "age": stays + 20, "sex": "F"}).write_parquet(tmp_path / "sta.parquet")
    path = tmp_path / "mapping.toml"
    path.write_text(example)

    cohort = load(path, task="mortality")
    assert cohort.x.shape == (60, 48, 3)
    assert cohort.features.select("feature", "unit", "group").rows() == [
        ("hr", "/min", "circulation"),
        ("map", "", ""),
        ("age", "", ""),
    ]
    assert cohort.task.classes == ("survived", "died")
    assert cohort.info.dropped == {"series rows outside steps 0 to 47: left out": 120}
    assert cohort.info.licence == "ODbL 1.0"
    assert (cohort.split == "valid").sum() == 15
    assert any("groups are in several splits" in warning for warning in cohort.warnings)
    assert raw_values(cohort, torch.tensor([4]))[0, :, 2].round().tolist() == [25.0] * 48
    description = describe_cohort(path)
    assert description.groups == 8
    assert description.features["missing"].to_list() == [0, 0, 0]

    measured = rows.unpivot(index=["stay_id", "time"], variable_name="code", value_name="numeric_value")
    for old in (tmp_path / "dyn").iterdir():
        old.unlink()
    measured.write_parquet(tmp_path / "dyn" / "long.parquet")
    path.write_text(example.replace('layout = "wide"', long_keys))
    assert same(load(path, task="mortality"), cohort)


def test_features_default_to_every_other_number(tmp_path):
    rows = named(small_series()).with_columns(note=pl.lit("x"), count=1)
    assert [f.name for f in open_tables(write_mapping(tmp_path, rows)).info.features] == [*NAMES, "count"]


def test_the_row_numbers_of_pandas_are_a_feature_only_if_named(tmp_path):
    index = "__index_level_0__"
    text = HEAD + "[static]\nfile = 'sta.parquet'\nsample = 'id'\n" + SERIES + "time_unit = 'step'\n" + LABELS
    path = write_mapping(tmp_path, named(small_series()).with_row_index(index), text=text)
    ages = small_labels().select(pl.col("sample").alias("id"), age=50.0)
    ages.with_row_index(index).write_parquet(tmp_path / "sta.parquet")
    assert [f.name for f in open_tables(path).info.features] == [*NAMES, "age"]
    path.write_text(text.replace(SERIES, f"{SERIES}features = ['hr', '{index}']\n"))
    assert [f.name for f in open_tables(path).info.features] == ["hr", index, "age"]


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["b", "a", "c"], "multiclass", ("a", "b", "c")),
        (["yes", "no", None], "binary", ("no", "yes")),
        (["yes", "no", "NA"], "binary", ("no", "yes")),
        (["yes", "None", "<NA>"], "binary", ("None", "yes")),
        ([True, False, False], "binary", ("false", "true")),
        ([0, 3, 1], "multiclass", ("0", "1", "2", "3")),
        ([0.0, 1.0, float("nan")], "binary", ("0", "1")),
    ],
)
def test_classes_are_inferred(tmp_path, values, kind, classes):
    labels = pl.DataFrame({"id": [1, 2, 3], "died": values}, strict=False)
    (task,) = open_tables(write_mapping(tmp_path, named(small_series()), labels)).info.tasks
    assert (task.kind, task.classes) == (kind, classes)


def test_a_word_for_nothing_is_no_label_unless_the_classes_list_it(tmp_path):
    labels = pl.DataFrame({"id": [1, 2, 3, 4], "died": ["yes", "NA", "no", "nan"]})
    text = HEAD + SERIES + "time_unit = 'step'\n" + LABELS.replace("tasks = ['died']\n", "")
    for classes, codes in ((["no", "yes"], [1, None, 0, None]), (["no", "yes", "NA"], [1, 2, 0, None])):
        given = f"{text}[labels.tasks.died]\nclasses = {classes}\n"
        tables = open_tables(write_mapping(tmp_path, named(small_series()), labels, given))
        assert tables.info.tasks[0].classes == tuple(classes)
        assert tables.labels.sort("sample")["died"].to_list() == codes


def test_rows_outside_the_grid_are_an_error_or_dropped_and_counted(tmp_path, folder):
    before = small_series().filter(pl.col("step") == 3).with_columns(step=pl.lit(-1, dtype=pl.Int32))
    rows = named(pl.concat([small_series(), before]))
    with pytest.raises(CohortError, match=r'40 rows .* outside 0 to 5 .*map the files with outside = "drop"'):
        load(write_mapping(tmp_path / "a", rows))
    text = "outside = 'drop'\n" + HEAD + SERIES + "time_unit = 'step'\n" + LABELS
    cohort = load(write_mapping(tmp_path / "b", rows, text=text))
    assert same(cohort, folder)
    assert cohort.info.dropped == {"series rows outside steps 0 to 5: left out": 40}
    assert describe_cohort(tmp_path / "b" / "mapping.toml").dropped == cohort.info.dropped


def test_a_repeated_whole_step_of_a_wide_table_is_an_error(tmp_path):
    rows = named(pl.concat([small_series(), small_series()[:2]]))
    with pytest.raises(CohortError, match="2 pairs of sample and step have several rows"):
        load(write_mapping(tmp_path, rows))


def test_hours_on_the_edge_of_a_step_belong_to_it(tmp_path):
    rows = pl.DataFrame({"stay": 1, "when": [i * 0.1 for i in range(100)], "hr": [float(i) for i in range(100)]})
    text = "steps = 100\nminutes_per_step = 6\n" + SERIES + "time_unit = 'hours'\n" + LABELS
    got = open_tables(write_mapping(tmp_path, rows, text=text)).series.collect().sort("step")
    assert got["step"].to_list() == list(range(100))


def test_a_change_of_any_file_changes_the_fingerprint(tmp_path):
    path = write_mapping(tmp_path, named(small_series()))
    first = open_tables(path).fingerprint
    path.write_text(path.read_text() + "# a word\n")
    second = open_tables(path).fingerprint
    write_mapping(tmp_path, named(small_series(seed=1)), text=path.read_text())
    assert len({first, second, open_tables(path).fingerprint}) == 3


STATIC = "[static]\nfile = 'out.parquet'\nsample = 'id'\n"
STEP = "time_unit = 'step'\n"
BAD = {
    "no TOML": ("steps = ", "is not a readable TOML file"),
    "no steps": (SERIES + STEP + LABELS, "mapping.toml, the file: `steps` is missing"),
    "half a step": (
        "steps = 4.5\n" + HEAD[10:] + SERIES + STEP + LABELS,
        "steps is 4.5, wanted a whole number above 0",
    ),
    "no minutes": ("steps = 6\nminutes_per_step = 0\n" + SERIES + STEP + LABELS, "0, wanted a number from 1e-06 to"),
    "a misspelt key": (HEAD + SERIES + STEP + "layuot = 'long'\n" + LABELS, r"\[series\]: has unknown keys \(layuot\)"),
    "no series": (HEAD + LABELS, "`series` is missing"),
    "no file": (HEAD + SERIES.replace("dyn", "dny") + STEP + LABELS, "dny.parquet does not exist"),
    "no match": (HEAD + SERIES.replace("dyn", "x/*") + STEP + LABELS, "matches no file in"),
    "no column": (
        HEAD + SERIES.replace("when", "time") + STEP + LABELS,
        "time = `time` is no column of the file; it has",
    ),
    "a wrong unit": (HEAD + SERIES + "time_unit = 'days'\n" + LABELS, "`duration` or `hours` or `step`"),
    "a wrong time": (HEAD + SERIES + "time_unit = 'duration'\n" + LABELS, "column `when` is Int32, which does not go"),
    "no feature": (
        HEAD + SERIES + STEP + "features = ['hr', 'x']\n" + LABELS,
        r"1 features are not in the files \(x\)",
    ),
    "a reserved name": (HEAD + SERIES + STEP + "features = ['step']\n" + LABELS, "are not in the files"),
    "no value": (HEAD + SERIES + STEP + "layout = 'long'\nfeature = 'stay'\n" + LABELS, "`value` is missing"),
    "no tasks": (HEAD + SERIES + STEP + LABELS.replace("['died']", "[]"), "there are no tasks"),
    "no such task": (
        HEAD + SERIES + STEP + LABELS.replace("died", "dead"),
        r"\[labels.tasks.dead\]: column = `dead` is",
    ),
    "a wrong kind": (
        HEAD
        + SERIES
        + STEP
        + LABELS.replace("tasks = ['died']", "[labels.tasks.died]\nkind = 'binary'\nclasses = ['a']"),
        "kind is `binary`, but there are 1 classes",
    ),
    "an unknown feature": (HEAD + SERIES + STEP + LABELS + "[features.x]\nunit = 'u'\n", r"not features of .* \(x\)"),
    "a label as feature": (
        HEAD + SERIES + STEP + LABELS + STATIC + "columns = ['died']\n",
        r"1 columns have a name that is taken \(died\)",
    ),
    "no static column": (HEAD + SERIES + STEP + LABELS + STATIC + "columns = ['age']\n", r"not in the file \(age\)"),
    "not a list": (HEAD + SERIES + STEP + "features = 3\n" + LABELS, "features is 3, wanted a list of texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_mapping_is_refused(tmp_path, case):
    text, message = BAD[case]
    with pytest.raises(CohortError, match=message) as caught:
        open_tables(write_mapping(tmp_path, named(small_series()), text=text))
    assert "\n" not in str(caught.value)


def test_a_missing_mapping_is_refused(tmp_path):
    with pytest.raises(CohortError, match=r"no\.toml does not exist"):
        open_tables(tmp_path / "no.toml")


def test_times_may_be_longer_than_a_year(tmp_path):
    when = pl.Series([datetime.timedelta(days=800)], dtype=pl.Duration("us"))
    rows = pl.DataFrame({"stay": [1], "when": when, "hr": [1.0]})
    text = "steps = 20000\nminutes_per_step = 60\n" + SERIES + "time_unit = 'duration'\n" + LABELS
    assert open_tables(write_mapping(tmp_path, rows, text=text)).series.collect()["step"].to_list() == [19200]


def test_a_label_group_or_split_never_becomes_a_feature_by_default(tmp_path):
    """Neither from the labels file read as a static table, nor from a series that repeats the label."""
    labels = small_labels().rename({"sample": "id"}).with_columns(patient=pl.int_range(pl.len()), age=pl.lit(1.0) * 50)
    series = named(small_series()).with_columns(died=pl.lit(1.0))
    text = (
        HEAD
        + SERIES
        + "time_unit = 'step'\n"
        + LABELS
        + "group = 'patient'\n[static]\nfile = 'out.parquet'\nsample = 'id'\n"
    )
    tables = open_tables(write_mapping(tmp_path, series, labels, text))
    assert [feature.name for feature in tables.info.features] == [*NAMES, "age"]
    with pytest.raises(CohortError, match="died is a label, group or split, which a model must not see"):
        open_tables(write_mapping(tmp_path, series, labels, text.replace("[labels]", "features = ['died']\n[labels]")))


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pl.lit(["a"]).alias("died"), r"wanted numbers, truth values or text"),
        (pl.lit(b"a").alias("died"), r"wanted numbers, truth values or text"),
        (pl.int_range(pl.len()).cast(pl.String).alias("died"), r"120 different texts; if it is a label"),
    ],
)
def test_label_columns_of_other_types_are_refused(tmp_path, column, text):
    labels = pl.DataFrame({"id": [f"stay-{number}" for number in range(120)]}).with_columns(column)
    with pytest.raises(CohortError, match=text):
        open_tables(write_mapping(tmp_path, named(small_series()), labels))
