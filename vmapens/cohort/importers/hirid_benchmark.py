"""HiRID-ICU-Benchmark: almost 34,000 stays of one hospital in 231 columns on a grid of 5 minutes, two tasks.

`ml_stage_12h.h5`, as the benchmark's pipeline writes it: `data/{train,val,test}` [rows, columns] holds the stays one
below another, `patient_windows/{split}` says which rows are whose (start, stop, patient), and `labels/{split}` [rows,
tasks] has a label in some of the rows, NaN in all others. Never is a whole split in memory.

Source:
    Yèche et al. 2021, arXiv:2111.08536; https://github.com/ratschlab/HIRID-ICU-Benchmark,
    `icu_benchmarks/data/preprocess.py` and `loader.py`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from vmapens.cohort.classes import MOST_CLASSES
from vmapens.cohort.identity import first_five
from vmapens.cohort.importers.hdf5 import Hdf5Array, Hdf5File, open_hdf5
from vmapens.cohort.schema import RESERVED, CohortInfo, Feature, Task
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError
from vmapens.listener import Listener, Silence

STEPS = 288
MINUTES_PER_STEP = 5.0
SPLITS = {"train": "train", "val": "valid", "test": "test"}
TASKS = {"mortality": "Mortality_At24Hours", "phenotyping": "Phenotyping_APACHEGroup"}

SOURCE = (
    "HiRID-ICU-Benchmark, https://github.com/ratschlab/HIRID-ICU-Benchmark, made from HiRID 1.1.1, "
    "https://physionet.org/content/hirid/1.1.1/. Cite Yèche H, Kuznetsova R, Zimmermann M, Hüser M, Lyu X, Faltys M, "
    "Rätsch G. HiRID-ICU-Benchmark: a comprehensive machine learning benchmark on high-resolution ICU data. NeurIPS "
    "Datasets and Benchmarks 2021; Faltys M et al. HiRID, a high time-resolution ICU dataset (version 1.1.1). "
    "PhysioNet 2021, doi:10.13026/nkwc-js72; Hyland SL et al. Early prediction of circulatory failure in the intensive "
    "care unit using machine learning. Nat Med 2020;26:364-373; and Goldberger AL et al. PhysioBank, PhysioToolkit, "
    "and PhysioNet. Circulation 2000;101(23):e215-e220."
)
LICENCE = "that of HiRID 1.1.1 (access on request): https://physionet.org/content/hirid/view-license/1.1.1/"

_STAYS_AT_ONCE = 128
_ROWS_AT_ONCE = 1 << 18


def read_hirid_benchmark(path: Path, *, steps: int = STEPS, listener: Listener | None = None) -> Imported:
    """Read the stays that have a label after `steps` rows, and these rows.

    A sample is a patient's window: the first `steps` rows, cast to float32, with the labels of the last of them. That
    are the tensors of the paper: `data[start:start + 288]` with the label at row 287, the 24th hour. Tasks: `mortality`
    (two classes) and `phenotyping` (one class for each APACHE group that occurs). The splits are the file's.

    Args:
        path: `ml_stage_12h.h5`, or another file of that layout; its group `features` is not read.
        steps: T, rows of a window, >= 1. The benchmark writes both labels at row 287 alone, so 288 unless the file is
            of another make.
        listener: Hears of the stays that are read.

    Returns:
        The cohort, not written yet. Its series is a stream in ascending patient id that reads the file, and counts
        what cannot be a value, when it is written; at most 128 stays are in memory.

    Raises:
        CohortError: If the file cannot be read or is of another layout, a window is no range of rows or overlaps
            another, a patient has several windows, or no stay has a label of either task, or one is no class.
    """
    if not 1 <= steps < 2**31:
        raise CohortError(f"steps: got {steps}, wanted 1 or more; the benchmark's own is {STEPS}.")
    dropped: Counter[str] = Counter()
    with open_hdf5(path) as file:
        features, columns = (_names(file, name) for name in ("data/columns", "labels/tasks"))
        if taken := sorted(set(features) & {*RESERVED, *TASKS}):
            raise CohortError(f"{path}: data/columns has {', '.join(taken)}, which a cohort calls its own; rename it.")
        rows = {split: _rows(file, split, len(features), len(columns)) for split in SPLITS}
        windows = pl.concat([_windows(file, split, rows[split], dropped) for split in SPLITS])
        stays = _labelled(file, windows, columns, steps, dropped)
    labels, tasks = _labels(path, stays, steps)
    info = CohortInfo(
        steps=steps,
        minutes_per_step=MINUTES_PER_STEP,
        features=tuple(map(Feature, features)),
        tasks=tasks,
        source=SOURCE,
        licence=LICENCE,
        read={"stays": windows.height, "rows of stays": sum(rows.values())},
        dropped=dropped,
        notes=_notes(features, columns, tasks, steps),
    )
    listener = listener or Silence()
    return Imported(info, _frames(path, stays, features, steps, dropped, listener), labels)


def _notes(features: Sequence[str], columns: Sequence[str], tasks: Sequence[Task], steps: int) -> tuple[str, ...]:
    notes = [
        f"The first {steps} rows of a stay with the labels of row {steps - 1} (the first is 0); no later row is read.",
        f"All columns are features, the time (`{features[0]}`) among them.",
        "The benchmark has forward-filled its data and written 0, the training mean, where nothing was known: measured "
        "and imputed cells cannot be told apart, so every cell counts as measured.",
        "Values are in standard deviations, or 0 to 1, of the benchmark's training split, over all rows of its stays; "
        "loading standardises them again.",
    ]
    if others := [name for name in columns[1:] if name not in TASKS.values()]:
        notes.append(
            f"Tasks of the file with labels at many rows, or numbers for labels, not imported: {', '.join(others)}."
        )
    if lacking := [TASKS[name] for name in TASKS if name not in {task.name for task in tasks}]:
        notes.append(f"No stay has a label of {', '.join(lacking)}.")
    return tuple(notes)


def _names(file: Hdf5File, name: str) -> tuple[str, ...]:
    """An array of different texts."""
    array = file.array(name)
    if array.dtype.kind != "U" or len(array.shape) != 1:
        raise CohortError(f"{file.path}: {name} is {array.dtype} {array.shape}, wanted names; is it the right file?")
    names = tuple(map(str, array.read().tolist()))
    if not names or len(set(names)) < len(names):
        raise CohortError(f"{file.path}: {name} has {len(names)} names, {len(set(names))} different; wanted each once.")
    return names


def _rows(file: Hdf5File, split: str, features: int, tasks: int) -> int:
    """How many rows a split has, in its data and its labels alike."""
    data, labels = file.array(f"data/{split}"), file.array(f"labels/{split}")
    rows = data.shape[0] if data.shape else 0
    for array, shape in ((data, (rows, features)), (labels, (rows, tasks))):
        if array.dtype.kind != "f" or array.shape != shape:
            raise CohortError(
                f"{file.path}: {array.name} is {array.dtype} {array.shape}, wanted floats {shape}: a row for each of "
                f"data/{split}, and a column for each name; is it the right file?"
            )
    return rows


def _windows(file: Hdf5File, split: str, rows: int, dropped: Counter[str]) -> pl.DataFrame:
    """`sample`, `split` (the file's word), `start` and `stop` of each stay, checked and sorted by start."""
    array = file.array(name := f"patient_windows/{split}")
    if array.dtype.kind not in "iu" or len(array.shape) != 2 or array.shape[1] != 3:
        raise CohortError(
            f"{file.path}: {name} is {array.dtype} {array.shape}, wanted whole numbers [stays, 3] (start, stop, "
            "patient); is it the right file?"
        )
    table = pl.DataFrame(array.read().astype(np.int64), schema=["start", "stop", "sample"], orient="row")
    stays = table.unique().sort("start", "stop", "sample")
    dropped["rows of patient_windows that repeat another one: left out"] += table.height - stays.height
    inside = (pl.col("start") >= 0) & (pl.col("stop") >= pl.col("start")) & (pl.col("stop") <= rows)
    filled = stays.filter(pl.col("stop") > pl.col("start"))
    for wrong, what in (
        (stays.filter(~inside), f"are no range of the {rows} rows of data/{split}"),
        (filled.filter(pl.col("start") < pl.col("stop").shift(1)), "begin before the one before them ends"),
    ):
        if len(wrong):
            start, stop, sample = wrong.row(0)
            raise CohortError(
                f"{file.path}: {len(wrong)} windows of {name} {what}, the first {start} to {stop} of patient {sample}; "
                "make the file again."
            )
    return stays.select("sample", "start", "stop", split=pl.lit(split))


def _labelled(
    file: Hdf5File, windows: pl.DataFrame, columns: Sequence[str], steps: int, dropped: Counter[str]
) -> pl.DataFrame:
    """The stays with a label of either task at the last row of their window, by ascending patient."""
    if twice := windows.filter(pl.col("sample").is_duplicated())["sample"].cast(pl.String).to_list():
        raise CohortError(
            f"{file.path}: {len(set(twice))} patients have several windows ({first_five(twice)}), wanted one each: the "
            "test split would hold what was trained on; make the file again."
        )
    stays = windows.filter(pl.col("stop") - pl.col("start") >= steps)
    dropped[f"stays shorter than {steps} rows: left out"] += windows.height - stays.height
    parts = []
    for split in SPLITS:
        part = stays.filter(split=split).sort("start")
        last = (part["start"] + steps - 1).to_numpy()
        found = _at_rows(file.array(f"labels/{split}"), last)
        values = {task: found[:, columns.index(name)] for task, name in TASKS.items() if name in columns}
        parts.append(part.with_columns(**{task: pl.lit(None, pl.Float64) for task in TASKS}).with_columns(**values))
    stays = pl.concat(parts).with_columns(pl.col(list(TASKS)).fill_nan(None))
    labelled = stays.filter(pl.any_horizontal(pl.col(list(TASKS)).is_not_null()))
    dropped[f"stays without a label of either task at row {steps - 1}: left out"] += stays.height - labelled.height
    if not len(labelled):
        raise CohortError(
            f"{file.path}: none of {windows.height} stays has a label of {' or '.join(TASKS.values())} at row "
            f"{steps - 1}; the benchmark writes them at row {STEPS - 1}, of stays with {STEPS} rows or more."
        )
    return labelled.sort("sample")


def _at_rows(array: Hdf5Array, rows: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N K"]:
    """Some rows of an array, ascending: read in large pieces, for a chunk holds many rows and is decompressed whole."""
    found = np.empty((len(rows), array.shape[1]))
    for first in range(0, array.shape[0], _ROWS_AT_ONCE):
        low, high = np.searchsorted(rows, (first, first + _ROWS_AT_ONCE))
        if low < high:
            start, stop = int(rows[low]), int(rows[high - 1]) + 1
            found[low:high] = array.read(start, stop)[rows[low:high] - start]
    return found


def _labels(path: Path, stays: pl.DataFrame, steps: int) -> tuple[pl.DataFrame, tuple[Task, ...]]:
    """The table of labels, and the tasks that a stay has a label of."""
    tasks = []
    labels = stays.select("sample", group="sample", split=pl.col("split").replace(SPLITS))
    for name, column in TASKS.items():
        found = stays[name].drop_nulls().unique().sort().to_list()
        whole = [int(value) for value in found if 0 <= value < 2**31 and value == int(value)]
        note = f"{column} at row {steps - 1}"
        if name == "mortality":
            codes = [0, 1]
            task = Task(name, "binary", ("survived", "died"), f"{note}; an unknown discharge status is no death.")
        else:
            codes = whole
            groups = tuple(f"APACHE group {code}" for code in codes)
            task = Task(name, "multiclass", groups, f"{note}; the groups found in all splits together, by their code.")
        if not found:
            continue
        if not set(found) <= set(codes) or not 2 <= len(codes) <= MOST_CLASSES:
            got = first_five(f"{value:g}" for value in found)
            wanted = "0 and 1" if name == "mortality" else f"whole numbers from 0, 2 to {MOST_CLASSES} different ones"
            raise CohortError(f"{path}: labels of {column} are {got}, wanted {wanted}; is it the right file?")
        place = {code: place for place, code in enumerate(codes)}
        labels = labels.with_columns(stays[name].replace_strict(place, return_dtype=pl.Int32))
        tasks.append(task)
    return labels.select("sample", *(task.name for task in tasks), "group", "split"), tuple(tasks)


def _frames(
    path: Path, stays: pl.DataFrame, features: Sequence[str], steps: int, dropped: Counter[str], listener: Listener
) -> Iterator[pl.DataFrame]:
    """The series, some stays at a time."""
    listener.start(stays.height)
    with open_hdf5(path) as file:
        data = {split: file.array(f"data/{split}") for split in SPLITS}
        for part in stays.iter_slices(_STAYS_AT_ONCE):
            values = np.empty((part.height, steps, len(features)), dtype=np.float32)
            for place, (split, start) in enumerate(part.select("split", "start").iter_rows()):
                # What float32 cannot hold becomes an infinity; some kinds of NaN are "invalid".
                with np.errstate(over="ignore", invalid="ignore"):
                    values[place] = data[split].read(start, start + steps)
            infinite = np.isinf(values)
            dropped["values that are infinite (as float32): set to missing"] += int(infinite.sum())
            dropped["values that are NaN: set to missing"] += int(np.isnan(values).sum())
            values[infinite] = np.nan
            frame = pl.DataFrame(values.reshape(-1, len(features)), schema=list(features), orient="row")
            yield frame.with_columns(pl.col(list(features)).fill_nan(None)).with_columns(
                sample=part["sample"].gather(np.repeat(np.arange(part.height), steps)),
                step=pl.Series(np.tile(np.arange(steps, dtype=np.int32), part.height)),
            )
            listener.advance(part.height)
