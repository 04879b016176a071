"""Finding planted cells: by hand, against scikit-learn, at chance, and on cohorts loaded in every way."""

import numpy as np
import polars as pl
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmapens.analysis.truth import (
    PlantedTruth,
    average_precision_of_cells,
    chance_average_precision,
    planted_truth,
)
from vmapens.cohort.load import load_cohort
from vmapens.cohort.schema import LABELS_FILE
from vmapens.cohort.synthetic import BAYES_FILE, TRUTH_FILE, make_synthetic
from vmapens.errors import CohortError
from vmapens.spec import CohortSpec


def load(folder, **settings):
    return load_cohort(CohortSpec(path=str(folder), task="outcome", **settings))


@given(seed=st.integers(0, 2**32 - 1), cells=st.integers(2, 80), levels=st.sampled_from([0, 1, 2, 6]))
@settings(max_examples=40, deadline=None)
def test_each_variant_scores_what_scikit_learn_says(seed, cells, levels):
    """Signed scores over many orders of magnitude, as gradients are, or few levels, for ties; float32 as they come."""
    generator = np.random.default_rng(seed)
    if levels:
        scores = generator.integers(0, levels, (3, cells)).astype(np.float32)
    else:
        scores = (generator.normal(size=(3, cells)) * 10.0 ** generator.integers(-20, 20, (3, cells))).astype(
            np.float32
        )
    causal = generator.random(cells) < 0.3
    causal[0] = True
    want = [sklearn.metrics.average_precision_score(causal, row) for row in scores]
    np.testing.assert_allclose(average_precision_of_cells(scores, causal), want, rtol=0, atol=1e-12)


def test_a_case_by_hand():
    """Causal cells in the places 1 and 3 of 4: (1/1 + 2/3) / 2; tied in the places 1 to 2 and 3 to 4: all at 1/2."""
    causal = np.array([True, False, True, False])
    scores = np.array([[0.9, 0.5, 0.4, -0.1], [7.0, 7.0, 3.0, 3.0]])
    assert average_precision_of_cells(scores, causal) == pytest.approx([5 / 6, 1 / 2])


def test_a_constant_map_has_the_prevalence_and_no_causal_cell_gives_nan():
    causal = np.arange(50) < 7
    assert average_precision_of_cells(np.full((2, 50), 0.02), causal) == pytest.approx([0.14, 0.14])
    assert np.isnan(average_precision_of_cells(np.ones((2, 50)), causal & False)).all()


def test_nan_in_one_variant_leaves_the_others():
    scores = np.array([[0.9, 0.1], [np.nan, 0.1], [0.1, 0.9]])
    found = average_precision_of_cells(scores, np.array([True, False]))
    assert found[[0, 2]].tolist() == [1.0, 0.5]
    assert np.isnan(found[1])


@pytest.mark.parametrize(("m", "n"), [(1, 3), (5, 20), (100, 1000)])
def test_random_scores_reach_chance(m, n):
    causal = np.arange(n) < m
    found = average_precision_of_cells(np.random.default_rng(0).random((2000, n)), causal)
    chance = chance_average_precision(m, n)
    assert abs(found.mean() - chance) < 4 * found.std() / np.sqrt(2000)
    assert chance > m / n


def test_chance_is_the_mean_over_all_orders():
    """One of three cells: 1, 1/2 or 1/3. Two of three: 1, (1 + 2/3)/2 or (1/2 + 2/3)/2. All: 1. None: nothing."""
    assert chance_average_precision(1, 3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert chance_average_precision(2, 3) == pytest.approx((1 + 5 / 6 + 7 / 12) / 3)
    assert (chance_average_precision(3, 3), chance_average_precision(1, 1)) == (1, 1)
    assert np.isnan(chance_average_precision(0, 3))


def by_hand():
    """One stay of 6 steps x 2 features; feature 0 caused the outcome at the steps 1 and 2."""
    observed = torch.tensor([[1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0]], dtype=torch.bool).T[None]
    cells = np.array([[0, 1, 0], [0, 2, 0]])
    return PlantedTruth(cells, observed, np.array([0.7]), 0.2, 0.9)


def test_cells_that_only_carry_a_causal_value_forward_are_left_out():
    truth = by_hand()
    assert truth.causal(0)[:, 0].tolist() == [False, True, True, False, False, False]
    assert truth.left_out(0)[:, 0].tolist() == [False, False, False, True, True, False]  # until it is measured again
    assert not truth.causal(0)[:, 1].any()
    assert not truth.left_out(0)[:, 1].any()
    assert truth.chance(0) == chance_average_precision(2, 10)


def test_what_is_left_out_is_neither_hit_nor_miss():
    truth = by_hand()
    scores = np.full((3, 6, 2), 0.1)
    scores[:, 1:3, 0] = 0.8
    scores[1, 3:5, 0] = 0.9  # carried forward: of no account
    scores[2, 5, 0] = 0.9  # measured again: a miss, so 1/2 and 2/3 become tied at 2/3
    assert truth.average_precision(0, scores) == pytest.approx([1, 1, 2 / 3])


def test_a_map_of_steps_alone_ties_the_cells_of_a_step():
    """Two steps of two cells each hold one causal cell each: half of what is in front, whichever comes first."""
    maps = np.array([0.0, 0.9, 0.8, 0.0, 0.0, 0.0]).reshape(1, 6, 1)
    assert by_hand().average_precision(0, maps) == pytest.approx([1 / 2])


def test_truth_of_a_cohort_is_what_its_files_say(cohort_folder):
    cohort = load(cohort_folder)
    truth = planted_truth(cohort_folder, cohort)
    table = pl.read_parquet(cohort_folder / TRUTH_FILE)
    names = cohort.features["feature"].to_list()
    for row, sample in enumerate(cohort.samples):
        want = {(step, names.index(name)) for _, step, name in table.filter(pl.col("sample") == sample).iter_rows()}
        assert set(zip(*np.nonzero(truth.causal(row)), strict=True)) == want
        assert not truth.left_out(row)[cohort.observed[row].numpy()].any()
    bayes = dict(pl.read_parquet(cohort_folder / BAYES_FILE).select("sample", "probability").iter_rows())
    assert truth.probability.tolist() == [bayes[sample] for sample in cohort.samples]
    assert truth.prevalence == cohort.y.double().mean().item()
    assert np.array_equal(truth.acts, truth.probability > truth.prevalence)
    assert f"Bayes AUROC {truth.bayes_auroc:.3f}" in " ".join(cohort.info.notes)
    # Outcomes drawn from the true probabilities are told apart as well as that (200 stays: SD 0.03).
    assert abs(sklearn.metrics.roc_auc_score(cohort.y, truth.probability) - truth.bayes_auroc) < 0.09


def test_carried_values_are_those_of_causal_cells(tmp_path):
    """Where most is missing, many cells after a window repeat its last value, and all of those are left out."""
    make_synthetic(tmp_path, samples=60, steps=48, features=6, seed=3, missing=0.9)
    cohort = load(tmp_path)
    truth = planted_truth(tmp_path, cohort)
    left_out = 0
    for row in range(len(cohort.samples)):
        causal, x, observed = truth.causal(row), cohort.x[row].numpy(), cohort.observed[row].numpy()
        (feature,) = set(np.nonzero(causal)[1])
        last = max(np.nonzero(causal)[0])
        later = [step for step in range(last + 1, 48) if not observed[last + 1 : step + 1, feature].any()]
        assert np.nonzero(truth.left_out(row))[0].tolist() == later
        assert all(x[step, feature] == x[last, feature] for step in later)
        left_out += len(later)
    assert left_out > 60


def test_indicators_are_never_causal(cohort_folder):
    plain = planted_truth(cohort_folder, load(cohort_folder))
    with_indicators = planted_truth(cohort_folder, load(cohort_folder, indicators=True))
    assert with_indicators.causal(3).shape == (8, 12)
    assert np.array_equal(with_indicators.causal(3)[:, :6], plain.causal(3))
    assert not with_indicators.causal(3)[:, 6:].any()
    assert with_indicators.chance(3) == pytest.approx(plain.chance(3) / 2, rel=0.2)


def test_without_sample_ids_rows_are_told_apart_by_their_order(cohort_folder):
    named, numbered = (planted_truth(cohort_folder, load(cohort_folder, sample_ids=ids)) for ids in (True, False))
    assert np.array_equal(named.cells, numbered.cells)
    assert np.array_equal(named.probability, numbered.probability)


def fewer_stays(folder):
    make_synthetic(folder, samples=60, steps=4, features=4)
    labels = pl.read_parquet(folder / LABELS_FILE)
    labels.with_columns(outcome=pl.when(pl.int_range(60) % 7 == 3).then(None).otherwise("outcome")).write_parquet(
        folder / LABELS_FILE
    )


def test_some_of_the_stays_have_their_truth_if_they_have_ids(tmp_path):
    fewer_stays(tmp_path)
    cohort = load(tmp_path)
    truth = planted_truth(tmp_path, cohort)
    assert len(truth.probability) == len(cohort.samples) == 51
    bayes = dict(pl.read_parquet(tmp_path / BAYES_FILE).select("sample", "probability").iter_rows())
    assert truth.probability.tolist() == [bayes[sample] for sample in cohort.samples]
    assert planted_truth(tmp_path, load(tmp_path, sample_ids=False)) is None


def test_a_cohort_without_the_files_has_no_truth(tmp_path, cohort_folder):
    assert planted_truth(tmp_path, load(cohort_folder)) is None


def test_files_of_another_cohort_are_refused(tmp_path, cohort_folder):
    make_synthetic(tmp_path, samples=40, steps=8, features=6)
    with pytest.raises(CohortError, match="are of another cohort"):
        planted_truth(tmp_path, load(cohort_folder))
