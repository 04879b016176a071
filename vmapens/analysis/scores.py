"""Scores of whole runs, compared on the same stays.

The score of a run is the mean of a metric over its variants. Its interval, and that of the difference of two runs, is
over stays: both runs see the same bootstrap samples, so that what makes a stay hard for both cancels.

Axes: V variants, N stays, C classes, R resamples.
Ground truth: `vmapens.ensemble.metrics.score` on each bootstrap sample written out; `tests/test_analysis_scores.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy import stats

from vmapens.analysis.interval import Interval, Weights, expanded_percentile, weights_of
from vmapens.ensemble import metrics

Truth = Int[np.ndarray, "N"]
Probability = Float[np.ndarray, "V ..."]
Resampled = Float64[np.ndarray, "R"]

_MEANS_OVER_STAYS = ("accuracy", "log_loss", "brier")

# Pairs of a positive and a negative stay held at once (float64, so 32 MiB), and resamples sorted at once.
_PAIRS = 1 << 22
_SORTED = 256


class Comparison(NamedTuple):
    """One run and one metric: mean and SD over variants; over stays, the mean and its difference to the first run."""

    mean: Interval
    sd: float
    difference: Interval


def compare(
    y: Truth,
    probabilities: Sequence[Float[np.ndarray, "_ ..."]],
    *,
    names: Sequence[str],
    clusters: Int[np.ndarray, "N"] | None,
    seed: int,
    resamples: int = 1000,
) -> dict[str, list[Comparison]]:
    """Mean score of each run and its difference to the first one, with intervals over stays.

    Args:
        y: Labels of the stays.
        probabilities: Of each run on these stays, [V, N] or [V, N, C]; V may differ. Variants with a NaN (failed) are
            left out.
        names: Metrics, keys of `metrics.METRICS`.
        clusters: The patient of each stay, or None.
        seed: Of the bootstrap samples, which all runs share.
        resamples: R, bootstrap samples.

    Returns:
        For each metric one comparison a run, in their order. The first run's difference is 0 without spread. NaN for a
        run without variants. Intervals are expanded percentiles of the bootstrap samples in which the metric is
        defined; no bounds where a class has one stay (AUROC, average precision, balanced accuracy).

    Raises:
        SpecError: If a metric does not exist or does not apply.
        ValueError: If shapes disagree, or a label or probability is outside its range.
    """
    weights = weights_of(y.size, clusters, resamples, seed)
    clusters = np.arange(y.size) if clusters is None else clusters
    table: dict[str, list[Comparison]] = {}
    for name in names:
        groups = float(np.unique(clusters).size) if name in _MEANS_OVER_STAYS else _effective_groups(y, clusters)
        scores = [metrics.score(name, y, probability) for probability in probabilities]
        resampled = [mean_score_resampled(name, y, probability, weights) for probability in probabilities]
        means = [_mean(run) for run in scores]
        table[name] = [
            Comparison(
                expanded_percentile(mean, samples, groups),
                _sd(run),
                expanded_percentile(mean - means[0], samples - resampled[0], groups),
            )
            for run, mean, samples in zip(scores, means, resampled, strict=True)
        ]
    return table


def mean_score_resampled(name: str, y: Truth, probability: Probability, weights: Weights) -> Resampled:
    """Mean of a metric over the variants, on each bootstrap sample of the stays.

    Exact: what `metrics.score` gives on the samples written out, to rounding. A mean over stays (log loss, Brier
    score, accuracy) is one product; so is AUROC once its comparisons of a positive with a negative are averaged over
    the variants, ``w1' K w0 / (sum w1 sum w0)``; average precision walks down the sorted stays of each variant.

    Args:
        name: A key of `metrics.METRICS`.
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C]. Variants with a NaN (failed) are left out.
        weights: How often each stay comes in each sample, [R, N].

    Returns:
        One mean a sample; NaN where the metric is undefined on it (a class it needs was not drawn).

    Raises:
        SpecError: If there is no such metric, or it does not apply to this kind of task.
        ValueError: If the shapes disagree, or a label or probability is outside its range.
    """
    if weights.shape[1] != y.size:
        raise ValueError(f"weights have shape {weights.shape}, but there are {y.size} stays; wanted [R, {y.size}].")
    metrics.score(name, y, probability)  # refuses what the metric refuses
    rows = probability[~np.isnan(probability).any(axis=tuple(range(1, probability.ndim)))]
    if len(rows) == 0:
        return np.full(len(weights), np.nan)
    drawn = weights.astype(np.float64)
    if name in _MEANS_OVER_STAYS:
        return _weighted(_each_stay(name, y, rows), drawn)
    if name == "balanced_accuracy":
        right = _each_stay("accuracy", y, rows)
        recalls = np.stack([_weighted(right[y == c], drawn[:, y == c]) for c in np.unique(y)])
        occurs = ~np.isnan(recalls)
        return _quotient(np.where(occurs, recalls, 0).sum(axis=0), occurs.sum(axis=0).astype(np.float64))
    function = _auroc if name.endswith("auroc") else _average_precision
    if rows.ndim == 2:
        return function(y == 1, rows, drawn)
    return np.asarray(np.mean([function(y == c, rows[:, :, c], drawn) for c in range(rows.shape[2])], axis=0))


def running_mean(values: Float64[np.ndarray, "V"]) -> Float64[np.ndarray, "V"]:
    """Mean over each variant and all before it; failed ones (NaN) do not count.

    Example:
        >>> running_mean(np.array([np.nan, 1.0, np.nan, 2.0])).tolist()
        [nan, 1.0, 1.0, 1.5]
    """
    ok = ~np.isnan(values)
    return _quotient(np.cumsum(np.where(ok, values, 0)), np.cumsum(ok).astype(np.float64))


def rank_correlation(valid: Float64[np.ndarray, "V"], test: Float64[np.ndarray, "V"]) -> Interval:
    """Spearman's correlation over variants of a score on two splits: does a good one stay good?

    The interval is that of Fisher's z with variance ``(1 + r^2 / 2) / (V - 3)``. For r = 1 its z is that of one
    swap of neighbours, ``1 - 12 / (V^3 - V)``, since an interval without width would say too much.

    Args:
        valid: One score a variant; NaN: failed, left out.
        test: The same.

    Returns:
        In [-1, 1]; NaN for fewer than 4 variants or where all are equal.

    Source:
        Bonett and Wright 2000, doi:10.1007/BF02294183.
    """
    ok = ~np.isnan(valid + test)
    count = int(np.count_nonzero(ok))
    if count < 4 or np.ptp(valid[ok]) == 0 or np.ptp(test[ok]) == 0:
        return Interval(np.nan, np.nan, np.nan)
    r = float(np.clip(stats.spearmanr(valid[ok], test[ok]).statistic, -1, 1))
    largest = 1 - 12 / (count**3 - count)
    z = np.arctanh(np.clip(r, -largest, largest))
    reach = stats.norm.ppf(0.975) * np.sqrt((1 + r**2 / 2) / (count - 3))
    return Interval(r, min(r, float(np.tanh(z - reach))), max(r, float(np.tanh(z + reach))))


def _effective_groups(y: Truth, clusters: Int[np.ndarray, "N"]) -> float:
    """Clusters that count for a metric in which every class counts the same, by Welch's degrees of freedom plus 1.

    The classes' parts vary by about 1 / n_c each, so 30 positives among 600 stays are a sample of 30, not of 600.
    """
    sizes = np.array([np.unique(clusters[y == c]).size for c in np.unique(y)], dtype=np.float64)
    if sizes.min() < 2:
        return 1.0
    return 1.0 + float((1 / sizes).sum() ** 2 / (1 / (sizes**2 * (sizes - 1))).sum())


def _each_stay(name: str, y: Truth, rows: Probability) -> Float64[np.ndarray, "N"]:
    """Mean over variants of a metric that is a mean over stays, for each stay.

    It is the score on this stay alone; stays of one label are scored at once, as if they were variants.
    """
    scores = np.empty(y.size)
    for c in np.unique(y):
        stays = rows[:, y == c]
        alone = metrics.score(name, np.array([c]), stays.reshape(-1, 1, *rows.shape[2:]))
        scores[y == c] = alone.reshape(stays.shape[:2]).mean(axis=0)
    return scores


def _weighted(values: Float64[np.ndarray, "n"], drawn: Float64[np.ndarray, "R n"]) -> Resampled:
    return _quotient(drawn @ values, drawn.sum(axis=1))


def _auroc(positive: Bool[np.ndarray, "N"], rows: Probability, drawn: Float64[np.ndarray, "R N"]) -> Resampled:
    high, low = rows[:, positive], rows[:, ~positive]
    above, below = drawn[:, positive], drawn[:, ~positive]
    wins = np.zeros(len(drawn))
    step = max(1, _PAIRS // max(1, low.shape[1]))
    for start in range(0, high.shape[1], step):
        part = slice(start, start + step)
        kernel = np.zeros((high[:, part].shape[1], low.shape[1]))
        for p, q in zip(high[:, part], low, strict=True):
            kernel += p[:, None] > q
            kernel += p[:, None] >= q  # a tie is counted here alone: half of a win, which counts twice
        wins += ((above[:, part] @ kernel) * below).sum(axis=1)
    return _quotient(wins, 2 * len(rows) * above.sum(axis=1) * below.sum(axis=1))


def _average_precision(
    positive: Bool[np.ndarray, "N"], rows: Probability, drawn: Float64[np.ndarray, "R N"]
) -> Resampled:
    if not positive.any():
        return np.full(len(drawn), np.nan)
    areas = np.zeros(len(drawn))
    for start in range(0, len(drawn), _SORTED):
        part = slice(start, start + _SORTED)
        weights = np.ascontiguousarray(drawn[part].T)
        for row in rows:
            order = np.argsort(-row)
            falling, hit = row[order], positive[order]
            # A step of the curve ends where a run of equal scores does; those without a positive add nothing, so
            # they are joined to the next one.
            ends = 1 + np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
            ends = ends[np.diff(np.cumsum(hit)[ends - 1], prepend=0) > 0]
            starts, order, hit = np.append(0, ends[:-1]), order[: ends[-1]], hit[: ends[-1]]
            ranked = weights[order]
            gained = np.add.reduceat(ranked * hit[:, None], starts, axis=0)
            found = np.cumsum(np.add.reduceat(ranked, starts, axis=0), axis=0)
            precision = np.cumsum(gained, axis=0) / np.maximum(found, 1)
            areas[part] += (gained * precision).sum(axis=0)
    return _quotient(areas, len(rows) * drawn[:, positive].sum(axis=1))


def _mean(scores: Float64[np.ndarray, "V"]) -> float:
    ok = scores[~np.isnan(scores)]
    return float(ok.mean()) if ok.size else np.nan


def _sd(scores: Float64[np.ndarray, "V"]) -> float:
    ok = scores[~np.isnan(scores)]
    return float(ok.std(ddof=1)) if ok.size > 1 else np.nan


def _quotient(above: Float64[np.ndarray, "R"], below: Float64[np.ndarray, "R"]) -> Resampled:
    return np.asarray(np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0))
