"""What a model must not see, as far as the tables of a cohort can tell: looked for at every import.

Of each feature three things are looked at in each sample: its least value, its largest one (a flag that rises in the
last hour is told by that), and whether it was measured at all. A feature *is* the label if one of its values tells the
classes, or one class from the others, without exception and by a value of its own; it is refused. What tells a class
nearly alone may be a very good feature, or one that came after the outcome: that is said. A feature that was recorded
after the outcome but tells it less well is not found here.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64
from scipy.stats import rankdata

from vmapens.cohort.identity import first_five
from vmapens.cohort.schema import CohortInfo, Task
from vmapens.cohort.tables import class_codes, groups_in_several_splits
from vmapens.errors import CohortError

LEAST = 20
LEAST_OF_A_CLASS = 5
"""Samples that it takes to judge a feature: in all, and in each of two classes."""
NEARLY = 0.99
"""AUROC of one class against the others from which on a feature is said to tell it nearly alone."""
_CELLS_AT_ONCE = 1 << 28

_Values = Float64[np.ndarray, "N"]


def refuse_shared_groups(labels: pl.DataFrame, where: object) -> None:
    """See that no patient is in two splits.

    Raises:
        CohortError: If the labels have `group` and `split`, and a group is in several splits.
    """
    if not {"group", "split"} <= set(labels.columns):
        return
    if apart := groups_in_several_splits(labels):
        raise CohortError(
            f"{where} is not written: {len(apart)} patients are in several splits ({first_five(apart)}), so the test "
            "split would hold what was trained on; correct the splits of the source, or leave them out: vmapens draws "
            "its own."
        )


def warn_of_leaks(series: pl.LazyFrame, labels: pl.DataFrame, info: CohortInfo, where: object) -> list[str]:
    """Look at every feature, some at a time.

    Args:
        series: `sample`, `step` and the features that change with time.
        labels: `sample`, the tasks, and the features that do not.
        info: Names features and tasks.
        where: For the message.

    Returns:
        A warning for each feature that tells a class nearly alone.

    Raises:
        CohortError: If features are the label of a task, or hold values that are infinite in float32; all are named.
    """
    infinite: list[str] = []
    refused: list[str] = []
    warnings: list[str] = []
    codes = {task: class_codes(labels, task, where).fill_null(-1).to_numpy() for task in info.tasks}
    for name, low, high in _ranges(series, labels, [feature.name for feature in info.features]):
        if np.isinf(low).any() or np.isinf(high).any():
            infinite.append(name)
            continue
        values = {f"`{name}`": low} if np.array_equal(low, high, equal_nan=True) else {}
        values = values or {f"the largest value of `{name}`": high, f"the least value of `{name}`": low}
        for task, code in codes.items():
            known = code >= 0
            if found := _is_label({what: value[known] for what, value in values.items()}, code[known], task):
                refused.append(found)
                continue
            told = values | {f"whether `{name}` was measured": 1.0 * ~np.isnan(low)}
            best = max((_tells(value[known], code[known], what) for what, value in told.items()), default=_NOTHING)
            if best.auroc >= NEARLY:
                warnings.append(
                    f"warning: {best.what} tells `{task.classes[best.number]}` of `{task.name}` nearly alone (AUROC "
                    f"{best.auroc:.3f}): see that it was known before the outcome, or leave it out."
                )
    if infinite:
        raise CohortError(
            f"{where} is not written: {len(infinite)} features hold values that are infinite or beyond float32 "
            f"({first_five(infinite)}), wanted finite numbers; make them missing in the source, or leave them out "
            "(--without)."
        )
    if refused:
        raise CohortError(
            f"{where} is not written, for a model would only copy: {'; '.join(refused[:5])}"
            f"{'; ...' * (len(refused) > 5)}. Leave such features out (--without)."
        )
    return warnings


class _Told(NamedTuple):
    auroc: float
    what: str
    number: int


_NOTHING = _Told(0.5, "", 0)


def _ranges(
    series: pl.LazyFrame, labels: pl.DataFrame, features: Sequence[str]
) -> Iterator[tuple[str, _Values, _Values]]:
    """Each feature with the least and largest value of each sample, in the order of the labels; NaN = not measured."""
    for name in features:
        if name in labels.columns:
            yield name, _numbers(labels[name]), _numbers(labels[name])
    timed = [name for name in features if name not in labels.columns]
    rows = int(series.select(pl.len()).collect().item())
    at_once = max(1, _CELLS_AT_ONCE // max(1, rows))
    for first in range(0, len(timed), at_once):
        names = timed[first : first + at_once]
        ends = {f"low {place}": pl.col(name).fill_nan(None).min() for place, name in enumerate(names)}
        ends |= {f"high {place}": pl.col(name).fill_nan(None).max() for place, name in enumerate(names)}
        of_samples = series.group_by("sample").agg(**ends).collect(engine="streaming")
        joined = labels.select("sample").join(of_samples, on="sample", how="left", maintain_order="left")
        for place, name in enumerate(names):
            yield name, _numbers(joined[f"low {place}"]), _numbers(joined[f"high {place}"])


def _numbers(column: pl.Series) -> _Values:
    return column.cast(pl.Float32).cast(pl.Float64).fill_null(np.nan).to_numpy()


def _is_label(values: dict[str, _Values], code: Int64[np.ndarray, "S"], task: Task) -> str:
    """What to say of a feature that is the label; "" if it is not."""
    for what, value in values.items():
        measured = ~np.isnan(value)
        count = np.bincount(code[measured], minlength=len(task.classes))
        if count.sum() < LEAST or (count >= LEAST_OF_A_CLASS).sum() < 2:
            continue
        classes = np.flatnonzero(count)
        order = np.argsort(code[measured], kind="stable")
        starts = np.cumsum(count[classes]) - count[classes]
        least, most = (end.reduceat(value[measured][order], starts) for end in (np.minimum, np.maximum))
        if (least == most).all() and len(set(least)) == len(classes):
            return f"{what}, which is the label `{task.name}` in all {count.sum()} samples in which it is measured"
        for place, number in enumerate(classes):
            low, high = np.delete(least, place), np.delete(most, place)
            of_its_own = least[place] == most[place] != low.min() == high.max()
            if of_its_own and min(count[number], count.sum() - count[number]) >= LEAST_OF_A_CLASS:
                return f"{what}, which tells `{task.classes[number]}` of `{task.name}` in all {count.sum()} samples"
    return ""


def _tells(value: _Values, code: Int64[np.ndarray, "S"], what: str) -> _Told:
    """The class that a value tells best from all others, and how well: an AUROC from 0.5 to 1."""
    measured = ~np.isnan(value)
    code = code[measured]
    count = np.bincount(code)
    others = count.sum() - count
    large = np.minimum(count, others) >= LEAST_OF_A_CLASS
    if count.sum() < LEAST or not large.any():
        return _Told(0.5, what, 0)
    above = np.bincount(code, weights=rankdata(value[measured])) - count * (count + 1) / 2
    auroc = np.where(large, above / np.maximum(count * others, 1), 0.5)
    auroc = np.maximum(auroc, 1 - auroc)
    best = len(auroc) - 1 - int(np.argmax(auroc[::-1]))  # of a binary task class 1
    return _Told(float(auroc[best]), what, best)
