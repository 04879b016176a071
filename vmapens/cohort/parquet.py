"""Parquet files, opened with errors that say which file and what is wrong with it."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from vmapens.errors import CohortError, first_line
from vmapens.machine import free_memory

_MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 16
_ROW_BYTES = 16  # at least, of the keys of a row
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What Polars raises for pages that it cannot read; a panic is no `Exception`."""


def scan(files: Sequence[Path]) -> pl.LazyFrame:
    """A lazy frame of the rows of all files; each was read once to its end, and nothing of it is kept but the schema.

    Raises:
        CohortError: If a file is missing, is not Parquet, was cut short or damaged, or has more rows than fit in
            memory, or the files differ in their columns, or a column has a name that is a pattern.
    """
    for path in files:
        _check_ends(path)
        _check_pages(path)
    where = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    lazy = pl.scan_parquet(list(files), glob=False)
    try:
        columns = lazy.collect_schema().names()
    except UNREADABLE as error:
        raise CohortError(f"{where} cannot be read as Parquet: {first_line(error)}; write it again.") from error
    if patterns := [name for name in columns if is_pattern(name)]:
        raise CohortError(f"{where}: a column is called `{patterns[0]}`, which Polars reads as a pattern; rename it.")
    return lazy


def is_pattern(name: str) -> bool:
    """Whether Polars takes the name of a column for a pattern of names, everywhere."""
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def is_index(name: str) -> bool:
    """Whether a column is called as an index without a name, from pandas or R: it numbers rows and says nothing."""
    return re.fullmatch(r"__index_level_\d+__|Unnamed: \d+|\s*", name) is not None


def count_rows(files: Sequence[Path]) -> int:
    """Rows of all files that `scan` has opened, as their footers say."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def collect(lazy: pl.LazyFrame, where: Path) -> pl.DataFrame:
    """The rows of a lazy frame, in no promised order.

    Raises:
        CohortError: If the pages of a file cannot be read; `where` is named in the line.
    """
    try:
        return lazy.collect()
    except UNREADABLE as error:
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


def _check_pages(path: Path) -> None:
    # Polars takes pages as they come: of damaged ones it may panic, or end the process when it asks for memory.
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if rows * _ROW_BYTES > free_memory():
                raise CohortError(f"{path} has {rows:,} rows, more than fit in memory; is it the right file?")
            for name in file.schema_arrow.names:
                for _ in file.iter_batches(_BATCH_ROWS, columns=[name]):
                    pass
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as Parquet: {first_line(error)}; write it again.") from error


def _check_ends(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CohortError(f"{path} is no file: wanted Parquet.")
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
