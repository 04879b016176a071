"""Parquet files, opened with errors that say which file and what is wrong with it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from vmapens.errors import CohortError, first_line

_MAGIC = b"PAR1"


def scan(files: Sequence[Path]) -> pl.LazyFrame:
    """A lazy frame of the rows of all files; nothing but their schema is read.

    Raises:
        CohortError: If a file is missing, is not Parquet or was cut short, or the files differ in their columns.
    """
    for path in files:
        _check(path)
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    lazy = pl.scan_parquet(list(files), glob=False)
    try:
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CohortError(f"{where} cannot be read as Parquet: {first_line(error)}; write it again.") from error
    return lazy


def collect(lazy: pl.LazyFrame, where: Path) -> pl.DataFrame:
    """The rows of a lazy frame, in no promised order.

    Raises:
        CohortError: If the pages of a file cannot be read; `where` is named in the line.
    """
    try:
        return lazy.collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CohortError(f"{where}: the tables cannot be read: {first_line(error)}; write them again.") from error


def number_columns(frame: pl.LazyFrame | pl.DataFrame) -> set[str]:
    """Columns that can be a feature: numbers of any kind, truth values, and nothing but nulls."""
    return {name for name, kind in frame.collect_schema().items() if kind.is_numeric() or kind in (pl.Boolean, pl.Null)}


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the bytes of the files, in the order given; names and places do not matter.

    Any changed cell changes it. So does the same data written anew by another program: the fingerprint says "these
    files", not "these values". It reads at the speed of the disk (about 1 GB/s), less than decoding the same files.
    """
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise CohortError(f"{path} cannot be read: {error.strerror}.") from error
    return total.hexdigest()


def _check(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(max(size - 4, 0))
            tail = file.read(4)
    except FileNotFoundError:
        raise CohortError(f"{path} does not exist.") from None
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}.") from error
    if head != _MAGIC:
        raise CohortError(f"{path} is not a Parquet file: it starts with {head!r}, wanted {_MAGIC!r}.")
    if tail != _MAGIC or size < 12:
        raise CohortError(f"{path} is a Parquet file cut short at {size} bytes (its footer is missing); copy it again.")
