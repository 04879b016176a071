"""One training step, the optimiser's update included: this project against other ways, per variant and step.

Arms that cannot hold all variants, or for which more of them would only repeat what was measured, are timed on some of
them (`variants_timed`); what is compared is the time of one step of one variant. With several numbers of variants all
are timed in the same rounds, and `cost_over_v16` is our time over our time with 16 variants.
"""

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import gate
from benchmarks.arms import NAMES, Arm, as_task, build, present
from benchmarks.arms.sequential import thread_counts
from benchmarks.harness import Line, circumstances, compared, interleave, numerics, option_parser, ratio, report, spread
from benchmarks.problem import SIZES, Problem, Size
from benchmarks.process import peak_mib, remote

ARMS = "abde"
_Key = tuple[str, int, int]  # an arm's letter, how many variants it is given, and its threads (0: its own choice)


def variants_timed(letter: str, size: Size, variants: int, device: str) -> int:
    """How many variants an arm is given where V are wanted.

    Sequential: 16, since one costs what another does. Stacked by (d) or (e): 256, since a variant keeps much for its
    backward (in (d) some 250 MiB at paper size, measured); 16 of the paper's size on a CPU.
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

    Arms (b) and (d) take part once for each number of threads; the number with the lowest median is their time.

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
    given = {V: {letter: variants_timed(letter, size, V, device) for letter in letters} for V in variants}
    problems = {
        (letter, count): Problem(size, count, device)
        for letter, count in sorted({item for row in given.values() for item in row.items()})
    }
    # Before this process holds memory of its own: a GPU is shared.
    peaks = {key: peak_mib(two_steps, key[0], problem) for key, problem in problems.items()}
    with ExitStack() as stack:
        stack.enter_context(numerics())
        built: dict[_Key, Arm] = {}
        for (letter, count), problem in problems.items():
            if letter == "e":  # XLA's threads would share the cores with torch's
                built["e", count, 0] = stack.enter_context(remote("e", problem))
            elif letter in "bd" and device == "cpu":
                built |= {(letter, count, n): build(letter, problem, threads=n) for n in thread_counts()}
            else:
                built[letter, count, 0] = build(letter, problem)
        steps = {key: gate.first_step(arm) for key, arm in built.items()}
        reference = max(key for key in built if key[0] == ("b" if "b" in letters else "a"))
        passed = {key: gate.check(key[0], step, steps[reference]) for key, step in steps.items()}
        tasks = {key: as_task(arm, key[1]) for key, arm in built.items()}
        seconds = interleave(tasks, repeats)

    def fastest(letter: str, count: int) -> _Key:
        return min(
            (key for key in built if key[:2] == (letter, count)), key=lambda key: statistics.median(seconds[key])
        )

    def detail(key: _Key) -> Line:
        letter, count, threads = key
        found: Line = {"what": NAMES[letter], "variants_timed": count, "steps_timed": tasks[key].units // count}
        if threads:
            found["threads"] = threads
            others = [other for other in built if other[:2] == key[:2]]
            found["ms_by_threads"] = {other[2]: spread([1000 * s for s in seconds[other]]) for other in others}
        return found | {"peak_mib": peaks[letter, count]}

    lines: list[Line] = []
    for V, row in given.items():
        keys = {letter: fastest(letter, count) for letter, count in row.items()}
        line: Line = {"benchmark": "train_step", "size": size.name, "variants": V, "unit": "step of one variant"}
        line |= {"batch": size.batch, "steps": size.steps, "features": size.features, "hidden": size.hidden}
        line |= {"repeats": repeats, "gate": {letter: passed[key] for letter, key in keys.items()}}
        line["gate"][reference[0]] = "reference"
        if 16 in given:
            line["cost_over_v16"] = ratio(seconds["a", V, 0], seconds["a", 16, 0])
        line |= compared(
            {letter: seconds[key] for letter, key in keys.items()},
            {letter: detail(key) for letter, key in keys.items()},
        )
        lines.append(line | {"left_out": left_out} | where)
    return lines


def two_steps(letter: str, problem: Problem) -> None:
    """What the peak of memory is taken of: the arm built, and two steps."""
    arm = build(letter, problem)
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
