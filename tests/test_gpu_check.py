"""`make gpu-check` at toy size on the CPU, without Polars: the script stays true until a GPU runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import rounding
from benchmarks.gpu_check import SECTIONS, SETUPS, run, summary

WITHOUT_POLARS = "import sys; sys.modules['polars'] = None; "


def python(code, *arguments):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", WITHOUT_POLARS + code, *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_kernels_stack_and_step_import_without_polars():
    done = python("import vmapens.nn, vmapens.nn.kernels.checked, vmapens.ensemble.stack, vmapens.ensemble.step")
    assert done.returncode == 0, done.stderr
    assert "polars" in python("import vmapens.training").stderr  # the block works


def test_the_whole_check_runs_in_toy_form_without_polars(tmp_path):
    pytest.importorskip("triton")
    code = "from benchmarks.gpu_check import main; sys.exit(main(['--toy', '--out', sys.argv[1]]))"
    done = python(code, str(tmp_path / "results"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (tmp_path / "results" / "gpu_check.jsonl").read_text() == done.stdout
    assert all(line["toy"] for line in lines if line["section"] == "circumstances")
    assert {line["section"] for line in lines} >= {name for name, *_ in SECTIONS} | {"summary", "end"}
    assert lines[-1]["ok"]
    assert not any("failed" in line or "left_out" in line for line in lines)


def test_a_failing_section_takes_no_other_along_and_a_late_one_is_left_out(monkeypatch, capsys):
    def broken(setup):
        yield {"half": "done"}
        raise RuntimeError("out of memory")

    def good(setup):
        yield {"ok": True}

    monkeypatch.setattr("benchmarks.gpu_check.SECTIONS", (("broken", 1, broken), ("good", 1, good), ("late", 99, good)))
    monkeypatch.setattr("benchmarks.gpu_check.Setup.toy", False)
    lines = run(SETUPS["toy"], None, deadline_s=50)
    assert lines == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_section = {line["section"]: line for line in reversed(lines)}
    assert by_section["broken"] == {"section": "broken", "half": "done"}
    assert "RuntimeError: out of memory" in [line.get("failed") for line in lines]
    assert by_section["good"]["ok"]
    assert "it wants 99" in by_section["late"]["left_out"]
    assert not lines[-1]["ok"]


def test_the_summary_divides_the_others_time_by_ours_per_variant():
    ours = {"arm": "a", "variants": 1000, "precision": "bf16", "step_ms": {"median": 100.0}}
    ours_64 = {"arm": "a", "variants": 64, "precision": "bf16", "step_ms": {"median": 10.0}}
    b = {"arm": "b", "precision": "tf32", "variant_step_ms": {"median": 4.0}}
    d = {"arm": "d", "precision": "tf32", "variants": 64, "step_ms": {"median": 600.0}}
    found = list(summary([b, ours, d, ours_64]))
    assert [(line["theirs"]["arm"], line["variants"], line["ratio"]) for line in found] == [
        ("b", 1000, 40),
        ("d", 64, 60),
    ]


def test_scores_and_overlaps_of_the_precision_comparison_by_hand():
    scores, y = torch.tensor([[0.1, 0.4, 0.35, 0.8], [0.5, 0.5, 0.5, 0.5]]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert rounding._auroc(scores, y).tolist() == [0.75, 0.5]
    a, b = torch.tensor([[[[3.0, 2.0], [1.0, 0.0]]]]), torch.tensor([[[[3.0, 0.0], [2.0, 1.0]]]])
    assert rounding._overlap(a, b, 2) == 0.5
    assert rounding._overlap(a, a, 2) == 1.0
    assert rounding._kolmogorov_smirnov(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 3.0])) == 0.5
    assert rounding._kolmogorov_smirnov(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])) == 1.0
