"""Are the good ones alike: which variants are as good as the best, and what they decide.

Axes: V variants, N stays, M variants of one set, C classes.
Ground truth: brute force and simulation; `tests/test_analysis_rashomon.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from vmapens.analysis.interval import RESAMPLES, bootstrap_means

SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def as_good_as_best(
    loss: Float64[np.ndarray, "V N"],
    *,
    clusters: Int[np.ndarray, "N"] | None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "V"]:
    """How well each variant is compatible with being the best of all, given that the best was chosen by noise.

    The lowest of V mean losses is low by luck too, the more so the larger V is; a paired test of each variant against
    that one finds too many worse. Multiple comparisons with the best: with L_v the mean loss, and e_v = L*_v - L_v its
    error on a bootstrap sample of the stays (the same for all variants),

        ``p_v = P(e_v - min_u e_u >= L_v - min_u L_u)``.

    If v is truly the best, L_v - min_u L_u is at most its own error less the smallest, so that p_v <= 0.05 has a
    probability of at most 5 % whatever the other variants are; with many clearly worse ones it is less (conservative).

    Args:
        loss: Of each stay under each variant, lower is better; a NaN in it: the variant failed.
        clusters: The patient of each stay, or None.
        seed: Of the bootstrap samples.
        resamples: R, bootstrap samples; the smallest p-value is 1 / (R + 1).

    Returns:
        One p-value a variant, in (0, 1], 1 for the lowest mean loss, NaN for a failed one. The variants with p > 0.05
        are a set that holds the best one with a confidence of 95 %.

    Source:
        Hsu 1981, doi:10.1214/aos/1176345582 (comparisons with the best); Hansen, Lunde and Nason 2011,
        doi:10.3982/ECTA5771 (by bootstrap of paired losses).
    """
    p_values = np.full(len(loss), np.nan)
    ok = ~np.isnan(loss).any(axis=1)
    if not ok.any():
        return p_values
    mean = loss[ok].mean(axis=1)
    groups = loss.shape[1] if clusters is None else np.unique(clusters).size
    # A bootstrap sample varies less than a sample by (G - 1) / G.
    scale = np.sqrt(groups / max(1, groups - 1))
    error = scale * (bootstrap_means(loss[ok].T, clusters=clusters, resamples=resamples, seed=seed) - mean)
    above_best = error - error.min(axis=1, keepdims=True)
    # Rounding must not decide where two variants are the same.
    reached = above_best >= (mean - mean.min()) * (1 - 1e-9)
    p_values[ok] = (1 + reached.sum(axis=0)) / (1 + resamples)
    return p_values


def epsilons(mean_loss: Float64[np.ndarray, "V"], shares: Sequence[float] = SHARES) -> Float64[np.ndarray, "E"]:
    """Distances to the best loss that let in these shares of the variants, and at least two of them.

    Args:
        mean_loss: Of each variant; NaN: failed, not counted.
        shares: Of the variants that did not fail, in (0, 1], rounded up.

    Returns:
        Strictly increasing, >= 0; fewer than `shares` where some let in the same variants. Empty without variants.

    Example:
        >>> epsilons(np.array([0.5, 0.25, 1.0, 0.75]), shares=(0.1, 0.75, 1.0)).tolist()
        [0.25, 0.5, 0.75]
    """
    losses = np.sort(mean_loss[~np.isnan(mean_loss)])
    if losses.size == 0:
        return losses
    counts = [min(losses.size, max(2, math.ceil(share * losses.size))) for share in shares]
    return np.unique(losses[[count - 1 for count in counts]] - losses[0])


def rashomon_set(mean_loss: Float64[np.ndarray, "V"], epsilon: float) -> Bool[np.ndarray, "V"]:
    """The variants whose mean loss is at most `epsilon` above the lowest.

    Args:
        mean_loss: Of each variant; NaN: failed, never in the set.
        epsilon: >= 0, in units of the loss.

    Returns:
        True for those in the set; all False without variants.

    Source:
        Fisher, Rudin and Dominici 2019, arXiv:1801.01489; Semenova, Rudin and Parr 2022, arXiv:1908.01755.
    """
    ok = ~np.isnan(mean_loss)
    best = mean_loss[ok].min() if ok.any() else np.nan
    return np.asarray(ok & (mean_loss - best <= epsilon))


def ambiguity_discrepancy(
    probability: Float[np.ndarray, "M N *C"], best: int, threshold: float | None
) -> tuple[float, float]:
    """How much the decisions of equally good variants differ from those of the best one.

    Ambiguity: share of the stays on which some variant of the set decides otherwise. Discrepancy: the largest share on
    which one variant does. Lower is more alike; 0 <= discrepancy <= ambiguity <= 1.

    Args:
        probability: Of the variants of the set, [M, N] of class 1, or [M, N, C].
        best: Row of the best one.
        threshold: Class 1 is decided above it; None: the class of the largest probability, the lowest on ties.

    Returns:
        Ambiguity and discrepancy.

    Raises:
        ValueError: If there is a threshold for several classes, or none for one probability.

    Example:
        >>> probability = np.array([[0.1, 0.2, 0.6, 0.9], [0.1, 0.6, 0.7, 0.9], [0.3, 0.4, 0.4, 0.8]])
        >>> ambiguity_discrepancy(probability, best=0, threshold=0.5)
        (0.5, 0.25)

    Source:
        Marx, Calmon and Ustun 2020, arXiv:1909.06677.
    """
    if (probability.ndim == 3) != (threshold is None):
        raise ValueError(
            f"probability has shape {probability.shape} and the threshold is {threshold}; wanted [M, N] with a "
            "threshold, or [M, N, C] with None."
        )
    decided = probability.argmax(axis=-1) if threshold is None else probability > threshold
    flipped = decided != decided[best]
    return float(flipped.any(axis=0).mean()), float(flipped.mean(axis=1).max())
