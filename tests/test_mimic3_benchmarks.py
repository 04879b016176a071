"""mimic3-benchmarks: made folders to its layout, against a slow reading by the rules of its `Discretizer`."""

import csv
import random
from unittest.mock import Mock, call

import numpy as np
import polars as pl
import pytest

from vmapens.cohort.importers import mimic3_benchmarks
from vmapens.cohort.importers.mimic3_benchmarks import read_mimic3_benchmarks
from vmapens.cohort.importers.mimic3_channels import CHANNELS
from vmapens.cohort.load import load_cohort
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError
from vmapens.listener import Silence
from vmapens.spec import CohortSpec

NAMES = [channel.name for channel in CHANNELS]
HEAD = ",".join(["Hours", *NAMES])
EYE, MOTOR, TOTAL, VERBAL = NAMES[3:7]
REFILL = NAMES[0]
GOOD = {"7_episode1": 0}, {"8_episode1": 1}
FILE = "train/7_episode1_timeseries.csv"
PHENOTYPES = ["Acute and unspecified renal failure", "Respiratory failure; insufficiency; arrest (adult)", "Shock"]


def row(hours, **values):
    """One line of a file; keys are names of channels, `_` for a space."""
    cells = {name.replace("_", " "): value for name, value in values.items()}
    assert set(cells) <= set(NAMES)
    return ",".join([str(hours), *(str(cells.get(name, "")) for name in NAMES)])


def stay(*rows, head=HEAD):
    return "\n".join([head, *rows]) + "\n"


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def listfile(labels, head="stay,y_true"):
    return "\n".join([head, *(f"{name}_timeseries.csv,{label}" for name, label in labels.items())]) + "\n"


def ihm(train, valid=None, test=None, rows=None):
    """The files of an in-hospital mortality folder; each stay has one heart rate unless `rows` says more."""
    valid, test = valid or {}, test or {"900_episode1": 0}
    rows = rows or {}
    files = {
        f"{folder}/{name}_timeseries.csv": stay(*rows.get(name, [row(0.5, Heart_Rate=80)]))
        for folder, names in (("train", [*train, *valid]), ("test", test))
        for name in names
    }
    files |= {"train/listfile.csv": listfile(train | valid), "test/listfile.csv": listfile(test)}
    if valid:
        files |= {"train_listfile.csv": listfile(train), "val_listfile.csv": listfile(valid)}
        files |= {"test_listfile.csv": listfile(test)}
    return files


def phenotyping(lengths, rows=None):
    head = ",".join(["stay", "period_length", *PHENOTYPES])
    split = {"train": {}, "val": {}, "test": {}}
    for place, (name, length) in enumerate(lengths.items()):
        split[list(split)[place % 3]][name] = f"{length:.7f},{place % 2},0,1"
    files = {f"{name}_listfile.csv": listfile(labels, head) for name, labels in split.items()}
    for name, labels in split.items():
        for sample in labels:
            path = f"{'test' if name == 'test' else 'train'}/{sample}_timeseries.csv"
            files[path] = stay(*(rows or {}).get(sample, [row(0.5, Heart_Rate=80)]))
    return files


def imported(tmp_path, files, name="out", task="ihm", **options):
    """Info, series and labels of a folder made of `files`, through a cohort on disk."""
    source = write(tmp_path / f"{name}-source", files)
    info = write_cohort(tmp_path / name, *read_mimic3_benchmarks(source, task=task, **options))
    series, labels = (pl.read_parquet(tmp_path / name / f"{table}.parquet") for table in ("series", "labels"))
    return info, series, labels


def cohort_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def values(series, sample, feature):
    """The steps of a stay in which a feature is measured."""
    rows = series.filter((pl.col("sample") == sample) & pl.col(feature).is_not_null()).sort("step")
    return dict(zip(rows["step"], rows[feature], strict=True))


def random_rows(rng, rows=60, hours=48.0):
    """Rows as the benchmark writes them, times ascending; both charting systems at random."""
    times = sorted({round(rng.uniform(0, hours), rng.choice([0, 1, 6])) for _ in range(rows)} | {0.0, 1.0, hours})
    lines = []
    for time in times:
        cells = {}
        for channel in CHANNELS:
            if rng.random() < 0.3:
                number = repr(round(rng.uniform(0, 200), 2))
                cells[channel.name.replace(" ", "_")] = rng.choice(list(channel.scores)) if channel.scores else number
        lines.append(row(time, **cells))
    return lines


def slow_bins(path, steps):
    """`Discretizer.transform` for one file: last possible text of each channel and hour in the order of the file."""
    cells = {}
    ranges = {channel.name: (channel.low, channel.high) for channel in CHANNELS if not channel.scores}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            hours = float(line["Hours"])
            if hours > steps + 1e-6:
                continue
            for name in NAMES:
                low, high = ranges.get(name, (0, 0))
                if line[name] != "" and (name not in ranges or low <= np.float32(line[name]) <= high):
                    cells[int(hours / 1.0 - 1e-6), name] = line[name]
    scores = {channel.name: channel.scores for channel in CHANNELS}
    return {
        key: float(scores[key[1]][text]) if scores[key[1]] else float(np.float32(text)) for key, text in cells.items()
    }


@pytest.mark.parametrize("steps", [48, 24, 1])
def test_the_grid_is_that_of_a_slow_reading_by_the_rules_of_the_discretizer(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(mimic3_benchmarks, "_STAYS_AT_ONCE", 3)
    rng = random.Random(steps)
    samples = [f"{subject}_episode{1 + subject % 3}" for subject in range(1, 12)]
    rows = {name: random_rows(rng) for name in samples}
    files = ihm(
        {name: i % 2 for i, name in enumerate(samples[:6])}, {samples[6]: 1}, {samples[7]: 0, samples[8]: 1}, rows
    )
    info, series, labels = imported(tmp_path, files, steps=steps)
    assert series.columns == ["sample", "step", *NAMES]
    assert (series.height, info.steps, info.minutes_per_step) == (9 * steps, steps, 60.0)
    assert series["sample"].to_list() == [name for name in sorted(samples[:9]) for _ in range(steps)]
    assert series["step"].to_list() == list(range(steps)) * 9
    for sample, split in labels.select("sample", "split").rows():
        folder = tmp_path / "out-source" / ("test" if split == "test" else "train")
        long = series.filter(pl.col("sample") == sample).unpivot(index=["sample", "step"]).drop_nulls()
        found = dict(zip(long.select("step", "variable").rows(), long["value"], strict=True))
        assert found == slow_bins(folder / f"{sample}_timeseries.csv", steps), sample
    assert info.read["files of stays"] == 9
    assert info.read["rows of files of stays"] == sum(len(rows[name]) for name in samples[:9])


def test_an_event_at_a_full_hour_is_in_the_step_before(tmp_path):
    times = {0: 1, 0.999: 2, 1.0: 3, 1.000002: 4, 2.0: 5, 48.0: 6, 48.0000005: 7, -0.0000005: 8, 48.5: 9, -0.5: 10}
    rows = [row(time, Heart_Rate=80 + value) for time, value in times.items()]
    info, series, _ = imported(tmp_path, ihm(*GOOD, rows={"7_episode1": rows}))
    assert values(series, "7_episode1", "Heart Rate") == {0: 83, 1: 85, 47: 87}
    assert info.dropped["rows before admission to the unit: left out"] == 1
    assert info.dropped["rows after 48 h: left out"] == 1
    assert info.dropped["values followed by another of the same stay, channel and hour: the last is kept"] == 5


CAREVUE = [
    ("1 No Response", "1 No Response", "1 No Response", "3", "0.0"),
    ("2 To pain", "2 Abnorm extensn", "2 Incomp sounds", "6", "1.0"),
    ("3 To speech", "3 Abnorm flexion", "3 Inapprop words", "9", ""),
    ("4 Spontaneously", "4 Flex-withdraws", "4 Confused", "12", ""),
    ("", "5 Localizes Pain", "5 Oriented", "14", ""),
    ("", "6 Obeys Commands", "1.0 ET/Trach", "15", ""),
]
METAVISION = [
    ("None", "No response", "No Response", "3.0", "0"),
    ("To Pain", "Abnormal extension", "Incomprehensible sounds", "6.0", "1"),
    ("To Speech", "Abnormal Flexion", "Inappropriate Words", "9.0", ""),
    ("Spontaneously", "Flex-withdraws", "Confused", "12.0", ""),
    ("", "Localizes Pain", "Oriented", "14.0", ""),
    ("", "Obeys Commands", "No Response-ETT", "15.0", ""),
]


def test_both_charting_systems_mean_the_same_scores(tmp_path):
    """The whole of each vocabulary, in two stays of the same course."""
    names = (EYE, MOTOR, VERBAL, TOTAL, REFILL)
    rows = {
        sample: [row(hour, **dict(zip(names, texts, strict=True))) for hour, texts in enumerate(system, 1)]
        for sample, system in (("7_episode1", CAREVUE), ("8_episode1", METAVISION))
    }
    info, series, _ = imported(tmp_path, ihm(*GOOD, rows=rows))
    for sample in rows:
        assert values(series, sample, EYE) == dict(enumerate([1, 2, 3, 4]))
        assert values(series, sample, MOTOR) == dict(enumerate([1, 2, 3, 4, 5, 6]))
        assert values(series, sample, VERBAL) == dict(enumerate([1, 2, 3, 4, 5, 1]))
        assert values(series, sample, TOTAL) == dict(enumerate([3, 6, 9, 12, 14, 15]))
        assert values(series, sample, REFILL) == dict(enumerate([0, 1]))
    assert not info.dropped
    assert all(feature.group for feature in info.features)


def test_splits_are_those_of_the_three_listfiles(tmp_path):
    files = ihm({"7_episode1": 0, "7_episode2": 1}, {"8_episode1": 1}, {"9_episode10": 1})
    info, _, labels = imported(tmp_path, files)
    assert labels.columns == ["sample", "group", "split", "mortality"]
    assert labels.rows() == [
        ("7_episode1", "7", "train", 0),
        ("7_episode2", "7", "train", 1),
        ("8_episode1", "8", "valid", 1),
        ("9_episode10", "9", "test", 1),
    ]
    assert [(task.name, task.kind, task.classes) for task in info.tasks] == [
        ("mortality", "binary", ("survived", "died"))
    ]
    assert info.read == {"rows of listfiles": 4, "files of stays": 4, "rows of files of stays": 4}
    assert not any("vmapens drew" in note for note in info.notes)


def test_without_a_validation_listfile_one_is_drawn_from_the_training_subjects(tmp_path):
    train = {
        f"{subject}_episode{1 + k}": subject % 5 == 0 for subject in range(100, 250) for k in range(1 + subject % 2)
    }
    train = {name: int(died) for name, died in train.items()}
    test = {f"{subject}_episode1": subject % 2 for subject in range(900, 920)}
    info, _, labels = imported(tmp_path, ihm(train, test=test))
    assert any("vmapens drew the validation split, 17.6% of" in note for note in info.notes)
    assert set(labels.filter(pl.col("split") == "test")["sample"]) == set(test)
    assert labels.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    valid = labels.filter(pl.col("split") == "valid")
    assert valid.height == pytest.approx(len(train) * 15 / 85, abs=2)
    assert valid["mortality"].sum() == pytest.approx(sum(train.values()) * 15 / 85, abs=2)
    shuffled = dict(random.Random(1).sample(list(train.items()), len(train)))
    *_, again = imported(tmp_path, ihm(shuffled, test=test), name="again")
    assert again.equals(labels)


def test_the_drawn_split_does_not_depend_on_the_window(tmp_path):
    lengths = {f"{subject}_episode1": 10.0 + subject for subject in range(90)}
    files = phenotyping(lengths)
    train = (files.pop("train_listfile.csv") + files.pop("val_listfile.csv").partition("\n")[2]).encode()
    files |= {"train/listfile.csv": train, "test/listfile.csv": files.pop("test_listfile.csv")}
    *_, short = imported(tmp_path, files, task="phenotyping", steps=12)
    *_, long = imported(tmp_path, files, name="long", task="phenotyping", steps=50)
    both = long.join(short, on="sample", suffix="_short")
    assert both.height == long.height < short.height
    assert both["split"].equals(both["split_short"])
    assert set(long["split"]) == {"train", "valid", "test"}


def test_each_phenotype_is_a_binary_task_and_short_stays_are_left_out_or_filled(tmp_path):
    lengths = {"1_episode1": 23.9, "2_episode1": 24.0, "3_episode1": 23.9999995, "4_episode1": 400.25, "5_episode1": 5}
    rows = {"4_episode1": [row(3.5, Glucose=100), row(30, Glucose=300)]}
    info, series, labels = imported(tmp_path, phenotyping(lengths, rows), task="phenotyping", steps=24)
    assert labels["sample"].to_list() == ["2_episode1", "3_episode1", "4_episode1"]
    assert labels.columns == ["sample", "group", "split", *PHENOTYPES]
    assert [(task.name, task.kind) for task in info.tasks] == [(name, "binary") for name in PHENOTYPES]
    assert labels.select(PHENOTYPES).rows() == [(1, 0, 1), (0, 0, 1), (1, 0, 1)]
    assert labels["split"].to_list() == ["valid", "test", "train"]
    assert values(series, "4_episode1", "Glucose") == {3: 100}
    assert info.dropped == {"stays shorter than 24 h: left out": 2, "rows after 24 h: left out": 1}
    assert any("in retrospect" in note for note in info.notes)
    options = {"task": "phenotyping", "steps": 24, "short": "fill"}
    filled, series, labels = imported(tmp_path, phenotyping(lengths, rows), name="filled", **options)
    assert labels["sample"].to_list() == list(lengths)
    assert filled.dropped["stays shorter than 24 h: kept, missing from their end on"] == 2
    assert series.height == 5 * 24
    with pytest.raises(CohortError, match="all 5 stays are shorter than 500 h; choose fewer --steps"):
        imported(tmp_path, phenotyping(lengths), name="none", task="phenotyping", steps=500)


def test_the_data_folder_above_will_do(tmp_path):
    write(tmp_path / "data" / "in-hospital-mortality", ihm(*GOOD))
    write(tmp_path / "data" / "phenotyping", phenotyping(dict.fromkeys(["1_episode1", "2_episode1", "3_episode1"], 50)))
    for task, folder in (("ihm", "in-hospital-mortality"), ("phenotyping", "phenotyping")):
        write_cohort(tmp_path / task, *read_mimic3_benchmarks(tmp_path / "data", task=task))
        write_cohort(tmp_path / f"{task}2", *read_mimic3_benchmarks(tmp_path / "data" / folder, task=task))
        assert cohort_bytes(tmp_path / task) == cohort_bytes(tmp_path / f"{task}2")


def shuffled(rng, text):
    head, *lines = text.splitlines()
    return "\n".join([head, *rng.sample(lines, len(lines))]) + "\n"


def twice(rng, text):
    head, *lines = text.splitlines()
    return "\n".join([head, *lines, *rng.sample(lines, 1 + len(lines) // 2)]) + "\n"


def random_cohort(rng):
    samples = [f"{rng.randrange(10**5)}_episode{1 + place % 12}" for place in range(8)]
    rows = {name: random_rows(rng, rows=20) for name in samples}
    for lines in rows.values():  # the same time again, with other values, among them zeros of both signs
        lines += [row(line.partition(",")[0], Glucose=rng.choice(["0.0", "-0.0"])) for line in lines]
        lines += [row("0.0", Glucose="-0.0", pH="7"), row("-0.0", Glucose="0.0", pH="7.0")]
    return ihm(dict.fromkeys(samples[:4], 0), dict.fromkeys(samples[4:6], 1), dict.fromkeys(samples[6:], 1), rows)


def test_shuffled_rows_give_the_same_bytes_and_repeated_ones_the_same_tables(tmp_path):
    rng = random.Random(5)
    files = random_cohort(rng)
    imported(tmp_path, files)
    backwards = dict(reversed([(name, shuffled(rng, text)) for name, text in files.items()]))
    assert backwards != files
    imported(tmp_path, backwards, name="shuffled")
    assert cohort_bytes(tmp_path / "shuffled") == cohort_bytes(tmp_path / "out")
    info, series, labels = imported(tmp_path, {name: twice(rng, text) for name, text in files.items()}, name="twice")
    assert series.equals(pl.read_parquet(tmp_path / "out" / "series.parquet"))
    assert labels.equals(pl.read_parquet(tmp_path / "out" / "labels.parquet"))
    assert info.dropped["rows of the listfiles that repeat another one: left out"] == 3 + 2 + 2
    assert info.dropped["rows that repeat another of their stay: left out"] > 8 * 10


def test_of_several_values_at_the_same_time_the_largest_is_kept_and_they_are_counted(tmp_path):
    rows = [row(1.5, Glucose=100), row("1.50", Glucose=90, pH="7.1"), row(1.2, Glucose=300), row(1.5, Glucose=100)]
    info, series, _ = imported(tmp_path, ihm(*GOOD, rows={"7_episode1": rows}))
    assert values(series, "7_episode1", "Glucose") == {1: 100}
    assert info.dropped == {
        "rows that repeat another of their stay: left out": 1,
        "values at the very same time as another of their channel: the largest is kept": 1,
        "values followed by another of the same stay, channel and hour: the last is kept": 1,
    }


@pytest.mark.parametrize("zeros", [("0.0", "-0.0"), ("-0.0", "0.0"), ("-0.0", "-0")])
def test_zeros_of_both_signs_are_one_zero(tmp_path, zeros):
    rows = [row(1.5, Respiratory_rate=zeros[0]), row(1.5, Respiratory_rate=zeros[1], pH=7)]
    _, series, _ = imported(tmp_path, ihm(*GOOD, rows={"7_episode1": rows}))
    assert str(values(series, "7_episode1", "Respiratory rate")) == "{1: 0.0}"


def test_impossible_values_are_missing_and_do_not_displace_a_measurement(tmp_path):
    rows = [row(0.2, pH=7.3, Glucose=999999), row(0.6, pH=735, Temperature=98.6), row(0.8, Heart_Rate=0)]
    info, series, _ = imported(tmp_path, ihm(*GOOD, rows={"7_episode1": rows}))
    assert values(series, "7_episode1", "pH") == {0: pytest.approx(7.3)}
    for name in ("Glucose", "Temperature", "Heart Rate"):
        assert values(series, "7_episode1", name) == {}
    outside = {what: count for what, count in info.dropped.items() if "outside" in what}
    assert outside == {
        "Glucose outside 1..3000: set to missing": 1,
        "Heart Rate outside 5..350: set to missing": 1,
        "Temperature outside 13..46: set to missing": 1,
        "pH outside 6.5..8: set to missing": 1,
    }


def test_order_of_columns_line_ends_and_byte_order_marks_change_nothing(tmp_path):
    files = ihm(*GOOD, rows={"7_episode1": random_rows(random.Random(2))})
    imported(tmp_path, files)
    table = pl.read_csv(files[FILE].encode(), infer_schema=False)
    odd = {path: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() for path, text in files.items()}
    odd[FILE] = table.select(reversed(table.columns)).write_csv()
    imported(tmp_path, odd, name="odd")
    assert cohort_bytes(tmp_path / "odd") == cohort_bytes(tmp_path / "out")
    more = table.with_columns(pl.lit("x").alias("ICU type"), pl.lit(1).alias("")).write_csv()
    info, series, _ = imported(tmp_path, files | {FILE: more}, name="more")
    assert info.dropped["columns of files of stays that are neither Hours nor a channel: left out"] == 2
    assert series.equals(pl.read_parquet(tmp_path / "out" / "series.parquet"))


def test_stays_without_a_value_are_kept_and_files_without_a_row_of_the_listfile_counted(tmp_path):
    files = ihm({"7_episode1": 0, "6_episode1": 1}, {"8_episode1": 1}, rows={"7_episode1": [], "6_episode1": [row(3)]})
    files |= {"train/5_episode1_timeseries.csv": b"\xff", "test/5_episode2_timeseries.csv": "", "test/README": "hello"}
    info, series, labels = imported(tmp_path, files)
    assert labels["sample"].to_list() == ["6_episode1", "7_episode1", "8_episode1", "900_episode1"]
    assert series.height == 4 * 48
    assert info.dropped["stays without any value in the window: kept, missing throughout"] == 2
    assert info.dropped["files of stays that no listfile names: left out"] == 2


def test_the_listener_hears_of_every_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(mimic3_benchmarks, "_STAYS_AT_ONCE", 2)
    ear = Mock(spec=Silence)
    imported(tmp_path, ihm({"7_episode1": 0, "6_episode1": 1}, {"8_episode1": 1, "9_episode1": 1}), listener=ear)
    assert ear.mock_calls == [call.start(5), call.advance(2), call.advance(2), call.advance(1)]


def test_the_cohort_can_be_loaded_for_training(tmp_path):
    rng = random.Random(3)
    split = [{f"{100 * part + place}_episode1": place % 2 for place in range(4)} for part in range(3)]
    rows = {name: random_rows(rng, rows=10) for names in split for name in names}
    imported(tmp_path, ihm(*split, rows=rows))
    cohort = load_cohort(CohortSpec(path=str(tmp_path / "out"), task="mortality"))
    assert tuple(cohort.x.shape) == (12, 48, 17)
    assert [len(cohort.rows(name)) for name in ("train", "valid", "test")] == [4, 4, 4]
    assert dict(zip(cohort.samples, cohort.y.tolist(), strict=True)) == split[0] | split[1] | split[2]
