"""How long a large import takes, and the most memory its process holds, on a source that is made for it.

The source is written by one process, a piece at a time, and imported by another, so that only the importer counts:
`peak_mib` is the largest resident set of that process, libraries included; `libraries_mib` is what it held before.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loading import run_module, status

_SUBJECTS = 20_000
_CODES = 200
_SHARDS = 20
_DAY = 86_400_000_000
_STEPS = 288
_COLUMNS = 231
_STAYS_AT_ONCE = 100


def measure(source: str, size: int, folder: Path | None = None) -> dict[str, object]:
    """Make a source, import it, report.

    Args:
        source: `meds` or `hirid`.
        size: Events, or stays.
        folder: Where the source and the cohort go, which are removed again (default: the system's temporary folder).

    Returns:
        `source`, `size`, `source_mib` (its files), `make_s`, `seconds` (of the import, all files written), `peak_mib`,
        `libraries_mib`, and of the cohort `samples`, `steps`, `features`, `cohort_mib`.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        start = time.perf_counter()
        run_module("benchmarks.import_size", "make", source, str(size), place)
        made = time.perf_counter() - start
        found: dict[str, object] = json.loads(run_module("benchmarks.import_size", "import", source, place))
        source_mib = _mib(Path(place, source))
    return {"source": source, "size": size, "source_mib": source_mib, "make_s": round(made, 1), **found}


def make_meds(folder: Path, events: int) -> None:
    """A MEDS data set: 20,000 subjects of four days, in 20 shards, sorted; the same numbers for the same size.

    The label stands at the end of the second day, so that half of the events are in a window of 48 h. A tenth of the
    events have no number; codes differ in frequency as 1 to 200.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pa.array([f"LAB//{number}//unit" for number in range(_CODES)])
    generator = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for shard in range(_SHARDS):
        rows = events * (shard + 1) // _SHARDS - events * shard // _SHARDS
        per_shard = _SUBJECTS // _SHARDS
        subject = np.sort(generator.integers(per_shard * shard, per_shard * (shard + 1), rows))
        time_of = generator.integers(0, 4 * _DAY, rows)
        time_of = time_of[np.lexsort((time_of, subject))]
        code = np.minimum((_CODES * generator.random(rows) ** 2).astype(np.int32), _CODES - 1)
        value = generator.standard_normal(rows, dtype=np.float32)
        columns = {
            "subject_id": pa.array(subject),
            "time": pa.array(time_of, pa.timestamp("us")),
            "code": pa.DictionaryArray.from_arrays(code, names).cast(pa.string()),
            "numeric_value": pa.array(value, mask=generator.random(rows) < 0.1),
        }
        pq.write_table(pa.table(columns), folder / "data" / f"{shard:02d}.parquet", row_group_size=1 << 18)
    subjects = np.arange(_SUBJECTS)
    split = np.array(["train", "tuning", "held_out"])[np.searchsorted([7, 8], subjects % 10, side="right")]
    pq.write_table(pa.table({"subject_id": subjects, "split": split}), folder / "metadata" / "subject_splits.parquet")
    labels = {
        "subject_id": subjects,
        "prediction_time": pa.array(np.full(_SUBJECTS, 2 * _DAY), pa.timestamp("us")),
        "boolean_value": generator.random(_SUBJECTS) < 0.1,
    }
    pq.write_table(pa.table(labels), folder / "labels.parquet")


def make_hirid(folder: Path, stays: int) -> None:
    """A file as HiRID-ICU-Benchmark writes it, of stays of 288 to 863 rows, written a hundred at a time.

    Values change every few rows, as values that were carried forward do, and compress accordingly.
    """
    import h5py
    import hdf5plugin
    import numpy as np

    blosc = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
    tasks = ["datetime", "Mortality_At24Hours", "Phenotyping_APACHEGroup"]
    generator = np.random.default_rng(0)
    pool = np.round(generator.standard_normal((20 * _STAYS_AT_ONCE, _COLUMNS)), 3)
    folder.mkdir(parents=True)
    with h5py.File(folder / "ml_stage_12h.h5", "w") as file:
        file["data/columns"] = np.array([f"column {number}".encode() for number in range(_COLUMNS)])
        file["labels/tasks"] = np.array([name.encode() for name in tasks])
        patient = 0
        for split, count in (("train", stays - 3 * (stays // 10)), ("val", stays // 10), ("test", 2 * (stays // 10))):
            lengths = generator.integers(_STEPS, 3 * _STEPS, count)
            stops = np.cumsum(lengths)
            patients = np.arange(patient, patient + count)
            patient += count
            file[f"patient_windows/{split}"] = np.stack([stops - lengths, stops, patients], axis=1)
            data, labels = (
                file.create_dataset(f"{group}/{split}", (stops[-1], width), np.float64, chunks=(256, width), **blosc)
                for group, width in (("data", _COLUMNS), ("labels", len(tasks)))
            )
            for first in range(0, count, _STAYS_AT_ONCE):
                some = slice(first, first + _STAYS_AT_ONCE)
                start, stop = stops[first] - lengths[first], stops[some][-1]
                changes = generator.integers(0, len(pool), (stop - start) // 12 + 1)
                data[start:stop] = np.repeat(pool[changes], 12, axis=0)[: stop - start]
                values = np.full((stop - start, len(tasks)), np.nan)
                last = stops[some] - lengths[some] - start + _STEPS - 1
                values[last, 1] = generator.random(len(last)) < 0.1
                values[last, 2] = generator.integers(0, 15, len(last))
                labels[start:stop] = values


def import_made(source: str, folder: Path) -> dict[str, object]:
    """Import what was made, in this process, and look at it."""
    import polars as pl

    from vmapens.cohort.write import write_cohort

    out = folder / "cohort"
    if source == "meds":
        from vmapens.cohort.importers.meds import read_meds

        libraries, start = status("VmRSS"), time.perf_counter()
        info = write_cohort(out, *read_meds(folder / source, labels=folder / source / "labels.parquet"))
    else:
        from vmapens.cohort.importers.hirid_benchmark import read_hirid_benchmark

        libraries, start = status("VmRSS"), time.perf_counter()
        info = write_cohort(out, *read_hirid_benchmark(folder / source / "ml_stage_12h.h5"))
    seconds = time.perf_counter() - start
    peak = status("VmHWM")
    return {
        "seconds": round(seconds, 1),
        "peak_mib": round(peak),
        "libraries_mib": round(libraries),
        "samples": len(pl.read_parquet(out / "labels.parquet")),
        "steps": info.steps,
        "features": len(info.features),
        "cohort_mib": _mib(out),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run import_size", description=__doc__)
    parser.add_argument("--source", choices=("meds", "hirid"), default="meds")
    parser.add_argument("--events", type=int, default=50_000_000, help="of meds (default: %(default)s)")
    parser.add_argument("--stays", type=int, default=33_900, help="of hirid (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="for the files, which are removed again; default: a temporary one")
    options = parser.parse_args(arguments)
    size = options.events if options.source == "meds" else options.stays
    result = {"benchmark": "import_size", **measure(options.source, size, options.folder)}
    sys.stdout.write(json.dumps(result) + "\n")


def _mib(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make = {"meds": make_meds, "hirid": make_hirid}[sys.argv[2]]
        make(Path(sys.argv[4], sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["import"]:
        sys.stdout.write(json.dumps(import_made(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
