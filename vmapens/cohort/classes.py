"""A column of labels as classes: whole numbers from 0, with a name each."""

from collections.abc import Sequence

import polars as pl

from vmapens.cohort.identity import first_five
from vmapens.cohort.schema import Task
from vmapens.errors import CohortError

MOST_CLASSES = 100
"""More different values are taken for something that is no label."""

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>")
"""What Python and R write where there is nothing. "None" is no such word: clinical scales have it as a class."""


def without_missing(values: pl.Series, given: Sequence[str] = ()) -> pl.Series:
    """The column with null for each text that is `MISSING` and none of the classes given; no other type changes."""
    if not isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum):
        return values
    text = values.cast(pl.String)
    return text.set(text.is_in([word for word in MISSING if word not in given]), None)


def code_classes(values: pl.Series, where: str, given: Sequence[str] | None = None) -> tuple[pl.Series, list[str]]:
    """The column as whole numbers, where it is text or truth values, and the names of its classes.

    Args:
        values: Numbers stay as they are, whatever they are. Text that is `MISSING` becomes null.
        where: For the message.
        given: The names of the classes, in their order; one that is `MISSING` is a class then. Default: the numbers up
            to the largest, false and true, or the sorted texts.

    Raises:
        CohortError: If the column is of a type that is no label, or a text is none of the classes or of too many.
    """
    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64), ["false", "true"] if given is None else list(given)
    if values.dtype.is_numeric():
        top = values.cast(pl.Float64).fill_nan(None).max()
        count = max(int(top) + 1 if isinstance(top, float) and 0 <= top < 1000 else 2, 2)
        return values, [str(number) for number in range(count)] if given is None else list(given)
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise CohortError(
            f"{where}: the column `{values.name}` is {values.dtype}, wanted numbers, truth values or text."
        )
    text = without_missing(values, given or ()).cast(pl.String)
    found = sorted(text.drop_nulls().unique().to_list())
    if given is None and len(found) > MOST_CLASSES:
        raise CohortError(
            f"{where}: the column `{values.name}` has {len(found)} different texts; if it is a label, name its "
            "`classes`."
        )
    classes = found if given is None else list(given)
    unknown = set(found) - set(classes)
    if unknown:
        raise CohortError(f"{where}: {len(unknown)} values are none of its classes ({first_five(unknown)}).")
    return text.replace_strict(classes, range(len(classes)), return_dtype=pl.Int64), classes


def problem_of_labels(values: pl.Series) -> str:
    """What keeps a column from being the labels of a task, as the end of a sentence about it; "" if nothing does."""
    kind = values.dtype
    known = without_missing(values).drop_nulls()
    if kind.is_numeric():
        known = known.cast(pl.Float64).drop_nans()
        broken = known.filter((known != known.floor()) | (known < 0))
        if len(broken):
            some = ", ".join(f"{value:g}" for value in broken.unique().sort()[:3])
            return (
                f"holds {len(broken)} numbers that are no class ({some}), wanted whole numbers from 0; there is no "
                "regression here, so cut such values into classes"
            )
        if (known >= MOST_CLASSES).any():
            return f"goes up to {known.sort()[-1]:g}, wanted classes from 0 to {MOST_CLASSES - 1}"
    elif not (kind in (pl.Boolean, pl.Null, pl.String) or isinstance(kind, pl.Categorical | pl.Enum)):
        return f"is {kind}, wanted whole numbers from 0, truth values or text"
    if (distinct := known.n_unique()) > MOST_CLASSES:
        return f"has {distinct} different values, wanted {MOST_CLASSES} classes at most"
    return f"has {distinct} different values in these stays, wanted two classes or more" if distinct < 2 else ""


def label_task(values: pl.Series, name: str, where: str, note: str) -> tuple[pl.Series, Task]:
    """The codes 0..C-1 of a column without a `problem_of_labels`, called by the task, and the task.

    Two classes make a binary task, more a multiclass one. Numbers that no stay has are classes
    too, and are said. A text that is `MISSING` is null among the codes.
    """
    codes, classes = code_classes(values, where)
    codes = codes.cast(pl.Float64).fill_nan(None).cast(pl.Int32).alias(name)
    absent = sorted(set(range(len(classes))) - set(codes.drop_nulls().to_list()))
    if absent:
        note += (
            f" No stay is of {len(absent)} of {len(classes)} classes ({first_five(classes[code] for code in absent)})."
        )
    return codes, Task(name, "binary" if len(classes) == 2 else "multiclass", tuple(classes), note)
