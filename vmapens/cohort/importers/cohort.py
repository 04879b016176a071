"""A cohort that is there already, or a mapping of Parquet files: to be written anew, with a task more, say."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from vmapens.cohort.grid import check_keys
from vmapens.cohort.tables import open_tables
from vmapens.cohort.write import Imported


def read_cohort(source: Path) -> Imported:
    """Read a cohort folder, or a TOML file that maps other Parquet files.

    Args:
        source: As `vmapens train` takes it.

    Returns:
        The same cohort, not written yet. What its own importer read and dropped stays in `info`.

    Raises:
        CohortError: If it cannot be read, or a (sample, step) is missing, repeated or outside the grid.
    """
    tables = open_tables(source)
    check_keys(tables)
    read = Counter(tables.info.read)
    if source.is_file():
        read.update({"rows of mapped series": tables.rows, "rows of mapped labels": tables.labels.height})
    info = replace(tables.info, read=read, dropped=Counter(tables.info.dropped))
    return Imported(info, tables.series, tables.labels)
