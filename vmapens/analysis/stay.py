"""One stay under all variants: the rows that it gives to every table that is made stay by stay.

Axes: V variants, T steps, F features (1 where the attention has no such axis).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32, Float64
from scipy.stats import binom

from vmapens.analysis.agreement import Overlap, Spearman
from vmapens.analysis.attribution import attributions, importance
from vmapens.analysis.drop import Survival, by_chance, held_by_share, survivors
from vmapens.analysis.faithfulness import MeanChanges, faithfulness, permuted_attention
from vmapens.analysis.grain import WINDOWS, Grid, counts_of, group_numbers
from vmapens.analysis.interval import jackknife_error
from vmapens.analysis.on_stay import Question, Views, agreement_on_stay
from vmapens.analysis.ranking import Ranking, mean_rank_shares, powers_up_to, rank_moments
from vmapens.analysis.settings import Settings
from vmapens.analysis.subject import Subject
from vmapens.analysis.tables import ATTRIBUTIONS
from vmapens.analysis.truth import PlantedTruth
from vmapens.cohort.load import raw_values
from vmapens.ensemble.stack import Stack
from vmapens.ensemble.step import holds_attention

HELD_SHARES = (0.5, 0.8, 0.95)
MAPPED = 64
"""Stays of which maps are kept: those whose attention is saved, then the first ones."""
BINS = 60
"""Of the histograms of mean ranks."""
_GRADIENTS = ("gradient_x_input", "integrated_gradients")
Maps = Float32[np.ndarray, "V T F"]
Key = tuple[str, str, str, str, int | None]


@dataclass
class Collected:
    """What the stays have given so far.

    Args:
        rows: Of each table that is made stay by stay.
        without_each: For each attribution, grain, cells, measure and k, the sum over stays of the value without each
            variant, and how many stays that is of.
        compared: Rows of the cohort where all variants rank the cells by attention: what follows is of these.
        pairs: Sums over stays of the agreement of each pair of variants, by measure.
        of_sets: Mean agreement within each set of variants that was asked for, by measure: one row a stay.
        histogram: Sum over stays of the shares of cells by mean rank, a row a number of variants.
        drops: Rows of the table `drop`, a frame a stay and k.
        changes: Of the signed logit, by row of the cohort.
        total_variation: Of the prediction under permuted attention [V], by row of the cohort.
        planted: Average precision [V] and chance, by attribution; one entry a stay in which the cause acts.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    without_each: dict[Key, tuple[Float64[np.ndarray, "V"], int]] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    pairs: dict[str, Float64[np.ndarray, "V V"]] = field(default_factory=dict)
    of_sets: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    histogram: Float64[np.ndarray, "_ _"] | None = None
    drops: list[pl.DataFrame] = field(default_factory=list)
    changes: dict[int, MeanChanges] = field(default_factory=dict)
    total_variation: dict[int, Float64[np.ndarray, "V"]] = field(default_factory=dict)
    planted: dict[str, list[tuple[Float64[np.ndarray, "V"], float]]] = field(default_factory=lambda: defaultdict(list))


class StayStudy:
    """Looks at one stay after the other.

    Args:
        subject: The run.
        settings: What is asked.
        sets: Groups of variants whose agreement among themselves is wanted.
        truth: Of a synthetic cohort.
    """

    def __init__(
        self, subject: Subject, settings: Settings, sets: list[Bool[np.ndarray, "V"]], truth: PlantedTruth | None
    ) -> None:
        self.subject, self.settings, self._sets, self._truth = subject, settings, sets, truth
        self.stack, self._initial = subject.stack(), subject.initial
        self.names = [name for name in ATTRIBUTIONS if name not in _GRADIENTS or "gradients" not in settings.without]
        T, F = subject.cohort.x.shape[1:]
        groups = subject.cohort.features["group"].to_list()
        window = settings.window or max(1, round(T / WINDOWS))
        self.full = Grid(T, F, group_numbers(groups), window, settings.tolerance)
        has_features = "feature" in subject.axes
        self.grid = self.full if has_features else Grid(T, 1, None, window, settings.tolerance)
        self.ks = counts_of(settings.top_k, self.grid.cells)
        counts_of(settings.top_k, self.full.cells)  # what the other attributions are asked
        self.survival = Survival(len(subject.variants))
        self.collected = Collected()
        self._mapped: set[int] = set()

    @property
    def map_k(self) -> int:
        """The k of figures that show one."""
        return self.ks[len(self.ks) // 2]

    def question(self, name: str, row: int) -> Question:
        """What is asked about an attribution of a stay; each stay has draws of its own, whose noise evens out."""
        own = name == "attention"
        over = self.subject.softmax_over if own else "feature"
        grid, seed = self.grid if own else self.full, _seed(self.settings.seed, row)
        return Question(grid, self.settings.top_k, over, name in _GRADIENTS, seed)

    def look(self, pairs: list[tuple[int, int]]) -> Iterator[int]:
        """Look at stays, each beside another one (itself: some stay of another patient); yield each when it is done."""
        saved = set(self.subject.run.saved_samples)
        in_order = sorted((self.subject.cohort.samples[row] not in saved, row) for row, _ in pairs)
        self._mapped = {row for _, row in in_order[:MAPPED]}
        maps: dict[int, dict[str, Maps]] = {}
        for row, partner in pairs:
            other = self._some_other(row) if partner == row else partner
            maps = {one: maps.get(one) or self.maps_of(self.stack, one) for one in (row, other)}
            self._look(row, other, maps[row], maps[other])
            yield row

    def _some_other(self, row: int) -> int:
        cohort = self.subject.cohort
        others = np.flatnonzero(cohort.patient != cohort.patient[row])
        alike = others[cohort.split[others] == cohort.split[row]]
        return int(np.random.default_rng(self.settings.seed).choice(alike if len(alike) else others))

    def maps_of(self, stack: Stack, row: int, names: list[str] | None = None) -> dict[str, Maps]:
        """Attributions of a stay under some variants, by name; all that are compared, or some."""
        cohort = self.subject.cohort
        x = cohort.x[row].to(self.subject.device)
        found = attributions(self.subject.model, stack, x, int(cohort.y[row]), names=names or self.names)
        return {name: maps.reshape(*maps.shape[:2], -1) for name, maps in found.items()}

    def _look(self, row: int, partner: int, own: dict[str, Maps], other: dict[str, Maps]) -> None:
        initial = self.maps_of(self._initial, row)
        sample = self.subject.cohort.samples[row]
        observed = self._measured(row)
        for name, maps in own.items():
            question = self.question(name, row)
            measured = observed if question.grid is self.full else np.any(observed, axis=1, keepdims=True)
            found, ranking = agreement_on_stay(Views(maps, other[name], initial[name]), question, measured)
            for entry in found:
                error = np.nan if self.subject.is_crossed else jackknife_error(entry.without_each)
                numbers = {"se": error, **entry.row}
                self.collected.rows["agreement"].append({"sample": sample, "attribution": name, **numbers})
                self._add_without(name, entry.row, entry.without_each)
            for k in question.counts(question.grid.cells):
                share = measured.reshape(-1)[ranking.top[:, :k]].mean()
                row_of = {"sample": sample, "attribution": name, "k": k, "value": float(share)}
                self.collected.rows["measured"].append({**row_of, "chance": float(measured.mean())})
            if name == "attention":
                self._attention(row, maps, ranking)
            if self._truth is not None and self._truth.acts[row]:
                precision = self._truth.average_precision(row, importance(name, maps))
                self.collected.planted[name].append((precision, self._truth.chance(row)))
        if "faithfulness" not in self.settings.without:
            self._faithfulness(row, partner, own)

    def _measured(self, row: int) -> Bool[np.ndarray, "T F"]:
        """Which cells of a stay were measured in that very step; an indicator never is."""
        cohort = self.subject.cohort
        observed: np.ndarray = cohort.observed[row].numpy()
        if cohort.spec.indicators:
            observed = observed & (np.arange(observed.shape[1]) < observed.shape[1] // 2)
        return observed

    def _add_without(self, name: str, row: dict[str, Any], without: Float64[np.ndarray, "V"]) -> None:
        if row.get("value") is None or np.isnan(without).any():
            return
        key = (name, row["grain"], row["cells"], row["measure"], row["k"])
        total, count = self.collected.without_each.get(key, (np.zeros(len(without)), 0))
        self.collected.without_each[key] = (total + without, count + 1)

    def _attention(self, row: int, maps: Maps, ranking: Ranking) -> None:
        """Drop, ranks, maps and pairs: what is asked of the attention alone."""
        sample, V, n = self.subject.cohort.samples[row], len(maps), self.grid.cells
        step = np.repeat(np.arange(self.grid.steps), self.grid.features)
        self._map(row, "mean", maps.mean(axis=0, dtype=np.float64))
        self._map(row, "sd", maps.std(axis=0, dtype=np.float64))
        if self.grid is self.full:
            self._map(row, "value", raw_values(self.subject.cohort, torch.tensor([row]))[0].numpy())
            self._map(row, "measured", self._measured(row))
        if ranking.constant.any():
            return
        self.collected.compared.append(row)
        for k in self.ks:
            overlap = Overlap(ranking.top[:, :k], step)
            held_by = overlap.held_by()
            drop = {
                "n": np.arange(1, V + 1),
                "random_order": survivors(overlap.top, n, seed=_seed(self.settings.seed, row, k)),
                "exact": self.survival.expected(held_by),
                "chance": by_chance(k, n, V),
            }
            named = (pl.lit(sample).alias("sample"), pl.lit(k).alias("k"))
            self.collected.drops.append(pl.DataFrame(drop).select(*named, pl.all()))
            for share in HELD_SHARES:
                by_luck = n * float(_at_least(share, V, k / n))
                cells = held_by_share(held_by, V, share)
                entry = {"sample": sample, "k": k, "share": share, "cells": cells, "chance": by_luck}
                self.collected.rows["held"].append(entry)
            if k == self.map_k:
                self._map(row, "held", held_by / V)
                self._add_pairs("overlap", overlap.pairs())
        self._add_pairs("spearman", Spearman(ranking.rank, step).pairs())
        self._ranks(row, ranking)

    def _ranks(self, row: int, ranking: Ranking) -> None:
        n, sample = self.grid.cells, self.subject.cohort.samples[row]
        edges = np.linspace(0.5, n + 0.5, BINS + 1)
        moments = rank_moments(ranking.rank, powers_up_to(len(ranking.rank)))
        shares = np.stack([np.histogram(entry.mean, edges)[0] / n for entry in moments])
        before = self.collected.histogram
        self.collected.histogram = shares if before is None else before + shares
        for entry in moments[1:]:  # of one variant there is no spread
            expected = np.sqrt((n * n - 1) / 12 * (1 - 1 / entry.variants))
            spread = {"smallest": entry.sd.min(), "largest": entry.sd.max(), "chance": expected}
            numbers = {name: float(value) for name, value in spread.items()}
            self.collected.rows["rank_spread"].append({"sample": sample, "n": entry.variants, **numbers})
        self._map(row, "rank_mean", moments[-1].mean)
        self._map(row, "rank_sd", moments[-1].sd)

    def rank_histogram(self) -> list[dict[str, Any]]:
        """Rows of the table of that name."""
        if self.collected.histogram is None:
            return []
        n, counts = self.grid.cells, powers_up_to(len(self.subject.variants))
        edges = np.linspace(0.5, n + 0.5, BINS + 1)
        rows = []
        means = self.collected.histogram / len(self.collected.compared)
        for count, shares in zip(counts.tolist(), means, strict=True):
            expected = mean_rank_shares(edges, cells=n, variants=count)
            for left, right, share, by_luck in zip(edges[:-1], edges[1:], shares, expected, strict=True):
                rows.append({"n": count, "left": left, "right": right, "share": share, "expected": by_luck})
        return rows

    def _map(self, row: int, kind: str, values: np.ndarray, variant: int | None = None) -> None:
        if row not in self._mapped:
            return
        flat = np.asarray(values, np.float32).reshape(-1)
        entry = {"sample": self.subject.cohort.samples[row], "kind": kind, "variant": variant, "values": flat}
        self.collected.rows["maps"].append(entry)

    def add_variants(self, rows: list[int], places: list[int]) -> None:
        """Maps of single variants, by their place among the good ones."""
        for row in sorted(self._mapped.intersection(rows)):
            for place in places:
                x = self.subject.cohort.x[row].to(self.subject.device)
                stack = self.stack.rows(place, place + 1)
                maps = attributions(self.subject.model, stack, x, int(self.subject.cohort.y[row]), names=["attention"])
                self._map(row, "variant", maps["attention"], int(self.subject.variants[place]))

    def _add_pairs(self, measure: str, pairs: Float32[np.ndarray, "V V"]) -> None:
        before = self.collected.pairs.get(measure)
        self.collected.pairs[measure] = pairs.astype(np.float64) if before is None else before + pairs
        means = [mean_pair(pairs[np.ix_(chosen, chosen)]) for chosen in self._sets]
        self.collected.of_sets[measure].append(means)

    def _faithfulness(self, row: int, partner: int, own: dict[str, Maps]) -> None:
        cohort, model, seed = self.subject.cohort, self.subject.model, _seed(self.settings.seed, row)
        x, other = (cohort.x[place].to(self.subject.device) for place in (row, partner))
        found = {
            name: maps[:, :, 0] if name == "attention" and self.grid.features == 1 else maps
            for name, maps in own.items()
        }
        y = int(cohort.y[row])
        changes = faithfulness(model, self.stack, x, y, other, found, seed=seed)
        self.collected.changes[row] = MeanChanges.over_variants(changes)
        if holds_attention(model):
            over, attention = self.subject.softmax_over, found["attention"]
            variation = permuted_attention(model, self.stack, x, attention, over=over, seed=seed)
            self.collected.total_variation[row] = variation


def mean_pair(pairs: Float32[np.ndarray, "V V"] | Float64[np.ndarray, "V V"]) -> float:
    """Mean over the pairs of two different variants; NaN where there is none."""
    count = len(pairs)
    if count < 2:
        return float("nan")
    return float((pairs.sum(dtype=np.float64) - np.trace(pairs)) / (count * (count - 1)))


def _at_least(share: float, variants: int, probability: float) -> float:
    """How likely at least this share of the variants hold a cell that each holds with this probability."""
    return float(binom.sf(np.ceil(share * variants - 1e-9) - 1, variants, probability))


def _seed(seed: int, *numbers: int) -> int:
    """One of its own for each stay (and k)."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1)[0])
