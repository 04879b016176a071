"""Comparison of runs: the mean score on every bootstrap sample is exact, and the intervals cover."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vmapens.analysis.interval import expanded_percentile, weights_of
from vmapens.analysis.scores import compare, mean_score_resampled, rank_correlation, running_mean
from vmapens.ensemble import metrics
from vmapens.errors import SpecError

TRIALS = 200
KINDS = [("binary", name) for name in metrics.metrics_for("binary")]
KINDS += [("multiclass", name) for name in metrics.metrics_for("multiclass")]


def draw(kind, *, seed, variants, stays, levels, classes=3):
    """Labels and float32 probabilities; `levels` > 0 rounds them to so many values, for ties."""
    generator = np.random.default_rng(seed)
    if kind == "binary":
        p = generator.random((variants, stays))
        return generator.integers(0, 2, stays), (np.round(p * levels) / levels if levels else p).astype(np.float32)
    p = generator.exponential(size=(variants, stays, classes))
    p = np.ceil(p * levels) if levels else p
    return generator.integers(0, classes, stays), (p / p.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("kind", "name"), KINDS)
@given(seed=st.integers(0, 2**32 - 1), stays=st.integers(1, 25), levels=st.sampled_from([0, 1, 3]))
@settings(max_examples=15, deadline=None)
def test_the_mean_score_on_a_sample_is_that_of_the_sample_written_out(kind, name, seed, stays, levels):
    """Small samples: many lack a class, most have ties."""
    y, p = draw(kind, seed=seed, variants=3, stays=stays, levels=levels)
    weights = weights_of(stays, None, 6, seed=seed)
    got = mean_score_resampled(name, y, p, weights)
    want = [metrics.score(name, np.repeat(y, row), np.repeat(p, row, axis=1)).mean() for row in weights]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_size_and_blocks_do_not_matter(kind, name, monkeypatch):
    y, p = draw(kind, seed=1, variants=4, stays=70, levels=20)
    weights = weights_of(70, np.arange(70) // 3, 90, seed=0)
    whole = mean_score_resampled(name, y, p, weights)
    assert np.ptp(whole) > 0
    monkeypatch.setattr("vmapens.analysis.scores._PAIRS", 1)
    monkeypatch.setattr("vmapens.analysis.scores._SORTED", 7)
    np.testing.assert_allclose(mean_score_resampled(name, y, p, weights), whole, rtol=1e-13)
    ones = np.ones((1, 70), dtype=np.int64)
    np.testing.assert_allclose(
        mean_score_resampled(name, y, p, ones), metrics.score(name, y, p).mean(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_a_failed_variant_is_left_out(kind, name):
    y, p = draw(kind, seed=2, variants=4, stays=40, levels=0)
    weights = weights_of(40, None, 20, seed=0)
    holed = p.copy()
    holed[1] = np.nan
    holed[3].flat[5] = np.nan
    want = mean_score_resampled(name, y, p[[0, 2]], weights)
    np.testing.assert_array_equal(mean_score_resampled(name, y, holed, weights), want)
    assert np.isnan(mean_score_resampled(name, y, np.full_like(p, np.nan), weights)).all()


def test_what_the_metric_refuses_is_refused():
    y, p = np.array([0, 1, 1]), np.full((2, 3), 0.5, dtype=np.float32)
    ones = np.ones((1, 3), dtype=np.int64)
    with pytest.raises(SpecError, match="does not apply to a binary task"):
        mean_score_resampled("macro_auroc", y, p, ones)
    with pytest.raises(ValueError, match=r"wanted a value in \[0, 1\]"):
        mean_score_resampled("brier", y, p + 1, ones)
    with pytest.raises(ValueError, match=r"weights have shape \(1, 2\), but there are 3 stays"):
        mean_score_resampled("brier", y, p, ones[:, :2])


def test_a_comparison_worked_by_hand():
    y = np.array([0, 0, 1, 1])
    first = np.array([[0.2, 0.2, 0.8, 0.8]])
    second = np.array([[0.2, 0.2, 0.2, 0.8], [0.2, 0.2, 0.8, 0.8], [0.2, 0.8, 0.2, 0.8]])
    table = compare(y, [first, second], names=("accuracy",), clusters=None, seed=0, resamples=200)
    one, other = table["accuracy"]
    assert (one.mean.estimate, other.mean.estimate, other.difference.estimate) == (1.0, 0.75, -0.25)
    assert np.isnan(one.sd)
    np.testing.assert_allclose(other.sd, 0.25, rtol=1e-12)
    assert one.difference == (0.0, 0.0, 0.0)
    # Of the four stays two are always right, one is right in two of three variants, one in one.
    assert (other.difference.low, other.difference.high) == pytest.approx((-2 / 3, 0.0), abs=0.01)


def test_runs_see_the_same_bootstrap_samples():
    """A copy of the first run differs from it by nothing on every sample; apart, their intervals are wide."""
    y, p = draw("binary", seed=3, variants=3, stays=60, levels=0)
    clusters = np.arange(60) // 2
    table = compare(y, [p, p.copy()], names=metrics.metrics_for("binary"), clusters=clusters, seed=5, resamples=200)
    for name, (first, copy) in table.items():
        assert copy.difference == (0.0, 0.0, 0.0)
        assert first.mean == copy.mean
        assert first.mean.low < first.mean.estimate < first.mean.high
        samples = mean_score_resampled(name, y, p, weights_of(60, clusters, 200, seed=5))
        assert samples.min() <= first.mean.low
        assert first.mean.high <= samples.max()


def test_a_mean_over_stays_has_the_interval_of_a_mean_over_stays():
    y, p = draw("binary", seed=3, variants=3, stays=60, levels=0)
    (only,) = compare(y, [p], names=("brier",), clusters=None, seed=5)["brier"]
    losses = np.square(p.astype(np.float64) - y).mean(axis=0)
    want = expanded_percentile(losses.mean(), weights_of(60, None, 1000, seed=5) @ losses / 60, 60)
    np.testing.assert_allclose(only.mean, want, rtol=1e-12)


def test_a_run_without_variants_and_a_class_of_one_stay_have_no_interval():
    y, p = draw("binary", seed=3, variants=3, stays=30, levels=0)
    lost = np.full_like(p, np.nan)
    table = compare(y, [p, lost], names=("auroc",), clusters=None, seed=0, resamples=100)
    assert np.isnan(table["auroc"][1].mean).all()
    assert np.isnan(table["auroc"][1].difference).all()
    y = (np.arange(30) == 4).astype(np.int64)
    table = compare(y, [p], names=("auroc", "brier"), clusters=None, seed=0, resamples=100)
    assert np.isnan(table["auroc"][0].mean[1:]).all()
    assert np.isfinite(table["auroc"][0].mean.estimate)
    assert np.isfinite(table["brier"][0].mean).all()


def runs(generator, stays, prevalence, strengths=(1.5, 1.2)):
    """Two calibrated runs of 2 variants that find the same stays hard."""
    y = (generator.random(stays) < prevalence).astype(np.int64)
    common = 0.8 * generator.normal(size=stays)
    probabilities = []
    for d in strengths:
        z = d * y + common + 0.6 * generator.normal(size=(2, stays))
        log_odds = d * z - d * d / 2 + np.log(prevalence / (1 - prevalence))
        probabilities.append(1 / (1 + np.exp(-log_odds)))
    return y, probabilities


@pytest.mark.parametrize(("stays", "prevalence"), [(100, 0.3), (300, 0.14)])
def test_intervals_of_scores_and_of_their_differences_cover(stays, prevalence):
    names = metrics.metrics_for("binary")
    generator = np.random.default_rng(stays)
    y, probabilities = runs(generator, 100_000, prevalence)
    truth = {name: [metrics.score(name, y, p).mean() for p in probabilities] for name in names}
    held = {(name, what): [] for name in names for what in ("mean", "difference")}
    for seed in range(TRIALS):
        y, probabilities = runs(generator, stays, prevalence)
        for name, (first, second) in compare(
            y, probabilities, names=names, clusters=None, seed=seed, resamples=200
        ).items():
            held[name, "mean"].append(first.mean.low <= truth[name][0] <= first.mean.high)
            difference = truth[name][1] - truth[name][0]
            held[name, "difference"].append(second.difference.low <= difference <= second.difference.high)
    cover = {key: 100 * np.mean(each) for key, each in held.items()}
    # One figure of 200 trials has a standard error of 1.5 points, and here are twelve.
    assert min(cover.values()) >= 91, cover
    assert max(cover.values()) <= 99, cover
    assert 93.5 <= np.mean(list(cover.values())) <= 97, cover


def test_pairing_makes_the_interval_of_a_difference_narrow():
    y, probabilities = runs(np.random.default_rng(0), 300, 0.3)
    first, second = compare(y, probabilities, names=("log_loss",), clusters=None, seed=0)["log_loss"]
    apart = np.hypot(first.mean.high - first.mean.low, second.mean.high - second.mean.low)
    assert second.difference.high - second.difference.low < 0.6 * apart


def test_a_class_of_few_stays_sets_the_width_of_the_interval():
    """Balanced accuracy of 3 classes of about 60, 30 and 10 stays."""
    generator = np.random.default_rng(0)
    shares, right = np.array([0.6, 0.3, 0.1]), np.array([0.8, 0.6, 0.5])
    held = []
    for seed in range(300):
        y = generator.choice(3, size=100, p=shares)
        said = np.where(generator.random(100) < right[y], y, (y + 1) % 3)
        p = 0.1 + 0.7 * np.eye(3)[said][None]
        (only,) = compare(y, [p], names=("balanced_accuracy",), clusters=None, seed=seed, resamples=300)[
            "balanced_accuracy"
        ]
        held.append(only.mean.low <= right.mean() <= only.mean.high)
    assert 92 <= 100 * np.mean(held) <= 98


def test_the_running_mean_skips_failed_variants():
    values = np.array([np.nan, 3.0, 1.0, np.nan, 5.0])
    np.testing.assert_allclose(running_mean(values), [np.nan, 3, 2, 2, 3])
    assert np.isnan(running_mean(np.full(3, np.nan))).all()
    assert running_mean(values[:0]).shape == (0,)


@pytest.mark.parametrize("levels", [0, 3])
def test_the_rank_correlation_is_spearmans(levels):
    x, y = np.random.default_rng(levels).normal(size=(2, 30))
    y = x + y
    if levels:
        x, y = np.round(x), np.round(y)
    holed = np.insert(x, 4, np.nan)
    got = rank_correlation(holed, np.insert(y, 4, 1.0))
    r = scipy.stats.pearsonr(scipy.stats.rankdata(x), scipy.stats.rankdata(y)).statistic
    assert got.estimate == pytest.approx(r, rel=1e-12)
    reach = 1.959964 * np.sqrt((1 + r**2 / 2) / 27)
    np.testing.assert_allclose(np.arctanh([got.low, got.high]), np.arctanh(r) + np.array([-reach, reach]), rtol=1e-5)


def test_degenerate_rank_correlations_say_so():
    x = np.arange(10.0)
    assert np.isnan(rank_correlation(x[:3], x[:3])).all()
    assert np.isnan(rank_correlation(x, np.ones(10))).all()
    same = rank_correlation(x, x)
    assert same.estimate == same.high == pytest.approx(1, abs=1e-12)
    assert 0.8 < same.low < 1
    turned = rank_correlation(x, -x)
    assert turned.estimate == turned.low == pytest.approx(-1, abs=1e-12)
    assert -1 < turned.high < -0.8


@pytest.mark.parametrize("variants", [12, 50])
@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
def test_the_interval_of_a_rank_correlation_covers(r, variants):
    generator = np.random.default_rng(variants)
    truth = 6 / np.pi * np.arcsin(r / 2)  # Spearman's of a normal pair
    held = []
    for _ in range(500):
        x, noise = generator.normal(size=(2, variants))
        interval = rank_correlation(x, r * x + np.sqrt(1 - r * r) * noise)
        held.append(interval.low <= truth <= interval.high)
    assert 92 <= 100 * np.mean(held) <= 98
