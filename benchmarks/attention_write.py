"""How fast attention is written: against `numpy.tofile` of the same bytes, and together with computing it.

Every arm ends with the bytes on the disk (fsync). The arms of a comparison take turns in one process, each repeat in
another order, after one turn that is not counted; before each the system writes out what it holds.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import cores
from vmapens import arrow
from vmapens.ensemble.stack import Stack, stack_modules
from vmapens.ensemble.step import attend
from vmapens.manifest import versions
from vmapens.nn.attention_lstm import AttentionLSTM
from vmapens.nn.threads import spread_over

_PASS = 16  # variants handed to the writer at a time, as `vmapens.attention` does
_HIDDEN = 32


def measure(
    folder: Path, variants: int = 96, samples: int = 16, steps: int = 288, features: int = 231, repeats: int = 7
) -> dict[str, object]:
    """Time both comparisons.

    Args:
        folder: Where the files are written and removed; it decides which disk is measured.
        variants: V, a multiple of 16.
        samples: S.
        steps: T.
        features: F.
        repeats: Counted turns of each arm, >= 1.

    Returns:
        `tofile_s` and `vmapens_s`, and their `ratio` (tofile over vmapens: its share of tofile's speed); `compute_s`,
        `write_s`, `both_s`, and `hidden` (what of the shorter of the first two the third does not show: 1 is all);
        medians in seconds, each with `_min_s` and `_max_s`; `mib` (of the file), sizes, `peak_mib` of this process,
        `cores`, `versions`.
    """
    path = folder / "attention.arrow"
    schema = arrow.attention_schema((steps, features), 1, {})
    given = np.random.default_rng(0).random((variants, samples, steps, features), dtype=np.float32)

    def write(passes: Callable[[int], np.ndarray]) -> None:
        ids, y = [f"stay-{number}" for number in range(samples)], np.zeros(samples, np.int64)
        probability = np.zeros((_PASS, samples), np.float32)
        with arrow.write_attention(path, schema) as writer:
            for first in range(0, variants, _PASS):
                writer.write(first, ids, y, probability, passes(first))

    write(lambda first: given[first : first + _PASS])
    same = np.fromfile(path, np.uint8)

    def tofile() -> None:
        with path.open("wb") as file:
            same.tofile(file)
            os.fsync(file.fileno())

    result: dict[str, object] = {"benchmark": "attention_write", "variants": variants, "samples": samples}
    result |= {"steps": steps, "features": features, "mib": round(len(same) / 2**20, 1), "repeats": repeats}
    arms: dict[str, Callable[[], None]] = {
        "tofile": tofile,
        "vmapens": lambda: write(lambda first: given[first : first + _PASS]),
    }
    medians = _take_turns(arms, repeats, path, result)
    result["ratio"] = round(medians["tofile"] / medians["vmapens"], 3)
    del same

    stack, x = _stack(_PASS, steps, features), torch.randn(samples, steps, features)
    model = AttentionLSTM(features, steps, hidden=_HIDDEN)

    def computed(first: int) -> np.ndarray:
        return attend(model, stack, x).numpy()

    def compute() -> None:
        for first in range(0, variants, _PASS):
            computed(first)

    arms = {
        "compute": compute,
        "write": arms["vmapens"],
        "both": lambda: write(computed),
    }
    with spread_over():
        medians = _take_turns(arms, repeats, path, result)
    hidden = medians["compute"] + medians["write"] - medians["both"]
    result["hidden"] = round(hidden / min(medians["compute"], medians["write"]), 3)
    result["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    result["cores"] = cores()
    return {**result, "versions": versions(torch.device("cpu"))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run attention_write", description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary one")
    parser.add_argument("--variants", type=int, default=96, help="a multiple of 16; default: %(default)s")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=288)
    parser.add_argument("--features", type=int, default=231)
    parser.add_argument("--repeats", type=int, default=7)
    options = vars(parser.parse_args(arguments))
    with tempfile.TemporaryDirectory(dir=options.pop("folder")) as folder:
        sys.stdout.write(json.dumps(measure(Path(folder), **options)) + "\n")


def _take_turns(
    arms: dict[str, Callable[[], None]], repeats: int, path: Path, result: dict[str, object]
) -> dict[str, float]:
    """Time the arms, put their medians and ranges into `result`, and return the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        names = list(arms) if repeat % 2 == 0 else list(reversed(arms))
        for name in names:
            path.unlink(missing_ok=True)
            os.sync()
            start = time.perf_counter()
            arms[name]()
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        result[f"{name}_s"] = round(statistics.median(values), 4)
        result[f"{name}_min_s"], result[f"{name}_max_s"] = round(min(values), 4), round(max(values), 4)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _stack(variants: int, steps: int, features: int) -> Stack:
    torch.manual_seed(0)
    return stack_modules((AttentionLSTM(features, steps, hidden=_HIDDEN) for _ in range(variants)), variants)


if __name__ == "__main__":
    main()
