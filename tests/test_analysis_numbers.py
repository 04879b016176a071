"""Each number of an analysis against its own brute force, from the attention and the metrics that the run holds."""

import itertools
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import scipy.stats
import sklearn.metrics
import torch
from analysed_runs import BARE, HIDDEN, NEVER_MEASURED, F, Runs, T, V, check_tables, make_cohort, only

import vmapens
from vmapens.analysis.settings import Settings
from vmapens.analysis.study import read_analysis
from vmapens.analysis.subject import Subject
from vmapens.analysis.truth import chance_average_precision
from vmapens.cohort.load import load_cohort
from vmapens.cohort.synthetic import BAYES_FILE, TRUTH_FILE
from vmapens.nn.attention_lstm import AttentionLSTM
from vmapens.spec import CohortSpec


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
def analysed(runs):
    others = [runs.path(name) for name in ("crossed", "uniform")]
    tables = vmapens.analyze(runs.path("feature"), *others, settings=Settings(samples="test:3", without=BARE))
    return SimpleNamespace(run=runs("feature"), tables=tables)


def without_ties(run, ks):
    """Saved stays in which no variant ties at the edge of its top k, and what they attend to."""
    for sample in run.saved_samples:
        falling = -np.sort(-run.attention(sample).reshape(V, -1), axis=1)
        if all((falling[:, k - 1] > falling[:, k]).all() for k in ks):
            yield sample


@pytest.fixture(scope="module")
def pair(runs, cohort):
    """An analysis of two stays of two patients: each is the other's partner."""
    run = runs("feature")
    ks = [1, 7]
    patient = dict(zip(cohort.samples, cohort.patient.tolist(), strict=True))
    first, *others = without_ties(run, ks)
    ids = [first, next(other for other in others if patient[other] != patient[first])]
    settings = Settings(samples=",".join(ids), top_k=tuple(map(float, ks)), without=BARE)
    tables = vmapens.analyze(runs.path("feature"), settings=settings)
    return SimpleNamespace(ids=ids, ks=ks, tables=tables, rows=[cohort.samples.index(sample) for sample in ids])


def tops(maps, k):
    return [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in maps.reshape(len(maps), -1)]


def overlap(ours, theirs, k, pairs):
    sets, others = tops(ours, k), tops(theirs, k)
    return np.mean([len(sets[u] & others[v]) / k for u, v in pairs])


def spearman(ours, theirs, k, pairs):
    ours, theirs = (maps.reshape(len(maps), -1) for maps in (ours, theirs))
    return np.mean([scipy.stats.spearmanr(ours[u], theirs[v]).statistic for u, v in pairs])


def maps_of(run, sample, cohort):
    """Attention of one stay as saved, and before any training, from modules built one by one."""
    x, initial = cohort.x[[cohort.samples.index(sample)]], []
    for seed in range(V):
        torch.manual_seed(seed)
        with torch.no_grad():
            initial.append(AttentionLSTM(F, T, 1, hidden=HIDDEN).attend(x)[0].numpy())
    return run.attention(sample), np.stack(initial)


@pytest.mark.parametrize(("measure", "k"), [(overlap, 1), (overlap, 7), (spearman, None)])
def test_agreement_on_a_stay_is_that_of_the_saved_attention(runs, pair, cohort, measure, k):
    run, ordered, same = runs("feature"), list(itertools.permutations(range(V), 2)), [(v, v) for v in range(V)]
    maps = {sample: maps_of(run, sample, cohort) for sample in pair.ids}
    for here, there in (pair.ids, pair.ids[::-1]):
        row = only(
            pair.tables["agreement"], sample=here, attribution="attention", grain="cell", cells="all",
            measure=measure.__name__, k=k,
        )  # fmt: skip
        trained, initial = maps[here]
        wanted = {
            "value": measure(trained, trained, k, ordered),
            "cross_patient": measure(trained, maps[there][0], k, ordered),
            "initialisation": measure(initial, initial, k, ordered),
            "own_initialisation": measure(trained, initial, k, same),
            "chance": 0 if k is None else k / (T * F),
        }
        np.testing.assert_allclose([row[name] for name in wanted], list(wanted.values()), atol=1e-6)
        left = [measure(trained, trained, k, [pair for pair in ordered if v not in pair]) for v in range(V)]
        np.testing.assert_allclose(row["se"], np.sqrt((V - 1) * np.var(left)), rtol=1e-5)
        assert (row["n"], row["variants"]) == (T * F, V)


def test_a_stay_alone_is_compared_with_one_of_another_patient_of_its_split(runs, cohort):
    run = runs("feature")
    sample = run.saved_samples[0]
    tables = vmapens.analyze(run.paths.root, settings=Settings(samples=sample, without=BARE))
    own = tables["agreement"].filter(attribution="attention", grain="cell", cells="all", measure="spearman")
    rank = {one: scipy.stats.rankdata(run.attention(one).reshape(V, -1), axis=1) for one in run.saved_samples}
    patient = dict(zip(cohort.samples, cohort.patient.tolist(), strict=True))
    different = ~np.eye(V, dtype=bool)
    across = [
        np.corrcoef(rank[sample], rank[other])[:V, V:][different].mean()
        for other in run.saved_samples
        if patient[other] != patient[sample]
    ]
    assert np.abs(np.array(across) - own["cross_patient"].item()).min() < 1e-6


def test_consistency_is_the_mean_over_stays(pair):
    own = pair.tables["agreement"].filter(attribution="attention", grain="cell", cells="all", measure="overlap", k=7)
    for name in ("value", "cross_patient", "own_initialisation"):
        found = only(
            pair.tables["consistency"], attribution="attention", grain="cell", cells="all", measure="overlap", k=7,
            quantity=name, over="stays",
        )  # fmt: skip
        np.testing.assert_allclose(found["estimate"], own[name].mean())
        assert found["stays"] == 2


def test_the_share_of_top_cells_that_were_measured(runs, pair, cohort):
    for sample, row in zip(pair.ids, pair.rows, strict=True):
        observed = cohort.observed[row].numpy().ravel()
        found = only(pair.tables["measured"], sample=sample, attribution="attention", k=7)
        sets = tops(runs("feature").attention(sample), 7)
        np.testing.assert_allclose(found["value"], np.mean([observed[list(cells)].mean() for cells in sets]))
        np.testing.assert_allclose(found["chance"], observed.mean())


def test_attention_drop(runs, pair):
    for sample, k in itertools.product(pair.ids, pair.ks):
        drop = pair.tables["drop"].filter(sample=sample, k=k).sort("n")
        held = np.zeros(T * F, int)
        for cells in tops(runs("feature").attention(sample), k):
            held[list(cells)] += 1
        assert drop["n"].to_list() == list(range(1, V + 1))
        for column in ("random_order", "exact", "chance"):
            assert (drop[column].diff().drop_nulls() <= 1e-12).all()
            np.testing.assert_allclose(drop[column][0], k)
        by_all = (held == V).sum()
        assert drop["random_order"][-1] == by_all
        np.testing.assert_allclose(drop["exact"][-1], by_all, atol=1e-9)
        for share in (0.5, 0.8, 0.95):
            found = only(pair.tables["held"], sample=sample, k=k, share=share)
            assert found["cells"] == (held / V >= share - 1e-9).sum()


def test_ranks_over_variants(runs, pair):
    for sample in pair.ids:
        rank = scipy.stats.rankdata(-runs("feature").attention(sample).reshape(V, -1), axis=1)
        spread = pair.tables["rank_spread"].filter(sample=sample).sort("n")
        assert spread["n"].to_list() == [2, 4, 8, V]
        for n, smallest, largest in spread.select("n", "smallest", "largest").iter_rows():
            sd = rank[:n].std(axis=0)
            np.testing.assert_allclose((smallest, largest), (sd.min(), sd.max()), atol=1e-6)
    histogram = pair.tables["rank_histogram"].group_by("n").agg(pl.col("share", "expected").sum())
    assert sorted(histogram["n"]) == [1, 2, 4, 8, V]
    np.testing.assert_allclose(histogram.select("share", "expected").to_numpy(), 1, atol=1e-9)
    edge = pair.tables["rank_histogram"].filter(n=V).sort("left")["left"].to_numpy()
    means = [scipy.stats.rankdata(-runs("feature").attention(s).reshape(V, -1), axis=1).mean(0) for s in pair.ids]
    wanted = np.histogram(np.concatenate(means), np.append(edge, np.inf))[0] / (2 * T * F)
    np.testing.assert_allclose(pair.tables["rank_histogram"].filter(n=V).sort("left")["share"], wanted, atol=1e-9)


def test_maps_are_those_of_the_attention(runs, pair, cohort):
    run = runs("feature")
    for sample, row in zip(pair.ids, pair.rows, strict=True):
        own, attention = pair.tables["maps"].filter(sample=sample), run.attention(sample).reshape(V, -1)
        rank = scipy.stats.rankdata(-attention, axis=1)
        held = sum(np.isin(np.arange(T * F), list(cells)) for cells in tops(attention, 7)) / V
        wanted = {"mean": attention.mean(0), "sd": attention.std(0), "held": held}
        wanted |= {"rank_mean": rank.mean(0), "rank_sd": rank.std(0), "measured": cohort.observed[row].numpy().ravel()}
        for kind, values in wanted.items():
            np.testing.assert_allclose(only(own, kind=kind)["values"], values, rtol=1e-4, atol=1e-6, err_msg=kind)
        for variant in pair.tables["chosen"]["variant"].unique():
            np.testing.assert_array_equal(only(own, kind="variant", variant=variant)["values"], attention[variant])


def test_planted_cells_are_found_as_scikit_learn_says(runs, cohort, cohort_path):
    run = runs("feature")
    truth, bayes = pl.read_parquet(cohort_path / TRUTH_FILE), pl.read_parquet(cohort_path / BAYES_FILE)
    probability = dict(bayes.select("sample", "probability").iter_rows())
    acts = [s for s in run.saved_samples if probability[s] > cohort.y.double().mean() and s != NEVER_MEASURED]
    sample = acts[0]
    row = cohort.samples.index(sample)
    features = cohort.features["feature"].to_list()
    causal = np.zeros((T, F), bool)
    for step, feature in truth.filter(sample=sample).select("step", "feature").iter_rows():
        causal[step, features.index(feature)] = True
    counts = np.ones((T, F), bool)
    for step, feature in itertools.product(range(1, T), range(F)):
        if not cohort.observed[row, step, feature]:  # shows what the step before shows
            carried = causal[step - 1, feature] or not counts[step - 1, feature]
            counts[step, feature] = not carried
    tables = vmapens.analyze(run.paths.root, settings=Settings(samples=sample, without=BARE))
    x = cohort.x[row].numpy()
    for name, maps in (("attention", run.attention(sample)), ("gated_input_size", abs(run.attention(sample) * x))):
        for variant in (0, V - 1):
            found = only(tables["planted"], attribution=name, variant=variant)
            wanted = sklearn.metrics.average_precision_score(causal[counts], maps[variant][counts])
            np.testing.assert_allclose(found["average_precision"], wanted)
            np.testing.assert_allclose(
                found["chance"], chance_average_precision(int(causal[counts].sum()), int(counts.sum()))
            )


def test_scores_running_means_and_the_chosen_variants_are_those_of_the_run(analysed):
    metrics, scores = analysed.run.metrics, analysed.tables["scores"]
    assert (
        scores.drop("running_mean")
        .sort("variant", "split", "metric")
        .equals(metrics.sort("variant", "split", "metric").select("variant", "split", "metric", "value", "status"))
    )
    own = scores.filter(split="test", metric="auroc").sort("variant")
    np.testing.assert_allclose(own["running_mean"], own["value"].cum_sum() / np.arange(1, V + 1))
    loss = metrics.filter(split="valid", metric="log_loss").sort("variant")["value"].to_numpy()
    chosen = dict(analysed.tables["chosen"].select("role", "variant").iter_rows())
    assert (chosen["best"], chosen["worst"]) == (loss.argmin(), loss.argmax())
    assert chosen["median"] == loss.argsort(kind="stable")[V // 2]
    np.testing.assert_allclose(only(analysed.tables["chosen"], role="best")["valid_loss"], loss.min(), rtol=1e-6)
    good = analysed.tables["good"].sort("variant")
    np.testing.assert_allclose(good["valid_loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(good["gap"], loss - loss.min(), atol=1e-6)
    assert good["p_value"][int(loss.argmin())] == 1


def test_the_most_different_variant_agrees_least(pair, runs):
    maps = [runs("feature").attention(sample).reshape(V, -1) for sample in pair.ids]
    pairs = np.mean([scipy.stats.spearmanr(one.T).statistic for one in maps], axis=0)
    agreement = (pairs.sum(axis=1) - 1) / (V - 1)
    found = only(pair.tables["chosen"], role="most different")
    assert found["variant"] == agreement.argmin()
    np.testing.assert_allclose(found["agreement"], agreement.min(), atol=1e-6)


def test_controls_are_the_summaries_of_the_runs(analysed, runs):
    controls = analysed.tables["controls"]
    assert controls["form"].unique(maintain_order=True).str.starts_with("feature").to_list() == [True, True, False]
    for name in ("feature", "crossed", "uniform"):
        run = runs(name)
        for metric in ("auroc", "log_loss"):
            found = only(controls, run=str(run.paths.root), split="test", metric=metric)
            wanted = only(run.summary(), split="test", metric=metric)
            np.testing.assert_allclose((found["mean"], found["sd"]), (wanted["mean"], wanted["sd"]), rtol=1e-6)
            assert found["variants"] == wanted["variants"]
            first = only(runs("feature").summary(), split="test", metric=metric)["mean"]
            if name == "feature":
                assert found["difference"] is None
            else:
                np.testing.assert_allclose(found["difference"], wanted["mean"] - first, atol=1e-7)
                assert found["difference_low"] <= found["difference"] <= found["difference_high"]


def value_over_stays(tables, quantity="value"):
    return only(
        tables["consistency"], attribution="attention", grain="cell", cells="all", measure="overlap", k=7,
        quantity=quantity, over="stays",
    )  # fmt: skip


def test_epochs_end_in_what_is_kept_and_begin_with_the_initialisation(analysed):
    epochs = analysed.tables["epochs"].filter(measure="overlap")
    which = [tuple(row) for row in epochs.select("which", "epoch").iter_rows()]
    assert which[0] == ("initialisation", 0)
    assert which[2:] == [("snapshot", 1), ("last", 3)]
    ends = ["estimate", "low", "high"]
    for which, quantity in (("kept", "value"), ("initialisation", "initialisation")):
        row, wanted = only(epochs, which=which), value_over_stays(analysed.tables, quantity)
        assert [row[name] for name in ends] == [wanted[name] for name in ends]
    kept = analysed.run.variants["kept_epoch"].mean()
    np.testing.assert_allclose(only(epochs, which="kept")["epoch"], kept)


def test_the_largest_set_of_good_variants_is_all_of_them(analysed):
    sets = analysed.tables["rashomon"].filter(measure="overlap").sort("epsilon")
    assert sets["variants"][-1] == V
    assert (sets["variants"].diff().drop_nulls() > 0).all()
    np.testing.assert_allclose(sets["estimate"][-1], value_over_stays(analysed.tables)["estimate"], rtol=1e-6)
    np.testing.assert_allclose(sets["at_random"], sets["estimate"][-1])
    assert (sets["discrepancy"] <= sets["ambiguity"]).all()
    loss = analysed.tables["good"]["gap"].to_numpy()
    assert sets["variants"].to_list() == [(loss <= epsilon).sum() for epsilon in sets["epsilon"]]


def test_weights_and_their_places(analysed):
    weights = analysed.tables["weights"]
    matrices = [analysed.run.state_dict(v)["attention.attention_dense.weight"].numpy() for v in range(V)]
    best = only(analysed.tables["chosen"], role="best")["variant"]
    for column, wanted in (("mean", np.mean(matrices, 0)), ("sd", np.std(matrices, 0)), ("best", matrices[best])):
        got = weights.sort("row", "column")[column].to_numpy().reshape(F, F)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    for axis in ("row", "column"):
        places = weights.select(axis, f"{axis}_place").unique().sort(axis)
        assert places[axis].to_list() == sorted(places[f"{axis}_place"]) == list(range(F))


def test_variants_before_training_are_built_again_where_no_snapshot_was_kept(runs, analysed):
    """The two runs differ by their snapshots and blocks only."""
    with_snapshot, without = (Subject.open(runs.path(name)) for name in ("feature", "no snapshots"))
    assert with_snapshot.initial.theta.equal(without.initial.theta)
    assert not with_snapshot.initial.theta.equal(with_snapshot.stack().theta)
    tables = vmapens.analyze(runs.path("no snapshots"), settings=Settings(samples="test:3", without=BARE))
    names = ["attention", "gated_input", "gated_input_size"]
    wanted = analysed.tables["agreement"].filter(pl.col("attribution").is_in(names))
    assert tables["agreement"].equals(wanted)
    assert set(tables["epochs"]["which"]) == {"initialisation", "kept", "last"}


def test_a_crossed_design_says_the_same_as_the_first_run_and_as_another_one(runs, analysed):
    tables = vmapens.analyze(runs.path("crossed"), settings=Settings(samples="test:3", without=BARE))
    check_tables(tables)
    assert set(tables["decomposition"]["component"]) >= {"init", "order"}
    wanted = analysed.tables["decomposition"].sort("measure", "component")
    got = tables["decomposition"].sort("measure", "component")
    assert got.select(pl.exclude(pl.Float64)).equals(wanted.select(pl.exclude(pl.Float64)))
    for column in ("share", "low", "high"):
        np.testing.assert_allclose(got[column].to_numpy(), wanted[column].to_numpy(), rtol=1e-6)
    assert tables["consistency"].filter(over="variants").is_empty()
    notes = read_analysis(runs.path("crossed"))[1]["notes"]
    assert any("The design is crossed" in note for note in notes)
