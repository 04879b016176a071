"""Average ranks and the k largest of all variants: equal to scipy, ties at random, and blind to chunks and threads."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vmapens.analysis import ranking
from vmapens.analysis.ranking import CONSTANT, mean_rank_shares, powers_up_to, rank_cells, rank_moments
from vmapens.nn.threads import spread_over

TINY = float(np.finfo(np.float32).tiny)  # numbers below it count as 0 on the threads that rank


def draw(kind, *, variants, cells, seed):
    generator = np.random.default_rng(seed)
    shape = (variants, cells)
    match kind:
        case "random":
            weights = generator.random(shape)
        case "signed":
            weights = generator.normal(size=shape) * 10.0 ** generator.integers(-30, 30, shape)
        case "tied":
            weights = generator.integers(-2, 3, shape) / 4
        case "signs of zero":
            weights = generator.choice([0.0, -0.0, TINY, -TINY], shape)
        case "constant":
            weights = np.full(shape, -0.3)
        case "zeros":
            weights = np.zeros(shape)
    return weights.astype(np.float32)


KINDS = ["random", "signed", "tied", "signs of zero", "constant", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), variants=st.integers(1, 4), cells=st.integers(1, 40), data=st.data())
@settings(max_examples=15, deadline=None)
def test_ranks_are_those_of_scipy_and_the_top_holds_the_largest(kind, seed, variants, cells, data):
    weights = draw(kind, variants=variants, cells=cells, seed=seed)
    most = data.draw(st.integers(1, cells))
    found = rank_cells(weights, most=most, seed=seed)
    np.testing.assert_array_equal(found.rank, scipy.stats.rankdata(-weights.astype(np.float64), axis=1))
    np.testing.assert_array_equal(np.take_along_axis(weights, found.top, 1), -np.sort(-weights, axis=1)[:, :most])
    assert all(len(set(row)) == most for row in found.top.tolist())


def test_a_case_by_hand():
    weights = np.array([[0.2, 0.5, 0.2, 0.1], [-1.0, -3.0, 0.0, -0.0]], np.float32)
    found = rank_cells(weights, most=2)
    assert found.rank.tolist() == [[2.5, 1, 2.5, 4], [3, 4, 1.5, 1.5]]
    assert found.top[0, 0] == 1
    assert found.top[0, 1] in (0, 2)
    assert set(found.top[1]) == {2, 3}
    assert not found.constant.any()


def test_infinity_is_ordered_and_nan_is_refused_with_the_variants_that_hold_it():
    weights = np.array([[1, np.inf, -np.inf, 3e38]], np.float32)
    assert rank_cells(weights, most=1).rank.tolist() == [[3, 1, 4, 2]]
    weights = np.zeros((3, 4), np.float32)
    weights[1, 3] = np.nan
    with pytest.raises(ValueError, match="variants 0 to 2 hold NaN"):
        rank_cells(weights, most=1)


@pytest.mark.parametrize("most", [0, 5, -1])
def test_a_top_of_no_cells_or_of_more_than_there_are_is_refused(most):
    with pytest.raises(ValueError, match=f"most is {most}, wanted 1 to 4"):
        rank_cells(np.ones((2, 4), np.float32), most=most)


@pytest.mark.parametrize(
    ("row", "constant"),
    [
        ([0, 0, 0], True),
        ([0, -0.0, 0], True),
        ([0.25, 0.25, 0.25 * (1 + CONSTANT / 2)], True),
        ([-0.25, -0.25, -0.25 * (1 + CONSTANT / 2)], True),
        ([0.25, 0.25, 0.25 * (1 + 2 * CONSTANT)], False),
        ([1e-30, 1e-30, 2e-30], False),
        ([0.5, -0.5, 0.5], False),
        ([7], True),
    ],
)
def test_a_map_is_constant_within_the_rounding_of_a_softmax_at_any_scale(row, constant):
    assert rank_cells(np.array([row], np.float32), most=1).constant.tolist() == [constant]


def test_some_variants_can_be_chosen():
    found = rank_cells(draw("random", variants=4, cells=6, seed=0), most=3)
    chosen = np.array([True, False, False, True])
    some = found.variants(chosen)
    assert some.rank.tobytes() == found.rank[chosen].tobytes()
    assert some.top.tobytes() == found.top[chosen].tobytes()
    assert some.constant.shape == (2,)
    assert found.variants(chosen | True) is found


def check_that_ties_are_in_common_by_chance_only():
    """600 variants with all cells tied: pairs overlap by k / n in the mean, and each cell is held by a share k / n.

    The SD of a pair's overlap is the hypergeometric's, and pairs are as good as independent.
    """
    V, n, k = 600, 20, 5
    top = rank_cells(np.zeros((V, n), np.float32), most=k).top
    held = np.zeros((V, n))
    np.put_along_axis(held, top, 1, axis=1)
    overlap = (held @ held.T)[np.triu_indices(V, 1)] / k
    sd = scipy.stats.hypergeom(n, k, k).std() / k
    assert abs(overlap.mean() - k / n) < 5 * sd / np.sqrt(len(overlap))
    assert scipy.stats.chisquare(np.bincount(top[:, 0], minlength=n)).pvalue > 1e-4


def test_ties_are_in_common_by_chance_only():
    check_that_ties_are_in_common_by_chance_only()


def test_ties_that_go_to_the_earlier_cell_are_caught(monkeypatch):
    monkeypatch.setattr(ranking, "_mixed", lambda salt, variant, cell: cell << np.uint64(32))
    with pytest.raises(AssertionError):
        check_that_ties_are_in_common_by_chance_only()


def test_a_tie_is_broken_among_the_tied_cells_alone():
    """Cell 0 leads, 1 to 4 share the next places, 5 is last."""
    weights = np.tile(np.array([9, 1, 1, 1, 1, 0], np.float32), (400, 1))
    top = rank_cells(weights, most=3).top
    assert (top[:, 0] == 0).all()
    assert set(top[:, 1:].ravel()) == {1, 2, 3, 4}
    assert np.bincount(top[:, 1:].ravel())[1:].min() > 150  # of 200 expected, SD 10


def test_the_same_seed_gives_the_same_bytes_and_another_one_only_other_ties():
    weights = draw("tied", variants=9, cells=50, seed=3)
    first, again, other = (rank_cells(weights, most=20, seed=seed) for seed in (5, 5, 6))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    assert first.rank.tobytes() == other.rank.tobytes()
    assert first.top.tobytes() != other.top.tobytes()


@pytest.mark.parametrize("kind", ["random", "tied"])
def test_neither_chunks_nor_threads_change_a_bit(kind, monkeypatch):
    weights = draw(kind, variants=11, cells=37, seed=1)
    whole = rank_cells(weights, most=9, seed=2)
    for per_chunk in (1, 4):
        monkeypatch.setattr(ranking, "_CHUNK_BYTES", per_chunk * 8 * 37)
        for workers in (1, 3):
            with spread_over(workers):
                parts = rank_cells(weights, most=9, seed=2)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, parts, strict=True))


def test_moments_are_those_of_the_first_variants():
    rank = rank_cells(draw("tied", variants=13, cells=30, seed=4), most=1).rank
    at = powers_up_to(13)
    for entry, count in zip(rank_moments(rank, at), at.tolist(), strict=True):
        assert entry.variants == count
        np.testing.assert_allclose(entry.mean, rank[:count].mean(axis=0, dtype=np.float64), rtol=1e-14)
        np.testing.assert_allclose(entry.sd, rank[:count].std(axis=0, dtype=np.float64), rtol=1e-12, atol=1e-12)


def test_variants_that_rank_alike_have_no_spread_at_the_largest_ranks():
    """At the last cell of the paper's maps, where squares are 4e9: a difference of rounded numbers would show."""
    rank = np.full((1000, 2), [66_528.0, 66_527.5], np.float32)
    entry = rank_moments(rank, np.array([1000]))[0]
    assert entry.mean.tolist() == [66_528, 66_527.5]
    assert entry.sd.tolist() == [0, 0]
    rank[0] -= 1  # population SD sqrt(1/1000 - 1/1000^2)
    np.testing.assert_allclose(rank_moments(rank, np.array([1000]))[0].sd, np.sqrt(0.999e-3), rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 1000, 1024])
def test_powers_end_with_the_count(count):
    want = [2**i for i in range(11) if 2**i < count] + [count]
    assert powers_up_to(count).tolist() == want


def check_shares_of_mean_ranks(variants, *, said=None):
    """Mean ranks of 60,000 cells under rankings drawn at random; 5 standard errors of each of 12 shares."""
    n = 60_000
    generator = np.random.default_rng(variants)
    mean = sum(generator.permutation(n) + 1.0 for _ in range(variants)) / variants
    edges = np.linspace(0.5, n + 0.5, 13)
    share = np.histogram(mean, edges)[0] / n
    expected = mean_rank_shares(edges, cells=n, variants=said or variants)
    assert expected.sum() == pytest.approx(1, abs=1e-6)
    # From 17 variants on the normal limit is off by about 0.001 (shown below).
    assert (abs(share - expected) < 5 * np.sqrt(expected / n) + 2e-3 * (variants > 16)).all()


@pytest.mark.parametrize("variants", [1, 2, 5, 16, 17, 40])
def test_shares_of_mean_ranks_are_those_of_unrelated_rankings(variants):
    check_shares_of_mean_ranks(variants)


@pytest.mark.parametrize("variants", [1, 5, 40])
def test_shares_for_another_number_of_variants_are_caught(variants):
    with pytest.raises(AssertionError):
        check_shares_of_mean_ranks(variants, said=variants + max(1, variants // 8))


def test_shares_of_mean_ranks_by_hand():
    """Of two variants the mean is triangular: below a quarter lies 2 * (1/4)^2 = 1/8."""
    edges = np.array([0.5, 25.5, 50.5, 75.5, 100.5])
    assert mean_rank_shares(edges, cells=100, variants=2) == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8])
    assert mean_rank_shares(edges, cells=100, variants=1) == pytest.approx([0.25] * 4)
    assert mean_rank_shares(np.array([-9.0, 0.5, 100.5, 300.0]), cells=100, variants=1).tolist() == [0, 1, 0]


def test_the_normal_limit_takes_over_without_a_step(monkeypatch):
    edges = np.linspace(0.5, 100.5, 41)
    normal = mean_rank_shares(edges, cells=100, variants=17)
    monkeypatch.setattr(ranking, "_EXACT_MEANS", 17)
    assert abs(mean_rank_shares(edges, cells=100, variants=17) - normal).max() < 1.2e-3
