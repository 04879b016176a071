"""What `describe` says of a cohort, counted by hand."""

import json

import polars as pl
import pytest
from small_cohort import NAMES, STEPS, TASK, small_labels, small_series, write_small

from vmapens.cohort.describe import describe_cohort
from vmapens.cohort.schema import Task
from vmapens.errors import CohortError


@pytest.fixture
def folder(tmp_path):
    series = small_series().with_columns(
        pl.when(pl.col("sample") == 5).then(float("nan")).otherwise(pl.col(name)).alias(name) for name in NAMES
    )
    labels = small_labels().with_columns(
        los=pl.when(pl.col("sample") > 10).then(pl.col("sample") % 3),
        split=pl.when(pl.col("sample") < 30).then(pl.lit("train")).otherwise(pl.lit("test")),
        group=pl.col("sample") // 2,
    )
    tasks = (TASK, Task("los", "multiclass", ("short", "long", "endless")))
    counts = {"read": {"rows": 240, "files": 2}, "dropped": {"values outside their range": 12}}
    changes = {**counts, "notes": ("One ward only.", "warning: Beware.")}
    return write_small(tmp_path / "c", series.filter(pl.col("sample") != 6), labels[:-1], tasks=tasks, **changes)


def test_numbers_are_those_counted_by_hand(folder):
    found = describe_cohort(folder)
    assert (found.samples, found.groups, found.steps, found.minutes_per_step) == (39, 20, STEPS, 60)
    assert (found.never_measured, found.without_label) == (2, 1)
    rows = small_series().filter(~pl.col("sample").is_in([5, 6, 40]))
    for name, missing in found.features.select("feature", "missing").iter_rows():
        assert missing == pytest.approx(1 - rows[name].drop_nulls().len() / (39 * STEPS))
    assert found.tasks.rows() == [
        ("died", "binary", 39, ["survived", "died"], [26, 13], pytest.approx(1 / 3)),
        ("los", "multiclass", 29, ["short", "long", "endless"], [10, 9, 10], None),
    ]
    assert found.splits is not None
    assert found.splits.rows() == [("train", 29), ("valid", 0), ("test", 10)]


def test_text_says_it_in_lines(folder):
    text = describe_cohort(folder).text()
    assert text.startswith(f"{folder}: 39 samples of 20 groups, 6 steps of 60 min (6 h), 3 features")
    assert "task died (binary): 39 labelled: survived 26, died 13; prevalence 33.3%" in text
    assert "splits: train 29, valid 0, test 10" in text
    assert "dropped: values outside their range: 12" in text
    assert "\nread: 2 files, 240 rows\n" in text
    assert "\nnote: One ward only.\nwarning: Beware.\n" in text
    assert "\n  lactate  " in text


def test_the_table_goes_through_json(folder):
    found = describe_cohort(folder)
    table = json.loads(json.dumps(found.table()))
    assert table["samples"] == 39
    assert table["splits"] == {"train": 29, "valid": 0, "test": 10}
    assert table["features"][2]["feature"] == "lactate"
    assert table["tasks"][0]["counts"] == [26, 13]
    assert table["fingerprint"] == found.fingerprint


def test_without_splits_it_says_so(tmp_path):
    found = describe_cohort(write_small(tmp_path / "c"))
    assert found.splits is None
    assert found.groups is None
    assert "splits: none given, drawn when training" in found.text()


def test_wrong_keys_are_refused(tmp_path):
    series = small_series().with_columns(pl.col("step") + 1)
    with pytest.raises(CohortError, match="have a step outside 0 to 5"):
        describe_cohort(write_small(tmp_path / "c", series))
