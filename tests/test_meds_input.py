"""MEDS: labels, splits and codes of all kinds; what cannot be meant or read is one line."""

from functools import partial

import numpy as np
import polars as pl
import pytest
from hostile import ends_well
from made_meds import (
    HOUR,
    MICRO,
    T0,
    events,
    imported,
    label_table,
    made,
    write_source,
    written,
)

from vmapens.cohort.importers.meds import read_meds
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError


@pytest.mark.parametrize(
    ("column", "values", "codes", "classes"),
    [
        ("boolean_value", [True, False, True], [1, 0, 1], ("false", "true")),
        ("integer_value", [0, 2, 1], [0, 2, 1], ("0", "1", "2")),
        ("float_value", [1.0, 0.0, 1.0], [1, 0, 1], ("0", "1")),
        ("categorical_value", ["sepsis", "cardiac", "trauma"], [1, 0, 2], ("cardiac", "sepsis", "trauma")),
    ],
)
def test_a_value_of_each_kind_becomes_classes(tmp_path, column, values, codes, classes):
    labels = label_table([(subject, T0, value) for subject, value in enumerate(values)], column)
    labels = labels.with_columns(other=pl.lit("kept out"))
    info, _, rows = imported(tmp_path, events((0, T0, "a", 1.0)), labels, codes=["a"], task="outcome")
    assert rows["outcome"].to_list() == codes
    assert rows["sample"].to_list() == [0, 1, 2]
    assert rows["group"].to_list() == ["0", "1", "2"]
    assert info.task("outcome").classes == classes
    assert info.task("outcome").kind == ("binary" if len(classes) == 2 else "multiclass")


def test_a_word_for_nothing_is_no_class_and_none_is_one(tmp_path):
    values = ["None", "NA", "mild", "", "<NA>"]
    labels = label_table([(subject, T0, value) for subject, value in enumerate(values)], "categorical_value")
    info, _, rows = imported(tmp_path, events((0, T0, "a", 1.0)), labels, codes=["a"], task="outcome")
    assert info.task("outcome").classes == ("None", "mild")
    assert rows.select("sample", "outcome").drop_nulls().rows() == [(0, 0), (2, 1)]


def test_labels_may_lie_in_several_files_that_lack_columns(tmp_path):
    source = write_source(tmp_path / "source", events((1, T0, "a", 1.0)), label_table([(1, T0, True), (2, T0, False)]))
    parts = source / "parts" / "deep"
    parts.mkdir(parents=True)
    label_table([(1, T0, 1), (2, T0, 0)], "integer_value").drop("float_value").write_parquet(parts / "1.parquet")
    some = label_table([(3, T0, 1), (4, T0, None)], "integer_value").select(
        "prediction_time", "subject_id", "integer_value"
    )
    some.write_parquet(source / "parts" / "0.parquet")
    (parts / "._1.parquet").write_bytes(b"litter")
    info = write_cohort(tmp_path / "cohort", *read_meds(source, labels=source / "parts", codes=["a"]))
    assert pl.read_parquet(tmp_path / "cohort" / "labels.parquet")["label"].to_list() == [1, 0, 1]
    assert info.dropped["labels without a subject, a time or a value: left out"] == 1
    assert info.read["labels"] == 4


LABEL_ERRORS = {
    "boolean_value and integer_value have values, wanted one of": label_table(
        [(1, T0, True), (2, T0, False)]
    ).with_columns(integer_value=pl.lit(1)),
    "no column of MEDS has values": label_table([(1, T0, None)]),
    "1 of subject_id and prediction_time have several rows that differ": label_table(
        [(1, T0, True), (1, T0, False), (2, T0, True)]
    ),
    "float_value holds 1 numbers that are no class": label_table([(1, T0, 0.5), (2, T0, 1.0)], "float_value"),
    "integer_value holds 1 numbers that are no class": label_table([(1, T0, -1), (2, T0, 1)], "integer_value"),
    "categorical_value has 1 different values": label_table([(1, T0, "a"), (2, T0, "a")], "categorical_value"),
    "no column prediction_time": label_table([(1, T0, True), (2, T0, False)]).drop("prediction_time"),
    "subject_id is String, wanted whole numbers": label_table([(1, T0, True), (2, T0, False)]).cast(
        {"subject_id": pl.String}
    ),
    "prediction_time is Date": label_table([(1, T0, True), (2, T0, False)]).cast({"prediction_time": pl.Date}),
    "wanted timestamps without a time zone": label_table([(1, T0, True), (2, T0, False)]).with_columns(
        pl.col("prediction_time").dt.replace_time_zone("UTC")
    ),
    "boolean_value is Int32": label_table([(1, T0, 1), (2, T0, 0)]).with_columns(boolean_value=pl.lit(1, pl.Int32)),
    "1 labels have a prediction_time outside the years 1 to 9999": label_table(
        [(1, T0, True), (2, T0, False)]
    ).with_columns(pl.Series("prediction_time", [0, 2**62]).cast(pl.Datetime("us"))),
}


@pytest.mark.parametrize("message", LABEL_ERRORS)
def test_labels_that_are_none_are_one_clear_line(tmp_path, message):
    source = write_source(tmp_path / "source", events((1, T0, "a", 1.0)), LABEL_ERRORS[message])
    with pytest.raises(CohortError, match=message) as caught:
        read_meds(source, labels=source / "labels.parquet", codes=["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([(1, "train")], r"1 subjects with a label have no split \(2\)"),
        ([(1, "train"), (2, "somewhere")], "unknown splits .somewhere"),
        ([(1, "train"), (2, None)], "unknown splits .null"),
        ([(1, "train"), (2, "train"), (1, "tuning")], "1 of group have several rows that differ .1 train|1 of group"),
    ],
)
def test_splits_that_do_not_fit_the_labels_are_one_clear_line(tmp_path, splits, message):
    labels = label_table([(1, T0, True), (2, T0, False)])
    source = write_source(tmp_path / "source", events((1, T0, "a", 1.0)), labels, splits)
    with pytest.raises(CohortError, match=message) as caught:
        read_meds(source, labels=source / "labels.parquet", codes=["a"])
    assert "\n" not in str(caught.value)


def code_source(folder):
    """Ten subjects, of whom n have code `n`; in the training split, subjects 1 to 5."""
    rows = [(subject, T0, f"LAB//{n}//%", 1.0) for n in range(1, 11) for subject in range(1, n + 1)]
    rows += [(1, T0, "TEXT", None), (1, T0 + HOUR, "LATE", 1.0)]
    labels = label_table([(subject, T0, subject % 2 == 0) for subject in range(1, 11)])
    splits = [(subject, "train" if subject <= 5 else "held_out") for subject in range(1, 11)]
    source = write_source(folder / "source", events(*rows), labels, splits)
    (folder / "codes.txt").write_text("\ufeffLAB//1//%\n\n  LAB//3//%\r\n", encoding="utf-8")
    return source


@pytest.mark.parametrize(
    ("codes", "numbers"),
    [
        (["LAB//2//%"], [2]),
        (["@codes.txt"], [1, 3]),
        (["re:/[12]/", "LAB//4//%", "@codes.txt"], [1, 2, 3, 4]),
        (["re:^LAB//1"], [1, 10]),
        (["100%"], [5, 6, 7, 8, 9, 10]),
        (["60%"], [3, 4, 5, 6, 7, 8, 9, 10]),
        (["60.1%"], [4, 5, 6, 7, 8, 9, 10]),
        (["40%", "@codes.txt", "re:/2/"], [2, 3]),
    ],
)
def test_codes_are_named_listed_matched_or_frequent_enough_in_training(tmp_path, codes, numbers):
    source = code_source(tmp_path)
    codes = [f"@{tmp_path / code[1:]}" if code.startswith("@") else code for code in codes]
    info, *_ = written(source, tmp_path / "cohort", codes=codes)
    assert [feature.name for feature in info.features] == sorted(f"LAB//{number}//%" for number in numbers)
    assert any(f"{len(numbers)} of 10 codes with a number in a window" in note for note in info.notes)
    others = sum(number for number in range(1, 11) if number not in numbers)
    assert info.dropped.get("events in a window of codes that are no feature: left out", 0) == others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": ["LAB//2//%", "HR", "BP"]}, r"2 of 3 named are not in the data \(BP, HR\)"),
        ({"codes": ["TEXT", "LATE", "HR"]}, r"1 of 3 .*\(HR\); 2 never have a number in a window \(LATE, TEXT\)"),
        ({"codes": ["re:HR"]}, "none is left of 10"),
        ({"codes": ["re:/[12]/", "50%"]}, "none is left of 10"),
        ({"codes": ["re:["]}, "`re:\\[` is no pattern"),
        ({"codes": ["re:a{99999999999}"]}, "is no pattern"),
        ({"codes": ["5%", "10%"]}, "one percentage at most"),
        ({"codes": ["0%"]}, "above 0%"),
        ({"codes": ["101%"]}, "up to 100%"),
        ({"codes": []}, "none at all"),
        ({"codes": [""]}, "an empty one"),
        ({"codes": ["@nowhere.txt"]}, "nowhere.txt cannot be read as a list of codes"),
        ({"window": "48"}, "window is `48`, wanted a whole number with s, m, h or d"),
        ({"window": "-48h"}, "window is `-48h`"),
        ({"every": "1.5h"}, "every is `1.5h`"),
        ({"every": "0h"}, "every is `0h`"),
        ({"window": "99999999d"}, "up to 36500d"),
        ({"every": "7h"}, "that is 6.857.* steps, wanted a whole number"),
        ({"window": "36500d", "every": "1s"}, "100,000 at most"),
        ({"window": "1h", "every": "2h"}, "0.5 steps"),
        ({"task": "split"}, "the task cannot be called `split`"),
        ({"task": ""}, "the task cannot be called"),
        ({"task": "LAB//2//%", "codes": ["LAB//2//%"]}, "a code is called LAB//2//%, as a column of the cohort"),
    ],
)
def test_options_that_cannot_be_meant_are_one_clear_line(tmp_path, options, message):
    source = code_source(tmp_path)
    with pytest.raises(CohortError, match=message) as caught:
        written(source, tmp_path / "cohort", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cohort").exists()


def test_a_list_of_codes_that_is_no_text_or_empty_is_one_clear_line(tmp_path):
    source = code_source(tmp_path)
    for content, message in ((b"\xff\xfe", "wanted text"), (b" \n", "holds no code")):
        (tmp_path / "codes.txt").write_bytes(content)
        with pytest.raises(CohortError, match=message):
            read_meds(source, labels=source / "labels.parquet", codes=[f"@{tmp_path / 'codes.txt'}"])


def test_a_percentage_needs_labels_in_the_training_split(tmp_path):
    labels = label_table([(1, T0, True), (2, T0, False)])
    source = write_source(
        tmp_path / "source", events((1, T0, "a", 1.0)), labels, [(1, "tuning"), (2, "held_out"), (3, "train")]
    )
    with pytest.raises(CohortError, match="no label is of a subject in the training split"):
        read_meds(source, labels=source / "labels.parquet")


def test_without_splits_all_samples_count_in_the_choice_and_it_is_said(tmp_path):
    table = events(*((subject, T0, "a", 1.0) for subject in range(6)), (7, T0, "b", 1.0))
    labels = label_table([(subject, T0, subject % 2 == 0) for subject in range(10)])
    info, _, rows = imported(tmp_path, table, labels, codes=["60%"])
    assert [feature.name for feature in info.features] == ["a"]
    assert "split" not in rows.columns
    assert any(note.startswith("There are no splits") for note in info.notes)


def test_a_death_that_was_known_is_warned_of_by_name(tmp_path):
    table = events(
        (1, T0, "MEDS_DEATH", None),
        (2, T0 + HOUR + MICRO, "MEDS_DEATH", None),
        (3, T0 - 1000 * HOUR, "MEDS_DEATH", None),
        (4, None, "MEDS_DEATH", None),
        (5, T0, "MEDS_DEATH", None),
        (5, T0, "a", 1.0),
    )
    ends = [(1, T0), (1, T0 + HOUR), (1, T0 - HOUR), (2, T0 + HOUR), (3, T0), (4, T0)]
    labels = label_table([(*end, n % 2 == 0) for n, end in enumerate([*ends, (5, T0 - HOUR)])])
    info, *_ = imported(tmp_path, pl.concat([table, events((2, T0, "a", 1.0))]), labels, codes=["a"])
    assert any(
        note.startswith("warning: MEDS_DEATH is at or before the prediction_time of 3 samples") for note in info.notes
    )


EVENT_ERRORS = {
    "no column `code`": lambda table: table.drop("code"),
    "no column `numeric_value`": lambda table: table.drop("numeric_value"),
    "column `subject_id` is .*string, wanted whole numbers": lambda table: table.cast({"subject_id": pl.String}),
    "column `time` is int64, wanted timestamps": lambda table: table.cast({"time": pl.Int64}),
    "column `time` is timestamp.*UTC": lambda table: table.with_columns(pl.col("time").dt.replace_time_zone("UTC")),
    "column `code` is int64, wanted text": lambda table: table.with_columns(code=pl.lit(1, pl.Int64)),
    "column `numeric_value` is .*string, wanted numbers": lambda table: table.cast({"numeric_value": pl.String}),
    "Integer value 18446744073709551615 not in range": lambda table: table.with_columns(
        subject_id=pl.lit(2**64 - 1, pl.UInt64)
    ),
}


@pytest.mark.parametrize("message", EVENT_ERRORS)
def test_events_of_another_layout_are_one_clear_line(tmp_path, message):
    table = EVENT_ERRORS[message](events((1, T0, "a", 1.0)))
    source = write_source(tmp_path / "source", table, label_table([(1, T0, True), (2, T0, False)]))
    with pytest.raises(CohortError, match=message) as caught:
        read_meds(source, labels=source / "labels.parquet", codes=["a"])
    assert "\n" not in str(caught.value)


def test_a_place_without_events_is_one_clear_line(tmp_path):
    labels = tmp_path / "labels.parquet"
    label_table([(1, T0, True), (2, T0, False)]).write_parquet(labels)
    (tmp_path / "text.parquet").write_text("subject_id,time\n")
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("nowhere", "does not exist: wanted a MEDS data set"),
        ("empty", "holds no .parquet file of events"),
        ("text.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(CohortError, match=message) as caught:
            read_meds(tmp_path / place, labels=labels)
        assert "\n" not in str(caught.value)
    source = write_source(tmp_path / "source", events((1, T0, "a", 1.0)), label_table([]))
    with pytest.raises(CohortError, match=r"holds no \.parquet file: wanted labels"):
        read_meds(source, labels=tmp_path / "empty")


def test_a_file_cut_short_or_damaged_is_one_clear_line_or_changes_what_it_says(tmp_path):
    """Bytes in the middle of a page may become other numbers; never another exception, and never half a cohort."""
    source = write_source(tmp_path / "source", *made(seed=8))
    path = source / "data" / "0.parquet"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for place in range(60):
        data = bytearray(whole)
        if place < 10:
            data = data[: len(whole) * place // 10]
        else:
            start = int(generator.integers(0, len(whole) - 8))
            data[start : start + 8] = generator.bytes(8)
        path.write_bytes(data)
        out = tmp_path / f"cohort-{place}"
        refused += ends_well(partial(written, source, out, window="12h"), tmp_path, out) is None
        assert place >= 10 or refused == place + 1
    assert refused > 20


def test_a_folder_of_events_that_is_a_link_is_not_passed_over(tmp_path):
    source = write_source(tmp_path / "source", events((1, T0, "A", 1.0)), label_table([(1, T0, True), (2, T0, False)]))
    (tmp_path / "elsewhere").mkdir()
    (source / "data" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(CohortError, match="more is a link to a folder, and links are not followed"):
        written(source, tmp_path / "out", codes=["A"])


def test_labels_of_another_data_set_are_said(tmp_path):
    source = write_source(tmp_path / "source", events((1, T0, "A", 1.0)), label_table([(8, T0, True), (9, T0, False)]))
    with pytest.raises(CohortError, match="none of its 2 subjects is in the 1 events of"):
        written(source, tmp_path / "out", codes=["A"])
