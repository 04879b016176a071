"""A feature that is the label is refused, one that nearly tells it is said, and any other passes."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from vmapens.cohort import leaks
from vmapens.cohort.leaks import warn_of_leaks
from vmapens.cohort.schema import CohortInfo, Feature, Task
from vmapens.errors import CohortError

N, STEPS = 60, 4
BINARY = Task("died", "binary", ("survived", "died"))
MULTI = Task("unit", "multiclass", ("medical", "surgical", "cardiac"))
DIED = np.arange(N) % 3 == 0
UNIT = np.arange(N) % 3


def look(values, code=DIED, task=BINARY, *, static=False):
    """The warnings about one feature: a value a sample, or [N, STEPS], NaN = not measured."""
    values = np.asarray(values, dtype=float)
    info = CohortInfo(STEPS, 60.0, (Feature("x"),), (task,), "made", "none")
    labels = pl.DataFrame({"sample": range(N), task.name: pl.Series(code).cast(pl.Int32)})
    series = pl.DataFrame({"sample": np.repeat(np.arange(N), STEPS), "step": np.tile(np.arange(STEPS), N)})
    if static:
        labels = labels.with_columns(x=values)
    else:
        cells = np.broadcast_to(values.reshape(N, -1), (N, STEPS)).reshape(-1)
        series = series.with_columns(x=cells).with_columns(pl.col("x").fill_nan(None))
    return warn_of_leaks(series.lazy(), labels, info, "cohort")


def refused(*arguments, **options):
    with pytest.raises(CohortError) as error:
        look(*arguments, **options)
    return str(error.value)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=N)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("yes", "no"), [(1, 0), (0, 1), (7.5, -2)])
def test_a_feature_that_is_the_label_is_refused_by_name(yes, no, static):
    line = refused(np.where(DIED, yes, no), static=static)
    assert "`x`, which is the label `died` in all 60 samples in which it is measured" in line
    assert "--without" in line


def test_a_flag_that_rises_in_the_last_step_is_the_label():
    flag = np.zeros((N, STEPS))
    flag[DIED, -1] = 1
    assert "the largest value of `x`, which is the label `died`" in refused(flag)
    assert "the least value of `x`, which is the label `died`" in refused(-flag)


def test_each_class_may_have_a_value_or_one_class_alone():
    assert "`x`, which is the label `unit`" in refused(np.array([5, 3, 4])[UNIT], UNIT, MULTI)
    assert "`x`, which tells `cardiac` of `unit` in all 60 samples" in refused(UNIT == 2, UNIT, MULTI)


def test_it_need_not_be_measured_in_all_samples(noise):
    some = np.where(noise > 0, DIED, np.nan)
    assert f"in all {(noise > 0).sum()} samples" in refused(some)


def test_ranges_that_part_the_classes_are_said_in_tasks_of_any_kind(noise):
    (line,) = look(noise + 20 * DIED)
    assert line.startswith("warning: `x` tells `died` of `died` nearly alone (AUROC 1.000): see that it was known")
    (line,) = look(noise + 20 * UNIT, UNIT, MULTI)
    assert "tells `cardiac` of `unit` nearly alone" in line or "tells `medical` of `unit`" in line


def test_one_exception_is_said_and_some_more_are_not(noise):
    almost = DIED.astype(float)
    almost[0] = 0
    assert not look(np.where(noise < -1, 1 - DIED, DIED) * 1.0)
    assert not look(almost)  # 19 of 20: an AUROC of 0.975
    late = noise + np.where(DIED, 4.0, 0.0)
    late[0] = -5.0
    exact = roc_auc_score(DIED, late)
    assert bool(look(late)) == (exact >= leaks.NEARLY)


def test_what_only_one_class_has_measured_is_said(noise):
    (line,) = look(np.where(DIED, noise, np.nan))
    assert "whether `x` was measured tells `died` of `died` nearly alone (AUROC 1.000)" in line
    (line,) = look(np.where(UNIT == 1, noise, np.nan), UNIT, MULTI)
    assert "whether `x` was measured tells `surgical` of `unit`" in line


@pytest.mark.parametrize("tied", [True, False])
def test_how_well_a_value_tells_a_class_is_scikit_learns_auroc(tied, noise):
    generator = np.random.default_rng(3)
    value = (noise * 2).round() if tied else noise
    value[generator.random(N) < 0.2] = np.nan
    code = generator.integers(0, 3, N)
    measured = ~np.isnan(value)
    aurocs = [roc_auc_score(code[measured] == number, value[measured]) for number in range(3)]
    found = leaks._tells(value, code, "x")
    assert found.auroc == pytest.approx(max(max(auroc, 1 - auroc) for auroc in aurocs), abs=1e-12)


def test_few_samples_or_a_small_class_give_no_verdict():
    few = np.where(np.arange(N) < leaks.LEAST - 1, DIED, -1)
    labels = pl.Series(few).replace(-1, None)
    assert not look(DIED, labels)
    rare = np.arange(N) < leaks.LEAST_OF_A_CLASS - 1
    assert not look(rare, rare)
    assert refused(np.arange(N) < leaks.LEAST_OF_A_CLASS, np.arange(N) < leaks.LEAST_OF_A_CLASS)


def test_ordinary_features_pass():
    generator = np.random.default_rng(1)
    for share in (0.1, 0.3, 0.5):
        for _ in range(40):
            assert not look(generator.random(N) < share)
            assert not look(np.where(generator.random(N) < share, generator.normal(size=N), np.nan), UNIT, MULTI)
    assert not look(np.full(N, 3.0))
    assert not look(np.full(N, np.nan))


def test_a_few_features_at_a_time_are_as_good_as_all(monkeypatch):
    generator = np.random.default_rng(1)
    names = [f"f{place}" for place in range(40)]
    keys = {"sample": np.repeat(np.arange(N), STEPS), "step": np.tile(np.arange(STEPS), N)}
    series = pl.DataFrame({**keys, **{name: generator.normal(size=N * STEPS) for name in names}})
    series = series.with_columns(
        f17=pl.Series(np.repeat(DIED, STEPS) * 1.0), f39=pl.Series(np.repeat(~DIED, STEPS) * 1.0)
    )
    labels = pl.DataFrame({"sample": range(N), "died": DIED * 1})
    info = CohortInfo(STEPS, 60.0, tuple(map(Feature, names)), (BINARY,), "made", "none")
    lines = []
    for cells in (1 << 26, 3 * N * STEPS):
        monkeypatch.setattr(leaks, "_CELLS_AT_ONCE", cells)
        with pytest.raises(CohortError, match=r"`f17`.*`f39`") as error:
            warn_of_leaks(series.lazy(), labels, info, "cohort")
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "`f16`" not in lines[0]
