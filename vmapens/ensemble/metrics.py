"""Scores of all variants at once.

A score of one variant has the same bits whatever the other variants are and however many there are: rows are sorted
one by one, counts are exact integers, and floating-point sums run along one contiguous row. A variant with a NaN among
its probabilities scores NaN and leaves the others as they are.

Axes: V variants, N samples, C classes. A binary task has `probability[V, N]`, the probability of class 1; a multiclass
task has `probability[V, N, C]`.
Ground truth: scikit-learn, one variant at a time; `tests/test_metrics.py` holds the bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from vmapens.errors import SpecError

Kind = Literal["binary", "multiclass"]
Truth = Int[np.ndarray, "N"]
# Not "V N ...": a disagreement about N is an error with both shapes in its text, under pytest as well.
Probability = Float[np.ndarray, "V ..."]
Scores = Float64[np.ndarray, "V"]

# Probabilities are the float32 output of a sigmoid or a softmax; a last place above 1 is no fault.
_ROUNDING = 1e-6


def auroc(y: Truth, probability: Probability) -> Scores:
    """Area under the ROC curve: how often a positive sample scores above a negative one, ties counted half.

    ``(#{p_i > p_j} + #{p_i = p_j} / 2) / (n1 * n0)`` over the pairs of a positive i and a negative j. The doubled
    numerator, the Mann-Whitney statistic, is an exact integer. In [0, 1], higher is better, chance is 0.5; NaN if `y`
    has only one class.

    Args:
        y: Labels 0 or 1.
        probability: Of class 1, [V, N].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> auroc(np.array([0, 0, 1, 1]), np.array([[0.1, 0.4, 0.35, 0.8], [0.5, 0.5, 0.5, 0.5]])).tolist()
        [0.75, 0.5]

    Source:
        Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747; scikit-learn `roc_auc_score`.
    """
    rows = _checked(y, probability, "binary")
    return _or_nan(_auroc(y == 1, rows), rows)


def average_precision(y: Truth, probability: Probability) -> Scores:
    """Area under the precision-recall curve, as a step function.

    ``sum_k (R_k - R_(k-1)) P_k`` over the distinct thresholds k, from high to low; tied samples enter together. In
    [0, 1], higher is better, chance is the prevalence (a little above it for small N); NaN if `y` has no positive
    sample.

    Args:
        y: Labels 0 or 1.
        probability: Of class 1, [V, N].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> average_precision(np.array([0, 1, 1, 0]), np.array([[0.1, 0.9, 0.4, 0.6]])).round(4).tolist()
        [0.8333]

    Source:
        scikit-learn `average_precision_score`, which has 0 instead of NaN where no sample is positive.
    """
    rows = _checked(y, probability, "binary")
    return _or_nan(_average_precision(y == 1, rows), rows)


def log_loss(y: Truth, probability: Probability) -> Scores:
    """Mean negative log-probability of the true class, in nats.

    ``-1/N sum_i log p_i[y_i]``, with p clipped to [eps, 1 - eps], eps the spacing of the type `probability` comes in
    (1.2e-7 for float32: no sample costs more than 15.9). At least 0, lower is better; predicting the prevalences
    costs their entropy.

    Args:
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.1, 0.9]])).round(4).tolist()
        [0.6931, 0.1054]

    Source:
        scikit-learn `log_loss`; here the arithmetic is float64 for float32 probabilities too.
    """
    rows = _checked(y, probability)
    if rows.ndim == 2:
        true_class = np.where(y == 1, rows, 1 - rows)
    else:
        # Gathering may lay its result out in any order; sums want contiguous rows.
        true_class = np.ascontiguousarray(rows[:, np.arange(y.size), y])
    eps = float(np.finfo(probability.dtype).eps)
    return _or_nan(-np.log(np.clip(true_class, eps, 1 - eps)).sum(axis=-1) / y.size, rows)


def brier(y: Truth, probability: Probability) -> Scores:
    """Mean squared distance between the probabilities and what happened.

    Binary: ``1/N sum_i (p_i - y_i)^2``, in [0, 1]. Multiclass: ``1/N sum_i sum_c (p_ic - [y_i = c])^2``, in [0, 2].
    Lower is better; predicting the prevalences scores ``q (1 - q)``, or ``1 - sum_c q_c^2``.

    Args:
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> brier(np.array([0, 1]), np.array([[0.5, 0.5], [0.0, 1.0]])).tolist()
        [0.25, 0.0]

    Source:
        Brier 1950, Monthly Weather Review 78:1-3 (twice the binary score); scikit-learn `brier_score_loss`.
    """
    rows = _checked(y, probability)
    if rows.ndim == 2:
        squares = np.square(rows - y)
    else:
        squares = np.zeros(rows.shape[:2])
        for c in range(rows.shape[2]):
            squares += np.square(rows[:, :, c] - (y == c))
    return _or_nan(squares.sum(axis=-1) / y.size, rows)


def accuracy(y: Truth, probability: Probability) -> Scores:
    """Share of samples whose predicted class is the true one.

    The predicted class is ``p > 0.5``, or the class of the largest probability, the lowest such class on ties. In
    [0, 1], higher is better; always naming the most frequent class scores its prevalence.

    Args:
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> accuracy(np.array([0, 1, 1, 0]), np.array([[0.2, 0.7, 0.5, 0.5]])).tolist()
        [0.75]

    Source:
        scikit-learn `accuracy_score`.
    """
    rows = _checked(y, probability)
    return _or_nan((_predicted(rows) == y).sum(axis=-1) / y.size, rows)


def balanced_accuracy(y: Truth, probability: Probability) -> Scores:
    """Mean over the classes of the share of their samples that is predicted right.

    ``1/K sum_c #{i: y_i = c, predicted c} / #{i: y_i = c}`` over the K classes that occur in `y`; the predicted class
    as in `accuracy`. In [0, 1], higher is better, chance is 1/K.

    Args:
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([[0.1, 0.2, 0.9, 0.8]])).round(4).tolist()
        [0.8333]

    Source:
        Brodersen et al. 2010, doi:10.1109/ICPR.2010.764; scikit-learn `balanced_accuracy_score`.
    """
    rows = _checked(y, probability)
    right = _predicted(rows) == y
    recalls = [right[:, y == c].sum(axis=-1) / np.count_nonzero(y == c) for c in np.unique(y)]
    return _or_nan(np.asarray(sum(recalls) / len(recalls)), rows)


def macro_auroc(y: Truth, probability: Probability) -> Scores:
    """Mean over the classes of the AUROC of this class against the rest.

    ``1/C sum_c auroc([y = c], p[:, :, c])``. In [0, 1], higher is better, chance is 0.5; NaN if a class is absent
    from `y`.

    Args:
        y: Labels 0..C-1.
        probability: [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> macro_auroc(np.array([0, 1, 2]), np.array([[[0.8, 0.1, 0.1], [0.1, 0.5, 0.4], [0.2, 0.6, 0.2]]])).tolist()
        [0.6666666666666666]

    Source:
        scikit-learn `roc_auc_score(multi_class="ovr", average="macro")`.
    """
    rows = _checked(y, probability, "multiclass")
    scores = [_auroc(y == c, np.ascontiguousarray(rows[:, :, c])) for c in range(rows.shape[2])]
    return _or_nan(np.asarray(sum(scores) / len(scores)), rows)


def macro_average_precision(y: Truth, probability: Probability) -> Scores:
    """Mean over the classes of the average precision of this class against the rest.

    ``1/C sum_c average_precision([y = c], p[:, :, c])``. In [0, 1], higher is better, chance is about 1/C whatever
    the prevalences, for they sum to 1; NaN if a class is absent from `y`.

    Args:
        y: Labels 0..C-1.
        probability: [V, N, C].

    Returns:
        One score a variant.

    Raises:
        ValueError: If the shapes disagree, or a label or probability is outside its range.

    Example:
        >>> p = np.array([[[0.8, 0.1, 0.1], [0.1, 0.5, 0.4], [0.2, 0.6, 0.2]]])
        >>> macro_average_precision(np.array([0, 1, 2]), p).round(4).tolist()
        [0.6667]

    Source:
        scikit-learn `average_precision_score(average="macro")`.
    """
    rows = _checked(y, probability, "multiclass")
    scores = [_average_precision(y == c, np.ascontiguousarray(rows[:, :, c])) for c in range(rows.shape[2])]
    return _or_nan(np.asarray(sum(scores) / len(scores)), rows)


@dataclass(frozen=True)
class Metric:
    """One score: how to compute it and how to read it.

    Args:
        name: Of the function, the command line and the files.
        function: From labels and probabilities to one score a variant.
        kinds: Of the tasks it applies to.
        higher_is_better: Direction.
        chance: What a model without skill reaches, in words.
    """

    name: str
    function: Callable[[Truth, Probability], Scores]
    kinds: tuple[Kind, ...]
    higher_is_better: bool
    chance: str


_BOTH: tuple[Kind, ...] = ("binary", "multiclass")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("auroc", auroc, ("binary",), True, "0.5"),
        Metric("average_precision", average_precision, ("binary",), True, "the prevalence"),
        Metric("macro_auroc", macro_auroc, ("multiclass",), True, "0.5"),
        Metric("macro_average_precision", macro_average_precision, ("multiclass",), True, "1 / number of classes"),
        Metric("balanced_accuracy", balanced_accuracy, _BOTH, True, "1 / number of classes"),
        Metric("accuracy", accuracy, _BOTH, True, "the prevalence of the most frequent class"),
        Metric("log_loss", log_loss, _BOTH, False, "the entropy of the prevalences, in nats"),
        Metric("brier", brier, _BOTH, False, "q (1 - q) for prevalence q; multiclass: 1 - sum of squared prevalences"),
    )
}


def metrics_for(kind: Kind) -> tuple[str, ...]:
    """Names of the metrics that apply to a task of this kind, in the order in which they are reported."""
    return tuple(metric.name for metric in METRICS.values() if kind in metric.kinds)


def default_metric(kind: Kind) -> str:
    """The metric that chooses the kept epoch unless the user names another."""
    return "auroc" if kind == "binary" else "balanced_accuracy"


def check(name: str, kind: Kind) -> None:
    """See that there is a metric of that name for tasks of this kind.

    Raises:
        SpecError: If not; the line names those that apply.
    """
    if name not in METRICS:
        raise SpecError(f"unknown metric `{name}`: a {kind} task has {', '.join(metrics_for(kind))}.")
    if kind not in METRICS[name].kinds:
        raise SpecError(f"metric `{name}` does not apply to a {kind} task, which has {', '.join(metrics_for(kind))}.")


def score(name: str, y: Truth, probability: Probability) -> Scores:
    """The metric of that name, for all variants; the number of axes of `probability` says the kind of task.

    Args:
        name: A key of `METRICS`.
        y: Labels 0..C-1.
        probability: [V, N] of class 1, or [V, N, C].

    Returns:
        One score a variant.

    Raises:
        SpecError: If there is no such metric, or it does not apply to this kind of task; the line names those that do.
        ValueError: If the shapes disagree, or a label or probability is outside its range.
    """
    check(name, "multiclass" if probability.ndim == 3 else "binary")
    return METRICS[name].function(y, probability)


def _checked(y: Truth, probability: Probability, only: Kind | None = None) -> Float64[np.ndarray, "V ..."]:
    """The probabilities as contiguous float64, or a ValueError that gives the shapes."""
    wanted = {"binary": "[V, N]", "multiclass": "[V, N, C]", None: "[V, N] or [V, N, C]"}[only]
    axes = {"binary": (2,), "multiclass": (3,), None: (2, 3)}[only]
    got = f"y has shape {y.shape} and probability {probability.shape}"
    if y.ndim != 1 or y.size == 0 or probability.ndim not in axes or probability.shape[1] != y.size:
        raise ValueError(f"{got}; wanted [N] and {wanted}, with the same N of at least 1.")
    classes = probability.shape[2] if probability.ndim == 3 else 2
    if classes < 2 or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"{got}, labels go from {y.min()} to {y.max()}; wanted 0..C-1 with C = {classes} at least 2.")
    outside = (probability < -_ROUNDING) | (probability > 1 + _ROUNDING)
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(f"{got}; probability{list(where)} is {probability[where]}, wanted a value in [0, 1].")
    return np.ascontiguousarray(probability, dtype=np.float64)


def _or_nan(scores: Scores, rows: Float64[np.ndarray, "V ..."]) -> Scores:
    """The scores, NaN where the variant has a NaN among its probabilities, used or not."""
    return np.where(np.isnan(rows).any(axis=tuple(range(1, rows.ndim))), np.nan, scores)


def _predicted(rows: Float64[np.ndarray, "V ..."]) -> Int64[np.ndarray, "V N"]:
    return (rows > 0.5).astype(np.int64) if rows.ndim == 2 else rows.argmax(axis=-1)


def _curve(
    positive: Bool[np.ndarray, "N"], rows: Float64[np.ndarray, "V N"]
) -> tuple[Int64[np.ndarray, "V N"], Int64[np.ndarray, "V N"]]:
    """True and false positives on a walk down each row, from the highest score to the lowest.

    A run of equal scores is one step, taken at its last place; the places before it repeat the counts of the step
    above, so that they add nothing to a sum of differences.
    """
    order = np.argsort(-rows, axis=-1)
    falling = np.take_along_axis(rows, order, axis=-1)
    ends = np.ones(rows.shape, dtype=bool)
    ends[:, :-1] = falling[:, 1:] != falling[:, :-1]
    true = np.cumsum(positive[order], axis=-1, dtype=np.int64)
    false = np.arange(1, positive.size + 1) - true
    # Counts only grow, so a running maximum over the ends carries the last step forward.
    true = np.maximum.accumulate(np.where(ends, true, 0), axis=-1)
    false = np.maximum.accumulate(np.where(ends, false, 0), axis=-1)
    return true, false


def _auroc(positive: Bool[np.ndarray, "N"], rows: Float64[np.ndarray, "V N"]) -> Scores:
    pairs = int(positive.sum()) * int((~positive).sum())
    if pairs == 0:
        return np.full(rows.shape[0], np.nan)
    true, false = _curve(positive, rows)
    # Trapezoids under the curve of counts, doubled: at most 2 N^2, so int64 holds them exactly.
    trapezoids = np.diff(false, axis=-1, prepend=0) * (2 * true - np.diff(true, axis=-1, prepend=0))
    return np.asarray(trapezoids.sum(axis=-1) / (2 * pairs))


def _average_precision(positive: Bool[np.ndarray, "N"], rows: Float64[np.ndarray, "V N"]) -> Scores:
    positives = int(positive.sum())
    if positives == 0:
        return np.full(rows.shape[0], np.nan)
    true, false = _curve(positive, rows)
    # Before the first step both counts are 0; so is the recall gained, and the divisor must not be.
    precision = true / np.maximum(true + false, 1)
    return np.asarray((np.diff(true, axis=-1, prepend=0) * precision).sum(axis=-1) / positives)
