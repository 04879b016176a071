"""A cohort that is there already, or a mapping of Parquet files: to be written anew, with a task more, say."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from vmapens.cohort.grid import check_keys
from vmapens.cohort.parquet import collect
from vmapens.cohort.tables import Tables, open_tables
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError
from vmapens.listener import Listener, Silence

_CELLS_AT_ONCE = 1 << 25


def read_cohort(source: Path, *, drop_split: bool = False, listener: Listener | None = None) -> Imported:
    """Read a cohort folder, or a TOML file that maps other Parquet files.

    Args:
        source: As `vmapens train` takes it.
        drop_split: Leave the split out that it brings, so that training draws one.
        listener: Hears of the samples.

    Returns:
        The same cohort, not written yet; the series is a stream. What its own importer read and dropped stays in
        `info`. Samples without labels are left out, samples without a series kept, missing throughout.

    Raises:
        CohortError: If it cannot be read, a (sample, step) is missing, repeated or outside the grid, or there is no
            split to drop.
    """
    tables = open_tables(source)
    check_keys(tables)
    info = replace(tables.info, read=Counter(tables.info.read), dropped=Counter(tables.info.dropped))
    if source.is_file():
        info.read.update({"rows of mapped series": tables.rows, "rows of mapped labels": tables.labels.height})
    labels = tables.labels
    if drop_split:
        if "split" not in labels.columns:
            raise CohortError(f"{source} brings no split: there is none to drop.")
        labels = labels.drop("split")
        info = replace(info, notes=(*info.notes, "The split of the source was dropped: training draws one."))
    return Imported(info, _series(tables, info.dropped, listener or Silence()), labels)


def _series(tables: Tables, dropped: dict[str, int], listener: Listener) -> Iterator[pl.DataFrame]:
    """The rows of some samples after another, samples ascending."""
    static = set(tables.static)
    features = [feature.name for feature in tables.info.features if feature.name not in static]
    keys = collect(tables.pick(()).select("sample"), tables.source)
    labelled, timed = tables.labels.select("sample").sort("sample"), keys.unique()
    dropped["samples of the series without a row of labels: left out"] = timed.join(labelled, "sample", "anti").height
    dropped["samples without a row of the series: kept, missing throughout"] = labelled.join(
        timed, "sample", "anti"
    ).height
    inside = tables.rows - sum(tables.info.dropped.values()) if tables.source.is_file() else 0
    if tables.layout == "timed":
        what = "rows of mapped series followed by another of their step: the last measured values are kept"
        dropped[what] = inside - keys.height
    elif tables.layout == "long":
        what = "rows of mapped series without a value, or followed by another of their step and feature: left out"
        dropped[what] = inside - sum(
            collect(tables.pick(features).select(pl.col(features).count()), tables.source).row(0)
        )
    at_once = max(1, _CELLS_AT_ONCE // (tables.info.steps * max(1, len(features))))
    listener.start(labelled.height)
    for some in labelled.iter_slices(at_once):
        between = pl.col("sample").is_between(pl.lit(some["sample"][0]), pl.lit(some["sample"][-1]))
        frame = collect(tables.pick(features).filter(between), tables.source).join(some, "sample", "semi")
        missing = some.join(frame, "sample", "anti").with_columns(step=pl.lit(0, pl.Int32))
        yield pl.concat([frame, missing], how="diagonal")
        listener.advance(some.height)
