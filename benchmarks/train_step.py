"""One training step, the optimiser's update included: this project against other ways, per variant and step.

Arms that cannot hold all variants, or for which more of them would only repeat what was measured, are timed on some of
them (`variants_timed`); what is compared is the time of one step of one variant. With several numbers of variants all
are timed in the same rounds, and `cost_over_v16` is our time over our time with 16 variants.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import gate
from benchmarks.arms import NAMES, Arm, as_task, build, present
from benchmarks.arms.sequential import best_threads
from benchmarks.harness import Line, circumstances, compared, interleave, numerics, option_parser, ratio, report
from benchmarks.problem import SIZES, Problem, Size
from benchmarks.process import peak_mib, remote

ARMS = "abde"
_Key = tuple[str, int]  # an arm's letter, and how many variants it is given


def variants_timed(letter: str, size: Size, variants: int, device: str) -> int:
    """How many variants an arm is given where V are wanted.

    Sequential: 16, since one costs what another does. Stacked by (d) or (e): 256, since a variant keeps up to 155 MB
    for its backward; 16 of the paper's size on a CPU.
    """
    if letter == "a":
        return variants
    stacked = letter in "de" and (device == "cuda" or size.name != "paper")
    return min(variants, 256 if stacked else 16)


def measure(
    size: Size,
    variants: Sequence[int],
    *,
    arms: str = ARMS,
    repeats: int = 5,
    device: str = "cpu",
    commit: str = "",
) -> list[Line]:
    """Hold all arms against the reference, which is (b), or (a) without it; then time them in turn.

    Args:
        size: Shape of the work.
        variants: Numbers of variants, each a line.
        arms: Letters, `a` among them.
        repeats: Rounds.
        device: `cpu` or `cuda`.
        commit: See `harness.circumstances`.

    Returns:
        One line per number of variants.

    Raises:
        GateError: If an arm computes something else than the reference.
    """
    where = circumstances(device, commit)
    letters, left_out = present(arms, device)
    timed = {V: {letter: (letter, variants_timed(letter, size, V, device)) for letter in letters} for V in variants}
    keys = {key for row in timed.values() for key in row.values()}
    problems = {key: Problem(size, key[1], device) for key in sorted(keys)}
    with ExitStack() as stack:
        stack.enter_context(numerics())
        by_threads = best_threads(Problem(size, min(4, *variants), device)) if "b" in letters else {}
        options = {"b": {"threads": next(iter(by_threads))}} if by_threads else {}
        # Before this process holds memory of its own: a GPU is shared.
        peaks = {key: peak_mib(two_steps, key[0], given, options.get(key[0], {})) for key, given in problems.items()}
        built: dict[_Key, Arm] = {}
        for key, problem in problems.items():
            if key[0] == "e":  # XLA's threads would share the cores with torch's
                built[key] = stack.enter_context(remote("e", problem))
            else:
                built[key] = build(key[0], problem, **options.get(key[0], {}))
        steps = {key: gate.first_step(arm) for key, arm in built.items()}
        reference = max(key for key in built if key[0] == ("b" if "b" in letters else "a"))
        passed = {
            key: gate.check(key[0], step, steps[reference]) if key[0] != reference[0] else "reference"
            for key, step in steps.items()
        }
        tasks = {key: as_task(arm, key[1]) for key, arm in built.items()}
        seconds = interleave(tasks, repeats)

    lines: list[Line] = []
    for V, row in timed.items():
        line: Line = {"benchmark": "train_step", "size": size.name, "variants": V, "unit": "step of one variant"}
        line |= {"batch": size.batch, "steps": size.steps, "features": size.features, "hidden": size.hidden}
        line |= {"repeats": repeats, "gate": {letter: passed[key] for letter, key in row.items()}}
        if 16 in timed:
            line["cost_over_v16"] = ratio(seconds[row["a"]], seconds[timed[16]["a"]])
        details: dict[str, Line] = {
            letter: {
                "what": NAMES[letter],
                "variants_timed": key[1],
                "steps_timed": tasks[key].units // key[1],
                "peak_mib": peaks[key],
            }
            for letter, key in row.items()
        }
        if by_threads:
            details["b"] |= {**options["b"], "ms_by_threads": by_threads}
        line |= compared({letter: seconds[key] for letter, key in row.items()}, details)
        lines.append(line | {"left_out": left_out} | where)
    return lines


def two_steps(letter: str, problem: Problem, options: dict[str, int]) -> None:
    """What the peak of memory is taken of: the arm built, and two steps."""
    arm = build(letter, problem, **options)
    with arm.settings():
        arm.train(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the results of `measure`, a line of JSON each."""
    parser = option_parser("train_step", __doc__, ARMS)
    parser.add_argument("--variants", type=_counts, default=(64,), help="one number, or several: 1,4,16,64,256,1000")
    options = parser.parse_args(arguments)
    lines = measure(
        SIZES[options.size],
        options.variants,
        arms=options.arms,
        repeats=options.repeats,
        device=options.device,
        commit=options.commit,
    )
    report(lines, options.out)


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise argparse.ArgumentTypeError(f"`{text}` must be numbers from 1, each once")
    return counts
