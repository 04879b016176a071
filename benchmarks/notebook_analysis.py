"""The paper's attention drop and ranks from a folder of checkpoints: as its notebooks make them, and with more care.

(c), the notebooks' way: each analysis asks the models anew for each patient, and the attention drop for each k. Every
variant's checkpoint is read from the disk, put into a module that is made once, and run on the patient; the largest
weights are found by sorting, sets are Python's, and the rest is NumPy on whole arrays. With three k that makes
`PASSES` = 5 passes over all checkpoints a patient: three for the drop, one for mean and SD of the ranks, one for their
smallest and largest SD against the number of variants. Nearly all of its time goes into these passes, so that a
notebook that saves one of them takes that share less.

(b), a careful script: every checkpoint is read once, its attention alone is computed, and sorted once for all k.

Ties are left as an argsort leaves them, and ranks are whole numbers, as in the paper.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain import PlainAttentionLSTM
from vmapens.analysis.grain import counts_of
from vmapens.analysis.ranking import powers_up_to
from vmapens.analysis.settings import Settings

PASSES = 5


class Found(NamedTuple):
    """What is computed of one stay, with n cells.

    Args:
        drop: Cells that the first 1, ..., V variants of a random order all have among their k largest [K, V].
        mean: Of each cell's rank over the variants [n].
        sd: The same; the population's, as below.
        sd_after: Over the first 2, 4, ..., V variants [C, n].
        smallest: Of these over the cells [C].
        largest: The same.
    """

    drop: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    sd_after: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray


@dataclass(frozen=True)
class Work:
    """What every arm is given: a run, the same weights as checkpoints, and stays.

    Args:
        folder: Holds `run`, `checkpoints` (a state_dict of each variant) and `stays.pt` (x [S, T, F]).
        variants: V.
        hidden: H.
    """

    folder: Path
    variants: int
    hidden: int

    @cached_property
    def x(self) -> Tensor:
        """The stays, in memory."""
        x: Tensor = torch.load(self.folder / "stays.pt", weights_only=True)
        return x

    @property
    def cells(self) -> int:
        """The number n = T * F."""
        return self.x.shape[1] * self.x.shape[2]

    @property
    def ks(self) -> list[int]:
        """Sizes of the sets of most-attended cells: the product's default."""
        return counts_of(Settings().top_k, self.cells)

    @property
    def counts(self) -> np.ndarray:
        """After how many variants the SD of the ranks is asked for."""
        return powers_up_to(self.variants)[1:]

    def seed(self, stay: int, k: int) -> int:
        """Draws the order of the variants for a stay and a k; of all arms the same."""
        return 1_000_000 * stay + k

    def order(self, stay: int, k: int) -> np.ndarray:
        """The order that `vmapens.analysis.drop.survivors` draws from the seed."""
        return np.random.default_rng(self.seed(stay, k)).permutation(self.variants)


class _Model(PlainAttentionLSTM):
    def attend(self, x: Tensor) -> Tensor:
        return torch.softmax(self.attention.attention_dense(x), dim=-1)

    def logits_and_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.attend(x)
        _, (last, _) = self.lstm(x * attention)
        return self.dense(last[0])[:, 0], attention


class _Checkpoints:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._model = _Model(work.x.shape[2], work.hidden)

    def _loaded(self, variant: int) -> _Model:
        self._model.load_state_dict(torch.load(self._work.folder / "checkpoints" / f"{variant}.pt", weights_only=True))
        return self._model


class Notebook(_Checkpoints):
    """Arm (c)."""

    def look(self, stays: Sequence[int]) -> list[Found]:
        """Everything, of some stays."""
        return [
            Found(np.array([self._drop(stay, k) for k in self._work.ks]), *self._ranks(stay), *self._spread(stay))
            for stay in stays
        ]

    def attention(self, stay: int, variants: Iterable[int]) -> Iterator[np.ndarray]:
        """The attention of a stay under some variants, [n] each."""
        for variant in variants:
            with torch.no_grad():
                _, attention = self._loaded(variant).logits_and_attention(self._work.x[stay : stay + 1])
            yield attention.numpy().reshape(-1)

    def _drop(self, stay: int, k: int) -> list[int]:
        common: set[int] | None = None
        counts = []
        for weights in self.attention(stay, self._work.order(stay, k)):
            top = set(np.argsort(weights)[-k:].tolist())
            common = top if common is None else common & top
            counts.append(len(common))
        return counts

    def _ranks(self, stay: int) -> tuple[np.ndarray, np.ndarray]:
        ranks = self._every_rank(stay)
        return ranks.mean(axis=0), ranks.std(axis=0)

    def _spread(self, stay: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _spread(self._every_rank(stay), self._work.counts)

    def _every_rank(self, stay: int) -> np.ndarray:
        ranks = np.empty((self._work.variants, self._work.cells))
        for row, weights in zip(ranks, self.attention(stay, range(self._work.variants)), strict=True):
            row[np.argsort(weights)[::-1]] = np.arange(1, len(row) + 1)
        return ranks


class Careful(_Checkpoints):
    """Arm (b)."""

    def look(self, stays: Sequence[int]) -> list[Found]:
        """Everything, of some stays."""
        work = self._work
        ranks = np.empty((len(stays), work.variants, work.cells), np.float32)
        in_order = np.arange(1, work.cells + 1, dtype=np.float32)
        for variant in range(work.variants):
            model = self._loaded(variant)
            for row, stay in zip(ranks[:, variant], stays, strict=True):
                with torch.no_grad():
                    weights = model.attend(work.x[stay : stay + 1]).numpy().reshape(-1)
                row[np.argsort(-weights)] = in_order
        return [self._found(stay, own) for stay, own in zip(stays, ranks, strict=True)]

    def _found(self, stay: int, ranks: np.ndarray) -> Found:
        drop = []
        for k in self._work.ks:
            alive = np.logical_and.accumulate(ranks[self._work.order(stay, k)] <= k, axis=0)
            drop.append(alive.sum(axis=1))
        wide = ranks.astype(np.float64)
        return Found(np.array(drop), wide.mean(axis=0), wide.std(axis=0), *_spread(wide, self._work.counts))


def _spread(ranks: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sd = np.stack([ranks[:count].std(axis=0) for count in counts])
    return sd, sd.min(axis=1), sd.max(axis=1)
