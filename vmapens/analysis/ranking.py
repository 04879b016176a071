"""Cells in the order of their weight: average ranks, and the k largest, of all variants.

Axes: V variants, n cells (or features, windows, groups) of one sample.
Bytes and operations per variant: one sort of n keys of 64 bits, which hold a weight and the place of its cell, so that
the sort gives the order, and ties show as equal upper halves.
Ground truth: `scipy.stats.rankdata`; `tests/test_analysis_ranking.py` holds the bound.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, UInt64

from vmapens.nn.threads import over_variants

CONSTANT = 1e-5
"""A map whose weights span less than this share of the largest has no order but that of rounding."""

_CHUNK_BYTES = 1 << 20  # of keys that a thread sorts at once, in the cache
_ROWS = 16  # variants in float64 at once
_EXACT_MEANS = 16  # variants up to which the distribution of a mean of uniform ranks is not taken as normal
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


class Ranking(NamedTuple):
    """The cells of each variant by falling weight.

    Args:
        rank: 1 is the largest weight; ties have the mean of their places.
        top: The largest ones, largest first. Ties are in an order drawn for each variant, so that what is tied is held
            in common by chance only.
        constant: Variants that give all cells the same weight, within `CONSTANT`: they have no ranking.
    """

    rank: Float32[np.ndarray, "V n"]
    top: Int32[np.ndarray, "V K"]
    constant: Bool[np.ndarray, "V"]

    def variants(self, chosen: Bool[np.ndarray, "V"]) -> "Ranking":
        """Some of them."""
        return self if chosen.all() else Ranking(*(array[chosen] for array in self))


def rank_cells(weights: Float32[np.ndarray, "V n"], *, most: int, seed: int = 0) -> Ranking:
    """Order the cells of every variant.

    Weights below 1.2e-38 count as 0, as the threads that work here flush denormal numbers.

    Args:
        weights: Of any sign; the largest value comes first.
        most: K, length of `top`, 1 to n.
        seed: Orders ties.

    Raises:
        ValueError: If a weight is NaN, or `most` is outside its range.

    Example:
        >>> ranking = rank_cells(np.array([[0.1, 0.5, 0.4]], np.float32), most=2)
        >>> ranking.rank.tolist(), ranking.top.tolist()
        ([[3.0, 1.0, 2.0]], [[1, 2]])
    """
    V, n = weights.shape
    if not 1 <= most <= n:
        raise ValueError(f"most is {most}, wanted 1 to {n}, the number of cells.")
    rank, top = np.empty((V, n), np.float32), np.empty((V, most), np.int32)
    constant = np.empty(V, bool)
    size = max(1, _CHUNK_BYTES // (8 * n))
    in_order = np.arange(1, n + 1, dtype=np.float32)
    salt = np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0]

    def work(chunk: int) -> None:
        own = slice(chunk * size, (chunk + 1) * size)
        some = weights[own]
        low, high = some.min(axis=1), some.max(axis=1)
        if np.isnan(low).any():
            raise ValueError(f"weights of variants {own.start} to {own.start + len(some) - 1} hold NaN.")
        constant[own] = high.astype(np.float64) - low <= CONSTANT * np.maximum(abs(low), abs(high))
        keys = _keys(some)
        keys |= np.arange(n, dtype=np.uint64)
        keys.sort(axis=1)
        order = (keys & _LOW).view(np.int64)
        keys >>= _HIGH
        tied = keys[:, 1:] == keys[:, :-1]
        for row, cells in zip(rank[own], order, strict=True):
            row[cells] = in_order
        if tied.any():
            _share_places(rank[own], order, tied, first=own.start, salt=salt)
        top[own] = order[:, :most]

    over_variants(work, -(-V // size))
    return Ranking(rank, top, constant)


def _share_places(
    rank: Float32[np.ndarray, "v n"],
    order: Int[np.ndarray, "v n"],
    tied: Bool[np.ndarray, "v _"],
    *,
    first: int,
    salt: np.uint64,
) -> None:
    """Give tied cells the mean of their ranks, and put them in an order that is drawn for each variant.

    Args:
        rank: Changed.
        order: The cells by falling weight; changed.
        tied: Whether the cell at a place weighs as much as that at the next one.
        first: Number of the first variant.
        salt: Draws the orders.
    """
    edge = np.zeros((len(tied), 1), bool)
    with_before = np.concatenate([edge, tied], axis=1).reshape(-1)
    places = np.flatnonzero(with_before | np.concatenate([tied, edge], axis=1).reshape(-1))  # of all rows, in one
    begins = ~with_before[places]  # of the cells that share a weight
    sizes = np.diff(np.append(np.flatnonzero(begins), len(places)))
    row, place = np.divmod(places, order.shape[1])
    cells = order.reshape(-1)[places]
    rank[row, cells] = np.repeat(place[begins] + (sizes + 1) / 2, sizes)
    # By group, then as drawn: one key, the group in its upper half.
    drawn = _mixed(salt, (row + first).astype(np.uint64), cells.astype(np.uint64)) >> _HIGH
    drawn |= np.cumsum(begins).astype(np.uint64) << _HIGH
    order.reshape(-1)[places] = cells[np.argsort(drawn)]


def _mixed(salt: np.uint64, variant: UInt64[np.ndarray, "m"], cell: UInt64[np.ndarray, "m"]) -> UInt64[np.ndarray, "m"]:
    """Numbers as good as random, a function of the three alone: the finaliser of SplitMix64 (Steele et al. 2014)."""
    mixed: np.ndarray = salt + variant * np.uint64(0x9E3779B97F4A7C15) + cell * np.uint64(0xD1B54A32D192ED03)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _keys(weights: Float32[np.ndarray, "*V n"]) -> UInt64[np.ndarray, "*V n"]:
    """Whole numbers that sort as the weights fall, in the upper halves."""
    bits = (weights + np.float32(0)).view(np.int32)  # -0 becomes 0
    flipped = bits >> np.int32(31)  # all ones where negative: those sort as their sizes do
    np.invert(flipped, out=flipped)
    flipped &= np.int32(0x7FFFFFFF)
    flipped ^= bits
    keys = flipped.view(np.uint32).astype(np.uint64)
    keys <<= _HIGH
    return keys


class Moments(NamedTuple):
    """Of the ranks of every cell over the first variants; the SD is the population's."""

    variants: int
    mean: Float64[np.ndarray, "n"]
    sd: Float64[np.ndarray, "n"]


def rank_moments(rank: Float32[np.ndarray, "V n"], at: Int[np.ndarray, "_"]) -> list[Moments]:
    """Mean and SD of each cell's rank over the first v variants, for each v of `at`, which increases.

    Sums of ranks and of their squares are exact: both are multiples of a quarter below 2^53.
    """
    total, squares = np.zeros(rank.shape[1]), np.zeros(rank.shape[1])
    moments, before = [], 0
    for count in at.tolist():
        for first in range(before, count, _ROWS):
            wide = rank[first : min(first + _ROWS, count)].astype(np.float64)
            total += wide.sum(axis=0)
            squares += np.einsum("vn,vn->n", wide, wide)
        before = count
        mean = total / count
        moments.append(Moments(count, mean, np.sqrt(np.maximum(squares / count - mean * mean, 0))))
    return moments


def powers_up_to(count: int) -> Int[np.ndarray, "_"]:
    """1, 2, 4, ..., and the count itself.

    >>> powers_up_to(10).tolist()
    [1, 2, 4, 8, 10]
    """
    powers = 2 ** np.arange(count.bit_length())
    return np.unique(np.append(powers[powers <= count], count))


def mean_rank_shares(edges: Float[np.ndarray, "_"], *, cells: int, variants: int) -> Float64[np.ndarray, "_"]:
    """Shares of the cells whose mean rank falls between the edges if the variants' ranks had nothing in common.

    A rank is then uniform on (0.5, n + 0.5], and the mean of v of them a scaled sum of uniform numbers.

    Args:
        edges: Increasing mean ranks.
        cells: n.
        variants: v.

    Source:
        Irwin 1927, Hall 1927, for the sum; from 17 variants on its normal limit.
    """
    scaled = (np.asarray(edges, np.float64) - 0.5) / cells
    if variants == 1:
        below = np.clip(scaled, 0, 1)
    elif variants <= _EXACT_MEANS:
        below = scipy.stats.irwinhall.cdf(scaled * variants, variants)
    else:
        below = scipy.stats.norm.cdf((scaled - 0.5) * np.sqrt(12 * variants))
    shares: Float64[np.ndarray, _] = np.diff(below)
    return shares
