"""What TF32 and bfloat16 do to trained variants: scores and attention against those of the float32 run.

The same seeds are trained in each precision on a made task, and once more in float32 by the batched path, whose sums
have another order: what that changes is no loss of precision, but what training makes of any rounding. A precision is
statistically the same as float32 if the scores have the same distribution (two-sample Kolmogorov-Smirnov statistic
below its 5 % point) and attention overlaps with the float32 run's about as much as that second float32 run's does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.arms.ensemble import Ensemble
from benchmarks.harness import Line
from benchmarks.problem import Problem, Size
from vmapens.ensemble.step import attend, predict, train_step
from vmapens.nn.kernels import Arithmetic, Name, use_kernel, use_precision


@dataclass(frozen=True)
class Task:
    """A made task.

    Args:
        size: Shape of the work; its samples are those of training.
        variants: V.
        epochs: Passes over the training samples.
        test: Samples that are scored.
        attended: Of these, samples whose attention is compared.
        top: Cells of the largest attention that are compared.
    """

    size: Size
    variants: int
    epochs: int
    test: int
    attended: int
    top: int


TASK = Task(Size("small", batch=64, steps=48, features=37, hidden=32, samples=2048), 256, 6, 1000, 16, 100)
TOY = Task(Size("toy", batch=4, steps=3, features=5, hidden=4, samples=8), 2, 1, 12, 2, 3)


def compare(task: Task, device: str) -> Iterator[Line]:
    """Train in each precision, and hold scores and attention against float32's.

    Yields:
        For each run: `auroc` (mean, SD over variants), `auroc_shift` (mean paired difference from float32), `ks`
        (statistic against float32's scores) and `ks_5_percent` (its critical value), `overlap` (share of their top
        cells that a variant and its float32 self have in common, mean over variants and samples) and
        `overlap_of_strangers` (the same of two different variants, both float32).
    """
    base_scores, base_attention = _trained(task, device, "fp32", "auto")
    strangers = _overlap(base_attention, base_attention.roll(1, dims=0), task.top)
    runs: tuple[tuple[Arithmetic, Name], ...] = (("fp32", "batched"), ("tf32", "auto"), ("bf16", "auto"))
    for precision, kernel in runs:
        scores, attention = _trained(task, device, precision, kernel)
        yield {
            "precision": precision,
            "kernel": kernel,
            "variants": task.variants,
            "auroc": [round(scores.mean().item(), 5), round(scores.std().item(), 5)],
            "auroc_fp32": [round(base_scores.mean().item(), 5), round(base_scores.std().item(), 5)],
            "auroc_shift": round((scores - base_scores).mean().item(), 6),
            "ks": round(_kolmogorov_smirnov(scores, base_scores), 4),
            "ks_5_percent": round(1.358 * (2 / task.variants) ** 0.5, 4),
            "overlap": round(_overlap(attention, base_attention, task.top), 4),
            "overlap_of_strangers": round(strangers, 4),
            "top": task.top,
        }


def _trained(task: Task, device: str, precision: Arithmetic, kernel: Name) -> tuple[Tensor, Tensor]:
    """AUROC [V] on the test samples and attention [V, attended, T, F] of variants trained so."""
    arm = Ensemble(Problem(task.size, task.variants, device))
    x, y = _samples(task, device)
    training = task.size.samples
    number = 0
    interpreted = kernel == "auto" and device == "cpu"
    with use_kernel("triton" if interpreted else kernel), use_precision(precision):
        for epoch in range(task.epochs):
            generator = torch.Generator(device).manual_seed(epoch)
            order = torch.rand(task.variants, training, generator=generator, device=device).argsort(dim=1)
            for index in order.split(task.size.batch, dim=1):
                number += 1
                train_step(arm._gradients, arm._stack, arm._state, x, y, index, number)
        scores = predict(arm._model, "binary", arm._stack, x[training:])
        attention = attend(arm._model, arm._stack, x[training : training + task.attended])
    return _auroc(scores, y[training:]), attention


def _samples(task: Task, device: str) -> tuple[Tensor, Tensor]:
    """Noise, and labels that follow the mean of three features over the last quarter of the steps."""
    size = task.size
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(size.samples + task.test, size.steps, size.features, generator=generator, device=device)
    late = x[:, -max(1, size.steps // 4) :, :3].sum(dim=(1, 2))
    chance = torch.sigmoid(2 * late / late.std())
    return x, (torch.rand(len(x), generator=generator, device=device) < chance).float()


def _auroc(scores: Tensor, y: Tensor) -> Tensor:
    """Share of pairs of a positive and a negative sample that are in the right order; ties count half. [V]."""
    positive, negative = scores[:, y == 1], scores[:, y == 0]
    difference = positive.unsqueeze(2) - negative.unsqueeze(1)
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean(dim=(1, 2))


def _overlap(a: Tensor, b: Tensor, top: int) -> float:
    """Mean over variants and samples of the share of the top cells that both have; attention [V, S, T, F]."""
    chosen = [torch.zeros_like(t.flatten(2)).scatter_(2, t.flatten(2).topk(top).indices, 1.0) for t in (a, b)]
    return ((chosen[0] * chosen[1]).sum(dim=2) / top).mean().item()


def _kolmogorov_smirnov(a: Tensor, b: Tensor) -> float:
    """Largest distance between the two samples' distribution functions."""
    places = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(t.sort().values, places, right=True) / len(t) for t in (a, b)]
    return (shares[0] - shares[1]).abs().max().item()
