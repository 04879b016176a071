"""The run directory: what training writes is what every reader gets back."""

import json

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from own_model import MeanPool
from sklearn.metrics import roc_auc_score
from twin import PlainAttentionLSTM

import vmapens
from vmapens import arrow
from vmapens.attention import attend_samples, choose_samples
from vmapens.cohort.load import load_cohort
from vmapens.cohort.synthetic import make_synthetic
from vmapens.ensemble import metrics
from vmapens.errors import RunError, SpecError, StackError
from vmapens.run import export_variant
from vmapens.spec import CohortSpec, resolve

V, EPOCHS, T, F = 5, 3, 8, 6


def spec_of(folder, **layers):
    base = {"cohort": {"path": str(folder), "task": "outcome"}, "variants": {"init_seeds": f"0:{V}"}, "block": 2}
    model = layers.pop("model", {})
    base["model"] = model if "name" in model else {"hidden": 4} | model
    base["train"] = {"epochs": EPOCHS, "batch_size": 32} | layers.pop("train", {})
    base["save_attention"] = "test:7"
    return resolve(base | layers)


@pytest.fixture(scope="module")
def run(cohort_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return vmapens.train(None, None, spec_of(cohort_folder, train={"snapshots": [0, 2]}), out)


@pytest.fixture(scope="module")
def cohort(run):
    return load_cohort(run.spec.cohort)


def test_the_folder_holds_what_the_design_says(run):
    files = sorted(str(p.relative_to(run.paths.root)) for p in run.paths.root.rglob("*") if p.is_file())
    block = ["best.safetensors", "done.json", "epoch-0000.safetensors", "epoch-0002.safetensors", "history.parquet"]
    block += ["last.safetensors", "state.safetensors"]
    names = [f"{first:06d}-{last:06d}" for first, last in [(0, 1), (2, 3), (4, 4)]]
    wanted = [f"blocks/{name}/{file}" for name in names for file in block]
    wanted += [f"attention/block={name}/part-0.arrow" for name in names]
    wanted += ["attention/index.parquet", "attention/inputs.arrow", "features.parquet", "metrics.parquet"]
    wanted += ["SHA256SUMS", "predictions.parquet", "run.json", "splits.parquet", "variants.parquet"]
    assert files == sorted(wanted)


def test_manifest_says_what_was_done(run):
    manifest = json.loads(run.paths.manifest.read_text())
    assert manifest["state"] == "done"
    assert manifest["spec"]["train"]["epochs"] == EPOCHS
    assert manifest["cohort"]["samples"] == {"train": 140, "valid": 30, "test": 30}
    assert manifest["model"]["attention_axes"] == ["step", "feature"]
    assert {"vmapens", "torch", "python", "polars", "pyarrow"} <= manifest["versions"].keys()
    assert run.spec == spec_of(run.spec.cohort.path, train={"snapshots": [0, 2], "select_by": "auroc"})


def test_history_and_kept_epochs_agree(run):
    assert run.history.columns == ["variant", "epoch", "train_loss", "valid_loss", "valid_auroc", "status"]
    assert run.history.shape == (V * EPOCHS, 6)
    for variant, kept in run.variants.select("variant", "kept_epoch").iter_rows():
        scores = run.history.filter(pl.col("variant") == variant).sort("epoch")["valid_auroc"].to_list()
        assert kept == scores.index(max(scores)) + 1
    assert run.variants["status"].to_list() == ["ok"] * V


def test_snapshots_are_the_initialisation_and_the_epoch_asked_for(run):
    torch.manual_seed(3)
    plain = PlainAttentionLSTM(F, T, 4, 1).state_dict()
    assert all(torch.equal(run.state_dict(3, "epoch-0000")[name], value) for name, value in plain.items())
    kept = run.variants["kept_epoch"].to_list()
    for row, epoch in enumerate(kept):
        if epoch == 2:
            assert torch.equal(run.weights("epoch-0002").theta[row], run.weights("best").theta[row])
        if epoch == EPOCHS:
            assert torch.equal(run.weights("last").theta[row], run.weights("best").theta[row])


def test_predictions_are_those_of_the_kept_weights_and_metrics_those_of_the_predictions(run, cohort):
    assert len(run.predictions) == V * 60
    for variant in range(V):
        plain = PlainAttentionLSTM(F, T, 4, 1)
        plain.load_state_dict(run.state_dict(variant))
        for split in ("valid", "test"):
            rows = cohort.rows(split)
            own = run.predictions.filter((pl.col("variant") == variant) & (pl.col("split") == split))
            assert own["sample"].to_list() == [cohort.samples[row] for row in rows.tolist()]
            with torch.no_grad():
                wanted = torch.sigmoid(plain(cohort.x[rows]))[:, 0].numpy()
            assert np.abs(own["probability"].to_numpy() - wanted).max() < 1e-6
            score = run.metrics.filter(
                (pl.col("variant") == variant) & (pl.col("split") == split) & (pl.col("metric") == "auroc")
            )["value"].item()
            assert score == pytest.approx(roc_auc_score(own["y"], own["probability"]), abs=1e-9)
    assert set(run.metrics["metric"]) == set(metrics.metrics_for("binary"))


def test_kept_epoch_scores_are_the_historys(run):
    kept = run.history.join(run.variants, left_on=["variant", "epoch"], right_on=["variant", "kept_epoch"]).sort(
        "variant"
    )
    valid = run.metrics.filter((pl.col("split") == "valid") & (pl.col("metric") == "auroc")).sort("variant")
    assert kept["valid_auroc"].to_list() == valid["value"].to_list()


def test_attention_is_that_of_plain_modules_and_sums_to_one(run, cohort):
    attention = run.attention()
    assert attention.shape == (V, 7, T, F)
    assert np.abs(attention.sum(axis=3) - 1).max() < 1e-6
    places = [cohort.samples.index(sample) for sample in run.saved_samples]
    assert set(cohort.split[places]) == {"test"}
    for variant in range(V):
        plain = PlainAttentionLSTM(F, T, 4, 1)
        plain.load_state_dict(run.state_dict(variant))
        with torch.no_grad():
            wanted = plain.attend(cohort.x[places]).numpy()
        assert np.abs(attention[variant] - wanted).max() < 1e-6
    one = run.attention(run.saved_samples[2])
    assert np.array_equal(one, attention[:, 2])


def test_inputs_say_what_the_saved_samples_looked_like(run, cohort):
    inputs = run.inputs
    series = pl.read_parquet(f"{run.spec.cohort.path}/series.parquet")
    assert inputs.columns == ["sample", "y", "value", "scaled", "measured"]
    for sample, y, value, scaled, measured in inputs.iter_rows():
        row = cohort.samples.index(sample)
        assert y == cohort.y[row]
        assert np.array_equal(np.array(scaled, np.float32), cohort.x[row].numpy())
        own = series.filter(pl.col("sample") == sample).sort("step")
        raw = np.full((T, F), np.nan)
        raw[own["step"].to_numpy()] = own.select(run.features["feature"].to_list()).to_numpy()
        assert np.array_equal(np.array(measured), ~np.isnan(raw))
        got = np.array(value, np.float64)
        assert np.allclose(got[~np.isnan(raw)], raw[~np.isnan(raw)], rtol=1e-4)


def arrow_file(run):
    return run.paths.attention(2, 4, 0)


def test_pyarrow_maps_the_file_without_a_copy(run):
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(arrow_file(run)))).read_all()
    values = table["attention"].chunk(1).flatten().flatten().to_numpy(zero_copy_only=True)
    assert pa.total_allocated_bytes() - before < 1000
    assert np.array_equal(values.reshape(7, T, F), run.attention()[3])
    assert table.schema.field("attention").type == pa.list_(pa.list_(pa.float32(), F), T)
    assert table["variant"].to_pylist() == [2] * 7 + [3] * 7
    metadata = json.loads(table.schema.metadata[b"vmapens"])
    assert metadata["model"] == run.manifest["model"]
    assert metadata["features"] == run.features["feature"].to_list()


def test_a_probability_is_the_same_bytes_wherever_it_is_written(run):
    frame = pl.from_arrow(pa.ipc.open_file(str(arrow_file(run))).read_all())
    both = frame.join(run.predictions, on=["variant", "sample"], suffix="_predicted")
    assert len(both) == len(frame)
    assert both["probability"].to_list() == both["probability_predicted"].to_list()


def test_polars_reads_an_array_column(run):
    for frame in (
        pl.read_ipc(arrow_file(run)),
        pl.from_arrow(pa.ipc.open_file(str(arrow_file(run))).read_all()),
    ):
        assert frame.schema["attention"] == pl.Array(pl.Float32, (T, F))
        assert np.array_equal(frame.filter(pl.col("variant") == 3)["attention"].to_numpy(), run.attention()[3])


def test_duckdb_reads_it_through_pyarrow(run):
    attention = pa.ipc.open_file(pa.memory_map(str(arrow_file(run)))).read_all()  # named in the query
    query = "select variant, sample, attention[3][2] from attention where variant = 3 order by sample limit 1"
    ((variant, sample, cell),) = duckdb.sql(query).fetchall()
    assert attention.num_rows == 14
    assert variant == 3
    assert cell == pytest.approx(run.attention(sample)[3, 2, 1])


def test_pandas_reads_it(run):
    frame = pd.read_feather(arrow_file(run))
    cell = np.array(frame.loc[8, "attention"].tolist(), np.float32)
    assert np.array_equal(cell, run.attention()[3, 1])


def test_attend_adds_samples_and_leaves_the_others_alone(cohort_folder, tmp_path):
    run = vmapens.train(None, None, spec_of(cohort_folder, train={"epochs": 1}), tmp_path / "run")
    before = run.paths.attention(0, 2, 0).read_bytes()
    first = run.attention()
    written = attend_samples(run.paths.root, "test")
    again = vmapens.open_run(run.paths.root)
    assert len(written) == 30 - 7
    training = attend_samples(run.paths.root, "train:4")
    assert len(training) == 4
    rows = [load_cohort(run.spec.cohort).samples.index(sample) for sample in training]
    plain = PlainAttentionLSTM(F, T, 4, 1)
    plain.load_state_dict(run.state_dict(1))
    table = arrow.read_table(run.paths.attention(0, 2, 2)).slice(4, 4)
    with torch.no_grad():
        wanted = torch.sigmoid(plain(load_cohort(run.spec.cohort).x[sorted(rows)]))[:, 0]
    assert np.abs(table["probability"].to_numpy() - wanted.numpy()).max() < 1e-6
    assert len(again.saved_samples) == 34
    assert run.paths.attention(0, 2, 0).read_bytes() == before
    assert np.array_equal(again.attention(run.saved_samples), first)
    assert again.inputs.height == 34
    assert attend_samples(run.paths.root, "test:3") == []


def test_attend_refuses_another_cohort(run, tmp_path):
    make_synthetic(tmp_path / "other", samples=200, steps=T, features=F, seed=2)
    with pytest.raises(RunError, match="trained on another cohort"):
        attend_samples(run.paths.root, "test", tmp_path / "other")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_an_exported_variant_gives_the_same_numbers_in_plain_modules(run, cohort, tmp_path, ending):
    out = tmp_path / f"variant{ending}"
    export_variant(run.paths.root, 3, out)
    tensors = torch.load(out, weights_only=True) if ending == ".pt" else safetensors.torch.load_file(out)
    plain = PlainAttentionLSTM(F, T, 4, 1)
    plain.load_state_dict(tensors)
    sample = run.saved_samples[0]
    x = cohort.x[cohort.samples.index(sample)][None]
    with torch.no_grad():
        assert np.abs(plain.attend(x)[0].numpy() - run.attention(sample)[3]).max() < 1e-6
        probability = torch.sigmoid(plain(x)).item()
    own = run.predictions.filter((pl.col("variant") == 3) & (pl.col("sample") == sample))["probability"].item()
    assert probability == pytest.approx(own, abs=1e-6)
    with pytest.raises(RunError, match="exists already"):
        export_variant(run.paths.root, 3, out)


def test_blocks_change_no_byte_of_a_variant(run, cohort_folder, tmp_path):
    whole = vmapens.train(None, None, spec_of(cohort_folder, block="auto"), tmp_path / "run")
    assert whole.blocks == [(0, V)]
    assert torch.equal(whole.weights("best").theta, run.weights("best").theta)
    assert torch.equal(whole.weights("last").theta, run.weights("last").theta)
    assert whole.history.equals(run.history)
    assert whole.predictions.equals(run.predictions)
    assert np.array_equal(whole.attention(), run.attention())


def test_a_crossed_design_holds_every_pair(cohort_folder, tmp_path):
    variants = {"design": "crossed", "init_seeds": "0:2", "order_seeds": "0:2"}
    run = vmapens.train(None, None, spec_of(cohort_folder, train={"epochs": 1}, variants=variants), tmp_path / "run")
    assert run.variants.select("init_seed", "order_seed").rows() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    theta = run.weights("last").theta
    assert not torch.equal(theta[0], theta[1])
    paired = vmapens.train(None, None, spec_of(cohort_folder, train={"epochs": 1}), tmp_path / "paired")
    assert torch.equal(theta[3], paired.weights("last").theta[1])


@pytest.mark.parametrize(("form", "axes", "sizes"), [("time", 1, (T, F)), ("pool", 1, (T,)), ("uniform", 2, (T, F))])
def test_other_forms_of_attention_are_written_under_their_axes(cohort_folder, tmp_path, form, axes, sizes):
    spec = spec_of(cohort_folder, train={"epochs": 1}, model={"attend_over": form})
    run = vmapens.train(None, None, spec, tmp_path / "run")
    attention = run.attention()
    assert attention.shape == (V, 7, *sizes)
    assert np.abs(attention.sum(axis=axes + 1) - 1).max() < 1e-6


def test_frozen_attention_stays_as_initialised(cohort_folder, tmp_path):
    spec = spec_of(cohort_folder, model={"freeze_attention": True}, train={"snapshots": [0], "weight_decay": 0.1})
    run = vmapens.train(None, None, spec, tmp_path / "run")
    first, last = run.state_dict(1, "epoch-0000"), run.state_dict(1, "last")
    for name in first:
        assert torch.equal(first[name], last[name]) == name.startswith("attention."), name


def test_a_model_of_the_users_own_trains_from_python_and_by_name(cohort_folder, tmp_path):
    """It is no LSTM, and ends in the parameters that a plain script gives it."""
    spec = spec_of(cohort_folder, model={"name": "own_model:MeanPool", "options": {"width": 3}})
    by_name = vmapens.train(None, None, spec, tmp_path / "name")

    def factory():
        return MeanPool(features=F, steps=T, outputs=1, width=3)

    from_python = vmapens.train(factory, None, spec_of(cohort_folder), tmp_path / "python")
    assert torch.equal(by_name.weights().theta, from_python.weights().theta)
    with pytest.raises(RunError, match="only imported if you name it, too: --model own_model:MeanPool"):
        attend_samples(by_name.paths.root, "test:9")
    assert len(attend_samples(by_name.paths.root, "test:9", model="own_model:MeanPool")) == 2
    with pytest.raises(RunError, match="was trained from Python with own_model:MeanPool"):
        attend_samples(from_python.paths.root, "test:9")
    with pytest.raises(RunError, match="holds weights of other names or shapes"):
        attend_samples(from_python.paths.root, "test:9", model=lambda: MeanPool(F, T, 1, width=4))
    assert len(attend_samples(from_python.paths.root, "test:9", model=factory)) == 2
    assert np.array_equal(
        vmapens.open_run(tmp_path / "name").attention(), vmapens.open_run(tmp_path / "python").attention()
    )
    assert by_name.attention().shape == (V, 9, T)
    cohort = load_cohort(spec.cohort)
    rows = cohort.rows("train")
    plain = MeanPool.train_plainly(4, cohort.x[rows], cohort.y[rows], epochs=EPOCHS, batch_size=32, width=3)
    for name, value in plain.state_dict().items():
        # Softmax does not see the bias of the scores: its gradient is 0 but for rounding, which Adam scales up.
        bound = 1e-5 if name == "score.bias" else 1e-6
        assert (by_name.state_dict(4, "last")[name] - value).abs().max() < bound, name


def test_a_model_that_draws_random_numbers_is_refused(cohort_folder, tmp_path):
    spec = spec_of(cohort_folder, model={"name": "own_model:WithDropout"})
    with pytest.raises(StackError, match="draws from the global random generator"):
        vmapens.train(None, None, spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own_model:WrongShape", r"gives logits .* wanted \(2, 1\)"),
        ("own_model:LooksAtValues", r"LooksAtValues does not run under torch.func.vmap"),
        ("own_model:PlainLSTM", r"PlainLSTM does not run under torch.func.vmap.*use vmapens.nn.LSTM"),
        ("own_model:Breaks", r"Breaks cannot be built .* or fails on x \(2, 8, 6\): no good"),
        ("torch.nn:Linear", r"cannot be built.*unexpected keyword"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_written(cohort_folder, tmp_path, name, text):
    with pytest.raises(StackError, match=text):
        vmapens.train(None, None, spec_of(cohort_folder, model={"name": name}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_called_logits_and_attend_are_no_methods(cohort_folder, tmp_path):
    spec = spec_of(cohort_folder, model={"name": "own_model:OtherNames"}, train={"epochs": 1})
    run = vmapens.train(None, None, spec, tmp_path / "run")
    assert np.abs(run.attention().sum(axis=2) - 1).max() < 1e-6


def test_a_run_from_a_loaded_cohort_records_how_it_was_loaded(cohort_folder, tmp_path):
    cohort = load_cohort(CohortSpec(path=str(cohort_folder), task="outcome", split_seed=5))
    run = vmapens.train(None, cohort, spec_of("elsewhere", train={"epochs": 1}), tmp_path / "run")
    assert run.spec.cohort == cohort.spec
    assert len(attend_samples(run.paths.root, "test:9")) == 2


def test_resume_refuses_other_versions(cohort_folder, tmp_path):
    spec = spec_of(cohort_folder, train={"epochs": 1})
    run = vmapens.train(None, None, spec, tmp_path / "run")
    manifest = json.loads(run.paths.manifest.read_text())
    manifest["versions"]["torch"] = "1.0"
    run.paths.manifest.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"versions\.torch was 1\.0"):
        vmapens.train(None, None, spec, tmp_path / "run", resume=True)


def test_a_diverged_variant_is_marked_left_out_and_harms_no_other(run, cohort_folder, tmp_path):
    spec = spec_of(cohort_folder, train={"lr": [5e-4, 1e38, 5e-4, 5e-4, 5e-4], "snapshots": [0, 2]})
    other = vmapens.train(None, None, spec, tmp_path / "run")
    assert other.variants["status"].to_list() == ["ok", "failed", "ok", "ok", "ok"]
    assert other.variants["kept_epoch"][1] == 0
    assert other.summary()["variants"].unique().to_list() == [4]
    assert other.history.filter(variant=1)["status"].to_list() == ["failed"]
    assert other.metrics.filter(status="failed")["variant"].unique().to_list() == [1]
    rows = [0, 2, 3, 4]
    assert torch.equal(other.weights("last").theta[rows], run.weights("last").theta[rows])


def test_selecting_on_the_test_split_is_possible_and_recorded(cohort_folder, tmp_path):
    run = vmapens.train(None, None, spec_of(cohort_folder, train={"select_on": "test"}), tmp_path / "run")
    kept = run.variants["kept_epoch"].to_list()
    for variant in range(V):
        scores = run.history.filter(pl.col("variant") == variant)["test_auroc"].to_list()
        assert kept[variant] == scores.index(max(scores)) + 1


def test_samples_are_chosen_by_split_number_list_and_file(cohort, tmp_path):
    test = cohort.rows("test")
    assert torch.equal(choose_samples(cohort, "test"), test)
    assert len(choose_samples(cohort, "none")) == 0
    assert len(choose_samples(cohort, "all")) == 200
    chosen = choose_samples(cohort, "test:10", seed=0)
    assert set(chosen.tolist()) <= set(test.tolist())
    share = cohort.y[test].float().mean() * 10
    assert abs(cohort.y[chosen].sum() - share) <= 1
    assert not torch.equal(chosen, choose_samples(cohort, "test:10", seed=1))
    ids = [cohort.samples[5], cohort.samples[2]]
    (tmp_path / "ids").write_text("\n".join(ids))
    assert choose_samples(cohort, f"@{tmp_path / 'ids'}").tolist() == [2, 5]
    assert choose_samples(cohort, ",".join(ids)).tolist() == [2, 5]
    with pytest.raises(SpecError, match="1 samples are not in the cohort"):
        choose_samples(cohort, f"{ids[0]},nobody")
