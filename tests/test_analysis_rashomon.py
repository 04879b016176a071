"""Variants as good as the best: the best is kept, a worse one is found, and decisions are counted right."""

import numpy as np
import pytest

from vmapens.analysis.interval import weights_of
from vmapens.analysis.rashomon import ambiguity_discrepancy, as_good_as_best, epsilons, rashomon_set


def losses(generator, variants, stays, worse=0.0, own=0.3):
    """Skewed losses of stays that are hard for all; the later half of the variants are worse by `worse`."""
    common = generator.exponential(size=stays)
    loss = common + own * generator.normal(size=(variants, stays)) * common
    loss[variants // 2 :] += worse
    return loss


def test_p_values_are_those_of_the_loop():
    loss = losses(np.random.default_rng(0), 5, 12)
    clusters = np.arange(12) // 2
    got = as_good_as_best(loss, clusters=clusters, seed=3, resamples=200)
    mean = loss.mean(axis=1)
    reached = np.zeros(5)
    for row in weights_of(12, clusters, 200, seed=3):
        error = [np.sqrt(6 / 5) * (np.repeat(loss[v], row).mean() - mean[v]) for v in range(5)]
        reached += [error[v] - min(error) >= mean[v] - mean.min() for v in range(5)]
    np.testing.assert_allclose(got, (1 + reached) / 201, rtol=1e-12)
    assert got[mean.argmin()] == 1


@pytest.mark.parametrize("variants", [2, 20, 100])
def test_the_truly_best_is_kept_and_a_paired_test_would_lose_it(variants):
    """All are equally good, so each is a best one. The paired test forgets that the lowest was chosen by luck."""
    generator = np.random.default_rng(variants)
    kept, kept_by_pairs = [], []
    for seed in range(300):
        loss = losses(generator, variants, 60)
        kept.append(as_good_as_best(loss, clusters=None, seed=seed, resamples=300)[0] > 0.05)
        gap = loss[0] - loss[loss.mean(axis=1).argmin()]
        error = gap.std(ddof=1) / np.sqrt(60)
        kept_by_pairs.append(gap.mean() <= 1.645 * error)
    assert np.mean(kept) >= 0.92
    if variants >= 20:
        assert np.mean(kept_by_pairs) < np.mean(kept) - 0.2


def test_the_best_is_kept_when_others_are_truly_worse():
    """Conservative there, as the worse ones still count among those that luck could have favoured."""
    generator = np.random.default_rng(0)
    kept = []
    for seed in range(200):
        loss = losses(generator, 20, 60)
        loss[1:] += 0.1
        kept.append(as_good_as_best(loss, clusters=None, seed=seed, resamples=300)[0] > 0.05)
    assert np.mean(kept) >= 0.95


def test_a_worse_variant_is_found():
    generator = np.random.default_rng(0)
    p = np.array([as_good_as_best(losses(generator, 20, 200, worse=0.2), clusters=None, seed=s) for s in range(30)])
    assert (p[:, 10:] <= 0.05).mean() > 0.95
    assert (p[:, :10] > 0.05).mean() > 0.95


def test_patients_with_many_stays_count_once():
    """Stays of one patient repeat each other; taken for independent they make the test too sure."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 6)
    kept, kept_by_stays = [], []
    for seed in range(200):
        loss = losses(generator, 10, 30)[:, clusters] + 0.02 * generator.normal(size=(10, 180))
        kept.append(as_good_as_best(loss, clusters=clusters, seed=seed, resamples=300)[0] > 0.05)
        kept_by_stays.append(as_good_as_best(loss, clusters=None, seed=seed, resamples=300)[0] > 0.05)
    assert np.mean(kept) >= 0.92
    assert np.mean(kept_by_stays) < 0.85


def test_failed_variants_have_no_p_value_and_change_no_other():
    loss = losses(np.random.default_rng(1), 4, 30)
    want = as_good_as_best(loss, clusters=None, seed=0)
    holed = np.insert(loss, 2, np.nan, axis=0)
    got = as_good_as_best(holed, clusters=None, seed=0)
    np.testing.assert_array_equal(got, np.insert(want, 2, np.nan))
    holed[2] = 0.0
    holed[2, 5] = np.nan
    np.testing.assert_array_equal(as_good_as_best(holed, clusters=None, seed=0), np.insert(want, 2, np.nan))
    assert np.isnan(as_good_as_best(np.full((2, 3), np.nan), clusters=None, seed=0)).all()


def test_equal_and_lone_variants_are_as_good_as_the_best():
    loss = np.random.default_rng(1).random((1, 30))
    assert as_good_as_best(loss, clusters=None, seed=0).tolist() == [1]
    assert as_good_as_best(loss.repeat(3, axis=0), clusters=None, seed=0).tolist() == [1, 1, 1]
    assert as_good_as_best(loss[:, :1].repeat(2, axis=0), clusters=None, seed=0).tolist() == [1, 1]


@pytest.mark.parametrize("variants", [2, 3, 40, 1000])
def test_each_epsilon_lets_in_its_share_of_the_variants(variants):
    loss = np.random.default_rng(variants).exponential(size=variants)
    shares = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    got = epsilons(loss)
    sizes = [int(rashomon_set(loss, epsilon).sum()) for epsilon in got.tolist()]
    assert sizes == sorted({max(2, int(np.ceil(share * variants - 1e-9))) for share in shares})
    assert (np.diff(got) > 0).all()
    holed = np.insert(loss, 1, np.nan)
    np.testing.assert_array_equal(epsilons(holed), got)
    np.testing.assert_array_equal(rashomon_set(holed, got[0]), np.insert(rashomon_set(loss, got[0]), 1, False))


def test_tied_losses_enter_together():
    loss = np.array([0.5, 0.25, 0.5, 0.25, 0.25])
    assert epsilons(loss).tolist() == [0.0, 0.25]
    assert rashomon_set(loss, 0.0).tolist() == [False, True, False, True, True]
    assert rashomon_set(loss, 0.24).tolist() == [False, True, False, True, True]
    assert rashomon_set(loss, 0.25).all()


def test_without_variants_the_set_is_empty():
    none = np.full(3, np.nan)
    assert epsilons(none).size == 0
    assert not rashomon_set(none, 1.0).any()
    assert epsilons(np.array([np.nan, 0.5])).tolist() == [0.0]


@pytest.mark.parametrize("threshold", [0.14, 0.5, None])
def test_ambiguity_and_discrepancy_are_those_of_the_loop(threshold):
    generator = np.random.default_rng(0)
    p = generator.random((6, 50)) if threshold else generator.dirichlet(np.ones(4), size=(6, 50))
    p = np.round(p, 1)  # ties at the threshold and between classes

    def decide(values):
        if threshold:
            return bool(values > threshold)
        return max(range(4), key=lambda c: (values[c], -c))

    flips = [[decide(p[m, i]) != decide(p[2, i]) for i in range(50)] for m in range(6)]
    ambiguity = sum(any(flips[m][i] for m in range(6)) for i in range(50)) / 50
    discrepancy = max(sum(row) for row in flips) / 50
    assert ambiguity_discrepancy(p, 2, threshold) == pytest.approx((ambiguity, discrepancy), rel=1e-12)
    assert 0 < discrepancy < ambiguity


def test_a_set_of_one_or_of_copies_flips_nothing():
    p = np.random.default_rng(0).random((1, 20))
    assert ambiguity_discrepancy(p, 0, 0.5) == (0, 0)
    assert ambiguity_discrepancy(p.repeat(3, axis=0), 1, 0.5) == (0, 0)
    flipped = np.concatenate([p, 1 - p])
    assert ambiguity_discrepancy(flipped, 0, 0.5) == (1, 1)


def test_a_threshold_for_several_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and the threshold is 0.5; wanted"):
        ambiguity_discrepancy(np.full((2, 3, 4), 0.25), 0, 0.5)
    with pytest.raises(ValueError, match=r"\(2, 3\) and the threshold is None; wanted"):
        ambiguity_discrepancy(np.full((2, 3), 0.25), 0, None)
