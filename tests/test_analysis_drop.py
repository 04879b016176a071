"""Attention drop: expected survival against every order, random orders and whole numbers; cells held by a share."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from vmapens.analysis.drop import Survival, by_chance, held_by_share, survivors
from vmapens.errors import SpecError


def draw(V, n, k, seed=0):
    """Tops that have something in common: weights about a shared preference."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=n) + generator.normal(size=(V, n))
    return np.argsort(-weights, axis=1)[:, :k].astype(np.int32)


def held_by(top, cells):
    return np.bincount(top.ravel(), minlength=cells)


def along(top, order):
    """Cells in common to the first 1, 2, ... variants of an order, by sets."""
    sets = [set(top[v].tolist()) for v in order]
    return [len(set.intersection(*sets[:n])) for n in range(1, len(sets) + 1)]


def check_every_order(k):
    top = draw(4, 12, k)
    want = np.mean([along(top, order) for order in itertools.permutations(range(4))], axis=0)
    np.testing.assert_allclose(Survival(4).expected(held_by(top, 12)), want, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_expected_survival_is_the_mean_over_all_orders(k):
    check_every_order(k)


def test_drawing_variants_with_replacement_is_caught(monkeypatch):
    monkeypatch.setattr(Survival, "expected", lambda self, c: ((c[:, None] / 4) ** np.arange(1, 5)).sum(axis=0))
    with pytest.raises(AssertionError):
        check_every_order(5)


def test_expected_survival_is_the_mean_of_the_papers_random_orders():
    """2000 orders; 5 standard errors at each n."""
    top = draw(12, 60, 20, seed=1)
    drops = np.array([survivors(top, 60, seed=seed) for seed in range(2000)])
    want = Survival(12).expected(held_by(top, 60))
    assert (abs(drops.mean(axis=0) - want) <= 5 * drops.std(axis=0) / np.sqrt(2000) + 1e-9).all()
    assert drops.std(axis=0)[1:6].min() > 0.5
    assert (drops[:, -1] == want[-1].round()).all()  # all variants are the same in any order


def test_expected_survival_by_hand():
    """3 variants with 2 cells each: all hold one cell, two a second (1 of 3 pairs does), one a third."""
    found = Survival(3).expected(np.array([3, 2, 1, 0]))
    np.testing.assert_allclose(found, [3 / 3 + 2 / 3 + 1 / 3, 1 + 1 / 3, 1], rtol=1e-12)
    assert Survival(1).expected(np.array([1, 0, 1])) == pytest.approx([2])
    assert Survival(5).expected(np.zeros(3, int)).tolist() == [0] * 5


def test_more_variants_than_a_float_holds_choices_of_stay_exact():
    """C(1100, 550) is above 1e308; whole numbers are exact."""
    V = 1100
    held = np.array([0, 1, 2, 550, 1099, 1100])
    found = Survival(V).expected(held)
    assert np.isfinite(found).all()
    for n in (1, 2, 549, 550, 551, 1099, 1100):
        want = sum(Fraction(math.comb(c, n), math.comb(V, n)) for c in held.tolist())
        assert found[n - 1] == pytest.approx(float(want), rel=1e-9)
    assert (np.diff(found) <= 1e-12).all()


@pytest.mark.parametrize(("V", "n", "k"), [(7, 30, 10), (1, 5, 2), (2, 1, 1), (5, 8, 8)])
def test_survivors_are_those_of_some_order_by_sets(V, n, k):
    top = draw(V, n, k)
    found = survivors(top, n, seed=4)
    assert found[0] == k
    assert found.tolist() in [along(top, order) for order in itertools.permutations(range(V))]
    assert found.tobytes() == survivors(top, n, seed=4).tobytes()


def test_another_seed_is_another_order():
    top = draw(9, 50, 15)
    assert len({survivors(top, 50, seed=seed).tobytes() for seed in range(10)}) > 5


def test_unrelated_sets_survive_by_chance():
    """400 draws of 5 random sets of 15 among 40; 5 standard errors."""
    generator = np.random.default_rng(0)
    drops = [
        survivors(generator.permuted(np.tile(np.arange(40, dtype=np.int32), (5, 1)), axis=1)[:, :15], 40, seed=seed)
        for seed in range(400)
    ]
    want = by_chance(15, 40, 5)
    assert (abs(np.mean(drops, axis=0) - want) <= 5 * np.std(drops, axis=0) / 20 + 1e-9).all()
    assert want == pytest.approx([15, 15 * 15 / 40, 15**3 / 40**2, 15**4 / 40**3, 15**5 / 40**4])


@pytest.mark.parametrize("V", [1, 2, 3, 7, 20, 100, 1000])
@pytest.mark.parametrize("share", ["0.07", "0.5", "0.8", "0.95", "1", "0.001"])
def test_cells_held_by_a_share_are_counted_as_by_fractions(V, share):
    """0.07 * 100 is 7.000000000000001 in float: 7 of 100 must count."""
    held = np.arange(V + 1)
    want = sum(Fraction(int(c), V) >= Fraction(share) for c in held)
    assert held_by_share(held, V, float(share)) == want


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(SpecError, match=f"share of the variants is {share:g}, but must be above 0 and at most 1"):
        held_by_share(np.array([1, 2]), 2, share)
