"""Agreement on one stay: every row against loops from the definitions, references, and maps without a ranking."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
import scipy.stats

from vmapens.analysis import on_stay
from vmapens.analysis.grain import Grid
from vmapens.analysis.on_stay import Question, Views, agreement_on_stay, permuted_within_steps, shuffled
from vmapens.analysis.tables import GRAINS, MEASURES, REFERENCES, TABLES

V, T, F = 6, 10, 5
WINDOW, TOLERANCE = 4, 1  # so the last window is a short one
GROUPS = np.array([0, 1, 0, 1, 1])
TOP_K = (0.1, 0.3)
GRID = Grid(T, F, GROUPS, WINDOW, TOLERANCE)
ROW = set(TABLES["agreement"]) - {"sample", "attribution", "se"}


def softmax(logits, axis):
    sizes = np.exp(logits)
    return (sizes / sizes.sum(axis=axis, keepdims=True)).astype(np.float32)


def draw(over, seed=0):
    """Maps on a stay, on another, and before training; each view has a pattern that its variants share."""
    generator = np.random.default_rng(seed)
    logits = 0.7 * generator.normal(size=(3, 1, T, F)) + generator.normal(size=(3, V, T, F))
    if over == "signed":
        return Views(*logits.astype(np.float32))
    return Views(*softmax(logits, {"feature": -1, "step": -2}[over]))


def ask(views, *, over="feature", by_size=False, top_k=TOP_K, grid=GRID, measured=None, seed=0):
    question = Question(grid, top_k, over, by_size, seed)
    measured = np.random.default_rng(9).random((grid.steps, grid.features)) < 0.4 if measured is None else measured
    return agreement_on_stay(views, question, measured)[0], measured


def values_of(found, *names):
    """Values by grain, cells, measure and k."""
    return {tuple(entry.row[name] for name in ("grain", "cells", "measure", "k")): entry for entry in found}


# From the definitions, with cells as tuples and sums as loops.


def parts_of(maps, grain, cells, measured, by_size):
    """For each variant the weight of each part; a cell is (step, feature)."""
    every = []
    for one in maps.astype(np.float64):
        if grain in ("cell", "near"):
            kept = {(t, f): one[t, f] for t in range(T) for f in range(F) if cells == "all" or measured[t, f]}
        elif grain == "feature":
            kept = {f: one[:, f].sum() for f in range(F)}
        elif grain == "window":
            kept = {w: one[w : w + WINDOW].mean(axis=0).sum() for w in range(0, T, WINDOW)}
        else:
            kept = {g: one[:, g == GROUPS].sum(axis=0).mean() for g in (0, 1)}
        every.append({part: abs(weight) if by_size else weight for part, weight in kept.items()})
    return every


def pair(one, other, measure, k, grain):
    if measure == "spearman":
        return scipy.stats.spearmanr(list(one.values()), list(other.values())).statistic
    a, b = (set(sorted(each, key=each.get, reverse=True)[:k]) for each in (one, other))
    if grain != "near":
        return len(a & b) / k
    reach = [{(t + d, f) for t, f in each for d in range(-TOLERANCE, TOLERANCE + 1)} for each in (a, b)]
    return (len(a & reach[1]) + len(b & reach[0])) / (2 * k)


def jensen_shannon(distributions):
    """Rows of entries for each variant; rows without weight or entropy are left out."""
    values = []
    for row in np.array(distributions, np.float64).swapaxes(0, 1):
        if row.sum() == 0:
            continue
        p = row / row.sum(axis=1, keepdims=True)
        mixture = scipy.stats.entropy(p.mean(axis=0))
        if mixture > 1e-6:
            values.append((mixture - scipy.stats.entropy(p, axis=1).mean()) / mixture)
    return np.mean(values)


def rows_of(maps, grain, cells, measured, over):
    if grain == "cell":
        kept = np.abs(maps if cells == "all" else np.where(measured, maps, 0))
        return kept if over == "feature" else kept.swapaxes(1, 2)
    return np.abs([[list(parts.values())] for parts in parts_of(maps, grain, cells, measured, by_size=False)])


def across(mixed, here, there):
    """If a mixture of V is the sum of d over its pairs / V^2: solved for the mean d of pairs of one here, one there."""
    h, rest = V // 2, V - V // 2
    d_here, d_there = (own * V**2 / math.comb(V, 2) for own in (here, there))
    d = (mixed * V**2 - math.comb(h, 2) * d_here - math.comb(rest, 2) * d_there) / (h * rest)
    return d * math.comb(V, 2) / V**2


def mean_of(function, ours, theirs):
    return np.mean([function(ours[u], theirs[v]) for u in range(len(ours)) for v in range(len(ours)) if u != v])


@pytest.mark.parametrize(("over", "by_size"), [("feature", False), ("step", False), ("signed", True)])
def test_every_number_is_what_loops_over_pairs_say(over, by_size):
    views, axis = draw(over), "step" if over == "step" else "feature"
    found, measured = ask(views, over=axis, by_size=by_size)
    without_ranking = {"feature": {"window"}, "step": {"feature", "group"}, "signed": set()}[over]
    seen = set()
    for (grain, cells, measure, k), entry in values_of(found).items():
        row = entry.row
        seen.add((grain, cells, measure))
        if measure == "divergence":
            trained, partner, initial = (rows_of(maps, grain, cells, measured, axis) for maps in views)
            # Half of the variants are taken from here and the others from there; which, the seed says.
            halves = [np.isin(range(V), chosen)[:, None, None] for chosen in itertools.combinations(range(V), V // 2)]
            value, there = jensen_shannon(trained), jensen_shannon(partner)
            mixtures = [across(jensen_shannon(np.where(half, trained, partner)), value, there) for half in halves]
            assert min(abs(mixture - row["cross_patient"]) for mixture in mixtures) < 1e-6
            assert row["initialisation"] == pytest.approx(jensen_shannon(initial), abs=1e-6)
            own = np.mean([jensen_shannon(both) for both in zip(trained, initial, strict=True)])
            assert row["own_initialisation"] == pytest.approx(own * (1 - 1 / V) / (1 - 1 / 2), abs=1e-6)
            without = [jensen_shannon(np.delete(trained, v, axis=0)) for v in range(V)]
            assert row["n"] == (measured.sum() if cells == "measured" else trained[0].size)
        elif grain in without_ranking:
            assert set(row) == {"grain", "cells", "measure", "k", "n", "variants"}
            assert row["variants"] == 0
            assert np.isnan(entry.without_each).all()
            continue
        else:
            trained, partner, initial = (parts_of(maps, grain, cells, measured, by_size) for maps in views)

            n = len(trained[0])
            size = k if k is None or cells == "all" else round(k * n / (T * F))  # the same share of the measured cells

            def of(one, other, measure=measure, size=size, grain=grain):
                return pair(one, other, measure, size, grain)

            value = mean_of(of, trained, trained)
            assert row["cross_patient"] == pytest.approx(mean_of(of, trained, partner), abs=1e-6)
            assert row["initialisation"] == pytest.approx(mean_of(of, initial, initial), abs=1e-6)
            own = np.mean([of(*both) for both in zip(trained, initial, strict=True)])
            assert row["own_initialisation"] == pytest.approx(own, abs=1e-6)
            without = [mean_of(of, *[[p for i, p in enumerate(trained) if i != v]] * 2) for v in range(V)]
            assert row["n"] == n
            if grain != "near":
                assert row["chance"] == (0 if k is None else size / n)
            if grain == "feature":
                assert row["permuted"] == pytest.approx(row["chance"], abs=1e-12)
            if grain == "window":
                assert row["permuted"] == pytest.approx(row["value"], abs=1e-12)
        assert row["value"] == pytest.approx(value, abs=1e-6), (grain, cells, measure, k)
        np.testing.assert_allclose(entry.without_each, without, rtol=0, atol=1e-6)
        assert row["variants"] == V
    ranked = {(grain, "all", measure) for grain in set(GRAINS) - {"near"} for measure in MEASURES}
    assert seen == ranked | {("near", "all", "overlap")} | {("cell", "measured", measure) for measure in MEASURES}


@pytest.mark.parametrize(("over", "by_size"), [("feature", False), ("step", False), ("signed", True)])
def test_rows_are_those_of_the_table_each_once_and_without_nan(over, by_size):
    found, _ = ask(draw(over), over="step" if over == "step" else "feature", by_size=by_size)
    assert len(values_of(found)) == len(found)
    for entry in found:
        assert set(entry.row) <= ROW
        assert not any(isinstance(value, float) and math.isnan(value) for value in entry.row.values())
    rows = [{"sample": "17", "attribution": "attention", **entry.row} for entry in found]
    frame = pl.DataFrame(rows, schema=TABLES["agreement"], orient="row")
    assert frame.height == len(found)
    assert frame.filter(pl.col("value").is_nan()).is_empty()


def test_maps_of_zeros_have_no_value_at_all_and_no_nan():
    views = Views(*np.zeros((3, V, T, F), np.float32))
    for entry in ask(views)[0]:
        assert entry.row.get("value") is None
        assert all(entry.row.get(reference) is None for reference in REFERENCES)
        assert np.isnan(entry.without_each).all()


def test_as_little_as_two_variants_and_one_step_have_a_value_but_not_one_without_each():
    views = Views(*(maps[:2, :1] for maps in draw("feature")))
    found, _ = ask(views, grid=Grid(1, F), measured=np.ones((1, F), bool))
    assert {entry.row["measure"] for entry in found} == set(MEASURES)
    for entry in found:
        assert set(entry.row) == ROW
        assert entry.row["value"] is not None
        assert np.isnan(entry.without_each).all()


def test_one_cell_has_nothing_to_rank():
    views = Views(*np.ones((3, V, 1, 1), np.float32))
    for entry in ask(views, grid=Grid(1, 1), top_k=(0.5,), measured=np.ones((1, 1), bool))[0]:
        assert entry.row.get("value") is None


@pytest.mark.parametrize("count", [0, 1, T * F])
def test_none_one_or_all_measured_is_no_question_of_its_own(count):
    measured = (np.arange(T * F) < count).reshape(T, F)
    found, _ = ask(draw("feature"), measured=measured)
    assert {entry.row["cells"] for entry in found} == {"all"}


def test_a_variant_with_a_constant_map_is_left_out_of_ranks_and_changes_nothing():
    views, uniform = draw("signed"), np.float32(0.2)
    with_constant = Views(*(maps.copy() for maps in views))
    with_constant.trained[2] = uniform
    kept = np.delete(np.arange(V), 2)
    want, got = values_of(ask(Views(*(maps[kept] for maps in views)))[0]), values_of(ask(with_constant)[0])
    for key, entry in got.items():
        if key[2] == "divergence":
            continue
        assert entry.row["variants"] == V - 1
        for name in ("value", "cross_patient", "own_initialisation", "initialisation", "chance"):
            assert entry.row[name] == pytest.approx(want[key].row[name], abs=1e-12), (key, name)
        np.testing.assert_allclose(entry.without_each[kept], want[key].without_each, atol=1e-12)
        assert entry.without_each[2] == entry.row["value"]


def test_two_variants_with_a_ranking_have_no_value_without_either_and_one_has_none_at_all():
    views = draw("feature")
    views.trained[2:] = 0.2
    found = values_of(ask(views)[0])
    overlap = found["cell", "all", "overlap", 5]
    assert (overlap.row["variants"], 0 <= overlap.row["value"] <= 1) == (2, True)
    assert np.isnan(overlap.without_each[:2]).all()
    views.trained[1:] = 0.2
    found = values_of(ask(views)[0])
    assert "value" not in found["cell", "all", "overlap", 5].row
    assert found["cell", "all", "divergence", None].row["value"] > 0  # uniform is a distribution


def test_a_reference_of_constant_maps_is_missing_and_the_others_are_there():
    views = draw("feature")
    views.partner[0] = 0.2
    row = values_of(ask(views)[0])["cell", "all", "spearman", None].row
    assert set(row) == ROW - {"cross_patient"}
    views.initial[:] = 0.2
    row = values_of(ask(views)[0])["cell", "all", "spearman", None].row
    assert set(row) == ROW - {"cross_patient", "initialisation", "own_initialisation"}


def test_windows_of_a_softmax_over_features_have_no_ranking_also_where_the_last_is_short():
    """They all hold the same weight a step; a ranking would be one of rounding, or of the windows' lengths."""
    for window in (2, 3, 4, 7):
        found = values_of(ask(draw("feature"), grid=Grid(T, F, None, window, 1))[0])
        row = found["window", "all", "spearman", None].row
        assert (row["variants"], "value" in row) == (0, False)


def test_ties_agree_with_ones_own_beginning_by_chance_only():
    """Maps whose cells are tied but for one tell nothing of the order of the others, before training or after."""
    views = Views(*np.zeros((3, 200, 4, 25), np.float32))
    for maps, leader in zip(views, (0, 1, 2), strict=True):
        maps[:, 0, leader] = 1
    row = ask(views, grid=Grid(4, 25), top_k=(0.3,), measured=np.ones((4, 25), bool))[0][0].row
    # Each set has its leader and 29 of the 99 others; the SD of the overlap of one variant is about 0.07.
    assert row["own_initialisation"] == pytest.approx(0.3, abs=5 * 0.07 / np.sqrt(200))
    assert row["cross_patient"] == pytest.approx(0.3, abs=5 * 0.07 / np.sqrt(200))
    assert row["value"] == pytest.approx(1 / 30 + 29**2 / 99 / 30, abs=5e-3)


@pytest.mark.parametrize("over", ["feature", "step"])
def test_unrelated_maps_are_at_every_reference_and_related_ones_are_not(over):
    """40 variants of random maps, all views: value, chance, permuted, cross-patient and initialisation agree."""
    logits = np.random.default_rng(3).normal(size=(3, 40, 12, 8))
    views, grid = Views(*softmax(logits, -1 if over == "feature" else -2)), Grid(12, 8, window=3)
    for entry in ask(views, over=over, grid=grid, top_k=(0.2,))[0]:
        if "value" not in entry.row or entry.row["grain"] != "cell":
            continue
        row = entry.row
        for reference in ("chance", "permuted", "cross_patient", "initialisation"):
            assert row[reference] == pytest.approx(row["value"], abs=0.02), (row, reference)
    logits[0] += 2 * np.random.default_rng(4).normal(size=(12, 8))
    views = Views(*softmax(logits, -1 if over == "feature" else -2))
    for entry in ask(views, over=over, grid=grid, top_k=(0.2,))[0]:
        if entry.row["grain"] == "cell":
            assert abs(entry.row["value"] - entry.row["chance"]) > 0.1


def test_the_permuted_divergence_of_few_is_put_at_the_number_of_all(monkeypatch):
    """Of 80 variants 10 are permuted: as they are, their divergence is smaller by a factor of 0.9 / 0.9875."""
    views = Views(*softmax(np.random.default_rng(5).normal(size=(3, 80, 12, 8)), -2))

    def permuted():
        found = values_of(ask(views, over="step", grid=Grid(12, 8))[0])
        return found["cell", "all", "divergence", None].row["permuted"]

    want = permuted()
    monkeypatch.setattr(on_stay, "_DRAWN", 10)
    assert permuted() == pytest.approx(want, rel=0.04)
    assert permuted() * 0.9 / 0.9875 != pytest.approx(want, rel=0.04)


def test_a_group_of_most_features_does_not_lead_by_its_size():
    """The mean of 7 features of 8 is as often above the other one as below: unrelated variants agree by 1/2."""
    views = Views(*softmax(np.random.default_rng(6).normal(size=(3, 150, 12, 8)), -1))
    grid = Grid(12, 8, np.array([0, 1, 1, 1, 1, 1, 1, 1]))
    row = values_of(ask(views, grid=grid)[0])["group", "all", "overlap", 1].row
    for name in ("value", "permuted", "chance"):
        assert row[name] == pytest.approx(0.5, abs=0.05)


def test_divergence_from_another_patient_is_that_of_pairs_there():
    """Variants that scatter little around one map here and another map there: the mixture of halves is put right."""
    rng = np.random.default_rng(3)
    here, there = rng.normal(size=(2, 1, 6, 8)) * 0.3
    views = Views(*(softmax(base + 0.05 * rng.normal(size=(60, 6, 8)), -1) for base in (here, there, here)))
    row = values_of(ask(views, grid=Grid(6, 8))[0])["cell", "all", "divergence", None].row
    rows = [rows_of(maps, "cell", "all", None, "feature") for maps in views[:2]]
    pairs = [jensen_shannon(np.stack([rows[0][u], rows[1][v]])) for u in range(0, 60, 7) for v in range(1, 60, 7)]
    assert row["cross_patient"] == pytest.approx(2 * (1 - 1 / 60) * np.mean(pairs), rel=0.05)


def test_the_same_seed_gives_the_same_numbers_and_another_one_other_draws():
    views = draw("feature")
    first, again, other = (ask(views, seed=seed)[0] for seed in (1, 1, 2))
    assert [entry.row for entry in first] == [entry.row for entry in again]
    for one, two in zip(first, other, strict=True):
        assert one.row.get("value") == two.row.get("value")
    assert any(one.row.get("chance") != two.row.get("chance") for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("top_k", [(0.001,), (0.8, 0.99), (1.0, 49.0)])
def test_any_share_or_count_of_the_cells_has_one_at_every_grain(top_k):
    """A share that is all of two groups but for rounding leaves one of them out."""
    for entry in ask(draw("signed"), top_k=top_k)[0]:
        if entry.row["measure"] == "overlap" and entry.row["grain"] != "near":
            size = round(entry.row["chance"] * entry.row["n"])
            assert 1 <= size < entry.row["n"]
            assert entry.row["cells"] == "measured" or size == entry.row["k"]


def test_the_ranking_that_comes_with_it_is_of_the_trained_cells():
    views = draw("feature")
    question = Question(GRID, TOP_K, "feature", False, 0)
    _, ranking = agreement_on_stay(views, question, np.ones((T, F), bool))
    want = scipy.stats.rankdata(-views.trained.reshape(V, -1).astype(np.float64), axis=1)
    np.testing.assert_array_equal(ranking.rank, want)
    assert ranking.top.shape == (V, 15)


def test_nan_is_refused():
    views = draw("feature")
    views.initial[3, 2, 1] = np.nan
    with pytest.raises(ValueError, match="hold NaN"):
        ask(views)


def check_shuffled(shuffle):
    """Rows keep their entries, what is not allowed stays, and each entry is anywhere equally often."""
    weights = np.tile(np.arange(12, dtype=np.float32).reshape(3, 4), (3000, 1, 1))
    allowed = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    result = shuffle(weights, allowed)
    np.testing.assert_array_equal(np.sort(result, axis=2), weights)
    assert (result[:, ~allowed] == weights[:, ~allowed]).all()
    for row, places in ((0, [0, 1, 2, 3]), (1, [1, 2])):
        for place in places:
            counts = np.unique(result[:, row, place], return_counts=True)[1]
            assert len(counts) == len(places)
            assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # Two variants meet at an entry as often as independent orders do; 1500 pairs.
    meet = (result[::2, 0] == result[1::2, 0]).mean(axis=1)
    assert abs(meet.mean() - 1 / 4) < 5 * meet.std() / np.sqrt(1500)


def test_entries_are_shuffled_in_their_row_among_allowed_places():
    check_shuffled(lambda weights, allowed: shuffled(weights, allowed, seed=3))


def test_one_order_for_all_variants_or_for_every_place_is_caught():
    with pytest.raises(AssertionError):
        check_shuffled(lambda weights, allowed: np.tile(shuffled(weights[:1], allowed, seed=3), (3000, 1, 1)))
    with pytest.raises(AssertionError):
        check_shuffled(lambda weights, allowed: shuffled(weights, seed=3))


def test_without_a_mask_all_places_are_allowed():
    weights = draw("signed").trained
    assert shuffled(weights, seed=1).tobytes() == shuffled(weights, np.ones((T, F), bool), seed=1).tobytes()
    assert shuffled(weights, seed=1).tobytes() != shuffled(weights, seed=2).tobytes()


def test_features_are_permuted_within_each_step_on_its_own_of_few_variants():
    maps = np.tile(np.arange(8, dtype=np.float32).reshape(2, 4), (300, 1, 1))
    drawn = permuted_within_steps(maps, seed=0)
    assert drawn.shape == (128, 2, 4)
    np.testing.assert_array_equal(np.sort(drawn, axis=2), maps[:128])
    assert scipy.stats.chisquare(np.unique(drawn[:, 0, 0], return_counts=True)[1]).pvalue > 1e-4
    together = ((drawn[:, 1] - 4) == drawn[:, 0]).mean()  # one permutation for both steps would be 1
    assert together == pytest.approx(1 / 4, abs=0.1)
    assert (maps == maps[0]).all()  # the input is left as it was
