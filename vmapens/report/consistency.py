"""Figures of how consistent the variants are, and about what.

Each function draws from the tables and gives None where they hold nothing to draw. A bold line or bar is the mean of
what is drawn thin.
"""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmapens.analysis.tables import ATTRIBUTIONS, GRAINS, REFERENCES
from vmapens.report import canvas
from vmapens.report.selection import (
    Settings,
    Tables,
    at_middle_k,
    decimals,
    distinct,
    first,
    interval_of,
    name_of,
    rows,
    shares_of_k,
)

REFERENCE_STYLE = {
    "chance": (canvas.GREY, "|"),
    "permuted": (canvas.ORANGE, "s"),
    "cross_patient": (canvas.BLUE, "D"),
    "initialisation": (canvas.GREEN, "^"),
    "own_initialisation": (canvas.PINK, "v"),
}
_ABOUT_PATIENT = "#f4c9a8"  # vermillion, light


def _cells(tables: Tables, **equal: str) -> pl.DataFrame:
    """Attention's consistency of cells, over all cells, with intervals over stays."""
    what = {"attribution": "attention", "grain": "cell", "cells": "all", "over": "stays"} | equal
    return rows(tables["consistency"], **what)


def agreement(tables: Tables, settings: Settings) -> Figure | None:
    """The agreement of cells beside its five references, one row a measure; the part about the patient is marked."""
    frame = _cells(tables)
    labels = shares_of_k(settings)
    overlap = rows(frame, measure="overlap")
    lines = [(f"overlap, {labels.get(k, f'k = {k:,}')}", rows(overlap, k=k)) for k in distinct(overlap, "k")]
    lines += [("Spearman", rows(frame, measure="spearman"))]
    lines = [(name, part) for name, part in lines if part.height]
    divergence = rows(frame, measure="divergence")
    if not lines and divergence.is_empty():
        return None
    heights = (max(1, len(lines)) + 0.8, 1.8)
    figure, panels = canvas.grid(2, 1, height=1.7 + 0.42 * sum(heights), height_ratios=heights)
    for panel, drawn in zip(panels, (lines, [("divergence", divergence)]), strict=True):
        for place, (_, part) in enumerate(drawn):
            _agreement_row(panel, place, part)
        canvas.name_rows(panel, [name for name, _ in drawn])
    panels[0].set(xlabel="agreement: more is more alike", xlim=(None, 1.02))
    panels[1].set(xlabel="divergence over entropy: less is more alike", xlim=(0, None))
    canvas.legend_below(figure, panels[0] if lines else panels[1], 3)
    return figure


def _agreement_row(panel: Axes, place: int | float, part: pl.DataFrame) -> None:
    value, cross = (first(rows(part, quantity=quantity), "estimate") for quantity in ("value", "cross_patient"))
    if value is not None and cross is not None:
        panel.barh(
            place, value - cross, left=cross, height=0.5, color=_ABOUT_PATIENT, label="the part about the patient"
        )
    for reference in REFERENCES:
        one = rows(part, quantity=reference)
        color, marker = REFERENCE_STYLE[reference]
        ends = first(one, "low"), first(one, "high")
        canvas.dot(
            panel, place, first(one, "estimate"), *ends, color=color, marker=marker, label=name_of(reference),
            filled=False,
        )  # fmt: skip
    same = rows(part, quantity="value")
    canvas.dot(
        panel, place, value, first(same, "low"), first(same, "high"), color=canvas.VERMILLION, label=name_of("value")
    )


def agreement_numbers(tables: Tables, settings: Settings) -> list[list[str]]:
    """Header and rows of the table of agreement at the middle k, with both intervals."""
    table = [["measure", "quantity", "estimate", "interval over stays", "interval over variants"]]
    for measure in ("overlap", "spearman", "divergence"):
        over_stays = at_middle_k(_cells(tables, measure=measure), settings)
        over_variants = at_middle_k(_cells(tables, measure=measure, over="variants"), settings)
        for quantity in distinct(over_stays, "quantity"):
            stays, variants = rows(over_stays, quantity=quantity), rows(over_variants, quantity=quantity)
            estimate = decimals(first(stays, "estimate"))
            table.append([name_of(measure), name_of(quantity), estimate, interval_of(stays), interval_of(variants)])
    return table


def grains(tables: Tables, settings: Settings) -> Figure | None:
    """Corrected overlap of coarser units, of all cells and of those measured, and the part about the patient."""
    frame = rows(tables["consistency"], attribution="attention", measure="overlap", over="stays")
    shown = [grain for grain in GRAINS if grain in distinct(frame, "grain")]
    if not shown:
        return None
    figure, panels = canvas.grid(1, 2, height=1.4 + 0.36 * len(shown), sharey=True)
    for panel, quantity in zip(panels, ("corrected", "patient_share"), strict=True):
        for place, grain in enumerate(shown):
            for cells, shift, color in (("all", -0.14, canvas.BLUE), ("measured", 0.14, canvas.ORANGE)):
                part = at_middle_k(rows(frame, grain=grain, cells=cells), settings)
                one = rows(part, quantity=quantity)
                canvas.dot(
                    panel, place + shift, first(one, "estimate"), first(one, "low"), first(one, "high"), color=color,
                    label=f"{cells} cells",
                )  # fmt: skip
        panel.axvline(0, color=canvas.GREY, linestyle=":")
        canvas.name_rows(panel, [name_of(grain) for grain in shown])
    panels[0].set(title="Overlap, corrected for chance", xlabel="0: chance, 1: all alike")
    panels[1].set(title="About the patient", xlabel="share of what is beyond chance")
    canvas.legend_below(figure, panels[0], 2)
    return figure


def measured(tables: Tables, settings: Settings) -> Figure | None:
    """Share of the most attended cells that were measured, a dot a stay, beside the share of all cells."""
    frame = tables["measured"].filter(pl.col("value").is_finite())
    shown = [name for name in ATTRIBUTIONS if name in distinct(frame, "attribution")]
    counts = sorted(distinct(frame, "k"))
    if not shown or not counts:
        return None
    figure, panels = canvas.grid(1, len(counts), height=1.5 + 0.34 * len(shown), sharey=True, sharex=True)
    for panel, k in zip(panels, counts, strict=True):
        for place, attribution in enumerate(shown):
            part = rows(frame, k=k, attribution=attribution)
            _strip(panel, place, part["value"].to_numpy(), canvas.BLUE, "a stay", "mean of the stays")
        every = rows(frame, k=k).unique("sample")["chance"].drop_nulls()
        if len(every):
            panel.axvline(every.to_numpy().mean(), color=canvas.BLACK, linestyle=":", label="chance: of all cells")
        canvas.name_rows(panel, [name_of(name) for name in shown])
        panel.set(title=shares_of_k(settings).get(k, f"k = {k:,}"), xlabel="share measured", xlim=(-0.03, 1.03))
    canvas.legend_below(figure, panels[0], 3)
    return figure


def _strip(panel: Axes, place: int | float, values: np.ndarray, color: str, one: str, mean: str) -> None:
    """A dot each, spread a little up and down by its place in the list, and a bar at their mean."""
    shift = 0.16 * np.sin(2.4 * np.arange(len(values)))
    panel.plot(
        values, place + shift, ".", color=color, alpha=0.45, markersize=5, label=one, rasterized=len(values) > 60
    )
    if len(values):
        panel.plot(
            [values.mean()], [place], "|", color=canvas.VERMILLION, markersize=15, markeredgewidth=2.2, label=mean
        )


def drop(tables: Tables, settings: Settings) -> Figure | None:
    """Attention drop: cells that the first n variants all have among their k most attended."""
    frame = tables["drop"]
    counts = sorted(distinct(frame, "k"))
    if not counts:
        return None
    figure, (panel,) = canvas.grid(1, 1, height=4.4)
    for k, color in zip(counts, (canvas.BLUE, canvas.GREEN, canvas.VERMILLION, *canvas.CYCLE), strict=False):
        part = rows(frame, k=k).sort("sample", "n")
        canvas.thin_lines(panel, part, "n", "random_order", color)
        mean = part.group_by("n").agg(pl.col("random_order", "exact", "chance").mean()).sort("n")
        n = mean["n"].to_numpy()
        label = shares_of_k(settings).get(k, f"k = {k:,}")
        panel.plot(n, mean["random_order"].to_numpy(), color=color, linewidth=2.4, label=f"{label}: mean of the stays")
        panel.plot(n, mean["exact"].to_numpy(), color=canvas.BLACK, linewidth=1.1, linestyle="--", label="all orders")
        panel.plot(n, mean["chance"].to_numpy(), color=color, linewidth=1.1, linestyle=":", label="chance")
    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=1)
    panel.set(xlabel="variants, n", ylabel="cells in the top k of all n variants", xlim=(0.95, None), ylim=(0, None))
    canvas.counts_axis(panel.xaxis)
    canvas.counts_axis(panel.yaxis)
    panel.grid()
    canvas.legend_below(figure, panel, 3)
    return figure


def held(tables: Tables, settings: Settings) -> Figure | None:
    """Cells in the top k of most variants, as a share of k, a dot a stay."""
    frame = tables["held"].filter(pl.col("cells").is_not_null())
    counts = sorted(distinct(frame, "k"))
    if not counts:
        return None
    shares = sorted(distinct(frame, "share"))
    figure, panels = canvas.grid(1, len(counts), height=1.5 + 0.42 * len(shares), sharey=True)
    for panel, k in zip(panels, counts, strict=True):
        for place, share in enumerate(shares):
            part = rows(frame, k=k).filter((pl.col("share") - share).abs() < 1e-6)
            _strip(panel, place, part["cells"].to_numpy() / k, canvas.BLUE, "a stay", "mean of the stays")
            chance = part["chance"].drop_nulls().to_numpy()
            if len(chance):
                canvas.dot(panel, place, chance.mean() / k, color=canvas.BLACK, marker="|", label="chance")
        canvas.name_rows(panel, [f"{100 * share:.0f} % of the variants" for share in shares])
        panel.set(title=shares_of_k(settings).get(k, f"k = {k:,}"), xlabel="cells held, as a share of k")
        panel.set_xlim(left=min(-0.02, panel.get_xlim()[0]))
    canvas.legend_below(figure, panels[0], 3)
    return figure
