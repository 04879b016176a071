"""Cohorts that lie about themselves: one line or a right tensor, before memory is asked for."""

import dataclasses
import datetime
import decimal
import io
import json
import os

import numpy as np
import polars as pl
import pytest
import torch
from hostile import changed, damaged, dates, document, ends_well, examples, names, plain
from hypothesis import example, given
from hypothesis import strategies as st
from small_cohort import load, small_info, small_labels, small_series, write_small

from vmapens.cohort.describe import describe_cohort
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE, Feature, Task
from vmapens.cohort.write import write_cohort
from vmapens.errors import CohortError

INFO = json.loads(json.dumps(dataclasses.asdict(small_info(notes=("a",), dropped={"b": 1}))))
MAPPING = {
    "steps": 6,
    "minutes_per_step": 60,
    "outside": "drop",
    "series": {"files": ["series.parquet"], "layout": "wide", "sample": "sample", "time": "step", "time_unit": "step"},
    "labels": {"file": "labels.parquet", "sample": "sample", "tasks": {"died": {"classes": ["a", "b"], "note": ""}}},
    "static": {"file": "labels.parquet", "sample": "sample", "columns": []},
    "features": {"hr": {"unit": "/min", "group": ""}},
    "source": "",
}


def tensors_of(path):
    """A tensor that a model can be trained on, and a description of whole lines, or neither."""
    described = describe_cohort(path)
    assert all(line.isprintable() for line in described.text().split("\n"))
    json.dumps(described.table())
    cohort = load(path)
    assert torch.isfinite(cohort.x).all()
    assert cohort.x.shape == (len(cohort.samples), cohort.info.steps, len(cohort.features))
    assert set(cohort.y.tolist()) <= set(range(len(cohort.task.classes)))
    assert len(set(cohort.samples)) == len(cohort.samples)
    return cohort


@pytest.fixture
def folder(tmp_path):
    return write_small(tmp_path / "cohort")


@pytest.fixture
def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return ends_well(lambda: tensors_of(folder), folder.parent)


def parquet(frame):
    sink = io.BytesIO()
    frame.write_parquet(sink)
    return sink.getvalue()


def test_the_cohorts_that_are_spoilt_below_are_good(folder, files):
    assert read(folder, files) is not None
    path = folder / "mapping.toml"
    path.write_text(document(MAPPING))
    assert ends_well(lambda: tensors_of(path), folder) is not None


@examples(100)
@given(info=changed(INFO))
@example({**INFO, "steps": 10**12})
@example({**INFO, "steps": 2**31 - 1})
@example({**INFO, "minutes_per_step": 10**400})
@example({**INFO, "source": "\ud800"})
def test_a_description_of_any_json_is_one_line_or_a_cohort(folder, files, info):
    read(folder, files | {INFO_FILE: json.dumps(info).encode()})


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"steps": ' + "9" * 5000 + "}", "", "null", "\xff", '{"a":' * 100_000]
)
def test_a_description_that_cannot_be_read_is_one_line(folder, files, text):
    assert read(folder, files | {INFO_FILE: text.encode("latin-1")}) is None


@examples(60)
@given(data=st.data(), name=st.sampled_from([INFO_FILE, SERIES_FILE, LABELS_FILE]))
def test_damaged_files_are_one_line_or_a_cohort(folder, files, data, name):
    read(folder, files | {name: data.draw(damaged(files[name]))})


def column(rows):
    """A column of any type, of so many rows."""
    one = st.sampled_from(
        [
            ([0.0, 1.0, 2.0], pl.Float32),
            ([float("nan"), float("inf"), -float("inf")], pl.Float64),
            ([1e300, -1e300, 0.0], pl.Float64),
            ([0, 1, None], pl.Int8),
            ([2**63 - 1, -(2**63), 0], pl.Int64),
            ([2**64 - 1, 0, 1], pl.UInt64),
            ([2**40, -(2**40), 3], pl.Int64),
            ([True, False, None], pl.Boolean),
            ([None], pl.Null),
            ([None], pl.Float32),
            (["0", "1", "a\nb"], pl.String),
            (["train", "val", "test"], pl.Categorical),
            (["9" * 5000, "8" * 5000, "-7"], pl.String),
            ([[0], [1, 2], []], pl.List(pl.Int64)),
            ([[0, 1], [1, 2], [0, 0]], pl.Array(pl.Float32, 2)),
            ([{"a": 1}, {"a": 2}, None], pl.Struct({"a": pl.Int64})),
            ([decimal.Decimal("1.5"), None, decimal.Decimal(2)], pl.Decimal(38, 10)),
            ([datetime.date(2026, 1, 1), None], pl.Date),
            ([datetime.datetime(2026, 1, 1), datetime.datetime(1, 1, 1)], pl.Datetime("us")),
            ([datetime.timedelta(hours=3), datetime.timedelta(days=-9999999)], pl.Duration("us")),
            ([datetime.time(1)], pl.Time),
            ([b"\xff", b"", None], pl.Binary),
            (list(range(1, rows + 1)), pl.Int128),
            (list(range(1, rows + 1)), pl.UInt8),
            (list(range(rows)), pl.Float64),
            ([str(row) for row in range(rows)], pl.String),
        ]
    )
    return one.map(lambda drawn: pl.Series((drawn[0] * rows)[:rows], dtype=drawn[1], strict=False))


@st.composite
def with_columns(draw, frame, others=()):
    """The frame with some columns of another type, missing, or beside a new one; rows repeated."""
    for name in draw(st.lists(st.sampled_from([*frame.columns, *others]), min_size=1, max_size=2)):
        series = draw(st.none() | column(len(frame)))
        frame = frame.drop(name, strict=False) if series is None else frame.with_columns(series.alias(name))
    return pl.concat([frame, frame[:1]]) if draw(st.integers(0, 9)) == 0 else frame


SERIES, LABELS = small_series(), small_labels()


@examples(120)
@given(series=with_columns(SERIES) | st.just(SERIES), labels=with_columns(LABELS, ["group", "split", "hr"]))
def test_columns_of_any_type_are_one_line_or_a_cohort(folder, files, series, labels):
    read(folder, files | {SERIES_FILE: parquet(series), LABELS_FILE: parquet(labels)})


@examples(150)
@given(
    mapping=changed(
        MAPPING, plain | dates | st.sampled_from(["hours", "duration", "long", "*", "**", "a**b", "[", "../*"])
    ),
    series=st.just(SERIES) | with_columns(SERIES),
)
def test_mappings_of_any_toml_are_one_line_or_a_cohort(folder, files, mapping, series):
    (folder / SERIES_FILE).write_bytes(parquet(series))
    path = folder / "mapping.toml"
    path.write_text(document(mapping if isinstance(mapping, dict) else {"a": mapping}), encoding="utf-8")
    ends_well(lambda: tensors_of(path), folder)


free = names.filter(lambda name: name not in ("sample", "step", "group", "split"))


@examples(60)
@given(feature=free, unit=names, task=free, classes=st.tuples(names, names), samples=st.lists(names, unique=True))
def test_names_of_any_signs_are_one_line_or_kept(tmp_path, feature, unit, task, classes, samples):
    out = tmp_path / "cohort"
    for path in out.glob("*"):
        path.unlink()
    ids = [*samples, *(f"stay {row}" for row in range(20))]
    info = small_info(features=(Feature(feature, unit),), tasks=(Task(task, "binary", classes, unit),))
    keys = {"sample": ids, "step": [0] * len(ids)}
    written = ends_well(
        lambda: [
            write_cohort(
                out,
                info,
                pl.DataFrame({**keys, feature: np.arange(len(ids), dtype=np.float32)}),
                pl.DataFrame({"sample": ids, task: [row % 2 for row in range(len(ids))]}),
            )
        ],
        tmp_path,
        out,
    )
    if written and (cohort := ends_well(lambda: load(out, task=task), tmp_path)):
        assert cohort.features["feature"].to_list() == [feature]
        assert set(cohort.samples) == set(ids)
        assert cohort.task.classes == classes


def test_more_cells_than_the_memory_holds_are_refused_before_they_are_asked_for(tmp_path, monkeypatch):
    folder = write_small(tmp_path / "cohort", steps=2**31 - 1)
    monkeypatch.setattr(np, "full", None)
    with pytest.raises(
        CohortError, match=r"40 samples x 2147483647 steps x 3 features need 1200\.\d GiB of memory and "
    ):
        load(folder)


def test_more_rows_than_the_memory_holds_are_refused_before_they_are_read(tmp_path, monkeypatch):
    folder = write_small(tmp_path / "cohort")
    monkeypatch.setattr("vmapens.cohort.parquet.free_memory", lambda: 16 * len(small_labels()) - 1)
    with pytest.raises(CohortError, match=r"parquet has \d+ rows, more than fit in memory"):
        load(folder)


@pytest.mark.parametrize("name", [SERIES_FILE, LABELS_FILE])
def test_a_pipe_is_no_table_and_is_not_waited_for(tmp_path, name):
    folder = write_small(tmp_path / "cohort")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CohortError, match=f"{name} is no file"):
        load(folder)
