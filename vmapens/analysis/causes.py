"""Why do the variants differ, when does it come about, and are the good ones any more alike?

Axes: V variants, S stays, N stays of a whole split.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float64, Int

from vmapens.analysis.agreement import Overlap, Spearman
from vmapens.analysis.attribution import attributions
from vmapens.analysis.decomposition import decompose
from vmapens.analysis.grain import Grid
from vmapens.analysis.interval import over_stays
from vmapens.analysis.ranking import rank_cells
from vmapens.analysis.rashomon import ambiguity_discrepancy, as_good_as_best, epsilons, rashomon_set
from vmapens.analysis.stay import mean_pair
from vmapens.analysis.subject import Subject
from vmapens.analysis.tables import table
from vmapens.directory import snapshot_name
from vmapens.ensemble.stack import Stack

_DRAWN = 200
"""Sets of variants drawn at random, for each size."""


def agreement_of(
    subject: Subject, stack: Stack, row: int, grid: Grid, *, k: int, seed: int
) -> dict[str, Overlap | Spearman]:
    """How the variants' attention on one stay agrees, by measure; none if a map is constant."""
    x = subject.cohort.x[row].to(subject.device)
    maps = attributions(subject.model, stack, x, int(subject.cohort.y[row]), names=["attention"])["attention"]
    ranking = rank_cells(maps.reshape(len(maps), -1), most=k, seed=seed)
    step = np.repeat(np.arange(grid.steps), grid.features)
    if ranking.constant.any():
        return {}
    return {"overlap": Overlap(ranking.top, step), "spearman": Spearman(ranking.rank, step)}


def decomposition_rows(
    subject: Subject, pairs: dict[str, Float64[np.ndarray, "V V"]], *, k: int
) -> list[dict[str, Any]]:
    """Rows of the table `decomposition` from the mean agreement of each pair of variants of a crossed design."""
    levels = np.stack([np.unique(seeds, return_inverse=True)[1] for seeds in subject.factors.values()], axis=1)
    rows: list[dict[str, Any]] = []
    for measure, similarity in pairs.items():
        try:
            components = decompose(similarity, levels, tuple(subject.factors))
        except ValueError:  # too many variants failed: no two levels of each factor are whole
            return []
        for component, found in components.items():
            share, low, high = found.share
            rows.append(
                {"run": subject.name, "measure": measure, "k": k if measure == "overlap" else None}
                | {"component": component, "levels": found.levels, "share": share, "low": low, "high": high}
                | {"over": "levels"}
            )
    return rows


def epochs_table(
    subject: Subject, agreement: pl.DataFrame, rows: list[int], grid: Grid, *, k: int, seed: int
) -> pl.DataFrame:
    """The table `epochs`: agreement of the variants' attention after the epochs whose weights were kept.

    Args:
        subject: The run.
        agreement: The table of that name: it has the initialisation and the kept epochs.
        rows: The stays.
        grid: Of the attention.
        k: Of the overlap.
        seed: Orders ties.
    """
    clusters = subject.cohort.patient[rows]
    spec = subject.run.spec.train
    kept = float(subject.run.variants["kept_epoch"].to_numpy()[subject.variants].mean())
    found: list[dict[str, Any]] = []

    def add(which: str, epoch: float, measure: str, values: Float64[np.ndarray, "S"]) -> None:
        estimate, low, high = over_stays(values, clusters, seed)
        row = {"which": which, "epoch": epoch, "measure": measure, "k": k if measure == "overlap" else None}
        found.append({**row, "estimate": estimate, "low": low, "high": high})

    own = agreement.filter(attribution="attention", grain="cell", cells="all")
    for measure in ("overlap", "spearman"):
        of_measure = own.filter(
            pl.col("measure") == measure, pl.col("k").eq_missing(k if measure == "overlap" else None)
        )
        for which, epoch, column in (("initialisation", 0.0, "initialisation"), ("kept", kept, "value")):
            values = of_measure[column].to_numpy().astype(np.float64)
            if len(values) == len(rows) and not np.isnan(values).all():
                add(which, epoch, measure, values)
    weights = {
        ("snapshot", epoch): snapshot_name(epoch).removesuffix(".safetensors") for epoch in spec.snapshots if epoch
    }
    for (which, epoch), name in {**weights, ("last", spec.epochs): "last"}.items():
        stack = subject.stack(name)
        means = []
        for row in rows:
            found_here = agreement_of(subject, stack, row, grid, k=k, seed=seed)
            means.append({measure: own.mean() for measure, own in found_here.items()})
        for measure in ("overlap", "spearman"):
            values = np.array([of_stay.get(measure, np.nan) for of_stay in means])
            if not np.isnan(values).all():
                add(which, float(epoch), measure, values)
    return table("epochs", found)


def sets_by_loss(loss: Float64[np.ndarray, "V"]) -> list[tuple[float, Bool[np.ndarray, "V"]]]:
    """Distances to the lowest validation loss, and the variants within each."""
    return [(float(epsilon), rashomon_set(loss, float(epsilon))) for epsilon in epsilons(loss)]


def good_table(
    subject: Subject, losses: Float64[np.ndarray, "V N"], patient: Int[np.ndarray, "N"], *, seed: int
) -> pl.DataFrame:
    """The table `good`: each variant's validation loss, and whether it is as good as the best, given the choice."""
    mean = losses.mean(axis=1)
    p_values = as_good_as_best(losses, clusters=patient, seed=seed)
    columns = {"variant": subject.variants, "valid_loss": mean, "gap": mean - mean.min(), "p_value": p_values}
    return table("good", columns)


def rashomon_table(
    sets: list[tuple[float, Bool[np.ndarray, "V"]]],
    of_sets: dict[str, list[list[float]]],
    pairs: dict[str, Float64[np.ndarray, "V V"]],
    probability: Float[np.ndarray, "V N *C"],
    best: int,
    patient: Int[np.ndarray, "S"],
    *,
    k: int,
    threshold: float | None,
    seed: int,
) -> pl.DataFrame:
    """The table `rashomon`: agreement and decisions within sets of variants of nearly the same validation loss.

    Args:
        sets: From `sets_by_loss`; the last one holds all variants.
        of_sets: Mean agreement within each set, by measure: a row a stay.
        pairs: Mean agreement of each pair of variants over the stays, by measure.
        probability: On the test split.
        best: Place of the variant with the lowest validation loss.
        patient: Of the stays.
        k: Of the overlap.
        threshold: Of decisions; None for several classes.
        seed: Of the bootstrap, and of sets at random.
    """
    found: list[dict[str, Any]] = []
    generator = np.random.default_rng(seed)
    for measure, values in of_sets.items():
        by_set = np.array(values, np.float64)
        # Variants drawn at random agree as all of them do, whatever their number: a mean over pairs has no bias.
        at_random = float(by_set[:, -1].mean())
        for place, (epsilon, chosen) in enumerate(sets):
            members = np.flatnonzero(chosen)
            within = int(np.flatnonzero(members == best)[0])
            ambiguity, discrepancy = ambiguity_discrepancy(probability[members], within, threshold)
            estimate, low, high = over_stays(by_set[:, place], patient, seed)
            drawn = (generator.permutation(len(chosen))[: len(members)] for _ in range(_DRAWN))
            random = np.quantile([mean_pair(pairs[measure][np.ix_(few, few)]) for few in drawn], [0.025, 0.975])
            found.append(
                {"epsilon": epsilon, "variants": len(members), "measure": measure}
                | {"k": k if measure == "overlap" else None, "estimate": estimate, "low": low, "high": high}
                | {"at_random": at_random, "random_low": random[0], "random_high": random[1]}
                | {"ambiguity": ambiguity, "discrepancy": discrepancy, "threshold": threshold}
            )
    return table("rashomon", found)
