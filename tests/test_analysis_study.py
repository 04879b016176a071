"""`vmapens.analyze` from a run to its tables: files, bytes, runs of every kind, and what cannot be analysed."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from analysed_runs import BARE, NEVER_MEASURED, QUICK, STAYS, F, Runs, T, V, check_tables, files_of, make_cohort, only
from own_model import MeanPool
from torch import nn

import vmapens
from vmapens.analysis import study
from vmapens.analysis.settings import PARTS, Settings
from vmapens.analysis.study import read_analysis
from vmapens.analysis.tables import ATTRIBUTIONS, QUANTITIES, TABLES
from vmapens.cohort.load import load_cohort
from vmapens.cohort.synthetic import make_synthetic
from vmapens.directory import occupy
from vmapens.errors import RunError, SpecError
from vmapens.spec import CohortSpec, resolve
from vmapens.verify import verify

WHOLE = Settings(samples="test:positive:3", mask_variants=2, mask_stays=1)
SMALL = Settings(samples="stay-057", mask_variants=2, mask_stays=1)


def drawn_masks(model, kind, stack, x, *, seed):
    """In place of learned ones, which take long; those are for `test_analysis_extremal_mask.py`."""
    return np.random.default_rng(seed).random((len(stack.theta), *x.shape), dtype=np.float32)


@pytest.fixture(autouse=True, scope="module")
def no_learning():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "extremal_masks", drawn_masks)
        yield


@pytest.fixture(scope="module")
def cohort_path(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohorts") / "synthetic")


@pytest.fixture(scope="module")
def runs(cohort_path, tmp_path_factory):
    return Runs(cohort_path, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def cohort(cohort_path):
    return load_cohort(CohortSpec(path=str(cohort_path), task="outcome"))


@pytest.fixture(scope="module")
def whole(runs):
    """Everything that there is to analyse of a run, and its files."""
    tables = vmapens.analyze(runs.path("feature"), *map(runs.path, ("crossed", "uniform")), settings=WHOLE)
    return tables, files_of(runs.path("feature"))


@pytest.fixture(scope="module")
def small(runs):
    """The whole of a run of two variants on one stay, and its files."""
    tables = vmapens.analyze(runs.path("two"), settings=SMALL)
    return tables, files_of(runs.path("two"))


# Tables, files, bytes


def test_a_whole_analysis_fills_every_table(whole):
    tables, files = whole
    check_tables(tables)
    assert [name for name, frame in tables.items() if frame.is_empty()] == []
    assert sorted(files) == sorted(["analysis.json", *(f"{name}.parquet" for name in TABLES)])
    assert len(tables["samples"]) == 3
    assert set(tables["consistency"]["attribution"]) == set(ATTRIBUTIONS)
    assert set(tables["attributions"]["property"]) == {"consistent", "patient", "faithful", "right"}
    kinds = {"mean", "sd", "rank_mean", "rank_sd", "held", "value", "measured", "variant"}
    assert set(tables["maps"]["kind"]) == kinds
    found = only(tables["learned_mask"], attribution="learned_mask", measure="overlap", k=7)
    ours, theirs = (
        set(np.argsort(-mask.ravel())[:7]) for mask in np.random.default_rng(0).random((2, T, F), np.float32)
    )
    wanted = pytest.approx((len(ours & theirs) / 7, 7 / (T * F), 2), abs=1e-12)
    assert (found["value"], found["chance"], found["variants"]) == wanted
    assert len(tables["learned_mask"].filter(attribution="attention")) == 3


def test_files_hold_what_is_returned_and_the_settings(whole, runs):
    path = runs.path("feature")
    tables, description = read_analysis(path)
    assert all(tables[name].equals(frame) for name, frame in whole[0].items())
    assert description["settings"]["samples"] == "test:positive:3"
    assert (description["variants"], description["failed"], description["stays"]) == (V, 0, 3)
    assert (description["k"], description["map_k"]) == ([1, 7], 7)
    assert description["notes"] == []
    assert description["runs"] == [str(runs.path(name)) for name in ("feature", "crossed", "uniform")]
    assert all(finding.holds for finding in verify(path)), "an analysis must leave the run as it is"


def test_the_same_settings_give_the_same_bytes_however_many_threads(runs, small):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        vmapens.analyze(runs.path("two"), settings=SMALL)
    finally:
        torch.set_num_threads(threads)
    again = files_of(runs.path("two"))
    assert len(again) == len(TABLES) + 1
    assert again == small[1]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_left_out_and_all_else_stays_the_same(runs, small, part):
    tables = vmapens.analyze(runs.path("two"), settings=dataclasses.replace(SMALL, without=(part,)))
    check_tables(tables)
    assert f"Left out (--without): {part}." in read_analysis(runs.path("two"))[1]["notes"]
    gone = {"gradients": set(), "faithfulness": {"faithfulness", "permutation"}, "learned_mask": {"learned_mask"}}[part]
    changed = {"gradients": {"faithfulness"}, "faithfulness": {"attributions"}, "learned_mask": set()}[part]
    for name in TABLES:
        wanted = small[0][name]
        if name in gone:
            assert tables[name].is_empty()
            assert not wanted.is_empty()
        elif name not in changed:
            if part == "gradients" and "attribution" in wanted.columns:
                of_gradients = pl.col("attribution").is_in(["gradient_x_input", "integrated_gradients"])
                wanted = wanted.filter(~of_gradients)
            assert tables[name].equals(wanted), name


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("drop.parquet", Path.unlink, "has no whole analysis .*drop.parquet is missing"),
        ("drop.parquet", cut, "cannot be read"),
        ("drop.parquet", lambda path: path.write_text("{}"), "cannot be read"),
        ("drop.parquet", pl.DataFrame({"variant": [1]}).write_parquet, "drop is not what vmapens writes"),
        ("analysis.json", Path.unlink, "has no whole analysis"),
        ("analysis.json", cut, "cannot be read"),
        ("analysis.json", lambda path: path.write_text("{}"), r"analysis.json is not what vmapens writes"),
        ("analysis.json", lambda path: path.write_text("[" * 100_000), "cannot be read"),
        ("analysis.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    ],
)
def test_a_table_that_is_missing_cut_or_foreign_is_one_line(runs, small, tmp_path, name, spoil, message):
    shutil.copytree(runs.path("two"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "analysis").mkdir(exist_ok=True)
    for file, content in small[1].items():
        (tmp_path / "analysis" / file).write_bytes(content)
    assert read_analysis(tmp_path)[0]["drop"].equals(small[0]["drop"])
    spoil(tmp_path / "analysis" / name)
    with pytest.raises(RunError, match=message) as caught:
        read_analysis(tmp_path)
    assert f"vmapens analyze {tmp_path}" in str(caught.value)


def test_an_analysis_of_other_weights_is_refused(runs, small, tmp_path):
    """As after more epochs: what stands there is not of this run any more."""
    shutil.copytree(runs.path("two"), tmp_path, dirs_exist_ok=True)
    done = next(tmp_path.glob("blocks/*/done.json"))
    changed = json.loads(done.read_text())
    changed["sha256"]["best.safetensors"] = "0" * 64
    done.write_text(json.dumps(changed))
    with pytest.raises(RunError, match="the run was trained further since"):
        read_analysis(tmp_path)


def test_a_run_that_is_replaced_leaves_no_analysis_and_no_report(runs, small, tmp_path):
    """They hold ids and measurements, which the new run may leave out."""
    shutil.copytree(runs.path("two"), tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("a page")
    (tmp_path / "run" / "figures").mkdir()
    with occupy(tmp_path / "run", overwrite=True, resume=False):
        pass
    assert list((tmp_path / "run").iterdir()) == []


# Runs of every kind


def test_a_crossed_design_that_lost_too_many_variants_is_not_decomposed(runs):
    """Of two by two one is left out: no two levels of both factors are whole."""
    for paths in (["crossed diverges"], ["two", "crossed diverges"]):
        tables = vmapens.analyze(*map(runs.path, paths), settings=QUICK)
        assert tables["decomposition"].is_empty()
        assert not tables["consistency"].is_empty()


def test_sets_of_good_variants_stand_beside_as_many_at_random(whole):
    rashomon = whole[0]["rashomon"].filter(measure="overlap").sort("epsilon")
    assert (rashomon["random_low"] <= rashomon["at_random"]).all()
    assert (rashomon["at_random"] <= rashomon["random_high"]).all()
    widths = rashomon["random_high"] - rashomon["random_low"]
    assert widths[0] > 0.01
    assert widths[-1] < 1e-12  # all of them are one set


@pytest.mark.parametrize("name", ["time", "pool", "uniform", "frozen", "stratum", "own", "indicators"])
def test_runs_of_every_form_are_analysed(runs, name):
    run = runs(name)
    bare = name in ("uniform", "frozen", "indicators")
    settings = Settings(samples="test:2" if name == "stratum" else STAYS, without=BARE if bare else ("learned_mask",))
    tables = vmapens.analyze(run.paths.root, settings=settings, model="own_model:MeanPool" if name == "own" else None)
    check_tables(tables)
    description = read_analysis(run.paths.root)[1]
    form = {"frozen": "frozen feature", "own": "own_model:MeanPool", "stratum": "feature", "indicators": "feature"}
    assert description["form"] == tables["controls"]["form"][0] == form.get(name, name)
    empty = {table for table, frame in tables.items() if frame.is_empty()}
    wanted = {"learned_mask", "decomposition"} | ({"faithfulness", "permutation"} if bare else set())
    wanted |= {"planted"} if name == "stratum" else set()  # whose cells are planted for another task
    wanted |= {"weights"} if name in ("pool", "uniform", "own") else set()
    wanted |= {"permutation"} if name == "own" else set()
    wanted |= {"drop", "held", "rank_spread", "rank_histogram", "epochs", "rashomon"} if name == "uniform" else set()
    assert empty == wanted
    steps_only = name in ("pool", "own")
    assert description["axes"] == ["step"] if steps_only else ["step", "feature"]
    cells = T if steps_only else T * F * (2 if name == "indicators" else 1)
    assert tables["agreement"].filter(attribution="attention", grain="cell", cells="all")["n"].unique().item() == cells
    if not bare:
        of_gradients = tables["agreement"].filter(attribution="gradient_x_input", grain="cell", cells="all")
        assert of_gradients["n"].unique().item() == T * F
    assert set(tables["faithfulness"]["outcome"]) <= set(run.task.classes)
    threshold = tables["rashomon"]["threshold"].drop_nulls().unique().to_list()
    assert bool(threshold) == (name not in ("stratum", "uniform"))
    if name == "uniform":
        ranked = tables["agreement"].filter(pl.col("attribution") == "attention", pl.col("measure") != "divergence")
        assert ranked["value"].null_count() == len(ranked)
        assert any("has no ranking" in note for note in description["notes"])


def test_a_stay_on_which_maps_are_constant_is_left_out(runs):
    """A model without recurrence attends to all steps alike where nothing was measured."""
    ids = [sample for sample in runs("feature").saved_samples if sample != NEVER_MEASURED][:3]
    settings = Settings(samples=",".join([NEVER_MEASURED, *ids]), top_k=(2.0,), without=BARE)
    with_gap = vmapens.analyze(runs.path("own"), settings=settings, model="own_model:MeanPool")
    check_tables(with_gap)
    own = with_gap["agreement"].filter(grain="cell", cells="all", measure="overlap", k=2)
    assert own.filter(sample=NEVER_MEASURED)["value"].to_list() == [None]
    kept = own.filter(pl.col("sample") != NEVER_MEASURED)["value"].mean()
    found = only(with_gap["consistency"], grain="cell", cells="all", measure="overlap", quantity="value", over="stays")
    assert found["stays"] == 3
    assert len(with_gap["consistency"].filter(quantity="corrected", measure="overlap", grain="cell", cells="all")) == 1
    np.testing.assert_allclose(found["estimate"], kept)
    np.testing.assert_allclose(with_gap["rashomon"].filter(measure="overlap")["at_random"], kept, rtol=1e-6)
    last = only(with_gap["epochs"], which="last", measure="overlap")
    assert last["estimate"] is not None
    assert set(with_gap["drop"]["sample"]) == set(ids)


def test_a_variant_that_diverged_is_left_out_and_said(runs):
    tables = vmapens.analyze(runs.path("one diverges"), settings=QUICK)
    check_tables(tables)
    for name in ("good", "planted"):
        assert sorted(tables[name]["variant"].unique()) == [0, 1, 3, 4, 5]
    assert 2 not in tables["chosen"]["variant"]
    assert tables["agreement"].filter(grain="cell")["variants"].unique().to_list() == [5]
    assert tables["drop"]["n"].max() == tables["controls"]["variants"].unique().item() == 5
    own = tables["scores"].filter(split="test", metric="auroc").sort("variant")
    assert own["status"].to_list() == ["ok", "ok", "failed", "ok", "ok", "ok"]
    values = own["value"].to_numpy()[[0, 1, 3, 4, 5]]
    np.testing.assert_allclose(own["running_mean"][5], values.mean())
    description = read_analysis(runs.path("one diverges"))[1]
    assert (description["variants"], description["failed"]) == (5, 1)
    assert "1 variants diverged in training and are left out." in description["notes"]
    best = (
        runs("one diverges").metrics.filter(split="valid", metric="log_loss", status="ok").sort("value")["variant"][0]
    )
    assert only(tables["chosen"], role="best")["variant"] == best


def test_one_stay_has_no_interval_over_stays_but_one_over_variants(runs):
    tables = vmapens.analyze(runs.path("feature"), settings=Settings(samples="test:1", without=BARE))
    check_tables(tables)
    found = tables["consistency"].filter(attribution="attention", measure="overlap")
    assert found["stays"].unique().to_list() == [1]
    over_stays = found.filter(over="stays")
    assert over_stays["low"].null_count() == len(over_stays)
    assert set(over_stays["quantity"]) == set(QUANTITIES)
    assert found.filter(over="variants")["low"].null_count() == 0
    notes = read_analysis(runs.path("feature"))[1]["notes"]
    assert "All stays are of one patient: there is no interval over stays." in notes


def test_stays_of_one_patient_are_drawn_together(runs, cohort):
    """Two stays of one patient and one of another: two patients, one pair of them."""
    number, counts = np.unique(cohort.patient, return_counts=True)
    two = [cohort.samples[row] for row in np.flatnonzero(cohort.patient == number[counts > 1][0])]
    other = next(sample for sample in cohort.samples if sample not in two)
    tables = vmapens.analyze(runs.path("two"), settings=Settings(samples=",".join([*two, other]), without=BARE))
    assert tables["samples"]["patient"].n_unique() == 2
    found = tables["consistency"].filter(attribution="attention", grain="feature", measure="spearman", over="stays")
    ends = {row["quantity"]: row["low"] for row in found.iter_rows(named=True)}
    assert ends["value"] is not None
    assert ends["cross_patient"] is ends["about_patient"] is None


def test_samples_are_named_as_for_attend(runs, cohort):
    run = runs("two")
    test = [cohort.samples[row] for row in cohort.rows("test").tolist()]
    positive = [sample for sample in test if cohort.y[cohort.samples.index(sample)] == 1]
    tables = vmapens.analyze(run.paths.root, settings=Settings(samples="test:positive", without=BARE))
    assert tables["samples"]["sample"].to_list() == sorted(positive)
    assert set(tables["agreement"]["sample"]) == set(positive)
    assert set(tables["samples"]["split"]) == {"test"}
    train = cohort.samples[int(cohort.rows("train")[0])]
    tables = vmapens.analyze(run.paths.root, settings=Settings(samples=train, without=BARE))
    assert tables["samples"].row(0, named=True)["probability_mean"] is None
    assert any("of the splits train" in note for note in read_analysis(run.paths.root)[1]["notes"])
    with pytest.raises(SpecError, match="names no stay"):
        vmapens.analyze(run.paths.root, settings=Settings(samples="saved"))


def test_only_crossed_designs_of_the_same_axes_are_decomposed(runs):
    paths = [runs.path(name) for name in ("pool", "crossed pool", "crossed")]
    tables = vmapens.analyze(*paths, settings=QUICK)
    assert set(tables["decomposition"]["run"]) == {str(paths[1])}
    assert set(tables["controls"]["run"]) == set(map(str, paths))


def test_runs_with_a_model_of_ones_own_are_compared_with_built_in_ones(runs):
    both = [runs.path(name) for name in ("two", "own")]
    settings = Settings(samples="test:1", without=BARE)
    for paths in (both, both[::-1]):
        tables = vmapens.analyze(*paths, settings=settings, model="own_model:MeanPool")
        forms = dict(tables["controls"].select("run", "form").iter_rows())
        assert forms == {str(both[0]): "feature", str(both[1]): "own_model:MeanPool"}
    with pytest.raises(RunError, match="--model own_model:MeanPool"):
        vmapens.analyze(*both, settings=QUICK)
    with pytest.raises(RunError, match="trained with `attention-lstm`, not with `own_model:MeanPool`"):
        vmapens.analyze(both[0], settings=QUICK, model="own_model:MeanPool")


# Consistent, faithful and right are three things


class Ornament(nn.Module):
    """Its attention is a parameter that stays as it was drawn, and has no part in the prediction."""

    attention_axes = ("step", "feature")

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(T * F, 6), nn.Linear(6, 1)
        self.score = nn.Parameter(torch.randn(T, F), requires_grad=False)

    def forward(self, x):
        attention = torch.softmax(self.score, dim=-1).expand(len(x), T, F)
        return self.head(torch.tanh(self.hidden(x.flatten(1)))), attention


def test_consistent_faithful_and_right_come_apart(tmp_path):
    """One initialisation and three orders: the ornament is the same in all variants, and says nothing."""
    make_synthetic(tmp_path / "cohort", samples=600, steps=T, features=F, seed=4)
    spec = {"cohort": {"path": str(tmp_path / "cohort"), "task": "outcome"}, "train": {"epochs": 20, "lr": 0.01}}
    spec |= {"variants": {"design": "crossed", "init_seeds": "1", "order_seeds": "0:3"}, "save_attention": "none"}
    vmapens.train(Ornament, None, resolve(spec), tmp_path / "run")
    settings = Settings(samples="test:12", without=("learned_mask",))
    tables = vmapens.analyze(tmp_path / "run", settings=settings, model=Ornament)
    check_tables(tables)
    assert tables["controls"]["form"][0] == f"{__name__}:Ornament"
    assert tables["decomposition"].is_empty()
    found = {(row["attribution"], row["property"]): row for row in tables["attributions"].iter_rows(named=True)}
    attention, gradients = (
        {what: found[name, what] for what in ("consistent", "patient", "faithful", "right")}
        for name in ("attention", "integrated_gradients")
    )
    # Perfectly consistent, and not about the patient.
    assert attention["consistent"]["estimate"] == pytest.approx(1)
    assert attention["patient"]["estimate"] == pytest.approx(0)
    assert gradients["consistent"]["high"] < 0.9
    assert gradients["patient"]["low"] > 0.2
    # Not more faithful than its own mask, rolled in time.
    assert attention["faithful"]["low"] < 0 < attention["faithful"]["high"]
    assert gradients["faithful"]["low"] > 0
    # Not right: a random order of 48 cells, of which one is causal, has an average precision of H(48) / 48.
    by_luck = np.mean(1 / np.arange(1, T * F + 1))
    assert attention["right"]["estimate"] < by_luck
    assert gradients["right"]["low"] > 2 * by_luck
    planted = tables["planted"].group_by("attribution").agg(pl.col("average_precision").std())
    assert dict(planted.iter_rows())["attention"] == 0


# What cannot be analysed


def test_runs_that_cannot_be_compared_are_one_line_each(runs):
    first = runs.path("two")
    for name, message in (
        ("stratum", "of the task stratum, not outcome"),
        ("other split", "split otherwise; use the same --split-seed"),
        ("row numbers", "only one of the two was trained with --no-sample-ids"),
        ("indicators", "only one of the two was trained with --indicators"),
        ("one", "has 1 variants that did not fail, of 1, wanted 2 or more"),
        ("one is left", "has 1 variants that did not fail, of 2, wanted 2 or more"),
    ):
        with pytest.raises(RunError, match=message) as caught:
            vmapens.analyze(first, runs.path(name), settings=QUICK)
        assert str(runs.path(name)) in str(caught.value)
    for again in (first, first / "..", str(first) + "/", first.parent / "nowhere" / ".." / first.name):
        with pytest.raises(RunError, match="is named twice" if again != first / ".." else "is not a run"):
            vmapens.analyze(first, again, settings=QUICK)


def test_a_factory_of_another_architecture_is_refused(runs):
    with pytest.raises(RunError, match="weights of other names or shapes than MeanPool has"):
        vmapens.analyze(runs.path("two"), settings=QUICK, model=lambda: MeanPool(F, T, 1))
