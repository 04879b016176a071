"""`vmapens import`: each source by its command, what is said on the screen, and one line for what is wrong."""

import json

import polars as pl
import pytest
from made_sources import SOURCES

from vmapens.cli import _main
from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE, read_info

LINES = {
    "yaib": "yaib SOURCE --steps 4",
    "yaib and a table of labels": "yaib SOURCE --steps 4 --labels SOURCE/wards.csv --label-column ward",
    "meds": "meds SOURCE --labels SOURCE/labels.parquet --window 24h --every 6h --codes re:LAB",
    "mimic3-benchmarks": "mimic3-benchmarks SOURCE --task ihm --steps 4",
    "mimic3-benchmarks, phenotyping": "mimic3-benchmarks SOURCE --task phenotyping --steps 4",
    "physionet2012": "physionet2012 SOURCE",
    "hirid-benchmark": "hirid-benchmark SOURCE/ml_stage.h5 --steps 4",
    "tensors": "tensors SOURCE/all.npz",
    "tensors in hdf5": "tensors SOURCE/all.h5",
    "cohort, of a mapping": "cohort SOURCE/own.toml",
}


@pytest.fixture
def made(tmp_path):
    """Makes a source; the arguments of a line about it."""

    def make(name, line=None):
        folder = tmp_path / "source"
        folder.mkdir()
        SOURCES[name].make(folder)
        words = (line or LINES[name]).replace("SOURCE", str(folder)).split()
        return ["import", *words, "--out", str(tmp_path / "cohort")]

    return make


def refused(capsys, arguments, *texts):
    """Status 2, one line with some texts, and nothing written."""
    assert _main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("error: ")
    for text in texts:
        assert text in line, line


@pytest.mark.parametrize("name", LINES)
def test_each_source_has_a_command_that_says_what_it_read(name, made, tmp_path, capsys):
    assert _main(made(name)) == 0
    said = capsys.readouterr().out
    info = read_info(tmp_path / "cohort")
    assert f"{tmp_path / 'cohort'}: {SOURCES[name].samples} samples" in said
    assert "\nread: " in said
    for what, count in info.dropped.items():
        assert f"dropped: {what}: {count}\n" in said
    for note in info.notes:
        assert note in said


def test_labels_of_a_table_take_its_options(made, tmp_path):
    line = "yaib SOURCE --steps 4 --labels SOURCE/more.csv --label-column ward --label-task where --label-id id"
    arguments = made("yaib", f"{line} --label-group patient --label-time hours")
    wards = pl.read_csv(tmp_path / "source" / "wards.csv")
    more = wards.select("ward", id="stay", patient=pl.col("stay") // 2, hours=pl.lit(30.5))
    more.write_csv(tmp_path / "source" / "more.csv")
    assert _main(arguments) == 0
    labels = pl.read_parquet(tmp_path / "cohort" / LABELS_FILE)
    assert [task.name for task in read_info(tmp_path / "cohort").tasks] == ["label", "where"]
    assert labels["group"].cast(pl.Int64).to_list() == more["patient"].to_list()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("--labels SOURCE/wards.csv", "has no --label-column"),
        ("--label-column ward --label-id stay", "--label-column, --label-id says something of a table"),
        ("--labels SOURCE/nowhere.csv --label-column ward", "does not exist"),
        ("--labels SOURCE/wards.csv --label-column word", "has no column word"),
        ("--without pulse", "--without names pulse, but the features are hr"),
        ("--steps 0", "steps is 0"),
        ("--short pad", "--short"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(more, text, made, tmp_path, capsys):
    refused(capsys, made("yaib", f"yaib SOURCE --steps 4 {more}"), text)
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("name", ["yaib", "physionet2012", "tensors", "hirid-benchmark", "cohort, of a mapping"])
def test_a_feature_can_be_left_out_of_any_import(name, made, tmp_path):
    arguments = made(name)
    assert _main(arguments) == 0
    first = [feature.name for feature in read_info(tmp_path / "cohort").features]
    arguments[-1] = str(tmp_path / "less")
    assert _main([*arguments, "--without", first[0]]) == 0
    info = read_info(tmp_path / "less")
    assert [feature.name for feature in info.features] == first[1:]
    assert first[0] not in pl.read_parquet_schema(tmp_path / "less" / SERIES_FILE)
    assert f"Feature `{first[0]}` was left out (--without)." in info.notes


def test_a_leak_is_one_line_and_leaves_nothing(made, tmp_path, capsys):
    arguments = made("yaib")
    dyn, outc = (pl.read_parquet(tmp_path / "source" / f"{name}.parquet") for name in ("dyn", "outc"))
    many = [table.with_columns(pl.col("stay_id") + 100 * place) for table in (dyn, outc) for place in range(3)]
    pl.concat(many[:3]).join(pl.concat(many[3:]).rename({"label": "copy"}), on="stay_id").with_columns(
        pl.col("copy").cast(pl.Float64)
    ).write_parquet(tmp_path / "source" / "dyn.parquet")
    pl.concat(many[3:]).write_parquet(tmp_path / "source" / "outc.parquet")
    refused(capsys, arguments, "`copy`, which is the label `label` in all 36 samples", "--without")
    assert not (tmp_path / "cohort").exists()
    assert _main([*arguments, "--without", "copy"]) == 0


def test_a_cohort_that_is_there_stays(made, tmp_path, capsys):
    arguments = made("tensors")
    assert _main(arguments) == 0
    capsys.readouterr()
    before = (tmp_path / "cohort" / "cohort.json").read_bytes()
    refused(capsys, arguments, "holds a cohort already")
    assert (tmp_path / "cohort" / "cohort.json").read_bytes() == before


def test_a_split_is_dropped_for_folds(made, tmp_path, capsys):
    assert _main(made("mimic3-benchmarks")) == 0
    capsys.readouterr()
    out = ["--variants", "2", "--epochs", "1", "--hidden", "2", "--folds", "2", "--out", str(tmp_path / "study")]
    refused(capsys, ["train", str(tmp_path / "cohort"), "--task", "mortality", *out], "--drop-split")
    line = ["import", "cohort", str(tmp_path / "cohort"), "--drop-split", "--out", str(tmp_path / "other")]
    assert _main(line) == 0
    capsys.readouterr()
    assert _main(["describe", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] is None


def test_an_interrupt_behind_the_writing_says_that_the_cohort_is_whole(made, tmp_path, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vmapens.cohort.describe.describe_cohort", interrupted)
    assert _main(made("tensors")) == 130
    assert f"{tmp_path / 'cohort'} is written, and whole" in capsys.readouterr().err
    assert (tmp_path / "cohort" / "cohort.json").exists()


def test_a_place_that_is_no_folder_is_said_before_the_work(made, tmp_path, capsys):
    arguments = made("tensors")
    (tmp_path / "cohort").write_text("mine")
    refused(capsys, arguments, "is a file, and no folder to write a cohort to")
    (tmp_path / "cohort").unlink()
    (tmp_path / "cohort").symlink_to(tmp_path / "nowhere")
    refused(capsys, arguments, "is a link to nothing")
