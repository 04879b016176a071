"""Splits: sizes, strata, whole groups, independence of the order of rows."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cohort import load, small_labels, write_small

from vmapens.cohort.split import SPLITS, split_samples, split_sizes
from vmapens.errors import CohortError

SHARES = (0.7, 0.15, 0.15)


def counts(split, y):
    return [[int(((split == name) & (y == label)).sum()) for name in SPLITS] for label in np.unique(y)]


shares = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), shares)
def test_sizes_are_largest_remainder_and_each_class_is_even(class_sizes, fractions):
    sizes = split_sizes(np.array(class_sizes), fractions)
    assert sizes.sum(axis=1).tolist() == class_sizes
    exact = np.outer(class_sizes, fractions)
    assert (sizes > exact - 1 - 1e-6).all()
    assert (sizes <= np.floor(exact + 1e-9) + 1).all()
    assert (abs(sizes.sum(axis=0) - sum(class_sizes) * np.array(fractions)) < 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=80), shares, st.integers(0, 5))
def test_without_groups_the_sizes_are_met_exactly(labels, fractions, seed):
    y = np.array(labels)
    split = split_samples([str(i) for i in range(len(y))], y, seed=seed, fractions=fractions)
    assert counts(split, y) == split_sizes(np.unique(y, return_counts=True)[1], fractions).tolist()


def test_fractions_and_strata_by_hand():
    y = np.array([0] * 80 + [1] * 20)
    split = split_samples([str(i) for i in range(100)], y, seed=3, fractions=SHARES)
    assert counts(split, y) == [[56, 12, 12], [14, 3, 3]]


def test_the_split_is_the_one_of_this_seed_for_ever():
    y = np.array([0, 1] * 6)
    split = split_samples([str(i) for i in range(12)], y, seed=0, fractions=(0.5, 0.25, 0.25))
    letters = "".join(name[:2] for name in split)
    assert letters == "trtrtrtevatrtetetrtrvava"


def test_the_order_of_rows_does_not_matter_and_ids_sort_as_numbers():
    samples, y = [str(i) for i in range(50)], np.arange(50) % 2
    group = [f"p{i // 3}" if i % 7 else None for i in range(50)]
    split = split_samples(samples, y, group, seed=1, fractions=SHARES)
    order = np.random.default_rng(0).permutation(50)
    shuffled = split_samples([samples[i] for i in order], y[order], [group[i] for i in order], seed=1, fractions=SHARES)
    assert (shuffled == split[order]).all()
    padded = split_samples([f"{i:02d}" for i in range(50)], y, group, seed=1, fractions=SHARES)
    assert (padded == split).all()


def test_seeds_differ():
    samples, y = [str(i) for i in range(50)], np.arange(50) % 2
    first, second = (split_samples(samples, y, seed=seed, fractions=SHARES) for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_the_shares_are_near(seed):
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(400), generator.integers(1, 6, 400))
    y = (generator.random(len(patient)) < 0.1).astype(np.int64)
    split = split_samples(
        [str(i) for i in range(len(patient))], y, [str(p) for p in patient], seed=seed, fractions=SHARES
    )
    of_patient = pl.DataFrame({"patient": patient, "split": split}).group_by("patient").agg(pl.col("split").n_unique())
    assert of_patient["split"].max() == 1
    exact = np.outer(np.bincount(y), SHARES)
    assert (abs(np.array(counts(split, y)) - exact) <= 2).all()
    # Large groups must not all go to one split: stays per patient are alike.
    sizes = np.bincount(patient)[patient]
    per_split = [1 / np.mean(1 / sizes[split == name]) for name in SPLITS]
    assert max(per_split) < 1.15 * min(per_split)


def folds_of(folds, samples, y, group=None, *, seed=0, fractions=SHARES):
    return [
        split_samples(samples, y, group, seed=seed, fractions=fractions, folds=folds, fold=fold)
        for fold in range(folds)
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(2, 60))
def test_any_number_of_equal_parts_is_met_exactly_and_each_class_is_even(class_sizes, parts):
    sizes = split_sizes(np.array(class_sizes), (1 / parts,) * parts)
    assert sizes.sum(axis=1).tolist() == class_sizes
    assert np.ptp(sizes, axis=1).max() <= 1
    assert np.ptp(sizes.sum(axis=0)) <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=80), shares, st.integers(2, 7), st.integers(0, 5))
def test_folds_test_each_sample_once_and_draw_the_rest_by_the_shares(labels, fractions, folds, seed):
    y = np.array(labels)
    drawn = folds_of(folds, [str(i) for i in range(len(y))], y, seed=seed, fractions=fractions)
    assert (sum((split == "test").astype(int) for split in drawn) == 1).all()
    train, valid, _ = fractions
    tests = np.array([[counts(split, y)[row][2] for row in range(len(np.unique(y)))] for split in drawn])
    assert np.ptp(tests, axis=0).max() <= 1  # stratified
    assert np.ptp(tests.sum(axis=1)) <= 1
    for split in drawn:
        rest = np.array(counts(split, y))[:, :2]
        assert (
            rest.tolist() == split_sizes(rest.sum(axis=1), (train / (train + valid), valid / (train + valid))).tolist()
        )


@pytest.mark.parametrize("seed", range(3))
def test_folds_keep_groups_whole_and_are_near_in_size(seed):
    generator = np.random.default_rng(seed)
    patient = np.repeat(np.arange(400), generator.integers(1, 6, 400))
    y = (generator.random(len(patient)) < 0.1).astype(np.int64)
    samples, group = [str(i) for i in range(len(patient))], [str(p) for p in patient]
    drawn = folds_of(5, samples, y, group, seed=seed)
    assert (sum((split == "test").astype(int) for split in drawn) == 1).all()
    for split in drawn:
        splits = pl.DataFrame({"patient": patient, "split": split}).group_by("patient").agg(pl.col("split").n_unique())
        assert splits["split"].max() == 1
        exact = np.outer(np.bincount(y), (0.8 * 0.7 / 0.85, 0.8 * 0.15 / 0.85, 0.2))
        assert (abs(np.array(counts(split, y)) - exact) <= 3).all()


def test_the_order_of_rows_does_not_matter_to_folds():
    samples, y = [str(i) for i in range(50)], np.arange(50) % 2
    group = [f"p{i // 3}" if i % 7 else None for i in range(50)]
    order = np.random.default_rng(0).permutation(50)
    shuffled = folds_of(3, [samples[i] for i in order], y[order], [group[i] for i in order])
    for split, other in zip(folds_of(3, samples, y, group), shuffled, strict=True):
        assert (other == split[order]).all()


def test_the_folds_are_those_of_this_seed_for_ever():
    drawn = folds_of(3, [str(i) for i in range(12)], np.array([0, 1] * 6), fractions=(0.5, 0.25, 0.25))
    assert ["".join(name[:2] for name in split) for split in drawn] == [
        "trvatetrtrvatetrvatetrte",
        "trvatrtetetrtrtevavatetr",
        "tetetrtrtrtetrvatetrvava",
    ]
    other = folds_of(3, [str(i) for i in range(12)], np.array([0, 1] * 6), seed=1)
    assert (drawn[0] != other[0]).any()


def test_folds_of_a_cohort_are_loaded_with_the_training_statistics_of_their_own(tmp_path):
    path = write_small(tmp_path / "c")
    cohorts = [load(path, folds=4, fold=fold) for fold in range(4)]
    assert sorted(row for cohort in cohorts for row in cohort.rows("test").tolist()) == list(range(40))
    assert len({cohort.features["mean"][0] for cohort in cohorts}) == 4


def test_folds_of_a_cohort_that_brings_its_split_are_refused(tmp_path):
    names = [("train", "train", "valid", "test")[i % 4] for i in range(40)]
    path = write_small(tmp_path / "c", labels=small_labels().with_columns(split=pl.Series(names)))
    with pytest.raises(CohortError, match=r"brings its own split .* train one run on it, without them, or drop"):
        load(path, folds=3, fold=0)


def test_a_split_column_wins(tmp_path):
    labels = small_labels()
    names = [("training", "VAL", "held_out", "train")[i % 4] for i in range(len(labels))]
    cohort = load(write_small(tmp_path / "c", labels=labels.with_columns(split=pl.Series(names))), split_seed=9)
    assert cohort.split.tolist() == [("train", "valid", "test", "train")[i % 4] for i in range(len(labels))]
    assert cohort.rows("valid").tolist() == list(range(1, 40, 4))


def test_a_brought_split_that_tears_groups_apart_is_warned_of(tmp_path):
    labels = small_labels().with_columns(
        split=pl.Series([("train", "valid", "test")[i // 3 % 3] for i in range(40)]),
        group=pl.Series([f"p{i // 4}" for i in range(40)]),
    )
    cohort = load(write_small(tmp_path / "c", labels=labels))
    assert "groups are in several splits" in cohort.warnings[0]


def test_a_split_with_one_class_is_refused(tmp_path):
    labels = small_labels().with_columns(split=pl.Series(["train"] * 30 + ["valid"] * 9 + ["test"]))
    with pytest.raises(CohortError) as caught:
        load(write_small(tmp_path / "c", labels=labels))
    assert "split `test` has 1 samples of class 1 (`died`) and none of another class" in str(caught.value)
    assert "another split seed, or bring a `split` column" in str(caught.value)


def test_an_empty_split_is_refused(tmp_path):
    labels = small_labels().with_columns(split=pl.Series(["train"] * 30 + ["test"] * 10))
    with pytest.raises(CohortError, match="split `valid` is empty"):
        load(write_small(tmp_path / "c", labels=labels))


def test_an_unknown_split_is_refused(tmp_path):
    labels = small_labels().with_columns(split=pl.Series(["train"] * 38 + ["fold3", None]))
    with pytest.raises(CohortError, match=r"2 rows of the labels have a `split` that is none .*\(fold3, null\)"):
        load(write_small(tmp_path / "c", labels=labels))
