"""The variants that are trained together, and all that is known of them between two epochs.

A variant that has diverged, or has stopped early, moves behind those that still train: an epoch works on the first
rows, and costs nothing for the others. Which row a variant stands in changes none of its numbers.
"""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch

from vmapens.ensemble import optimizer
from vmapens.ensemble.seeds import Order
from vmapens.ensemble.stack import Stack

OK, FAILED = "ok", "failed"
"""Status of a variant: trained, or diverged (its loss or a parameter became infinite or NaN)."""


@dataclass
class Block:
    """The state of a block's variants, one a row; rows move together.

    Args:
        variants: Number in the table of variants of each row.
        stack: Their parameters as they are now.
        state: Adam's moments.
        orders: Each one's generator of orders.
        best: Parameters of each one's best epoch so far.
        best_score: Its score, -inf before the first.
        kept_epoch: That epoch.
        epochs: Epochs trained of each.
        failed: Which have diverged; they have been put back to their best epoch.
        running: So many rows, the first ones, still train (unless `sort` came last).
        epoch: Epochs trained of these.
        history: One frame an epoch: variant, epoch, and the scores.
    """

    variants: np.ndarray
    stack: Stack
    state: optimizer.AdamState
    orders: list[Order]
    best: Stack
    best_score: np.ndarray
    kept_epoch: np.ndarray
    epochs: np.ndarray
    failed: np.ndarray
    running: int
    epoch: int = 0
    history: list[pl.DataFrame] = field(default_factory=list)

    @classmethod
    def start(cls, stack: Stack, table: pl.DataFrame, orders: list[Order]) -> "Block":
        """The state before the first step of the variants of `table`."""
        lr, decay = (torch.tensor(table[name].to_numpy(), device=stack.theta.device) for name in ("lr", "weight_decay"))
        count = len(table)
        return cls(
            variants=table["variant"].to_numpy().astype(np.int32),
            stack=stack,
            state=optimizer.init(stack.theta[:, : stack.trained_width], lr, decay),
            orders=orders,
            best=Stack(stack.theta.clone(), stack.columns),
            best_score=np.full(count, -np.inf),
            kept_epoch=np.zeros(count, np.int32),
            epochs=np.zeros(count, np.int32),
            failed=np.zeros(count, bool),
            running=count,
        )

    def status(self) -> list[str]:
        """Of each row."""
        return [FAILED if failed else OK for failed in self.failed]

    def scores(self) -> pl.DataFrame:
        """The history with the column `status`: `failed` in the last epoch of a variant that diverged, else `ok`."""
        ends = {"variant": self.variants[self.failed], "epoch": self.epochs[self.failed]}
        last = pl.DataFrame(ends, schema={"variant": pl.Int32, "epoch": pl.Int32}).with_columns(status=pl.lit(FAILED))
        rows = pl.concat(self.history).join(last, on=["variant", "epoch"], how="left")
        return rows.with_columns(pl.col("status").fill_null(OK)).sort("variant", "epoch")

    def record(self, scores: np.ndarray, finite: np.ndarray) -> None:
        """Take in the result of an epoch of the running rows.

        Args:
            scores: Higher is better.
            finite: Whose losses and parameters are finite; the others have diverged.
        """
        self.epoch += 1
        running = slice(0, self.running)
        self.epochs[running] = self.epoch
        better = np.flatnonzero(finite & (scores > self.best_score[running]))
        self.best.theta[better] = self.stack.theta[better]
        self.best_score[better] = scores[better]
        self.kept_epoch[better] = self.epoch
        diverged = np.flatnonzero(~finite)
        self.failed[diverged] = True
        self.stack.theta[diverged] = self.best.theta[diverged]
        for moment in (self.state.first, self.state.second):
            moment[diverged] = 0.0

    def retire(self, patience: int) -> None:
        """Move the running rows that are done behind the others.

        Args:
            patience: Epochs without a better score after which a variant stops; 0: never.
        """
        idle = self.epochs - self.kept_epoch >= patience if patience else np.zeros(len(self.failed), bool)
        done = self.failed | idle | (self.epochs < self.epoch)
        for row in np.flatnonzero(done[: self.running])[::-1]:
            self.running -= 1
            if row != self.running:
                self._swap(int(row), self.running)

    def sort(self) -> None:
        """Put the rows in the order of the variants' numbers, to be written; `retire` before the next epoch."""
        for row, variant in enumerate(np.sort(self.variants)):
            there = int(np.flatnonzero(self.variants == variant)[0])
            if there != row:
                self._swap(row, there)
        self.running = len(self.variants)

    def _swap(self, a: int, b: int) -> None:
        there, back = [a, b], [b, a]
        state = self.state
        for rows in (self.stack.theta, self.best.theta, state.first, state.second, state.lr, state.weight_decay):
            rows[there] = rows[back]
        for values in (self.variants, self.best_score, self.kept_epoch, self.epochs, self.failed):
            values[there] = values[back]
        self.orders[a], self.orders[b] = self.orders[b], self.orders[a]
