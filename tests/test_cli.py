"""The command line: every command, its exit status, and one clear line for wrong input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

import vmapens
from vmapens.cli import _main
from vmapens.cohort.synthetic import make_synthetic

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts") / "synthetic"
    make_synthetic(folder, samples=120, steps=6, features=5, seed=1)
    return folder


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert _main(small(cohort, out)) == 0
    return out


def small(cohort, out, *more):
    line = ["train", str(cohort), "--task", "outcome", "--variants", "3", "--epochs", "2", "--hidden", "3"]
    return [*line, "--out", str(out), *more]


def refused(capsys, arguments, *texts):
    """The command exits with 2 and prints one line on standard error that holds the texts."""
    capsys.readouterr()
    status = _main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    lines = [line for line in streams.err.splitlines() if not line.startswith("warning:")]
    assert status == 2, streams
    assert streams.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0], lines[0]


def test_train_prints_a_table_and_json_prints_one_object(cohort, tmp_path, capsys):
    assert _main(small(cohort, tmp_path / "a")) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 variants in ")
    assert re.search(r"test +auroc +0\.\d{4}", out)
    assert _main(small(cohort, tmp_path / "b", "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["variants"] == 3
    assert {row["metric"] for row in summary["summary"]} >= {"auroc", "brier"}
    assert summary["spec"]["train"]["epochs"] == 2


def test_dry_run_says_sizes_and_writes_nothing(cohort, tmp_path, capsys):
    assert _main(small(cohort, tmp_path / "run", "--dry-run", "--json")) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["variants"] == 3
    assert sizes["parameters_per_variant"] == 5 * 5 + 5 + 12 * (5 + 3 + 2) + 4
    assert sizes.keys() >= {"memory_mib", "disk_mib", "attention_mib"}
    assert not (tmp_path / "run").exists()


def test_the_estimate_of_the_disk_is_near_what_a_run_takes(cohort, tmp_path, capsys):
    line = small(cohort, tmp_path / "run", "--hidden", "64", "--save-attention", "all")
    assert _main([*line, "--dry-run", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert _main(line) == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()) / 2**20
    assert sizes["disk_mib"] == pytest.approx(taken, abs=1.0, rel=0.3)


def test_attend_and_export_and_describe(trained, cohort, tmp_path, capsys):
    assert _main(["attend", str(trained), "--samples", "valid:4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 4
    assert _main(["export", str(trained), "--variant", "2", "--out", str(tmp_path / "v.pt")]) == 0
    assert "dense.weight" in torch.load(tmp_path / "v.pt", weights_only=True)
    assert _main(["describe", str(cohort)]) == 0
    assert "outcome" in capsys.readouterr().out
    assert _main(["describe", str(cohort), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_settings_come_from_the_command_line_over_the_file_over_the_preset(cohort, tmp_path, capsys):
    config = tmp_path / "study.toml"
    config.write_text(
        f"""save_attention = "none"
        [cohort]
        path = "{cohort}"
        task = "outcome"
        [train]
        epochs = 3
        lr = 0.01
        [variants]
        init_seeds = "4:6"
        """
    )
    line = ["train", "--config", str(config), "--preset", "yadav2025-mortality", "--epochs", "1", "--hidden", "3"]
    assert _main([*line, "--out", str(tmp_path / "run")]) == 0
    assert "warning: the kept epochs are chosen on the test split" in capsys.readouterr().err
    spec = vmapens.open_run(tmp_path / "run").spec
    assert (spec.train.epochs, spec.train.lr, spec.train.batch_size, spec.model.hidden) == (1, 0.01, 64, 3)
    assert spec.variants.init_seeds == (4, 5)
    assert spec.train.select_on == "test"
    assert spec.save_attention == "none"


def test_crossed_and_bootstrap_seeds_and_snapshots(cohort, tmp_path):
    line = ["train", str(cohort), "--task", "outcome", "--epochs", "1", "--hidden", "3", "--out", str(tmp_path / "run")]
    seeds = ["--design", "crossed", "--init-seeds", "0:2", "--order-seeds", "3:5", "--bootstrap-seeds", "7"]
    assert _main([*line, *seeds, "--snapshots", "0,1", "--block", "3"]) == 0
    table = vmapens.open_run(tmp_path / "run").variants
    assert table.select("init_seed", "order_seed", "bootstrap_seed").rows() == [
        (0, 3, 7), (0, 4, 7), (1, 3, 7), (1, 4, 7)
    ]  # fmt: skip
    assert len(list((tmp_path / "run" / "blocks").glob("*/epoch-0001.safetensors"))) == 2


@pytest.mark.parametrize("entry", [[sys.executable, "cli.py"], [str(Path(sys.executable).parent / "vmapens")]])
def test_both_entries_answer(entry):
    done = subprocess.run([*entry, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"vmapens {vmapens.__version__}\n"


COMMANDS = "train,attend,export,describe,demo,import,import physionet2012,import tensors,import synthetic"


@pytest.mark.parametrize("command", ["", *COMMANDS.split(",")])
def test_help_has_an_example(command, capsys):
    assert _main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    assert "Example: vmapens" in text


def test_without_a_command_the_help_is_printed(capsys):
    for command in ([], ["import"]):
        assert _main(command) == 0
        assert "Usage:" in capsys.readouterr().out


def test_an_interrupt_exits_with_130_and_names_the_command_that_resumes(cohort, tmp_path):
    line = small(cohort, tmp_path / "run", "--epochs", "100000", "--overwrite")
    process = subprocess.Popen([sys.executable, "cli.py", *line], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "features.parquet").exists():
        time.sleep(0.1)
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("--epochs 100000 --resume")


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    import vmapens.run

    def fault(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(vmapens.run, "export_variant", fault)
    with pytest.raises(ZeroDivisionError):
        _main(["export", "run", "--variant", "1", "--out", "x.pt"])


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--variants", "0"], ["--variants is 0", "1 or more"]),
        (["--variants", "-3"], ["--variants is -3"]),
        (["--variants", "many"], ["--variants", "integer"]),
        (["--epochs", "0"], ["epochs is 0", "1 or more"]),
        (["--batch-size", "-1"], ["batch_size is -1"]),
        (["--hidden", "0"], ["hidden is 0"]),
        (["--lr", "0"], ["lr is 0"]),
        (["--lr", "nan"], ["lr is nan"]),
        (["--weight-decay", "-1"], ["weight_decay is -1"]),
        (["--block", "0"], ["--block is `0`"]),
        (["--order-seeds", "5:5"], ["--order-seeds `5:5` is empty", "A:B with A < B"]),
        (["--order-seeds", "a:b"], ["cannot be read"]),
        (["--seeds", "0:3"], ["give one of them"]),
        (["--attend-over", "space"], ["--attend-over", "feature", "uniform"]),
        (["--device", "tpu"], ["--device", "cuda"]),
        (["--precision", "tf32", "--device", "cpu"], ["tf32", "fp32"]),
        (["--preset", "nobody2020"], ["unknown preset `nobody2020`", "yadav2025-mortality"]),
        (["--select-by", "magic"], ["unknown metric `magic`", "auroc"]),
        (["--select-by", "macro_auroc"], ["does not apply to a binary task"]),
        (["--snapshots", "7"], ["snapshots", "0 to 2"]),
        (["--snapshots", "a"], ["--snapshots `a` cannot be read"]),
        (["--model", "own_model:MeanPool"], ["hidden belong to the model attention-lstm", "[model.options]"]),
        (["--save-attention", "test:0"], ["test:N"]),
        (["--save-attention", "@nowhere"], ["nowhere", "list of ids"]),
        (["--save-attention", "somebody"], ["1 samples are not in the cohort (somebody)"]),
        (["--model", "gru"], ["model is `gru`", "package:Class"]),
        (["--task", "death"], ["unknown task `death`", "outcome"]),
        (["--config", "nowhere.toml"], ["nowhere.toml does not exist"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--design", "crossed", "--order-seeds", "0,0"], ["order_seeds", "without repeats"]),
        (["--order-seeds", "0:2"], ["number of order_seeds is 2", "--design crossed"]),
    ],
)
def test_wrong_settings_are_one_line_and_leave_nothing(cohort, tmp_path, capsys, arguments, texts):
    refused(capsys, small(cohort, tmp_path / "run", *arguments), *texts)
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_imported_is_one_line(cohort, tmp_path, capsys):
    line = ["train", cohort, "--task", "outcome", "--out", tmp_path / "run"]
    refused(capsys, [*line, "--model", "nowhere:Model"], "`nowhere:Model` cannot be imported", "PYTHONPATH")
    refused(capsys, [*line, "--model", "own_model:Nobody"], "cannot be imported")


def test_a_config_that_is_wrong_is_one_line(cohort, tmp_path, capsys):
    config = tmp_path / "study.toml"
    for text, wanted in [
        ("[train", "not a readable TOML file"),
        ("[trian]\nepochs = 1", "unknown setting `trian`"),
        ("[train]\nepoch = 1", "unknown setting `epoch` in [train]"),
        ('[train]\nepochs = "ten"', "train.epochs is 'ten'"),
        ('[model]\nattend_over = "space"', "model.attend_over is `space`"),
        ("[cohort]\nfractions = [0.5, 0.5, 0.5]", "fractions"),
    ]:
        config.write_text(text)
        line = ["train", cohort, "--task", "outcome", "--out", tmp_path / "run", "--config", config]
        refused(capsys, line, wanted)


def test_missing_arguments_are_one_line(cohort, tmp_path, capsys):
    refused(capsys, ["train"], "a cohort and its --task are needed")
    refused(capsys, ["train", cohort, "--task", "outcome"], "--out is missing")
    refused(capsys, ["export", "run"], "--variant")
    refused(capsys, ["no-such-command"], "no-such-command")
    refused(capsys, ["import", "excel"], "excel")


def test_a_run_that_exists_is_never_overwritten_silently(trained, cohort, tmp_path, capsys):
    before = (trained / "run.json").read_bytes()
    refused(capsys, small(cohort, trained), "exists already", "--overwrite")
    assert (trained / "run.json").read_bytes() == before
    other = tmp_path / "precious"
    other.mkdir()
    (other / "letters.txt").write_text("dear")
    refused(capsys, small(cohort, other, "--overwrite"), "is not a run")
    assert (other / "letters.txt").read_text() == "dear"
    assert _main(small(cohort, tmp_path / "run")) == 0
    assert _main(small(cohort, tmp_path / "run", "--overwrite")) == 0


def test_an_output_that_cannot_be_written_is_one_line(trained, cohort, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused(capsys, small(cohort, tmp_path / "file" / "run"), "cannot be written")
    refused(capsys, ["export", trained, "--variant", "0", "--out", tmp_path / "file" / "v.pt"], "cannot be written")
    refused(capsys, ["import", "synthetic", "--out", tmp_path / "file" / "cohort"], "cannot be written")
    refused(capsys, ["demo", "--out", tmp_path / "file" / "demo"], "cannot be written")


def test_the_demo_refuses_before_it_writes_and_overwrites_no_cohort_but_its_own(cohort, tmp_path, capsys):
    refused(capsys, ["demo", "--variants", "0", "--out", tmp_path / "demo"], "--variants is 0")
    assert not (tmp_path / "demo-cohort").exists()
    info = json.loads((cohort / "cohort.json").read_text())
    (tmp_path / "demo-cohort").mkdir()
    (tmp_path / "demo-cohort" / "cohort.json").write_text(json.dumps({**info, "source": "my own patients"}))
    refused(capsys, ["demo", "--out", tmp_path / "demo", "--overwrite"], "holds a cohort already")
    assert (tmp_path / "demo-cohort" / "cohort.json").exists()


def test_runs_that_are_none_or_lack_a_part_are_one_line(trained, tmp_path, capsys):
    refused(capsys, ["attend", tmp_path / "nowhere", "--samples", "test"], "is not a run", "vmapens train")
    refused(capsys, ["export", trained, "--variant", "3", "--out", tmp_path / "v.pt"], "variant 3 is not in", "0 to 2")
    refused(capsys, ["export", trained, "--variant", "-1", "--out", tmp_path / "v.pt"], "variant -1 is not in")
    refused(capsys, ["export", trained, "--variant", "0", "--out", tmp_path / "v.onnx"], "`.onnx`")
    refused(capsys, ["describe", tmp_path / "nowhere"], "does not exist")


def test_weights_cut_short_are_one_line(cohort, tmp_path, capsys):
    assert _main(small(cohort, tmp_path / "run")) == 0
    path = tmp_path / "run" / "blocks" / "000000-000002" / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(capsys, ["export", tmp_path / "run", "--variant", "0", "--out", tmp_path / "v.pt"], "best.safetensors")


def test_an_arrow_file_cut_short_is_refused(cohort, tmp_path):
    assert _main(small(cohort, tmp_path / "run")) == 0
    (path,) = (tmp_path / "run" / "attention").glob("*/part-0.arrow")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(vmapens.errors.RunError, match="not a whole Arrow file"):
        vmapens.open_run(tmp_path / "run").attention()


def test_a_split_of_one_class_is_one_line(cohort, tmp_path, capsys):
    other = tmp_path / "cohort"
    other.mkdir()
    for name in ("series.parquet", "cohort.json"):
        (other / name).write_bytes((cohort / name).read_bytes())
    labels = pl.read_parquet(cohort / "labels.parquet")
    labels.with_columns(outcome=pl.lit(0).cast(labels.schema["outcome"])).write_parquet(other / "labels.parquet")
    refused(capsys, small(other, tmp_path / "run"), "class")
    assert not (tmp_path / "run").exists()


def test_fewer_samples_than_a_batch_are_fine(tmp_path):
    make_synthetic(tmp_path / "cohort", samples=80, steps=6, features=5, seed=3)
    assert _main(small(tmp_path / "cohort", tmp_path / "run", "--batch-size", "1000")) == 0


def test_no_home_and_no_terminal_are_needed(cohort, tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "vmapens.cli", *small(cohort, tmp_path / "run")]
    program = "import sys; from vmapens.cli import main; sys.argv = sys.argv[:1] + sys.argv[1:]; main()"
    done = subprocess.run([sys.executable, "-c", program, *line[3:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_run_may_have_signs_of_patterns_in_its_name(cohort, tmp_path):
    assert _main(small(cohort, tmp_path / "x[red]*y")) == 0
    assert _main(["attend", str(tmp_path / "x[red]*y"), "--samples", "test:17"]) == 0


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(tmp_path):
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); from vmapens.cli import main; main()"
    )
    line = ["import", "synthetic", "--samples", "200", "--out", str(tmp_path / "cohort")]
    done = subprocess.run([sys.executable, "-c", program, *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr
    assert not list((tmp_path / "cohort").glob(".*"))


def test_an_import_overwrites_no_file_of_the_users(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "series.parquet").write_text("dear")
    refused(capsys, ["import", "synthetic", "--out", tmp_path / "mine"], "holds series.parquet already")
    assert (tmp_path / "mine" / "series.parquet").read_text() == "dear"


def test_a_demo_in_the_way_of_a_run_writes_no_cohort(trained, capsys):
    refused(capsys, ["demo", "--out", trained], "exists already")
    assert not Path(f"{trained}-cohort").exists()


def test_a_failed_variant_is_warned_of_and_not_exported(cohort, tmp_path, capsys):
    line = ["train", str(cohort), "--task", "outcome", "--variants", "2", "--epochs", "1", "--lr", "1e38", "--json"]
    assert _main([*line, "--out", str(tmp_path / "run")]) == 0
    streams = capsys.readouterr()
    assert "warning: 2 of 2 variants diverged and are left out below (0, 1)" in streams.err
    assert json.loads(streams.out, parse_constant=pytest.fail)["summary"] == []
    refused(capsys, ["export", tmp_path / "run", "--variant", "1", "--out", tmp_path / "v.pt"], "variant 1 failed")


def test_variants_on_the_command_line_mean_the_same_seed_for_init_and_order(cohort, tmp_path):
    (tmp_path / "a.toml").write_text("[variants]\ninit_seeds = [1, 2]\norder_seeds = [5, 6]")
    assert _main(small(cohort, tmp_path / "run", "--config", str(tmp_path / "a.toml"), "--variants", "2")) == 0
    assert vmapens.open_run(tmp_path / "run").variants["order_seed"].to_list() == [0, 1]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("steps", "6", "steps is '6'"),
        ("minutes_per_step", "a", "minutes_per_step is 'a'"),
        ("dropped", None, "dropped is None"),
        ("tasks", [{"name": "outcome", "kind": "foo", "classes": ["a", "b"]}], "is foo"),
        ("tasks", [{"name": "outcome", "kind": "binary", "classes": ["a", "b", "c"]}], "has 3 classes"),
        ("features", [{"name": 5}], "must be texts"),
    ],
)
def test_a_wrong_description_of_a_cohort_is_one_line(cohort, tmp_path, key, value, text):
    for name in ("series.parquet", "labels.parquet"):
        (tmp_path / name).write_bytes((cohort / name).read_bytes())
    info = json.loads((cohort / "cohort.json").read_text())
    (tmp_path / "cohort.json").write_text(json.dumps({**info, key: value}))
    # In a process of its own: here the types of a dataclass would be checked before we could.
    line = [sys.executable, "cli.py", "describe", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*cohort\.json cannot be read .*{re.escape(text)}.*\n", done.stderr)
