"""Many small variants in many blocks for minutes: does the process's memory grow, does it leave files open?

A process of its own trains, and a thread in it looks at it about once a second. A block's memory rises and falls, so
each block gives one point, the median over its samples; a line is fitted through those after the warm-up (Theil-Sen:
the median of the slopes of all pairs, with Sen's interval of 95 %, which counts each block as one observation).
Files are counted where a block ends, when all are closed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import Line, circumstances, report

_ROOT = Path(__file__).parent.parent
_WARM_UP = 0.25
_SAMPLES_PER_BLOCK = 10
_TRIAL_EPOCHS = (4, 24)


class Sample(NamedTuple):
    """What the process held at a moment (seconds since the watch began)."""

    seconds: float
    mib: float
    files: int
    threads: int


def look(start: float) -> Sample:
    """At this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    files, threads = (len(list(Path("/proc/self", what).iterdir())) for what in ("fd", "task"))
    files -= 1  # the listing's own handle, open while it is made
    return Sample(time.perf_counter() - start, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threads)


class Watch:
    """Samples of this process, by the block in which they were taken; a listener of the training.

    Args:
        every: Seconds between two.
        on_block: Called at the end of each block.
    """

    def __init__(self, every: float, on_block: Callable[[], None] = lambda: None) -> None:
        self.blocks: list[list[Sample]] = []
        self._now: list[Sample] = []
        self._every, self._on_block = every, on_block
        self._begin = time.perf_counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, variant_epochs: int) -> None:
        """The training begins."""
        self._thread.start()

    def advance(self, variant_epochs: int) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """A block is done (the only thing that a training says, if memory does not run out)."""
        self._on_block()
        self._now.append(look(self._begin))
        self.blocks.append(self._now)
        self._now = []

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self._now.append(look(self._begin))


@dataclass(frozen=True)
class Slope:
    """Of a line through points, in units of y per unit of x, with its 95 % interval."""

    median: float
    low: float
    high: float


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Theil-Sen: the median of the slopes of all pairs; half of the points may be anywhere.

    Source: Sen 1968, doi:10.1080/01621459.1968.10480934.

    >>> slope([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6, 99, 10, 12, 14]).median
    2.0
    """
    n, xs, ys = len(x), np.array(x, np.float64), np.array(y, np.float64)
    first, second = np.triu_indices(n, 1)
    slopes = np.sort((ys[second] - ys[first]) / (xs[second] - xs[first]))
    half = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = int((len(slopes) - half) / 2), int((len(slopes) + half) / 2)
    return Slope(float(np.median(slopes)), float(slopes[max(low, 0)]), float(slopes[min(high, len(slopes) - 1)]))


def judge(blocks: Sequence[Sequence[Sample]]) -> Line:
    """What the samples of the blocks say.

    Returns:
        `mib_per_minute` and `files_per_block` (slopes after the warm-up), `max_mib`, and of the first block after the
        warm-up and the last `mib`, `files` and `threads`; `minutes` and `samples` in all.
    """
    after = blocks[math.ceil(_WARM_UP * len(blocks)) :]
    minutes = [statistics.median(sample.seconds for sample in block) / 60 for block in after]
    mib = [statistics.median(sample.mib for sample in block) for block in after]
    files = [block[-1].files for block in after]
    found = slope(minutes, mib), slope(range(len(files)), files)
    every = [sample for block in blocks for sample in block]
    return {
        "mib_per_minute": {name: round(value, 4) for name, value in vars(found[0]).items()},
        "files_per_block": found[1].median,
        "max_mib": round(max(sample.mib for sample in every), 1),
        "mib": [round(mib[0], 1), round(mib[-1], 1)],
        "files": [files[0], files[-1]],
        "threads": [after[0][-1].threads, after[-1][-1].threads],
        "minutes": round(every[-1].seconds / 60, 3),
        "samples": len(every),
    }


def train(
    folder: Path, *, variants: int, blocks: int, minutes: float, on_block: Callable[[], None] = lambda: None
) -> Line:
    """Train variants in blocks for about so many minutes, and watch this process.

    Args:
        folder: Holds a cohort with the task `y`; runs are written into it.
        variants: V.
        blocks: The number of blocks.
        minutes: Of all blocks together; how many epochs that takes is tried out first.
        on_block: Called at the end of each block.

    Returns:
        What `judge` says; `epochs`; `history_mib` of one block; and `bound_mib_per_minute`, half of the slope that
        would come of keeping every block's history.
    """
    import vmapens
    from vmapens.cohort.load import load_cohort
    from vmapens.run import Run
    from vmapens.spec import CohortSpec, ModelSpec, RunSpec, TrainSpec, VariantSpec

    cohort = load_cohort(CohortSpec(path=str(folder), task="y"))
    size = math.ceil(variants / blocks)

    def run(name: str, count: int, epochs: int, watch: Watch) -> Run:
        spec = RunSpec(
            model=ModelSpec(hidden=4),
            train=TrainSpec(epochs=epochs, device="cpu"),
            variants=VariantSpec(init_seeds=tuple(range(count))),
            block=size,
            save_attention="test:2",
        )
        return vmapens.train(None, cohort, spec, folder / name, overwrite=True, listener=watch)

    def seconds(epochs: int) -> float:
        watch = Watch(3600)
        run(f"trial-{epochs}", 2 * size, epochs, watch)
        watch.stop()
        return watch.blocks[1][-1].seconds - watch.blocks[0][-1].seconds

    few, many = _TRIAL_EPOCHS
    seconds(few)  # once for the machine code
    short, long = seconds(few), seconds(many)
    of_epoch = max((long - short) / (many - few), 1e-4)
    of_block = 60 * minutes / blocks
    epochs = max(1, round((of_block - max(short - few * of_epoch, 0)) / of_epoch))
    epochs = max(1, round(epochs * of_block / seconds(epochs)))  # once in earnest: a busy machine is not a steady one
    watch = Watch(min(1.0, of_block / _SAMPLES_PER_BLOCK), on_block)
    done = run("soak", variants, epochs, watch)
    watch.stop()
    found, history = judge(watch.blocks), done.history.estimated_size() / 2**20 / blocks
    bound = history * blocks / found["minutes"] / 2
    return {**found, "epochs": epochs, "history_mib": round(history, 4), "bound_mib_per_minute": round(bound, 4)}


def measure(*, variants: int = 2000, blocks: int = 40, minutes: float = 10.0) -> Line:
    """Make a small cohort, train on it in a process of its own, report.

    Returns:
        What `train` does, and the sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, "-m", "benchmarks.loading", "make", folder, "120", "8", "4"]
        subprocess.run(make, check=True, cwd=_ROOT)
        command = [sys.executable, "-m", "benchmarks.soak", "train", folder, str(variants), str(blocks), str(minutes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    found: Line = json.loads(done.stdout)
    return {"benchmark": "soak", "variants": variants, "blocks": blocks, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run soak", description=__doc__)
    parser.add_argument("--variants", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="append the line to this file, too")
    options = parser.parse_args(arguments)
    around = circumstances("cpu")
    line = measure(variants=options.variants, blocks=options.blocks, minutes=options.minutes)
    report([{**line, **around}], options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        variants, blocks, minutes = sys.argv[3:6]
        line = train(Path(sys.argv[2]), variants=int(variants), blocks=int(blocks), minutes=float(minutes))
        sys.stdout.write(json.dumps(line))
    else:
        main()
