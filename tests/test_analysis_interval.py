"""Intervals hold the truth as often as they say: over stays by bootstrap, over variants by the jackknife."""

import numpy as np
import pytest
import scipy.stats

from vmapens.analysis.interval import (
    Interval,
    bootstrap_means,
    expanded_percentile,
    mean_pairs_without_each,
    over_stays,
    over_variants,
    ratio_over_stays,
    weights_of,
)

ACCEPTED = (92, 98)
TRIALS = 600
# Of a trial: how often an interval covers hardly depends on it beyond a few hundred.
RESAMPLES = 400


def coverage(intervals, truth):
    """Per cent of the intervals that hold the truth."""
    return 100 * np.mean([interval.low <= truth <= interval.high for interval in intervals])


def correlations(z):
    """Correlation of each pair of rows, without the diagonal: the mean over all pairs and that of each row."""
    r = np.corrcoef(z)
    np.fill_diagonal(r, 0)
    return r.sum() / (len(r) * (len(r) - 1)), r.sum(axis=1) / (len(r) - 1)


@pytest.mark.parametrize("clusters", [None, np.array([5, 5, 2, 9, 2, 2, 7])], ids=["stays", "patients"])
def test_bootstrap_means_are_those_of_the_samples_written_out(clusters):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(7, 2, 3))
    values[2, 0, 1] = values[5, 0, 1] = values[:, 1, 2] = np.nan
    weights = weights_of(7, clusters, 50, seed=3)
    got = bootstrap_means(values, clusters=clusters, resamples=50, seed=3)
    assert got.shape == (50, 2, 3)
    for row, means in zip(weights, got, strict=True):
        sample = np.repeat(values, row, axis=0)
        for column in np.ndindex(2, 3):
            defined = [value for value in sample[:, *column] if not np.isnan(value)]
            want = sum(defined) / len(defined) if defined else np.nan
            np.testing.assert_allclose(means[column], want, rtol=0, atol=1e-12)


def test_stays_are_drawn_with_equal_chance_and_independently():
    weights = weights_of(5, None, 40_000, seed=0)
    assert (weights.sum(axis=1) == 5).all()
    want = scipy.stats.binom(5, 0.2)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(weights.var(axis=0), want.var(), atol=0.02)
    np.testing.assert_allclose(np.cov(weights.T)[0, 1], -5 * 0.2 * 0.2, atol=0.02)


def test_a_patient_comes_with_all_their_stays():
    clusters = np.array([30, 10, 30, 20, 10, 30])
    weights = weights_of(6, clusters, 500, seed=1)
    for patient in (10, 20, 30):
        assert (weights[:, clusters == patient].std(axis=1) == 0).all()
    patients = weights[:, [1, 3, 0]]
    assert (patients.sum(axis=1) == 3).all()
    assert len(np.unique(patients, axis=0)) == 10  # all multisets of 3 of 3


def test_the_seed_decides_the_samples():
    assert (weights_of(9, None, 20, seed=4) == weights_of(9, None, 20, seed=4)).all()
    assert (weights_of(9, None, 20, seed=4) != weights_of(9, None, 20, seed=5)).any()
    values = np.random.default_rng(0).random(12)
    assert over_stays(values, None, 1) == over_stays(values, None, 1) != over_stays(values, None, 2)


def test_each_stay_as_its_own_patient_is_no_clustering():
    values = np.random.default_rng(0).random(12)
    ids = np.arange(100, 112)
    assert over_stays(values, ids, 1) == over_stays(values, None, 1)
    assert ratio_over_stays(values, values**2, ids, 1) == ratio_over_stays(values, values**2, None, 1)


def test_clusters_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"clusters have shape .* but there are 4 stays"):
        weights_of(4, np.array([1, 2, 3]), 10, seed=0)


DRAWS = {
    "normal": (lambda g, n: g.normal(size=n), 0.0),
    "exponential": (lambda g, n: g.exponential(size=n), 1.0),
    "near zero": (lambda g, n: g.beta(0.3, 3.0, size=n), 0.3 / 3.3),
}


@pytest.mark.parametrize("stays", [16, 32, 100])
@pytest.mark.parametrize("shape", DRAWS)
def test_the_interval_of_a_mean_covers(shape, stays):
    draw, truth = DRAWS[shape]
    generator = np.random.default_rng(stays)
    intervals = [over_stays(draw(generator, stays), None, seed, resamples=RESAMPLES) for seed in range(TRIALS)]
    assert ACCEPTED[0] <= coverage(intervals, truth) <= ACCEPTED[1]


@pytest.mark.parametrize("patients", [16, 32, 100])
@pytest.mark.parametrize("effect", ["normal", "exponential"])
def test_the_interval_of_a_mean_covers_with_several_stays_a_patient(effect, patients):
    draw, truth = DRAWS[effect]
    generator = np.random.default_rng(patients)
    clustered, single = [], []
    for seed in range(TRIALS // 2):
        clusters = np.repeat(np.arange(patients), generator.integers(1, 6, patients))
        values = draw(generator, patients)[clusters] + 0.5 * generator.normal(size=clusters.size)
        clustered.append(over_stays(values, clusters, seed, resamples=RESAMPLES))
        single.append(over_stays(values, None, seed, resamples=RESAMPLES))
    assert ACCEPTED[0] <= coverage(clustered, truth) <= ACCEPTED[1]
    assert coverage(single, truth) < 85, "stays of one patient must not pass for independent ones"


@pytest.mark.parametrize("stays", [16, 32, 100])
def test_the_interval_of_a_ratio_covers(stays):
    """Also where the denominator is no more than a few of its standard errors from 0."""
    generator = np.random.default_rng(stays)
    steady, unsteady = [], []
    for seed in range(TRIALS):
        noise = 0.3 * generator.normal(size=stays)
        below = generator.exponential(size=stays)
        steady.append(ratio_over_stays(0.5 * below + noise, below, None, seed, resamples=RESAMPLES))
        below = 0.6 + 0.5 * generator.normal(size=stays)
        unsteady.append(ratio_over_stays(0.5 * below + noise, below, None, seed, resamples=RESAMPLES))
    assert ACCEPTED[0] <= coverage(steady, 0.5) <= ACCEPTED[1]
    assert ACCEPTED[0] <= coverage(unsteady, 0.5) <= ACCEPTED[1]


def test_plain_percentiles_would_cover_too_little():
    """Why the table of methods is not one line: 16 skewed values, percentiles as they are."""
    generator = np.random.default_rng(0)
    plain, expanded, own = [], [], []
    for seed in range(TRIALS):
        values = generator.beta(0.3, 3.0, size=16)
        means = bootstrap_means(values, clusters=None, resamples=RESAMPLES, seed=seed)
        plain.append(Interval(values.mean(), *np.quantile(means, [0.025, 0.975])))
        expanded.append(expanded_percentile(values.mean(), means, 16))
        own.append(over_stays(values, None, seed, resamples=RESAMPLES))
    truth = DRAWS["near zero"][1]
    assert coverage(plain, truth) < 90
    assert coverage(plain, truth) < coverage(expanded, truth) < coverage(own, truth)


def test_expanded_percentiles_of_normal_values_are_students():
    values = np.random.default_rng(2).normal(size=10)
    means = bootstrap_means(values, clusters=None, resamples=100_000, seed=0)
    want = scipy.stats.t.interval(0.95, 9, loc=values.mean(), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(expanded_percentile(values.mean(), means, 10)[1:], want, atol=0.05)


def test_the_bootstrap_t_is_what_its_loop_gives():
    values = np.random.default_rng(5).exponential(size=9)
    clusters = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5])

    def mean_and_variance(parts):
        size = sum(len(part) for part in parts)
        mean = sum(part.sum() for part in parts) / size
        squares = sum(((part - mean).sum()) ** 2 for part in parts)
        return mean, len(parts) / (len(parts) - 1) * squares / size**2

    parts = [values[clusters == c] for c in range(6)]
    mean, variance = mean_and_variance(parts)
    t = []
    for row in weights_of(6, None, 2000, seed=8):
        m, s2 = mean_and_variance([parts[c] for c in range(6) for _ in range(row[c])])
        t.append((m - mean) / np.sqrt(5 / 6 * s2 + variance / 6))
    low, high = np.quantile(t, [0.025, 0.975]) * np.sqrt(variance)
    np.testing.assert_allclose(over_stays(values, clusters, 8), (mean, mean - high, mean - low), rtol=1e-9)


def test_undefined_stays_are_left_out():
    values = np.random.default_rng(0).random(12)
    clusters = np.arange(12) // 2
    holed = np.insert(values, [3, 7], np.nan)
    wider = np.insert(clusters, [3, 7], 99)
    assert over_stays(holed, wider, 0) == over_stays(values, clusters, 0)
    below = 1 + values[::-1]
    want = ratio_over_stays(values, below, clusters, 0)
    assert ratio_over_stays(holed, np.insert(below, [3, 7], 5.0), wider, 0) == want
    assert ratio_over_stays(np.insert(values, [3, 7], 5.0), np.insert(below, [3, 7], np.nan), wider, 0) == want
    np.testing.assert_allclose(want.estimate, values.mean() / below.mean(), rtol=1e-12)


def test_too_little_to_say_gives_no_bounds():
    one, none = np.array([0.5, np.nan]), np.full(3, np.nan)
    for interval in (over_stays(one, None, 0), over_stays(np.array([0.25, 0.75]), np.array([4, 4]), 0)):
        assert interval.estimate == 0.5
        assert np.isnan(interval[1:]).all()
    assert np.isnan(over_stays(none, None, 0)).all()
    assert np.isnan(over_stays(none[:0], None, 0)).all()
    assert np.isnan(ratio_over_stays(none, none, None, 0)).all()
    assert np.isnan(ratio_over_stays(np.ones(4), np.zeros(4), None, 0)).all()
    assert ratio_over_stays(one, 2 * one, None, 0).estimate == 0.5


def test_equal_stays_have_an_interval_without_width():
    assert over_stays(np.full(8, 0.25), None, 0) == (0.25, 0.25, 0.25)
    assert ratio_over_stays(np.full(8, 0.25), np.full(8, 0.5), None, 0) == (0.5, 0.5, 0.5)


def test_one_stay_that_differs_does_not_blow_the_interval_up():
    """A third of the samples lack it and have no spread at all."""
    interval = over_stays(np.eye(1, 16)[0], None, 0)
    assert -1 < interval.low < 1 / 16 < interval.high < 1


def test_means_without_each_variant_are_those_of_the_pairs_left():
    agreement = np.random.default_rng(0).random((6, 6))
    agreement = agreement + agreement.T
    pairs = agreement[np.triu_indices(6, 1)]
    per_variant = (agreement.sum(axis=1) - agreement.diagonal()) / 5
    want = [np.delete(np.delete(agreement, v, 0), v, 1)[np.triu_indices(5, 1)].mean() for v in range(6)]
    np.testing.assert_allclose(mean_pairs_without_each(per_variant, pairs.mean()), want, rtol=1e-12)
    holed = np.insert(per_variant, 2, np.nan)
    np.testing.assert_allclose(
        mean_pairs_without_each(holed, pairs.mean()), np.insert(np.array(want), 2, np.nan), rtol=1e-12
    )
    assert np.isnan(mean_pairs_without_each(per_variant[:2], 0.5)).all()


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(size=11)
    without = (values.sum() - values) / 10
    want = scipy.stats.t.interval(0.95, 10, loc=values.mean(), scale=scipy.stats.sem(values))
    got = over_variants(without, values.mean())
    np.testing.assert_allclose(got, (values.mean(), *want), rtol=1e-9)
    assert over_variants(np.insert(without, 4, np.nan), values.mean()) == got
    assert np.isnan(over_variants(without[:2], 0.5)[1:]).all()


def variants(generator, count, common, shared, spread):
    """Rankings that hold a common one, some variants more of it than others."""
    part = np.clip(shared + spread * generator.normal(size=(count, 1)), 0, 1)
    return np.sqrt(part) * common + np.sqrt(1 - part) * generator.normal(size=(count, common.size))


@pytest.mark.parametrize("count", [20, 50])
@pytest.mark.parametrize(("shared", "spread"), [(0.7, 0.1), (0.4, 0.0)])
@pytest.mark.parametrize("measure", ["spearman", "overlap"])
def test_the_interval_of_agreement_covers(measure, shared, spread, count):
    """The stay (the common ranking) is fixed; the truth is the agreement of very many variants on it."""
    generator = np.random.default_rng(count)
    common = generator.normal(size=120)

    def agreement(count):
        z = variants(generator, count, common, shared, spread)
        if measure == "spearman":
            return correlations(z.argsort(axis=1).argsort(axis=1))
        top = (z >= np.sort(z, axis=1)[:, -12:-11]).astype(float)
        pairs = top @ top.T / 12
        np.fill_diagonal(pairs, 0)
        return pairs.sum() / (count * (count - 1)), pairs.sum(axis=1) / (count - 1)

    truth, _ = agreement(3000)
    intervals = []
    for _ in range(400):
        mean, per_variant = agreement(count)
        intervals.append(over_variants(mean_pairs_without_each(per_variant, mean), mean))
    assert ACCEPTED[0] <= coverage(intervals, truth) <= ACCEPTED[1]


def test_without_any_agreement_the_jackknife_is_too_wide_but_never_too_narrow():
    """The known limit: all variance comes from pairs then, and is counted twice."""
    generator = np.random.default_rng(0)
    means, widths, intervals = [], [], []
    for _ in range(400):
        mean, per_variant = correlations(generator.normal(size=(20, 120)))
        interval = over_variants(mean_pairs_without_each(per_variant, mean), mean)
        intervals.append(interval)
        means.append(mean)
        widths.append((interval.high - mean) / scipy.stats.t.ppf(0.975, 19))
    assert np.mean(np.square(widths)) / np.var(means) == pytest.approx(2, rel=0.2)
    assert coverage(intervals, 0.0) > 97


def test_a_bootstrap_over_variants_would_be_biased_upward():
    """Copies agree with themselves: (1 - m) / V, about three hundredths at V = 20, and the interval misses."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=120)
    lift, intervals = [], []
    truth, _ = correlations(variants(generator, 3000, common, 0.4, 0.0))
    for _ in range(60):
        z = variants(generator, 20, common, 0.4, 0.0)
        mean, _ = correlations(z)
        r = np.corrcoef(z)
        drawn = generator.integers(0, 20, (200, 20))
        resampled = np.array([(r[np.ix_(d, d)].sum() - 20) / 380 for d in drawn])
        lift.append(resampled.mean() - mean)
        intervals.append(Interval(mean, *np.quantile(resampled, [0.025, 0.975])))
    assert np.mean(lift) == pytest.approx((1 - truth) / 20, rel=0.05)
    assert coverage(intervals, truth) < 60
