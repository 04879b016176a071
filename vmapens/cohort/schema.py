"""The cohort folder: what its three files hold, as code.

`series.parquet`  sample, step, one float32 column per feature; null = not measured.
`labels.parquet`  sample, one integer column per task; optionally `group` (patient), `split`, static columns.
`cohort.json`     everything about them that a table cannot say: `CohortInfo`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vmapens.cohort.parquet import is_pattern
from vmapens.errors import CohortError

FORMAT_VERSION = 1
SERIES_FILE = "series.parquet"
LABELS_FILE = "labels.parquet"
INFO_FILE = "cohort.json"
MINUTES = (1e-6, 1e8)
"""Minutes between two steps, least and most: from 60 microseconds to 190 years."""
RESERVED = ("sample", "step", "group", "split")
"""Columns of the tables that are neither a feature nor a task."""
NO_PATIENTS = "The data name no patients: each stay counts as its own group."
"""A note of importers, which no longer holds once a table brings the patients (`label_table`)."""


@dataclass(frozen=True)
class Feature:
    """One column of the series: its name, unit ("" if it has none) and clinical group ("" if unknown)."""

    name: str
    unit: str = ""
    group: str = ""


@dataclass(frozen=True)
class Task:
    """One label column; its values are 0..len(classes)-1, or null where the sample is not in the task."""

    name: str
    kind: Literal["binary", "multiclass"]
    classes: tuple[str, ...]
    note: str = ""

    @property
    def outputs(self) -> int:
        """C, the number of logits: 1 for a binary task, else one per class."""
        return 1 if self.kind == "binary" else len(self.classes)


@dataclass(frozen=True)
class CohortInfo:
    """What `cohort.json` says.

    Args:
        steps: T, the length of the grid.
        minutes_per_step: Minutes between two steps.
        features: In the order of the columns.
        tasks: In the order of the columns.
        source: Where the data come from, with the citation its owners ask for.
        licence: Of the data.
        read: What the importer read: a sentence to the number of files, rows or values.
        dropped: What it left out, clipped or could not read, and why: a sentence to the number of values or rows.
        notes: Anything else a reader must know, a sentence each.
    """

    steps: int
    minutes_per_step: float
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    source: str
    licence: str
    read: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def task(self, name: str) -> Task:
        """The task of that name.

        Raises:
            CohortError: If there is none; the line names those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise CohortError(f"unknown task `{name}`: this cohort has {', '.join(t.name for t in self.tasks) or 'none'}.")


def require_task_name(name: str, taken: Iterable[str] = ()) -> None:
    """See that a task can have a name.

    Args:
        name: What the user calls the task.
        taken: Columns of the cohort beside `RESERVED`.

    Raises:
        CohortError: If no column can be called so, or one is already.
    """
    if not name or is_pattern(name):
        why = "no column can"
    elif name in {*RESERVED, *taken}:
        why = "the cohort has a column of that name"
    else:
        return
    raise CohortError(
        f"the task cannot be called `{name}`: {why}; choose another name with --task (of --labels: --label-task)."
    )


def read_info(folder: Path) -> CohortInfo:
    """Read `cohort.json`.

    Raises:
        CohortError: If it is missing, is not JSON, or is of another format version.
    """
    path = folder / INFO_FILE
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if table["format_version"] != FORMAT_VERSION:
            got = table["format_version"]
            raise CohortError(f"{path}: format version {got}, this vmapens reads {FORMAT_VERSION}; import it again.")
        table["features"] = tuple(Feature(**entry) for entry in _listed(table["features"]))
        table["tasks"] = tuple(
            Task(**{**entry, "classes": _listed(entry["classes"])}) for entry in _listed(table["tasks"])
        )
        info = CohortInfo(**{**table, "notes": _listed(table["notes"])})
        problem = problem_of(info)
        if problem:
            raise ValueError(problem)
        return info
    except FileNotFoundError:
        raise CohortError(f"{path} does not exist: {folder} is not a cohort; make one with `vmapens import`.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CohortError(f"{path} cannot be read as a cohort description ({error}); import it again.") from error


def _listed(value: object) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(value)


def problem_of(info: CohortInfo) -> str:
    """What is wrong with the types and values of a description that was read; "" if nothing is."""
    names = [feature.name for feature in info.features] + [task.name for task in info.tasks]
    texts = [text for f in info.features for text in (f.name, f.unit, f.group)]
    texts += [text for task in info.tasks for text in (task.name, task.note, *task.classes)]
    if type(info.steps) is not int or info.steps >= 2**31:
        return f"steps is {info.steps!r}, wanted a whole number below 2^31"
    if type(info.minutes_per_step) not in (int, float) or not MINUTES[0] <= info.minutes_per_step <= MINUTES[1]:
        return f"minutes_per_step is {info.minutes_per_step!r}, wanted a number from {MINUTES[0]:g} to {MINUTES[1]:g}"
    for name, counts in (("read", info.read), ("dropped", info.dropped)):
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            return f"{name} is {counts!r}, wanted a table of whole numbers"
    texts += [*info.notes, *info.read, *info.dropped, info.source, info.licence]
    if not all(isinstance(text, str) for text in texts):
        return "names, units, classes and notes must be texts"
    if re.search("[\ud800-\udfff]", "".join(texts)):
        return "a name or text holds half a surrogate pair, which no file can"
    if any(map(is_pattern, names)):
        return f"`{next(filter(is_pattern, names))}` is no name of a column, but a pattern of names"
    if len(set(names)) < len(names):
        return "two features or tasks have the same name"
    for task in info.tasks:
        if task.kind not in ("binary", "multiclass") or len(task.classes) < 2:
            return f"task `{task.name}` is {task.kind} with {len(task.classes)} classes"
        if task.kind == "binary" and len(task.classes) != 2:
            return f"task `{task.name}` is binary, but has {len(task.classes)} classes"
    return ""
