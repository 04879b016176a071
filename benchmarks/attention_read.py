"""What a reader of attention takes from the disk: one sample under all variants, and one variant for all samples.

Before each turn the system forgets the files' pages; afterwards it is asked which pages it holds (`page_cache`).
"""

import argparse
import json
import mmap
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.harness import cores
from benchmarks.page_cache import forget, resident
from vmapens import arrow
from vmapens.directory import FORMAT_VERSION, RunPaths, write_json, write_parquet
from vmapens.manifest import versions
from vmapens.run import open_run


def make_run(folder: Path, attention: np.ndarray, *, block: int) -> RunPaths:
    """Write as much of a run directory as a reader of attention needs.

    Args:
        folder: The run.
        attention: [V, S, T, F] or [V, S, T], float32; the samples are called stay-0, stay-1, ...
        block: Variants per file.
    """
    paths = RunPaths(folder)
    count, samples, *sizes = attention.shape
    blocks = [(start, min(start + block, count)) for start in range(0, count, block)]
    schema, ids = arrow.attention_schema(sizes, 1, {}), [f"stay-{number}" for number in range(samples)]
    y, probability = np.zeros(samples, np.int64), np.zeros((count, samples), np.float32)
    for start, stop in blocks:
        with arrow.write_attention(paths.attention(start, stop, 0), schema) as writer:
            writer.write(start, ids, y, probability[start:stop], attention[start:stop])
    write_parquet(paths.attention_index, pl.DataFrame({"sample": ids, "part": np.zeros(samples, np.int32)}))
    cohort = {"fingerprint": "", "samples": {"train": 0, "valid": 0, "test": samples}}
    task = {"name": "none", "kind": "binary", "classes": ["0", "1"], "note": ""}
    model = {"made_from": "python", "class": "none", "features": sizes[-1], "steps": sizes[0], "outputs": 1}
    manifest = {"format_version": FORMAT_VERSION, "state": "done", "spec": {}, "cohort": cohort}
    write_json(paths.manifest, {**manifest, "task": task, "model": model, "blocks": [list(block) for block in blocks]})
    return paths


def measure(
    folder: Path, variants: int = 64, samples: int = 16, steps: int = 288, features: int = 231, repeats: int = 5
) -> dict[str, object]:
    """Write a run, read one sample and one variant of it, count pages.

    Args:
        folder: Where the run is written.
        variants: V, in two blocks.
        samples: S.
        steps: T.
        features: F.
        repeats: Turns of each, >= 1.

    Returns:
        For `sample` and `variant`: `_mib` (what was asked for), `_read_mib` (what the system took from the disk), their
        `_ratio` (read over asked for, >= 1), each of the turn that read most, and `_s` with `_min_s` and `_max_s`
        (median, seconds, from the disk); `files_mib`, sizes, `peak_mib` of this process, `cores`, `versions`.
    """
    attention = np.random.default_rng(0).random((variants, samples, steps, features), dtype=np.float32)
    paths = make_run(folder, attention, block=-(-variants // 2))
    files = sorted((folder / "attention").glob("block=*/*.arrow"))
    run = open_run(paths.root)
    sample, variant = samples // 2, variants // 2
    arms: dict[str, tuple[Callable[[], np.ndarray], np.ndarray]] = {
        "sample": (lambda: run.attention(f"stay-{sample}"), attention[:, sample]),
        "variant": (lambda: run.attention(variants=variant), attention[variant]),
    }
    result: dict[str, object] = {"benchmark": "attention_read", "variants": variants, "samples": samples}
    result |= {"steps": steps, "features": features, "repeats": repeats}
    result["files_mib"] = round(sum(file.stat().st_size for file in files) / 2**20, 1)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, (read, wanted) in arms.items():
            for file in files:
                forget(file)
            if any(resident(file).any() for file in files):
                raise RuntimeError(f"{folder} keeps its files in memory: name a --folder on a disk")
            start = time.perf_counter()
            got = read()
            seconds[name].append(time.perf_counter() - start)
            taken[name].append(sum(int(resident(file).sum()) for file in files) * mmap.PAGESIZE / 2**20)
            if not np.array_equal(got, wanted):
                raise RuntimeError(f"{name}: other values were read than written")
    for name, (_, wanted) in arms.items():
        mib = wanted.nbytes / 2**20
        result |= {f"{name}_mib": round(mib, 2), f"{name}_read_mib": round(max(taken[name]), 2)}
        result[f"{name}_ratio"] = round(max(taken[name]) / mib, 3)
        result[f"{name}_s"] = round(statistics.median(seconds[name]), 4)
        result[f"{name}_min_s"], result[f"{name}_max_s"] = round(min(seconds[name]), 4), round(max(seconds[name]), 4)
    result["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    result["cores"] = cores()
    return {**result, "versions": versions(torch.device("cpu"))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` as one line of JSON to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run attention_read", description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: a temporary one")
    parser.add_argument("--variants", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=288)
    parser.add_argument("--features", type=int, default=231)
    parser.add_argument("--repeats", type=int, default=5)
    options = vars(parser.parse_args(arguments))
    with tempfile.TemporaryDirectory(dir=options.pop("folder")) as folder:
        sys.stdout.write(json.dumps(measure(Path(folder), **options)) + "\n")


if __name__ == "__main__":
    main()
