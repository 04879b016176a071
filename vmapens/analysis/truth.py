"""Does an attribution find the cells that caused the outcome? On the synthetic cohort, where they are known.

Rules:

- The right cells are those of `truth.parquet`: one feature in a window of time, by the patient's stratum.
- A cell after the window that carries a causal cell's value forward (same feature, not measured again so far) shows
  the model the very value that caused the outcome: it is neither hit nor miss, and is left out.
- A cell that is only correlated with the cause (the same feature before the window, a feature that shares a factor,
  the temperature that gives the stratum away) counts as a miss, though a model may use it well: an average precision
  is a lower bound of how right an attribution is.
- The cause acts in a stay whose true probability of the outcome is above the prevalence. In the others it is the
  absence of a cause that makes the outcome, and there is nothing to find.

Axes: V variants, N stays, T steps, F features, n cells, K causal cells of all stays.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float64, Int64

from vmapens.axes import Observed
from vmapens.cohort.identity import first_five, sample_order
from vmapens.cohort.load import Cohort
from vmapens.cohort.synthetic import BAYES_FILE, TASK_NAME, TRUTH_FILE, bayes_auroc
from vmapens.ensemble.metrics import average_precision
from vmapens.errors import CohortError


def average_precision_of_cells(
    scores: Float[np.ndarray, "V n"], causal: Bool[np.ndarray, "n"]
) -> Float64[np.ndarray, "V"]:
    """Area under the precision-recall curve of finding the causal cells, for each variant; ties enter together.

    `ensemble.metrics.average_precision` of the scores' ranks, so scores need no range. In [0, 1], higher is better,
    chance is the prevalence (a little above it for few cells), which a constant map has exactly; NaN if no cell is
    causal, or for a variant with a NaN among its scores.

    Args:
        scores: Larger for cells that are more important.
        causal: Which ones are.

    >>> scores = np.array([[3.0, -1.0, 2.0], [7.0, 7.0, 7.0]])
    >>> average_precision_of_cells(scores, np.array([True, False, False])).round(3)
    array([1.   , 0.333])

    Source:
        scikit-learn `average_precision_score`.
    """
    ranks = np.stack([np.unique(row, return_inverse=True)[1] for row in scores])
    spread = np.where(np.isnan(scores), np.nan, ranks / scores.shape[1])
    return average_precision(causal.astype(np.int64), spread)


def chance_average_precision(causal: int, cells: int) -> float:
    """Expected average precision when all orders of the cells are equally likely.

    ``(H_n + (m - 1) / (n - 1) (n - H_n)) / n`` with m causal cells of n and H_n the n-th harmonic number: above the
    prevalence m / n, which it nears for many cells, since a causal cell may come first by luck.

    Args:
        causal: m.
        cells: n.

    Returns:
        NaN if no cell is causal.

    >>> round(chance_average_precision(1, 2), 3)  # 1 or 1/2
    0.75
    """
    if causal == 0:
        return float("nan")
    if cells == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, cells + 1)).sum())
    return (harmonic + (causal - 1) / (cells - 1) * (cells - harmonic)) / cells


@dataclass(frozen=True)
class PlantedTruth:
    """What caused the outcome of each stay of a synthetic cohort.

    Args:
        cells: Row of the cohort, step and feature of each causal cell, sorted.
        observed: Of the cohort.
        probability: The true probability of the outcome, of each row.
        prevalence: Share of the cohort's stays that have the outcome.
        bayes_auroc: AUROC of the true probabilities, expected over outcomes: what no model can beat on average.
    """

    cells: Int64[np.ndarray, "K 3"]
    observed: Observed
    probability: Float64[np.ndarray, "N"]
    prevalence: float
    bayes_auroc: float

    @property
    def acts(self) -> Bool[np.ndarray, "N"]:
        """In which stays the cause acts: their true probability is above the prevalence."""
        return self.probability > self.prevalence

    def causal(self, row: int) -> Bool[np.ndarray, "T F"]:
        """The causal cells of a stay."""
        first, last = np.searchsorted(self.cells[:, 0], [row, row + 1])
        mask = np.zeros(self.observed.shape[1:], dtype=bool)
        mask[tuple(self.cells[first:last, 1:].T)] = True
        return mask

    def left_out(self, row: int) -> Bool[np.ndarray, "T F"]:
        """The cells of a stay that only carry a causal cell's value forward."""
        causal, observed = self.causal(row), self.observed[row].numpy()
        steps = np.arange(len(observed))[:, None]
        source = np.maximum.accumulate(np.where(observed, steps, 0), axis=0)  # step of the value that a cell shows
        left_out: np.ndarray = np.take_along_axis(causal, source, axis=0) & ~causal  # causal ones are always measured
        return left_out

    def chance(self, row: int) -> float:
        """Expected average precision of a random order of the cells of a stay that count; NaN if none is causal."""
        counted = ~self.left_out(row)
        return chance_average_precision(int(self.causal(row)[counted].sum()), int(counted.sum()))

    def average_precision(self, row: int, maps: Float[np.ndarray, "V t f"]) -> Float64[np.ndarray, "V"]:
        """Average precision of finding the causal cells of a stay, for each variant, by the rules of this module.

        Args:
            row: The stay.
            maps: Importance of its cells, [V, T, F]; with 1 for T or F, all cells of a feature or step are tied.
        """
        counted = ~self.left_out(row)
        scores = np.broadcast_to(maps, (len(maps), *counted.shape))[:, counted]
        return average_precision_of_cells(scores, self.causal(row)[counted])


def planted_truth(folder: Path, cohort: Cohort) -> PlantedTruth | None:
    """Read what caused each stay's outcome.

    Args:
        folder: Of the cohort's files.
        cohort: What was loaded from there. Indicators are never causal. Without sample ids, rows are told apart by
            their order.

    Returns:
        None if the cohort has no such files, the task is not the one that the cells cause, or it was loaded without
        sample ids and without some of its stays, so that nobody can tell which rows are which.

    Raises:
        CohortError: If the files are not those of this cohort.
    """
    truth_path, bayes_path = folder / TRUTH_FILE, folder / BAYES_FILE
    if not (truth_path.is_file() and bayes_path.is_file()) or cohort.task.name != TASK_NAME:
        return None
    truth, bayes = pl.read_parquet(truth_path), pl.read_parquet(bayes_path)
    ids = cohort.samples
    if not cohort.spec.sample_ids:
        if len(bayes) != len(ids):
            return None
        known = bayes["sample"].to_list()
        ids = tuple(known[row] for row in sample_order(known))
    features = cohort.features["feature"].to_list()
    foreign = set(ids) - set(bayes["sample"]) | set(truth["feature"]) - set(features)
    if foreign or truth["step"].max() >= cohort.x.shape[1]:  # type: ignore[operator]
        raise CohortError(
            f"{folder}: {TRUTH_FILE} and {BAYES_FILE} are of another cohort (they do not fit {first_five(foreign)} or "
            f"the {cohort.x.shape[1]} steps): make the cohort again, or remove them."
        )
    rows = pl.DataFrame({"sample": ids, "row": np.arange(len(ids))})
    columns = pl.DataFrame({"feature": features, "column": np.arange(len(features))})
    cells = truth.join(rows, on="sample").join(columns, on="feature").select("row", "step", "column")
    probability = rows.join(bayes, on="sample", how="left").sort("row")["probability"].to_numpy()
    return PlantedTruth(
        cells=cells.cast(pl.Int64).sort("row", "step", "column").to_numpy(),
        observed=cohort.observed,
        probability=probability,
        prevalence=float(cohort.y.double().mean()),
        bayes_auroc=bayes_auroc(bayes["probability"].to_numpy()),
    )
