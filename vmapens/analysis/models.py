"""The variants as models: their scores, how far a score can be relied on, other runs, single variants, weights.

Axes: V variants, N stays.
"""

from typing import Any

import numpy as np
import polars as pl
import scipy.cluster.hierarchy
from jaxtyping import Float, Float64, Int

from vmapens.analysis.interval import Interval
from vmapens.analysis.scores import compare, rank_correlation, running_mean
from vmapens.analysis.subject import Subject
from vmapens.analysis.tables import table
from vmapens.ensemble.block import OK
from vmapens.ensemble.stack import Stack

COMPARED = {
    "binary": ("auroc", "average_precision", "log_loss", "brier"),
    "multiclass": ("balanced_accuracy", "macro_auroc", "log_loss"),
}
"""Scores in which runs are compared, by kind of task."""
_WEIGHTS = "attention.attention_dense.weight"
_EPS = float(np.finfo(np.float32).eps)


def scores_table(subject: Subject) -> pl.DataFrame:
    """The table `scores`: every variant's scores, failed ones marked, and their running means over the good ones."""
    status = subject.run.variants.select("variant", "status")
    scores = subject.run.metrics.select("variant", "split", "metric", "value").join(status, on="variant")
    parts = []
    for _, own in scores.sort("variant").group_by("split", "metric", maintain_order=True):
        good = np.where(own["status"] == OK, own["value"].to_numpy(), np.nan)
        parts.append(own.with_columns(running_mean=pl.Series(running_mean(good))))
    return table("scores", pl.concat(parts).sort("split", "metric", "variant").to_dict(as_series=False))


def reliability_table(subject: Subject) -> pl.DataFrame:
    """The table `reliability`: does a variant's place on the validation split say anything about the test split?"""
    scores = subject.run.metrics.filter(pl.col("variant").is_in(subject.variants.tolist())).sort("variant")
    rows = []
    for metric in COMPARED[subject.cohort.task.kind]:
        valid, test = (scores.filter(split=split, metric=metric)["value"].to_numpy() for split in ("valid", "test"))
        correlation, low, high = rank_correlation(valid, test)
        if subject.is_crossed:  # variants that share a seed are no independent draws
            low = high = np.nan
        rows.append({"metric": metric, "variants": len(valid), "correlation": correlation, "low": low, "high": high})
    return table("reliability", rows)


def controls_table(subjects: list[Subject], *, seed: int) -> pl.DataFrame:
    """The table `controls`: every run's scores on the test split, and their differences to the first one's.

    Runs of the same stays; the bootstrap draws the same samples of stays for all, whole patients at a time.
    """
    found = [subject.predictions("test") for subject in subjects]
    rows, y, _ = found[0]
    cohort = subjects[0].cohort
    names = COMPARED[cohort.task.kind]
    compared = compare(y, [entry[2] for entry in found], names=names, clusters=cohort.patient[rows], seed=seed)
    found_rows = []
    for metric, comparisons in compared.items():
        for subject, own in zip(subjects, comparisons, strict=True):
            mean, difference = own.mean, own.difference if subject is not subjects[0] else Interval(*[np.nan] * 3)
            found_rows.append(
                {
                    "run": subject.name,
                    "form": subject.form + (", crossed" if subject.is_crossed else ""),
                    "variants": len(subject.variants),
                    "split": "test",
                }
                | {"metric": metric, "mean": mean.estimate, "sd": own.sd, "low": mean.low, "high": mean.high}
                | {"difference": difference.estimate, "difference_low": difference.low}
                | {"difference_high": difference.high}
            )
    return table("controls", found_rows)


def losses_of(y: Int[np.ndarray, "N"], probability: Float[np.ndarray, "V N *C"]) -> Float64[np.ndarray, "V N"]:
    """Log loss of each stay under each variant, in nats; probabilities are clipped as in `metrics.log_loss`."""
    of_true = (
        np.where(y == 1, probability, 1 - probability)
        if probability.ndim == 2
        else probability[:, np.arange(len(y)), y]
    )
    return -np.log(np.clip(of_true.astype(np.float64), _EPS, 1 - _EPS))


def chosen_table(
    subject: Subject, valid_loss: Float64[np.ndarray, "V"], agreement: Float64[np.ndarray, "V"] | None
) -> pl.DataFrame:
    """The table `chosen`: the best, the median and the worst variant by validation loss, and the most different one.

    Args:
        subject: The run.
        valid_loss: Of each good variant.
        agreement: Mean rank correlation of each with the others; None where there is none.
    """
    by_loss = np.argsort(valid_loss, kind="stable")
    places = {"best": by_loss[0], "median": by_loss[len(by_loss) // 2], "worst": by_loss[-1]}
    if agreement is not None:
        places["most different"] = np.argmin(agreement)
    rows = [
        {"role": role, "variant": subject.variants[place], "valid_loss": valid_loss[place]}
        | {"agreement": None if agreement is None else agreement[place]}
        for role, place in places.items()
    ]
    return table("chosen", rows)


def weights_table(stack: Stack, best: int) -> pl.DataFrame:
    """The table `weights`: the attention layer's matrix, and an order in which like rows and columns stand together.

    Ward's clustering of the mean's rows, and of its columns, by Euclidean distance.

    Args:
        stack: The good variants.
        best: Place of the best one among them.
    """
    views = stack.views()
    if _WEIGHTS not in views or min(views[_WEIGHTS].shape[1:]) < 2:
        return table("weights", [])
    matrices = views[_WEIGHTS].cpu().numpy()
    mean, sd = matrices.mean(axis=0, dtype=np.float64), matrices.std(axis=0, dtype=np.float64)
    places = [np.argsort(_ward_order(matrix)) for matrix in (mean, mean.T)]
    row, column = (index.reshape(-1) for index in np.indices(mean.shape))
    columns: dict[str, Any] = {"row": row, "column": column, "mean": mean.reshape(-1), "sd": sd.reshape(-1)}
    columns |= {"best": matrices[best].reshape(-1), "row_place": places[0][row], "column_place": places[1][column]}
    return table("weights", columns)


def _ward_order(matrix: Float64[np.ndarray, "n m"]) -> Int[np.ndarray, "n"]:
    return scipy.cluster.hierarchy.leaves_list(scipy.cluster.hierarchy.linkage(matrix, "ward"))
