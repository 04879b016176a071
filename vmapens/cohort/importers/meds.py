"""MEDS, the Medical Event Data Standard 0.4: events of any kind, in files of any size, with labels in its own schema.

Each label is a sample: the events of its subject in a window that ends at its `prediction_time`, which is itself still
in the window; nothing after it is read. Two passes over the files, in pieces: the first counts which codes the windows
hold, the second fills the grid, some millions of events at once. So memory depends on neither the number of events nor
their order, but sorted files are faster: row groups without an event that is needed are passed over.

Source:
    https://github.com/Medical-Event-Data-Standard/meds, `src/meds/schema.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from vmapens.cohort.identity import first_five, one_row_each
from vmapens.cohort.importers.event_grid import Aggregate, Grid, Measured, Windows, cuts, pairs
from vmapens.cohort.importers.meds_codes import CodeCounts, parse_codes
from vmapens.cohort.importers.meds_events import EventFiles, Events, Part
from vmapens.cohort.importers.meds_labels import parquet_files, read_labels
from vmapens.cohort.parquet import collect, scan
from vmapens.cohort.schema import RESERVED, CohortInfo, Feature, require_task_name
from vmapens.cohort.tables import split_named
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError, first_line
from vmapens.listener import Listener, Silence

MAX_STEPS = 100_000
DEATH = "MEDS_DEATH"

_EVENTS_AT_ONCE = 8_000_000
_PAIRS_APART = 1_000_000
_CODES = 2**32  # more than there are: a sample and a code make one number
_UNITS = {"s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}


def read_meds(
    folder: Path,
    *,
    labels: Path,
    window: str = "48h",
    every: str = "1h",
    codes: Sequence[str] = ("5%",),
    aggregate: Aggregate = "last",
    task: str = "label",
    listener: Listener | None = None,
) -> Imported:
    """Read a MEDS data set with one task.

    The window of a label is ``(prediction_time - window, prediction_time]``; step i covers
    ``(start + i * every, start + (i + 1) * every]``. A subject with one label gives the sample `subject_id`; if any has
    several, all samples are called `subject_id@prediction_time`. The subject is the group. A sample with nothing
    measured is kept, as one row without a number.

    Args:
        folder: A data set (`data/**/*.parquet`, `metadata/subject_splits.parquet` if there are splits), a folder of
            files of events, or one such file. Numbers are in `numeric_value`, or else in `value`.
        labels: A Parquet file in the label schema, or a folder of them. One of `boolean_value`, `integer_value`,
            `float_value` (whole numbers only) and `categorical_value` has values.
        window: A whole number with s, m, h or d: `48h`, `7d`.
        every: Likewise; T = window / every must be whole, at most `MAX_STEPS`.
        codes: Each a code, `@FILE` (one code a line), `re:PATTERN` (matches anywhere) or `N%`: that share of the
            training samples (of all, without splits) must have a number of the code in their window. A percentage
            narrows what the others choose, or all codes if there are no others.
        aggregate: What a step holds of several numbers of one code: the last by time (of several at one time the
            largest), or the mean, for which an event that is there twice counts once.
        task: What the task is called.
        listener: Hears of progress, in events; each is counted twice, for the two passes.

    Returns:
        The cohort, not written yet; the series is a stream.

    Raises:
        CohortError: If an option is no such thing, a file is missing, damaged or of another layout, labels contradict
            each other or are no classes, a subject has no split while others have, or no code is left.

    Source:
        https://github.com/Medical-Event-Data-Standard/meds, `src/meds/schema.py`.
    """
    length, step = _grid_of(window, every)
    require_task_name(task)
    choice = parse_codes(codes)
    dropped: Counter[str] = Counter()
    files = EventFiles(_event_files(folder, labels))
    labelled = read_labels(labels, task, dropped)
    table = _with_splits(labelled.table, folder, dropped)
    windows = Windows(labelled.subject, labelled.end, length)
    training = (table["split"] == "train").to_numpy() if "split" in table.columns else np.ones(len(table), dtype=bool)

    listener = listener or Silence()
    listener.start(2 * files.rows)
    survey = _Survey(windows, training if choice.share is not None else np.zeros_like(training))
    for part, events in files.read():
        survey.look(part, events, files.codes.get(DEATH, -2), dropped)
        listener.advance(len(events.code))
    if not survey.seen.any():
        raise CohortError(
            f"{labels}: none of its {len(windows.group_stop)} subjects is in the {files.rows} events of {folder}; name "
            "events and labels of one data set."
        )
    counts = survey.counts(len(files.codes))
    features = choice.features(files.codes, counts, int(training.sum()))
    if clash := sorted({*RESERVED, task} & set(features)):
        raise CohortError(f"a code is called {', '.join(clash)}, as a column of the cohort is; leave it out of codes.")
    chosen = [files.codes[name] for name in features]
    others = counts.measured.sum() - counts.measured[chosen].sum()
    dropped["events in a window of codes that are no feature: left out"] += int(others)
    dropped["subjects with a label, but without any event: kept, missing throughout"] += int((~survey.seen).sum())

    grid = Grid(length // step, step, features, aggregate)
    source, licence = _description(folder)
    info = CohortInfo(
        steps=grid.steps,
        minutes_per_step=step / _UNITS["m"],
        features=tuple(Feature(name) for name in features),
        tasks=(labelled.task,),
        source=source,
        licence=licence,
        read={
            "files of events": len(files.files),
            "events": files.rows,
            "labels": labelled.rows,
            "subjects with a label": len(windows.group_stop),
        },
        dropped=dropped,
        notes=(
            f"The window of a sample is the {window} up to its prediction_time, in steps of {every}; an event at the "
            "very end of a step belongs to it, and nothing after prediction_time was read.",
            "Of several numbers of a code in a step the last is kept, of those at the same time the largest."
            if aggregate == "last"
            else "Of several numbers of a code in a step the mean is kept; an event that is there twice counts once.",
            f"{len(features)} of {np.count_nonzero(counts.measured)} codes with a number in a window are features: "
            f"{choice.said}.",
            "Units are those of the source: MEDS states none.",
            *labelled.notes,
            *_notes(files, survey, shared=choice.share is not None and "split" not in table.columns),
        ),
    )
    return Imported(info, _series(files, windows, grid, table["sample"], survey, dropped, listener), table)


class _Survey:
    """What the first pass finds.

    Args:
        windows: Of all samples.
        training: The samples among which a share of them is counted.
    """

    def __init__(self, windows: Windows, training: Bool[np.ndarray, "N"]) -> None:
        self._windows, self._training = windows, training
        samples = len(windows.end)
        self.seen = np.zeros(len(windows.group_stop), dtype=bool)
        self.dead = np.zeros(samples, dtype=bool)
        self.spans: dict[Part, tuple[int, int]] = {}
        self._changes = np.zeros(samples + 1, dtype=np.int64)
        self._events = self._measured = np.zeros(0, dtype=np.int64)
        self._distinct: list[np.ndarray] = []

    @property
    def held(self) -> Int64[np.ndarray, "N"]:
        """Events with a number in each window."""
        return np.cumsum(self._changes)[:-1]

    def counts(self, codes: int) -> CodeCounts:
        """Of each of so many codes."""
        none = np.zeros(codes, dtype=np.int64)
        found = (self._events, self._measured, np.bincount(_merged(self._distinct) % _CODES))
        return CodeCounts(*(none + np.pad(count, (0, codes - len(count))) for count in found))

    def look(self, part: Part, events: Events, death: int, dropped: Counter[str]) -> None:
        """Count some events; each that goes no further is in `dropped` once, under the first reason that holds.

        Args:
            part: That they are of.
            events: As they were read.
            death: Number of the code of death, -2 if none was met yet.
            dropped: Counts them.
        """
        self._events = _tally(self._events, events.code[events.code >= 0])
        group = self._windows.group(events.subject)
        first, stop = self._windows.holding(group, events.time)
        over = first >= self._windows.group_stop[group]
        faults = {
            "events without a subject or a code: left out": events.code < 0,
            "events of subjects without a label: left out": group < 0,
            "events without a time (static): left out": ~events.timed,
            "events after the last prediction_time of their subject: left out": over,
            "events before the window of their subject, or between two windows: left out": first == stop,
            "events in a window without a number: left out": np.isnan(events.value),
            "events in a window whose number is infinite, NaN or beyond float32: left out": np.isinf(events.value),
        }
        fine = np.ones(len(group), dtype=bool)
        for what, fault in faults.items():
            dropped[what] += int((fine & fault).sum())
            fine &= ~fault
        self.seen[group[(group >= 0) & (events.code >= 0)]] = True
        for row in np.flatnonzero((events.code == death) & (group >= 0) & events.timed & ~over):
            self.dead[first[row] : self._windows.group_stop[group[row]]] = True
        first, stop, code = first[fine], stop[fine], events.code[fine]
        if not len(code):
            return
        low, high = self.spans.get(part, (first[0], stop[0]))
        self.spans[part] = (min(low, int(first.min())), max(high, int(stop.max())))
        self._measured = _tally(self._measured, code)
        self._changes += np.bincount(first, minlength=len(self._changes))
        self._changes -= np.bincount(stop, minlength=len(self._changes))
        if self._training.any():
            for event, window in pairs(first, stop):
                training = self._training[window]
                self._distinct.append(np.unique(window[training] * _CODES + code[event[training]]))
                # Merged when the rest is as large as the first: then all merging costs no more than a few sorts.
                if sum(map(len, self._distinct[1:])) > max(len(self._distinct[0]), _PAIRS_APART):
                    self._distinct = [_merged(self._distinct)]


def _tally(counts: Int64[np.ndarray, "K"], numbers: Int64[np.ndarray, "E"]) -> np.ndarray:
    """The counts of numbers 0, 1, ..., with some more; there may be new ones among them."""
    more = np.bincount(numbers, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _merged(keys: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)


def _series(
    files: EventFiles,
    windows: Windows,
    grid: Grid,
    samples: pl.Series,
    survey: _Survey,
    dropped: Counter[str],
    listener: Listener,
) -> Iterator[pl.DataFrame]:
    """The second pass: for so many windows as hold some millions of events, the parts that have any of them."""
    feature_of = np.full(len(files.codes) + 1, -1)  # the last is that of code -1
    feature_of[[files.codes[name] for name in grid.features]] = np.arange(len(grid.features))
    for some in cuts(survey.held, _EVENTS_AT_ONCE):
        parts = {part for part, (low, high) in survey.spans.items() if low < some.stop and high > some.start}
        pieces: list[Measured] = []
        for _, events in files.read(parts):
            events = events.where((feature_of[events.code] >= 0) & events.timed & np.isfinite(events.value))
            edges = windows.holding(windows.group(events.subject), events.time)
            for event, window in pairs(*(np.clip(edge, some.start, some.stop) for edge in edges)):
                time = events.time[event]
                row = window * grid.steps + grid.step(windows, window, time)
                pieces.append(Measured(row, feature_of[events.code[event]], time, events.value[event]))
        yield from grid.frames(samples, some, pieces, dropped)
        listener.advance(files.rows * some.stop // len(samples) - files.rows * some.start // len(samples))


def _notes(files: EventFiles, survey: _Survey, *, shared: bool) -> Iterator[str]:
    if shared:
        yield "There are no splits, so all samples counted as training samples in the choice of codes."
    if "value" in files.number_columns:
        yield "Numbers were read from the column `value`: there is no `numeric_value`, which MEDS has them in."
    if survey.dead.any():
        yield (
            f"warning: {DEATH} is at or before the prediction_time of {survey.dead.sum()} samples: see that these "
            "labels were not made with the outcome known."
        )


def _grid_of(window: str, every: str) -> tuple[int, int]:
    """Microseconds of the window, and of a step."""
    length, step = _microseconds(window, "window"), _microseconds(every, "every")
    if length % step or length // step > MAX_STEPS:
        raise CohortError(
            f"window = {window} and every = {every}: that is {length / step:,g} steps, wanted a whole number, "
            f"{MAX_STEPS:,} at most; choose a window that is a multiple of every."
        )
    return length, step


def _microseconds(text: str, name: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None or int(match[1]) * _UNITS[match[2]] > 36_500 * _UNITS["d"]:
        raise CohortError(f"{name} is `{text}`, wanted a whole number with s, m, h or d, such as 48h, up to 36500d.")
    return int(match[1]) * _UNITS[match[2]]


def _event_files(folder: Path, labels: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise CohortError(f"{folder} does not exist: wanted a MEDS data set, or a Parquet file of events.")
    root = folder / "data" if (folder / "data").is_dir() else folder
    found = parquet_files(root)
    if root == folder:  # where files of other things may lie beside the events
        others = {(folder / "metadata").resolve(), labels.resolve()}
        found = [path for path in found if others.isdisjoint((path.resolve(), *path.resolve().parents))]
    if not found:
        raise CohortError(f"{root} holds no .parquet file of events; wanted data/**/*.parquet.")
    return found


def _with_splits(table: pl.DataFrame, folder: Path, dropped: Counter[str]) -> pl.DataFrame:
    """The labels with a column `split`, if the data set has splits."""
    path = folder / "metadata" / "subject_splits.parquet"
    if not path.exists():
        return table
    splits = scan([path])
    if lacking := {"subject_id", "split"} - set(splits.collect_schema()):
        raise CohortError(f"{path}: no column {', '.join(sorted(lacking))}; wanted subject_id and split.")
    columns = [pl.col("subject_id").cast(pl.String).alias("group"), pl.col("split").cast(pl.String)]
    given = one_row_each(collect(splits.select(columns), path), ["group"], "the splits", dropped)
    ours = split_named(pl.col("split"))
    unknown = given.filter(ours.is_null())
    if len(unknown):
        found = first_five(unknown["split"].fill_null("null").to_list())
        raise CohortError(f"{path}: unknown splits ({found}); wanted train, tuning and held_out.")
    joined = table.join(given.with_columns(ours), on="group", how="left", maintain_order="left")
    if joined["split"].null_count():
        lost = joined.filter(pl.col("split").is_null())["group"].unique().to_list()
        raise CohortError(
            f"{path}: {len(lost)} subjects with a label have no split ({first_five(lost)}); give each one, "
            "or leave the file out: vmapens draws splits of its own."
        )
    return joined


def _description(folder: Path) -> tuple[str, str]:
    """Source and licence, as far as `metadata/dataset.json` says."""
    path = folder / "metadata" / "dataset.json"
    said: dict[str, object] = {}
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CohortError(f"{path} cannot be read as JSON ({first_line(error)}); write it again.") from error
        said = content if isinstance(content, dict) else {}
    name = " ".join(str(said[key]) for key in ("dataset_name", "dataset_version") if said.get(key))
    source = (
        f"{name or 'a data set without a name'}, in the Medical Event Data Standard (MEDS), "
        "https://github.com/Medical-Event-Data-Standard/meds; cite the data set as its owners ask."
    )
    return source, str(said.get("license") or "unknown to vmapens: that of the data set")
