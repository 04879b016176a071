"""What a training was predicted to take, and the peak of memory that it took, in a process of its own.

The largest cohort that is promised on a machine with 24 GB, 5.3 GB as one tensor:
`python -m benchmarks run memory --samples 20000 --steps 288 --features 231 --measured 0.3 --variants 4 --hidden 8`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loading import status

_ROOT = Path(__file__).parent.parent


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Make a cohort, train on it in a subprocess, report.

    Returns:
        `loading_mib` (predicted from the sizes alone), `predicted_mib` (once it is loaded) and `peak_mib`, all of the
        process; `ratio` (predicted over peak), `planned_mib` (what it held when the prediction was made), `block`,
        `width`, `load_seconds`, `train_seconds`, and the sizes.
    """
    sizes = {name: value for name, value in vars(options).items() if name != "folder"}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        made = [str(sizes[name]) for name in ("samples", "steps", "features", "measured")]
        subprocess.run([sys.executable, "-m", "benchmarks.loading", "make", folder, *made], check=True, cwd=_ROOT)
        command = [sys.executable, "-m", "benchmarks.memory", "train", folder, json.dumps(sizes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    found: dict[str, object] = json.loads(done.stdout)
    return {"benchmark": "memory", **sizes, **found}


def train(folder: str, options: dict[str, object]) -> dict[str, object]:
    """Train one epoch and look at this process."""
    from vmapens.cohort.memory import loading_bytes
    from vmapens.plan import plan
    from vmapens.spec import CohortSpec, ModelSpec, RunSpec, TrainSpec, VariantSpec
    from vmapens.training import execute

    model = ModelSpec(hidden=options["hidden"], attend_over=options["attend_over"])  # type: ignore[arg-type]
    spec = RunSpec(
        cohort=CohortSpec(path=folder, task="y"),
        model=model,
        train=TrainSpec(epochs=1, device="cpu"),
        variants=VariantSpec(init_seeds=tuple(range(int(str(options["variants"]))))),
    )
    begin = time.perf_counter()
    N, T, F = (int(str(options[name])) for name in ("samples", "steps", "features"))
    loading = status("VmRSS") + loading_bytes(N, T, F, rows=N * T) / 2**20
    ready = plan(spec)
    planned, loaded = status("VmRSS"), time.perf_counter()
    execute(ready, Path(folder, "run"))
    peak, predicted = status("VmHWM"), ready.needs.memory_mib
    return {
        "loading_mib": round(loading, 1),
        "predicted_mib": round(predicted, 1),
        "peak_mib": round(peak, 1),
        "ratio": round(predicted / peak, 3),
        "planned_mib": round(planned, 1),
        "block": ready.needs.block,
        "width": ready.needs.width,
        "load_seconds": round(loaded - begin, 1),
        "train_seconds": round(time.perf_counter() - loaded, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run memory", description=__doc__)
    for name, default in {"variants": 64, "hidden": 32, "samples": 2000, "steps": 48, "features": 37}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--measured", type=float, default=0.7, help="share of the cells (default 0.7)")
    parser.add_argument("--attend-over", default="feature")
    parser.add_argument("--folder", type=Path, help="where the cohort is made and removed (default: the system's)")
    sys.stdout.write(json.dumps(measure(parser.parse_args(arguments))) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.stdout.write(json.dumps(train(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
