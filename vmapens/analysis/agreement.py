"""How far the variants agree on one sample: overlap of their top cells, overlap within a few steps, rank correlation.

All three are products: with each variant u go two vectors over the cells, and the agreement of u and v is the mean of
``left_u . right_v`` and ``left_v . right_u``. So the mean over all pairs needs the two sums over variants alone, O(V n)
in place of O(V^2 n), and so does each variant's mean agreement with all others, from which the jackknife comes.

    overlap    left = right = 1/sqrt(k) on the k largest cells       |A_u & A_v| / k
    near       left = 1/k on them, right = 1 on them and up to d steps beside them
    spearman   left = right = standardised ranks / sqrt(n)

Axes: V variants, n cells, T steps. Ground truth: loops over pairs and scipy; `tests/test_analysis_agreement.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64

from vmapens.nn.threads import over_variants

Sums = tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]
Same = TypeVar("Same", bound="Agreement")  # Self, which beartype refuses here
_ROWS = 128  # variants whose products a thread forms at once


class Agreement(ABC):
    """A measure of agreement of the variants on one sample, in the form of products."""

    @property
    @abstractmethod
    def count(self) -> int:
        """V."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """What variants reach whose rankings have nothing to do with each other, mean over pairs."""

    @property
    @abstractmethod
    def permuted(self) -> float:
        """Expected agreement once each variant's features are permuted within each step, mean over pairs.

        Exact, without a draw: what is left is how much of a variant's top cells, or of its ranks, stands at each step.
        """

    @cached_property
    def sums(self) -> Sums:
        """Sums of the left and of the right vectors over the variants."""
        return self._sums()

    @abstractmethod
    def _sums(self) -> Sums: ...

    @abstractmethod
    def with_sums(self, sums: Sums) -> Float64[np.ndarray, "V"]:
        """Each variant's agreement with the variants that were summed, added up."""

    @abstractmethod
    def with_same(self: Same, other: Same) -> Float64[np.ndarray, "V"]:
        """Agreement of each variant with the same variant of another set: another sample, or before training."""

    @abstractmethod
    def pairs(self) -> Float32[np.ndarray, "V V"]:
        """Agreement of each pair of variants; ones on the diagonal."""

    def per_variant(self) -> Float64[np.ndarray, "V"]:
        """Mean agreement of each variant with all others; their mean is the mean over all pairs."""
        return (self.with_sums(self.sums) - 1) / (self.count - 1)

    def mean(self) -> float:
        """Mean agreement over all pairs, from the sums alone."""
        left, right = self.sums
        return float((left @ right - self.count) / (self.count * (self.count - 1)))

    def across(self: Same, other: Same) -> float:
        """Mean agreement of a variant here with another variant of the other set (never with itself there)."""
        (left, right), (other_left, other_right) = self.sums, other.sums
        together = (left @ other_right + other_left @ right) / 2 - self.with_same(other).sum()
        return float(together / (self.count * (self.count - 1)))


@dataclass(frozen=True)
class Overlap(Agreement):
    """Share of their k most-attended cells that two variants have in common, ``|A_u & A_v| / k``.

    In [0, 1], higher is more alike; ``k / n`` by chance.

    Args:
        top: The k largest cells of each variant.
        step: Which step each cell belongs to, 0..T-1: within a step features may be permuted.

    Source:
        Krishna et al. 2022, arXiv:2202.01602, "feature agreement".
    """

    top: Int32[np.ndarray, "V k"]
    step: Int[np.ndarray, "n"]

    @property
    def count(self) -> int:
        """V."""
        return len(self.top)

    @property
    def k(self) -> int:
        """Size of each set."""
        return self.top.shape[1]

    @property
    def chance(self) -> float:
        """``k / n``."""
        return self.k / len(self.step)

    @property
    def permuted(self) -> float:
        """``sum_t n_ut n_vt / (F_t k)``, n_ut top cells of u among the F_t of step t, mean over pairs."""
        return _mean_over_pairs(self.per_step() / np.sqrt(np.maximum(np.bincount(self.step), 1) * self.k))

    def per_step(self) -> Float64[np.ndarray, "V T"]:
        """How many of each variant's top cells stand at each step."""
        T = int(self.step.max()) + 1
        flat = self.step[self.top] + T * np.arange(self.count)[:, None]
        return np.bincount(flat.reshape(-1), minlength=self.count * T).reshape(self.count, T).astype(np.float64)

    def held_by(self) -> Int64[np.ndarray, "n"]:
        """How many variants have each cell among their k largest."""
        return np.bincount(self.top.reshape(-1), minlength=len(self.step))

    def masks(self) -> Bool[np.ndarray, "V n"]:
        """Which cells are among the k largest."""
        masks = np.zeros((self.count, len(self.step)), bool)
        np.put_along_axis(masks, self.top, True, axis=1)
        return masks

    def _sums(self) -> Sums:
        held = self.held_by() / np.sqrt(self.k)
        return held, held

    def with_sums(self, sums: Sums) -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        return sums[1][self.top].sum(axis=1) / np.sqrt(self.k)

    def with_same(self, other: "Overlap") -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        return np.take_along_axis(other.masks(), self.top, axis=1).sum(axis=1) / np.sqrt(self.k * other.k)

    def pairs(self) -> Float32[np.ndarray, "V V"]:
        """See `Agreement`."""
        masks = self.masks().astype(np.float32)
        return _of_pairs(masks, masks) / np.float32(self.k)


@dataclass(frozen=True)
class Near(Agreement):
    """Share of one variant's k most-attended cells that another attends to within `tolerance` steps, both ways.

    ``(|A_u & D(A_v)| + |A_v & D(A_u)|) / (2 k)``, D(A) being the cells of A and those up to d steps before and after.
    In [0, 1], higher is more alike. By chance a cell falls into D(A_v) with probability ``|D(A_v)| / n``.

    Args:
        cells: The same without a tolerance, over a grid of T steps with F cells each.
        reached: D(A_v) of each variant.
        tolerance: d.
    """

    cells: Overlap
    reached: Bool[np.ndarray, "V n"]
    tolerance: int

    @classmethod
    def of(cls, cells: Overlap, tolerance: int) -> "Near":
        """From the overlap without a tolerance."""
        T = int(cells.step.max()) + 1
        masks = cells.masks().reshape(cells.count, T, -1)
        reached = masks.copy()
        for d in range(1, min(tolerance, T - 1) + 1):
            reached[:, d:] |= masks[:, :-d]
            reached[:, :-d] |= masks[:, d:]
        return cls(cells, reached.reshape(cells.count, -1), tolerance)

    @property
    def count(self) -> int:
        """V."""
        return self.cells.count

    @property
    def chance(self) -> float:
        """Mean of ``|D(A_v)| / n``."""
        return float(self.reached.mean(dtype=np.float64))

    @property
    def permuted(self) -> float:
        """``sum_t n_ut P_vt / k``, P_vt = 1 - prod (1 - n_vs / F) over the steps s within d of t, mean over pairs."""
        at_step = self.cells.per_step()
        T = at_step.shape[1]
        missed = 1 - at_step * T / len(self.cells.step)
        none = missed.copy()
        for d in range(1, min(self.tolerance, T - 1) + 1):
            none[:, d:] *= missed[:, :-d]
            none[:, :-d] *= missed[:, d:]
        reached = 1 - none
        together = at_step.sum(axis=0) @ reached.sum(axis=0) - (at_step * reached).sum()
        return float(together / (self.count * (self.count - 1) * self.cells.k))

    def _sums(self) -> Sums:
        return self.cells.held_by() / self.cells.k, self.reached.sum(axis=0, dtype=np.int32).astype(np.float64)

    def with_sums(self, sums: Sums) -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        left, right = sums
        ours = right[self.cells.top].sum(axis=1) / self.cells.k
        return (ours + np.einsum("vn,n->v", self.reached, left, dtype=np.float64)) / 2

    def with_same(self, other: "Near") -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        ours = np.take_along_axis(other.reached, self.cells.top, axis=1).sum(axis=1)
        theirs = np.take_along_axis(self.reached, other.cells.top, axis=1).sum(axis=1)
        return ours / (2 * self.cells.k) + theirs / (2 * other.cells.k)

    def pairs(self) -> Float32[np.ndarray, "V V"]:
        """See `Agreement`."""
        hits = _of_pairs(self.cells.masks().astype(np.float32), self.reached.astype(np.float32))
        return (hits + hits.T) / np.float32(2 * self.cells.k)


@dataclass(frozen=True)
class Spearman(Agreement):
    """Rank correlation of two variants over all cells; ties have the mean of their ranks.

    In [-1, 1], higher is more alike, 0 by chance. With z standardised ranks (ddof 0) the mean over all pairs is
    ``(||sum_v z_v||^2 / n - V) / (V (V - 1))``: exact, with ties, too. Kendall's W and ICC(3,1) on ranks are the same
    number.

    Args:
        rank: No row is constant.
        step: As in `Overlap`.

    Source:
        Spearman 1904; Kendall and Babington Smith 1939 for the identity.
    """

    rank: Float32[np.ndarray, "V n"]
    step: Int[np.ndarray, "n"]

    @property
    def count(self) -> int:
        """V."""
        return len(self.rank)

    @property
    def chance(self) -> float:
        """0."""
        return 0.0

    @property
    def permuted(self) -> float:
        """``sum_t F_t z_ut z_vt / n``, z_ut the mean of u's standardised ranks at the F_t cells of step t."""
        starts = np.flatnonzero(np.diff(self.step, prepend=-1))  # cells stand in the order of their steps
        sizes = np.diff(np.append(starts, len(self.step)))
        of_step = np.stack([np.add.reduceat(rank.astype(np.float64), starts) for rank in self.rank])
        of_step -= self._mean * sizes
        return _mean_over_pairs(of_step / (self._norm[:, None] * np.sqrt(sizes)))

    @property
    def _mean(self) -> float:
        return (len(self.step) + 1) / 2

    @cached_property
    def _norm(self) -> Float64[np.ndarray, "V"]:
        """Length of each variant's centred ranks. Products of ranks are exact in float64; so centring comes after."""
        squares = np.einsum("vn,vn->v", self.rank, self.rank, dtype=np.float64)
        return np.sqrt(squares - len(self.step) * self._mean**2)

    def _sums(self) -> Sums:
        total = np.einsum("v,vn->n", 1 / self._norm, self.rank, dtype=np.float64)
        total -= self._mean * (1 / self._norm).sum()
        return total, total

    def with_sums(self, sums: Sums) -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        together = np.einsum("vn,n->v", self.rank, sums[1], dtype=np.float64)
        return (together - self._mean * sums[1].sum()) / self._norm

    def with_same(self, other: "Spearman") -> Float64[np.ndarray, "V"]:
        """See `Agreement`."""
        together = np.einsum("vn,vn->v", self.rank, other.rank, dtype=np.float64)
        return (together - len(self.step) * self._mean**2) / (self._norm * other._norm)

    def pairs(self) -> Float32[np.ndarray, "V V"]:
        """See `Agreement`."""
        z = self.rank - np.float32(self._mean)
        z /= self._norm[:, None].astype(np.float32)
        return _of_pairs(z, z)


def _of_pairs(ours: Float32[np.ndarray, "V n"], theirs: Float32[np.ndarray, "V n"]) -> Float32[np.ndarray, "V V"]:
    """Products of each of our vectors with each of theirs, on the threads of `over_variants`.

    By torch: NumPy's own products start threads of their own, which on a busy machine wait for each other (1.2 s in
    place of 0.1 s for 400 variants of 66,528 cells), and `einsum` above starts none.
    """
    result = np.empty((len(ours), len(theirs)), np.float32)
    right = torch.from_numpy(theirs).T

    def work(chunk: int) -> None:
        rows = slice(chunk * _ROWS, (chunk + 1) * _ROWS)
        torch.mm(torch.from_numpy(ours[rows]), right, out=torch.from_numpy(result[rows]))

    over_variants(work, -(-len(ours) // _ROWS))
    return result


def _mean_over_pairs(vectors: Float64[np.ndarray, "V T"]) -> float:
    """Mean over the pairs of variants of the products of their vectors."""
    total, count = vectors.sum(axis=0), len(vectors)
    return float((total @ total - (vectors**2).sum()) / (count * (count - 1)))
