"""Generalised Jensen-Shannon divergence: by hand, against scipy, for peaked and empty rows, and at its limit."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from vmapens.analysis import divergence as module
from vmapens.analysis.divergence import divergence, own_divergence


def softmax(logits):
    sizes = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (sizes / sizes.sum(axis=-1, keepdims=True)).astype(np.float32)


def draw(kind, shape, seed=0):
    generator = np.random.default_rng(seed)
    match kind:
        case "softmax":
            weights = softmax(generator.normal(size=shape))
        case "peaked":
            weights = softmax(30 * generator.normal(size=shape[1:]) + 0.3 * generator.normal(size=shape))
        case "signed":
            weights = generator.normal(size=shape) * 1e-12
        case "sparse":  # most entries, and some whole rows, are 0 or -0
            weights = generator.random(shape) * (generator.random(shape) < 0.2) * generator.choice([-1, 1], shape)
        case "constant":
            weights = np.full(shape, 0.25)
        case "one each":
            weights = np.eye(shape[2])[generator.integers(0, shape[2], shape[:2])]
    return weights.astype(np.float32)


def of_rows(distributions):
    """Of V distributions in one row, each with weight; None where it is not defined."""
    if len(distributions) < 2:
        return None
    mixture = scipy.stats.entropy(np.mean(distributions, axis=0))
    if mixture < 1e-6:
        return None
    return (mixture - scipy.stats.entropy(distributions, axis=1).mean()) / mixture


def oracle(weights):
    found = []
    for row in np.abs(weights.astype(np.float64)).swapaxes(0, 1):
        there = row[row.sum(axis=1) > 0]
        found.append(of_rows(there / there.sum(axis=1, keepdims=True)))
    values = [value for value in found if value is not None]
    return np.mean(values) if values else np.nan


# V, R, n: usual, two variants, one row, one entry (nothing to compare), and more variants than are looked at at once.
SHAPES = [(5, 6, 7), (2, 4, 3), (3, 1, 9), (4, 5, 1), (40, 2, 3)]
KINDS = ["softmax", "peaked", "signed", "sparse", "constant", "one each"]


def check_against_scipy(kind, shape):
    weights = draw(kind, shape)
    found = divergence(weights)
    np.testing.assert_allclose(found.value, oracle(weights), rtol=0, atol=3e-7)
    want = [oracle(np.delete(weights, v, axis=0)) for v in range(shape[0])] if shape[0] > 2 else [np.nan] * 2
    np.testing.assert_allclose(found.without_each, want, rtol=0, atol=3e-7)
    np.testing.assert_equal(divergence(weights, leave_out=False).value, found.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_value_and_that_without_each_variant_are_what_scipy_says(kind, shape):
    check_against_scipy(kind, shape)


def test_an_entropy_that_forgets_the_rounding_of_a_row_is_caught(monkeypatch):
    """Where a row is peaked, float32 sums to 1 within 1e-7 only, and that is a large part of its entropy."""
    monkeypatch.setattr(module, "_entropy", lambda p: -(p * np.log(np.maximum(p, 1e-38))).sum(axis=-1, dtype=float))
    check_against_scipy("softmax", (5, 6, 7))
    with pytest.raises(AssertionError):
        check_against_scipy("peaked", (5, 6, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_variant_and_itself_in_another_set_it_is_the_divergence_of_the_two(kind):
    ours, theirs = draw(kind, (40, 5, 6), 1), draw(kind, (40, 5, 6), 2)
    want = [oracle(np.stack([p, q])) for p, q in zip(ours, theirs, strict=True)]
    want = np.nan if np.isnan(want).all() else np.nanmean(want)
    np.testing.assert_allclose(own_divergence(ours, theirs), want, rtol=0, atol=3e-7)
    assert own_divergence(ours, ours) == pytest.approx(0, abs=3e-7) or kind == "one each"


def test_of_two_distributions_it_is_the_square_of_the_jensen_shannon_distance_over_the_mixtures_entropy():
    p, q = draw("softmax", (2, 1, 6), 3)[:, 0].astype(np.float64)
    square = scipy.spatial.distance.jensenshannon(p, q) ** 2
    want = square / scipy.stats.entropy((p + q) / 2)
    assert divergence(np.float32([[p], [q]])).value == pytest.approx(want, abs=1e-6)


def test_cases_by_hand():
    def of(*rows):
        return divergence(np.array(rows, np.float32)[:, None]).value

    assert of([1, 0], [0, 1]) == pytest.approx(1)  # log 2 over log 2
    assert of([3, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 1]) == pytest.approx(1)  # log 4 over log 4
    assert of([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]) == pytest.approx(0.5)  # (log 4 - log 2) over log 4
    assert of([0.3, 0.7], [3, 7], [-3, -7]) == pytest.approx(0, abs=1e-7)  # sizes, over their sum
    mixture = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert of([1, 0], [0.5, 0.5]) == pytest.approx((mixture - math.log(2) / 2) / mixture)


def test_rows_without_a_comparison_are_left_out_of_the_mean():
    """Rows: apart; all on one entry; none has weight; one variant alone has; two of three have, and differ."""
    weights = np.zeros((3, 5, 2), np.float32)
    weights[:, 0] = [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    weights[:, 1] = [1, 0]
    weights[1, 3] = [0.2, 0.8]
    weights[:2, 4] = [[1, 0], [0, 1]]
    found = divergence(weights)
    assert found.value == pytest.approx((0 + 1) / 2)
    assert found.without_each == pytest.approx([0, 0, 0.5])  # without 0 or 1, the last row has one variant
    assert np.isnan(divergence(weights[:, 1:4]).value)
    assert np.isnan(divergence(weights[:, 1:4]).without_each).all()
    assert np.isnan(own_divergence(weights, np.zeros_like(weights)))  # weight against none says nothing


def test_without_either_of_two_variants_there_is_nothing_left_to_compare():
    assert np.isnan(divergence(draw("softmax", (2, 3, 4))).without_each).all()


def test_unrelated_variants_reach_what_permutations_of_their_entries_expect():
    """The mixture of many permutations is uniform: ``1 - H(p) / log n``; of V of them less by about 1 - 1/V."""
    generator = np.random.default_rng(0)
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    limit = 1 - scipy.stats.entropy(p) / np.log(5)
    many = generator.permuted(np.tile(p, (2000, 40, 1)), axis=2).astype(np.float32)
    assert divergence(many, leave_out=False).value == pytest.approx(limit, abs=1e-3)
    few = [divergence(many[v : v + 20], leave_out=False).value for v in range(0, 2000, 20)]
    assert np.mean(few) == pytest.approx(limit * (1 - 1 / 20), abs=5e-3)


def test_neither_chunks_nor_the_order_of_the_variants_change_it(monkeypatch):
    weights = draw("softmax", (37, 3, 8), 5)
    found, own = divergence(weights), own_divergence(weights, weights[::-1].copy())
    order = np.random.default_rng(0).permutation(37)
    for rows in (1, 5, 1000):
        monkeypatch.setattr(module, "_ROWS", rows)
        assert divergence(weights[order]).value == pytest.approx(found.value, abs=1e-7)
        np.testing.assert_allclose(divergence(weights[order]).without_each, found.without_each[order], atol=1e-7)
        assert own_divergence(weights, weights[::-1].copy()) == pytest.approx(own, abs=1e-12)


def test_the_input_is_left_as_it_was():
    weights = draw("signed", (3, 4, 5))
    before = weights.copy()
    divergence(weights)
    own_divergence(weights, weights)
    assert weights.tobytes() == before.tobytes()
