"""What a run directory says of whom, and that nothing leaves the machine."""

import re
import socket
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import vmapens
from vmapens.attention import attend_samples
from vmapens.cli import _main
from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE
from vmapens.cohort.synthetic import BAYES_FILE, TRUTH_FILE, make_synthetic
from vmapens.run import open_run
from vmapens.verify import verify

NAME = "patient-"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Its ids are words that a search finds."""
    folder = tmp_path_factory.mktemp("cohorts") / "synthetic"
    make_synthetic(folder, samples=200, steps=8, features=6, seed=1)
    for name in (LABELS_FILE, SERIES_FILE, TRUTH_FILE, BAYES_FILE):
        frame = pl.read_parquet(folder / name)
        frame.with_columns(sample=NAME + pl.col("sample").cast(pl.String)).write_parquet(folder / name)
    return folder


def command(cohort, out, *more):
    line = ["train", str(cohort), "--task", "outcome", "--variants", "3", "--block", "2", "--epochs", "2"]
    return [*line, "--hidden", "4", "--batch-size", "32", "--out", str(out), *more]


def holders(root):
    return sorted({path.name for path in root.rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()})


@pytest.fixture(scope="module")
def runs(cohort, tmp_path_factory):
    """With ids and without, attention of some more samples added."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("named", []), ("unnamed", ["--no-sample-ids"])):
        assert _main(command(cohort, folder / name, *more)) == 0
        assert _main(["attend", str(folder / name), "--samples", "test:20"]) == 0
    return open_run(folder / "named"), open_run(folder / "unnamed")


def test_without_sample_ids_no_file_of_a_run_holds_one(runs):
    named, unnamed = runs
    assert {
        "predictions.parquet",
        "splits.parquet",
        "part-0.arrow",
        "part-1.arrow",
        "inputs.arrow",
        "index.parquet",
    } <= {*holders(named.paths.root)}
    assert holders(unnamed.paths.root) == []


def test_row_numbers_stand_where_the_ids_did_and_all_else_is_the_same(runs):
    named, unnamed = runs
    rows = {sample: str(row) for row, sample in enumerate(named.splits["sample"])}
    for table in ("splits", "predictions", "inputs"):
        wanted = getattr(named, table).with_columns(pl.col("sample").replace_strict(rows))
        got = getattr(unnamed, table)
        assert got.drop("value", strict=False).equals(wanted.drop("value", strict=False))
    assert unnamed.saved_samples == [rows[sample] for sample in named.saved_samples]
    assert np.array_equal(unnamed.attention(), named.attention())
    assert unnamed.metrics.equals(named.metrics)
    assert attend_samples(unnamed.paths.root, "0,3") == ["0", "3"]
    assert all(finding.holds for finding in verify(unnamed.paths.root))


@pytest.fixture
def no_connections(monkeypatch):
    def refuse(*arguments, **options):
        pytest.fail("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_without_sample_ids_no_file_of_an_analysis_and_no_report_holds_one(runs, no_connections):
    for run in runs:
        line = ["--samples", "test:2", "--without", "gradients,faithfulness,learned_mask"]
        assert _main(["analyze", str(run.paths.root), *line]) == 0
    named, unnamed = runs
    assert {"samples.parquet", "agreement.parquet", "maps.parquet"} <= {*holders(named.paths.root)}
    assert _main(["report", str(unnamed.paths.root)]) == 0
    assert (unnamed.paths.root / "report.html").exists()
    assert holders(unnamed.paths.root) == []
    samples = pl.read_parquet(unnamed.paths.root / "analysis" / "samples.parquet")["sample"]
    assert samples.cast(pl.Int64).is_in(list(range(200))).all()


def test_no_command_opens_a_connection(cohort, tmp_path, no_connections):
    assert _main(command(cohort, tmp_path / "run")) == 0
    for line in (
        ["attend", "--samples", "test:20"],
        ["verify"],
        ["export", "--variant", "0", "--out", tmp_path / "v.pt"],
    ):
        assert _main([line[0], str(tmp_path / "run"), *map(str, line[1:])]) == 0
    assert _main(["describe", str(cohort)]) == 0


def test_no_module_of_ours_speaks_to_a_network():
    """By name; what libraries do is watched above."""
    root = Path(vmapens.__file__).parent
    words = re.compile(r"^\s*(import|from)\s+(socket|ssl|http|urllib|ftplib|smtplib|requests|httpx|aiohttp)\b", re.M)
    assert [str(path) for path in root.rglob("*.py") if words.search(path.read_text())] == []
