"""A cohort or a mapping that is written anew: the same tables, counted, with what was asked for and nothing else."""

import numpy as np
import polars as pl
import pytest
from small_cohort import STEPS, load, small_labels, small_series, write_small

from vmapens.cohort.importers import cohort as importer
from vmapens.cohort.importers.cohort import read_cohort
from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE, read_info
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

LONG = """
steps = 6
minutes_per_step = 60
outside = "drop"
[series]
files = "events.parquet"
layout = "long"
sample = "stay"
time = "hour"
time_unit = "hours"
feature = "name"
value = "value"
[labels]
file = "stays.parquet"
sample = "stay"
tasks = ["died"]
"""


def tables(folder):
    return [pl.read_parquet(folder / name) for name in (SERIES_FILE, LABELS_FILE)]


def mapped(folder, text=LONG):
    """Twelve stays with three events each of two features, one of them of step 0 and twice, and one after step 5."""
    folder.mkdir()
    rows = [(stay, hour, name, 10.0 * stay + hour) for stay in range(12) for hour in (0.2, 0.7, 3) for name in "ab"]
    rows += [(stay, 7.0, "a", 1.0) for stay in range(12)] + [(3, 4.0, "a", None)]
    events = pl.DataFrame(rows, schema=["stay", "hour", "name", "value"], orient="row")
    events.write_parquet(folder / "events.parquet")
    labels = pl.DataFrame({"stay": range(2, 14), "died": [stay % 2 for stay in range(12)]})
    labels.write_parquet(folder / "stays.parquet")
    (folder / "own.toml").write_text(text)
    return folder / "own.toml"


@pytest.mark.parametrize("cells", [1 << 26, 3 * STEPS * 3, 1])
def test_a_cohort_written_anew_is_the_same_in_pieces_of_any_size(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_CELLS_AT_ONCE", cells)
    source = write_small(tmp_path / "c")
    write_cohort(tmp_path / "new", *read_cohort(source))
    series, labels = tables(tmp_path / "new")
    assert series.equals(small_series().sort("sample", "step"))
    assert labels.equals(small_labels())
    assert read_info(tmp_path / "new") == read_info(source)


def test_a_mapping_is_counted_and_can_be_trained(tmp_path):
    info = write_cohort(tmp_path / "new", *read_cohort(mapped(tmp_path / "own")))
    series, labels = tables(tmp_path / "new")
    assert labels["sample"].to_list() == list(range(2, 14))
    found = series.filter(sample=5).select("step", "a", "b").rows()
    assert found == [(0, pytest.approx(50.7), pytest.approx(50.7)), (3, 53.0, 53.0)]
    assert info.read == {"rows of mapped labels": 12, "rows of mapped series": 12 * 7 + 1}
    assert info.dropped == {
        "rows of mapped series without a value, or followed by another of their step and feature: left out": 25,
        "samples of the series without a row of labels: left out": 2,
        "samples without a row of the series: kept, missing throughout": 2,
        "series rows outside steps 0 to 5: left out": 12,
    }
    assert series.filter(pl.col("sample") >= 12).rows() == [(12, 0, None, None), (13, 0, None, None)]
    assert len(load(tmp_path / "new").samples) == 12


def test_a_wide_mapping_counts_rows_that_are_merged(tmp_path):
    wide = LONG.replace('layout = "long"\n', "").replace(
        'feature = "name"\nvalue = "value"\n', 'features = ["value"]\n'
    )
    path = mapped(tmp_path / "own", wide)
    write_cohort(tmp_path / "new", *read_cohort(path))
    merged = "rows of mapped series followed by another of their step: the last measured values are kept"
    assert read_info(tmp_path / "new").dropped[merged] == 12 * 6 + 1 - (12 * 2 + 1)


def test_labels_and_keys_of_a_mapping_are_looked_at(tmp_path):
    path = mapped(tmp_path / "own")
    stays = pl.read_parquet(path.parent / "stays.parquet")
    stays.with_columns(died=pl.col("died") + 0.5).write_parquet(path.parent / "stays.parquet")
    with pytest.raises(CohortError, match="labels of `died` are no class"):
        write_cohort(tmp_path / "new", *read_cohort(path))
    stays.write_parquet(path.parent / "stays.parquet")
    path.write_text(LONG.replace('outside = "drop"\n', ""))
    with pytest.raises(CohortError, match="have a step outside 0 to 5"):
        read_cohort(path)
    assert not (tmp_path / "new").exists()


def test_a_split_can_be_dropped(tmp_path):
    split = pl.Series("split", ["train", "train", "valid", "test"] * 10)
    source = write_small(tmp_path / "c", labels=small_labels().with_columns(split))
    info = write_cohort(tmp_path / "new", *read_cohort(source, drop_split=True))
    assert "split" not in tables(tmp_path / "new")[1].columns
    assert info.notes == ("The split of the source was dropped: training draws one.",)
    assert not np.array_equal(load(tmp_path / "new").split, load(source).split)
    with pytest.raises(CohortError, match="brings no split: there is none to drop"):
        read_cohort(tmp_path / "new", drop_split=True)


def test_a_warning_that_is_there_is_not_said_twice(tmp_path):
    died = small_labels()["died"].to_numpy()
    shift = pl.Series("hr", np.repeat(died * 1000.0, STEPS))
    keys = pl.DataFrame({"sample": np.repeat(np.arange(1, 41), STEPS), "step": np.tile(np.arange(STEPS), 40)})
    series = keys.with_columns(shift + pl.Series(range(240)), map=pl.lit(1.0), lactate=pl.lit(None, pl.Float32))
    source = write_small(tmp_path / "c", series=series)
    first = write_cohort(tmp_path / "new", *read_cohort(source))
    assert len(first.notes) == 1
    assert first.notes[0].startswith("warning: `hr`") or "of `hr`" in first.notes[0]
    assert write_cohort(tmp_path / "again", *read_cohort(tmp_path / "new")).notes == first.notes


def test_the_listener_hears_of_every_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(importer, "_CELLS_AT_ONCE", 200)
    heard = []

    class Listener:
        def start(self, amount):
            heard.append(amount)

        def advance(self, amount):
            heard.append(-amount)

        def say(self, line):
            raise AssertionError(line)

    write_cohort(tmp_path / "new", *read_cohort(write_small(tmp_path / "c"), listener=Listener()))
    assert heard[0] == 40
    assert sum(heard) == 0
    assert len(heard) > 3
