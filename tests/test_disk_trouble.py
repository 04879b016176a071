"""Disks that are full or read-only, damaged files, processes that meet: one clear line, and nothing is lost."""

import shutil
import time

import child
import polars as pl
import pytest
from test_kill import command, finish
from test_resume import EACH_EPOCH, StopAfter, assert_same_files, contents, spec_of, train

import vmapens
from vmapens.errors import RunError


@pytest.fixture(scope="module")
def undisturbed(cohort_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    status, said = child.run(command(cohort_folder, folder / "run"), folder / "errors")
    assert status == 0, said
    return folder / "run"


def refused(said, *words):
    """The last line, which is the only error."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert said.splitlines()[-1:] == errors, said
    assert "Traceback" not in said
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize(
    "name",
    [
        *("run.json", "epoch-0003.safetensors", "state.safetensors", "history.parquet", "done.json"),
        *("predictions.parquet", "metrics.parquet", "part-0.arrow", "inputs.arrow", "SHA256SUMS"),
    ],
)
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(cohort_folder, undisturbed, tmp_path, name):
    status, said = child.run(command(cohort_folder, tmp_path / "run"), tmp_path / "errors", full_at=name)
    assert status == 2, said
    refused(said, str(tmp_path / "run"), f"{name} cannot be written: ", "File too large", "make room")
    assert not list((tmp_path / "run").rglob(".*"))
    finish(cohort_folder, tmp_path / "run", tmp_path / "errors")
    assert_same_files(undisturbed, tmp_path / "run")


def test_a_read_only_folder_is_said_and_left_alone(cohort_folder, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "readonly" / "run")
    before = contents(tmp_path / "readonly")
    folders = [tmp_path / "readonly", *(path for path in (tmp_path / "readonly").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for arguments in (
            command(cohort_folder, tmp_path / "readonly" / "new"),
            command(cohort_folder, tmp_path / "readonly" / "run", "--resume"),
            command(cohort_folder, tmp_path / "readonly" / "run", "--overwrite"),
            ["attend", tmp_path / "readonly" / "run", "--samples", "test"],
        ):
            status, said = child.run(arguments, tmp_path / "errors", ordinary=True)
            assert status == 2, said
            refused(said, str(tmp_path / "readonly"), "cannot be written (Permission denied)")
        status, said = child.run(["verify", tmp_path / "readonly" / "run"], tmp_path / "errors", ordinary=True)
        assert status == 0, said
        assert contents(tmp_path / "readonly") == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_two_processes_on_one_run_directory_do_not_meet(cohort_folder, undisturbed, tmp_path):
    first = child.Child(command(cohort_folder, tmp_path / "run"), tmp_path / "errors")
    while not (tmp_path / "run" / "run.json").exists():
        assert first.process.is_alive()
        time.sleep(0.005)
    for more in (["--resume"], ["--overwrite"]):
        status, said = child.run(command(cohort_folder, tmp_path / "run", *more), tmp_path / "others")
        if status != 0:  # the first may have ended
            assert status == 2
            refused(
                said, "run is in use by process", f"{first.process.pid} on ", " since 20", "wait for it, or stop it"
            )
            break
    else:
        pytest.fail("the first process was never in the way")
    status, said = first.wait()
    assert status == 0, said
    assert_same_files(undisturbed, tmp_path / "run")


@pytest.fixture
def interrupted(cohort_folder, tmp_path):
    """Block 0 is finished, block 1 has a checkpoint; and a run that went through."""
    with pytest.raises(KeyboardInterrupt):
        train(spec_of(cohort_folder), tmp_path / "run", care=EACH_EPOCH, listener=StopAfter(13))
    return tmp_path / "run", train(spec_of(cohort_folder), tmp_path / "whole").paths.root


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    """One bit, far behind the header."""
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_named_and_only_its_variants_begin_anew(cohort_folder, interrupted, damage):
    out, whole = interrupted
    state = out / "blocks" / "000002-000003" / "state.safetensors"
    damage(state)
    before = contents(out)
    with pytest.raises(
        RunError, match=r"the checkpoint .*000002-000003/state\.safetensors is damaged .*variants 2 to 3"
    ):
        train(spec_of(cohort_folder), out, resume=True)
    after = contents(out)
    assert all(after[name] == data for name, data in before.items())
    state.unlink()
    train(spec_of(cohort_folder), out, resume=True)
    assert_same_files(out, whole)


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", ["best.safetensors", "history.parquet", "done.json"])
def test_a_damaged_finished_block_is_named_and_the_others_stay(cohort_folder, interrupted, damage, name):
    out, whole = interrupted
    folder = out / "blocks" / "000000-000001"
    if name == "done.json":
        (folder / name).write_text("{}")
    else:
        damage(folder / name)
    with pytest.raises(
        RunError, match=rf"000000-000001/{name} .*: remove .*000000-000001, and --resume trains variants 0 to 1"
    ):
        train(spec_of(cohort_folder), out, resume=True)
    shutil.rmtree(folder)
    train(spec_of(cohort_folder), out, resume=True)
    assert_same_files(out, whole)


def test_a_missing_block_of_a_finished_run_is_said_and_trained_again(cohort_folder, tmp_path):
    run = train(spec_of(cohort_folder), tmp_path / "run")
    before = contents(run.paths.root)
    shutil.rmtree(run.paths.block(2, 4))
    with pytest.raises(RunError, match=r"000002-000003/.* cannot be read"):
        vmapens.open_run(run.paths.root).weights()
    listener = StopAfter()
    train(spec_of(cohort_folder), run.paths.root, resume=True, listener=listener)
    assert [line for line in listener.lines if "000002-000003 is missing or not whole: it is trained again" in line]
    assert contents(run.paths.root) == before


def test_weights_with_a_flipped_bit_are_refused_by_every_reader(cohort_folder, tmp_path):
    run = train(spec_of(cohort_folder), tmp_path / "run")
    flip(run.paths.block(0, 2) / "best.safetensors")
    with pytest.raises(RunError, match="its bytes are not those that were written"):
        vmapens.open_run(run.paths.root).state_dict(0)


def test_a_cohort_that_changed_since_the_run_began_is_refused(cohort_folder, tmp_path):
    shutil.copytree(cohort_folder, tmp_path / "cohort")
    with pytest.raises(KeyboardInterrupt):
        train(spec_of(tmp_path / "cohort"), tmp_path / "run", listener=StopAfter(13))
    labels = pl.read_parquet(tmp_path / "cohort" / "labels.parquet")
    labels.with_columns(outcome=1 - pl.col("outcome")).write_parquet(tmp_path / "cohort" / "labels.parquet")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match=r"run cannot be resumed: the cohort .* has changed since the run began"):
        train(spec_of(tmp_path / "cohort"), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    train(spec_of(cohort_folder), tmp_path / "run", resume=True)  # the same files elsewhere
