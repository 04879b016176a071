"""Over stays: how consistent the variants are beyond chance, and which part of it is about the patient."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int

from vmapens.analysis.interval import Interval, over_stays, over_variants, ratio_over_stays
from vmapens.analysis.tables import REFERENCES, table

_KEY = ["attribution", "grain", "cells", "measure", "k"]


def consistency_table(
    agreement: pl.DataFrame,
    patient: Mapping[str, int],
    company: Mapping[str, int],
    without_each: Mapping[tuple[Any, ...], tuple[Float64[np.ndarray, "V"], int]],
    *,
    variants_are_exchangeable: bool,
    seed: int,
) -> pl.DataFrame:
    """Means over stays of each agreement and of what follows from it, with intervals.

    Args:
        agreement: The table of that name.
        patient: Of each sample, a number; the bootstrap draws whole patients.
        company: Of each sample, the number of its pair of patients (`pairing.in_pairs`): the bootstrap draws whole
            pairs where stays are compared with one another.
        without_each: For each key of the table, the sum over stays of the value without each variant.
        variants_are_exchangeable: Whether variants share no cause but those that all share; if not (a crossed design),
            leaving one out says nothing and there is no interval over variants.
        seed: Of the bootstrap samples, the same for all quantities.

    Returns:
        The table `consistency`.
    """
    rows: list[dict[str, Any]] = []
    for key, own in agreement.group_by(_KEY, maintain_order=True):
        named = dict(zip(_KEY, key, strict=True))
        columns = {name: own[name].to_numpy().astype(np.float64) for name in ("value", *REFERENCES)}
        if np.isnan(columns["value"]).all():
            continue
        clusters, companies = (np.array([of[sample] for sample in own["sample"]]) for of in (patient, company))
        is_distance = named["measure"] == "divergence"
        stays = int((~np.isnan(columns["value"])).sum())
        for quantity, interval in _quantities(columns, clusters, companies, is_distance=is_distance, seed=seed).items():
            rows.append({**named, "stays": stays, "quantity": quantity, **interval._asdict(), "over": "stays"})
        found = without_each.get(key)
        if variants_are_exchangeable and found is not None and found[1] == stays:
            interval = over_variants(found[0] / stays, float(np.nanmean(columns["value"])))
            rows.append({**named, "stays": stays, "quantity": "value", **interval._asdict(), "over": "variants"})
    return table("consistency", rows)


def _quantities(
    columns: dict[str, Float64[np.ndarray, "S"]],
    clusters: Int[np.ndarray, "S"],
    companies: Int[np.ndarray, "S"],
    *,
    is_distance: bool,
    seed: int,
) -> dict[str, Interval]:
    """Intervals over stays, by quantity; divergence says how far apart variants are, so its differences turn round."""
    value, chance, cross = columns["value"], columns["chance"], columns["cross_patient"]
    beyond, about = (chance - value, cross - value) if is_distance else (value - chance, value - cross)
    most = chance if is_distance else 1 - chance
    found = {
        name: over_stays(column, companies if name == "cross_patient" else clusters, seed)
        for name, column in columns.items()
        if not np.isnan(column).all()
    }
    if (most[~np.isnan(most)] > 1e-9).all():
        found["corrected"] = over_stays(beyond / most, clusters, seed)
    if not np.isnan(about).all():
        found["about_patient"] = over_stays(about, companies, seed)
        if found["value"].estimate != found["chance"].estimate:
            found["patient_share"] = ratio_over_stays(about, beyond, companies, seed)
    return found
