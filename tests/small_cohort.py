"""A small cohort with gaps, made by hand, and the ways to write it: what the tests of the cohort room start from."""

from pathlib import Path

import numpy as np
import polars as pl

from vmapens.cohort.load import Cohort, load_cohort
from vmapens.cohort.schema import LABELS_FILE, SERIES_FILE, CohortInfo, Feature, Task
from vmapens.cohort.write import write_cohort
from vmapens.spec import CohortSpec

STEPS = 6
NAMES = ("hr", "map", "lactate")
TASK = Task("died", "binary", ("survived", "died"))


def small_info(**changes) -> CohortInfo:
    features = tuple(Feature(name, unit="u", group="g") for name in NAMES)
    return CohortInfo(
        **{"steps": STEPS, "minutes_per_step": 60.0, "features": features, "tasks": (TASK,)}
        | changes
        | {"source": "made", "licence": "none"}
    )


def small_series(samples: int = 40, seed: int = 0) -> pl.DataFrame:
    """About 40 % of the cells missing, a fifth of the rows absent, ids 1..samples as whole numbers."""
    generator = np.random.default_rng(seed)
    rows = [(sample, step) for sample in range(1, samples + 1) for step in range(STEPS)]
    kept = [row for row in rows if generator.random() > 0.2 or row[1] == 3]
    values = generator.normal(50, 10, (len(kept), len(NAMES))).astype(np.float32)
    values[generator.random(values.shape) < 0.4] = np.nan
    values[:, 0] = np.where(np.isnan(values[:, 0]), 7, values[:, 0])
    keys = {"sample": [row[0] for row in kept], "step": pl.Series([row[1] for row in kept], dtype=pl.Int32)}
    return pl.DataFrame(keys | {name: values[:, column] for column, name in enumerate(NAMES)}).with_columns(
        pl.col(NAMES).fill_nan(None)
    )


def small_labels(samples: int = 40) -> pl.DataFrame:
    return pl.DataFrame({"sample": range(1, samples + 1), "died": [int(i % 3 == 0) for i in range(samples)]})


def write_small(folder: Path, series=None, labels=None, **changes) -> Path:
    """Write a cohort as `write_cohort` does, then the tables once more as they are: rows unsorted, types untouched."""
    series = small_series() if series is None else series
    labels = small_labels() if labels is None else labels
    info = small_info(**changes)
    none = {task.name: pl.lit(None, pl.Int32) for task in info.tasks if task != TASK}
    write_cohort(folder, info, small_series(2), small_labels(2).with_columns(**none))
    series.write_parquet(folder / SERIES_FILE)
    labels.write_parquet(folder / LABELS_FILE)
    return folder


def load(path: Path, task: str = "died", **settings) -> Cohort:
    return load_cohort(CohortSpec(path=str(path), task=task, **settings))
