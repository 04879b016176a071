"""Forward-fill and standardisation against the same in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_cohort import load, small_series, write_small

from vmapens.cohort.scale import fit_scaling, forward_fill, standardise


def plain_fill_and_scale(x, train):
    """The order of work, one cell at a time."""
    samples, steps, features = x.shape
    filled = [[[float(x[n, t, f]) for f in range(features)] for t in range(steps)] for n in range(samples)]
    for series in filled:
        for t in range(1, steps):
            for f in range(features):
                if math.isnan(series[t][f]):
                    series[t][f] = series[t - 1][f]
    means, stds = [], []
    for f in range(features):
        cells = [filled[n][t][f] for n in train for t in range(steps) if not math.isnan(filled[n][t][f])]
        mean = math.fsum(cells) / len(cells) if cells else math.nan
        means.append(mean)
        stds.append(math.sqrt(math.fsum((c - mean) ** 2 for c in cells) / len(cells)) if cells else math.nan)
        flat = not cells or min(cells) == max(cells)
        for series in filled:
            for t in range(steps):
                value = series[t][f]
                series[t][f] = 0.0 if flat or math.isnan(value) else (value - means[f]) / stds[f]
    return np.array(filled), np.array(means), np.array(stds)


cells = st.one_of(st.just(math.nan), st.floats(-1000, 1000, width=32).map(lambda value: round(value, 1)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_fast_path_is_the_plain_one(data):
    shape = tuple(data.draw(st.integers(1, most)) for most in (6, 5, 3))
    x = data.draw(arrays(np.float32, shape, elements=cells))
    train = np.array(sorted(data.draw(st.sets(st.integers(0, shape[0] - 1), min_size=1))))
    want, mean, std = plain_fill_and_scale(x, train)
    forward_fill(x)
    scaling = fit_scaling(x, train)
    standardise(x, scaling)
    # Two orders of additions in float64; a feature's offset may exceed its SD by 1e4.
    np.testing.assert_allclose(scaling.mean, mean, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(scaling.std, std, rtol=1e-7, atol=1e-9)
    # x is rounded to float32 once, at the end: half a unit in the last place.
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-6)


def test_chunks_do_not_matter(monkeypatch):
    x = np.random.default_rng(0).normal(size=(23, 5, 3)).astype(np.float32)
    x[np.random.default_rng(1).random(x.shape) < 0.5] = np.nan
    other = x.copy()
    for array, chunk in ((x, 2**20), (other, 1)):
        monkeypatch.setattr("vmapens.cohort.scale._CHUNK_BYTES", chunk)
        forward_fill(array)
        scaling = fit_scaling(array, np.arange(17))
        standardise(array, scaling)
    np.testing.assert_allclose(x, other, rtol=1e-6, atol=1e-6)


def test_nothing_is_filled_backward():
    x = np.array([[[np.nan], [2.0], [np.nan]]], dtype=np.float32)
    forward_fill(x)
    np.testing.assert_array_equal(x, [[[np.nan], [2.0], [2.0]]])


def test_a_constant_is_constant_although_its_mean_is_rounded():
    x = np.full((7, 3, 1), 0.1, dtype=np.float32)
    scaling = fit_scaling(x, np.arange(7))
    assert scaling.std[0] == 0
    assert scaling.flat == [0]


def test_only_the_training_split_is_fitted(tmp_path):
    before = load(write_small(tmp_path / "a"))
    test = [int(before.samples[row]) for row in before.rows("test")]
    series = small_series()
    changed = series.with_columns(
        hr=series["hr"] + 1000 * series["sample"].is_in(test).cast(series["hr"].dtype),
    )
    after = load(write_small(tmp_path / "b", changed))
    rows = before.rows("train")
    assert after.x[rows].equal(before.x[rows])
    assert after.features.equals(before.features)
    assert not after.x.equal(before.x)


@pytest.mark.parametrize("value", [3.5, None])
def test_a_flat_feature_becomes_zeros_and_is_named(tmp_path, value):
    series = small_series()
    cohort = load(write_small(tmp_path / "c", series.with_columns(map=series["map"] * 0 + value if value else None)))
    assert not cohort.x[:, :, 1].any()
    assert "constant or never measured in the training split became all zeros (1): " in cohort.warnings[-1]
    assert cohort.warnings[-1].endswith(": map.")
    assert cohort.features["mean"].to_list()[1] == value
    assert cohort.features["std"].to_list()[1] == (0 if value else None)
