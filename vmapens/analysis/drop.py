"""Attention drop: how many cells do n variants all have among their k most attended?

The paper visits the variants in one random order. The mean over all orders needs no order: a cell that c of V variants
hold is held by n variants drawn at random with probability ``C(c, n) / C(V, n)``.
"""

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64
from scipy.special import gammaln

from vmapens.errors import SpecError


class Survival:
    """The probability table of V variants, made once and used for every sample and k.

    Args:
        variants: V.

    >>> Survival(3).expected(np.array([3, 1, 0, 2])).round(3).tolist()
    [2.0, 1.333, 1.0]
    """

    def __init__(self, variants: int) -> None:
        c, n = np.arange(variants + 1.0)[:, None], np.arange(1.0, variants + 1)
        log = gammaln(c + 1) - gammaln(np.maximum(c - n, 0) + 1) - gammaln(variants + 1) + gammaln(variants - n + 1)
        self._table: Float64[np.ndarray, "_ V"] = np.where(c >= n, np.exp(log), 0)

    def expected(self, held_by: Int[np.ndarray, "n"]) -> Float64[np.ndarray, "V"]:
        """Expected number of cells that 1, 2, ..., V variants have in common, over all orders of the variants.

        ``sum over cells of C(c, n) / C(V, n)``, by log-gamma, as C(V, V / 2) overflows float64 near V = 1030.

        Args:
            held_by: c, how many variants have each cell among their k largest.
        """
        result: Float64[np.ndarray, V] = np.bincount(held_by, minlength=len(self._table)) @ self._table
        return result


def survivors(top: Int32[np.ndarray, "V k"], cells: int, *, seed: int) -> Int64[np.ndarray, "V"]:
    """Cells that the first 1, 2, ..., V variants of one random order all have among their k largest.

    Args:
        top: The k largest cells of each variant.
        cells: n.
        seed: Draws the order.

    Source:
        Yadav and Subbian, CHIL 2025: the attention drop.
    """
    order = np.random.default_rng(seed).permutation(len(top))
    alive, counts, held = top[order[0]], np.zeros(len(top), np.int64), np.zeros(cells, bool)
    counts[0] = len(alive)
    for place, variant in enumerate(order[1:].tolist(), start=1):
        held[:] = False
        held[top[variant]] = True
        alive = alive[held[alive]]
        if not len(alive):
            break
        counts[place] = len(alive)
    return counts


def by_chance(k: int, cells: int, variants: int) -> Float64[np.ndarray, "V"]:
    """The same for sets that have nothing to do with each other: ``N (k / N)^n``."""
    return cells * (k / cells) ** np.arange(1.0, variants + 1)


def held_by_share(held_by: Int[np.ndarray, "n"], variants: int, share: float) -> int:
    """Cells that at least this share of the variants have among their k largest.

    Raises:
        SpecError: If the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise SpecError(f"share of the variants is {share:g}, but must be above 0 and at most 1.")
    return int((held_by >= np.ceil(share * variants - 1e-9)).sum())
