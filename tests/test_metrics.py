"""Scores of all variants at once: equal to scikit-learn, exact in their ties, and blind to the neighbours."""

import doctest
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from vmapens.ensemble import metrics
from vmapens.errors import SpecError

BINARY = metrics.metrics_for("binary")
MULTICLASS = metrics.metrics_for("multiclass")
BOTH_KINDS = [("binary", name) for name in BINARY] + [("multiclass", name) for name in MULTICLASS]


def clipped(p):
    """Float64 values of float32 probabilities, clipped where scikit-learn clips float32."""
    eps = np.finfo(np.float32).eps
    return np.clip(p.astype(np.float64), float(eps), 1 - float(eps))


BINARY_ORACLE = {
    "auroc": sklearn.metrics.roc_auc_score,
    "average_precision": sklearn.metrics.average_precision_score,
    "log_loss": lambda y, p: sklearn.metrics.log_loss(y, clipped(p), labels=[0, 1]),
    "brier": lambda y, p: sklearn.metrics.brier_score_loss(y, p.astype(np.float64)),
    "accuracy": lambda y, p: sklearn.metrics.accuracy_score(y, p > 0.5),
    "balanced_accuracy": lambda y, p: sklearn.metrics.balanced_accuracy_score(y, p > 0.5),
}
MULTICLASS_ORACLE = {
    "macro_auroc": lambda y, p: sklearn.metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"),
    "macro_average_precision": lambda y, p: sklearn.metrics.average_precision_score(y, p, average="macro"),
    "log_loss": lambda y, p: sklearn.metrics.log_loss(y, clipped(p), labels=range(p.shape[1])),
    "brier": lambda y, p: sklearn.metrics.brier_score_loss(y, p.astype(np.float64), labels=range(p.shape[1])),
    "accuracy": lambda y, p: sklearn.metrics.accuracy_score(y, p.argmax(axis=1)),
    "balanced_accuracy": lambda y, p: sklearn.metrics.balanced_accuracy_score(y, p.argmax(axis=1)),
}


def draw(kind, *, seed, variants, samples, levels=0, classes=4):
    """Labels with every class and float32 probabilities; `levels` > 0 rounds them to so many values, for ties."""
    generator = np.random.default_rng(seed)
    classes = 2 if kind == "binary" else classes
    y = generator.permutation(np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)]))
    if kind == "binary":
        p = generator.random((variants, samples))
        p = np.round(p * levels) / levels if levels else p
    else:
        p = generator.exponential(size=(variants, samples, classes))
        p = np.ceil(p * levels) if levels else p
        p = p / p.sum(axis=-1, keepdims=True)
    return y, p.astype(np.float32)


@pytest.mark.parametrize(("kind", "name"), BOTH_KINDS)
@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(4, 60), levels=st.sampled_from([0, 1, 2, 5]))
@settings(max_examples=30, deadline=None)
def test_each_variant_scores_what_scikit_learn_says(kind, name, seed, samples, levels):
    y, p = draw(kind, seed=seed, variants=3, samples=samples, levels=levels)
    oracle = (BINARY_ORACLE if kind == "binary" else MULTICLASS_ORACLE)[name]
    with warnings.catch_warnings():
        # Rows of float32 sum to 1 within 1e-7, not within scikit-learn's bound for float64.
        warnings.filterwarnings("ignore", message="The y_prob values do not sum to one")
        want = [oracle(y, row) for row in p]
    np.testing.assert_allclose(metrics.score(name, y, p), want, rtol=0, atol=1e-9)


def test_float64_probabilities_are_clipped_as_scikit_learn_clips_them():
    """The clip is the spacing of the type that comes in: certain and wrong costs 15.9 or 36.0 nats."""
    y = np.array([0, 1])
    p = np.array([[1.0, 0.5]])
    np.testing.assert_allclose(metrics.log_loss(y, p), sklearn.metrics.log_loss(y, p[0]), rtol=1e-12)
    np.testing.assert_allclose(metrics.log_loss(y, p.astype(np.float32)), (15.942385 + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize(("kind", "name"), BOTH_KINDS)
@pytest.mark.parametrize("samples", [5, 333, 20_001])
def test_a_score_has_the_same_bits_whatever_the_other_variants_are(kind, name, samples):
    y, p = draw(kind, seed=7, variants=7, samples=samples, levels=1000)
    together = metrics.score(name, y, p)
    alone = np.concatenate([metrics.score(name, y, p[v : v + 1]) for v in range(7)])
    assert together.tobytes() == alone.tobytes()
    permutation = np.array([3, 0, 6, 1, 5, 2, 4])
    assert metrics.score(name, y, p[permutation]).tobytes() == together[permutation].tobytes()
    strided = np.asfortranarray(p)
    assert metrics.score(name, y, strided).tobytes() == together.tobytes()


@pytest.mark.parametrize(("kind", "name"), BOTH_KINDS)
def test_a_nan_stays_in_its_variant(kind, name):
    """Also where the score does not read the place of the NaN: a variant that failed must not look well."""
    y, p = draw(kind, seed=3, variants=4, samples=50)
    clean = metrics.score(name, y, p)
    p[0] = np.nan
    p[2].flat[11] = np.nan
    got = metrics.score(name, y, p)
    assert np.isnan(got[[0, 2]]).all()
    assert got[[1, 3]].tobytes() == clean[[1, 3]].tobytes()


@pytest.mark.parametrize(("kind", "name"), BOTH_KINDS)
def test_no_variants_have_no_scores(kind, name):
    y, p = draw(kind, seed=0, variants=2, samples=9)
    assert metrics.score(name, y, p[:0]).shape == (0,)


def test_scores_worked_by_hand():
    y = np.array([1, 0, 1, 0])
    p = np.array([[0.9, 0.9, 0.4, 0.1]], dtype=np.float32)
    # Pairs (1, 0): tie, win, loss, win.
    assert metrics.auroc(y, p).tolist() == [2.5 / 4]
    # Thresholds 0.9 (recall 1/2, precision 1/2) and 0.4 (recall 1, precision 2/3).
    np.testing.assert_allclose(metrics.average_precision(y, p), 0.5 * 0.5 + 0.5 * 2 / 3, rtol=1e-15)
    np.testing.assert_allclose(metrics.brier(y, p), (0.01 + 0.81 + 0.36 + 0.01) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics.log_loss(y, p), -np.log([0.9, 0.1, 0.4, 0.9]).mean(), rtol=1e-6)
    assert metrics.accuracy(y, p).tolist() == [0.5]

    y = np.array([0, 0, 1, 2])
    p = np.array([[[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]]], dtype=np.float32)
    assert metrics.accuracy(y, p).tolist() == [0.75]
    np.testing.assert_allclose(metrics.balanced_accuracy(y, p), (1 / 2 + 1 + 1) / 3, rtol=1e-15)
    np.testing.assert_allclose(metrics.brier(y, p), (0.5 + 1.28 + 0 + 0.375) / 4, rtol=1e-6)
    # Class 0: wins 2 + 1 of 4; class 1: the highest of all; class 2: likewise.
    np.testing.assert_allclose(metrics.macro_auroc(y, p), (3 / 4 + 1 + 1) / 3, rtol=1e-15)


def test_a_perfect_model_reaches_the_best_value_of_every_metric():
    y = np.array([0, 1, 1, 0, 1])
    p = y[None].astype(np.float32)
    q = np.stack([1 - p, p], axis=-1)
    for kind, probability in (("binary", p), ("multiclass", q)):
        for name in metrics.metrics_for(kind):
            best = 1.0 if metrics.METRICS[name].higher_is_better else 0.0
            assert metrics.score(name, y, probability)[0] == pytest.approx(best, abs=2e-7), name


def test_random_scores_reach_the_chance_level():
    """300 variants of 400 samples: 5 standard errors of each mean."""
    y = (np.arange(400) < 80).astype(np.int64)
    p = np.random.default_rng(1).random((300, 400), dtype=np.float32)
    auroc = metrics.auroc(y, p)
    exact_sd = np.sqrt(401 / (12 * 80 * 320))
    assert abs(auroc.mean() - 0.5) < 5 * exact_sd / np.sqrt(300)
    assert auroc.std() == pytest.approx(exact_sd, rel=0.2)
    # Average precision of a random order lies a little above the prevalence (by about log(N)/N).
    assert 0.2 < metrics.average_precision(y, p).mean() < 0.2 + np.log(400) / 400
    assert metrics.balanced_accuracy(y, p).mean() == pytest.approx(0.5, abs=0.01)

    y, p = draw("multiclass", seed=2, variants=300, samples=400, classes=5)
    assert metrics.macro_auroc(y, p).mean() == pytest.approx(0.5, abs=0.01)
    assert metrics.macro_average_precision(y, p).mean() == pytest.approx(0.2, abs=0.02)
    assert metrics.balanced_accuracy(y, p).mean() == pytest.approx(0.2, abs=0.01)


def test_predicting_the_prevalence_scores_as_the_registry_says():
    y = np.array([1, 0, 0, 0])
    p = np.full((1, 4), 0.25, dtype=np.float32)
    assert metrics.auroc(y, p)[0] == 0.5
    assert metrics.average_precision(y, p)[0] == 0.25
    assert metrics.brier(y, p)[0] == 0.25 * 0.75
    assert metrics.accuracy(y, p)[0] == 0.75
    assert metrics.log_loss(y, p)[0] == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))


@pytest.mark.parametrize("label", [0, 1])
def test_rank_metrics_are_nan_where_a_class_is_absent(label):
    y = np.full(6, label)
    p = np.linspace(0, 1, 6, dtype=np.float32)[None]
    assert np.isnan(metrics.auroc(y, p)).all()
    assert np.isnan(metrics.average_precision(y, p)).all() == (label == 0)
    assert metrics.balanced_accuracy(y, p).tolist() == metrics.accuracy(y, p).tolist()
    assert np.isnan(metrics.macro_auroc(y, np.stack([1 - p, p], axis=-1))).all()


def test_one_sample_is_enough():
    assert metrics.accuracy(np.array([1]), np.array([[0.7]], dtype=np.float32)).tolist() == [1.0]
    assert np.isnan(metrics.auroc(np.array([1]), np.array([[0.7]], dtype=np.float32))).all()


@pytest.mark.parametrize("name", BINARY)
def test_shapes_that_disagree_are_named(name):
    y = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 4\)"):
        metrics.score(name, y, np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"\(3,\).*\(3,\)"):
        metrics.score(name, y, np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        metrics.score(name, y[:0], np.zeros((2, 0), dtype=np.float32))


def test_labels_and_probabilities_outside_their_range_are_named():
    p = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"go from 0 to 2; wanted 0\.\.C-1 with C = 2"):
        metrics.auroc(np.array([0, 1, 2]), p)
    with pytest.raises(ValueError, match="go from -1"):
        metrics.accuracy(np.array([0, -1, 1]), np.zeros((1, 3, 2), dtype=np.float32))
    p[1, 2] = 1.5
    with pytest.raises(ValueError, match=r"probability\[1, 2\] is 1\.5"):
        metrics.brier(np.array([0, 1, 1]), p)


def test_an_unknown_metric_is_refused_with_those_that_fit():
    y, p = draw("binary", seed=0, variants=1, samples=5)
    with pytest.raises(SpecError, match=r"unknown metric `f1`: a binary task has auroc, average_precision"):
        metrics.score("f1", y, p)
    with pytest.raises(SpecError, match=r"`macro_auroc` does not apply to a binary task, which has auroc"):
        metrics.score("macro_auroc", y, p)
    with pytest.raises(SpecError, match=r"`auroc` does not apply to a multiclass task, which has macro_auroc"):
        metrics.score("auroc", y, np.stack([1 - p, p], axis=-1))


def test_the_default_metric_applies_to_its_kind():
    assert metrics.default_metric("binary") == "auroc"
    assert metrics.default_metric("multiclass") == "balanced_accuracy"
    for kind in ("binary", "multiclass"):
        assert metrics.default_metric(kind) in metrics.metrics_for(kind)


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(metrics)
    assert result.attempted >= 8
    assert result.failed == 0
