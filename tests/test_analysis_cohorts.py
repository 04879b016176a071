"""The defaults of `analyze` and `report` hold on every cohort of real patients that can be read so far."""

import tarfile

import pytest

from vmapens.analysis.study import read_analysis
from vmapens.analysis.tables import TABLES
from vmapens.cli import _main

YAIB = """
steps = {steps}
minutes_per_step = 60
source = "YAIB demo"
outside = "drop"
[series]
files = ["dyn.parquet"]
sample = "stay_id"
time = "time"
time_unit = "duration"
[labels]
file = "outc.parquet"
sample = "stay_id"
tasks = ["label"]
[static]
file = "sta.parquet"
sample = "stay_id"
"""
_STEPS = {"mortality24": 25}


def physionet(shared_data, folder):
    """Set b; set a is the README's, and is analysed by its test."""
    with tarfile.open(shared_data / "physionet2012-set-b.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    parts = [str(folder / name) for name in ("set-b", "Outcomes-b.txt")]
    assert _main(["import", "physionet2012", *parts, "--out", str(folder / "cohort")]) == 0
    return folder / "cohort"


def yaib(shared_data, folder, task, source):
    with tarfile.open(shared_data / "yaib-demo-hourly.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    own = next(folder.rglob(f"{task}/{source}"))
    (own / "cohort.toml").write_text(YAIB.format(steps=_STEPS[task]))
    return own / "cohort.toml"


@pytest.mark.parametrize(
    "name",
    ["physionet2012-b", "mortality24/eicu_demo", "mortality24/mimic_demo"],
    ids=lambda name: name.replace("/", "-"),
)
def test_defaults_work(name, shared_data, tmp_path, capsys):
    if name == "physionet2012-b":
        cohort, task = physionet(shared_data, tmp_path), "mortality"
    else:
        cohort, task = yaib(shared_data, tmp_path, *name.split("/")), "label"
    run = tmp_path / "run"
    line = ["train", str(cohort), "--task", task, "--variants", "3", "--epochs", "1", "--hidden", "4"]
    assert _main([*line, "--out", str(run)]) == 0
    capsys.readouterr()
    assert _main(["analyze", str(run)]) == 0
    answer = capsys.readouterr().out.splitlines()
    assert len(answer) == 5
    assert answer[0].startswith("On the test stays the 3 variants reach a mean AUROC of 0.")
    tables, settings = read_analysis(run)
    assert set(tables) == set(TABLES)
    assert settings["stays"] == len(tables["samples"]) > 10
    assert not tables["consistency"].filter(attribution="attention", measure="overlap", grain="cell").is_empty()
    assert _main(["report", str(run)]) == 0
    assert 100_000 < (run / "report.html").stat().st_size < 5_000_000
