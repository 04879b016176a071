"""Components of the disagreement: those put in come out, and the intervals over levels cover."""

from itertools import product

import numpy as np
import pytest

from vmapens.analysis.decomposition import decompose

NAMES = ("init", "order", "bootstrap")


def crossed(*counts):
    """Levels of every combination, [V, K]."""
    return np.array(list(product(*(range(count) for count in counts))))


def similarity(generator, levels, components, cells, scale=None):
    """Inner products of vectors with these variances of effects (keys: sets of factors); they sum to 1 with 0.4.

    `scale` makes some levels stray further than others: a random variance around 1.
    """
    z = np.tile(np.sqrt(0.4) * np.sign(np.arange(cells) % 2 - 0.5), (len(levels), 1))
    for factors, variance in components.items():
        _, place = np.unique(levels[:, factors], axis=0, return_inverse=True)
        effect = generator.normal(size=(place.max() + 1, cells))
        if scale:
            effect *= np.sqrt(generator.gamma(scale, 1 / scale, size=(len(effect), 1)))
        z = z + np.sqrt(variance) * effect[place.ravel()]
    return z @ z.T / cells


def standardised(gram):
    size = np.sqrt(np.diag(gram))
    return gram / size / size[:, None]


def by_pairs(gram, levels, factors):
    """Share of a set of factors by its definition: signed means over the pairs that share exactly each subset."""

    def mean(shared):
        if set(shared) == set(range(levels.shape[1])):
            return 1.0
        values = [
            gram[u, v]
            for u in range(len(gram))
            for v in range(u)
            if all((levels[u, k] == levels[v, k]) == (k in shared) for k in range(levels.shape[1]))
        ]
        return sum(values) / len(values)

    total = 0.0
    for signs in product((False, True), repeat=len(factors)):
        subset = [k for k, chosen in zip(factors, signs, strict=True) if chosen]
        total += (-1) ** (len(factors) - len(subset)) * mean(subset)
    return total / (1 - mean([]))


@pytest.mark.parametrize("counts", [(2, 2), (5, 3), (3, 5), (4, 2, 3)])
def test_components_are_signed_means_over_pairs(counts):
    levels = crossed(*counts)
    z = np.random.default_rng(0).normal(size=(len(levels), 6))
    gram = np.corrcoef(z)
    parts = decompose(gram, levels, NAMES[: len(counts)])
    for name, part in parts.items():
        whole = name == "residual"
        factors = list(range(len(counts))) if whole else [NAMES.index(factor) for factor in name.split(" x ")]
        assert part.share.estimate == pytest.approx(by_pairs(gram, levels, factors), abs=1e-12)
        assert part.levels == np.prod([counts[k] for k in factors])
    assert sum(part.share.estimate for part in parts.values()) == pytest.approx(1, abs=1e-12)


def test_a_two_by_two_design_worked_by_hand():
    """Same initialisation: 0.6 and 0.8; same order: 0.5 and 0.3; neither: 0.2 and 0.2."""
    gram = np.array([[1, 0.6, 0.5, 0.2], [0.6, 1, 0.2, 0.3], [0.5, 0.2, 1, 0.8], [0.2, 0.3, 0.8, 1]])
    parts = decompose(gram, crossed(2, 2), ("init", "order"))
    assert list(parts) == ["init", "order", "residual"]
    # Of 0.8: the initialisation 0.7 less 0.2, the order 0.4 less 0.2, the residual what is left.
    np.testing.assert_allclose([part.share.estimate for part in parts.values()], [0.625, 0.25, 0.125], atol=1e-12)
    assert all(np.isnan(part.share[1:]).all() for part in parts.values()), "two levels say nothing of other levels"


def test_three_factors_have_all_their_products():
    generator = np.random.default_rng(0)
    components = {(0,): 0.25, (1,): 0.1, (2,): 0.05, (0, 1): 0.08, (1, 2): 0.02, (0, 1, 2): 0.1}
    levels = crossed(6, 5, 4)
    parts = decompose(standardised(similarity(generator, levels, components, 20_000)), levels, NAMES)
    assert list(parts) == [*NAMES, "init x order", "init x bootstrap", "order x bootstrap", "residual"]
    got = [part.share.estimate for part in parts.values()]
    np.testing.assert_allclose(got, np.array([0.25, 0.1, 0.05, 0.08, 0, 0.02, 0.1]) / 0.6, atol=0.01)


def test_order_of_variants_and_names_of_levels_do_not_matter():
    generator = np.random.default_rng(0)
    levels = crossed(5, 4)
    gram = np.corrcoef(generator.normal(size=(20, 9)))
    want = decompose(gram, levels, ("init", "order"))
    shuffled = generator.permutation(20)
    renamed = np.stack([(100 - 7 * levels[:, 0]), levels[:, 1] ** 2], axis=1)[shuffled]
    got = decompose(gram[np.ix_(shuffled, shuffled)], renamed, ("init", "order"))
    swapped = decompose(gram, levels[:, ::-1], ("order", "init"))
    for name, part in want.items():
        np.testing.assert_allclose(got[name].share, part.share, atol=1e-12)
        np.testing.assert_allclose(swapped[name].share, part.share, atol=1e-12)


def test_a_factor_with_one_level_is_dropped():
    gram = np.corrcoef(np.random.default_rng(0).normal(size=(12, 9)))
    three = np.insert(crossed(4, 3), 1, 7, axis=1)
    assert decompose(gram, three, NAMES) == decompose(gram, crossed(4, 3), ("init", "bootstrap"))


def test_levels_that_miss_a_combination_are_left_out():
    gram = np.corrcoef(np.random.default_rng(0).normal(size=(15, 9)))
    levels = crossed(5, 3)
    there = np.flatnonzero(np.arange(15) != 7)  # level 2 of the larger factor
    whole = np.flatnonzero(levels[:, 0] != 2)
    got = decompose(gram[np.ix_(there, there)], levels[there], ("init", "order"))
    want = decompose(gram[np.ix_(whole, whole)], levels[whole], ("init", "order"))
    assert got == want
    assert got["init"].levels == 4


def test_designs_that_are_not_crossed_are_refused():
    with pytest.raises(ValueError, match="init 4; wanted two with at least 2 levels"):
        decompose(np.eye(4), np.stack([np.arange(4), np.zeros(4, dtype=int)], axis=1), ("init", "order"))
    with pytest.raises(ValueError, match="none; wanted two"):
        decompose(np.eye(1), np.zeros((1, 2), dtype=int), ("init", "order"))
    with pytest.raises(ValueError, match="init 0, order 4; wanted two"):  # the paper's: both seeds the same
        decompose(np.eye(4), np.stack([np.arange(4), np.arange(4)], axis=1), ("init", "order"))
    with pytest.raises(ValueError, match="two variants have the same levels of init, order"):
        decompose(np.eye(5), np.concatenate([crossed(2, 2), [[0, 0]]]), ("init", "order"))


def test_variants_that_are_all_alike_have_no_shares():
    parts = decompose(np.ones((12, 12)), crossed(4, 3), ("init", "order"))
    assert all(np.isnan(part.share).all() for part in parts.values())


def test_a_purely_initial_disagreement_is_all_of_the_initialisation():
    """Orders change nothing: share 1, and the intervals have no width to speak of."""
    z = np.random.default_rng(0).normal(size=(6, 30)).repeat(4, axis=0)
    parts = decompose(np.corrcoef(z), crossed(6, 4), ("init", "order"))
    np.testing.assert_allclose(parts["init"].share, 1, atol=1e-9)
    np.testing.assert_allclose(parts["order"].share, 0, atol=1e-9)
    np.testing.assert_allclose(parts["residual"].share, 0, atol=1e-9)


LEADS = {(0,): 0.4, (1,): 0.05, (0, 1): 0.15}
PAIR = {(0,): 0.01, (1,): 0.01, (0, 1): 0.58}
TRIALS = 200


def shares(gram, levels):
    """Estimate, low and high of init, order and residual."""
    return np.array([part.share for part in decompose(gram, levels, ("init", "order")).values()])


def coverage(drawn, truth):
    return 100 * ((drawn[:, :, 1] <= truth) & (truth <= drawn[:, :, 2])).mean(axis=0)


@pytest.mark.parametrize("counts", [(8, 4), (16, 8)])
@pytest.mark.parametrize("components", [LEADS, PAIR], ids=["initialisation leads", "nothing but the pair"])
def test_components_are_unbiased_and_their_intervals_cover(components, counts):
    """Over other levels of both factors."""
    generator = np.random.default_rng(sum(counts))
    levels = crossed(*counts)
    truth = np.array(list(components.values())) / 0.6
    drawn = np.array(
        [shares(standardised(similarity(generator, levels, components, 200)), levels) for _ in range(TRIALS)]
    )
    error = drawn[:, :, 0] - truth
    # Standardising each vector and dividing by the disagreement add biases of second order.
    assert (np.abs(error.mean(axis=0)) < (4 / np.sqrt(TRIALS) + 0.1) * error.std(axis=0)).all()
    assert (coverage(drawn, truth) >= 92).all(), coverage(drawn, truth)
    assert (coverage(drawn, truth) <= 99.5).all(), coverage(drawn, truth)


def test_intervals_cover_where_some_levels_stray_further():
    """The truth is what very many levels give. The mean squares then depend on each other a little."""
    generator = np.random.default_rng(0)

    def draw(*counts):
        levels = crossed(*counts)
        return shares(standardised(similarity(generator, levels, LEADS, 200, scale=8)), levels)

    truth = np.mean([draw(40, 10)[:, 0] for _ in range(40)], axis=0)
    drawn = np.array([draw(16, 8) for _ in range(TRIALS)])
    assert (coverage(drawn, truth) >= 88).all(), coverage(drawn, truth)
    assert (coverage(drawn, truth) <= 98).all(), coverage(drawn, truth)


def test_intervals_cover_for_rankings():
    """Spearman's similarity; the truth is again what very many levels give."""
    generator = np.random.default_rng(0)

    def draw(*counts):
        levels = crossed(*counts)
        z = np.tile(np.sqrt(0.4) * common, (len(levels), 1))
        for factors, variance in LEADS.items():
            _, place = np.unique(levels[:, factors], axis=0, return_inverse=True)
            z += np.sqrt(variance) * generator.normal(size=(place.max() + 1, 200))[place.ravel()]
        return shares(np.corrcoef(z.argsort(axis=1).argsort(axis=1)), levels)

    common = generator.normal(size=200)
    truth = np.mean([draw(40, 10)[:, 0] for _ in range(20)], axis=0)
    drawn = np.array([draw(12, 6) for _ in range(TRIALS)])
    assert (coverage(drawn, truth) >= 92).all(), coverage(drawn, truth)
    assert (coverage(drawn, truth) <= 98.5).all(), coverage(drawn, truth)
