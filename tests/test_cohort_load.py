"""From a cohort folder to tensors: what comes out, and one clear line for each way in which it cannot."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from small_cohort import NAMES, STEPS, TASK, load, small_labels, small_series, write_small

from benchmarks.loading import measure
from vmapens.cohort.load import raw_values
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE, Task
from vmapens.cohort.tables import open_tables
from vmapens.errors import CohortError


def plain_values(series, samples):
    """The measured values, one row of the table after another; NaN elsewhere."""
    x = np.full((len(samples), STEPS, len(NAMES)), np.nan, dtype=np.float32)
    for row in series.iter_rows(named=True):
        for column, name in enumerate(NAMES):
            if row[name] is not None and str(row["sample"]) in samples:
                x[samples.index(str(row["sample"])), row["step"], column] = row[name]
    return x


def plain_fill(x):
    filled = x.copy()
    for step in range(1, x.shape[1]):
        gap = np.isnan(filled[:, step])
        filled[:, step][gap] = filled[:, step - 1][gap]
    return filled


def same(a, b):
    return a.x.equal(b.x) and a.observed.equal(b.observed) and a.y.equal(b.y) and a.samples == b.samples


@pytest.fixture
def cohort(tmp_path):
    return load(write_small(tmp_path / "cohort"))


def test_every_value_is_at_its_place(cohort):
    values = plain_values(small_series(), list(cohort.samples))
    assert cohort.x.dtype == torch.float32
    np.testing.assert_array_equal(cohort.observed.numpy(), ~np.isnan(values))
    rows = torch.arange(len(cohort.samples))
    # x is rounded to float32 at about 1 SD = 10 around a mean of 50.
    np.testing.assert_allclose(raw_values(cohort, rows).numpy(), plain_fill(values), atol=2e-5)
    assert not cohort.x[torch.from_numpy(np.isnan(plain_fill(values)))].any()
    train = plain_fill(values)[cohort.rows("train").numpy()]
    np.testing.assert_allclose(cohort.features["mean"].to_numpy(), np.nanmean(train, axis=(0, 1), dtype=np.float64))
    np.testing.assert_allclose(cohort.features["std"].to_numpy(), np.nanstd(train, axis=(0, 1), dtype=np.float64))


def test_ids_are_sorted_as_numbers_and_labels_follow(cohort):
    assert cohort.samples == tuple(str(i) for i in range(1, 41))
    assert cohort.y.tolist() == small_labels()["died"].to_list()
    assert cohort.y.dtype == torch.int64
    assert cohort.features.columns == ["index", "feature", "unit", "group", "mean", "std"]
    assert cohort.task == TASK
    rows = torch.cat([cohort.rows(name) for name in ("train", "valid", "test")])
    assert sorted(rows.tolist()) == list(range(40))
    with pytest.raises(ValueError, match="wanted one of train, valid, test"):
        cohort.rows("tset")


def test_shuffled_rows_give_the_same_tensors(tmp_path, cohort):
    series = small_series().sample(fraction=1, shuffle=True, seed=1)
    labels = small_labels().sample(fraction=1, shuffle=True, seed=2)
    other = load(write_small(tmp_path / "b", series, labels))
    assert same(cohort, other)
    assert (cohort.split == other.split).all()
    assert cohort.fingerprint != other.fingerprint


@pytest.mark.parametrize("kind", [pl.Int32, pl.String])
def test_ids_may_be_numbers_or_text(tmp_path, cohort, kind):
    tables = [frame.with_columns(pl.col("sample").cast(kind)) for frame in (small_series(), small_labels())]
    assert same(cohort, load(write_small(tmp_path / "b", *tables)))


def test_nan_counts_as_missing(tmp_path, cohort):
    series = small_series().with_columns(pl.col(NAMES).fill_null(float("nan")))
    assert same(cohort, load(write_small(tmp_path / "b", series)))


def test_columns_are_read_in_any_batches(tmp_path, cohort, monkeypatch):
    monkeypatch.setattr("vmapens.cohort.grid.COLUMNS_AT_ONCE", 2)
    assert same(cohort, load(tmp_path / "cohort"))


def test_only_samples_with_a_label_of_the_task_are_taken(tmp_path):
    labels = small_labels().with_columns(died=pl.when(pl.col("sample") % 5 > 0).then(pl.col("died")))
    cohort = load(write_small(tmp_path / "b", labels=labels))
    assert cohort.samples == tuple(str(i) for i in range(1, 41) if i % 5)


def test_labels_may_be_whole_floats_or_truth_values(tmp_path, cohort):
    for number, kind in enumerate((pl.Float64, pl.Boolean, pl.Int8)):
        labels = small_labels().with_columns(pl.col("died").cast(kind))
        assert same(cohort, load(write_small(tmp_path / str(number), labels=labels)))


def test_indicators_say_what_was_not_measured(tmp_path, cohort):
    other = load(tmp_path / "cohort", indicators=True)
    assert other.x[:, :, :3].equal(cohort.x)
    assert other.x[:, :, 3:].equal((~cohort.observed).float())
    assert other.observed[:, :, :3].equal(cohort.observed)
    assert other.observed[:, :, 3:].all()
    assert other.features["feature"].to_list()[3:] == ["hr_missing", "map_missing", "lactate_missing"]
    assert other.features["mean"].to_list()[3:] == [0, 0, 0]
    assert other.features["std"].to_list()[3:] == [1, 1, 1]
    assert other.features["index"].to_list() == list(range(6))
    rows = torch.tensor([3, 0])
    assert raw_values(other, rows)[:, :, 3:].equal(other.x[rows][:, :, 3:])


def test_a_static_column_of_the_labels_fills_all_steps(tmp_path):
    info_features = [{"name": name, "unit": "", "group": ""} for name in ("age", *NAMES)]
    labels = small_labels().with_columns(age=pl.when(pl.col("sample") != 7).then(pl.col("sample") * 1.5))
    folder = write_small(tmp_path / "b", labels=labels)
    table = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps(table | {"features": info_features}))
    cohort = load(folder)
    raw = raw_values(cohort, torch.arange(40))[:, :, 0]
    want = np.arange(1, 41)[:, None] * np.full(STEPS, 1.5)
    want[6] = np.nan
    np.testing.assert_allclose(raw.numpy(), want, atol=1e-4)
    assert cohort.observed[:6, :, 0].all()
    assert not cohort.observed[6, :, 0].any()


def test_a_changed_cell_changes_the_fingerprint(tmp_path):
    first = open_tables(write_small(tmp_path / "a")).fingerprint
    assert open_tables(write_small(tmp_path / "same")).fingerprint == first
    series = small_series()
    changed = series.with_columns(hr=pl.when(pl.int_range(pl.len()) == 5).then(pl.col("hr") + 1).otherwise("hr"))
    assert open_tables(write_small(tmp_path / "b", changed)).fingerprint != first


def with_groups(groups):
    return small_labels().with_columns(group=pl.Series(groups))


def same_patient(cohort):
    """Which pairs of samples are of one patient."""
    ids = list(cohort.samples)
    return {(ids[i], ids[j]) for i in range(len(ids)) for j in range(i) if cohort.patient[i] == cohort.patient[j]}


def test_without_groups_each_sample_is_a_patient(cohort):
    assert cohort.patient.tolist() == list(range(40))


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_samples_of_a_group_are_of_one_patient(tmp_path, kind):
    groups = pl.Series([min(i, 3) if i < 5 else i for i in range(40)]).cast(kind)
    cohort = load(write_small(tmp_path / "b", labels=with_groups(groups)))
    assert same_patient(cohort) == {("5", "4")}
    assert len(set(cohort.patient.tolist())) == 39
    shuffled = with_groups(groups).sample(fraction=1, shuffle=True, seed=3)
    again = load(write_small(tmp_path / "c", labels=shuffled))
    assert (again.patient == cohort.patient).all()


def test_samples_without_a_group_are_patients_of_their_own(tmp_path):
    """Whatever the numbers of the groups that there are."""
    groups = [None if i % 2 else i % 4 for i in range(40)]
    cohort = load(write_small(tmp_path / "b", labels=with_groups(groups)))
    counts = np.unique(cohort.patient, return_counts=True)[1]
    assert sorted(counts.tolist()) == [1] * 20 + [10, 10]
    alone = cohort.patient[1::2]
    assert len(set(alone.tolist())) == 20
    assert not set(alone.tolist()) & set(cohort.patient[::2].tolist())
    all_null = load(write_small(tmp_path / "c", labels=with_groups(pl.Series([None] * 40, dtype=pl.String))))
    assert sorted(all_null.patient.tolist()) == list(range(40))


def test_patients_are_those_of_the_samples_that_have_a_label(tmp_path):
    labels = with_groups([i // 2 for i in range(40)])
    labels = labels.with_columns(died=pl.when(pl.col("sample") % 7 > 0).then(pl.col("died")))
    cohort = load(write_small(tmp_path / "b", labels=labels))
    assert len(cohort.patient) == len(cohort.samples) == 35
    assert ("2", "1") in same_patient(cohort)
    assert ("8", "7") not in same_patient(cohort)
    assert sorted(set(cohort.patient.tolist())) == list(range(20))


def test_unmatched_samples_are_named_kept_or_dropped(tmp_path):
    series = small_series().filter(~pl.col("sample").is_in([3, 20]))
    labels = small_labels().filter(pl.col("sample") != 11)
    folder = write_small(tmp_path / "b", series, labels)
    with pytest.raises(CohortError) as caught:
        load(folder)
    assert "2 samples are in the labels only (3, 20) and 1 samples are in the series only (11)" in str(caught.value)
    assert "--unmatched keep" in str(caught.value)
    kept = load(folder, unmatched="keep")
    assert set(map(str, range(1, 41))) - set(kept.samples) == {"11"}
    assert not kept.x[kept.samples.index("3")].any()
    assert not kept.observed[kept.samples.index("3")].any()
    assert [warning.split(" ", 2)[:2] for warning in kept.warnings] == [["1", "samples"], ["2", "samples"], ["2", "of"]]
    dropped = load(folder, unmatched="drop")
    assert set(map(str, range(1, 41))) - set(dropped.samples) == {"3", "11", "20"}
    assert "2 samples without a series were left out (3, 20)" in dropped.warnings[1]


def at(row, **changes):
    """Values changed in one row of the series."""
    here = pl.int_range(pl.len()) == row
    return small_series().with_columns(
        pl.when(here).then(pl.lit(value, dtype=kind)).otherwise(name).alias(name)
        for name, value in changes.items()
        for kind in [small_series().schema[name]]
    )


BAD_SERIES = {
    "a text feature": (
        small_series().cast({"map": pl.String}),
        r"1 feature columns are not numbers \(map is String\)",
    ),
    "a missing feature": (small_series().drop("map", "hr"), r"2 of 3 features have no column \(hr, map\)"),
    "no sample": (small_series().drop("sample"), "the series have no column `sample`"),
    "a float sample": (
        small_series().cast({"sample": pl.Float64}),
        "`sample` of the series is Float64, wanted text or",
    ),
    "a text sample": (small_series().cast({"sample": pl.String}), "String in the series but Int64 in the labels"),
    "no step": (small_series().drop("step"), "the series have no column `step`"),
    "a float step": (small_series().cast({"step": pl.Float64}), "`step` is Float64, wanted whole numbers"),
    "a null sample": (at(4, sample=None), "1 rows of the series have no `sample`"),
    "a null step": (at(4, step=None), "1 rows of the series have a step outside 0 to 5"),
    "a late step": (at(0, step=6), r"1 rows .* outside 0 to 5 \(from 6 to 6; samples 1\); correct or remove"),
    "an early step": (at(0, step=-1), r"outside 0 to 5 \(from -1 to -1; samples 1\)"),
    "a huge step": (at(0, step=0).cast({"step": pl.Int64}).with_columns(pl.col("step") + 2**40), "outside 0 to 5"),
    "a duplicate": (
        pl.concat([small_series(), small_series().filter(pl.col("sample") == 9)[:1]]),
        r"1 pairs of sample and step have several rows in the series \(samples 9\)",
    ),
    "an infinity": (
        at(2, map=float("inf"), hr=float("-inf")),
        r"2 features hold values that are infinite or beyond float32 \(hr: 1, map: 1\)",
    ),
    "beyond float32": (
        small_series().cast({"map": pl.Float64}).with_columns(map=pl.lit(1e39)),
        r"1 features hold values that are infinite or beyond float32 \(map: ",
    ),
}


@pytest.mark.parametrize("case", BAD_SERIES)
def test_bad_series_are_refused(tmp_path, case):
    series, text = BAD_SERIES[case]
    with pytest.raises(CohortError, match=text) as caught:
        load(write_small(tmp_path / "c", series))
    assert "\n" not in str(caught.value)


BAD_LABELS = {
    "half a class": (
        small_labels().with_columns(died=pl.col("died") / 2),
        r"14 labels of `died` are no class \(values 0.5; samples 1, 4, 7, 10, 13, ...\), wanted whole numbers",
    ),
    "a negative class": (small_labels().with_columns(pl.col("died") - 1), r"26 labels .* \(values -1; "),
    "a class too many": (small_labels().with_columns(pl.col("died") * 2), r"14 labels .* \(values 2; "),
    "a text": (
        small_labels().cast({"died": pl.String}),
        "the labels of `died` are String, wanted whole numbers from 0",
    ),
    "a null sample": (
        small_labels().with_columns(sample=pl.when(pl.col("sample") > 2).then("sample")),
        "2 rows of the labels have no `sample`",
    ),
    "a duplicate": (
        pl.concat([small_labels(), small_labels()[7:9]]),
        r"2 samples have several rows in the labels \(8, 9\), wanted one each",
    ),
    "no label": (
        small_labels().with_columns(died=pl.lit(None, dtype=pl.Int64)),
        "no sample has a label of `died`; choose another task",
    ),
    "no column": (small_labels().rename({"died": "dead"}), r"1 tasks have no column in the labels \(died\)"),
    "one class": (small_labels().with_columns(died=0), "split `train` has 28 samples of class 0"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_refused(tmp_path, case):
    labels, text = BAD_LABELS[case]
    with pytest.raises(CohortError, match=text) as caught:
        load(write_small(tmp_path / "c", labels=labels))
    assert "\n" not in str(caught.value)


def test_an_unknown_task_is_refused(tmp_path):
    folder = write_small(
        tmp_path / "c",
        tasks=(TASK, Task("los", "multiclass", ("short", "long", "endless"))),
        labels=small_labels().with_columns(los=0),
    )
    with pytest.raises(CohortError, match="unknown task `dead`: this cohort has died, los"):
        load(folder, task="dead")


def test_all_problems_of_the_columns_are_said_at_once(tmp_path):
    folder = write_small(tmp_path / "c", small_series().drop("hr").cast({"step": pl.Float32}))
    with pytest.raises(CohortError, match="`step` is Float32, wanted whole numbers; 1 of 3 features have no column"):
        load(folder)


@pytest.mark.parametrize("name", [SERIES_FILE, LABELS_FILE])
def test_files_that_are_not_parquet_are_refused(tmp_path, name):
    folder = write_small(tmp_path / "c")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CohortError, match=rf"{name} is a Parquet file cut short at {len(whole) // 2} bytes"):
        load(folder)
    (folder / name).write_bytes(b"sample,step\n1,2\n")
    with pytest.raises(CohortError, match=rf"{name} is not a Parquet file: it starts with b'samp'"):
        load(folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(CohortError, match="is not a Parquet file"):
        load(folder)
    (folder / name).write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[len(whole) // 2 + 4 :])
    with pytest.raises(CohortError, match=r"cannot be read|the tables cannot be read"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(CohortError, match=f"{name} does not exist"):
        load(folder)


def test_what_is_no_cohort_is_refused(tmp_path):
    with pytest.raises(CohortError, match=r"nowhere does not exist: wanted a cohort folder, or a .toml file"):
        load(tmp_path / "nowhere")
    with pytest.raises(CohortError, match="is not a cohort; make one with `vmapens import`"):
        load(tmp_path)
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(CohortError, match=r"a\.csv is no cohort: wanted a folder with cohort.json, or a .toml file"):
        load(tmp_path / "a.csv")


def test_loading_takes_little_memory_beyond_the_tensor():
    """The bound at paper size is 2.5; the fixed costs weigh more here, at a fifth of it."""
    assert measure(samples=1000)["ratio"] <= 2.5
