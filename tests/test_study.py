"""Several splits as one study: ordinary runs in one folder, a summary of them, and one line for what is wrong."""

import gc
import json
import os
import shutil
import weakref

import numpy as np
import polars as pl
import pytest
from made_study import command, patients, spec_of, train
from small_cohort import load, small_labels, write_small
from test_cli import refused
from test_resume import assert_same_files

import vmapens
from vmapens import study as room
from vmapens.attention import attend_samples
from vmapens.cli import _main
from vmapens.errors import RunError, SpecError
from vmapens.spec import resolve
from vmapens.study import common_summary, study_specs
from vmapens.verify import verify


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return patients(tmp_path_factory.mktemp("cohorts") / "small")


@pytest.fixture(scope="module")
def study(cohort, tmp_path_factory):
    return train(cohort, tmp_path_factory.mktemp("studies") / "study", folds=3)


# What a study is


def test_the_folder_holds_ordinary_runs_and_a_summary(study):
    assert sorted(path.name for path in study.root.iterdir()) == [
        "fold-0",
        "fold-1",
        "fold-2",
        "study.json",
        "summary.parquet",
    ]
    for fold, run in enumerate(study.runs):
        assert run.paths.root == study.root / f"fold-{fold}"
        assert (run.spec.cohort.folds, run.spec.cohort.fold, run.spec.cohort.split_seed) == (3, fold, 0)
        assert all(finding.holds for finding in verify(run.paths.root))
    assert {"runs", "command", "versions"} <= study.manifest.keys()


def test_each_sample_is_tested_once_and_patients_stay_together(study):
    splits = pl.concat([run.splits for run in study.runs])
    tested = splits.filter(split="test")["sample"].to_list()
    assert sorted(tested, key=int) == [str(i) for i in range(1, 41)]
    for run in study.runs:
        apart = run.splits.group_by((pl.col("sample").cast(pl.Int64) - 1) // 2).agg(pl.col("split").n_unique())
        assert apart["split"].max() == 1


def test_a_run_of_a_study_is_the_plain_run_of_its_spec(study, cohort, tmp_path):
    """To the byte, from a configuration file that names the fold."""
    (tmp_path / "fold.toml").write_text("[cohort]\nfolds = 3\nfold = 1\n")
    assert _main(command(cohort, tmp_path / "run", "--config", str(tmp_path / "fold.toml"))) == 0
    assert_same_files(tmp_path / "run", study.root / "fold-1")


def test_a_run_of_a_study_takes_further_attention(study, tmp_path):
    shutil.copytree(study.root, tmp_path / "study")
    run = study.runs[2]
    test = run.splits.filter(split="test")["sample"].to_list()
    written = attend_samples(tmp_path / "study" / "fold-2", "test")
    assert {*written} | {*run.saved_samples} == {*test}
    assert vmapens.open_study(tmp_path / "study").runs[2].saved_samples == [*run.saved_samples, *written]


def test_the_summary_is_that_of_the_runs(study):
    written = pl.read_parquet(study.root / "summary.parquet")
    assert written.equals(study.summary)
    assert written.columns[:5] == ["run", "fold", "split_seed", "split", "metric"]
    for run in study.runs:
        own = written.filter(run=run.paths.root.name)
        assert own["fold"].unique().to_list() == [run.spec.cohort.fold]
        assert own.drop("run", "fold", "split_seed").equals(run.summary())


def test_the_common_summary_by_hand():
    rows = [("fold-0", 0.6, 0.1), ("fold-1", 0.9, 0.2), ("fold-2", 0.6, 0.6)]
    keys = {"split": "test", "metric": "auroc", "variants": 2, "min": 0.0, "max": 1.0}
    common = common_summary(pl.DataFrame([{"run": run, **keys, "mean": mean, "sd": sd} for run, mean, sd in rows]))
    assert common.columns == ["split", "metric", "runs", "mean", "sd_of_splits", "sd_of_variants", "min", "max"]
    assert common.row(0)[:3] == ("test", "auroc", 3)
    assert np.allclose(common.row(0)[3:], (0.7, 0.03**0.5, 0.3, 0.6, 0.9))


def test_split_seeds_are_the_splits_of_plain_runs(cohort, tmp_path):
    study = train(cohort, tmp_path / "study", split_seeds=(7, 2))
    assert [run.paths.root.name for run in study.runs] == ["split-2", "split-7"]
    assert study.summary.select("run", "fold", "split_seed").unique(maintain_order=True).rows() == [
        ("split-2", None, 2),
        ("split-7", None, 7),
    ]
    for run, seed in zip(study.runs, (2, 7), strict=True):
        assert run.splits["split"].to_list() == load(cohort, split_seed=seed).split.tolist()


def test_one_cohort_is_held_at_a_time(cohort, tmp_path, monkeypatch):
    plain, seen = room.plan, []

    def plan(*arguments, **options):
        gc.collect()
        assert [reference() for reference in seen if reference() is not None] == []
        ready = plain(*arguments, **options)
        seen.append(weakref.ref(ready.cohort))
        return ready

    monkeypatch.setattr(room, "plan", plan)
    train(cohort, tmp_path / "study", folds=3)
    assert len(seen) == 3


def test_a_model_of_ones_own_is_trained_from_python(cohort, tmp_path):
    from own_model import MeanPool

    def factory():
        return MeanPool(features=3, steps=6, outputs=1)

    plain = spec_of(cohort, model={})
    study = vmapens.train_study(factory, str(cohort), plain, tmp_path / "study", folds=2)
    assert [run.manifest["model"]["class"] for run in study.runs] == ["own_model:MeanPool"] * 2


# What is wrong


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--folds", "1"], ["folds is 1", "from 2 to 1000"]),
        (["--folds", "1000000000"], ["folds is 1000000000", "from 2 to 1000"]),
        (["--folds", "30"], [" of 30: split `test` has", "none of another class", "fewer folds"]),
        (["--folds", "3", "--split-seeds", "0:3"], ["--folds and --split-seeds", "give one of them"]),
        (["--split-seeds", "0:3", "--split-seed", "1"], ["--split-seed names one split", "give one of them"]),
        (["--split-seeds", "3"], ["--split-seeds are 3", "two or more"]),
        (["--split-seeds", "3,3"], ["--split-seeds are 3, 3", "without repeats"]),
        (["--split-seeds", "-1,3"], ["split_seed is -1"]),
        (["--split-seeds", "a"], ["--split-seeds `a` cannot be read"]),
        (["--split-seeds", ""], ["--split-seeds `` cannot be read"]),
        (["--folds", "3", "--resume", "--overwrite"], ["give one of them"]),
        (["--folds", "3", "--select-by", "magic"], ["fold-0: unknown metric `magic`"]),
    ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(cohort, tmp_path, capsys, options, texts):
    refused(capsys, command(cohort, tmp_path / "study", *options), *texts)
    assert not (tmp_path / "study").exists()


def test_folds_of_a_file_are_one_run_or_one_line(cohort, tmp_path, capsys):
    config = tmp_path / "study.toml"
    line = [*command(cohort, tmp_path / "study"), "--config", str(config)]
    for text, wanted in (
        ("folds = 3", "fold is None, but must be from 0 to 2 where folds is 3"),
        ("fold = 0", "folds is None, but must be given where fold is"),
        ("folds = 3\nfold = 3", "fold is 3, but must be from 0 to 2"),
        ('folds = "3"\nfold = 0', "cohort.folds is '3', but must be of type int"),
    ):
        config.write_text(f"[cohort]\n{text}\n")
        refused(capsys, line, wanted)
    config.write_text("[cohort]\nfolds = 3\nfold = 2\n")
    refused(capsys, [*line, "--split-seeds", "0:2"], "folds is 3, but --split-seeds draw no folds")
    assert len(study_specs(resolve({}, {"cohort": {"folds": 3, "fold": 2}}), folds=4)) == 4
    with pytest.raises(SpecError, match="give one of them"):
        study_specs(resolve({}))


def test_a_split_that_cannot_be_learnt_is_said_before_anything_is_trained(tmp_path, capsys):
    labels = small_labels().with_columns(died=pl.Series([int(i in (3, 17, 21)) for i in range(40)]))
    cohort = write_small(tmp_path / "cohort", labels=labels)
    refused(capsys, command(cohort, tmp_path / "study", "--split-seeds", "0:4"), "split seed ", "of another class")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("options", [["--folds", "3"], ["--split-seeds", "0:3"], ["--folds", "3", "--dry-run"]])
def test_a_cohort_with_a_split_of_its_own_is_one_line(tmp_path, capsys, options):
    names = [("train", "train", "valid", "test")[i % 4] for i in range(40)]
    cohort = write_small(tmp_path / "cohort", labels=small_labels().with_columns(split=pl.Series(names)))
    line = command(cohort, tmp_path / "study", *options)
    refused(capsys, line, "brings its own split", "train one run on it", "--drop-split")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "line", ["attend X --samples test", "verify X", "analyze X", "report X", "export X --variant 0 --out v.pt"]
)
def test_a_study_given_for_a_run_is_one_line_that_names_its_runs(study, capsys, line):
    words = [str(study.root) if word == "X" else word for word in line.split()]
    refused(capsys, words, "is a study of several runs, not a run: give one of them (fold-0, fold-1, fold-2).")


def test_a_run_given_for_a_study_is_one_line(study, tmp_path):
    with pytest.raises(RunError, match=r"fold-0 is a run, not a study \(it has no study\.json\)"):
        vmapens.open_study(study.root / "fold-0")
    with pytest.raises(RunError, match="nowhere is not a study"):
        vmapens.open_study(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "study.json")
    with pytest.raises(RunError, match="is not a study"):
        vmapens.open_study(tmp_path)


def test_runs_that_differ_in_more_than_the_split_make_no_study(study, cohort, tmp_path):
    shutil.copytree(study.root, tmp_path / "study")
    spec = spec_of(cohort, cohort={"folds": 3, "fold": 2}, train={"epochs": 2})
    vmapens.train(None, None, spec, tmp_path / "study" / "fold-2", resume=True)
    with pytest.raises(RunError, match=r"fold-2 has another cohort, model, split or other settings"):
        vmapens.open_study(tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "fold-2")
    shutil.copytree(study.root / "fold-1", tmp_path / "study" / "fold-2")
    with pytest.raises(RunError, match=r"fold-2 has another cohort, model, split"):
        vmapens.open_study(tmp_path / "study")


# What is printed


def test_the_table_is_that_of_the_study(cohort, tmp_path, capsys):
    assert _main(command(cohort, tmp_path / "study", "--folds", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"2 runs of 2 variants in {tmp_path / 'study'} (fold-0, fold-1)"
    assert "SD of splits" in lines[1]
    assert "SD of variants" in lines[1]
    wanted = vmapens.open_study(tmp_path / "study").common.filter(split="test", metric="auroc").row(0, named=True)
    (line,) = [line for line in lines if line.split()[:2] == ["test", "auroc"]]
    names = ("mean", "sd_of_splits", "sd_of_variants", "min", "max")
    assert line.split()[2:] == [f"{wanted[name]:.4f}" for name in names]


def test_json_prints_one_object(cohort, tmp_path, capsys):
    assert _main(command(cohort, tmp_path / "study", "--folds", "2", "--json", "--split-seed", "4")) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    study = vmapens.open_study(tmp_path / "study")
    assert printed["runs"] == ["fold-0", "fold-1"]
    assert printed["summary"] == study.summary.to_dicts()
    assert printed["common"] == study.common.to_dicts()
    assert {row["split_seed"] for row in printed["summary"]} == {4}


def test_a_dry_run_says_what_one_run_takes_and_how_many_there_are(cohort, tmp_path, capsys):
    assert _main(command(cohort, tmp_path / "study", "--folds", "3", "--dry-run", "--json")) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert (sizes["runs"], sizes["variants"]) == (3, 2)
    assert sizes.keys() >= {"memory_mib", "disk_mib"}
    assert not (tmp_path / "study").exists()


def test_variants_that_failed_are_warned_of_by_run(cohort, tmp_path, capsys):
    assert _main(command(cohort, tmp_path / "study", "--folds", "2", "--lr", "1e38", "--json")) == 0
    streams = capsys.readouterr()
    assert "warning: fold-1: 2 of 2 variants diverged and are left out below (0, 1)" in streams.err
    printed = json.loads(streams.out, parse_constant=pytest.fail)
    assert printed["summary"] == printed["common"] == []
    assert printed["failed"] == {"fold-0": [0, 1], "fold-1": [0, 1]}
