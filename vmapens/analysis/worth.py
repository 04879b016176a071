"""What an explanation is worth: faithful to the model, right about the cause, and consistent, side by side.

Axes: V variants.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int

from vmapens.analysis.faithfulness import MeanChanges
from vmapens.analysis.interval import Interval, over_stays, over_variants
from vmapens.analysis.tables import ATTRIBUTIONS, table
from vmapens.cohort.load import Cohort

_SHARE = 0.1  # of the cells, at which attributions are compared


def outcomes_of(cohort: Cohort, rows: list[int]) -> dict[str, Int[np.ndarray, "S"]]:
    """Places of the stays of each outcome that there is."""
    y = cohort.y[rows].numpy()
    return {name: np.flatnonzero(y == code) for code, name in enumerate(cohort.task.classes) if (y == code).any()}


def faithfulness_table(changes: dict[int, MeanChanges], cohort: Cohort, *, seed: int) -> pl.DataFrame:
    """The table `faithfulness`: mean changes of the signed logit over variants and the stays of an outcome."""
    if not changes:
        return table("faithfulness", [])
    rows, first = list(changes), next(iter(changes.values())).of
    change = np.stack([entry.change for entry in changes.values()])
    size = np.stack([entry.size for entry in changes.values()])
    found_rows = []
    for outcome, places in outcomes_of(cohort, rows).items():
        clusters = cohort.patient[np.array(rows)[places]]
        for index in np.ndindex(change.shape[1:]):
            mask, fill, attention, direction, q = index
            at = (places, *index)
            interval = over_stays(change[at], clusters, seed)
            named: dict[str, Any] = {
                "mask": first.masks[mask],
                "fill": first.fills[fill],
                "attention": first.attentions[attention],
            }
            named |= {"direction": first.directions[direction], "q": first.shares[q], "outcome": outcome}
            estimate, low, high = interval
            numbers = {"stays": len(places), "change": estimate, "low": low, "high": high, "size": size[at].mean()}
            found_rows.append({**named, **numbers})
    return table("faithfulness", found_rows)


def permutation_table(variation: dict[int, Float64[np.ndarray, "V"]], cohort: Cohort, *, seed: int) -> pl.DataFrame:
    """The table `permutation`: how far predictions move when the attention is permuted within each step."""
    rows = list(variation)
    values = np.array([entry.mean() for entry in variation.values()])
    found_rows = []
    for outcome, places in (outcomes_of(cohort, rows) if rows else {}).items():
        estimate, low, high = over_stays(values[places], cohort.patient[np.array(rows)[places]], seed)
        found_rows.append(
            {"outcome": outcome, "stays": len(places), "total_variation": estimate, "low": low, "high": high}
        )
    return table("permutation", found_rows)


def planted_table(
    planted: dict[str, list[tuple[Float64[np.ndarray, "V"], float]]], variants: Int[np.ndarray, "V"]
) -> pl.DataFrame:
    """The table `planted`: each variant's mean average precision of finding the planted cells."""
    found_rows = []
    for name, stays in planted.items():
        precision, chance = (
            np.mean([entry[0] for entry in stays], axis=0),
            float(np.mean([entry[1] for entry in stays])),
        )
        for variant, value in zip(variants.tolist(), precision.tolist(), strict=True):
            found_rows.append({"attribution": name, "variant": variant, "average_precision": value, "chance": chance})
    return table("planted", found_rows)


def attributions_table(
    consistency: pl.DataFrame,
    changes: dict[int, MeanChanges],
    planted: pl.DataFrame,
    cohort: Cohort,
    *,
    shares: tuple[float, ...],
    variants_are_exchangeable: bool,
    seed: int,
) -> pl.DataFrame:
    """The table `attributions`: consistent, about the patient, faithful and right, a row each, of every attribution.

    Args:
        consistency: The table of that name.
        changes: Of the signed logit, by row of the cohort.
        planted: The table of that name.
        cohort: Of the stays.
        shares: The k, as shares of the cells; the middle one is taken.
        variants_are_exchangeable: As for `consistency_table`.
        seed: Of the bootstrap.
    """
    found_rows: list[dict[str, Any]] = []

    def add(name: str, what: str, interval: Interval, chance: float | None) -> None:
        found_rows.append({"attribution": name, "property": what, **interval._asdict(), "chance": chance})

    for name in ATTRIBUTIONS:
        own = consistency.filter(attribution=name, grain="cell", cells="all", measure="overlap", over="stays")
        ks = own["k"].unique().sort().to_list()
        if ks:
            own = own.filter(k=ks[len(shares) // 2] if len(ks) == len(shares) else ks[len(ks) // 2])
            for what, quantity in (("consistent", "corrected"), ("patient", "about_patient")):
                for estimate, low, high in own.filter(quantity=quantity).select("estimate", "low", "high").iter_rows():
                    add(name, what, Interval(estimate, low, high), 0.0)
        found = _beyond_rolled(name, changes)
        if len(found):
            add(name, "faithful", over_stays(found, cohort.patient[list(changes)], seed), 0.0)
        right = planted.filter(attribution=name)
        if len(right):
            values = right["average_precision"].to_numpy()
            without = (values.sum() - values) / max(1, len(values) - 1)
            without = without if variants_are_exchangeable else without[:0]
            add(name, "right", over_variants(without, float(values.mean())), right["chance"][0])
    return table("attributions", found_rows)


def _beyond_rolled(name: str, changes: dict[int, MeanChanges]) -> Float64[np.ndarray, "S"]:
    """How much more an attribution's cells, erased, move the signed logit than the attention's mask rolled in time."""
    values = []
    for entry in changes.values():
        masks, shares = entry.of.masks, entry.of.shares
        if name not in masks or "rolled" not in masks or _SHARE not in shares:
            return np.empty(0)
        size = entry.size[:, 0, 0, 0, shares.index(_SHARE)]  # filled with the training mean, recomputed, erased
        values.append(size[masks.index(name)] - size[masks.index("rolled")])
    return np.array(values)
