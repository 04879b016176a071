"""Write a cohort folder: whatever its source, the tables are checked, sorted and written here.

A series may come as one frame, or as a stream of frames that are never in memory together. What a model must not see is
looked for in what was written, before `cohort.json`, the last file, makes a cohort of it.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from vmapens.atomic import atomic_path, write_text
from vmapens.cohort.identity import first_five
from vmapens.cohort.leaks import refuse_shared_groups, warn_of_leaks
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE, CohortInfo, problem_of
from vmapens.cohort.tables import class_codes
from vmapens.errors import CohortError

_ROW_GROUP = 1 << 18  # fixed: Polars would choose it by its number of threads, and the bytes with it

Rows = pl.DataFrame | pl.LazyFrame | Iterable[pl.DataFrame]
"""The series: one frame in any order, or a stream of frames whose samples ascend from each to the next."""


class Imported(NamedTuple):
    """What an importer makes of a source: a cohort that is not written yet.

    Args:
        info: Features and tasks name the columns below. A stream may still count in `info.read` and `info.dropped`.
        series: Columns `sample`, `step` and the features that change with time; null = not measured.
        labels: Columns `sample`, the tasks (0..C-1, null = not in the task), any of `group` (patient) and `split`, and
            the features that the series lack: those have one value a sample.
    """

    info: CohortInfo
    series: Rows
    labels: pl.DataFrame

    def without(self, features: Sequence[str]) -> "Imported":
        """The same cohort without some features.

        Raises:
            CohortError: If it has no such feature, or no other one.
        """
        names = [feature.name for feature in self.info.features]
        if unknown := sorted(set(features) - set(names)):
            raise CohortError(
                f"--without names {first_five(unknown)}, but the features are {', '.join(names[:20])}"
                f"{', ...' * (len(names) > 20)}."
            )
        kept = tuple(feature for feature in self.info.features if feature.name not in features)
        if not kept:
            raise CohortError("--without names all features: leave one at least.")
        notes = (*self.info.notes, *(f"Feature `{name}` was left out (--without)." for name in sorted(set(features))))
        info = dataclasses.replace(self.info, features=kept, notes=notes)
        return Imported(info, self.series, self.labels.drop(features, strict=False))


def write_cohort(folder: Path, info: CohortInfo, series: Rows, labels: pl.DataFrame) -> CohortInfo:
    """Write the three files of a cohort, each atomically, `cohort.json` last.

    Args:
        folder: Made if missing; must not hold a cohort yet.
        info: As of `Imported`; counts of zero are left out of what is written.
        series: As of `Imported`; sorted here by (sample, step).
        labels: As of `Imported`; sorted here by sample.

    Returns:
        What was written to `cohort.json`: `info` with all counts, and a note for each suspicion of `warn_of_leaks`.

    Raises:
        CohortError: If the folder holds a cohort already, one of its names is taken twice or is no text, a label is no
            class, a feature is a label or infinite, or a patient is in two splits; nothing is left behind then.
        OutputError: If it cannot be written.
    """
    require_no_cohort(folder)
    if problem := problem_of(info):
        raise CohortError(f"{folder} is not written: {problem}; choose other names.")
    for task in info.tasks:
        class_codes(labels, task, folder)
    refuse_shared_groups(labels, folder)
    timed = [feature.name for feature in info.features if feature.name not in labels.columns]
    with _nothing_left_of(folder):
        with atomic_path(folder / SERIES_FILE) as path:
            if isinstance(series, pl.DataFrame | pl.LazyFrame):
                _in_order(series.lazy(), timed).sink_parquet(path, row_group_size=_ROW_GROUP)
            else:
                _write_stream(path, series, timed)
            warnings = warn_of_leaks(pl.scan_parquet(path), labels, info, folder)
        with atomic_path(folder / LABELS_FILE) as path:
            labels.sort("sample").write_parquet(path, row_group_size=_ROW_GROUP)
        notes = tuple(dict.fromkeys((*info.notes, *warnings)))  # a cohort that is written anew has its warnings already
        info = dataclasses.replace(info, read=_counted(info.read), dropped=_counted(info.dropped), notes=notes)
        write_text(folder / INFO_FILE, json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False) + "\n")
    return info


@contextmanager
def _nothing_left_of(folder: Path) -> Iterator[None]:
    """Remove what a block that fails has made: the files of a cohort, and the folders that were not there."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for name in (INFO_FILE, LABELS_FILE, SERIES_FILE):
                (folder / name).unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        raise


def require_no_cohort(folder: Path) -> None:
    """Say before any work that a cohort cannot go here.

    Raises:
        CohortError: If one of its files is there already, or the folder is something else.
    """
    if folder.is_symlink() and not folder.exists():
        raise CohortError(f"{folder} is a link to nothing: choose another --out.")
    if folder.exists() and not folder.is_dir():
        raise CohortError(f"{folder} is a file, and no folder to write a cohort to: choose another --out.")
    if (folder / INFO_FILE).exists():
        raise CohortError(f"{folder} holds a cohort already: choose another --out, or remove it first.")
    taken = [name for name in (SERIES_FILE, LABELS_FILE) if (folder / name).exists()]
    if taken:
        raise CohortError(f"{folder} holds {' and '.join(taken)} already, of something else: choose another --out.")


def _counted(counts: dict[str, int]) -> dict[str, int]:
    return {what: count for what, count in sorted(counts.items()) if count}


def _in_order(rows: pl.LazyFrame, features: Sequence[str]) -> pl.LazyFrame:
    columns = [pl.col("sample"), pl.col("step").cast(pl.Int32), *(pl.col(name).cast(pl.Float32) for name in features)]
    return rows.select(columns).sort("sample", "step")


def _write_stream(path: Path, frames: Iterable[pl.DataFrame], features: Sequence[str]) -> None:
    """Write frames one after another, never two at once."""
    writer: pq.ParquetWriter | None = None
    last: object = None
    try:
        for frame in frames:
            ordered = _in_order(frame.lazy(), features).collect()
            if not len(ordered):
                continue
            if last is not None and not last < ordered["sample"][0]:
                raise ValueError(f"samples of a stream must ascend: {ordered['sample'][0]!r} comes after {last!r}")
            last = ordered["sample"][-1]
            table: pa.Table = ordered.to_arrow()
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=_ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise CohortError("the source holds no stay with a series: nothing is written.")
