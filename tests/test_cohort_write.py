"""A cohort is written whole or not at all, from one frame or a stream."""

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from small_cohort import NAMES, load, small_info, small_labels, small_series

from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE, Feature, read_info
from vmapens.cohort.write import Imported, write_cohort
from vmapens.errors import CohortError


def in_frames(series, size=7):
    for first in range(1, 41, size):
        yield series.filter(pl.col("sample").is_between(first, first + size - 1))


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


@pytest.mark.parametrize("values", [(0.5, 1.0), (2.0, 0.0), (-1.0, 1.0)])
def test_a_label_that_is_no_class_is_refused(values, tmp_path):
    labels = small_labels().with_columns(died=pl.Series([values[i % 2] for i in range(40)]))
    assert "labels of `died` are no class" in refused(tmp_path / "c", small_info(), small_series(), labels)


@pytest.mark.parametrize("static", [True, False])
def test_a_value_that_float32_cannot_hold_is_refused_by_name(static, tmp_path):
    values = pl.Series("big", [1e300] + [1.0] * 39)
    info = small_info(features=(*map(Feature, NAMES), Feature("big")))
    series, labels = small_series(), small_labels()
    if static:
        labels = labels.with_columns(values)
    else:
        series = series.join(pl.DataFrame([labels["sample"], values]), on="sample")
    assert "1 features hold values that are infinite or beyond float32 (big)" in refused(
        tmp_path / "c", info, series, labels
    )


def test_features_may_be_left_out(tmp_path):
    info = small_info(features=(*map(Feature, NAMES), Feature("age")))
    imported = Imported(info, small_series(), small_labels().with_columns(age=pl.lit(50.0)))
    written = write_cohort(tmp_path / "c", *imported.without(["age", "map"]))
    assert [feature.name for feature in written.features] == ["hr", "lactate"]
    assert written.notes == ("Feature `age` was left out (--without).", "Feature `map` was left out (--without).")
    assert pl.read_parquet_schema(tmp_path / "c" / SERIES_FILE).names() == ["sample", "step", "hr", "lactate"]
    assert pl.read_parquet(tmp_path / "c" / LABELS_FILE).columns == ["sample", "died"]
    with pytest.raises(CohortError, match="--without names pulse, but the features are hr, map, lactate, age"):
        imported.without(["pulse"])
    with pytest.raises(CohortError, match="names all features"):
        imported.without([*NAMES, "age"])


def test_the_folders_that_were_made_go_with_a_cohort_that_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    labels = small_labels().with_columns(died=pl.lit(7))
    with pytest.raises(CohortError):
        write_cohort(tmp_path / "there" / "a" / "b", small_info(), small_series(), labels)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_what_fails_after_the_series_leaves_nothing(tmp_path):
    labels = small_labels().with_columns(ward=pl.Series([object()] * 40, dtype=pl.Object))
    with pytest.raises(Exception, match=r"(?i)object"):
        write_cohort(tmp_path / "c", small_info(), small_series(), labels)
    assert not (tmp_path / "c").exists()


PROGRAM = """
import sys
import numpy as np, polars as pl
from pathlib import Path
from vmapens.cohort.schema import CohortInfo, Feature, Task
from vmapens.cohort.write import Imported, write_cohort
n = 300_000
info = CohortInfo(1, 60.0, (Feature("x"),), (Task("y", "binary", ("0", "1")),), "made", "none")
series = pl.DataFrame({"sample": range(n), "step": [0] * n, "x": np.random.default_rng(0).normal(size=n)})
write_cohort(Path(sys.argv[1]), info, series, pl.DataFrame({"sample": range(n), "y": [i % 2 for i in range(n)]}))
"""


def test_the_number_of_threads_changes_no_byte(tmp_path):
    """Polars chooses the size of row groups by it unless told."""
    files = []
    for threads in ("1", "16"):
        environment = {**os.environ, "POLARS_MAX_THREADS": threads}
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / threads)], check=True, env=environment)
        files.append([path.read_bytes() for path in sorted((tmp_path / threads).iterdir())])
    assert files[0] == files[1]
