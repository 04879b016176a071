"""The way back of a study after anything: it goes on to the same bytes, or is replaced, and nothing else is lost."""

import json
import shutil
import signal
from pathlib import Path

import child
import pytest
from made_study import Heard, command, interrupted_at, patients, spec_of, train
from small_cohort import small_labels, write_small
from test_cli import refused
from test_resume import assert_same_files, contents

import vmapens
from vmapens.cli import _main
from vmapens.directory import RunPaths
from vmapens.errors import RunError
from vmapens.lock import hold


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return patients(tmp_path_factory.mktemp("cohorts") / "small")


@pytest.fixture(scope="module")
def study(cohort, tmp_path_factory):
    return train(cohort, tmp_path_factory.mktemp("studies") / "study", folds=3)


# Going on


def test_a_study_killed_in_its_third_run_ends_in_the_same_bytes(cohort, tmp_path):
    out, errors = tmp_path / "study", tmp_path / "errors"
    kills = [("study.json", 1, "half"), ("best.safetensors", 3, "half"), ("summary.parquet", 1, "before")]
    for number, kill in enumerate(kills):
        more = ["--resume"] if number else []
        status, said = child.run(command(cohort, out, "--folds", "4", *more), errors, kill_at=kill)
        assert status == -signal.SIGKILL, f"{kill}: {said}"
        with pytest.raises(RunError, match="is not finished" if number else "is not a study"):
            vmapens.open_study(out)
    train(cohort, out, folds=4, resume=True)
    whole = train(cohort, tmp_path / "whole", folds=4)
    for root in (out, whole.root):  # the commands differ
        for path in (root / "study.json", *root.glob("fold-*/run.json")):
            path.write_text(json.dumps({**json.loads(path.read_text()), "command": []}))
        for path in root.glob("fold-*/SHA256SUMS"):
            path.unlink()
    assert_same_files(out, whole.root)


def test_an_interrupt_says_how_to_go_on(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "replace", interrupted_at("best.safetensors", 2))
    assert _main(command(cohort, tmp_path / "study", "--folds", "3")) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("--folds 3 --resume")
    assert not list((tmp_path / "study").rglob(".*"))
    with pytest.raises(RunError, match="is not finished"):
        vmapens.open_study(tmp_path / "study")


def test_a_finished_study_resumed_stays_as_it_is(study, cohort):
    before = contents(study.root)
    train(cohort, study.root, folds=3, resume=True)
    assert contents(study.root) == before


def test_more_split_seeds_leave_the_runs_that_are_there(cohort, tmp_path):
    train(cohort, tmp_path / "study", split_seeds=(0, 5))
    before = contents(tmp_path / "study")
    more = train(cohort, tmp_path / "study", split_seeds=(0, 3, 5), resume=True)
    assert [run.paths.root.name for run in more.runs] == ["split-0", "split-3", "split-5"]
    after = contents(tmp_path / "study")
    assert {name for name in before if after[name] != before[name]} == {"summary.parquet", "study.json"}
    assert_same_files(tmp_path / "study", train(cohort, tmp_path / "whole", split_seeds=(0, 3, 5)).root)


def test_a_study_that_is_extended_and_interrupted_has_no_summary(cohort, tmp_path):
    """It would be of fewer epochs than some of the runs."""
    train(cohort, tmp_path / "study", folds=3)
    longer = {"train": {"epochs": 2}}
    with pytest.raises(KeyboardInterrupt):
        train(cohort, tmp_path / "study", folds=3, resume=True, listener=Heard(stop_after=3), **longer)
    with pytest.raises(RunError, match=r"is not finished \(it has no summary\.parquet\)"):
        vmapens.open_study(tmp_path / "study")
    train(cohort, tmp_path / "study", folds=3, resume=True, **longer)
    assert_same_files(tmp_path / "study", train(cohort, tmp_path / "whole", folds=3, **longer).root)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"folds": 3, "train": {"epochs": 1, "lr": 0.1}}, r"fold-0 cannot be resumed: .*lr of variant 0"),
        ({"folds": 2}, r"it has fold-0, fold-1, fold-2, and fold-2 is not asked for"),
        ({"folds": 5}, r"spec\.cohort\.folds was 3, is 5"),
        ({"split_seeds": (0, 1)}, r"it has fold-0, .* and fold-0 is not asked for"),
    ],
)
def test_anything_else_that_differs_is_refused_and_changes_nothing(study, cohort, changes, text):
    before = contents(study.root)
    with pytest.raises(RunError, match=text):
        train(cohort, study.root, resume=True, **changes)
    assert contents(study.root) == before


def test_progress_is_that_of_the_whole_study(cohort, tmp_path):
    heard = Heard()
    train(cohort, tmp_path / "study", folds=3, listener=heard)
    assert (heard.totals, heard.done) == ([6], 6)
    heard = Heard()
    train(cohort, tmp_path / "study", folds=3, resume=True, listener=heard)
    assert (heard.totals, heard.done) == ([], 0)
    shutil.rmtree(tmp_path / "study" / "fold-1")
    heard = Heard()
    train(cohort, tmp_path / "study", folds=3, resume=True, listener=heard)
    assert (heard.totals, heard.done) == ([4], 4)


def test_a_warning_about_the_cohort_is_said_once(tmp_path):
    cohort = write_small(tmp_path / "cohort", labels=small_labels(39))
    heard = Heard()
    train(cohort, tmp_path / "study", folds=2, listener=heard, cohort={"unmatched": "keep"})
    warnings = [line for line in heard.lines if line.startswith("warning: ")]
    assert warnings == ["warning: fold-0: 1 samples without a label were left out (40)."]


# Replacing


def test_overwriting_leaves_nothing_of_the_old_study_and_the_users_files(cohort, tmp_path):
    out = tmp_path / "study"
    train(cohort, out, folds=3)
    for folder in (out, out / "fold-0", out / "fold-2"):
        (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already: choose another --out, or --overwrite it, or --resume"):
        train(cohort, out, folds=2)
    train(cohort, out, folds=2, overwrite=True)
    assert (out / "fold-2").exists()
    assert [path.name for path in (out / "fold-2").iterdir()] == ["notes.txt"]
    for folder in (out, out / "fold-0", out / "fold-2"):
        (folder / "notes.txt").unlink()
    (out / "fold-2").rmdir()
    assert_same_files(out, train(cohort, tmp_path / "whole", folds=2).root)


@pytest.mark.parametrize(
    ("name", "occurrence", "resume"),
    [("study.json", 1, False), ("run.json", 1, True), ("run.json", 3, False), ("study.json", 2, True)],
)
def test_an_overwriting_that_is_cut_short_leaves_nothing_of_the_old_study(
    study, cohort, tmp_path, monkeypatch, name, occurrence, resume
):
    """Folds 0 and 1 of three become those of two, with other variants, and the third goes."""
    out, other = tmp_path / "study", {"folds": 2, "variants": {"init_seeds": "5:7"}}
    shutil.copytree(study.root, out)
    (out / "fold-0" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted_at(name, occurrence))
        with pytest.raises(KeyboardInterrupt):
            train(cohort, out, overwrite=True, **other)
    with pytest.raises(RunError, match="is not finished"):
        vmapens.open_study(out)
    if name == "study.json" and occurrence == 1:  # not even begun: it is the old study still
        train(cohort, out, folds=3, resume=True)
        (out / "fold-0" / "notes.txt").unlink()
        assert_same_files(out, study.root)
        return
    train(cohort, out, resume=resume, **other)
    assert (out / "fold-0" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == ["fold-0", "fold-1", "study.json", "summary.parquet"]
    assert [run.variants["init_seed"].to_list() for run in vmapens.open_study(out).runs] == [[5, 6]] * 2


def test_a_run_and_a_study_never_take_each_others_place(study, cohort, tmp_path, capsys):
    run = tmp_path / "run"
    assert _main(command(cohort, run)) == 0
    for root, more in ((study.root, []), (run, ["--folds", "3"])):
        before = contents(root)
        what = "a run (it has no study.json)" if more else "a study (it has no run.json)"
        for how in ([], ["--overwrite"], ["--resume"]):
            refused(capsys, command(cohort, root, *more, *how), f"exists already and is {what}: choose another --out")
        assert contents(root) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    refused(capsys, command(cohort, tmp_path / "mine", "--folds", "3", "--overwrite"), "is not a study")
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"


def test_a_folder_in_the_way_of_a_run_is_said_before_anything_is_trained(cohort, tmp_path):
    train(cohort, tmp_path / "study", split_seeds=(0, 1))
    (tmp_path / "study" / "split-2").mkdir()
    (tmp_path / "study" / "split-2" / "letters.txt").write_text("dear")
    before = contents(tmp_path / "study")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(RunError, match=r"split-2 exists already and is not a run"):
            train(cohort, tmp_path / "study", split_seeds=(0, 1, 2), **how)
    assert contents(tmp_path / "study") == before


def test_a_study_in_use_is_left_alone(study, cohort):
    before = contents(study.root)
    with hold(study.root), pytest.raises(RunError, match="is in use by process"):
        train(cohort, study.root, folds=3, overwrite=True)
    assert contents(study.root) == before


@pytest.mark.parametrize(
    "change",
    [
        {"runs": [{"run": "../precious", "split_seed": 0, "folds": None, "fold": None}]},
        {"runs": [{"run": "fold-0", "split_seed": 0, "folds": 2}]},
        {"runs": [{"split_seed": 0}]},
        {"runs": [{"run": "split-x", "split_seed": "x"}]},
        {"runs": [3]},
        {"runs": []},
        {"runs": None},
        {"format_version": 2},
    ],
)
def test_a_study_file_that_was_changed_is_one_line_and_removes_nothing(study, cohort, tmp_path, change):
    shutil.copytree(study.root, tmp_path / "study")
    shutil.copytree(study.root / "fold-0", tmp_path / "precious")
    path = tmp_path / "study" / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = contents(tmp_path)
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError, match=r"study\.json( cannot be read|: format version 2)"):
            train(cohort, tmp_path / "study", folds=3, **how)
    with pytest.raises(RunError, match=r"study\.json( cannot be read|: format version 2)"):
        vmapens.open_study(tmp_path / "study")
    assert contents(tmp_path) == before


def test_nothing_is_removed_or_written_through_a_link(study, cohort, tmp_path):
    shutil.copytree(study.root, tmp_path / "study")
    (tmp_path / "study" / "fold-1").rename(tmp_path / "precious")
    (tmp_path / "study" / "fold-1").symlink_to(tmp_path / "precious")
    before = contents(tmp_path / "precious")
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError, match=r"holds links \(.*fold-1"):
            train(cohort, tmp_path / "study", folds=3, **how)
    assert contents(tmp_path / "precious") == before


def test_a_run_from_before_there_were_folds_goes_on(cohort, tmp_path):
    run = vmapens.train(None, None, spec_of(cohort), tmp_path / "run")
    path = RunPaths(run.paths.root).manifest
    manifest = json.loads(path.read_text())
    del manifest["spec"]["cohort"]["folds"], manifest["spec"]["cohort"]["fold"]
    path.write_text(json.dumps(manifest))
    assert vmapens.open_run(tmp_path / "run").spec == run.spec
    longer = vmapens.train(None, None, spec_of(cohort, train={"epochs": 2}), tmp_path / "run", resume=True)
    assert_same_files(
        longer.paths.root,
        vmapens.train(None, None, spec_of(cohort, train={"epochs": 2}), tmp_path / "other").paths.root,
    )
