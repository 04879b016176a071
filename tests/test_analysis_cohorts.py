"""The defaults of `analyze` and `report` hold on every cohort of real patients that can be read so far."""

import tarfile

import polars as pl
import pytest

from vmapens.analysis.study import read_analysis
from vmapens.analysis.tables import TABLES
from vmapens.cli import _main


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
    assert _main(["import", "yaib", str(own), "--out", str(folder / "cohort")]) == 0
    return folder / "cohort"


def mimic_iv(shared_data, folder):
    """Death in hospital after 48 hours of each admission that lasts longer."""
    with tarfile.open(shared_data / "mimic-iv-demo-2.2-meds.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    events = next(folder.rglob("*meds_events.parquet"))
    stays = pl.read_csv(next(folder.rglob("admissions.csv")), try_parse_dates=True)
    seen = pl.col("admittime").cast(pl.Datetime("us")) + pl.duration(hours=48)
    longer = stays.filter(pl.col("dischtime").cast(pl.Datetime("us")) > seen)
    labels = longer.select("subject_id", prediction_time=seen, boolean_value=pl.col("hospital_expire_flag") == 1)
    labels.write_parquet(folder / "labels.parquet")
    line = ["import", "meds", str(events), "--labels", str(folder / "labels.parquet"), "--codes", "70%"]
    assert _main([*line, "--out", str(folder / "cohort")]) == 0
    return folder / "cohort"


@pytest.mark.parametrize(
    "name",
    ["physionet2012-b", "mortality24/eicu_demo", "mortality24/mimic_demo", "mimic-iv-meds"],
    ids=lambda name: name.replace("/", "-"),
)
def test_defaults_work(name, shared_data, tmp_path, capsys):
    if name == "physionet2012-b":
        cohort, task = physionet(shared_data, tmp_path), "mortality"
    elif name == "mimic-iv-meds":
        cohort, task = mimic_iv(shared_data, tmp_path), "label"
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
