"""Small made sources, one of each kind that vmapens imports, with the same twelve stays.

Wherever a source may say several things of one cell, the made one does: several values in a step, and at one time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import hdf5plugin
import numpy as np
import polars as pl

from vmapens.cohort.importers.cohort import read_cohort
from vmapens.cohort.importers.hirid_benchmark import read_hirid_benchmark
from vmapens.cohort.importers.meds import read_meds
from vmapens.cohort.importers.mimic3_benchmarks import read_mimic3_benchmarks
from vmapens.cohort.importers.mimic3_channels import CHANNELS
from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.importers.tensors import read_tensors
from vmapens.cohort.importers.yaib import read_yaib
from vmapens.cohort.label_table import join_labels
from vmapens.cohort.write import Imported

STAYS = range(1, 13)
SPLIT = {stay: ("train", "val", "test")[stay % 3] for stay in STAYS}
TIMES = pl.datetime_range(pl.datetime(2150, 1, 1), pl.datetime(2150, 1, 2), "3h", eager=True, closed="left")


class Source(NamedTuple):
    """A small made source.

    Args:
        make: Writes its files into a folder.
        read: Reads them.
        tables: Globs of the files whose rows may be permuted.
        repeated: Those of them whose rows may be there twice, too; all of them if None.
        refusal: What is said of rows that are there twice, where they may not be.
        samples: How many the cohort has.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Imported]
    tables: tuple[str, ...]
    repeated: tuple[str, ...] | None = None
    refusal: str | None = None
    samples: int = len(STAYS)


def values(stay: int, step: int) -> float:
    return round(50 + 7 * np.sin(stay) + step / 4, 3)


def make_yaib(folder: Path) -> None:
    keys = [(stay, half, other) for stay in STAYS for half in range(8) for other in range(1 + (half == 5))]
    dyn = pl.DataFrame(
        {
            "stay_id": [stay for stay, *_ in keys],
            "time": pl.Series([half * 1_800_000 for _, half, _ in keys]).cast(pl.Duration("ms")),
            "hr": [values(stay, half) + other for stay, half, other in keys],
            "map": [None if half % 2 else values(half, stay) for stay, half, _ in keys],
        }
    )
    dyn.write_parquet(folder / "dyn.parquet")
    sta = {"stay_id": STAYS, "age": [40.0 + stay for stay in STAYS], "sex": ["Male", "Female"] * 6}
    pl.DataFrame(sta).write_parquet(folder / "sta.parquet")
    pl.DataFrame({"stay_id": STAYS, "label": [s % 5 // 3 for s in STAYS]}).write_parquet(folder / "outc.parquet")
    pl.DataFrame({"stay": STAYS, "ward": ["abc"[stay % 3] for stay in STAYS]}).write_csv(folder / "wards.csv")


def make_meds(folder: Path) -> None:
    (folder / "data").mkdir()
    codes = ("LAB//1", "LAB//2", "LAB//2")  # the second is there with two numbers
    rows = [(s, t, c, values(s, i + n)) for s in STAYS for i, t in enumerate(TIMES) for n, c in enumerate(codes)]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    for shard in range(2):
        table.filter(pl.col("subject_id") % 2 == shard).write_parquet(folder / "data" / f"{shard}.parquet")
    labels = {"subject_id": STAYS, "boolean_value": [stay % 2 == 0 for stay in STAYS]}
    labels = pl.DataFrame(labels).with_columns(prediction_time=pl.lit(TIMES[6]))
    labels.write_parquet(folder / "labels.parquet")


def make_meds_with_splits(folder: Path) -> None:
    """Two labels a subject."""
    make_meds(folder)
    labels = pl.read_parquet(folder / "labels.parquet")
    labels = pl.concat([labels, labels.with_columns(prediction_time=pl.lit(TIMES[3]))])
    labels.write_parquet(folder / "labels.parquet")
    (folder / "metadata").mkdir()
    splits = {"subject_id": STAYS, "split": [("train", "tuning", "held_out")[stay % 3] for stay in STAYS]}
    pl.DataFrame(splits).write_parquet(folder / "metadata" / "subject_splits.parquet")


def make_mimic3(folder: Path, header: str = "stay,y_true", more: str = "") -> None:
    head = ",".join(["Hours", *(channel.name for channel in CHANNELS)])
    place = [channel.name for channel in CHANNELS].index("Heart Rate")
    for split in ("train", "test"):
        (folder / split).mkdir()
        (folder / split / "listfile.csv").write_text(header + "\n")
    for name in ("train", "val", "test"):
        lines = [f"{s}_episode1_timeseries.csv,{more}{s % 5 // 3}" for s in STAYS if SPLIT[s] == name]
        (folder / f"{name}_listfile.csv").write_text("\n".join([header, *lines]) + "\n")
    times = (0.5, 0.75, 0.75, 1.5, 2.5)
    before, after = "," * (place + 1), "," * (len(CHANNELS) - place - 1)
    for stay in STAYS:
        rows = [f"{time}{before}{values(stay, step)}{after}" for step, time in enumerate(times)]
        where = folder / ("test" if SPLIT[stay] == "test" else "train")
        (where / f"{stay}_episode1_timeseries.csv").write_text("\n".join([head, *rows]) + "\n")


def make_phenotyping(folder: Path) -> None:
    make_mimic3(folder, "stay,period_length,Shock,Pneumonia", "9.5,1,")


def make_physionet(folder: Path) -> None:
    """No parameter has two values in one minute: a record is a log, so of these the last in its order is kept."""
    (folder / "set-a").mkdir()
    outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    for stay in STAYS:
        first = [f"00:00,{name},{number}" for name, number in (("RecordID", stay), ("Age", 40 + stay), ("ICUType", 2))]
        rows = [f"0{half // 2}:{10 + half % 2},HR,{values(stay, half)}" for half in range(8)]
        (folder / "set-a" / f"{stay}.txt").write_text("\n".join(["Time,Parameter,Value", *first, *rows]) + "\n")
        outcomes.append(f"{stay},{stay},3,9,-1,{stay % 2}")
    (folder / "Outcomes-a.txt").write_text("\n".join(outcomes) + "\n")


def make_hirid(folder: Path) -> None:
    blosc = hdf5plugin.Blosc(cname="lz4", clevel=5)
    with h5py.File(folder / "ml_stage.h5", "w") as file:
        file["data/columns"] = np.array([b"datetime", b"vm1"])
        file["labels/tasks"] = np.array([b"datetime", b"Mortality_At24Hours", b"Phenotyping_APACHEGroup"])
        for split in ("train", "val", "test"):
            mine = [stay for stay in STAYS if SPLIT[stay] == split]
            cells = [(step, values(stay, step)) for stay in mine for step in range(5)]
            labels = [
                (step, s % 5 // 3, s % 2) if step == 3 else (step, np.nan, np.nan) for s in mine for step in range(5)
            ]
            windows = [(5 * place, 5 * place + 5, stay) for place, stay in enumerate(mine)]
            for group, rows in (("data", cells), ("labels", labels)):
                file.create_dataset(f"{group}/{split}", data=np.array(rows, float), chunks=(4, len(rows[0])), **blosc)
            file[f"patient_windows/{split}"] = np.array(windows, np.int64)


def make_tensors(folder: Path) -> None:
    x = np.array([[[values(stay, step), np.nan] for step in range(4)] for stay in STAYS], np.float32)
    np.savez(folder / "all.npz", x=x, y=np.array([stay % 2 for stay in STAYS]), ids=np.array(STAYS))


def make_tensors_in_hdf5(folder: Path) -> None:
    """As PyPOTS saves them: a group a split."""
    make_tensors(folder)
    with np.load(folder / "all.npz", allow_pickle=False) as arrays, h5py.File(folder / "all.h5", "w") as file:
        for place, split in enumerate(("train", "val", "test")):
            for name, key in (("X", "x"), ("y", "y"), ("ids", "ids")):
                file[f"{split}/{name}"] = arrays[key][place::3]
    (folder / "all.npz").unlink()


def make_mapping(folder: Path, series: str = 'files = "dyn.parquet"') -> None:
    make_yaib(folder)
    (folder / "own.toml").write_text(
        f"""
        steps = 4
        minutes_per_step = 60
        [series]
        {series}
        sample = "stay_id"
        time = "time"
        time_unit = "duration"
        [labels]
        file = "outc.parquet"
        sample = "stay_id"
        tasks = ["label"]
        [static]
        file = "sta.parquet"
        sample = "stay_id"
        """
    )


def make_long_mapping(folder: Path) -> None:
    make_mapping(folder, 'files = "long.parquet"\nlayout = "long"\nfeature = "code"\nvalue = "number"')
    dyn = pl.read_parquet(folder / "dyn.parquet")
    long = dyn.unpivot(index=["stay_id", "time"], variable_name="code", value_name="number")
    long.write_parquet(folder / "long.parquet")
    (folder / "dyn.parquet").unlink()


SOURCES = {
    "yaib": Source(make_yaib, lambda folder: read_yaib(folder, steps=4), ("*.parquet",)),
    "yaib and a table of labels": Source(
        make_yaib,
        lambda folder: join_labels(read_yaib(folder, steps=4), folder / "wards.csv", column="ward"),
        ("*.parquet", "wards.csv"),
    ),
    "meds": Source(
        make_meds,
        lambda folder: read_meds(folder, labels=folder / "labels.parquet", window="24h", every="6h", codes=["re:LAB"]),
        ("labels.parquet", "data/*.parquet"),
    ),
    "meds with splits and two labels a subject": Source(
        make_meds_with_splits,
        lambda folder: read_meds(folder, labels=folder / "labels.parquet", window="24h", every="6h", codes=["50%"]),
        ("labels.parquet", "data/*.parquet", "metadata/*.parquet"),
        samples=2 * len(STAYS),
    ),
    "mimic3-benchmarks": Source(
        make_mimic3,
        lambda folder: read_mimic3_benchmarks(folder, task="ihm", steps=4),
        ("*.csv", "train/*_episode*.csv"),
    ),
    "mimic3-benchmarks, phenotyping": Source(
        make_phenotyping,
        lambda folder: read_mimic3_benchmarks(folder, task="phenotyping", steps=4),
        ("*.csv", "train/*_episode*.csv"),
    ),
    "physionet2012": Source(
        make_physionet, lambda folder: read_physionet2012([folder]), ("Outcomes-a.txt", "set-a/*.txt")
    ),
    "hirid-benchmark": Source(
        make_hirid, lambda folder: read_hirid_benchmark(folder / "ml_stage.h5", steps=4), ("*.h5",)
    ),
    "tensors": Source(
        make_tensors,
        lambda folder: read_tensors([folder / "all.npz"]),
        ("*.npz",),
        refusal="4 ids occur more than once",
    ),
    "tensors in hdf5": Source(
        make_tensors_in_hdf5,
        lambda folder: read_tensors([folder / "all.h5"]),
        ("*.h5",),
        refusal="3 ids occur more than once",
    ),
    "cohort, of a mapping": Source(
        make_mapping, lambda folder: read_cohort(folder / "own.toml"), ("*.parquet",), ("dyn.parquet",)
    ),
    "cohort, of a mapping of a long table": Source(
        make_long_mapping, lambda folder: read_cohort(folder / "own.toml"), ("*.parquet",), ("long.parquet",)
    ),
}
