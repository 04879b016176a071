"""Everything that only a GPU can show, in one run of under nine minutes: `make gpu-check OUT=FOLDER`.

Wants torch and Triton, no network and no Polars. Sections, in the order of their worth: the kernels against the batched
path in float64; offsets beyond 32 bits; steps at the paper's size; one whole epoch, and the experiment that it
extrapolates to; the sequential arm (cuDNN) and `vmap` over a time loop; how far company changes a variant; what TF32
and bfloat16 do to the results of a training. A section that fails says so in its line and the others go on; one for
which the time is short is left out, in a line, too. Lines of JSON go to the standard output and to gpu_check.jsonl,
each as soon as it is known.

With --toy all of it runs at toy size on the CPU, the kernels in Triton's interpreter: it shows that this script works,
and its times mean nothing.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import arrangement, gate, rounding
from benchmarks.arms.ensemble import Ensemble
from benchmarks.arms.sequential import Sequential
from benchmarks.arms.time_loop import TimeLoop
from benchmarks.harness import Line, circumstances, numerics, spread
from benchmarks.problem import SIZES, Problem, Size
from vmapens.ensemble import optimizer
from vmapens.ensemble.step import predict, train_step
from vmapens.nn.kernels import Arithmetic, Inputs, Name, Plan, batched, checked, use_kernel, use_precision
from vmapens.nn.kernels.agreement import distances, made_gradients, made_inputs, results

EPOCHS, TRAINING, VALIDATION = 30, 10_500, 2_250
"""The paper's mortality experiment: epochs, and samples of two splits (70 and 15 of 100)."""

TARGET_MINUTES = {"bf16": 12.0, "tf32": 25.0}
TARGET_RATIOS = {"b": 30.0, "d": 5.0}

_ODD = [(3, 5, 4, 7, 6), (2, 17, 3, 37, 20), (2, 70, 3, 100, 129)]
_TOY = Size("toy", batch=4, steps=3, features=5, hidden=4, samples=12)
_STEPS_TIMED = 7


@dataclass(frozen=True)
class Setup:
    """What the sections share.

    Args:
        device: `cuda`, or `cpu` for the toy.
        size: Of a variant's work.
        counts: Numbers of variants, ascending.
        training: Samples of the measured epoch.
        validation: Samples of its evaluation.
        odd: Sizes V, B, T, F, H of the kernels' checks beside the paper's.
    """

    device: str
    size: Size
    counts: tuple[int, ...]
    training: int
    validation: int
    odd: Sequence[tuple[int, int, int, int, int]]

    @property
    def toy(self) -> bool:
        """Whether times mean nothing."""
        return self.device == "cpu"


SETUPS = {
    "gpu": Setup("cuda", SIZES["paper"], (64, 256, 1000), TRAINING, VALIDATION, _ODD),
    "toy": Setup("cpu", _TOY, (2, 3), 9, 5, _ODD[:1]),
}


def kernels(setup: Setup) -> Iterator[Line]:
    """Distances of all outputs and gradients from the batched path in float64, at odd sizes and at the paper's."""
    from vmapens.nn.kernels import triton
    from vmapens.nn.kernels.triton import size as sizing

    size = setup.size
    paper = (2, size.batch, min(size.steps, 16), size.features, size.hidden)
    cases: list[tuple[Any, ...]] = [(paper, "feature", p, True) for p in ("bf16", "tf32")]
    cases += [(odd, "feature", p, True) for odd in setup.odd for p in ("bf16", "tf32", "fp32")]
    cases += [(setup.odd[0], over, "fp32", True) for over in (None, "time")]
    cases += [(setup.odd[-1], "feature", p, False) for p in ("bf16", "fp32")]
    on_chip_share = sizing._ON_CHIP_SHARE
    for shape, over, precision, on_chip in cases:
        inputs = made_inputs(shape, gate_over=over, pool=2 * shape[1], device=setup.device)
        start = time.perf_counter()
        try:
            sizing._ON_CHIP_SHARE = on_chip_share if on_chip else 0
            found = distances(triton, inputs, Plan(over, True, True, precision), twin=batched)
        finally:
            sizing._ON_CHIP_SHARE = on_chip_share
        worst = max(found, key=lambda name: found[name])
        yield {
            "sizes": shape, "gate_over": over, "precision": precision, "by_step": not on_chip,
            "worst": worst, "distance": found[worst], "tolerance": checked.TOLERANCE[precision],
            "ok": found[worst] <= checked.TOLERANCE[precision], "seconds": _seconds(start),
        }  # fmt: skip
    found = optimizer.fused_distances(torch.device(setup.device))
    yield {"kernel": "adam", "distances": found, "ok": max(found.values()) <= checked.TOLERANCE["fp32"]}


def offsets(setup: Setup) -> Iterator[Line]:
    """The last of all variants alone and in their company: the same bytes, though it lies beyond 2^31 elements."""
    from vmapens.nn.kernels import triton

    size, V = setup.size, setup.counts[-1]
    shape = (V, size.batch, size.steps, size.features, size.hidden)
    inputs = made_inputs(shape, gate_over="feature", pool=size.samples, device=setup.device)
    plan = Plan("feature", keep=True, precision="bf16")
    grads = made_gradients(inputs, plan)
    together = results(triton, inputs, plan, grads)
    again = results(triton, inputs, plan, grads)
    last = slice(V - 1, V)
    own: Inputs = batched.part_of(inputs, last)
    alone = results(triton, own, plan, type(grads)(*(None if g is None else g[last] for g in grads)))
    same = all(torch.equal(together[name][last], alone[name]) for name in alone)
    repeated = all(torch.equal(together[name], again[name]) for name in again)
    elements = V * size.steps * size.batch * 4 * size.hidden
    yield {"elements": elements, "alone_equals_in_company": same, "repeats_itself": repeated, "ok": same and repeated}


def proof(setup: Setup) -> Iterator[Line]:
    """A first step in float32 against the sequential arm: losses, gradients, new parameters."""
    problem = Problem(setup.size, 2, setup.device)
    with numerics():
        outcomes = [gate.first_step(arm) for arm in (Ensemble(problem), Sequential(problem))]
    yield {"differences": gate.check("a", *outcomes), "ok": True}


def steps(setup: Setup, precision: Arithmetic) -> Iterator[Line]:
    """Arm (a): `train_step` of all variants at once; of the most variants also where the time of a step goes."""
    for number, V in enumerate(setup.counts, start=1):
        problem = Problem(setup.size, V, setup.device)
        arm = Ensemble(problem)
        arm.width = V
        with use_precision(precision):
            seconds = _timed(setup, partial(arm.train, 1))
        peak = torch.cuda.max_memory_allocated() / 2**30 if setup.device == "cuda" else None
        yield {"arm": "a", "variants": V, "precision": precision, "step_ms": _ms(seconds), "peak_gib": peak}
        if number == len(setup.counts):
            with use_precision(precision):
                yield {
                    "variants": V,
                    "precision": precision,
                    "kernels": _by_kernel(setup, partial(arm.train, 1)),
                }
        del arm
        _free(setup)


def epoch(setup: Setup, precision: Arithmetic) -> Iterator[Line]:
    """One whole epoch of all variants with an evaluation, and the experiment of 30 that it extrapolates to."""
    size, V = setup.size, setup.counts[-1]
    arm = Ensemble(Problem(size, V, setup.device))
    generator = torch.Generator(setup.device).manual_seed(0)
    shape = (setup.training + setup.validation, size.steps, size.features)
    x = torch.randn(shape, generator=generator, device=setup.device)
    y = (torch.rand(len(x), generator=generator, device=setup.device) < 0.15).float()
    order = torch.rand(V, setup.training, generator=generator, device=setup.device).argsort(dim=1)
    stack, state, of = arm._stack, arm._state, arm._gradients
    with use_precision(precision):
        batches = order.split(size.batch, dim=1)
        for index in (batches[0], batches[-1]):  # compiles for both heights of a batch
            train_step(of, stack, state, x, y, index, 1)
        predict(arm._model, "binary", stack, x[:256])
        _wait(setup)
        start = time.perf_counter()
        for number, index in enumerate(batches, start=1):
            train_step(of, stack, state, x, y, index, number)
        _wait(setup)
        training_s, start = _seconds(start), time.perf_counter()
        predict(arm._model, "binary", stack, x[setup.training :])
        _wait(setup)
        evaluation_s = _seconds(start)
    minutes = EPOCHS * (training_s + evaluation_s) / 60
    line: Line = {"variants": V, "precision": precision, "samples": [setup.training, setup.validation]}
    line |= {"steps": len(batches), "measured": {"training_s": training_s, "evaluation_s": evaluation_s}}
    line |= {"multiplied_by_epochs": EPOCHS, "experiment_minutes": minutes, "target_minutes": TARGET_MINUTES[precision]}
    line |= {"not_counted": "loading, compiling, construction of the modules, writing of the run"}
    yield line | {"on_target": None if setup.toy else minutes <= TARGET_MINUTES[precision]}


def arrangements(setup: Setup) -> Iterator[Line]:
    """Variants in random company, in other places, blocks and widths, against themselves alone: largest differences."""
    if setup.toy:
        yield from arrangement.compare(setup.size, setup.device, setup.counts[:1], ["fp32"], seconds=0)
    else:
        yield from arrangement.compare(SIZES["small"], setup.device, (1, 7, 64), ["fp32", "bf16"], seconds=50)


def sequential(setup: Setup) -> Iterator[Line]:
    """Arm (b): one cuDNN `nn.LSTM` after the other, data on the GPU; once with TF32 products, once without."""
    problem = Problem(setup.size, 2, setup.device)
    for precision in ("tf32", "ieee"):
        with _torch_products(precision):
            arm = Sequential(problem)
            seconds = _timed(setup, partial(arm.train, 4))
        each = [s / (4 * problem.variants) for s in seconds]
        yield {"arm": "b", "variants": problem.variants, "precision": precision, "variant_step_ms": _ms(each)}


def time_loop(setup: Setup) -> Iterator[Line]:
    """Arm (d): `torch.func.vmap` over a Python loop of cells, TF32 products."""
    for V in setup.counts[:2]:
        with _torch_products("tf32"):
            arm = TimeLoop(Problem(setup.size, V, setup.device))
            seconds = _timed(setup, partial(arm.train, 1), repeats=3)
        yield {"arm": "d", "variants": V, "precision": "tf32", "step_ms": _ms(seconds)}
        del arm
        _free(setup)


def float32(setup: Setup) -> Iterator[Line]:
    """Exact float32, which leaves the matrix units unused: the Triton kernels and the batched path, fewest variants."""
    V = setup.counts[0]
    names: tuple[Name, ...] = ("triton", "batched")
    for name in names:
        arm = Ensemble(Problem(setup.size, V, setup.device))
        arm.width = V
        with use_kernel(name), use_precision("fp32"):
            seconds = _timed(setup, partial(arm.train, 1), repeats=3)
        yield {"arm": "a", "kernel": name, "variants": V, "precision": "fp32", "step_ms": _ms(seconds)}
        del arm
        _free(setup)


def summary(lines: Sequence[Line]) -> Iterator[Line]:
    """Our speed over the other arms', per variant and step, where both were measured."""
    for precision in ("bf16", "tf32"):
        steps_of = [line for line in lines if line.get("arm") == "a" and line["precision"] == precision]
        own = {line["variants"]: line["step_ms"]["median"] for line in steps_of}
        for line in lines if own else []:
            if line.get("arm") == "b":
                most = max(own)
                yield _against(line, precision, most, line["variant_step_ms"]["median"] * most / own[most])
            elif line.get("arm") == "d" and line["variants"] in own:
                V = line["variants"]
                yield _against(line, precision, V, line["step_ms"]["median"] / own[V])


def _against(line: Line, precision: str, variants: int, ratio: float) -> Line:
    target = TARGET_RATIOS[line["arm"]]
    theirs = {"arm": line["arm"], "precision": line["precision"]}
    return {"ours": precision, "variants": variants, "theirs": theirs, "ratio": float(f"{ratio:.4g}"), "target": target}


def _timed(setup: Setup, work: Callable[[], object], repeats: int = _STEPS_TIMED) -> list[float]:
    """Seconds of each call after two that are not counted; one of each in the toy."""
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: list[float] = []
    for number in range(2 if setup.toy else 2 + repeats):
        _wait(setup)
        start = time.perf_counter()
        work()
        _wait(setup)
        if number >= (1 if setup.toy else 2):
            found.append(time.perf_counter() - start)
    return found


def _by_kernel(setup: Setup, work: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Milliseconds and calls of the 20 dearest kernels (operations, in the toy), by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU if setup.toy else ProfilerActivity.CUDA]) as seen:
        work()
        _wait(setup)
    ms = {
        event.key: (event.self_cpu_time_total if setup.toy else event.self_device_time_total) / 1000
        for event in seen.key_averages()
    }
    calls = {event.key: event.count for event in seen.key_averages()}
    dearest = sorted(ms, key=ms.__getitem__, reverse=True)[:20]
    return {key[:60]: {"ms": round(ms[key], 3), "calls": calls[key]} for key in dearest}


def _wait(setup: Setup) -> None:
    if setup.device == "cuda":
        torch.cuda.synchronize()


def _free(setup: Setup) -> None:
    if setup.device == "cuda":
        torch.cuda.empty_cache()


def _ms(seconds: Sequence[float]) -> dict[str, float]:
    return spread([1000 * s for s in seconds])


def _seconds(start: float) -> float:
    return round(time.perf_counter() - start, 3)


@contextmanager
def _torch_products(precision: str) -> Iterator[None]:
    """PyTorch's own products of float32 matrices and cuDNN's recurrences: `tf32` or `ieee`."""
    with numerics():  # which sets them back at the end
        switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)
        for switch in switches:
            switch.fp32_precision = precision
        yield


SECTIONS: tuple[tuple[str, int, Callable[[Setup], Iterator[Line]]], ...] = (
    ("kernels", 60, kernels),
    ("offsets", 20, offsets),
    ("steps_bf16", 40, lambda setup: steps(setup, "bf16")),
    ("epoch_bf16", 40, lambda setup: epoch(setup, "bf16")),
    ("sequential", 10, sequential),
    ("steps_tf32", 40, lambda setup: steps(setup, "tf32")),
    ("proof", 20, proof),
    ("arrangements", 60, arrangements),
    ("rounding", 40, lambda setup: rounding.compare(rounding.TOY if setup.toy else rounding.TASK, setup.device)),
    ("time_loop", 40, time_loop),
    ("epoch_tf32", 75, lambda setup: epoch(setup, "tf32")),
    ("float32", 30, float32),
)
"""Name, the seconds without which a section is not begun, and the section; the most important first."""


def run(setup: Setup, out: Path | None, deadline_s: float) -> list[Line]:
    """Run the sections, each guarded, until the deadline is near.

    Args:
        setup: Sizes and device.
        out: A folder for gpu_check.jsonl; None writes to the standard output only.
        deadline_s: Seconds from now after which no section is begun that would not be done.

    Returns:
        All lines.
    """
    begun = time.perf_counter()
    lines: list[Line] = []

    def say(name: str, line: Line) -> None:
        line = {"section": name} | line
        lines.append(line)
        text = json.dumps(line) + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            with (out / "gpu_check.jsonl").open("a", encoding="utf-8") as file:
                file.write(text)

    say("circumstances", {"benchmark": "gpu_check", "toy": setup.toy} | circumstances(setup.device))
    for name, least_s, section in SECTIONS:
        left_s = deadline_s - (time.perf_counter() - begun)
        if left_s < (0 if setup.toy else least_s):
            say(name, {"left_out": f"{left_s:.0f} s are left, and it wants {least_s}"})
            continue
        start = time.perf_counter()
        try:
            for line in section(setup):
                say(name, line)
        except Exception as error:  # one section must not take the others along
            say(
                name,
                {"ok": False, "failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-2000:]},
            )
        say(name, {"section_s": _seconds(start)})
        _free(setup)
    for line in summary(lines):
        say("summary", line)
    distrusted = sorted(str(key) for key, trust in checked._verdicts.items() if not trust)  # the batched path ran there
    good = not distrusted and all(line.get("ok", True) for line in lines)
    say("end", {"seconds": _seconds(begun), "not_by_triton": distrusted, "ok": good})
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 0 if every section ran and agreed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for gpu_check.jsonl")
    parser.add_argument("--deadline-s", type=float, default=500.0, help="default: %(default)s")
    parser.add_argument("--toy", action="store_true", help="toy size on the CPU, kernels interpreted")
    options = parser.parse_args(arguments)
    if options.toy:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are made
        with use_kernel("triton"):
            lines = run(SETUPS["toy"], options.out, options.deadline_s)
    elif torch.cuda.is_available():
        lines = run(SETUPS["gpu"], options.out, options.deadline_s)
    else:
        parser.error("torch sees no GPU; --toy shows at toy size on the CPU that the script works.")
    return 0 if lines[-1]["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
