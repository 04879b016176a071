"""Nothing changes a variant: random arrangements of the same variants, and how far their bytes are from each other.

An arrangement says who trains beside whom, in which order, in which blocks and widths, on how many threads. A variant
is the same in all of them: what an arrangement gives is held against the same variant trained alone. Which way it is
trained is the caller's (`benchmarks.arrangements` takes the public one). Nothing here needs Polars.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Line
from benchmarks.problem import LR, Size
from vmapens.ensemble import optimizer
from vmapens.ensemble.stack import stack_modules
from vmapens.ensemble.step import attend, gradients, predict, train_step
from vmapens.nn import AttentionLSTM
from vmapens.nn.kernels import Arithmetic, use_precision
from vmapens.nn.threads import spread_over
from vmapens.spec import AttendOver, VariantSpec

FORMS: tuple[AttendOver, ...] = ("feature", "time", "pool", "uniform")

DIVERGING = 1e38
"""A learning rate after whose first step no parameter is a number that computes."""

_SETTINGS = ((LR, 1e-6), (1e-2, 0.0), (1e-1, 1e-1))  # learning rate, weight decay


@dataclass(frozen=True, order=True)
class Variant:
    """What decides a variant; `bootstrap_seed` is -1 where all training samples are taken."""

    init_seed: int
    order_seed: int
    bootstrap_seed: int
    lr: float
    weight_decay: float

    def alone(self) -> "Arrangement":
        """Nobody beside it."""
        bootstraps = () if self.bootstrap_seed < 0 else (self.bootstrap_seed,)
        design = VariantSpec("paired", (self.init_seed,), (self.order_seed,), bootstraps)
        return Arrangement(design, (self.lr,), (self.weight_decay,), block=1, width=1, threads=1)


@dataclass(frozen=True)
class Arrangement:
    """Which variants are trained, and how.

    Args:
        design: Their seeds, in the order of the table.
        lr: One learning rate a variant.
        weight_decay: One a variant.
        block: Variants a block.
        width: Variants computed at once.
        threads: Over which they are spread on a CPU.
    """

    design: VariantSpec
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    block: int
    width: int
    threads: int

    @property
    def diverging(self) -> int:
        """How many are bound to become NaN."""
        return sum(lr == DIVERGING for lr in self.lr)

    def described(self) -> Line:
        """The fields of a result's line."""
        line: Line = {"variants": len(self.lr), "design": self.design.design}
        line |= {"bootstrap": bool(self.design.bootstrap_seeds), "diverging": self.diverging}
        return line | {"block": self.block, "width": self.width, "threads": self.threads}


def draw(
    choose: random.Random,
    *,
    counts: Sequence[int] = (1, 7, 64),
    sizes: Sequence[int] = (1, 5, 64),
    threads: Sequence[int] = (1, 2, 3, 4),
    designs: Sequence[str] = ("paired", "bootstrapped", "crossed"),
) -> Arrangement:
    """Draw an arrangement: seeds 0 to V-1 in any order, one in eight diverging, three settings of the optimiser.

    Args:
        choose: Makes every choice.
        counts: V is one of these.
        sizes: Block and width are each one of these.
        threads: Their number is one of these.
        designs: One of these; `bootstrapped` is paired, with a resampling for each.
    """
    count, form = choose.choice(counts), choose.choice(designs)
    seeds = choose.sample(range(count), count)
    if form == "crossed":
        orders = next(n for n in (8, 4, 2, 1) if count % n == 0)
        design = VariantSpec("crossed", tuple(sorted(seeds)[: count // orders][::-1]), tuple(seeds[:orders]))
    else:
        bootstraps = tuple(seed + 1 for seed in seeds) if form == "bootstrapped" else ()
        design = VariantSpec("paired", tuple(seeds), (), bootstraps)
    settings = [_SETTINGS[place % 3] if form == "crossed" else _SETTINGS[seeds[place] % 3] for place in range(count)]
    settings = [(DIVERGING, 0.0) if choose.random() < 1 / 8 else setting for setting in settings]
    rates, decays = zip(*settings, strict=True)
    return Arrangement(design, rates, decays, choose.choice(sizes), choose.choice(sizes), choose.choice(threads))


@dataclass(frozen=True)
class Outcome:
    """What training gave.

    Args:
        variants: In the order of the table.
        values: By kind (parameters, history, ...), each with one entry a variant.
    """

    variants: Sequence[Variant]
    values: Mapping[str, Sequence[np.ndarray] | np.ndarray]


Train = Callable[[Arrangement], Outcome]


@dataclass(frozen=True)
class Difference:
    """How far an outcome is from its variants trained alone.

    Args:
        variants: How many were held against themselves.
        differing_bytes: In all of their values.
        largest: Largest absolute difference by kind; inf where one side alone is NaN.
    """

    variants: int
    differing_bytes: int
    largest: dict[str, float]


class Alone:
    """Variants trained alone, each once.

    Args:
        train: How.
    """

    def __init__(self, train: Train) -> None:
        self._train = train
        self._known: dict[Variant, Outcome] = {}

    def difference(self, outcome: Outcome, *, at_most: int | None = None) -> Difference:
        """Hold variants of an outcome against themselves.

        Args:
            outcome: Of any arrangement.
            at_most: How many variants that are not known yet to train; None trains them all.
        """
        new = [variant for variant in outcome.variants if variant not in self._known][:at_most]
        self._known |= {variant: self._train(variant.alone()) for variant in new}
        rows = [row for row, variant in enumerate(outcome.variants) if variant in self._known]
        differing, largest = 0, dict.fromkeys(outcome.values, 0.0)
        for row in rows:
            alone = self._known[outcome.variants[row]].values
            for kind, values in outcome.values.items():
                ours, theirs = np.ascontiguousarray(values[row]), np.ascontiguousarray(alone[kind][0])
                differing += _differing_bytes(ours, theirs)
                largest[kind] = max(largest[kind], _largest(ours, theirs))
        return Difference(len(rows), differing, largest)


def _differing_bytes(a: np.ndarray, b: np.ndarray) -> int:
    if a.shape != b.shape or a.dtype != b.dtype:
        return max(a.nbytes, b.nbytes)
    return int(np.count_nonzero(np.atleast_1d(a).view(np.uint8) != np.atleast_1d(b).view(np.uint8)))


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))  # equal infinities have no difference that is a number
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return float(np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart)).max(initial=0.0))


def sweep(train: Train, arrangements: Iterator[Arrangement], seconds: float) -> Iterator[Line]:
    """Train arrangements and hold each against its variants trained alone, until the time is over.

    Args:
        train: How; the same for all.
        arrangements: Taken one after the other.
        seconds: After which none is begun; the first always is.

    Yields:
        For each: what it was, and its `Difference`.
    """
    alone, start = Alone(train), time.perf_counter()
    for number, arrangement in enumerate(arrangements):
        if number > 0 and time.perf_counter() - start > seconds:
            return
        found = alone.difference(train(arrangement), at_most=16)
        line: Line = arrangement.described() | {"held_against_themselves": found.variants}
        yield line | {key: value for key, value in dataclasses.asdict(found).items() if key != "variants"}


@dataclass(frozen=True)
class Steps:
    """A few steps of training on made data, without files.

    Args:
        size: Of a variant's work.
        attend_over: Form of attention.
        precision: Of the products' operands.
        device: `cpu` or `cuda`.
        steps: How many.
    """

    size: Size
    attend_over: AttendOver
    precision: Arithmetic
    device: str
    steps: int = 3

    def train(self, arrangement: Arrangement) -> Outcome:
        """Train a paired arrangement, block by block, in groups of its width."""
        seeds = arrangement.design.init_seeds
        rows = zip(seeds, arrangement.lr, arrangement.weight_decay, strict=True)
        variants = [Variant(seed, seed, -1, lr, decay) for seed, lr, decay in rows]
        parts: list[dict[str, Tensor]] = []
        with spread_over(arrangement.threads), use_precision(self.precision):
            for block in _cut(range(len(variants)), arrangement.block):
                parts += [self._steps([variants[v] for v in group]) for group in _cut(block, arrangement.width)]
        return Outcome(variants, {kind: torch.cat([part[kind] for part in parts]).numpy() for kind in parts[0]})

    def _steps(self, variants: Sequence[Variant]) -> dict[str, Tensor]:
        size, device = self.size, torch.device(self.device)
        x = torch.randn(size.samples, size.steps, size.features, generator=torch.Generator().manual_seed(0)).to(device)
        y = (torch.arange(len(x), device=device) % 3 == 0).float()
        modules = [self._module(variant.init_seed) for variant in variants]
        stack = stack_modules(modules, len(variants)).to(device)
        lr, decay = (
            torch.tensor([getattr(v, name) for v in variants], device=device) for name in ("lr", "weight_decay")
        )
        state = optimizer.init(stack.theta[:, : stack.trained_width], lr, decay)
        compute = gradients(modules[0], "binary")
        orders = [torch.Generator().manual_seed(variant.order_seed) for variant in variants]
        losses = []
        for step in range(1, self.steps + 1):
            batches = [torch.randint(len(x), (size.batch,), generator=order) for order in orders]
            losses.append(train_step(compute, stack, state, x, y, torch.stack(batches).to(device), step))
        given = {
            "theta": stack.theta,
            "first": state.first,
            "second": state.second,
            "losses": torch.stack(losses, dim=1),
            "predictions": predict(modules[0], "binary", stack, x[: size.batch]),
            "attention": attend(modules[0], stack, x[:2]),
        }
        return {kind: tensor.cpu() for kind, tensor in given.items()}

    def _module(self, seed: int) -> AttentionLSTM:
        size = self.size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return AttentionLSTM(size.features, size.steps, 1, hidden=size.hidden, attend_over=self.attend_over)


def _cut(places: range, length: int) -> Iterator[range]:
    for start in range(0, len(places), length):
        yield places[start : start + length]


def compare(
    size: Size, device: str, counts: Sequence[int], precisions: Sequence[Arithmetic], seconds: float
) -> Iterator[Line]:
    """Random arrangements of each form of attention, a few steps each.

    Args:
        size: Of a variant's work.
        device: `cpu` or `cuda`.
        counts: Numbers of variants.
        precisions: In which they are trained.
        seconds: For all of it; of each form and precision, one arrangement is compared anyway.

    Yields:
        A line an arrangement: its form, precision, and what `sweep` says.
    """
    for precision, form in itertools.product(precisions, FORMS):
        way, choose = Steps(size, form, precision, device), random.Random(1)
        drawn = map(partial(draw, counts=counts, designs=["paired"]), itertools.repeat(choose))
        for line in sweep(way.train, drawn, seconds / len(FORMS) / len(precisions)):
            yield {"attend_over": form, "precision": precision} | line
