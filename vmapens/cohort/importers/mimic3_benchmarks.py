"""mimic3-benchmarks: stays of MIMIC-III as 17 channels, for in-hospital mortality and for 25 phenotypes.

The folder of a task has `train/` and `test/` with one CSV file a stay, `<subject>_episode<K>_timeseries.csv`, and
listfiles that name stays and labels. The rows of many small files are joined to one buffer and parsed at once.

Source:
    https://github.com/YerevaNN/mimic3-benchmarks: `create_in_hospital_mortality.py`, `create_phenotyping.py` and
    `split_train_val.py` write the files, `Discretizer` in mimic3models/preprocessing.py says what a step is.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from vmapens.cohort.identity import first_five, one_row_each
from vmapens.cohort.importers.archive import BYTE_ORDER_MARK
from vmapens.cohort.importers.mimic3_channels import CHANNELS, finite, number
from vmapens.cohort.importers.physionet2012_ranges import RANGES_VERSION
from vmapens.cohort.parquet import is_pattern
from vmapens.cohort.schema import RESERVED, CohortInfo, Feature, Task
from vmapens.cohort.split import split_samples
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError, first_line
from vmapens.listener import Listener, Silence

SOURCE = (
    "mimic3-benchmarks, https://github.com/YerevaNN/mimic3-benchmarks, made from MIMIC-III. Cite Harutyunyan H, "
    "Khachatrian H, Kale DC, Ver Steeg G, Galstyan A. Multitask learning and benchmarking with clinical time series "
    "data. Sci Data 2019;6:96; Johnson AEW et al. MIMIC-III, a freely accessible critical care database. Sci Data "
    "2016;3:160035; and Goldberger AL et al. PhysioBank, PhysioToolkit, and PhysioNet. Circulation "
    "2000;101(23):e215-e220."
)
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0 (that of MIMIC-III)"

Benchmark = Literal["ihm", "phenotyping"]
Short = Literal["drop", "fill"]

_CHANNELS = [channel.name for channel in CHANNELS]
_FOLDERS = {"ihm": "in-hospital-mortality", "phenotyping": "phenotyping"}
_LONGEST_HOURS = {"ihm": 48, "phenotyping": 366 * 24}
_LISTFILES = {"train": "train_listfile.csv", "valid": "val_listfile.csv", "test": "test_listfile.csv"}
_SUFFIX = "_timeseries.csv"
_STAY = rf"^[0-9]+_episode[0-9]+{_SUFFIX}$"
_NO_PHENOTYPES = {"", *RESERVED, "stay", "y_true"}

_EPS_HOURS = 1e-6
"""Of the benchmark: a time this little past the end of a step still belongs to it."""

_VALID_SHARE = 15 / 85
"""Of the training stays: the benchmark's own splits are 70, 15 and 15 %."""

_STAYS_AT_ONCE = 256
_MOST_BYTES = 2**24  # of one stay; the longest of MIMIC-III, 173 days, has about 1 MB
_MOST_LIST_BYTES = 2**28


def read_mimic3_benchmarks(
    folder: Path, *, task: Benchmark, steps: int = 48, short: Short = "drop", listener: Listener | None = None
) -> Imported:
    """Read one task of mimic3-benchmarks.

    The grid has T = `steps` hourly steps with the benchmark's own bounds: step t holds the times above t and up to
    t + 1 hours, and 0 itself. A step holds the last value of each channel, by time; of several at the very same time
    the largest. The F = 17 features are the channels; text is turned into scores (`mimic3_channels`). Nothing is
    imputed. A sample is a stay, called `<subject>_episode<K>`; `group` is the subject.

    Splits are those of `train_listfile.csv`, `val_listfile.csv` and `test_listfile.csv`. Where these are not there yet,
    the stays of `train/listfile.csv` are parted into train and valid here, by subject.

    Args:
        folder: The folder of the task, or the folder `data/` above it.
        task: `ihm` gives the binary task `mortality`; `phenotyping` one binary task a phenotype, called as in the file.
        steps: T, hours from admission to the unit; 1 to 48 for `ihm`, whose files end there.
        short: Of phenotyping, stays shorter than T hours are left out, or kept with what they have.
        listener: Hears of the stays.

    Returns:
        The cohort, not written yet: its series is a stream, and `info.dropped` is complete when that has ended.

    Raises:
        CohortError: If the folder or a listfile is not of this task, a label is not 0 or 1, a stay has no file, or a
            file cannot be read or lacks a channel. The files of stays are read with the stream, and raise there.

    Source:
        Harutyunyan et al. 2019, Scientific Data 6:96.
    """
    longest = _LONGEST_HOURS[task]
    if not 1 <= steps <= longest:
        raise CohortError(f"{steps} steps of one hour, wanted 1 to {longest} for {task}; choose other --steps.")
    place = _task_folder(folder, task)
    read: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    notes = _notes(task, steps)
    paths = {split: place / name for split, name in _LISTFILES.items()}
    there = [path.name for path in paths.values() if path.exists()]
    if 0 < len(there) < len(paths):
        wanted = ", ".join(_LISTFILES.values())
        raise CohortError(f"{place} has {' and '.join(there)}, wanted all of {wanted}, or none; make them anew.")
    if not there:
        paths = {split: place / split / "listfile.csv" for split in ("train", "test")}
    stays, names = _stays(paths, task, read, dropped)
    if not there:
        stays = _with_validation(stays, names)
        notes.append(
            f"There was no {_LISTFILES['valid']}: vmapens drew the validation split, {_VALID_SHARE:.1%} of the "
            "training stays, by subject, seed 0. It is not the benchmark's, which its split_train_val.py writes."
        )
    _require_files(place, stays, dropped)
    if task == "phenotyping":
        stays = _long_enough(stays, steps, short, dropped)
    info = CohortInfo(
        steps=steps,
        minutes_per_step=60.0,
        features=tuple(Feature(channel.name, channel.unit, channel.group) for channel in CHANNELS),
        tasks=_tasks(task, names),
        source=SOURCE,
        licence=LICENCE,
        read=read,
        dropped=dropped,
        notes=tuple(notes),
    )
    series = _series(place, stays, steps, read, dropped, listener or Silence())
    return Imported(info, series, stays.select("sample", "group", "split", *names))


def _task_folder(folder: Path, task: Benchmark) -> Path:
    for place in (folder, folder / _FOLDERS[task]):
        if (place / "train").is_dir() and (place / "test").is_dir():
            return place
    raise CohortError(
        f"{folder}: no train/ and test/ in it, nor in a folder {_FOLDERS[task]}/; wanted what the benchmark's "
        f"create_{_FOLDERS[task].replace('-', '_')}.py writes, or the folder above."
    )


def _tasks(task: Benchmark, names: Sequence[str]) -> tuple[Task, ...]:
    if task == "ihm":
        return (Task("mortality", "binary", ("survived", "died"), "Death in hospital, after 48 hours in the unit."),)
    note = "From the ICD-9 codes of the whole stay, grouped by HCUP CCS."
    return tuple(Task(name, "binary", ("absent", "present"), note) for name in names)


def _notes(task: Benchmark, steps: int) -> list[str]:
    notes = [
        "One hour a step; as in the benchmark, a value at exactly 1.0 h is in step 0.",
        "Of several values in one hour the last by time is kept, of several at the very same time the largest.",
        "Glasgow scores and capillary refill are numbers, one feature each: 17 features, where the benchmark's own "
        "models take one-hot columns, 59. Eye opening `None` is score 1.",
        "Nothing is imputed here. The benchmark's models carry the last value forward and then take a normal value; "
        "loading carries forward and then takes the training mean.",
        "The benchmark removes no impossible values; here they are set to missing, by the ranges of "
        f"PhysioNet/CinC 2012, version {RANGES_VERSION}.",
    ]
    if task == "ihm":
        notes.append("Stays in the unit of 48 hours or more only, so that every death comes after the window.")
    else:
        notes += [
            "Phenotypes are diagnoses coded after discharge for the whole stay: a task in retrospect.",
            f"The benchmark's own models see the whole stay; here a sample is its first {steps} hours.",
        ]
    return notes


def _stays(
    paths: dict[str, Path], task: Benchmark, read: Counter[str], dropped: Counter[str]
) -> tuple[pl.DataFrame, list[str]]:
    """A row a stay, sorted: `sample`, `group`, `split`, `period_length` (phenotyping), the tasks; and their names."""
    tables = {split: _listfile(path, task) for split, path in paths.items()}
    columns = {tuple(table.columns) for table in tables.values()}
    if len(columns) > 1:
        raise CohortError(f"{', '.join(map(str, paths.values()))} differ in their columns; make them all anew.")
    table = pl.concat([table.with_columns(split=pl.lit(split)) for split, table in tables.items()])
    read["rows of listfiles"] += table.height
    if not table.height:
        raise CohortError(f"{', '.join(map(str, paths.values()))} name no stay; make them anew.")
    table = one_row_each(table, ["sample"], "the listfiles", dropped)
    names = [name for name in columns.pop() if name not in ("sample", "period_length")]
    return table.with_columns(group=pl.col("sample").str.extract(r"^([0-9]+)")), names


def _listfile(path: Path, task: Benchmark) -> pl.DataFrame:
    """`sample`, `period_length` (of phenotyping, in hours) and the tasks (0 or 1), in the order of the file."""
    text = _text(path, _MOST_LIST_BYTES)
    columns = text.partition(b"\n")[0].decode().split(",")
    keys = ["stay"] if task == "ihm" else ["stay", "period_length"]
    labels = columns[len(keys) :]
    names = ["mortality"] if task == "ihm" else labels
    usable = len(set(columns)) == len(columns) and not set(names) & _NO_PHENOTYPES and not any(map(is_pattern, names))
    expected = labels == ["y_true"] if task == "ihm" else bool(labels) and usable
    if columns[: len(keys)] != keys or not expected:
        wanted = "stay,y_true" if task == "ihm" else "stay,period_length,<a column a phenotype>"
        raise CohortError(
            f"{path} begins with `{','.join(columns)[:80]}`, wanted `{wanted}`: it is of another task, or of an old "
            f"version; name the folder of {task}, or make it anew."
        )
    try:
        table = pl.read_csv(text, infer_schema=False, quote_char=None)
    except pl.exceptions.PolarsError as error:
        raise CohortError(f"{path} cannot be read as a listfile ({first_line(error)}); make it anew.") from error
    table = table.filter(~pl.all_horizontal(pl.all().is_null()))  # empty lines
    numbers = table.select(number(pl.col(columns[1:])).fill_nan(None))
    fine = {
        f"a file name <subject>_episode<K>{_SUFFIX}, without a folder": table.select(
            pl.col("stay").str.contains(_STAY).fill_null(value=False)
        ),
        "0 or 1": numbers.select(pl.col(labels).is_in([0.0, 1.0]).fill_null(value=False)),
        "a length in hours": numbers.select(pl.col(keys[1:]).is_between(0, math.inf, "none").fill_null(value=False)),
    }
    for wanted, kept in fine.items():
        for column in kept.columns:
            if not kept[column].all():
                first = int((~kept[column]).arg_max() or 0)
                raise CohortError(
                    f"{path}: `{column}` of row {first + 1} is {table[column][first]!r}, wanted {wanted}; make it anew."
                )
    return pl.DataFrame(
        {
            "sample": table["stay"].str.strip_suffix(_SUFFIX),
            **{key: numbers[key] for key in keys[1:]},
            **{name: numbers[label].cast(pl.Int32) for name, label in zip(names, labels, strict=True)},
        }
    )


def _with_validation(stays: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Part the training stays into train and valid, by subject and stratified by the number of labels."""
    split = stays["split"].to_numpy().astype("<U5")
    training = stays.filter(split == "train")
    if training.height:
        labels = training.select(pl.sum_horizontal(names)).to_series().to_numpy()
        shares = (1 - _VALID_SHARE, _VALID_SHARE / 2, _VALID_SHARE / 2)  # of three parts; the last two are one here
        drawn = split_samples(
            training["sample"].to_list(), labels, training["group"].to_list(), seed=0, fractions=shares
        )
        split[split == "train"] = np.where(drawn == "train", "train", "valid")
    return stays.with_columns(split=pl.Series(split))


def _require_files(place: Path, stays: pl.DataFrame, dropped: Counter[str]) -> None:
    """See that each stay has its file, by a look into the folders; only names found there are opened later."""
    for folder, splits in (("train", ("train", "valid")), ("test", ("test",))):
        named = {f"{sample}{_SUFFIX}" for sample in stays.filter(pl.col("split").is_in(splits))["sample"]}
        try:
            with os.scandir(place / folder) as entries:
                found = {entry.name for entry in entries if entry.name.endswith(_SUFFIX) and entry.is_file()}
        except OSError as error:
            raise CohortError(f"{place / folder} cannot be read: {error.strerror}.") from error
        if absent := named - found:
            raise CohortError(
                f"{place / folder}: {len(absent)} of {len(named)} stays of the listfile have no file "
                f"({first_five(absent)}); make the folder anew, or take their rows out of the listfile."
            )
        dropped["files of stays that no listfile names: left out"] += len(found - named)


def _long_enough(stays: pl.DataFrame, steps: int, short: Short, dropped: Counter[str]) -> pl.DataFrame:
    enough = stays["period_length"] >= steps - _EPS_HOURS
    few = f"stays shorter than {steps} h"
    if short == "fill":
        dropped[f"{few}: kept, missing from their end on"] += int((~enough).sum())
        return stays
    dropped[f"{few}: left out"] += int((~enough).sum())
    if not enough.any():
        raise CohortError(f"all {stays.height} stays are shorter than {steps} h; choose fewer --steps or --short fill.")
    return stays.filter(enough)


def _series(
    place: Path, stays: pl.DataFrame, steps: int, read: Counter[str], dropped: Counter[str], listener: Listener
) -> Iterator[pl.DataFrame]:
    """The grid of some stays after another, T rows a stay; stays ascend."""
    listener.start(stays.height)
    for batch in stays.iter_slices(_STAYS_AT_ONCE):
        paths = [
            place / ("test" if split == "test" else "train") / f"{sample}{_SUFFIX}"
            for sample, split in batch.select("sample", "split").rows()
        ]
        yield _grid(batch["sample"], _events(paths, steps, read, dropped), steps, dropped)
        listener.advance(batch.height)


def _events(paths: Sequence[Path], steps: int, read: Counter[str], dropped: Counter[str]) -> pl.DataFrame:
    """What was measured in the window: `stay` (place in `paths`), `hours`, the channels; one row a time, ascending."""
    by_head: dict[tuple[str, ...], list[tuple[int, bytes]]] = {}
    for stay, path in enumerate(paths):
        head, body = _head_and_body(path, dropped)
        read["rows of files of stays"] += body.count(b"\n")
        by_head.setdefault(head, []).append((stay, body))
    read["files of stays"] += len(paths)
    rows = pl.concat([_parse(head, found, steps, dropped) for head, found in by_head.items()])
    different = rows.unique()
    dropped["rows that repeat another of their stay: left out"] += rows.height - different.height
    events = different.group_by("stay", "hours").agg(pl.col(_CHANNELS).max())
    dropped["values at the very same time as another of their channel: the largest is kept"] += _measured(
        different
    ) - _measured(events)
    return events.sort("stay", "hours")


def _head_and_body(path: Path, dropped: Counter[str]) -> tuple[tuple[str, ...], bytes]:
    """The names of the columns, and the rows, each with its line end."""
    line, _, rest = _text(path, _MOST_BYTES).partition(b"\n")
    head = tuple(line.decode().split(","))
    lacking = [name for name in ("Hours", *_CHANNELS) if head.count(name) != 1]
    if lacking:
        raise CohortError(
            f"{path} begins with `{','.join(head)[:80]}`, wanted Hours and {len(_CHANNELS)} channels, once each; "
            f"{len(lacking)} are not ({first_five(lacking)}); make it anew."
        )
    dropped["columns of files of stays that are neither Hours nor a channel: left out"] += (
        len(head) - len(_CHANNELS) - 1
    )
    body, end, last = rest.rpartition(b"\n")
    dropped["last rows without a line end (the file was cut short): left out"] += bool(last)
    return head, body + end


def _parse(
    head: tuple[str, ...], found: Sequence[tuple[int, bytes]], steps: int, dropped: Counter[str]
) -> pl.DataFrame:
    """The rows in the window: `stay`, `hours` and the channels, null where nothing can be read."""
    stays, bodies = zip(*found, strict=True)
    # A last field of our own is out of its place in every row with a field too few or too many.
    fields = b",".join(b"%d" % place for place in range(len(head) + 2))
    buffer = fields + b"\n" + b"".join(bodies).replace(b"\n", b",.\n")
    table = pl.read_csv(buffer, infer_schema=False, quote_char=None, truncate_ragged_lines=True)
    text = {name: pl.col(str(place)) for place, name in enumerate(head)}
    end, more = (pl.col(str(len(head) + place)) for place in range(2))
    table = table.with_columns(
        stay=pl.Series(np.repeat(stays, [body.count(b"\n") for body in bodies]), dtype=pl.Int32),
        hours=finite(number(text["Hours"])),
    )
    faults = {
        "rows with more or fewer fields than their header: left out": end.ne_missing(".") | more.is_not_null(),
        "rows whose Hours are no number: left out": pl.col("hours").is_null(),
        "rows before admission to the unit: left out": pl.col("hours") <= -_EPS_HOURS,
        f"rows after {steps} h: left out": pl.col("hours") >= steps + _EPS_HOURS,
    }
    for what, fault in faults.items():
        kept = table.filter(~fault)
        dropped[what] += table.height - kept.height
        table = kept
    values = {channel.name: channel.value(text[channel.name]) for channel in CHANNELS}
    faults = {what: fault for channel in CHANNELS for what, fault in channel.faults(text[channel.name]).items()}
    dropped.update(table.select(fault.sum().alias(what) for what, fault in faults.items()).row(0, named=True))
    return table.select("stay", "hours", **values)


def _measured(rows: pl.DataFrame) -> int:
    return sum(rows.select(pl.col(_CHANNELS).count()).row(0))


def _grid(samples: pl.Series, events: pl.DataFrame, steps: int, dropped: Counter[str]) -> pl.DataFrame:
    """T rows a stay, null where nothing was measured."""
    stay, hours = events["stay"].to_numpy(), events["hours"].to_numpy()
    # Toward zero, as the benchmark's int(); the least time below T + eps may round up to T.
    step = np.minimum((hours - _EPS_HOURS).astype(np.int64), steps - 1)
    grid = np.full((len(_CHANNELS), len(samples), steps), np.nan, dtype=np.float32)
    for cells, name in zip(grid, _CHANNELS, strict=True):
        measured = events[name].is_not_null().to_numpy()
        cells[stay[measured], step[measured]] = events[name].drop_nulls().to_numpy()  # of equal places the last stays
    known = ~np.isnan(grid)
    dropped["values followed by another of the same stay, channel and hour: the last is kept"] += int(
        _measured(events) - known.sum()
    )
    dropped["stays without any value in the window: kept, missing throughout"] += int((~known.any(axis=(0, 2))).sum())
    keys = {
        "sample": samples.gather(np.repeat(np.arange(len(samples)), steps)),
        "step": np.tile(np.arange(steps, dtype=np.int32), len(samples)),
    }
    columns = {name: cells.reshape(-1) for name, cells in zip(_CHANNELS, grid, strict=True)}
    return pl.DataFrame({**keys, **columns}).with_columns(pl.col(_CHANNELS).fill_nan(None))


def _text(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file of UTF-8 text, without a byte order mark, lines ended by a line feed."""
    if not path.is_file():  # a pipe would be waited for
        raise CohortError(f"{path} does not exist, or is no file; make the folder anew.")
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise CohortError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > most_bytes:
        raise CohortError(f"{path} has more than {most_bytes:,} bytes, too many for such a file; is it the right one?")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise CohortError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); make it anew.") from error
    return data.removeprefix(BYTE_ORDER_MARK).replace(b"\r\n", b"\n")
