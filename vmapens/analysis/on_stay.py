"""Do the variants agree about one stay? Every measure of agreement at every grain, beside its references.

The references (`tables.REFERENCES`) are what the same measure gives for unrelated rankings, for features permuted
within each step, for another patient, before any training, and of each variant against its own beginning.

Axes: V variants, T steps, F features, n parts of a grain, R rows of n entries that are distributions.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from vmapens.analysis.agreement import Agreement, Near, Overlap, Spearman
from vmapens.analysis.divergence import divergence, own_divergence
from vmapens.analysis.grain import Grid, counts_of
from vmapens.analysis.interval import mean_pairs_without_each
from vmapens.analysis.ranking import Ranking, rank_cells

Maps = Float32[np.ndarray, "V T F"]
_DRAWN = 128  # variants of which features are permuted where what is to be expected of it is not known exactly


class Views(NamedTuple):
    """One attribution of all variants: on the stay, on another stay, and on the stay before any training."""

    trained: Maps
    partner: Maps
    initial: Maps


@dataclass(frozen=True)
class Question:
    """What is asked of every stay.

    Args:
        grid: How cells are put together.
        top_k: Shares or counts of the cells.
        softmax_over: `feature`, or `step`: the axis along which a map's rows are distributions.
        by_size: Rank by size: the sign says in which direction a cell pushes, not how much.
        seed: Orders ties, and draws permutations.
    """

    grid: Grid
    top_k: tuple[float, ...]
    softmax_over: str
    by_size: bool
    seed: int

    def counts(self, n: int) -> list[int]:
        """The k at a grain of n parts: the same shares of them as of the cells."""
        return counts_of(tuple(k / self.grid.cells if k >= 1 else k for k in self.top_k), n)

    def weights(self, maps: Maps, grain: str) -> Float32[np.ndarray, "V n"]:
        """What the parts of a grain are ranked by."""
        summed = self.grid.summed(maps, grain)
        return np.abs(summed) if self.by_size else summed

    def rows(self, maps: Maps, grain: str) -> Float32[np.ndarray, "V R n"]:
        """What is a distribution: each step (or feature) of a map, or all parts of a coarser grain."""
        if grain != "cell":
            return self.grid.summed(maps, grain)[:, None]
        return maps if self.softmax_over == "feature" else maps.swapaxes(1, 2)


class Found(NamedTuple):
    """A row of the table `agreement` (but for sample and attribution), and its value without each variant in turn."""

    row: dict[str, Any]
    without_each: Float64[np.ndarray, "V"]


def agreement_on_stay(
    views: Views, question: Question, measured: Bool[np.ndarray, "T F"]
) -> tuple[list[Found], Ranking]:
    """All measures of agreement on one stay: every grain, all cells and the measured ones alone.

    Variants whose map is constant have no ranking and are left out of overlap and rank correlation; where fewer than
    two are left there is no value, and where one of these has no ranking under a reference there is no reference.

    Args:
        views: Of one attribution.
        question: What is asked.
        measured: Cells that were measured in that very step.

    Returns:
        The rows; and how the variants rank the cells.
    """
    grid = question.grid
    step = np.repeat(np.arange(grid.steps), grid.features)
    cells = [question.weights(maps, "cell") for maps in views]
    found, ranking = _ranked(cells, step, question, {"grain": "cell", "cells": "all"})
    drawn = permuted_within_steps(views.trained, seed=question.seed)
    found.append(_divergence(views, drawn, question, "cell"))
    for grain in grid.grains()[1:]:
        if grain == "near":  # ranks as `cell` does
            continue
        parts = [question.weights(maps, grain) for maps in views]
        # With its features permuted within each step, a feature may be any other, and a window stays what it is.
        layout = np.arange(parts[0].shape[1]) if grain == "window" else np.zeros(parts[0].shape[1], np.int64)
        draw = question.weights(drawn, grain) if grain == "group" else None
        found += _ranked(parts, layout, question, {"grain": grain, "cells": "all"}, permuted=draw)[0]
        found.append(_divergence(views, drawn, question, grain))
    there = np.flatnonzero(measured)
    if 1 < len(there) < grid.cells:
        only = [np.ascontiguousarray(weights[:, there]) for weights in cells]
        found += _ranked(only, step[there], question, {"grain": "cell", "cells": "measured"})[0]
        found.append(_divergence(views, drawn, question, "cell", measured))
    return found, ranking


def _ranked(
    parts: list[Float32[np.ndarray, "V n"]],
    step: Int[np.ndarray, "n"],
    question: Question,
    names: dict[str, str],
    *,
    permuted: Float32[np.ndarray, "_ n"] | None = None,
) -> tuple[list[Found], Ranking]:
    """Overlap and rank correlation of trained, partner's and initial weights; and the ranking of the first.

    Args:
        parts: What the three rank.
        step: Cells of one step may be permuted among themselves.
        question: What is asked.
        names: Grain and cells.
        permuted: A draw of permuted weights, where what is to be expected of it is not known exactly.
    """
    n = len(step)
    named = question.counts(question.grid.cells if names["grain"] == "cell" else n)
    # Of measured cells the same shares, under the same names, though every stay has another number of them.
    ks = [max(1, min(n - 1, round(k / question.grid.cells * n))) for k in named] if names["grain"] == "cell" else named
    # Each view has a seed of its own, or the ties of a variant would fall as they do before training.
    rankings = [rank_cells(part, most=ks[-1], seed=len(parts) * question.seed + i) for i, part in enumerate(parts)]
    good = ~rankings[0].constant
    near = names == {"grain": "cell", "cells": "all"} and "near" in question.grid.grains()

    def of(ranking: Ranking, good: Bool[np.ndarray, "v"]) -> list[Agreement]:
        if good.sum() < 2 or ranking.constant[good].any():
            return []
        own = ranking.variants(good)
        overlaps = [Overlap(own.top[:, :k], step) for k in ks]
        within = [Near.of(cells, question.grid.tolerance) for cells in overlaps] if near else []
        return [*overlaps, Spearman(own.rank, step), *within]

    trained, partner, initial = (of(ranking, good) for ranking in rankings)
    drawn = []
    if permuted is not None:
        ranking = rank_cells(permuted, most=ks[-1], seed=question.seed)
        drawn = of(ranking, ~ranking.constant)
    labels: list[dict[str, Any]] = [{"measure": "overlap", "k": k} for k in named]
    labels += [{"measure": "spearman", "k": None}, *({**label, "grain": "near"} for label in labels if near)]
    found = []
    for place, label in enumerate(labels):
        row: dict[str, Any] = {**names, **label, "n": n, "variants": int(good.sum())}
        without = np.full(len(good), np.nan)
        if trained:
            own = trained[place]
            per_variant = own.per_variant()
            row |= {"value": float(per_variant.mean()), "chance": own.chance, "permuted": own.permuted}
            without[:] = row["value"]
            without[good] = mean_pairs_without_each(per_variant, row["value"])
        if trained and drawn:
            row["permuted"] = drawn[place].mean()
        if trained and partner:
            row["cross_patient"] = trained[place].across(partner[place])
        if trained and initial:
            row["initialisation"] = initial[place].mean()
            row["own_initialisation"] = float(trained[place].with_same(initial[place]).mean())
        found.append(Found(row, without))
    return found, rankings[0]


def _divergence(
    views: Views,
    drawn: Maps,
    question: Question,
    grain: str,
    measured: Bool[np.ndarray, "T F"] | None = None,
) -> Found:
    """Divergence and its references.

    Chance is each variant's own entries in an order drawn for it. Divergence is of a whole mixture, not a mean over
    pairs, so two references are put on its scale as if it added like squared distances d, which it does where maps are
    not far apart: a mixture of V is then ``sum of d over pairs / V^2``. Another patient: from a mixture of h variants
    here and V - h there, without the pairs on one stay, which are known. A mixture of few variants (of two: its own
    beginning) is closer to them than one of V: times ``(1 - 1/V) / (1 - 1/few)``.
    """
    masked = views if measured is None else Views(*(np.where(measured, maps, np.float32(0)) for maps in views))
    trained, partner, initial = (question.rows(maps, grain) for maps in masked)
    allowed = None if measured is None else question.rows(measured[None].astype(np.float32), grain)[0] > 0
    own, V = divergence(trained), len(trained)
    half = np.random.default_rng(question.seed).permutation(V) < V // 2
    there = divergence(partner, leave_out=False).value
    mixed = divergence(np.concatenate([trained[half], partner[~half]]), leave_out=False).value
    chance = divergence(shuffled(trained, allowed, seed=question.seed), leave_out=False).value
    permuted = chance
    if grain != "cell" or question.softmax_over != "feature":
        few = drawn if measured is None else permuted_within_steps(masked.trained, measured, seed=question.seed)
        permuted = divergence(question.rows(few, grain), leave_out=False).value * (1 - 1 / V) / (1 - 1 / len(few))
    row = {
        "grain": grain,
        "cells": "all" if measured is None else "measured",
        "measure": "divergence",
        "k": None,
        "n": trained.shape[1] * trained.shape[2] if allowed is None else int(allowed.sum()),
        "variants": V,
        "value": own.value,
        "chance": chance,
        "permuted": permuted,
        "cross_patient": _between(mixed, own.value, there, h=V // 2, V=V),
        "initialisation": divergence(initial, leave_out=False).value,
        "own_initialisation": own_divergence(trained, initial) * 2 * (1 - 1 / V),
    }
    return Found({name: None if value != value else value for name, value in row.items()}, own.without_each)


def _between(mixed: float, here: float, there: float, *, h: int, V: int) -> float:
    """Divergence of V variants as if all their pairs were of one here and one there; see `_divergence`.

    >>> round(_between(0.5, 0.0, 0.0, h=1, V=2), 3)
    0.5
    """
    of_pair_here, of_pair_there = (2 * V / (V - 1) * own for own in (here, there))
    rest = V - h
    of_pair = (2 * V**2 * mixed - h * (h - 1) * of_pair_here - rest * (rest - 1) * of_pair_there) / (2 * h * rest)
    return (V - 1) / (2 * V) * of_pair


def shuffled(
    weights: Float32[np.ndarray, "V R n"], allowed: Bool[np.ndarray, "R n"] | None = None, *, seed: int
) -> Float32[np.ndarray, "V R n"]:
    """Each variant's weights with the entries of its rows in an order drawn for it; only those at allowed places move.

    The order is the same in all rows of a variant, so for each row it is uniform, and for pairs of variants
    independent: means over rows are those of orders drawn for every row, at a hundredth of the cost.
    """
    generator, result = np.random.default_rng((seed, 2)), weights.copy()
    for ours, out in zip(weights, result, strict=True):
        order = generator.permutation(weights.shape[2])
        if allowed is None:
            out[:] = ours[:, order]
        else:
            out[allowed] = ours[:, order][allowed[:, order]]
    return result


def permuted_within_steps(
    maps: Maps, allowed: Bool[np.ndarray, "T F"] | None = None, *, seed: int
) -> Float32[np.ndarray, "_ T F"]:
    """Each variant's features permuted within each step, by a permutation for every step; of 128 variants at most.

    Only those at allowed places move.
    """
    generator, few = np.random.default_rng((seed, 3)), maps[:_DRAWN]
    if allowed is None:
        return generator.permuted(few, axis=2)
    keys = generator.random(few.shape, dtype=np.float32) + np.where(allowed, np.float32(0), np.float32(2))
    places = np.broadcast_to(np.argsort(~allowed, axis=1, kind="stable"), few.shape)  # the allowed ones first
    drawn = np.where(np.take_along_axis(~allowed[None], places[:1], axis=2), places, np.argsort(keys, axis=2))
    result = np.empty_like(few)
    np.put_along_axis(result, places, np.take_along_axis(few, drawn, axis=2), axis=2)
    return result
