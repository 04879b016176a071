"""What a cohort holds, before anything is trained on it: sizes, classes, and how much was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vmapens.cohort.grid import check_keys
from vmapens.cohort.parquet import collect
from vmapens.cohort.split import SPLITS
from vmapens.cohort.tables import Tables, open_tables
from vmapens.errors import printable

_BATCH = 16
_SHOWN = 60


@dataclass(frozen=True)
class Description:
    """Plain numbers about a cohort.

    Args:
        source: The folder or the TOML file.
        fingerprint: SHA-256 over its files.
        samples: Rows of the labels.
        groups: Distinct groups (patients), or None without that column.
        steps: T.
        minutes_per_step: Minutes between two steps.
        never_measured: Samples of the labels without one measurement in the series; static features do not count.
        without_label: Samples of the series that the labels do not have.
        features: `index`, `feature`, `unit`, `group`, `missing`: the share of the samples x steps cells not measured.
        tasks: `task`, `kind`, `labelled`, `classes` (names) and `counts` (both lists), `prevalence` (share of class 1
            of a binary task, else null).
        splits: `split`, `samples`; None if no split is given and vmapens draws it.
        read: What the importer read: a sentence to its number.
        dropped: What was left out, clipped or changed on the way here: a sentence to its number.
        notes: Anything else a reader must know.
        origin: Where the data come from.
        licence: Of the data.
    """

    source: Path
    fingerprint: str
    samples: int
    groups: int | None
    steps: int
    minutes_per_step: float
    never_measured: int
    without_label: int
    features: pl.DataFrame
    tasks: pl.DataFrame
    splits: pl.DataFrame | None
    read: dict[str, int]
    dropped: dict[str, int]
    notes: tuple[str, ...]
    origin: str
    licence: str

    def table(self) -> dict[str, object]:
        """The same for JSON: numbers, texts, lists and tables of them."""
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, pl.DataFrame | Path)}
        frames = {"features": self.features.to_dicts(), "tasks": self.tasks.to_dicts()}
        splits = None if self.splits is None else dict(self.splits.iter_rows())
        return {**plain, **frames, "source": str(self.source), "splits": splits, "notes": list(self.notes)}

    def text(self) -> str:
        """Some lines for the terminal."""
        hours = self.steps * self.minutes_per_step / 60
        groups = "" if self.groups is None else f" of {self.groups} groups"
        grid = f"{self.steps} steps of {self.minutes_per_step:g} min ({hours:g} h)"
        lines = [f"{self.source}: {self.samples} samples{groups}, {grid}, {len(self.features)} features"]
        lines += [f"  {title}: {said}" for title, said in (("source", self.origin), ("licence", self.licence)) if said]
        lines += [f"  never measured: {self.never_measured} samples"] if self.never_measured else []
        lines += [f"  without a label: {self.without_label} samples"] if self.without_label else []
        for task in self.tasks.iter_rows(named=True):
            counts = ", ".join(f"{name} {count}" for name, count in zip(task["classes"], task["counts"], strict=True))
            share = "" if task["prevalence"] is None else f"; prevalence {task['prevalence']:.1%}"
            lines.append(f"task {task['task']} ({task['kind']}): {task['labelled']} labelled: {counts}{share}")
        if self.splits is None:
            lines.append("splits: none given, drawn when training")
        else:
            lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in self.splits.iter_rows()))
        lines += ["read: " + ", ".join(f"{count} {what}" for what, count in self.read.items())] if self.read else []
        lines += [f"dropped: {what}: {count}" for what, count in self.dropped.items()]
        lines += [note if note.startswith("warning: ") else f"note: {note}" for note in self.notes]
        lines.append("missing share per feature (cells not measured)")
        shown = self.features.head(_SHOWN)
        width = max((len(name) for name in shown["feature"]), default=0)
        for feature in shown.iter_rows(named=True):
            lines.append(f"  {feature['feature']:<{width}}  {feature['missing']:6.1%}  {feature['unit']}".rstrip())
        if len(self.features) > _SHOWN:
            lines.append(f"  ... and {len(self.features) - _SHOWN} more (--json has all)")
        return "\n".join(map(printable, lines))


def describe_cohort(source: Path) -> Description:
    """Describe a cohort folder or a mapping; reads the series a few columns at a time.

    Raises:
        CohortError: If the cohort cannot be read or its keys are wrong; labels of a task are not judged here.
    """
    tables = open_tables(source)
    info, labels = tables.info, tables.labels
    in_series = set(check_keys(tables))
    ids = labels["sample"].cast(pl.String)
    counts, measured = _measured(tables)
    cells = max(len(labels) * info.steps, 1)
    features = pl.DataFrame(
        {
            "index": range(len(info.features)),
            "feature": [feature.name for feature in info.features],
            "unit": [feature.unit for feature in info.features],
            "group": [feature.group for feature in info.features],
            "missing": [1 - counts[feature.name] / cells for feature in info.features],
        },
        schema_overrides={"index": pl.Int32},
    )
    splits = None
    if "split" in labels.columns:
        found = labels["split"].to_list()
        splits = pl.DataFrame({"split": SPLITS, "samples": [found.count(name) for name in SPLITS]})
    return Description(
        source=source,
        fingerprint=tables.fingerprint,
        samples=len(labels),
        groups=labels["group"].drop_nulls().n_unique() if "group" in labels.columns else None,
        steps=info.steps,
        minutes_per_step=info.minutes_per_step,
        never_measured=len(set(ids.to_list()) - measured),
        without_label=len(in_series - set(ids.to_list())),
        features=features,
        tasks=_tasks(tables),
        splits=splits,
        read=dict(info.read),
        dropped=dict(info.dropped),
        notes=info.notes,
        origin=info.source,
        licence=info.licence,
    )


def _measured(tables: Tables) -> tuple[dict[str, int], set[str]]:
    """Measured cells per feature among the labelled samples, and the samples with any in the series."""
    counts: dict[str, int] = {}
    samples: set[str] = set()
    static = tables.static
    for name in static:
        known = tables.labels[name].cast(pl.Float64).fill_nan(None)
        counts[name] = (len(known) - known.null_count()) * tables.info.steps
    timed = [feature.name for feature in tables.info.features if feature.name not in set(static)]
    for start in range(0, len(timed), _BATCH):
        found = collect(_by_sample(tables, timed[start : start + _BATCH]), tables.source)
        per_feature = found.drop("sample")
        counts |= {name.removeprefix("value "): int(per_feature[name].sum()) for name in per_feature.columns}
        any_measured = per_feature.sum_horizontal() > 0
        samples |= set(found["sample"].filter(any_measured).cast(pl.String).to_list())
    return counts, samples


def _by_sample(tables: Tables, names: Sequence[str]) -> pl.LazyFrame:
    rows = tables.pick(names).filter(pl.col("sample").is_in(tables.labels["sample"].to_list()))
    known = [pl.col(name).cast(pl.Float64).is_not_nan().fill_null(value=False).alias(f"value {name}") for name in names]
    return rows.select("sample", *known).group_by("sample").agg(pl.exclude("sample").sum())


def _tasks(tables: Tables) -> pl.DataFrame:
    rows = []
    for task in tables.info.tasks:
        values = tables.labels[task.name].cast(pl.Float64, strict=False).fill_nan(None).drop_nulls()
        counts = [int((values == code).sum()) for code in range(len(task.classes))]
        prevalence = counts[1] / len(values) if task.kind == "binary" and len(values) and len(counts) == 2 else None
        rows.append((task.name, task.kind, len(values), list(task.classes), counts, prevalence))
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "task": pl.String,
        "kind": pl.String,
        "labelled": pl.Int64,
        "classes": pl.List(pl.String),
        "counts": pl.List(pl.Int64),
        "prevalence": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
