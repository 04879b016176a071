"""`vmapens analyze` and `vmapens report`: the answer, and one clear line for all that cannot be analysed."""

import json
import shutil
from pathlib import Path

import pytest

import vmapens
from vmapens.analysis.study import read_analysis
from vmapens.cli import _main
from vmapens.cohort.synthetic import make_synthetic
from vmapens.report.sentences import sentences

BARE = ["--samples", "test:2", "--without", "gradients,faithfulness,learned_mask"]


def train(cohort, out, *more):
    line = ["train", str(cohort), "--task", "outcome", "--variants", "3", "--block", "2", "--epochs", "1"]
    assert _main([*line, "--hidden", "3", "--save-attention", "none", "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(cohort_folder, folder):
    """Never analysed."""
    return train(cohort_folder, folder / "run")


@pytest.fixture(scope="module")
def analysed(cohort_folder, folder):
    out = train(cohort_folder, folder / "analysed")
    assert _main(["analyze", str(out), *BARE]) == 0
    return out


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refused(capsys, arguments, *texts):
    """The command exits with 2, prints one line on standard error that holds the texts, and writes nothing."""
    arguments = list(map(str, arguments))
    paths = [Path(word) for word in arguments if "/" in word]
    before = [contents(path.parent) for path in paths if path.parent.is_dir()]
    capsys.readouterr()
    status = _main(arguments)
    streams = capsys.readouterr()
    assert status == 2, streams
    assert streams.out == ""
    lines = streams.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0], lines[0]
    assert [contents(path.parent) for path in paths if path.parent.is_dir()] == before


@pytest.mark.parametrize("command", ["analyze", "report"])
def test_help_has_an_example(command, capsys):
    assert _main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    assert f"Example: vmapens {command} " in text


def test_analyze_prints_the_answer_and_where_the_tables_are(analysed, capsys):
    assert _main(["analyze", str(analysed), *BARE, "--seed", "3"]) == 0
    streams = capsys.readouterr()
    tables, description = read_analysis(analysed)
    *answer, last = streams.out.splitlines()
    assert answer == sentences(tables, description)
    assert len(answer) == 4
    assert last == f"tables are in {analysed / 'analysis'}; a page: vmapens report {analysed}"
    notes = [line for line in streams.err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {note}" for note in description["notes"]]
    assert description["seed"] == 3


def test_analyze_as_json_is_one_object(analysed, capsys):
    assert _main(["analyze", str(analysed), *BARE, "--json", "--top-k", "5,0.5", "--threshold", "0.3"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    tables, description = read_analysis(analysed)
    assert said["run"] == str(analysed)
    assert said["answer"] == sentences(tables, description)
    assert said["rows"] == {name: len(frame) for name, frame in tables.items()}
    assert said["settings"] == description
    assert description["k"] == [5, 24]
    assert tables["rashomon"]["threshold"].unique().to_list() == [0.3]


def test_every_part_runs_by_default(trained, folder, capsys, monkeypatch):
    """Learned masks and all, with a file of ids; from where the ids are."""
    run = folder / "copy"
    shutil.copytree(trained, run)
    cohort = vmapens.load(vmapens.open_run(run).spec.cohort)
    ids = [cohort.samples[int(cohort.rows("test")[0])]]
    (folder / "ids.txt").write_text("\n".join(ids))
    monkeypatch.chdir(folder)
    assert _main(["analyze", "copy", "--samples", "@ids.txt"]) == 0
    assert "note: Left out" not in capsys.readouterr().err
    tables = read_analysis(run)[0]
    assert tables["samples"]["sample"].to_list() == ids
    assert not tables["learned_mask"].is_empty()
    assert not tables["faithfulness"].is_empty()


def test_report_writes_the_page_where_it_is_told(analysed, tmp_path, capsys):
    page = tmp_path / "deep" / "page.html"
    assert _main(["report", str(analysed), "--out", str(page), "--figures", "svg"]) == 0
    assert capsys.readouterr().out == f"the report is in {page}\n"
    assert page.read_text().startswith("<!")
    assert list((page.parent / "figures").glob("*.svg"))
    assert not (analysed / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--top-k", "0"], ["--top-k is 0", "a whole number from 1 to 47", "there are 48"]),
        (["--top-k", "48"], ["--top-k is 48"]),
        (["--top-k", "0.1,1.5"], ["--top-k is 1.5"]),
        (["--top-k", "-1"], ["--top-k is -1"]),
        (["--top-k", "nan"], ["--top-k is nan"]),
        (["--top-k", "many"], ["--top-k `many` cannot be read"]),
        (["--top-k", ""], ["--top-k `` cannot be read"]),
        (["--samples", "stay-000,nobody"], ["1 samples are not in the cohort (nobody)"]),
        (["--samples", "test:dead"], ["`test:dead`", "positive, no, yes"]),
        (["--samples", "@nowhere"], ["nowhere", "one id a line"]),
        (["--samples", "none"], ["names no stay"]),
        (["--samples", "saved"], ["names no stay"]),
        (["--without", "thinking"], ["--without names thinking", "gradients, faithfulness, learned_mask"]),
        (["--threshold", "2"], ["--threshold is 2.0", "between 0 and 1"]),
        (["--threshold", "0"], ["--threshold is 0.0"]),
        (["--tolerance", "-1"], ["--tolerance is -1"]),
        (["--window", "-1", "--seed", "-1"], ["--window is -1", "--seed is -1"]),
        (["--model", "own_model:MeanPool"], ["trained with `attention-lstm`, not with `own_model:MeanPool`"]),
        (["--cohort", "nowhere"], ["nowhere", "--cohort"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(trained, capsys, arguments, texts):
    refused(capsys, ["analyze", trained, *arguments], *texts)


def test_what_is_no_run_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path, text in (
        (tmp_path / "nowhere", "is not a run: it has no run.json"),
        (tmp_path, "is not a run: it has no run.json"),
        (tmp_path / "file", "file"),
    ):
        refused(capsys, ["analyze", path], str(path), text)
        refused(capsys, ["analyze", trained, path], str(path), text)
    refused(capsys, ["analyze"], "RUN")


def unfinished(trained, out):
    """As a training leaves it that was interrupted in its second block."""
    shutil.copytree(trained, out)
    manifest = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**manifest, "state": "running"}))
    (out / "blocks" / "000002-000002" / "done.json").unlink()
    return out


def test_a_run_that_is_not_finished_says_how_far_it_is(trained, analysed, tmp_path, capsys):
    run = unfinished(trained, tmp_path / "run")
    texts = ["is not finished (state `running`)", "1 of its 2 blocks are trained (2 of 3 variants)", "--resume"]
    refused(capsys, ["analyze", run], str(run), *texts)
    refused(capsys, ["analyze", analysed, run], str(run), *texts)
    spec = vmapens.open_run(trained).spec
    vmapens.train(None, None, spec, run, resume=True)
    assert _main(["analyze", str(run), *BARE]) == 0


def test_fewer_than_two_good_variants_are_one_line(cohort_folder, tmp_path, capsys):
    one = train(cohort_folder, tmp_path / "one", "--variants", "1")
    refused(capsys, ["analyze", one], "has 1 variants that did not fail, of 1, wanted 2 or more", "--variants N")
    failed = train(cohort_folder, tmp_path / "failed", "--lr", "1e38")
    refused(capsys, ["analyze", failed], "has 0 variants that did not fail, of 3, wanted 2 or more")


def test_runs_that_cannot_be_compared_are_one_line(trained, cohort_folder, tmp_path, capsys):
    make_synthetic(tmp_path / "cohort", samples=200, steps=8, features=6, seed=2)
    others = {
        "it is of another cohort": train(tmp_path / "cohort", tmp_path / "a"),
        "split otherwise; use the same --split-seed": train(cohort_folder, tmp_path / "b", "--split-seed", "1"),
        "only one of the two was trained with --no-sample-ids": train(cohort_folder, tmp_path / "c", "--no-sample-ids"),
        "only one of the two was trained with --indicators": train(cohort_folder, tmp_path / "d", "--indicators"),
    }
    for text, other in others.items():
        refused(capsys, ["analyze", trained, other], f"{other} cannot be compared with {trained}", text)
    for again in (trained, trained.parent / "." / ".." / trained.parent.name / trained.name, f"{trained}/"):
        refused(capsys, ["analyze", trained, again], "a run is named twice")
    (tmp_path / "link").symlink_to(trained)
    refused(capsys, ["analyze", trained, tmp_path / "link"], "a run is named twice")


def test_a_report_before_an_analysis_is_one_line(trained, analysed, tmp_path, capsys):
    refused(capsys, ["report", trained], "has no whole analysis", f"`vmapens analyze {trained}`")
    refused(capsys, ["report", tmp_path / "nowhere"], "is not a run")
    refused(capsys, ["report", analysed, "--out", tmp_path / "page.txt"], "ends in `.txt`: name an .html file")
    refused(capsys, ["report", analysed, "--figures", "jpeg"], "--figures", "svg")
    assert not (trained / "report.html").exists()


def test_a_table_that_was_cut_is_one_line(analysed, tmp_path, capsys):
    shutil.copytree(analysed, tmp_path / "run")
    path = tmp_path / "run" / "analysis" / "agreement.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    refused(capsys, ["report", tmp_path / "run"], "cannot be read", f"`vmapens analyze {tmp_path / 'run'}`")


def test_a_full_analysis_that_is_cut_short_leaves_none(analysed, tmp_path, monkeypatch):
    """Else old tables would stand beside new ones."""
    from vmapens.analysis import study

    shutil.copytree(analysed, tmp_path / "run")
    plain, written = study.write_parquet, []

    def fail_at_the_third(path, frame):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        plain(path, frame)

    monkeypatch.setattr(study, "write_parquet", fail_at_the_third)
    assert _main(["analyze", str(tmp_path / "run"), *BARE]) == 130
    with pytest.raises(vmapens.errors.RunError, match="has no whole analysis"):
        read_analysis(tmp_path / "run")
