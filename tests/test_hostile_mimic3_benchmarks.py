"""mimic3-benchmarks that are damaged, of another task or mean harm: one line that helps, or a right cohort."""

import os
import random
import re

import pytest
from test_mimic3_benchmarks import (
    EYE,
    FILE,
    GOOD,
    HEAD,
    REFILL,
    TOTAL,
    VERBAL,
    ihm,
    imported,
    listfile,
    phenotyping,
    random_cohort,
    row,
    stay,
    values,
    write,
)

from vmapens.cohort.importers import mimic3_benchmarks
from vmapens.cohort.importers.mimic3_benchmarks import read_mimic3_benchmarks
from vmapens.errors import CohortError


def test_what_cannot_be_read_is_missing_and_counted_by_channel(tmp_path):
    rows = [
        row(0.2, Heart_Rate=80, pH="7.4"),
        row(0.4, Heart_Rate="error", pH="nan"),
        row(0.5, Heart_Rate="1e39", pH="inf"),
        row(0.6, **{EYE: "wide", TOTAL: "2", VERBAL: "5 oriented", REFILL: "0.5"}),
        row("late", Heart_Rate=90),
        row("nan", Heart_Rate=90),
        row("", Heart_Rate=90),
        "0.7,1,2",
        row(0.8, Heart_Rate=99) + ",",
        row(0.8, Heart_Rate=99) + ",.,1",
        row(0.9, Glucose='"1,2"'),
        "",
    ]
    files = ihm(*GOOD, rows={"7_episode1": rows})
    info, series, _ = imported(tmp_path, files)
    assert values(series, "7_episode1", "Heart Rate") == {0: 80}
    assert values(series, "7_episode1", "pH") == {0: pytest.approx(7.4)}
    for name in (EYE, TOTAL, VERBAL, REFILL):
        assert values(series, "7_episode1", name) == {}
        assert info.dropped[f"{name}: texts that are no score: set to missing"] == 1
    assert info.dropped["Heart Rate: no finite number (float32): set to missing"] == 2
    assert info.dropped["pH: no finite number (float32): set to missing"] == 2
    assert info.dropped["rows whose Hours are no number: left out"] == 3
    assert info.dropped["rows with more or fewer fields than their header: left out"] == 5
    assert len(info.dropped) == 8


def test_a_file_cut_short_loses_its_last_row_only(tmp_path):
    last = row(1.5, Heart_Rate=90, pH="7.44") + "\n"
    whole = stay(row(0.5, Heart_Rate=80)) + last
    for place, lost in enumerate(range(1, len(last) + 1)):
        files = ihm(*GOOD)
        files[FILE] = whole[:-lost]
        info, series, _ = imported(tmp_path, files, name=f"out{place}")
        assert values(series, "7_episode1", "Heart Rate") == {0: 80}
        assert values(series, "7_episode1", "pH") == {}
        ended = whole[:-lost].endswith("\n")
        assert info.dropped == ({} if ended else {"last rows without a line end (the file was cut short): left out": 1})


def test_a_subject_in_two_splits_is_refused(tmp_path):
    files = ihm(*GOOD, {"7_episode2": 1})
    with pytest.raises(CohortError, match=r"1 patients are in several splits \(7\)"):
        imported(tmp_path, files)
    files = ihm(*GOOD) | {"val_listfile.csv": listfile({"7_episode1": 0})}
    with pytest.raises(CohortError, match=r"the listfiles: 1 of sample have several rows that differ \(7_episode1\)"):
        imported(tmp_path, files, name="again")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "again").exists()


LIST = "train_listfile.csv"
FAULTS = {  # what is changed in a folder that is right; None takes the file away
    r"has train_listfile.csv and test_listfile.csv, wanted all of train_listfile.csv, val_l": {
        "val_listfile.csv": None
    },
    r"train/listfile\.csv does not exist, or is no file": dict.fromkeys(
        [LIST, "val_listfile.csv", "test_listfile.csv", "train/listfile.csv"]
    ),
    r"train_listfile\.csv begins with `stay,period_length,y_true`, wanted `stay,y_true`": {
        LIST: listfile({"7_episode1": "5.0,0"}, "stay,period_length,y_true")
    },
    r"begins with `7_episode1_timeseries\.csv,0`, wanted `stay,y_true`": {LIST: "7_episode1_timeseries.csv,0\n"},
    r"train_listfile\.csv begins with ``": {LIST: ""},
    r"train_listfile\.csv is not UTF-8 text .* at byte 12": {LIST: b"stay,y_true\n\xff"},
    r"train_listfile\.csv cannot be read as a listfile \(found more fields": {LIST: listfile({"7_episode1": "1,2"})},
    r"`y_true` of row 2 is '2', wanted 0 or 1": {LIST: listfile({"6_episode1": 1, "7_episode1": 2})},
    r"`y_true` of row 1 is None, wanted 0 or 1": {LIST: "stay,y_true\n7_episode1_timeseries.csv"},
    r"listfile\.csv name no stay": dict.fromkeys([LIST, "val_listfile.csv", "test_listfile.csv"], "stay,y_true\n"),
    r"`stay` of row 1 is '\.\./\.\./7_epi.*', wanted a file name": {LIST: listfile({"../../7_episode1": 0})},
    r"`stay` of row 1 is '/etc/passwd', wanted a file name": {LIST: "stay,y_true\n/etc/passwd,0\n"},
    r"`stay` of row 1 is 'train/7_episode1_timeseries\.csv'": {LIST: listfile({"train/7_episode1": 0})},
    r"train: 2 of 3 stays of the listfile have no file \(5_episode1_timeseries\.csv, 6_": {
        LIST: listfile({"6_episode1": 0, "5_episode1": 0})
    },
    r"7_episode1_timeseries\.csv begins with `0\.5,.*wanted Hours and 17 channels": {FILE: row(0.5) + "\n"},
    r"begins with `Hours,Capillary .*; 1 are not \(pH\)": {FILE: HEAD.replace(",pH", "") + "\n"},
    r"; 1 are not \(Heart Rate\)": {FILE: HEAD + ",Heart Rate\n"},
    r"7_episode1_timeseries\.csv begins with ``": {FILE: ""},
    r"7_episode1_timeseries\.csv is not UTF-8 text": {FILE: HEAD.encode() + b"\n\x80,\n"},
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_input_is_one_clear_line(tmp_path, message):
    with pytest.raises(CohortError, match=message) as caught:
        imported(tmp_path, {name: text for name, text in (ihm(*GOOD) | FAULTS[message]).items() if text is not None})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "columns", ["Shock,Shock", "Shock,", "split,Shock", "Shock,y_true", "^Sh.*$", "pH", "sample", "group"]
)
def test_phenotypes_with_names_that_no_column_can_have_are_refused(tmp_path, columns):
    head = f"stay,period_length,{columns}"
    files = {LIST: listfile({"1_episode1": "50.0" + ",1" * (1 + columns.count(","))}, head)}
    files |= {"val_listfile.csv": head + "\n", "test_listfile.csv": head + "\n"}
    files |= {f"{folder}/1_episode1_timeseries.csv": stay(row(1)) for folder in ("train", "test")}
    with pytest.raises(CohortError, match=r"begins with `stay,period_length|the same name"):
        imported(tmp_path, files, task="phenotyping")


def test_a_folder_of_another_task_is_refused(tmp_path):
    lengths = dict.fromkeys(["1_episode1", "2_episode1", "3_episode1"], 50.0)
    with pytest.raises(
        CohortError, match=r"begins with `stay,period_length,Acute.*wanted `stay,y_true`: it is of another"
    ):
        imported(tmp_path, phenotyping(lengths), task="ihm")
    with pytest.raises(CohortError, match=r"begins with `stay,y_true`, wanted `stay,period_length,<a column"):
        imported(tmp_path, ihm(*GOOD), name="b", task="phenotyping")
    files = phenotyping(lengths)
    other = files["val_listfile.csv"].replace("Shock", "Stroke")
    with pytest.raises(CohortError, match="differ in their columns"):
        imported(tmp_path, files | {"val_listfile.csv": other}, name="c", task="phenotyping")
    for length in ("-1.0", "nan", "inf", "", "x"):
        wrong = re.sub(r"csv,50\.0+,", f"csv,{length},", files["val_listfile.csv"])
        with pytest.raises(CohortError, match=r"`period_length` of row 1 is .*, wanted a length in hours"):
            imported(tmp_path, files | {"val_listfile.csv": wrong}, name="d", task="phenotyping")


@pytest.mark.parametrize(("task", "steps"), [("ihm", 0), ("ihm", 49), ("phenotyping", -1), ("phenotyping", 10**9)])
def test_a_folder_or_window_that_is_not_there_is_refused(tmp_path, task, steps):
    (tmp_path / "train").mkdir()
    with pytest.raises(CohortError, match=r"no train/ and test/ in it, nor in a folder (in-hosp|pheno)"):
        read_mimic3_benchmarks(tmp_path, task=task)
    with pytest.raises(CohortError, match=f"{steps} steps of one hour, wanted 1 to"):
        read_mimic3_benchmarks(tmp_path, task=task, steps=steps)


def test_files_beyond_all_sense_and_pipes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mimic3_benchmarks, "_MOST_BYTES", 1000)
    rows = {"7_episode1": [row(hour, Glucose=100) for hour in range(40)]}
    with pytest.raises(CohortError, match="has more than 1,000 bytes"):
        imported(tmp_path, ihm(*GOOD, rows=rows))
    files = ihm(*GOOD)
    del files[FILE]
    source = write(tmp_path / "pipe", files)
    os.mkfifo(source / "train" / "7_episode1_timeseries.csv")
    with pytest.raises(CohortError, match="1 of 2 stays of the listfile have no file"):
        read_mimic3_benchmarks(source, task="ihm")


def test_any_damage_to_a_file_is_an_error_of_one_line_or_a_cohort(tmp_path):
    """Bytes changed, cut out or doubled anywhere: never another exception."""
    rng = random.Random(8)
    files = {name: text.encode() for name, text in random_cohort(rng).items()}
    lines = []
    for place in range(60):
        name = rng.choice(list(files))
        data = bytearray(files[name])
        for _ in range(rng.randrange(1, 4)):
            at, size = rng.randrange(len(data)), rng.randrange(1, 9)
            data[at : at + size] = rng.choice(
                [b"", b"\n", b"\r", b'"', b"\x00", b",", rng.randbytes(size), data[:at][:50]]
            )
        try:
            imported(tmp_path, files | {name: bytes(data)}, name=f"damaged{place}")
        except CohortError as error:
            lines.append(str(error))
    assert 5 < len(lines) < 55
    assert all(line.isprintable() for line in lines)
