"""The synthetic cohort: reproducible, plausible, and with a truth that the data hold and nothing else gives away."""

import hashlib

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE, read_info
from vmapens.cohort.synthetic import BAYES_FILE, TRUTH_FILE, make_synthetic
from vmapens.errors import CohortError

SAMPLES, STEPS, FEATURES = 6000, 48, 24


class Made:
    """A cohort read back: dense values [N, T, F] with NaN where nothing was measured, and its truth."""

    def __init__(self, folder):
        self.info = read_info(folder)
        self.names = [feature.name for feature in self.info.features]
        self.labels = pl.read_parquet(folder / LABELS_FILE)
        self.bayes = pl.read_parquet(folder / BAYES_FILE)
        self.truth = pl.read_parquet(folder / TRUTH_FILE)
        self.series = pl.read_parquet(folder / SERIES_FILE)
        self.row = {sample: i for i, sample in enumerate(self.labels["sample"])}
        self.x = np.full((len(self.row), self.info.steps, len(self.names)), np.nan, dtype=np.float32)
        rows = [self.row[sample] for sample in self.series["sample"]]
        self.x[rows, self.series["step"].to_numpy()] = self.series.select(self.names).to_numpy()
        self.y = self.labels["outcome"].to_numpy()
        self.p = self.bayes["probability"].to_numpy()
        self.stratum = self.bayes["stratum"].to_numpy()

    def filled(self):
        """Carried forward in time, then the mean; standardised, after a logarithm where all values are positive."""
        x = self.x.copy()
        for t in range(1, x.shape[1]):
            x[:, t] = np.where(np.isnan(x[:, t]), x[:, t - 1], x[:, t])
        positive = np.nanmin(x, axis=(0, 1)) > 0
        x[:, :, positive] = np.log(x[:, :, positive])
        x = (x - np.nanmean(x, axis=(0, 1))) / np.nanstd(x, axis=(0, 1))
        return np.nan_to_num(x)


def predict(x, y):
    return cross_val_predict(LogisticRegression(max_iter=1000), x, y, cv=5, method="predict_proba")[:, 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "cohort"
    make_synthetic(folder, samples=SAMPLES, steps=STEPS, features=FEATURES, seed=5)
    return Made(folder)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        # Neither the global generator nor what was drawn before has a say.
        np.random.seed(seed if name == "a" else 99)  # noqa: NPY002
        make_synthetic(tmp_path / name, samples=150, steps=12, features=26, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert sorted(first) == ["bayes.parquet", "cohort.json", "labels.parquet", "series.parquet", "truth.parquet"]
    # The causal cells of a stratum are fixed, but which stay is in which stratum is drawn.
    assert all(first[name] != other[name] for name in first)


def test_the_files_have_the_shapes_and_types_of_the_format(made):
    assert made.series.schema == pl.Schema(
        {"sample": pl.String, "step": pl.Int32} | dict.fromkeys(made.names, pl.Float32)
    )
    assert made.labels.schema == pl.Schema({"sample": pl.String, "outcome": pl.Int32})
    assert made.truth.schema == pl.Schema({"sample": pl.String, "step": pl.Int32, "feature": pl.String})
    assert made.bayes["probability"].dtype == pl.Float64
    assert made.labels["sample"].equals(made.bayes["sample"])
    assert made.labels.height == SAMPLES
    assert len(made.names) == len(set(made.names)) == FEATURES
    assert made.names[:5] == ["heart_rate", "mean_arterial_pressure", "resp_rate", "temperature", "spo2"]
    assert made.info.minutes_per_step == 60
    assert not made.series.select(pl.col(made.names).is_nan().any()).to_numpy().any()
    assert made.series.select(pl.any_horizontal(pl.col(made.names).is_not_null())).to_series().all()


def test_causal_cells_differ_between_strata_and_are_always_measured(made):
    rows = np.array([made.row[sample] for sample in made.truth["sample"]])
    columns = np.array([made.names.index(feature) for feature in made.truth["feature"]])
    steps = made.truth["step"].to_numpy()
    assert not np.isnan(made.x[rows, steps, columns]).any()
    cells = made.truth.join(made.bayes, on="sample").group_by("stratum", "feature").agg(pl.col("step").unique().sort())
    assert {(s, f): tuple(steps) for s, f, steps in cells.iter_rows()} == {
        ("surgical", "mean_arterial_pressure"): tuple(range(6)),
        ("respiratory", "spo2"): tuple(range(18, 24)),
        ("septic", "lactate"): tuple(range(42, 48)),
    }
    assert made.truth.height == 6 * SAMPLES
    # Being measured says nothing of the stratum: the same cells are there for everybody.
    assert not np.isnan(made.x[:, 42:, made.names.index("lactate")]).any()


def test_the_causal_cells_reach_the_bayes_auroc_and_random_cells_do_not(made):
    """Cross-validated logistic regression, one a stratum; in sampling error of about 0.007 (6000 stays, 22 %)."""
    x = made.filled()
    generator = np.random.default_rng(0)
    causal, random = np.empty(SAMPLES), np.empty(SAMPLES)
    for stratum in np.unique(made.stratum):
        mine = made.stratum == stratum
        truth = made.truth.filter(pl.col("sample") == made.bayes["sample"][int(np.argmax(mine))])
        steps = truth["step"].to_numpy()
        feature = made.names.index(truth["feature"][0])
        causal[mine] = predict(x[mine][:, steps, feature], made.y[mine])
        others = np.delete(np.arange(FEATURES), feature)
        where = generator.integers(0, STEPS, steps.size), generator.choice(others, steps.size, replace=False)
        random[mine] = predict(x[mine][:, where[0], where[1]], made.y[mine])
    bayes = roc_auc_score(made.y, made.p)
    assert 0.88 < bayes < 0.92
    assert roc_auc_score(made.y, causal) > bayes - 0.02
    assert roc_auc_score(made.y, random) < 0.70


def test_the_cause_of_one_stratum_is_not_that_of_another(made):
    """High lactate at the end raises the risk of septic stays only; elsewhere it is at most a companion."""
    late = made.filled()[:, 42:, made.names.index("lactate")].mean(axis=1)
    auroc = {s: roc_auc_score(made.y[made.stratum == s], late[made.stratum == s]) for s in np.unique(made.stratum)}
    assert auroc["septic"] > 0.87
    assert max(auroc["surgical"], auroc["respiratory"]) < 0.65


def test_the_stratum_shows_in_the_mean_temperature(made):
    mean = np.nanmean(made.x[:, :, made.names.index("temperature")], axis=1)
    guess = np.select([mean < 36.45, mean < 37.55], ["surgical", "respiratory"], "septic")
    assert (guess == made.stratum).mean() > 0.96


def test_bayes_probabilities_are_calibrated(made):
    """Within 4 binomial standard deviations, in all and in ten bins of equal size."""
    bins = [np.arange(SAMPLES), *np.array_split(np.argsort(made.p), 10)]
    for chosen in bins:
        p = made.p[chosen]
        assert abs(made.y[chosen].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    assert 0.20 < made.p.mean() < 0.24
    np.testing.assert_allclose(made.p, 1 / (1 + np.exp(-made.bayes["logit"].to_numpy())), rtol=1e-12)
    assert made.bayes["logit"].std() == pytest.approx(2.4, rel=0.05)


def test_the_notes_give_the_bayes_auroc(made):
    note = made.info.notes[-1]
    assert note.startswith("Bayes AUROC 0.")
    # Expected over the labels, against that of the labels drawn.
    assert float(note.split()[2].rstrip(";")) == pytest.approx(roc_auc_score(made.y, made.p), abs=0.02)


@pytest.mark.parametrize(
    ("name", "mean", "sd", "near", "far"),
    [
        ("heart_rate", 88, 17, (0.75, 0.92), (0.3, 0.7)),
        ("mean_arterial_pressure", 79, 13, (0.7, 0.9), (0.2, 0.6)),
        ("spo2", 95.5, 2.3, (0.7, 0.9), (0.2, 0.6)),
        ("sodium", 139, 4.5, (0.9, 1.0), (0.6, 0.9)),
    ],
)
def test_values_have_their_clinical_scale_and_are_autocorrelated(made, name, mean, sd, near, far):
    """`near` and `far`: bounds of the correlation with the value 1 and 12 hours later.

    What is measured varies up to 12 % more than what is, for labs: unusual values are measured more often.
    """
    x = made.x[:, :, made.names.index(name)]
    assert np.nanmean(x) == pytest.approx(mean, rel=0.02)
    assert 0.95 * sd < np.nanstd(x) < 1.15 * sd
    for lag, (low, high) in ((1, near), (12, far)):
        both = ~np.isnan(x[:, :-lag]) & ~np.isnan(x[:, lag:])
        assert low < np.corrcoef(x[:, :-lag][both], x[:, lag:][both])[0, 1] < high


def test_heart_rate_follows_the_time_of_day(made):
    """The correlation over 24 hours exceeds that over 12: opposite phases of the rhythm."""
    x = made.x[:, :, made.names.index("heart_rate")]
    correlation = {}
    for lag in (12, 24):
        both = ~np.isnan(x[:, :-lag]) & ~np.isnan(x[:, lag:])
        correlation[lag] = np.corrcoef(x[:, :-lag][both], x[:, lag:][both])[0, 1]
    assert correlation[24] > correlation[12] + 0.02


def test_features_share_factors(made):
    """The ill have fast hearts and low bicarbonate at once."""
    x = made.filled()
    correlation = np.corrcoef(x.reshape(-1, FEATURES), rowvar=False)
    heart = made.names.index("heart_rate")
    assert correlation[heart, made.names.index("resp_rate")] > 0.1
    assert correlation[heart, made.names.index("bicarbonate")] < -0.1
    # One direction carries the variance of at least two unrelated features, none carries most of it.
    assert 2 < np.linalg.eigvalsh(correlation)[-1] < 0.4 * FEATURES


def test_vitals_are_mostly_there_and_labs_a_few_times_a_day(made):
    measured = dict(zip(made.names, (~np.isnan(made.x)).mean(axis=(0, 1)), strict=True))
    assert np.isnan(made.x).mean() == pytest.approx(0.6, abs=0.01)
    for name in ("heart_rate", "mean_arterial_pressure", "resp_rate", "spo2"):
        assert 0.85 < measured[name] < 0.99
    for name in ("creatinine", "white_blood_cells", "platelets", "sodium", "haemoglobin"):
        assert 1 < 24 * measured[name] < 6


def test_unusual_values_are_measured_a_little_more_often(made):
    """The most unusual third of the stays (by their mean bicarbonate) has 1.1 to 1.5 times the measurements."""
    x = made.x[:, :, made.names.index("bicarbonate")]
    count = (~np.isnan(x)).sum(axis=1)
    known = count > 0
    unusual = np.abs(np.nanmean(x[known], axis=1) - np.nanmean(x))
    order = np.argsort(unusual)
    third = order.size // 3
    assert 1.1 < count[known][order[-third:]].mean() / count[known][order[third:-third]].mean() < 1.5


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
def test_missing_is_the_share_of_cells_without_a_measurement(tmp_path, missing):
    make_synthetic(tmp_path / "cohort", samples=200, steps=24, features=24, missing=missing)
    assert np.isnan(Made(tmp_path / "cohort").x).mean() == pytest.approx(missing, abs=0.01)


@pytest.mark.parametrize(("samples", "steps", "features"), [(20, 4, 4), (21, 5, 7), (130, 97, 30)])
def test_small_and_odd_sizes_work(tmp_path, samples, steps, features):
    info = make_synthetic(tmp_path / "cohort", samples=samples, steps=steps, features=features, missing=0.95)
    made = Made(tmp_path / "cohort")
    assert made.info == info
    assert (made.info.steps, len(made.names), len(made.y)) == (steps, features, samples)
    assert set(made.truth["feature"]) <= set(made.names)
    assert {"temperature", "mean_arterial_pressure", "spo2", "lactate"} <= set(made.names)
    assert made.truth["sample"].n_unique() == samples
    assert made.truth["step"].max() < steps
    assert made.names[24:] == [f"lab_{number:03d}" for number in range(25, features + 1)]


def test_every_bad_argument_is_named_in_one_line(tmp_path):
    with pytest.raises(CohortError) as caught:
        make_synthetic(tmp_path / "cohort", samples=19, steps=3, features=3, seed=-1, missing=0.96)
    text = str(caught.value)
    for part in ("samples is 19, must be 20", "steps is 3", "features is 3", "seed is -1", "missing is 0.96"):
        assert part in text
    assert "\n" not in text
    assert not (tmp_path / "cohort").exists()
    with pytest.raises(CohortError, match="missing is nan"):
        make_synthetic(tmp_path / "cohort", missing=float("nan"))


def test_a_cohort_in_the_way_is_left_as_it_is(tmp_path):
    make_synthetic(tmp_path / "cohort", samples=20, steps=4, features=4)
    before = digests(tmp_path / "cohort")
    with pytest.raises(CohortError, match="holds a cohort already"):
        make_synthetic(tmp_path / "cohort", samples=20, steps=4, features=4, seed=1)
    assert digests(tmp_path / "cohort") == before


def test_a_file_in_the_way_is_the_users_problem(tmp_path):
    (tmp_path / "cohort").write_text("not a folder")
    with pytest.raises(CohortError, match="is a file, and no folder to write a cohort to"):
        make_synthetic(tmp_path / "cohort", samples=20, steps=4, features=4)
