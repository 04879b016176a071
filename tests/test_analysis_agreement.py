"""Agreement as products: equal to loops over pairs, by hand, at chance, and under permutations within each step."""

import itertools

import numpy as np
import pytest
import scipy.stats
from threadpoolctl import threadpool_limits

from vmapens.analysis import agreement
from vmapens.analysis.agreement import Near, Overlap, Spearman
from vmapens.analysis.ranking import rank_cells

# V, T, F, k, steps of tolerance: usual, one step, one feature, a tolerance beyond the stay, as small as can be, and
# more variants than are in float64 at once.
SIZES = [(5, 6, 4, 7, 2), (3, 1, 5, 2, 1), (3, 9, 1, 2, 3), (4, 3, 4, 11, 9), (2, 2, 1, 1, 1), (34, 4, 3, 2, 1)]
MEASURES = ["overlap", "near", "spearman"]


def steps_of(T, F):
    return np.repeat(np.arange(T), F)


def draw(kind, size, seed):
    """Weights of any sign, of few levels (then no map is constant), or of one cell against all others."""
    V, T, F, _, _ = size
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(V, T * F))
    if kind == "tied":
        weights = generator.integers(0, 2, (V, T * F)) - 1.0
        weights[:, 0], weights[:, -1] = 3, -0.0
    if kind == "one cell":
        weights = np.zeros((V, T * F))
        weights[np.arange(V), generator.integers(0, T * F, V)] = 1
    return weights.astype(np.float32)


def made(measure, weights, step, k, tolerance, *, seed=0):
    return next(made_of_each(measure, [weights], step, k, tolerance, seed=seed))


def made_of_each(measure, draws, step, k, tolerance, *, seed=0):
    """The measure on each of many draws of the variants' weights, which are ranked at once."""
    ranking, V = rank_cells(np.concatenate(draws), most=k, seed=seed), len(draws[0])
    for first in range(0, len(ranking.rank), V):
        rank, top = ranking.rank[first : first + V], ranking.top[first : first + V]
        match measure:
            case "overlap":
                yield Overlap(top, step)
            case "near":
                yield Near.of(Overlap(top, step), tolerance)
            case "spearman":
                yield Spearman(rank, step)


def pair_of(ours, theirs, u, v):
    """The agreement of variant u here and variant v there, from its definition."""
    if isinstance(ours, Overlap):
        return len(set(ours.top[u]) & set(theirs.top[v])) / ours.k
    F = np.bincount(ours.cells.step)[0]
    a, b = ([divmod(cell, F) for cell in each.cells.top.tolist()[i]] for each, i in ((ours, u), (theirs, v)))

    def within(some, others):
        return sum(any(f == g and abs(t - s) <= ours.tolerance for s, g in others) for t, f in some)

    return (within(a, b) + within(b, a)) / (2 * ours.cells.k)


def looped(ours, theirs):
    if isinstance(ours, Spearman):
        every = scipy.stats.spearmanr(np.concatenate([ours.rank, theirs.rank]), axis=1).statistic
        return every[: ours.count, ours.count :]
    return np.array([[pair_of(ours, theirs, u, v) for v in range(ours.count)] for u in range(ours.count)])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", ["random", "tied", "one cell"])
@pytest.mark.parametrize("size", SIZES)
def test_products_equal_loops_over_pairs(measure, kind, size):
    V, T, F, k, tolerance = size
    step = steps_of(T, F)
    ours, theirs = (made(measure, draw(kind, size, seed), step, k, tolerance, seed=seed) for seed in (1, 2))
    within, between = looped(ours, ours), looped(ours, theirs)
    others = ~np.eye(V, dtype=bool)
    assert ours.count == V
    np.testing.assert_allclose(np.diagonal(within), 1, rtol=1e-12)
    np.testing.assert_allclose(ours.pairs(), within, atol=3e-6)  # float32
    np.testing.assert_allclose(ours.per_variant(), (within.sum(axis=1) - 1) / (V - 1), rtol=0, atol=1e-12)
    assert ours.per_variant().mean() == pytest.approx(within[others].mean(), abs=1e-12)
    np.testing.assert_allclose(ours.with_same(theirs), np.diagonal(between), rtol=0, atol=1e-12)
    assert ours.across(theirs) == pytest.approx(between[others].mean(), abs=1e-12)


def test_rank_correlation_is_exact_at_the_size_of_the_papers_maps():
    """66,528 cells, half of them tied in one variant, and all but one in another."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(4, 66_528)).astype(np.float32)
    weights[1] += weights[0]
    weights[2] = np.maximum(weights[2], 0)
    weights[3] = 0
    weights[3, 17] = 1
    ours = made("spearman", weights, steps_of(288, 231), 1, 0)
    np.testing.assert_allclose(ours.per_variant(), (looped(ours, ours).sum(axis=1) - 1) / 3, rtol=0, atol=1e-10)


def test_without_ties_the_mean_correlation_is_that_of_kendalls_w():
    """``(V W - 1) / (V - 1)``, W = 12 S / (V^2 (n^3 - n)), S the sum of squares of the rank sums about their mean."""
    V, n = 9, 20
    ours = made("spearman", draw("random", (V, n, 1, 1, 0), 3), steps_of(n, 1), 1, 0)
    sums = ours.rank.sum(axis=0, dtype=np.float64)
    w = 12 * np.square(sums - sums.mean()).sum() / (V**2 * (n**3 - n))
    assert ours.per_variant().mean() == pytest.approx((V * w - 1) / (V - 1), abs=1e-12)


def by_hand():
    """Two variants on 4 steps x 2 features. Cells (step, feature): A = (0, 0), (1, 1) and B = (1, 0), (3, 1)."""
    return Overlap(np.array([[0, 3], [2, 7]], np.int32), steps_of(4, 2))


def test_overlap_by_hand():
    cells = by_hand()
    assert cells.pairs().tolist() == [[1, 0], [0, 1]]
    assert cells.chance == 2 / 8
    assert cells.per_step().tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]
    assert cells.permuted == pytest.approx(1 * 1 / (2 * 2))  # they meet at step 1 alone, in one of two features
    assert cells.held_by().tolist() == [1, 0, 1, 1, 0, 0, 0, 1]
    assert np.flatnonzero(cells.masks()[1]).tolist() == [2, 7]
    assert cells.k == 2


def test_overlap_within_a_step_by_hand():
    """D(A): feature 0 at the steps 0 to 1, feature 1 at 0 to 2. D(B): feature 0 at 0 to 2, feature 1 at 2 to 3."""
    near = Near.of(by_hand(), 1)
    assert np.flatnonzero(near.reached[0]).tolist() == [0, 1, 2, 3, 5]
    assert np.flatnonzero(near.reached[1]).tolist() == [0, 2, 4, 5, 7]
    assert near.pairs()[0, 1] == (1 + 1) / 4  # (0, 0) is in D(B), (1, 0) in D(A)
    assert near.chance == 5 / 8
    # A's cells are reached with 1/2 each (B has 1 cell in steps 0-1, and in 0-2), B's with 1 - 1/4 and 0: mean 7/16.
    assert near.permuted == pytest.approx(((1 / 2 + 1 / 2) + (3 / 4 + 0)) / 4)
    assert Near.of(by_hand(), 0).pairs().tolist() == by_hand().pairs().tolist()


def test_rank_correlation_by_hand():
    """1 - 6 sum d^2 / (n^3 - n): differences 0, 1, 1 give 1/2, and 2, 0, 2 give -1."""
    ours = Spearman(np.array([[1, 2, 3], [1, 3, 2], [3, 2, 1]], np.float32), np.array([0, 0, 1]))
    np.testing.assert_allclose(ours.pairs(), [[1, 0.5, -1], [0.5, 1, -0.5], [-1, -0.5, 1]], atol=1e-6)
    assert ours.per_variant() == pytest.approx([-0.25, 0, -0.75])
    # Centred ranks summed by step: (-1, 1), (0, 0), (1, -1); so of three pairs one has (-1/2 - 1) / 2 and two have 0.
    assert ours.permuted == pytest.approx(-0.75 / 3)


def check_chance(measure, size):
    """Unrelated rankings in 400 draws: mean agreement less chance within 5 standard errors of 0."""
    _, T, F, k, tolerance = size
    step = steps_of(T, F)
    draws = [draw("random", size, seed) for seed in range(400)]
    each = made_of_each(measure, draws, step, k, tolerance)
    differences = [ours.per_variant().mean() - ours.chance for ours in each]
    assert abs(np.mean(differences)) < 5 * np.std(differences) / np.sqrt(400)


@pytest.mark.parametrize("size", [(4, 6, 4, 7, 2), (2, 1, 5, 2, 1), (3, 9, 1, 2, 3)])
@pytest.mark.parametrize("measure", MEASURES)
def test_unrelated_rankings_agree_by_chance(measure, size):
    check_chance(measure, size)


@pytest.mark.parametrize(
    ("kind", "measure", "wrong"),
    [
        (Overlap, "overlap", lambda self: (self.k + 1) / len(self.step)),
        (Near, "near", lambda self: self.cells.chance),  # as if there were no tolerance
        (Spearman, "spearman", lambda self: 0.05),
    ],
)
def test_a_wrong_chance_is_caught(kind, measure, wrong, monkeypatch):
    monkeypatch.setattr(kind, "chance", property(wrong))
    with pytest.raises(AssertionError):
        check_chance(measure, (4, 6, 4, 7, 2))


def permuted_within(weights, step, generator):
    result = weights.copy()
    for t in np.unique(step):
        result[:, step == t] = generator.permuted(weights[:, step == t], axis=1)
    return result


def check_permuted(measure, step, k, tolerance):
    """1000 draws of permutations against the closed form, 5 standard errors. Variants share their time stripes."""
    V, draws = 3, 1000
    generator = np.random.default_rng(len(step))
    stripes = np.repeat(generator.normal(size=step.max() + 1), np.bincount(step))
    weights = (stripes + 0.7 * generator.normal(size=(V, len(step)))).astype(np.float32)
    want = made(measure, weights, step, k, tolerance).permuted
    drawn = permuted_within(np.tile(weights, (draws, 1)), step, generator).reshape(draws, V, -1)
    found = []
    for ours in made_of_each(measure, drawn, step, k, tolerance):
        assert measure == "near" or ours.permuted == pytest.approx(want, abs=1e-12)  # each permutation has the same
        found.append(ours.per_variant().mean())
    assert abs(np.mean(found) - want) < 5 * np.std(found) / np.sqrt(draws)


# A grid, and the cells that were measured: steps of different numbers of them, and one of none.
GRID, MEASURED = steps_of(5, 4), np.array([0, 0, 0, 0, 0, 2, 2, 3, 4, 4, 4])


@pytest.mark.parametrize(
    ("measure", "step"),
    [("overlap", GRID), ("near", GRID), ("spearman", GRID), ("overlap", MEASURED), ("spearman", MEASURED)],
)
def test_what_is_left_when_features_are_permuted_within_steps(measure, step):
    check_permuted(measure, step, 4, 1)


def test_forgetting_that_steps_have_different_numbers_of_cells_is_caught(monkeypatch):
    wrong = property(lambda self: agreement._mean_over_pairs(self.per_step() / np.sqrt(len(self.step) / 5 * self.k)))
    monkeypatch.setattr(Overlap, "permuted", wrong)
    check_permuted("overlap", GRID, 4, 1)  # where they do not, it is right
    with pytest.raises(AssertionError):
        check_permuted("overlap", MEASURED, 4, 1)


def test_permuting_everything_leaves_chance_and_permuting_nothing_leaves_all():
    """One step with all cells: the layout of a feature. Steps of one cell: that of a window."""
    weights = draw("random", (6, 10, 1, 1, 0), 5)
    for measure in ("overlap", "spearman"):
        one, own = made(measure, weights, np.zeros(10, int), 3, 0), made(measure, weights, np.arange(10), 3, 0)
        assert one.permuted == pytest.approx(one.chance, abs=1e-12)
        assert own.permuted == pytest.approx(own.per_variant().mean(), abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_only_the_order_of_the_weights_matters_and_variants_keep_their_own(measure):
    size = (6, 5, 4, 6, 1)
    weights, step = draw("random", size, 8), steps_of(5, 4)
    ours = made(measure, weights, step, 6, 1)
    monotone = made(measure, np.exp(weights), step, 6, 1)
    assert ours.per_variant().tobytes() == monotone.per_variant().tobytes()
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
        made(measure, weights[order], step, 6, 1).per_variant(), ours.per_variant()[order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_neither_chunks_nor_threads_change_the_agreement(measure, monkeypatch):
    size = (41, 40, 25, 90, 2)
    weights, step = draw("random", size, 9), steps_of(40, 25)

    def numbers():
        ours = made(measure, weights, step, 90, 2)
        other = made(measure, weights[::-1].copy(), step, 90, 2)
        return [*ours.per_variant(), ours.permuted, ours.across(other), *ours.with_same(other)]

    want = numbers()
    for rows, threads in itertools.product((1, 7, 1000), (1, 2)):
        monkeypatch.setattr(agreement, "_ROWS", rows)
        with threadpool_limits(threads):
            np.testing.assert_allclose(numbers(), want, rtol=0, atol=1e-13)
