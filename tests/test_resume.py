"""Going on with a run: the same bytes as an undisturbed one, or a line that says why not."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
import torch

import vmapens
from vmapens.attention import attend_samples
from vmapens.directory import RunPaths
from vmapens.errors import RunError
from vmapens.spec import resolve
from vmapens.training import Care
from vmapens.verify import verify

V, EPOCHS = 5, 4
EACH_EPOCH = Care(checkpoint_minutes=0)


def spec_of(folder, *, variants=f"0:{V}", **train):
    base = {"cohort": {"path": str(folder), "task": "outcome"}, "model": {"hidden": 4}, "block": 2}
    settings = {"epochs": EPOCHS, "batch_size": 32} | train
    return resolve(base | {"train": settings, "variants": {"init_seeds": variants}, "save_attention": "test:7"})


def train(spec, out, **options):
    return vmapens.train(None, None, spec, out, **options)


class StopAfter:
    """A listener that interrupts once so many epochs of one variant are done, and hears what is said."""

    def __init__(self, variant_epochs=10**9):
        self.left, self.total, self.lines = variant_epochs, 0, []

    def start(self, variant_epochs):
        self.total = variant_epochs

    def advance(self, variant_epochs):
        self.left -= variant_epochs
        if self.left < 0:
            raise KeyboardInterrupt

    def say(self, line):
        self.lines.append(line)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_same_files(root, other):
    a, b = contents(root), contents(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


@pytest.fixture(scope="module")
def whole(cohort_folder, tmp_path_factory):
    return train(spec_of(cohort_folder, snapshots=[0, 2]), tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("stop_after", [1, 5, 7, 2 * EPOCHS, 3 * EPOCHS + 1])
def test_an_interrupted_run_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes(
    whole, cohort_folder, tmp_path, stop_after
):
    spec, out = spec_of(cohort_folder, snapshots=[0, 2]), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, care=EACH_EPOCH, listener=StopAfter(stop_after))
    with pytest.raises(RunError, match="is not finished"):
        vmapens.open_run(out)
    with pytest.raises(RunError, match="exists already"):
        train(spec, out)
    finished = out / "blocks" / "000000-000001" / "best.safetensors"
    stamp = finished.stat().st_mtime_ns if finished.exists() else None
    listener = StopAfter()
    resumed = train(spec, out, resume=True, listener=listener)
    assert listener.total == V * EPOCHS - stop_after // 2 * 2
    assert stamp in (None, finished.stat().st_mtime_ns)
    assert resumed.manifest["state"] == "done"
    assert_same_files(out, whole.paths.root)
    assert listener.left == 10**9 - listener.total


def test_without_an_interval_over_there_is_no_checkpoint_and_the_block_begins_anew(whole, cohort_folder, tmp_path):
    spec, out = spec_of(cohort_folder, snapshots=[0, 2]), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, listener=StopAfter(5))
    assert not (out / "blocks" / "000000-000001" / "state.safetensors").exists()
    train(spec, out, resume=True)
    assert_same_files(out, whole.paths.root)


def test_a_finished_run_resumed_stays_as_it_is(whole, cohort_folder):
    before = contents(whole.paths.root)
    train(spec_of(cohort_folder, snapshots=[0, 2]), whole.paths.root, resume=True)
    assert contents(whole.paths.root) == before


def test_more_epochs_give_the_run_that_had_them_from_the_start(cohort_folder, tmp_path):
    short = train(spec_of(cohort_folder, epochs=2), tmp_path / "run")
    history = short.history
    longer = train(spec_of(cohort_folder, epochs=EPOCHS), tmp_path / "run", resume=True)
    assert longer.history.filter(pl.col("epoch") <= 2).equals(history)
    fresh = train(spec_of(cohort_folder, epochs=EPOCHS), tmp_path / "fresh")
    assert_same_files(longer.paths.root, fresh.paths.root)
    assert (tmp_path / "run" / "blocks" / "000000-000001" / "state.safetensors").exists()


def test_an_extension_that_is_interrupted_mixes_nothing(cohort_folder, tmp_path):
    """Attention of the shorter run is not taken for that of the longer one."""
    out = tmp_path / "run"
    train(spec_of(cohort_folder, epochs=1), out)
    with pytest.raises(KeyboardInterrupt):
        train(spec_of(cohort_folder), out, resume=True, care=EACH_EPOCH, listener=StopAfter(7))
    with pytest.raises(RunError, match=r"spec\.train\.epochs was 4, is 1"):
        train(spec_of(cohort_folder, epochs=1), out, resume=True)
    train(spec_of(cohort_folder), out, resume=True)
    assert_same_files(out, train(spec_of(cohort_folder), tmp_path / "fresh").paths.root)


def test_more_variants_get_blocks_of_their_own_and_leave_the_others_untouched(cohort_folder, tmp_path):
    run = train(spec_of(cohort_folder, variants="0:3"), tmp_path / "run")
    attend_samples(run.paths.root, "test:12")
    run = vmapens.open_run(run.paths.root)
    blocks = contents(run.paths.root / "blocks")
    predictions, attention = run.predictions, run.attention()
    more = train(spec_of(cohort_folder, variants="0:6"), tmp_path / "run", resume=True)
    assert more.blocks == [(0, 2), (2, 3), (3, 5), (5, 6)]
    now = contents(run.paths.root / "blocks")
    assert {name: now[name] for name in blocks} == blocks
    assert more.predictions.filter(pl.col("variant") < 3).equals(predictions)
    assert np.array_equal(more.attention()[:3], attention)
    fresh = train(spec_of(cohort_folder, variants="0:6"), tmp_path / "fresh")
    assert torch.equal(more.weights().theta, fresh.weights().theta)
    assert more.variants.equals(fresh.variants)
    assert more.predictions.equals(fresh.predictions)
    assert more.metrics.equals(fresh.metrics)
    assert np.array_equal(more.attention(fresh.saved_samples), fresh.attention())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 3}, r"spec\.train\.epochs was 4, is 3"),
        ({"variants": "0:4"}, "there were 5 variants, are 4"),
        ({"variants": "1:6"}, "init_seed of variant 0 was 0, is 1"),
        ({"lr": [5e-4] * 4 + [1e-3]}, r"lr of variant 4 was 0\.0005, is 0\.001"),
        (
            {"batch_size": 16, "patience": 1},
            r"spec\.train\.batch_size was 32, is 16; spec\.train\.patience was 0, is 1\.",
        ),
    ],
)
def test_anything_else_that_differs_is_refused_with_the_list(whole, cohort_folder, changes, text):
    before = contents(whole.paths.root)
    with pytest.raises(RunError, match=f"cannot be resumed: .*{text}"):
        train(spec_of(cohort_folder, **({"snapshots": [0, 2]} | changes)), whole.paths.root, resume=True)
    assert contents(whole.paths.root) == before


def test_a_crossed_design_grows_by_initialisations_only(cohort_folder, tmp_path):
    def crossed(inits, orders):
        variants = {"design": "crossed", "init_seeds": inits, "order_seeds": orders}
        return resolve(
            {"cohort": {"path": str(cohort_folder), "task": "outcome"}, "model": {"hidden": 2}}
            | {"train": {"epochs": 1}, "variants": variants, "save_attention": "none"}
        )

    train(crossed("0:1", "0:2"), tmp_path / "run")
    with pytest.raises(RunError, match="init_seed of variant 0 was 0, is 1"):
        train(crossed("1:3", "0:2"), tmp_path / "run", resume=True)
    more = train(crossed("0:2", "0:2"), tmp_path / "run", resume=True)
    assert more.variants.select("init_seed", "order_seed").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_part_of_an_attend_that_was_killed_never_becomes_part_of_the_run(cohort_folder, tmp_path, monkeypatch):
    """Its weights may not be those of the run that goes on."""
    out = tmp_path / "run"
    run = train(spec_of(cohort_folder, epochs=1), out)
    files = contents(out)
    attend_samples(out, "test:12")
    stray = contents(out)
    for name in stray.keys() - {*files} | {"attention/index.parquet", "attention/inputs.arrow", "SHA256SUMS"}:
        (out / name).unlink()
        if "000004" not in name and name in files:
            (out / name).write_bytes(files[name])
        elif "000004" not in name:
            (out / name).write_bytes(stray[name])  # two of three blocks were written
    longer = train(spec_of(cohort_folder), out, resume=True)
    assert_same_files(out, train(spec_of(cohort_folder), tmp_path / "fresh").paths.root)
    attend_samples(out, "test:12")
    assert all(finding.holds for finding in verify(out))
    assert run.saved_samples == longer.saved_samples


def test_damage_to_attention_is_mended_by_resume_and_not_sealed(whole, cohort_folder, tmp_path):
    shutil.copytree(whole.paths.root, tmp_path / "run")
    path = RunPaths(tmp_path / "run").attention(2, 4, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    train(spec_of(cohort_folder, snapshots=[0, 2]), tmp_path / "run", resume=True)
    assert_same_files(tmp_path / "run", whole.paths.root)


def test_options_that_are_gone_and_other_samples_are_differences(whole, cohort_folder, tmp_path):
    ids, samples = tmp_path / "ids", whole.splits["sample"].to_list()

    def spec(options):
        model = {"name": "own_model:MeanPool", "options": options}
        base = {"cohort": {"path": str(cohort_folder), "task": "outcome"}, "model": model, "train": {"epochs": 1}}
        return resolve(base | {"variants": {"init_seeds": "0:2"}, "save_attention": f"@{ids}"})

    ids.write_text("\n".join(samples[3:5]))
    train(spec({"width": 3}), tmp_path / "run")
    with pytest.raises(RunError, match=r"spec\.model\.options\.width was 3, is None"):
        train(spec({}), tmp_path / "run", resume=True)
    ids.write_text("\n".join(samples[3:6]))
    with pytest.raises(RunError, match=r"saved\.samples was 2, is 3; saved\.sha256 was"):
        train(spec({"width": 3}), tmp_path / "run", resume=True)


def test_resume_where_there_is_no_run_says_that_it_begins(cohort_folder, tmp_path):
    listener = StopAfter()
    train(spec_of(cohort_folder, variants="0:1", epochs=1), tmp_path / "run", resume=True, listener=listener)
    assert f"there is no run in {tmp_path / 'run'} yet: it begins." in listener.lines


def test_a_missing_snapshot_is_said_before_anything_is_trained(cohort_folder, tmp_path):
    spec, out = spec_of(cohort_folder, snapshots=[0, 2]), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, care=EACH_EPOCH, listener=StopAfter(7))
    (out / "blocks" / "000000-000001" / "epoch-0002.safetensors").unlink()
    with pytest.raises(RunError, match=r"epoch-0002\.safetensors is missing: remove .*000000-000001"):
        train(spec, out, resume=True)


def test_without_its_state_a_run_takes_more_variants_and_no_more_epochs(cohort_folder, tmp_path):
    care = Care(checkpoint_minutes=0, drop_state=True)
    run = train(spec_of(cohort_folder, variants="0:2", epochs=2), tmp_path / "run", care=care)
    assert not list(run.paths.root.rglob("state.safetensors"))
    with pytest.raises(RunError, match=r"kept no state \(--drop-state\): it cannot be given more epochs"):
        train(spec_of(cohort_folder, variants="0:2", epochs=3), tmp_path / "run", resume=True)
    more = train(spec_of(cohort_folder, variants="0:3", epochs=2), tmp_path / "run", resume=True)
    assert len(more.variants) == 3


def test_resume_refuses_other_versions(whole, cohort_folder, tmp_path):
    text = whole.paths.manifest.read_text()
    manifest = json.loads(text)
    manifest["versions"]["torch"] = "1.0"
    whole.paths.manifest.write_text(json.dumps(manifest))
    try:
        with pytest.raises(RunError, match=r"versions\.torch was 1\.0"):
            train(spec_of(cohort_folder, snapshots=[0, 2]), whole.paths.root, resume=True)
    finally:
        whole.paths.manifest.write_text(text)


# Early stopping


@pytest.fixture(scope="module")
def patient(cohort_folder, tmp_path_factory):
    """A run in which some variants stop early and some do not."""
    spec = spec_of(cohort_folder, variants="0:8", epochs=8, patience=2, lr=1e-2)
    return train(spec, tmp_path_factory.mktemp("runs") / "patient")


def test_a_variant_stops_so_many_epochs_after_its_best_one(patient):
    stopped = 0
    for variant, kept, trained in patient.variants.select("variant", "kept_epoch", "trained_epochs").iter_rows():
        scores = patient.history.filter(variant=variant)["valid_auroc"].to_list()
        assert len(scores) == trained
        assert kept == scores.index(max(scores)) + 1
        assert trained == min(8, kept + 2)
        stopped += trained < 8
    assert 0 < stopped < 8
    assert patient.variants["status"].to_list() == ["ok"] * 8


def test_early_stopping_changes_no_byte_of_an_epoch_that_was_trained(patient, cohort_folder, tmp_path):
    free = train(spec_of(cohort_folder, variants="0:8", epochs=8, lr=1e-2), tmp_path / "free")
    together = patient.history.join(free.history, on=["variant", "epoch"], suffix="_free", maintain_order="left")
    assert len(together) == len(patient.history)
    for name in ("train_loss", "valid_loss", "valid_auroc"):
        assert together[name].equals(together[f"{name}_free"], null_equal=True)
    same = (patient.variants["kept_epoch"] == free.variants["kept_epoch"]).to_numpy()
    assert same.any()
    assert torch.equal(patient.weights().theta[same], free.weights().theta[same])
    full = (patient.variants["trained_epochs"] == 8).to_numpy()
    assert torch.equal(patient.weights("last").theta[full], free.weights("last").theta[full])


@pytest.mark.parametrize("stop_after", [9, 12, 25])
def test_variants_that_stopped_early_stay_so_when_a_run_goes_on(patient, cohort_folder, tmp_path, stop_after):
    spec, out = spec_of(cohort_folder, variants="0:8", epochs=8, patience=2, lr=1e-2), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(spec, out, care=EACH_EPOCH, listener=StopAfter(stop_after))
    train(spec, out, resume=True)
    assert_same_files(out, patient.paths.root)


def test_more_epochs_after_early_stopping_give_the_run_that_had_them_from_the_start(patient, cohort_folder, tmp_path):
    settings = {"variants": "0:8", "patience": 2, "lr": 1e-2}
    train(spec_of(cohort_folder, epochs=4, **settings), tmp_path / "run")
    train(spec_of(cohort_folder, epochs=8, **settings), tmp_path / "run", resume=True)
    assert_same_files(tmp_path / "run", patient.paths.root)


# Divergence


def lrs(*bad):
    return [1e38 if variant in bad else 5e-4 for variant in range(V)]


def test_more_failures_than_allowed_stop_a_run_that_a_higher_number_lets_go_on(cohort_folder, tmp_path):
    spec, out = spec_of(cohort_folder, lr=lrs(0, 2, 3)), tmp_path / "run"
    with pytest.raises(RunError, match=r"3 variants have diverged by epoch 1 .*\(the first: 0, 2, 3\), more than"):
        train(spec, out, care=Care(max_failed=1))
    with pytest.raises(RunError, match="3 variants have diverged"):
        train(spec, out, resume=True, care=Care(max_failed=2))
    with pytest.raises(RunError, match="3 variants have diverged"):
        train(spec, tmp_path / "other", care=Care(max_failed=2))
    run = train(spec, out, resume=True, care=Care(max_failed=3))
    longer = spec_of(cohort_folder, lr=lrs(0, 2, 3), epochs=EPOCHS + 1)
    assert len(train(longer, tmp_path / "longer", care=Care(max_failed=3)).variants) == V
    shutil.copytree(out, tmp_path / "extended")
    train(longer, tmp_path / "extended", resume=True, care=Care(max_failed=3))  # none is counted twice
    assert run.variants["status"].to_list() == ["failed", "ok", "failed", "failed", "ok"]
    assert_same_files(out, train(spec, tmp_path / "fresh").paths.root)


def test_a_variant_that_diverges_later_is_put_back_to_its_best_epoch(cohort_folder, tmp_path, monkeypatch):
    """Its score had been finite, and it is left out all the same."""
    from vmapens.ensemble import epoch as room

    plain = room.train_step

    def poisoned(compute, stack, state, x, y, index, step, **others):
        losses = plain(compute, stack, state, x, y, index, step, **others)
        if step == 2 * 5 + 1:  # the first of epoch 3
            stack.theta[(state.lr == 6e-4).nonzero()] = torch.nan
        return losses

    spec = spec_of(cohort_folder, lr=[5e-4, 6e-4, 5e-4, 5e-4, 5e-4])
    good = train(spec, tmp_path / "good")
    monkeypatch.setattr(room, "train_step", poisoned)
    run = train(spec, tmp_path / "run")
    assert run.variants["status"].to_list() == ["ok", "failed", "ok", "ok", "ok"]
    assert run.variants["trained_epochs"].to_list() == [4, 3, 4, 4, 4]
    assert run.history.filter(variant=1)["status"].to_list() == ["ok", "ok", "failed"]
    assert run.variants["kept_epoch"][1] in (1, 2)
    assert torch.equal(run.weights("last").theta[1], run.weights().theta[1])
    assert torch.isfinite(run.weights().theta).all()
    others = [0, 2, 3, 4]
    assert torch.equal(run.weights("last").theta[others], good.weights("last").theta[others])
    assert run.summary()["variants"].unique().to_list() == [4]


def test_done_says_what_the_table_says(whole):
    done = whole.paths.finished((2, 4))
    assert list(done.kept_epoch) == whole.variants["kept_epoch"][2:4].to_list()
    assert re.fullmatch("[0-9a-f]{64}", done.weights)
