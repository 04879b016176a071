"""How much memory and time loading a cohort takes, measured in a process of its own.

The cohort is written by one subprocess, as a stream, and loaded by another, so that neither the writer's memory nor
this process counts. Growth is the peak of the resident set during `load_cohort` over the resident set after imports.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_STAYS_AT_ONCE = 100


def measure(samples: int = 5000, steps: int = 288, features: int = 231, measured: float = 0.7) -> dict[str, float]:
    """Write a cohort of which that share of the cells is measured, load it, report.

    Returns:
        `tensor_mib` (x alone), `growth_mib` (peak over baseline), `ratio` (of the two), `seconds`, `file_mib`, and the
        three sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_module("benchmarks.loading", "make", folder, str(samples), str(steps), str(features), str(measured))
        found: dict[str, float] = json.loads(run_module("benchmarks.loading", "load", folder))
    return {"samples": samples, "steps": steps, "features": features, "measured": measured, **found}


def make(folder: Path, samples: int, steps: int, features: int, measured: float = 0.7) -> None:
    """Write the cohort: the same hundred stays again and again, under other ids, a row group each time.

    So a large one takes little memory, and a second for each 100 MB.
    """
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vmapens.cohort.schema import SERIES_FILE, CohortInfo, Feature, Task
    from vmapens.cohort.write import write_cohort

    names = [f"f{number:03d}" for number in range(features)]
    info = CohortInfo(steps, 5.0, tuple(Feature(n) for n in names), (Task("y", "binary", ("0", "1")),), "made", "none")
    empty = pl.DataFrame({"sample": [], "step": []} | {n: [] for n in names}, schema_overrides={"sample": pl.String})
    ids = [f"stay-{number}" for number in range(samples)]
    write_cohort(
        folder, info, empty, pl.DataFrame({"sample": ids, "y": [number % 5 == 0 for number in range(samples)]})
    )
    kinds = [("sample", pa.string()), ("step", pa.int32()), *((name, pa.float32()) for name in names)]
    generator = np.random.default_rng(0)
    values = generator.standard_normal((features, _STAYS_AT_ONCE * steps), dtype=np.float32)
    missing = generator.random(values.shape, dtype=np.float32) >= measured
    columns = [pa.array(row, mask=gap) for row, gap in zip(values, missing, strict=True)]
    step = pa.array(np.tile(np.arange(steps, dtype=np.int32), _STAYS_AT_ONCE))
    with pq.ParquetWriter(folder / SERIES_FILE, pa.schema(kinds)) as writer:
        for start in range(0, samples, _STAYS_AT_ONCE):
            some = np.repeat(ids[start : start + _STAYS_AT_ONCE], steps)
            rest = [column.slice(0, len(some)) for column in (step, *columns)]
            writer.write_table(pa.table([pa.array(some), *rest], schema=writer.schema))


def load(folder: Path) -> dict[str, float]:
    """Load the cohort and look at this process."""
    from vmapens.cohort.load import load_cohort
    from vmapens.cohort.schema import SERIES_FILE
    from vmapens.spec import CohortSpec

    # Writing 5 makes the kernel forget the peak of the imports.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    start = time.perf_counter()
    cohort = load_cohort(CohortSpec(path=str(folder), task="y"))
    seconds = time.perf_counter() - start
    growth = status("VmHWM") - before
    tensor = cohort.x.nbytes / 2**20
    file_mib = (folder / SERIES_FILE).stat().st_size / 2**20
    return {
        "tensor_mib": round(tensor, 1),
        "growth_mib": round(growth, 1),
        "ratio": round(growth / tensor, 3),
        "seconds": round(seconds, 1),
        "file_mib": round(file_mib, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run load", description=__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=288)
    parser.add_argument("--features", type=int, default=231)
    parser.add_argument("--measured", type=float, default=0.7, help="share of the cells (default 0.7)")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps({"benchmark": "load", **measure(**vars(options))}) + "\n")


def status(key: str) -> float:
    """A line of /proc/self/status (Linux) in MiB."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {key} in /proc/self/status: this measurement needs Linux")
    return int(found[1]) / 1024


def run_module(name: str, *arguments: str) -> str:
    """What a module says that runs in a process of its own, from the root of the repository."""
    command = [sys.executable, "-m", name, *arguments]
    root = Path(__file__).parent.parent
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]), *(int(size) for size in sys.argv[3:6]), *(float(share) for share in sys.argv[6:7]))
    elif sys.argv[1:2] == ["load"]:
        sys.stdout.write(json.dumps(load(Path(sys.argv[2]))))
    else:
        main()
