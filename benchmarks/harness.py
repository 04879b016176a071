"""What every comparison shares: interleaved timing, spread, and the line of JSON that says how it came about.

Tasks are timed in rounds, each round every task once, every other round in the opposite order, so that a machine that
drifts does so for all. Before a task is timed come its settings, a pause in which the threads of the task before it
fall asleep (OpenMP's spin for some milliseconds), and a call that is not timed, in which its own wake up. Seen: arms
(a), (b) and (d) take as long beside each other in one process as each takes in a process of its own.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import vmapens

_PAUSE_S = 0.05
_PACKAGES = ("torch", "numba", "numpy", "polars", "scikit-learn", "jax", "triton")
_Key = TypeVar("_Key")
Line = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Something to be timed.

    Args:
        settings: Entered around the other two.
        warm_up: Called before each timing.
        work: What is timed.
        units: How many units of work (variant-steps, say) one call of `work` does.
    """

    settings: Callable[[], AbstractContextManager[None]]
    warm_up: Callable[[], object]
    work: Callable[[], object]
    units: int


def interleave(tasks: Mapping[_Key, Task], rounds: int) -> dict[_Key, list[float]]:
    """Time every task once a round.

    Returns:
        Seconds per unit of each task, round by round.
    """
    seconds: dict[_Key, list[float]] = {key: [] for key in tasks}
    for number in range(rounds):
        for key in list(tasks) if number % 2 == 0 else list(tasks)[::-1]:
            task = tasks[key]
            with task.settings():
                time.sleep(_PAUSE_S)
                task.warm_up()
                start = time.perf_counter()
                task.work()
                seconds[key].append((time.perf_counter() - start) / task.units)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, to five digits."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Spread over the rounds of the other's time over ours in the same round; above 1 ours is faster."""
    return spread([other / own for other, own in zip(theirs, ours, strict=True)])


def compared(seconds: Mapping[str, Sequence[float]], details: Mapping[str, Line]) -> Line:
    """The parts of a line that compare.

    Args:
        seconds: Per unit of work, of each arm, round by round.
        details: What else to say of each arm.

    Returns:
        `ratios` (each other arm's time over ours, (a)'s, in the same round) and `arms` (details and `ms` per unit).
    """
    ratios = {letter: ratio(theirs, seconds["a"]) for letter, theirs in seconds.items() if letter != "a"}
    arms = {letter: details[letter] | {"ms": spread([1000 * s for s in own])} for letter, own in seconds.items()}
    return {"ratios": ratios, "arms": arms}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch this many intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def numerics() -> Iterator[None]:
    """The same arithmetic for all: float32 without TF32, and denormals flushed.

    Denormals in this thread and in those that it starts from here on: without, training takes up to 8 times as long.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def circumstances(device: str, commit: str = "") -> Line:
    """Where and with what a measurement was made.

    Returns:
        `device` (kind, name), `cores`, `load_before` (the load average of the minute before, 0 on a quiet machine),
        `commit` ("-dirty" with changes that are not committed; "unknown" without git), `versions`, and what `numerics`
        sets.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    versions = {"vmapens": vmapens.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": {"kind": device, "name": name},
        "cores": cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit or _commit(),
        "versions": versions,
        "precision": "float32, denormals flushed",
    }


def report(lines: Sequence[Line], out: Path | None) -> None:
    """Write lines of JSON to the standard output, and to the end of a file."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    sys.stdout.write(text)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(text)


def option_parser(name: str, description: str | None, arms: str) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks run {name}", description=description)
    parser.add_argument("--size", choices=("small", "paper"), default="small")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, each with one timing of every arm (default 5)")
    parser.add_argument("--arms", default=arms, type=lambda text: _letters(text, arms), help=f"default: {arms}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    parser.add_argument("--commit", default="", help="what to write as commit where there is no git")
    return parser


def _letters(text: str, known: str) -> str:
    if "a" not in text or not set(text) <= set(known) or len(set(text)) != len(text):
        raise argparse.ArgumentTypeError(f"`{text}` must be `a` and others of `{known}`, each once")
    return text


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
