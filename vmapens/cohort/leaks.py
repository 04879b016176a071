"""What a model must not see, as far as the tables of a cohort can tell: looked for at every import.

A feature *is* the label if it tells the classes apart without one exception: each class has one value of its own, or
just one class has it measured. A feature that merely parts the classes of a binary task may be a very good one, so that
is said, not refused. What the tables cannot tell, a feature recorded after the outcome, say, is not found here.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from vmapens.cohort.identity import first_five
from vmapens.cohort.schema import CohortInfo, Task
from vmapens.errors import CohortError

LEAST = 20
LEAST_OF_A_CLASS = 5
"""Samples without exception that make a feature the label: in all, and in each of two classes."""
_COLUMNS_AT_ONCE = 16


def refuse_shared_groups(labels: pl.DataFrame, where: Path) -> None:
    """See that no patient is in two splits.

    Raises:
        CohortError: If the labels have `group` and `split`, and a group is in several splits.
    """
    if not {"group", "split"} <= set(labels.columns):
        return
    splits = labels.drop_nulls("group").group_by("group").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if len(splits):
        names = first_five(splits["group"].cast(pl.String).to_list())
        raise CohortError(
            f"{where} is not written: {len(splits)} patients are in several splits ({names}), so the test split would "
            "hold what was trained on; correct the splits of the source, or leave them out: vmapens draws its own."
        )


def warn_of_leaks(series: pl.LazyFrame, labels: pl.DataFrame, info: CohortInfo, where: Path) -> list[str]:
    """Look for features that give the label away, a few columns at a time.

    Args:
        series: `sample`, `step` and the features that change with time.
        labels: `sample`, the tasks, and the features that do not.
        info: Names features and tasks.
        where: For the message.

    Returns:
        A sentence for each feature and task that part the two classes without being the label.

    Raises:
        CohortError: If a feature is the label of a task, in at least `LEAST` samples; all such features are named.
    """
    found: list[str] = []
    warnings: list[str] = []
    tasks = [task for task in info.tasks if task.name in labels.columns]
    for name, low, high in _ranges(series, labels, [feature.name for feature in info.features]):
        for task in tasks:
            verdict = _verdict(low, high, labels[task.name], task)
            if verdict is None:
                continue
            refused, what = verdict
            (found if refused else warnings).append(f"`{name}` {what} `{task.name}`")
    if found:
        raise CohortError(
            f"{where} is not written: a model would only copy {'; '.join(found[:5])}{', ...' * (len(found) > 5)}; "
            "leave these features out of the source."
        )
    return [f"warning: {sentence}: see that it was known before the outcome." for sentence in warnings]


def _ranges(
    series: pl.LazyFrame, labels: pl.DataFrame, features: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each feature with the least and largest value of each sample, in the order of the labels; NaN = not measured."""
    static = [name for name in features if name in labels.columns]
    for name in static:
        yield name, _numbers(labels[name]), _numbers(labels[name])
    timed = [name for name in features if name not in labels.columns]
    for first in range(0, len(timed), _COLUMNS_AT_ONCE):
        names = timed[first : first + _COLUMNS_AT_ONCE]
        ends = {f"low {place}": pl.col(name).fill_nan(None).min() for place, name in enumerate(names)}
        ends |= {f"high {place}": pl.col(name).fill_nan(None).max() for place, name in enumerate(names)}
        of_samples = series.group_by("sample").agg(**ends).collect(engine="streaming")
        joined = labels.select("sample").join(of_samples, on="sample", how="left", maintain_order="left")
        for place, name in enumerate(names):
            yield name, _numbers(joined[f"low {place}"]), _numbers(joined[f"high {place}"])


def _numbers(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _verdict(low: np.ndarray, high: np.ndarray, label: pl.Series, task: Task) -> tuple[bool, str] | None:
    """Whether a feature is to be refused, and what it does to the task; None if it is harmless."""
    code = _numbers(label)
    measured = ~np.isnan(low)
    of_class = [code == number for number in range(len(task.classes))]
    with_it = [members & measured for members in of_class]
    sizes, counts = (np.array([mask.sum() for mask in masks]) for masks in (of_class, with_it))
    large = sizes >= LEAST_OF_A_CLASS
    if sizes.sum() < LEAST or large.sum() < 2:
        return None
    never, always = counts == 0, counts == sizes
    if (never | always).all() and (large & never).any() and (large & always).any():
        return True, "is measured in all samples of one class and in none of another of"
    if counts.sum() < LEAST or (counts >= LEAST_OF_A_CLASS).sum() < 2:
        return None
    spans = sorted((low[mask].min(), high[mask].max()) for mask in with_it if mask.any())
    if any(after[0] <= before[1] for before, after in pairwise(spans)):
        return None
    if all(least == most for least, most in spans):
        return True, f"is the label, in all {counts.sum()} samples in which it is measured:"
    return (False, "parts the classes without exception:") if task.kind == "binary" else None
