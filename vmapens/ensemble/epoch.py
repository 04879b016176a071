"""One epoch of a block: train every variant, score it, keep its parameters if they are its best so far.

The variants go through the epoch in groups of `width`, a matter of memory only: a variant's arithmetic never meets
another's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vmapens.cohort.load import Cohort
from vmapens.ensemble import metrics
from vmapens.ensemble.block import Block
from vmapens.ensemble.memory import Width, is_out_of_memory
from vmapens.ensemble.stack import Stack
from vmapens.ensemble.step import gradients, predict, train_step
from vmapens.nn.loss import TaskKind, targets
from vmapens.spec import TrainSpec


@dataclass(frozen=True)
class Data:
    """The tensors that training needs, on their device; the splits are rows, so that none of them is a copy.

    Args:
        kind: Of the task.
        x: All samples [N, T, F], ids sorted.
        y: Their labels [N].
        train: Rows to train on.
        valid: Rows whose scores go in the history.
        select: Rows on which the kept epoch is chosen; the valid ones, unless the paper is replicated.
    """

    kind: TaskKind
    x: Tensor
    y: Tensor
    train: Tensor
    valid: Tensor
    select: Tensor

    @classmethod
    def of(cls, cohort: Cohort, spec: TrainSpec, device: torch.device) -> "Data":
        """The cohort itself on a CPU, a copy of it on a GPU."""
        rows = [cohort.rows(split).to(device) for split in ("train", "valid", spec.select_on)]
        return cls(cohort.task.kind, cohort.x.to(device), cohort.y.to(device), *rows)


def train_epoch(
    model: torch.nn.Module,
    block: Block,
    data: Data,
    spec: TrainSpec,
    *,
    width: Width | int,
    on_variants: Callable[[int], None] = lambda count: None,
) -> None:
    """Train the running variants of a block for one more epoch, score them, and keep the parameters that are the best.

    A variant whose losses or parameters are not finite any more has failed, and is put back to its best epoch. The
    block's history gains a row a variant: variant, epoch, train_loss (mean over the epoch's samples, before each step),
    valid_loss, valid_<metric>, and test_<metric> if that split chooses. Where memory runs out, the width is halved, and
    the variants go on from the step they have reached.

    Args:
        model: One module of the architecture.
        block: Changed in place.
        data: On the block's device.
        spec: Batch size, clipping, metric, split of the choice.
        width: Variants computed at once.
        on_variants: Hears how many variants have finished the epoch, group by group.
    """
    width = Width(width) if isinstance(width, int) else width
    compute = gradients(model, data.kind)
    y = targets(data.y, data.kind, data.x.dtype)
    metric = spec.select_by or metrics.default_metric(data.kind)
    order = torch.stack([variant.next_epoch() for variant in block.orders[: block.running]])
    order = data.train[order.to(data.x.device)]
    batches = order.split(spec.batch_size, dim=1)
    before = block.epoch * len(batches)  # steps taken
    total = torch.zeros(len(order), dtype=torch.float64, device=data.x.device)
    reached = np.zeros(len(order), np.int64)  # batches that each variant has seen

    def train(group: slice) -> None:
        stack, state = block.stack.rows(group.start, group.stop), block.state.rows(group.start, group.stop)
        for number in range(reached[group.start], len(batches)):
            index = batches[number][group]
            losses = train_step(compute, stack, state, data.x, y, index, before + number + 1, clip_norm=spec.clip_norm)
            reached[group] += 1
            total[group] += losses.double() * index.shape[1]

    def score(group: slice) -> None:
        stack = block.stack.rows(group.start, group.stop)
        rows.append(_score(model, stack, data, metric, spec, total[group] / order.shape[1]))

    rows: list[pl.DataFrame] = []
    for group in _groups(slice(0, len(order)), width):
        for work in (train, score):
            _in_parts(work, group, width)
        on_variants(group.stop - group.start)
    history = pl.concat(rows)
    scores = history[f"{spec.select_on}_{metric}"].to_numpy()
    scores = scores if metrics.METRICS[metric].higher_is_better else -scores
    losses = history.select("train_loss", "valid_loss").to_numpy()
    state = (block.stack.theta, block.state.second)  # where a gradient was squared to infinity nothing moves any more
    whole = torch.stack([rows[: block.running].isfinite().all(dim=1) for rows in state]).all(dim=0).cpu().numpy()
    numbers = pl.Series("variant", block.variants[: block.running].copy())  # rows move
    block.record(scores, whole & np.isfinite(losses).all(axis=1) & ~np.isnan(scores))
    history = history.select(numbers, pl.lit(block.epoch, pl.Int32).alias("epoch"), pl.all())
    block.history.append(history)


def _groups(variants: slice, width: Width) -> Iterator[slice]:
    """Ranges of the width as it is when each is begun."""
    start = variants.start
    while start < variants.stop:
        stop = min(start + width.value, variants.stop)
        yield slice(start, stop)
        start = stop


def _in_parts(work: Callable[[slice], None], group: slice, width: Width) -> None:
    """Do the work for a group of variants; where memory runs out, for smaller ones, one after the other."""
    try:
        work(group)
        return
    except (MemoryError, RuntimeError) as error:
        size = group.stop - group.start
        if not is_out_of_memory(error) or size == 1:
            raise
    width.cut(size // 2)  # here, where the error and what it holds are gone
    for part in _groups(group, width):
        _in_parts(work, part, width)


def _score(
    model: torch.nn.Module, stack: Stack, data: Data, metric: str, spec: TrainSpec, train_loss: Tensor
) -> pl.DataFrame:
    valid_y = data.y[data.valid].cpu().numpy()
    valid = predict(model, data.kind, stack, data.x, data.valid).cpu().numpy()
    columns = {
        "train_loss": train_loss.cpu().numpy(),
        "valid_loss": metrics.score("log_loss", valid_y, valid),
        f"valid_{metric}": metrics.score(metric, valid_y, valid),
    }
    if spec.select_on != "valid":
        selected = predict(model, data.kind, stack, data.x, data.select).cpu().numpy()
        columns[f"{spec.select_on}_{metric}"] = metrics.score(metric, data.y[data.select].cpu().numpy(), selected)
    return pl.DataFrame(columns)
