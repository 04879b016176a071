"""How long an import takes, in units of reading the same archive and doing nothing with it."""

import argparse
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import cores
from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.write import write_cohort

ARCHIVE = "physionet2012-set-a.tar.xz"


def read_members(archive: Path) -> int:
    """Decompress a tar archive and read all its members, front to back: the floor of every import.

    Returns:
        The bytes of all members.
    """
    size = 0
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                size += len(file.read())
    return size


def measure(archive: Path, repeats: int = 3) -> dict[str, object]:
    """Time reading and importing one archive of PhysioNet/CinC 2012, in turn, after one import that is not counted.

    Args:
        archive: A set as `.tar.xz` or another tar, with its outcomes.
        repeats: Timings of each, >= 1.

    Returns:
        `read_s` and `import_s` (medians, seconds), their `_min_s` and `_max_s`, `ratio` (import over read, of the
        medians), `repeats`, `cores`, `archive` (its name), `bytes` (of all members).
    """
    timings: dict[str, list[float]] = {"read": [], "import": []}
    _import(archive)
    size = 0
    for _ in range(repeats):
        seconds, size = _timed(lambda: read_members(archive))
        timings["read"].append(seconds)
        seconds, _ = _timed(lambda: _import(archive))
        timings["import"].append(seconds)
    result: dict[str, object] = {"benchmark": "import", "archive": archive.name, "bytes": size, "repeats": repeats}
    result["cores"] = cores()
    for name, seconds_of in timings.items():
        result[f"{name}_s"] = round(statistics.median(seconds_of), 4)
        result[f"{name}_min_s"], result[f"{name}_max_s"] = round(min(seconds_of), 4), round(max(seconds_of), 4)
    result["ratio"] = round(statistics.median(timings["import"]) / statistics.median(timings["read"]), 3)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    data = Path(os.environ.get("VMAPENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks import", description=__doc__)
    parser.add_argument("archive", nargs="?", type=Path, default=data / ARCHIVE, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if not options.archive.is_file():
        parser.error(f"{options.archive} does not exist: name the archive of a set, or set VMAPENS_DATA to its folder.")
    sys.stdout.write(json.dumps(measure(options.archive, options.repeats)) + "\n")


def _import(archive: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return write_cohort(Path(folder, "cohort"), *read_physionet2012([archive])).steps


def _timed(task: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    result = task()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
