"""Rows of the series onto the dense grid, a few columns at a time.

Each batch of columns brings its own sample and step, and every value is put where those say. So neither the order of
rows in the files nor the order in which polars hands them over can matter, and memory beyond the tensor stays small.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float32

from vmapens.cohort.identity import first_five
from vmapens.cohort.parquet import collect
from vmapens.cohort.tables import Tables
from vmapens.errors import CohortError

COLUMNS_AT_ONCE = 16
"""Columns read at once: 16 x 4 bytes are one cache line of the tensor, and 0.07 of its size at 231 features."""


def check_keys(tables: Tables) -> list[str]:
    """Look at `sample` and `step` of every row of the series.

    Returns:
        The ids that occur, as text, in no particular order.

    Raises:
        CohortError: If an id is null, a step is null or outside the grid, or a (sample, step) occurs twice.
    """
    last = tables.info.steps - 1
    keys = collect(tables.pick(()), tables.source)
    nulls = keys["sample"].null_count()
    if nulls:
        raise CohortError(f"{tables.source}: {nulls} rows of the series have no `sample`; give each row its id.")
    outside = keys.filter(~pl.col("step").is_between(0, last).fill_null(value=False))
    if len(outside):
        least, most = outside.select(least=pl.col("step").min(), most=pl.col("step").max()).row(0)
        span = f"from {least} to {most}"
        raise CohortError(
            f"{tables.source}: {len(outside)} rows of the series have a step outside 0 to {last} ({span}; samples "
            f'{_named(outside["sample"])}); correct or remove them, or map the files with outside = "drop".'
        )
    if keys.n_unique(["sample", "step"]) < len(keys):
        twice = keys.filter(pl.struct("sample", "step").is_duplicated())
        raise CohortError(
            f"{tables.source}: {twice.n_unique()} pairs of sample and step have several rows in the series (samples "
            f"{_named(twice['sample'])}), wanted one each; merge them, or map the files with a time in hours."
        )
    return keys["sample"].unique().cast(pl.String).to_list()


def fill_grid(tables: Tables, samples: Sequence[str], x: Float32[np.ndarray, "N T F"]) -> None:
    """Write every measured value of some samples into `x`, which is NaN everywhere.

    Args:
        tables: Its keys passed `check_keys`.
        samples: Their place here is their row in `x`; other samples of the tables are left out.
        x: Changed in place. A static feature fills all steps of its sample.

    Raises:
        CohortError: If a value is infinite in float32; all such features are named.
    """
    row = pl.col("sample").cast(pl.String).cast(pl.Enum(samples), strict=False).to_physical().cast(pl.Int64)
    infinite: dict[str, int] = {}
    static = set(tables.static)
    names = [feature.name for feature in tables.info.features]
    for columns in _runs([name in static for name in names]):
        wanted = names[columns]
        # The prefix keeps a feature that is called "row" apart.
        values = [pl.col(name).cast(pl.Float32).alias(f"value {name}") for name in wanted]
        is_static = wanted[0] in static
        if is_static:
            found = tables.labels.lazy().select(row.alias("row"), *values)
        else:
            found = tables.pick(wanted).select(row.alias("row"), "step", *values)
        frame = collect(found.filter(pl.col("row").is_not_null()), tables.source)
        block = frame.drop("row", "step", strict=False).to_numpy()
        if is_static:
            x[frame["row"].to_numpy(), :, columns] = block[:, None, :]
        else:
            x[frame["row"].to_numpy(), frame["step"].to_numpy(), columns] = block
        counts = np.isinf(block).sum(axis=0)
        infinite |= {name: int(count) for name, count in zip(wanted, counts, strict=True) if count}
        del frame, block  # before the next columns are read: a third of what reading takes
    if infinite:
        each = [f"{name}: {count}" for name, count in infinite.items()]
        raise CohortError(
            f"{tables.source}: {len(infinite)} features hold values that are infinite or beyond float32 "
            f"({first_five(each)}), wanted finite numbers; make them null if they were not measured."
        )


def _runs(static: Sequence[bool]) -> Iterator[slice]:
    """Neighbouring columns of one kind, at most `COLUMNS_AT_ONCE` at once."""
    start = 0
    for stop in range(1, len(static) + 1):
        if stop == len(static) or static[stop] != static[start] or stop - start == COLUMNS_AT_ONCE:
            yield slice(start, stop)
            start = stop


def _named(samples: pl.Series) -> str:
    return first_five(samples.cast(pl.String).unique().to_list())
