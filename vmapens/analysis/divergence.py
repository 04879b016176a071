"""Generalised Jensen-Shannon divergence: how far the variants' attention differs as distributions.

Axes: V variants, R rows (steps) of n entries (features) each.
Ground truth: `scipy.stats.entropy`; `tests/test_analysis_divergence.py`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

_ROWS = 8  # variants at once, so that they stay in the cache
_NO_ENTROPY = 1e-6  # of a mixture: all variants have all weight on one entry


class Divergence(NamedTuple):
    """One number, and the same without each variant in turn; NaN where it is not defined."""

    value: float
    without_each: Float64[np.ndarray, "V"]


def divergence(weights: Float32[np.ndarray, "V R n"], *, leave_out: bool = True) -> Divergence:
    """Entropy of the variants' mixture minus their mean entropy, over the entropy of the mixture; mean over the rows.

    ``(H(mean_v p_v) - mean_v H(p_v)) / H(mean_v p_v)``, in nats, with p_v a row's sizes over their sum. In [0, 1]: 0
    where all variants have the same distribution, 1 where they share no entry and each has one only. Divided by the
    mixture's entropy, since plain divergence calls maps alike that are merely near uniform. It depends on V, as a
    mixture of few cannot be far from its parts: compare it with its references, of as many variants.

    A variant without weight in a row is left out of that row; a row with fewer than two variants, or without entropy of
    the mixture, out of the mean.

    Args:
        weights: Of any sign; sizes count.
        leave_out: Compute the value without each variant, for a jackknife.

    Source:
        Lin 1991, doi:10.1109/18.61115, generalised to V distributions with equal weights.
    """
    V = len(weights)
    total = np.zeros(weights.shape[1:])
    entropy, there = np.zeros(weights.shape[:2]), np.zeros(weights.shape[:2], bool)
    for rows in _chunks(V):
        p, there[rows] = _distributions(weights[rows])
        entropy[rows] = _entropy(p)
        total += p.sum(axis=0, dtype=np.float64)
    count, sum_entropy = there.sum(axis=0), entropy.sum(axis=0)
    value = float(_mean_over_rows(total, sum_entropy, count))
    without = np.full(V, np.nan)
    if leave_out and V > 2:
        for rows in _chunks(V):
            p, here = _distributions(weights[rows])
            without[rows] = _mean_over_rows(total - p, sum_entropy - entropy[rows], count - here)
    return Divergence(value, without)


def own_divergence(weights: Float32[np.ndarray, "V R n"], others: Float32[np.ndarray, "V R n"]) -> float:
    """Mean over the variants of the divergence of each from the same variant of another set."""
    values = []
    for rows in _chunks(len(weights)):
        (p, p_there), (q, q_there) = _distributions(weights[rows]), _distributions(others[rows])
        count = p_there.astype(np.int64) + q_there
        values.append(_mean_over_rows(p + q, _entropy(p) + _entropy(q), count))
    every = np.concatenate(values)
    return float("nan") if np.isnan(every).all() else float(np.nanmean(every))


def _chunks(count: int) -> list[slice]:
    return [slice(row, row + _ROWS) for row in range(0, count, _ROWS)]


def _distributions(
    weights: Float32[np.ndarray, "V R n"],
) -> tuple[Float32[np.ndarray, "V R n"], Bool[np.ndarray, "V R"]]:
    """Each row over its sum, zeros where there is none; and where there is one."""
    p = np.abs(weights)
    sums = p.sum(axis=-1, keepdims=True)
    there = sums > 0
    p /= np.where(there, sums, np.float32(1))
    return p, there[..., 0]


def _entropy(p: Float[np.ndarray, "*V R n"]) -> Float64[np.ndarray, "*V R"]:
    """In nats. Logarithms in the numbers' own precision, sums in float64: about 1e-7 of the entropy is lost.

    Rounding makes a row sum to 1 + r, and ``-p log p`` loses r where p is near 1, much of a peaked row's entropy: r is
    added back. A row of zeros has none.
    """
    sums = p.sum(axis=-1, dtype=np.float64)
    logarithms = np.maximum(p, np.finfo(p.dtype).tiny)
    np.log(logarithms, out=logarithms)
    logarithms *= p
    return sums - (sums > 0) - logarithms.sum(axis=-1, dtype=np.float64)


def _mean_over_rows(
    total: Float[np.ndarray, "*V R n"], entropy: Float64[np.ndarray, "*V R"], count: Int[np.ndarray, "*V R"]
) -> Float64[np.ndarray, "*V"]:
    """The divergence from the sum of the distributions, the sum of their entropies and their number."""
    enough, count = count > 1, np.maximum(count, 1)
    mean = np.maximum(total, 0)
    mean /= count[..., None]
    mixture = _entropy(mean.astype(np.float32, copy=False))
    defined = enough & (mixture > _NO_ENTROPY)
    share = np.divide(mixture - entropy / count, mixture, out=np.zeros_like(mixture), where=defined)
    rows = defined.sum(axis=-1)
    return np.where(rows > 0, np.clip(share, 0, 1).sum(axis=-1) / np.maximum(rows, 1), np.nan)
