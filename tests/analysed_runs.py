"""Small runs of every kind, and what holds of the tables of all: what the tests of a whole analysis start from."""

import json
from pathlib import Path

import polars as pl

import vmapens
from vmapens.analysis.settings import PARTS, Settings
from vmapens.analysis.tables import QUANTITIES, TABLES
from vmapens.cohort.schema import INFO_FILE, LABELS_FILE, SERIES_FILE
from vmapens.cohort.synthetic import BAYES_FILE, make_synthetic
from vmapens.run import Run
from vmapens.spec import resolve

V, T, F, HIDDEN = 12, 8, 6, 4
NEVER_MEASURED = "stay-007"
BARE = tuple(PARTS)
STAYS = "stay-057,stay-102"
"""Of the test split: one in which the cause acts, and one without the outcome."""
QUICK = Settings(samples=STAYS, without=BARE)

_CROSSED = {"variants": {"design": "crossed", "init_seeds": "0:3", "order_seeds": "0:3"}}
_SIX = {"variants": {"init_seeds": "0:6"}}
_SPECS = {
    "feature": {"train": {"snapshots": [0, 1]}, "save_attention": "test", "block": 8},
    "no snapshots": {},
    "crossed": _CROSSED,
    "crossed diverges": {
        "variants": {"design": "crossed", "init_seeds": "0:2", "order_seeds": "0:2"},
        "train": {"lr": [0.01, 0.01, 0.01, 1e38]},
    },
    "crossed pool": {**_CROSSED, "model": {"attend_over": "pool"}},
    "frozen": {**_SIX, "model": {"freeze_attention": True}},
    "stratum": {**_SIX, "cohort": {"task": "stratum"}},
    "indicators": {**_SIX, "cohort": {"indicators": True}},
    "row numbers": {**_SIX, "cohort": {"sample_ids": False}},
    "other split": {**_SIX, "cohort": {"split_seed": 1}},
    "own": {**_SIX, "model": {"name": "own_model:MeanPool", "hidden": 32}},
    "two": {"variants": {"init_seeds": "0:2"}},
    "one": {"variants": {"init_seeds": "0:1"}},
    "one diverges": {**_SIX, "train": {"lr": [0.01, 0.01, 1e38, 0.01, 0.01, 0.01]}},
    "one is left": {"variants": {"init_seeds": "0:2"}, "train": {"lr": [0.01, 1e38]}},
    **{form: {**_SIX, "model": {"attend_over": form}} for form in ("time", "pool", "uniform")},
}


def make_cohort(folder: Path) -> Path:
    """200 stays; some patients have two; a second task has three classes; one stay has no measurement at all."""
    make_synthetic(folder, samples=200, steps=T, features=F, seed=1, missing=0.3)
    labels, bayes = (pl.read_parquet(folder / name) for name in (LABELS_FILE, BAYES_FILE))
    strata = sorted(bayes["stratum"].unique())
    stratum = bayes["stratum"].replace_strict({name: code for code, name in enumerate(strata)}, return_dtype=pl.Int32)
    group = [f"patient-{row // 2}" if row % 5 else None for row in range(len(labels))]
    labels.with_columns(stratum=stratum, group=pl.Series(group)).write_parquet(folder / LABELS_FILE)
    info = json.loads((folder / INFO_FILE).read_text())
    info["tasks"].append({"name": "stratum", "kind": "multiclass", "classes": strata, "note": ""})
    (folder / INFO_FILE).write_text(json.dumps(info))
    series = pl.read_parquet(folder / SERIES_FILE)
    nothing = pl.when(pl.col("sample") != NEVER_MEASURED).then(pl.exclude("sample", "step"))
    series.with_columns(nothing).write_parquet(folder / SERIES_FILE)
    return folder


class Runs:
    """Runs by name, each trained when it is first asked for.

    Args:
        cohort: From `make_cohort`.
        folder: Where they go.
    """

    def __init__(self, cohort: Path, folder: Path) -> None:
        self._cohort, self._folder, self._made = cohort, folder, dict[str, Run]()

    def __call__(self, name: str) -> Run:
        if name not in self._made:
            given = _SPECS[name]
            spec = {
                "cohort": {"path": str(self._cohort), "task": "outcome"} | given.get("cohort", {}),
                "model": {"hidden": HIDDEN} | given.get("model", {}),
                "train": {"epochs": 3, "lr": 0.01} | given.get("train", {}),
                "variants": given.get("variants", {"init_seeds": f"0:{V}"}),
                "save_attention": given.get("save_attention", "none"),
                "block": given.get("block", "auto"),
            }
            self._made[name] = vmapens.train(None, None, resolve(spec), self._folder / name.replace(" ", "-"))
        return self._made[name]

    def path(self, name: str) -> Path:
        return self(name).paths.root


def files_of(path: Path) -> dict[str, bytes]:
    """What is in the folder of an analysis, by name."""
    return {file.name: file.read_bytes() for file in sorted((path / "analysis").glob("*"))}


def only(frame, **equal):
    """The one row with these values."""
    found = frame.filter(*(pl.col(name).eq_missing(pl.lit(value)) for name, value in equal.items()))
    assert len(found) == 1, (equal, found)
    return found.row(0, named=True)


def check_tables(tables):
    """What holds of the tables of every run."""
    assert list(tables) == list(TABLES)
    for name, frame in tables.items():
        assert frame.schema == TABLES[name], name
        for column in frame.select(pl.col(pl.Float64)):
            assert not column.is_nan().any(), (name, column.name)
            assert not column.is_infinite().any(), (name, column.name)
        if {"low", "high"} <= set(frame.columns):
            ends = frame.filter(pl.col("low").is_not_null())
            assert (ends["low"] <= ends["high"]).all(), name
    consistency = tables["consistency"]
    assert set(consistency["quantity"]) <= set(QUANTITIES)
    shares = consistency.filter(measure="overlap", quantity="value")["estimate"]
    assert shares.is_between(0, 1 + 1e-9).all()
    assert tables["drop"].filter(pl.col("random_order") > pl.col("k")).is_empty()
    assert tables["faithfulness"].filter(pl.col("change").abs() > pl.col("size") + 1e-9).is_empty()
    assert tables["planted"]["average_precision"].is_between(0, 1).all()
