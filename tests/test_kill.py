"""A process that dies at whatever moment: its run goes on, and ends in the bytes of an undisturbed one."""

import random
import signal
import time

import child
import pytest
from test_resume import assert_same_files

from vmapens.cohort.synthetic import make_synthetic

SIGNALS = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts") / "synthetic"
    make_synthetic(folder, samples=300, steps=12, features=6, seed=1)
    return folder


def command(cohort, out, *more):
    line = ["train", cohort, "--task", "outcome", "--variants", "6", "--block", "2", "--epochs", "6", "--hidden", "8"]
    line += ["--snapshots", "0,3", "--lr", "1e-2", "--patience", "3", "--checkpoint-every", "0"]
    return [*line, "--save-attention", "test:9", "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory):
    """A finished run, and the seconds it took."""
    folder = tmp_path_factory.mktemp("runs")
    child.run(["--version"], folder / "errors")  # starts the server
    begun = time.monotonic()
    status, said = child.run(command(cohort, folder / "run"), folder / "errors")
    assert status == 0, said
    return folder / "run", time.monotonic() - begun


def finish(cohort, out, errors):
    """The same command plus --resume, to its end."""
    status, said = child.run(command(cohort, out, "--resume"), errors)
    assert status == 0, said


def kill_at_random_moments(cohort, undisturbed, tmp_path, *, kills, seed):
    """Several kills a run, until there are so many; a process that ends before its moment counts for none."""
    whole, seconds = undisturbed
    generator, killed, run = random.Random(seed), 0, 0
    while killed < kills:
        run += 1
        out, resume = tmp_path / f"run{run}", []
        for _ in range(4):
            process = child.Child(command(cohort, out, *resume), tmp_path / "errors")
            time.sleep(generator.uniform(0, 0.7 * seconds))
            process.process.kill()
            status, said = process.wait()
            assert status in (0, -signal.SIGKILL), said
            killed += status != 0
            resume = ["--resume"]
        finish(cohort, out, tmp_path / "errors")
        assert_same_files(whole, out)


def test_a_run_killed_8_times_at_random_moments_ends_in_the_same_bytes(cohort, undisturbed, tmp_path):
    kill_at_random_moments(cohort, undisturbed, tmp_path, kills=8, seed=0)


@pytest.mark.slow
def test_a_run_killed_20_times_at_random_moments_ends_in_the_same_bytes(cohort, undisturbed, tmp_path):
    kill_at_random_moments(cohort, undisturbed, tmp_path, kills=20, seed=time.time_ns())


WRITES = [
    [("run.json", 1, "half"), ("state.safetensors", 1, "half"), ("state.safetensors", 2, "before")],
    [("state.safetensors", 2, "after"), ("epoch-0003.safetensors", 1, "before"), ("best.safetensors", 1, "half")],
    [("done.json", 1, "before"), ("history.parquet", 1, "after"), ("done.json", 1, "after"), ("done.json", 1, "half")],
    [("predictions.parquet", 1, "half"), ("part-0.arrow", 1, "half"), ("part-0.arrow", 2, "after")],
    [("index.parquet", 1, "before"), ("inputs.arrow", 1, "after"), ("SHA256SUMS", 1, "after"), ("run.json", 2, "half")],
]


@pytest.mark.parametrize("kills", WRITES, ids=lambda kills: ",".join(name for name, *_ in kills))
def test_a_run_killed_while_it_writes_ends_in_the_same_bytes(cohort, undisturbed, tmp_path, kills):
    for number, kill in enumerate(kills):
        resume = ["--resume"] if number else []
        status, said = child.run(command(cohort, tmp_path / "run", *resume), tmp_path / "errors", kill_at=kill)
        assert status == -signal.SIGKILL, f"{kill}: {said}"
    finish(cohort, tmp_path / "run", tmp_path / "errors")
    assert_same_files(undisturbed[0], tmp_path / "run")


@pytest.mark.parametrize("number", SIGNALS, ids=SIGNALS.values())
def test_an_interrupt_stops_within_a_step_and_says_how_to_go_on(cohort, undisturbed, tmp_path, number):
    out = tmp_path / "a run"
    process = child.Child(command(cohort, out), tmp_path / "errors")
    while not list(out.glob("blocks/*/state.safetensors")):
        assert process.process.is_alive()
        time.sleep(0.005)
    process.send(number)
    begun = time.monotonic()
    status, said = process.wait()
    assert time.monotonic() - begun < 10  # a step takes milliseconds, and the machine may be busy
    assert status == 130, said
    assert said.splitlines()[-1].startswith("interrupted. Finished blocks and the last checkpoint are kept. To go on: ")
    assert f"--out '{out}' --resume" in said
    assert not list(out.rglob(".*"))  # neither a lock nor a temporary file
    finish(cohort, out, tmp_path / "errors")
    assert_same_files(undisturbed[0], out)


@pytest.mark.parametrize("name", ["best.safetensors", "predictions.parquet", "part-0.arrow", "SHA256SUMS"])
def test_an_interrupt_behind_the_training_stops_as_well(cohort, undisturbed, tmp_path, name):
    number = signal.SIGTERM if name == "part-0.arrow" else signal.SIGINT
    out = tmp_path / "run"
    status, said = child.run(command(cohort, out), tmp_path / "errors", kill_at=(name, 1, number))
    assert status == 130, said
    assert f"--out {out} --resume" in said.splitlines()[-1]
    assert not list(out.rglob(".*"))
    finish(cohort, out, tmp_path / "errors")
    assert_same_files(undisturbed[0], out)


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_an_overwriting_that_was_killed_leaves_nothing_of_the_old_run(cohort, undisturbed, tmp_path, more):
    """Whatever settings the old one had; and files that are not vmapens' stay."""
    out = tmp_path / "run"
    status, said = child.run(["train", cohort, "--task", "outcome", "--epochs", "1", "--out", out], tmp_path / "errors")
    assert status == 0, said
    (out / "notes.txt").write_text("mine")
    again = command(cohort, out, "--overwrite")
    status, said = child.run(again, tmp_path / "errors", kill_at=("run.json", 1, "after"))
    assert status == -signal.SIGKILL, said
    assert (out / "blocks").exists()
    status, said = child.run(command(cohort, out, *more), tmp_path / "errors")
    assert status == 0, said
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert_same_files(undisturbed[0], out)
