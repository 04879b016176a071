"""What a training was predicted to take, and the peak of memory that it took, in a process of its own."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loading import status

_ROOT = Path(__file__).parent.parent


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Make a cohort, train on it in a subprocess, report.

    Returns:
        `predicted_mib` and `peak_mib` (of the process), `ratio` (predicted over peak), `planned_mib` (what it held when
        the prediction was made), `block`, `width`, and the sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = [str(size) for size in (options.samples, options.steps, options.features)]
        subprocess.run([sys.executable, "-m", "benchmarks.loading", "make", folder, *sizes], check=True, cwd=_ROOT)
        command = [sys.executable, "-m", "benchmarks.memory", "train", folder, json.dumps(vars(options))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    found: dict[str, object] = json.loads(done.stdout)
    return {"benchmark": "memory", **vars(options), **found}


def train(folder: str, options: dict[str, object]) -> dict[str, object]:
    """Train one epoch and look at this process."""
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
    ready = plan(spec)
    planned = status("VmRSS")
    execute(ready, Path(folder, "run"))
    peak, predicted = status("VmHWM"), ready.needs.memory_mib
    return {
        "predicted_mib": round(predicted, 1),
        "peak_mib": round(peak, 1),
        "ratio": round(predicted / peak, 3),
        "planned_mib": round(planned, 1),
        "block": ready.needs.block,
        "width": ready.needs.width,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run memory", description=__doc__)
    for name, default in {"variants": 64, "hidden": 32, "samples": 2000, "steps": 48, "features": 37}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--attend-over", default="feature")
    sys.stdout.write(json.dumps(measure(parser.parse_args(arguments))) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.stdout.write(json.dumps(train(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
