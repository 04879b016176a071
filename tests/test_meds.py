"""MEDS: the cells and counts of a plain reading, and nothing after the time of the prediction."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_meds import (
    HOUR,
    LATER,
    MICRO,
    NOTHING,
    T0,
    TWICE,
    cells,
    cohort_bytes,
    events,
    imported,
    label_table,
    made,
    plain_reading,
    write_source,
    written,
)

from benchmarks.import_size import measure
from vmapens.cohort.importers import event_grid, meds, meds_events
from vmapens.cohort.importers.meds import read_meds
from vmapens.cohort.load import load_cohort
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError
from vmapens.spec import CohortSpec


@pytest.mark.parametrize("aggregate", ["last", "mean"])
@pytest.mark.parametrize("most_labels", [1, 4])
def test_every_cell_and_count_is_that_of_a_plain_reading(tmp_path, aggregate, most_labels):
    table, labels = made(seed=most_labels, most_labels=most_labels)
    options = {"window": "12h", "every": "3h", "codes": ["re:."], "aggregate": aggregate}
    info, series, _ = imported(tmp_path, table, labels, **options)
    wanted, counts = plain_reading(table, labels, 12 * HOUR, 3 * HOUR, aggregate)
    got = cells(series)
    assert len(wanted) > 200
    assert got.keys() == wanted.keys()
    # A mean may be rounded to float32 from sums of another order.
    assert all(got[cell] == pytest.approx(wanted[cell], rel=2e-7 if aggregate == "mean" else 0) for cell in wanted)
    unseen = "subjects with a label, but without any event: kept, missing throughout"
    assert {what: count for what, count in info.dropped.items() if what != unseen} == counts
    absent = set(labels["subject_id"]) - set(table.drop_nulls(["subject_id", "code"])["subject_id"])
    assert info.dropped.get(unseen, 0) == len(absent)
    assert [feature.name for feature in info.features] == sorted({code for _, _, code in wanted})
    assert (info.steps, info.minutes_per_step) == (4, 180.0)


def test_each_event_is_in_a_cell_or_left_out_for_one_reason(tmp_path):
    table, labels = made(seed=5)
    info, series, _ = imported(tmp_path, table, labels, window="12h", codes=["20%"])
    of_events = sum(count for what, count in info.dropped.items() if what.startswith("events"))
    assert of_events + len(cells(series)) == info.read["events"] == table.height


@pytest.mark.parametrize("most_labels", [1, 4])
def test_the_order_of_rows_and_their_files_change_no_byte(tmp_path, most_labels):
    table, labels = made(seed=3, most_labels=most_labels)
    splits = [(subject, ["train", "tuning", "held_out"][subject % 3]) for subject in range(7, 50)]
    options = {"window": "12h", "codes": ["20%"], "aggregate": "mean"}
    written(write_source(tmp_path / "a", table, labels, splits), tmp_path / "first", **options)
    shuffled = table.sample(fraction=1, shuffle=True, seed=1), labels.sample(fraction=1, shuffle=True, seed=2)
    written(write_source(tmp_path / "b", *shuffled, splits[::-1]), tmp_path / "second", **options)
    first, second = (cohort_bytes(tmp_path / name) for name in ("first", "second"))
    assert first == second
    written(write_source(tmp_path / "c", *shuffled, splits, shards=4), tmp_path / "third", **options)
    third = cohort_bytes(tmp_path / "third")
    assert third["cohort.json"] == first["cohort.json"].replace(b'"files of events": 1', b'"files of events": 4')
    assert {**third, "cohort.json": b""} == {**first, "cohort.json": b""}


def test_the_number_of_threads_changes_no_byte(tmp_path):
    source = write_source(tmp_path / "source", *made(seed=4))
    written(source, tmp_path / "here", window="12h")
    script = (
        "import sys; from pathlib import Path; from vmapens.cohort.importers.meds import read_meds; "
        "from vmapens.cohort.write import write_cohort; source = Path(sys.argv[1]); "
        "write_cohort(Path(sys.argv[2]), *read_meds(source, labels=source / 'labels.parquet', window='12h'))"
    )
    threads = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "there")]
    subprocess.run(command, check=True, env=os.environ | threads, cwd=Path(__file__).parent.parent)
    assert cohort_bytes(tmp_path / "here") == cohort_bytes(tmp_path / "there")


@pytest.mark.parametrize("most_labels", [1, 4])
def test_pieces_of_any_size_give_the_same_tables(tmp_path, monkeypatch, most_labels):
    source = write_source(tmp_path / "source", *made(seed=6, most_labels=most_labels), shards=3)
    whole = written(source, tmp_path / "whole", window="12h", codes=["30%"])
    for module, name, size in (
        (meds, "_EVENTS_AT_ONCE", 50),
        (meds, "_PAIRS_APART", 10),
        (meds_events, "_ROWS_AT_ONCE", 17),
        (event_grid, "_PAIRS_AT_ONCE", 5),
        (event_grid, "_CELLS_AT_ONCE", 100),
    ):
        monkeypatch.setattr(module, name, size)
    parts = written(source, tmp_path / "parts", window="12h", codes=["30%"])
    assert parts[0] == whole[0]
    assert all(one.equals(other) for one, other in zip(parts[1:], whole[1:], strict=True))
    assert pq.read_metadata(tmp_path / "parts" / "series.parquet").num_row_groups > 5


@pytest.mark.parametrize("aggregate", ["last", "mean"])
def test_rows_that_repeat_change_no_table_and_are_counted(tmp_path, aggregate):
    table, labels = made(seed=7)
    options = {"window": "12h", "codes": ["30%"], "aggregate": aggregate}
    once, series, label_rows = written(write_source(tmp_path / "a", table, labels), tmp_path / "once", **options)
    doubled = pl.concat([table, table]), pl.concat([labels, labels])
    twice, *tables = written(write_source(tmp_path / "b", *doubled), tmp_path / "twice", **options)
    assert tables[0].equals(series)
    assert tables[1].equals(label_rows)
    kept = len(cells(series)) + once.dropped.get(LATER, 0) + once.dropped[TWICE]
    if aggregate == "last":
        assert twice.dropped[TWICE] == once.dropped[TWICE] + kept
    assert twice.dropped["rows of the labels that repeat another one: left out"] == labels.height


def test_nothing_after_the_prediction_is_read_and_the_prediction_itself_is(tmp_path):
    end = T0 + 48 * HOUR
    table = events(
        (1, end, "HR", 80.0),
        (1, end + MICRO, "HR", 1e30),
        (1, T0, "HR", -1e30),
        (1, T0 + MICRO, "HR", 61.0),
        (1, T0 + HOUR, "HR", 62.0),
        (1, T0 + HOUR + MICRO, "HR", 63.0),
        (2, end + 5 * HOUR, "HR", 1e30),
        (2, end + 6 * HOUR, "LATER", 1e30),
    )
    labels = label_table([(1, end, True), (2, end, False)])
    info, series, _ = imported(tmp_path, table, labels, codes=["1%"])
    assert cells(series) == {(1, 0, "HR"): 62.0, (1, 1, "HR"): 63.0, (1, 47, "HR"): 80.0}
    assert "1e30" not in str(series)
    assert info.dropped["events after the last prediction_time of their subject: left out"] == 3
    assert info.dropped["events before the window of their subject, or between two windows: left out"] == 1


def test_a_nanosecond_after_the_prediction_is_after_it(tmp_path):
    """Nanoseconds, as pandas writes them, are rounded so that no event seems earlier than it was."""
    end = 10**18 + 123_456_000
    folder = write_source(tmp_path / "source", events(), label_table([(1, T0, True), (2, T0, False)]))
    times = pa.array([end, end + 1, end - 1, end, end - 3_600_000_000_000 * 48], pa.timestamp("ns"))
    columns = {"subject_id": pa.array([1, 1, 2, 3, 2]), "time": times, "code": ["a"] * 5}
    pq.write_table(pa.table(columns | {"numeric_value": [1.0, 9.0, 2.0, 3.0, 9.0]}), folder / "data" / "0.parquet")
    # The label of subject 3 lies within a microsecond, before its event.
    labels = {"subject_id": [1, 2, 3], "prediction_time": pa.array([end, end, end - 1], pa.timestamp("ns"))}
    pq.write_table(pa.table(labels | {"integer_value": [0, 1, 1]}), folder / "labels.parquet")
    _, series, _ = written(folder, tmp_path / "cohort", codes=["a"])
    assert cells(series) == {(1, 47, "a"): 1.0, (2, 47, "a"): 2.0}


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_coarser_times_are_read_as_they_are(tmp_path, unit):
    folder = write_source(tmp_path / "source", events(), label_table([(1, T0, True), (2, T0, False)]))
    ticks = pa.array([T0, T0 + HOUR, T0 - 2 * HOUR], pa.timestamp("us")).cast(pa.timestamp(unit))
    columns = {"subject_id": [1, 1, 2], "time": ticks, "code": ["a"] * 3, "numeric_value": [1, 2, 3]}
    pq.write_table(pa.table(columns), folder / "data" / "0.parquet")
    _, series, _ = written(folder, tmp_path / "cohort", codes=["a"])
    assert cells(series) == {(1, 47, "a"): 1.0, (2, 45, "a"): 3.0}


def test_a_subject_with_several_labels_gives_several_samples_of_one_group(tmp_path):
    table = events((9, T0, "a", 1.0), (10, T0, "a", 2.0), (9, T0 + 24 * HOUR, "a", 3.0))
    labels = label_table([(9, T0 + 30 * HOUR, True), (9, T0 + HOUR + MICRO, False), (10, T0 + HOUR, True)])
    splits = [(9, "train"), (10, "held_out"), (11, "tuning")]
    info, series, rows = imported(tmp_path, table, labels, splits, codes=["a"])
    assert rows.rows() == [
        ("10@2150-03-01T13:00:00", "10", 1, "test"),
        ("9@2150-03-01T13:00:00.000001", "9", 0, "train"),
        ("9@2150-03-02T18:00:00", "9", 1, "train"),
    ]
    assert rows.columns == ["sample", "group", "label", "split"]
    assert cells(series) == {
        ("10@2150-03-01T13:00:00", 46, "a"): 2.0,
        ("9@2150-03-01T13:00:00.000001", 46, "a"): 1.0,
        ("9@2150-03-02T18:00:00", 17, "a"): 1.0,
        ("9@2150-03-02T18:00:00", 41, "a"): 3.0,
    }
    assert any("subject_id@prediction_time" in note for note in info.notes)


def test_windows_find_the_same_events_as_a_loop():
    """Subjects stand in the order of their text (10 before 9), and far times do not overflow."""
    generator = np.random.default_rng(0)
    subject = np.array([10, 10, 10, -3, 9, 9, 200])
    end = np.array([5, 9, 30, 4, 4, 5, 0])
    windows = event_grid.Windows(subject, end, 6)
    whose = generator.choice([10, -3, 9, 200, 8, 201, -4], 500)
    time = np.r_[generator.integers(-10, 40, 496), -(2**63), 2**63 - 1, 2**62, -(2**62)]
    first, stop = windows.holding(windows.group(whose), time)
    for place in range(500):
        holds = [n for n in range(7) if subject[n] == whose[place] and end[n] - 6 < time[place] <= end[n]]
        assert list(range(first[place], stop[place])) == holds


def test_of_two_numbers_at_one_time_the_larger_stays_and_no_zero_is_negative(tmp_path):
    rows = [(1, T0, "a", -0.0), (1, T0, "a", 0.0), (1, T0, "b", 5.0), (1, T0, "b", 7.0), (1, T0 - HOUR / 2, "b", 9.0)]
    labels = label_table([(1, T0, True), (2, T0, False)])
    written(write_source(tmp_path / "a", events(*rows), labels), tmp_path / "1", codes=["re:"])
    _, series, _ = written(write_source(tmp_path / "b", events(*rows[::-1]), labels), tmp_path / "2", codes=["re:"])
    assert cohort_bytes(tmp_path / "1") == cohort_bytes(tmp_path / "2")
    assert cells(series) == {(1, 47, "a"): 0.0, (1, 47, "b"): 7.0}
    assert not np.signbit(series["a"][0])


def test_samples_without_events_are_kept_and_the_cohort_loads(tmp_path):
    table = events(*((subject, T0 - HOUR * (subject % 10), "a", float(subject)) for subject in range(60)))
    labels = label_table([(subject, T0, subject % 2 == 0) for subject in range(70)])
    info, series, rows = imported(tmp_path, table, labels, codes=["a"], window="10h")
    assert info.dropped["subjects with a label, but without any event: kept, missing throughout"] == 10
    assert info.dropped[NOTHING] == 10
    assert rows.height == series.height == 70  # a row for each: loading wants every sample in the series
    cohort = load_cohort(CohortSpec(path=str(tmp_path / "cohort"), task="label"))
    assert tuple(cohort.x.shape) == (70, 10, 1)
    assert int(cohort.observed.sum()) == 60


def test_events_may_be_one_file_or_lie_beside_the_labels(tmp_path):
    table = events((1, T0, "a", 1.0), (2, T0, "a", 2.0)).rename({"numeric_value": "value"})
    labels = label_table([(1, T0, True), (2, T0, False)])
    folder = tmp_path / "folder"
    folder.mkdir()
    table.write_parquet(folder / "events.parquet")
    labels.write_parquet(folder / "labels.parquet")
    info, series, _ = written(folder, tmp_path / "from-folder", codes=["a"])
    assert cells(series) == {(1, 47, "a"): 1.0, (2, 47, "a"): 2.0}
    assert any("column `value`" in note for note in info.notes)
    write_cohort(
        tmp_path / "from-file",
        *read_meds(folder / "events.parquet", labels=folder / "labels.parquet", codes=["a"]),
    )
    assert cohort_bytes(tmp_path / "from-file") == cohort_bytes(tmp_path / "from-folder")


def test_what_the_data_set_says_of_itself_is_kept(tmp_path):
    source = write_source(
        tmp_path / "source",
        events((1, T0, "a", 1.0)),
        label_table([(1, T0, True), (2, T0, False)]),
        [(1, "train"), (2, "tuning")],
    )
    about = source / "metadata" / "dataset.json"
    about.write_text(json.dumps({"dataset_name": "Made", "dataset_version": "0.1", "license": "CC0"}), encoding="utf-8")
    info, *_ = written(source, tmp_path / "cohort", codes=["a"])
    assert info.source.startswith("Made 0.1, in the Medical Event Data Standard")
    assert info.licence == "CC0"
    about.write_text('{"dataset_name": ', encoding="utf-8")
    with pytest.raises(CohortError, match=r"dataset.json cannot be read as JSON"):
        read_meds(source, labels=source / "labels.parquet", codes=["a"])


def test_the_listener_hears_of_every_event_twice(tmp_path):
    class Ear:
        total = done = 0

        def start(self, amount):
            self.total = amount

        def advance(self, amount):
            self.done += amount

        def say(self, line):
            raise AssertionError(line)

    ear = Ear()
    table, labels = made()
    imported(tmp_path, table, labels, window="12h", listener=ear)
    assert ear.total == ear.done == 2 * table.height


def test_the_mimic_demo_agrees_with_sql(tmp_path, shared_data):
    """Labels from its admissions: death in hospital, 48 h after admission, of those that lasted longer."""
    archive = shared_data / "mimic-iv-demo-2.2-meds.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive, "r:xz") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "mimic-iv-demo-2.2"
    stays = pl.read_csv(folder / "admissions.csv", try_parse_dates=True)
    stays = stays.filter(pl.col("dischtime") - pl.col("admittime") > pl.duration(hours=48))
    labels = stays.select(
        "subject_id",
        prediction_time=pl.col("admittime") + pl.duration(hours=48),
        boolean_value=pl.col("hospital_expire_flag") == 1,
    )
    labels.write_parquet(folder / "labels.parquet")
    events_file = folder / "mimic_iv_demo_meds_events.parquet"
    info = write_cohort(
        tmp_path / "cohort", *read_meds(events_file, labels=folder / "labels.parquet", codes=["5%"], task="died")
    )
    series, rows = (pl.read_parquet(tmp_path / "cohort" / f"{name}.parquet") for name in ("series", "labels"))
    assert (rows.height, rows["died"].sum(), rows["group"].n_unique()) == (220, 13, 99)
    assert info.read["events"] == 916_166

    database = duckdb.connect()
    database.execute("SET threads = 1")
    database.execute(f"CREATE VIEW events AS SELECT *, row_number() OVER () AS id FROM '{events_file}'")
    database.execute(
        f"""
        CREATE TABLE hits AS
        SELECT e.id, l.subject_id || '@' || strftime(l.prediction_time, '%Y-%m-%dT%H:%M:%S') AS sample,
            e.subject_id, e.code, e.time, e.value,
            (epoch_us(e.time) - epoch_us(l.prediction_time - INTERVAL 48 HOUR) - 1) // 3600000000 AS step
        FROM '{folder / "labels.parquet"}' l JOIN events e USING (subject_id)
        WHERE e.time <= l.prediction_time AND e.time > l.prediction_time - INTERVAL 48 HOUR
        """
    )
    database.execute(
        """
        CREATE TABLE chosen AS
        SELECT code FROM hits WHERE value IS NOT NULL GROUP BY code HAVING count(DISTINCT sample) >= 0.05 * 220
        """
    )
    wanted = database.execute(
        """
        SELECT sample, step, code, value FROM hits JOIN chosen USING (code) WHERE value IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY sample, step, code ORDER BY time DESC, value DESC) = 1
        """
    ).fetchall()
    assert cells(series) == {row[:3]: row[3] for row in wanted}
    assert len(wanted) > 50_000

    def one(question):
        return database.execute(question).fetchone()[0]

    labelled = f"subject_id IN (SELECT subject_id FROM '{folder / 'labels.parquet'}')"
    last = f"(SELECT max(prediction_time) FROM '{folder / 'labels.parquet'}' l WHERE l.subject_id = e.subject_id)"
    counts = {
        "events of subjects without a label: left out": f"SELECT count(*) FROM events WHERE NOT {labelled}",
        "events without a time (static): left out": f"SELECT count(*) FROM events WHERE time IS NULL AND {labelled}",
        "events after the last prediction_time of their subject: left out": (
            f"SELECT count(*) FROM events e WHERE time > {last}"
        ),
        "events before the window of their subject, or between two windows: left out": (
            f"SELECT count(*) FROM events e WHERE time <= {last} AND id NOT IN (SELECT id FROM hits)"
        ),
        "events in a window without a number: left out": "SELECT count(DISTINCT id) FROM hits WHERE value IS NULL",
        "events in a window of codes that are no feature: left out": (
            "SELECT count(DISTINCT id) FROM hits WHERE value IS NOT NULL AND code NOT IN (SELECT code FROM chosen)"
        ),
        TWICE: (
            "SELECT count(*) - count(DISTINCT (sample, code, time, value)) FROM hits JOIN chosen USING (code) "
            "WHERE value IS NOT NULL"
        ),
        NOTHING: ("SELECT 220 - count(DISTINCT sample) FROM hits JOIN chosen USING (code) WHERE value IS NOT NULL"),
    }
    found = {what: one(question) for what, question in counts.items()}
    assert {what: count for what, count in info.dropped.items() if what != LATER} == found


def test_the_benchmark_of_size_reports_the_importer_alone(tmp_path):
    result = measure("meds", 400_000, tmp_path)
    assert result["samples"] == 20_000
    assert result["peak_mib"] > result["libraries_mib"]
    assert not list(tmp_path.iterdir())
