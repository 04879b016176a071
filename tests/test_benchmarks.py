"""The benchmarks of training measure what they say: the gate lets no wrong arm through, the lines are complete."""

import importlib.util
import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cohort import write_small

from benchmarks import __main__ as command
from benchmarks import analysis, arms, epoch, gate, harness, notebook_analysis, process, table, train_step, train_to_end
from benchmarks.arms import ensemble, sequential, time_loop
from benchmarks.experiment import Experiment
from benchmarks.problem import SIZES, Problem, Size
from vmapens.ensemble.seeds import construct
from vmapens.nn import AttentionLSTM

TINY = Size("tiny", batch=4, steps=5, features=3, hidden=4, samples=20)
# On Python 3.12 and later: a DataLoader's worker is a fork of a process with threads.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def one_thread():
    """At this size more threads only wait for each other, for long on a busy machine."""
    with harness.torch_threads(1):
        yield


@pytest.fixture
def quick(monkeypatch):
    """Size `small` is tiny, timings are short, and no process is started for the peak of memory."""
    monkeypatch.setitem(SIZES, "small", TINY)
    monkeypatch.setattr(arms, "LEAST_S", 0.001)
    monkeypatch.setattr(sequential, "cores", lambda: 1)
    for module in (train_step, epoch):
        monkeypatch.setattr(module, "peak_mib", lambda *_: 1.0)


def outcome(letter, problem):
    return gate.first_step(arms.build(letter, problem))


def test_the_variants_are_those_of_vmapens():
    modules = list(Problem(TINY, 3).modules())
    for seed, module in enumerate(modules):
        expected, _ = construct(partial(AttentionLSTM, 3, 5, 1, hidden=4), seed)
        for name, value in expected.state_dict().items():
            assert torch.equal(value, module.state_dict()[name])


def test_a_variants_batches_are_the_same_in_any_company():
    few, many = Problem(TINY, 2).batches(), Problem(TINY, 5).batches()
    assert torch.equal(few, many[:, :2])
    assert not torch.equal(few[:, 0], few[:, 1])


@forks
@pytest.mark.parametrize("letter", ["a", "c", "d"])
def test_every_arm_passes_the_gate(letter):
    if reason := arms.why_left_out(letter, "cpu"):
        pytest.skip(reason)
    problem = Problem(TINY, 2)
    reference = outcome("b", problem)
    found = gate.check(letter, outcome(letter, problem), reference)
    assert found.keys() == {"loss", "gradient", "parameter"}
    assert reference.gradients.keys() == reference.parameters.keys()
    assert len(reference.parameters) == 8


def test_the_jax_arm_passes_the_gate_in_a_process_of_its_own():
    if reason := arms.why_left_out("e", "cpu"):
        pytest.skip(reason)
    problem = Problem(TINY, 2)
    with process.remote("e", problem) as arm:
        gate.check("e", gate.first_step(arm), outcome("b", problem))


@forks
@pytest.mark.parametrize("letter", ["a", "c", "d"])
def test_every_arm_goes_on_from_step_to_step_as_the_reference_does(letter):
    if reason := arms.why_left_out(letter, "cpu"):
        pytest.skip(reason)
    own, reference = (arms.build(one, Problem(TINY, 3)) for one in (letter, "b"))
    losses = []
    for arm in (own, reference):
        with arm.settings():
            arm.train(2)
            losses.append(arm.train(3))
    assert losses[0].shape == (3, 3)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # five steps of rounding; seen: 3e-7


def wrong_model(self, x, forward=time_loop.LoopAttentionLSTM.forward):
    return 1.01 * forward(self, x)


BREAKAGES = {
    "loss": lambda patch: patch.setattr(time_loop.LoopAttentionLSTM, "forward", wrong_model),
    "gradient": lambda patch: patch.setattr(
        time_loop.TimeLoop, "gradients", lambda self: (None, {n: 1.01 * p for n, p in outcome_b().gradients.items()})
    ),
    "parameter": lambda patch: patch.setattr(time_loop, "LR", 6e-4),
}


def outcome_b():
    return outcome("b", Problem(TINY, 2))


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_broken_arm_is_caught_and_no_ratio_is_given(what, quick, monkeypatch, capsys, tmp_path):
    BREAKAGES[what](monkeypatch)
    out = tmp_path / "train_step.jsonl"
    options = ["--size", "small", "--arms", "abd", "--variants", "2", "--repeats", "1", "--out", str(out)]
    assert command.main(["run", "train_step", *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not out.exists()
    assert printed.err.startswith(f"arm (d) differs from the reference: {what}")
    assert printed.err.endswith("No ratio is given.\n")


def test_the_gate_stops_a_nan():
    with pytest.raises(gate.GateError, match="loss by nan"):
        gate.hold({}, "a", "loss", "", np.array([0.0, np.nan]), gate.TOLERANCES)


def test_a_step_gives_one_complete_line_for_each_number_of_variants(quick, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sequential, "cores", lambda: 2)
    for module in (sequential, time_loop):  # real threads fight for busy cores
        monkeypatch.setattr(module, "torch_threads", lambda count: nullcontext())
    out = tmp_path / "train_step.jsonl"
    options = ["--arms", "abd", "--variants", "2,16,17", "--repeats", "2", "--out", str(out), "--commit", "abc"]
    assert command.main(["run", "train_step", *options]) == 0
    text = capsys.readouterr().out
    assert out.read_text() == text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["variants"] for line in lines] == [2, 16, 17]
    for line in lines:
        assert line.keys() >= {"benchmark", "size", "unit", "gate", "left_out", "cores", "load_before", "versions"}
        assert (line["repeats"], line["commit"], line["device"]["kind"]) == (2, "abc", "cpu")
        assert line["ratios"].keys() == {"b", "d"}
        assert line["gate"]["b"] == "reference"
        assert line["gate"]["a"].keys() == {"loss", "gradient", "parameter"}
        assert line["arms"]["a"]["variants_timed"] == line["variants"]
        assert line["arms"]["b"]["variants_timed"] == min(line["variants"], 16)
        for arm in (line["arms"]["b"], line["arms"]["d"]):
            assert arm["ms_by_threads"].keys() == {"1", "2"}
            assert arm["ms"] == arm["ms_by_threads"][str(arm["threads"])]
            assert arm["ms"]["median"] == min(ms["median"] for ms in arm["ms_by_threads"].values())
        assert {arm["peak_mib"] for arm in line["arms"].values()} == {1.0}
        assert line["arms"]["a"]["ms"].keys() == {"median", "min", "max"}
    assert lines[1]["cost_over_v16"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert torch.backends.cudnn.rnn.fp32_precision != "ieee"  # the settings are put back


def test_an_arm_whose_package_is_absent_is_left_out_with_the_reason(quick, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else find_spec(name))
    assert command.main(["run", "train_step", "--arms", "abe", "--variants", "1", "--repeats", "1"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["left_out"] == {"e": "jax is not installed; install the extra `bench`"}
    assert line["arms"].keys() == {"a", "b"}


def test_rounds_interleave_the_arms_and_turn_around():
    calls = []

    def task(name):
        return harness.Task(harness.numerics, lambda: calls.append(f"warm {name}"), lambda: calls.append(name), 4)

    seconds = harness.interleave({"a": task("a"), "b": task("b")}, 2)
    assert calls == ["warm a", "a", "warm b", "b", "warm b", "b", "warm a", "a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_within_each_round():
    assert harness.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def allocate(mib):
    np.ones(mib * 2**17)


def test_the_peak_of_memory_is_that_of_the_work_in_a_process_of_its_own():
    if not Path("/proc/self/status").exists():
        pytest.skip("the largest resident set is read from /proc")
    little, much = (process.peak_mib(allocate, mib) for mib in (1, 301))
    assert 250 < much - little < 350


def test_a_step_is_measured_without_polars():
    program = "import sys; sys.modules['polars'] = None; import benchmarks.train_step, benchmarks.arms.ensemble"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


@pytest.fixture
def experiment(tmp_path, quick):
    folder = write_small(tmp_path / "cohort")
    return Experiment(str(folder), "died", "small", variants=3, epochs=2, device="cpu")


@forks
@pytest.mark.parametrize("case", [epoch, train_to_end])
def test_whole_epochs_agree_between_the_arms(case, experiment):
    pytest.importorskip("sklearn", reason="arm (c) needs scikit-learn")
    line = case.measure(experiment, repeats=1)
    assert line["arms"].keys() == {"a", "b", "c"}
    assert line["ratios"].keys() == {"b", "c"}
    assert line["gate"]["b"] == "reference"
    assert all(line["gate"][letter]["loss"] < 1e-5 for letter in "ac")
    assert (line["variants"], line["arms"]["a"]["variants_timed"], line["steps"]) == (3, 3, 6)
    json.dumps(line)


@pytest.mark.parametrize("case", [epoch, train_to_end])
def test_a_broken_epoch_is_caught(case, experiment, monkeypatch):
    right = epoch.train_epoch

    def wrong(model, block, data, spec, **options):
        block.stack.theta.mul_(1.01)
        return right(model, block, data, spec, **options)

    monkeypatch.setattr(epoch, "train_epoch", wrong)
    monkeypatch.setattr("vmapens.training.train_epoch", wrong)
    with pytest.raises(gate.GateError, match=r"arm \(a\) differs from the reference: loss"):
        case.measure(experiment, arms="ab", repeats=1)


def made_line(variants, ratios, kind="cpu", **changes):
    spreads = {letter: {"median": value, "min": value - 0.1, "max": value + 0.1} for letter, value in ratios.items()}
    device = {"kind": kind, "name": "H200"}
    return {"size": "small", "variants": variants, "device": device, "cores": 2, "ratios": spreads, **changes}


def test_the_table_takes_the_newest_line_and_says_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    cost = {"cost_over_v16": {"median": 1.04, "min": 1.0, "max": 1.1}}
    lines = [
        made_line(64, {"b": 9.0}),
        made_line(64, {"b": 1.5, "d": 2.25}, **cost),
        made_line(64, {"b": 7.0}, kind="cuda"),
    ]
    (tmp_path / "train_step.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "epoch.jsonl").write_text(json.dumps(made_line(64, {"b": 1.2, "c": 3.0})) + "\n")
    rows = table.training_table().splitlines()
    step = "1.50 (1.40 to 1.60) |  | 2.25 (2.15 to 2.35) | not measured yet | 1.04 (1.00 to 1.10) |"
    assert f"| train_step | small | 64 | CPU, 2 cores | {step}" in rows
    assert "| epoch | small | 64 | CPU, 2 cores | 1.20 (1.10 to 1.30) | 3.00 (2.90 to 3.10) |  |  |  |" in rows
    assert "| train_to_end | small | 64 | CPU | not measured yet | not measured yet |  |  |  |" in rows
    assert any(row.startswith("| train_step | small | 64 | H200 | 7.00 (6.90 to 7.10) |") for row in rows)
    assert len({row.count("|") for row in rows}) == 1
    assert not any("9.00" in row for row in rows)


def test_the_arm_of_this_project_takes_the_width_of_training():
    assert ensemble.Ensemble(Problem(TINY, 40)).width == 40
    assert ensemble.Ensemble(Problem(TINY, 300)).width == 256  # a block


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Three variants as a run and as checkpoints, and two stays."""
    folder = tmp_path_factory.mktemp("analysis")
    return analysis.make_work(folder, variants=3, stays=2, steps=6, features=5, hidden=2, measured=1)


def found_by(letter, work):
    return analysis.ARMS[letter](work).look(range(len(work.x)))


@pytest.mark.parametrize("letter", ["a", "b"])
def test_an_analysis_finds_what_the_notebooks_way_finds(letter, work):
    reference = found_by("c", work)
    apart, left_out = analysis.check(letter, found_by(letter, work), work, reference)
    assert apart.keys() == {"drop", "rank mean", "rank SD"}
    assert left_out == {"cells": 0, "drops": 0}
    assert work.ks == [1, 4]
    for stay in reference:
        assert stay.drop[:, 0].tolist() == work.ks  # of one variant all its own
        assert stay.mean.mean() == pytest.approx(15.5)  # of the ranks 1 to 30
        assert stay.sd_after.shape == (2, 30)  # after 2 and 3 variants
        assert (stay.sd == stay.sd_after[-1]).all()
        assert (stay.smallest == stay.sd_after.min(axis=1)).all()
        assert (stay.largest == stay.sd_after.max(axis=1)).all()


def test_the_notebooks_way_reads_every_checkpoint_for_every_analysis_stay_and_k(work, monkeypatch):
    read, load = [], torch.load
    work.x  # noqa: B018 (read before)
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path.stem) or load(path, **options))
    found_by("c", work)
    assert sorted(read) == sorted(["0", "1", "2"] * 2 * (len(work.ks) + 2))
    read.clear()
    found_by("b", work)
    assert read == ["0", "1", "2"]


ANALYSIS_BREAKAGES = {
    "drop": lambda found: found._replace(drop=found.drop + np.array([[0, 1, 0]])),
    "rank mean": lambda found: found._replace(mean=found.mean * (1 + 2e-6)),
    "rank SD": lambda found: found._replace(sd=found.sd + 2e-6 * np.maximum(found.sd, 1)),
}


@pytest.mark.parametrize("what", ANALYSIS_BREAKAGES)
def test_a_broken_analysis_is_caught_and_no_ratio_is_given(what, work, monkeypatch):
    right = analysis.Product.look
    wrong = ANALYSIS_BREAKAGES[what]
    monkeypatch.setattr(analysis.Product, "look", lambda self, stays: [wrong(found) for found in right(self, stays)])
    monkeypatch.setattr(analysis, "peak_mib", lambda *_: 1.0)
    with pytest.raises(gate.GateError, match=rf"arm \(a\) differs from the reference: {what}"):
        analysis.compare(work, repeats=1, stays_timed=1)


def test_ties_are_left_out_of_the_comparison_and_counted(work, monkeypatch):
    def tied(self, stay, variants):
        for weights in attention(self, stay, variants):
            largest = np.argsort(weights)[::-1]
            weights[largest[work.ks[0]]] = weights[largest[work.ks[0] - 1]]  # on both sides of the smallest k
            yield weights

    attention = notebook_analysis.Notebook.attention
    reference = found_by("c", work)
    monkeypatch.setattr(notebook_analysis.Notebook, "attention", tied)
    left_out = analysis.check("a", reference, work, reference)[1]
    assert left_out["drops"] == 1 / len(work.ks)
    assert 2 / 30 <= left_out["cells"] <= 6 / 30  # two cells of each of three variants
    monkeypatch.setattr(notebook_analysis.Notebook, "attention", lambda *_: [np.ones(30)] * 3)
    with pytest.raises(gate.GateError, match="nothing to compare"):
        analysis.check("a", reference, work, reference)


def test_an_analysis_gives_one_complete_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(analysis.SIZES, "small", (6, 5, 2))
    monkeypatch.setattr(analysis, "thread_counts", lambda: [1])
    monkeypatch.setattr(analysis, "peak_mib", lambda *_: 1.0)
    out = tmp_path / "analysis.jsonl"
    options = ["--variants", "3", "--stays", "2", "--stays-timed", "1", "--repeats", "2", "--out", str(out)]
    assert command.main(["run", "analysis", *options, "--commit", "abc"]) == 0
    text = capsys.readouterr().out
    assert out.read_text() == text
    line = json.loads(text)
    assert line.keys() >= {"benchmark", "unit", "k", "cores", "load_before", "versions", "ties_left_out"}
    assert (line["size"], line["variants"], line["stays"], line["commit"]) == ("small", 3, 2, "abc")
    assert line["gate"]["c"] == "reference"
    assert line["gate"].keys() == line["arms"].keys() == {"a", "b", "c"}
    assert line["ratios"].keys() == {"b", "c"}
    assert {letter: arm["stays_timed"] for letter, arm in line["arms"].items()} == {"a": 2, "b": 2, "c": 1}


def test_the_cost_of_a_stay_is_said_with_its_parts_and_a_projection_that_is_called_one(monkeypatch, tmp_path):
    analysis.make_run(tmp_path, variants=3, steps=24, features=5, hidden=1, samples=20)
    line = json.loads(json.dumps(analysis.cost(tmp_path)))
    for name in ("all_grains", "cells"):
        assert [timing.keys() for timing in line[name]] == [{"cpu_s", "wall_s"}] * 2
        assert line[f"{name}_parts"].keys() == {"attention", "agreement", "ranking", "divergence"}
    assert line["k"] == [1, 2, 18]
    assert line["gpu_projection"]["what"] == "a projection, not a measurement"
    assert line["gpu_projection"]["as_built_s"] >= 0


def test_a_projection_by_hand():
    """Of 1000 variants at the paper's size: attention is three products of 288 x 231 with 231 x 231 a variant."""
    found = analysis.projection(1000, 288, 231, [100, 998, 9979], rest_s=10)
    attention = found["parts"]["attention"]
    assert attention["gigaflops"] == pytest.approx(3 * 1000 * 2 * 288 * 231 * 231 / 1e9, abs=0.1)
    assert attention["ms"] == pytest.approx(1000 * 92.2e9 / 60e12, abs=0.01)  # more than its bytes take
    assert found["copy_ms"] == pytest.approx(1000 * 3 * 266.1e6 / 25e9, abs=0.1)
    assert found["as_built_s"] == pytest.approx(10 + (attention["ms"] + found["copy_ms"]) / 1000, abs=0.01)
    assert found["all_on_gpu_ms"] == pytest.approx(sum(part["ms"] for part in found["parts"].values()), abs=0.1)


def test_the_table_of_the_analysis_takes_the_newest_lines_and_says_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert table.analysis_table().count("not measured yet") == 5
    sizes = {"steps": 48, "features": 37}
    lines = [made_line(200, {"b": 9.0, "c": 9.0}, **sizes), made_line(200, {"b": 2.0, "c": 150.0}, **sizes)]
    lines.append({"size": "paper", "variants": 900, "steps": 288, "features": 231, "peak_mib": 4096})
    lines[-1] |= {"all_grains": [{"cpu_s": 19.04}, {"cpu_s": 1.0}], "cells": [{"cpu_s": 9.96}, {"cpu_s": 1.0}]}
    (tmp_path / "analysis.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = table.analysis_table()
    for wanted in (
        "| 48 x 37 | 200 | 150.00 (149.90 to 150.10) |",
        "| 288 x 231 | 900 | 19.0 s |",
        "| 10.0 s |",
        "4.0 GiB",
    ):
        assert wanted in text
    assert "9.00 (" not in text
