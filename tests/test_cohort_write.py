"""A cohort is written whole or not at all, from one frame or a stream, and never with the label among its features."""

import numpy as np
import polars as pl
import pytest
from small_cohort import NAMES, STEPS, TASK, load, small_info, small_labels, small_series

from vmapens.cohort import leaks
from vmapens.cohort.schema import SERIES_FILE, Feature, Task, read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

MULTI = Task("kind", "multiclass", ("a", "b", "c"))


def in_frames(series, size=7):
    for first in range(1, 41, size):
        yield series.filter(pl.col("sample").is_between(first, first + size - 1))


def with_feature(values, name="x"):
    """Info, series and labels of the small cohort with one more feature: a value for each sample, at step 3."""
    more = pl.DataFrame({"sample": range(1, 41), "step": pl.Series([3] * 40, dtype=pl.Int32), name: values})
    series = small_series().join(more, on=["sample", "step"], how="left")
    return small_info(features=tuple(map(Feature, (*NAMES, name)))), series, small_labels()


def refused(folder, *imported):
    """The line with which a cohort is refused; nothing is left behind."""
    with pytest.raises(CohortError) as error:
        write_cohort(folder, *imported)
    assert not folder.exists()
    return str(error.value)


def test_a_stream_writes_the_tables_of_one_frame(tmp_path):
    series = small_series()
    write_cohort(tmp_path / "one", small_info(), series.reverse(), small_labels())
    write_cohort(tmp_path / "stream", small_info(), (frame.reverse() for frame in in_frames(series)), small_labels())
    one, stream = (pl.read_parquet(tmp_path / name / SERIES_FILE) for name in ("one", "stream"))
    assert one.equals(stream)
    assert one.schema == stream.schema
    assert one.rows() == sorted(one.rows(), key=lambda row: row[:2])


def test_a_stream_counts_until_its_end_and_counts_of_zero_are_not_written(tmp_path):
    info = small_info(dropped={"nothing": 0})

    def frames():
        for frame in in_frames(small_series()):
            info.dropped["frames"] = info.dropped.get("frames", 0) + 1
            yield frame

    assert write_cohort(tmp_path / "c", info, frames(), small_labels()).dropped == {"frames": 6}
    assert read_info(tmp_path / "c").dropped == {"frames": 6}


def test_a_stream_whose_samples_do_not_ascend_is_a_fault_of_the_importer(tmp_path):
    frames = reversed(list(in_frames(small_series())))
    with pytest.raises(ValueError, match="must ascend: 29 comes after 40"):
        write_cohort(tmp_path / "c", small_info(), frames, small_labels())
    assert not (tmp_path / "c").exists()


def test_a_stream_without_rows_is_refused(tmp_path):
    assert "holds no stay" in refused(tmp_path / "c", small_info(), iter([small_series()[:0]]), small_labels())


def test_a_feature_of_the_labels_is_one_value_for_all_steps(tmp_path):
    age = pl.Series("age", np.random.default_rng(0).normal(60, 10, 40))
    info = small_info(features=(*map(Feature, NAMES), Feature("age")))
    write_cohort(tmp_path / "c", info, small_series(), small_labels().with_columns(age))
    assert "age" not in pl.read_parquet_schema(tmp_path / "c" / SERIES_FILE)
    values = load(tmp_path / "c").x[:, :, 3]
    assert (values == values[:, :1]).all()
    assert values.std() > 0.5


def test_a_patient_in_two_splits_is_refused(tmp_path):
    splits = pl.Series("split", ["train", "test"] * 20)
    labels = small_labels().with_columns(splits, group=(pl.col("sample") - 1) // 2)
    line = refused(tmp_path / "c", small_info(), small_series(), labels)
    assert "20 patients are in several splits (0, 1, 2, 3, 4, ...)" in line
    whole = labels.with_columns(group=(pl.col("sample") - 1) % 2)
    write_cohort(tmp_path / "c", small_info(), small_series(), whole)


@pytest.mark.parametrize(("yes", "no"), [(1.0, 0.0), (0.0, 1.0), (7.5, -2.0)])
def test_a_feature_that_is_the_label_is_refused_by_name(yes, no, tmp_path):
    died = small_labels()["died"].to_list()
    line = refused(tmp_path / "c", *with_feature([yes if label else no for label in died]))
    assert "a model would only copy `x` is the label, in all 40 samples in which it is measured: `died`" in line


def test_a_static_feature_that_is_the_label_is_refused(tmp_path):
    labels = small_labels().with_columns(copy=pl.col("died") * 2.0)
    info = small_info(features=(*map(Feature, NAMES), Feature("copy")))
    assert "`copy` is the label" in refused(tmp_path / "c", info, small_series(), labels)


def test_a_feature_that_only_one_class_has_is_refused(tmp_path):
    generator = np.random.default_rng(0)
    values = [generator.normal() if label else None for label in small_labels()["died"]]
    assert "measured in all samples of one class and in none" in refused(tmp_path / "c", *with_feature(values))


def test_the_classes_of_several_may_each_have_a_value(tmp_path):
    kind = [place % 3 for place in range(40)]
    info, series, labels = with_feature([(5.0, 3.0, 4.0)[k] for k in kind])
    labels = labels.with_columns(kind=pl.Series(kind)).drop("died")
    info = small_info(features=info.features, tasks=(MULTI,))
    assert "`x` is the label" in refused(tmp_path / "c", info, series, labels)


def test_a_feature_that_parts_the_classes_is_said(tmp_path):
    generator = np.random.default_rng(0)
    values = [generator.normal() + 20 * label for label in small_labels()["died"]]
    info = write_cohort(tmp_path / "c", *with_feature(values))
    assert info.notes == (
        "warning: `x` parts the classes without exception: `died`: see that it was known before the outcome.",
    )
    assert read_info(tmp_path / "c") == info


@pytest.mark.parametrize("exception", [0, 1, 39])
def test_one_exception_clears_a_feature(exception, tmp_path):
    died = small_labels()["died"].to_list()
    values = [float(label) for label in died]
    values[exception] = 1 - values[exception]
    assert write_cohort(tmp_path / "c", *with_feature(values)).notes == ()


def test_few_samples_or_a_small_class_give_no_verdict(tmp_path):
    info, series, labels = with_feature([float(label) for label in small_labels()["died"]])
    few = labels.with_columns(pl.when(pl.col("sample") < leaks.LEAST).then("died"))
    assert write_cohort(tmp_path / "few", info, series, few).notes == ()
    rare = labels.with_columns(died=(pl.col("sample") <= 4).cast(pl.Int32))
    copied = series.with_columns(x=pl.when(pl.col("x").is_not_null()).then((pl.col("sample") <= 4).cast(pl.Float64)))
    assert write_cohort(tmp_path / "rare", info, copied, rare).notes == ()


def test_many_features_are_looked_at_a_few_at_a_time(tmp_path):
    names = [f"f{place}" for place in range(40)]
    generator = np.random.default_rng(1)
    noise = pl.DataFrame({name: generator.normal(size=40 * STEPS) for name in names})
    keys = pl.DataFrame({"sample": np.repeat(range(1, 41), STEPS), "step": np.tile(range(STEPS), 40)})
    series = pl.concat([keys, noise], how="horizontal").join(small_labels(), on="sample")
    series = series.with_columns(f17=pl.col("died").cast(pl.Float64), f39=-pl.col("died").cast(pl.Float64))
    info = small_info(features=tuple(map(Feature, names)), tasks=(TASK,))
    line = refused(tmp_path / "c", info, series, small_labels())
    assert "`f17`" in line
    assert "`f39`" in line
    assert "`f16`" not in line
