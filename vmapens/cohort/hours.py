"""Hours since the start of a stay, from the types in which tables keep them."""

import polars as pl

from vmapens.errors import CohortError

TICKS = {"ms": 3_600_000, "us": 3_600_000_000, "ns": 3_600_000_000_000}
"""An hour in each unit of a Polars duration (which has no seconds: it reads them as milliseconds)."""

_FEW = 3
"""So many different times may all be multiples of 60 hours by chance."""


def hours_of(column: str, table: pl.LazyFrame | pl.DataFrame, where: object) -> pl.Expr:
    """A column as hours, float64; null where it is null or NaN.

    Args:
        column: Its name. A duration, or numbers, which are hours already.
        table: Where it is.
        where: For the message.

    Raises:
        CohortError: If it is not there, or of another type.
    """
    kind = table.collect_schema().get(column)
    if isinstance(kind, pl.Duration):
        return pl.col(column).to_physical() / TICKS[kind.time_unit]
    if kind is not None and (kind.is_numeric() or kind == pl.Null):
        return pl.col(column).cast(pl.Float64).fill_nan(None)
    got = "is not there" if kind is None else f"is {kind}"
    advice = "; subtract the start of the stay, which gives a duration" if isinstance(kind, pl.Datetime) else ""
    raise CohortError(f"{where}: column `{column}` {got}, wanted a duration, or hours as numbers{advice}.")


def refuse_seconds(hours: pl.Series, where: object) -> None:
    """See that numbers are neither seconds nor minutes: DuckDB reads and writes an hourly duration as BIGINT seconds.

    Raises:
        CohortError: If all numbers are multiples of 3600, and not all are 0; or all are multiples of 60, and more than
            a few differ.
    """
    known = hours.drop_nulls()
    if known.is_empty() or (known == 0).all() or not (known % 60 == 0).all():
        return
    if (known % 3600 == 0).all():
        base, advice = 3600, "an hourly duration that DuckDB wrote in seconds; wanted {}: divide them by 3600"
    elif known.n_unique() > _FEW:
        base, advice = 60, "times in minutes; wanted {}: divide them by 60 (seconds by 3600)"
    else:
        return
    raise CohortError(
        f"{where}: all of column `{hours.name}` are multiples of {base}, up to {known.sort()[-1]:g}, as of "
        f"{advice.format('a duration, or hours as numbers')}."
    )
