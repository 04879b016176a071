"""Memory is planned: what is predicted is what is taken, and running out of it changes no result."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from test_step import made_data, train_ensemble

from vmapens.ensemble import epoch as epoch_room
from vmapens.ensemble.memory import Width, is_out_of_memory
from vmapens.machine import free_memory
from vmapens.nn.kernels import use_kernel

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
]


def fail_above(monkeypatch, name, width, error):
    """Let a function of the epoch run out of memory above a width; gives the widths it was tried with."""
    tried, real = [], getattr(epoch_room, name)

    def limited(*arguments, **options):
        stack = next(a for a in arguments if isinstance(a, epoch_room.Stack))
        tried.append(len(stack.theta))
        if len(stack.theta) > width and len(tried) > 3:  # not at once: some steps are taken by then
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(epoch_room, name, limited)
    return tried


@pytest.mark.parametrize("kernel", ["compiled", "onednn"])
@pytest.mark.parametrize("name", ["train_step", "predict"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_running_out_of_memory_changes_no_byte(monkeypatch, error, name, kernel):
    x, y = made_data(90, 5, 4)
    options = {"hidden": 4, "epochs": 5, "batch_size": 16}
    with use_kernel(kernel):
        wanted = train_ensemble(range(7), x, y, width=7, **options)
        tried = fail_above(monkeypatch, name, 2, error)
        got = train_ensemble(range(7), x, y, width=7, **options)
    assert max(tried) == 7
    assert min(tried) <= 2
    assert torch.equal(got[0].stack.theta, wanted[0].stack.theta)
    assert torch.equal(got[0].state.second, wanted[0].state.second)
    assert torch.equal(got[0].best.theta, wanted[0].best.theta)
    assert got[3].equals(wanted[3])


def test_one_variant_that_does_not_fit_is_an_error(monkeypatch):
    x, y = made_data(90, 5, 4)
    fail_above(monkeypatch, "train_step", 0, MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        train_ensemble(range(3), x, y, hidden=4, epochs=2)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    x, y = made_data(90, 5, 4)
    fail_above(monkeypatch, "train_step", 1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_ensemble(range(3), x, y, hidden=4, epochs=5)


def test_a_width_is_cut_as_far_as_it_must_and_says_so_once(monkeypatch):
    x, y = made_data(90, 5, 4)
    heard = []
    fail_above(monkeypatch, "train_step", 4, MemoryError())
    train_ensemble(range(14), x, y, hidden=4, epochs=5, width=Width(12, heard.append))
    assert heard == [6, 3]


def test_a_step_that_runs_out_of_memory_has_changed_nothing(monkeypatch):
    """Memory is taken before the first variant is updated."""
    from vmapens.ensemble import optimizer

    x, y = made_data(40, 5, 4)
    block, *_ = train_ensemble(range(3), x, y, hidden=4, epochs=1)
    before = block.stack.theta.clone(), block.state.second.clone()
    trained = block.stack.theta[:, : block.stack.trained_width]
    parts = {(c.start, c.stop): torch.ones(3, c.stop - c.start) for c in block.stack.columns}
    monkeypatch.setattr(optimizer.torch, "zeros_like", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        optimizer.update_parts_(trained, parts, block.state, 2)
    assert torch.equal(block.stack.theta, before[0])
    assert torch.equal(block.state.second, before[1])


def measured(*options: str) -> dict[str, float]:
    """What `python -m benchmarks run memory` says: a process of its own, whose peak nothing else has raised."""
    command = [sys.executable, "-m", "benchmarks", "run", "memory", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (line,) = (json.loads(text) for text in done.stdout.splitlines())
    return line


@pytest.mark.parametrize(("variants", "hidden", "over"), [(48, 96, "feature"), (24, 48, "pool"), (8, 64, "time")])
def test_the_predicted_memory_is_the_measured_peak(variants, hidden, over):
    """Within 15 %."""
    options = ["--hidden", str(hidden), "--attend-over", over, "--samples", "600", "--steps", "60", "--features", "30"]
    line = measured("--variants", str(variants), *options)
    assert 0.85 <= line["predicted_mib"] / line["peak_mib"] <= 1.15, line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "steps", "features"),
    [(20_000, 288, 231), (12_000, 288, 32)],
    ids=["the largest", "loading is the most"],
)
def test_a_large_cohort_takes_what_was_said_before_it_was_read_and_after(samples, steps, features, tmp_path):
    """20,000 x 288 x 231 on a machine with 24 GB: 5 GiB as a tensor, and less than half as much beside it."""
    tensor = 4 * samples * steps * features / 2**20
    if free_memory() < 1.8 * 2**20 * tensor + 2**30 or shutil.disk_usage(tmp_path).free < 2**20 * tensor:
        pytest.skip("too little memory or disk is free")
    sizes = ("--samples", str(samples), "--steps", str(steps), "--features", str(features), "--measured", "0.3")
    line = measured(*sizes, "--variants", "4", "--hidden", "8", "--folder", str(tmp_path))
    assert 0.9 <= line["loading_mib"] / line["peak_mib"] <= 1.3, line  # what polars takes differs by a third
    assert 0.85 <= line["predicted_mib"] / line["peak_mib"] <= 1.15, line
    assert line["peak_mib"] < 1.5 * tensor + 1024, line
