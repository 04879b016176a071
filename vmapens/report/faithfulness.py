"""Figures of whether attention matters: erasing and keeping cells, permuting, planted truth, learned masks.

Each function draws from the tables and gives None where they hold nothing to draw.
"""

import itertools

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vmapens.analysis.tables import ATTRIBUTIONS
from vmapens.report import canvas
from vmapens.report.selection import (
    Settings,
    Tables,
    decimals,
    distinct,
    first,
    interval_of,
    name_of,
    rows,
    shares_of_k,
)

_OUTCOMES = 3  # panels side by side; of more outcomes the ones with most stays are shown
_PROPERTIES = {
    "consistent": ("Consistent", "overlap beyond chance"),
    "patient": ("About the patient", "overlap beyond\nanother stay's"),
    "faithful": ("Faithful", "move of the logit, either way,\nbeyond the mask rolled in time"),
    "right": ("Right", "average precision,\nplanted cells"),
}


def _shown_outcomes(frame: pl.DataFrame) -> list[str]:
    stays = frame.group_by("outcome", maintain_order=True).agg(pl.col("stays").max())
    return stays.sort("stays", descending=True, maintain_order=True)["outcome"].drop_nulls().to_list()[:_OUTCOMES]


def _is_rolled(mask: str) -> bool:
    return "roll" in mask


def _mask_lines(panel: Axes, frame: pl.DataFrame, colors: dict[str, str], bands: bool) -> None:
    for mask, color in colors.items():
        part = rows(frame, mask=mask).sort("q")
        if part.is_empty():
            continue
        q, own = 100 * part["q"].to_numpy(), mask == "attention"
        style = "--" if _is_rolled(mask) else "-"
        panel.plot(
            q, part["change"].to_numpy(), style, marker="o", color=color, markersize=3, label=name_of(mask),
            linewidth=2.4 if own else 1.2, zorder=3 if own else 2,
        )  # fmt: skip
        ends = part.select(pl.col("low", "high").cast(pl.Float64))
        if bands and (own or _is_rolled(mask)) and not ends.null_count().row(0) > (0, 0):
            panel.fill_between(q, ends["low"].to_numpy(), ends["high"].to_numpy(), color=color, alpha=0.15, linewidth=0)
    panel.axhline(0, color=canvas.GREY, linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_xticks(sorted({100 * q for q in frame["q"].to_list()}))
    panel.minorticks_off()
    canvas.counts_axis(panel.xaxis)
    panel.grid(axis="y")


def _colors_of_masks(frame: pl.DataFrame) -> dict[str, str]:
    masks = sorted(distinct(frame, "mask"), key=lambda mask: (mask != "attention", not _is_rolled(mask)))
    return dict(
        zip(
            masks,
            itertools.cycle(
                (
                    canvas.VERMILLION,
                    canvas.BLACK,
                    canvas.GREY,
                    *canvas.CYCLE[0:1],
                    canvas.GREEN,
                    canvas.PINK,
                    canvas.ORANGE,
                    canvas.SKY,
                    canvas.YELLOW,
                )
            ),
        )
    )


def faithfulness(tables: Tables, settings: Settings) -> Figure | None:
    """Change of the logit against q, erased above and kept below, one column an outcome, one line a mask."""
    frame = tables["faithfulness"]
    frame = rows(frame, fill="mean", attention="recomputed") if frame.height else frame
    outcomes, directions = _shown_outcomes(frame), distinct(frame, "direction")
    if not outcomes:
        return None
    colors = _colors_of_masks(frame)
    height = 1.1 + 2.4 * len(directions)
    figure, panels = canvas.grid(len(directions), len(outcomes), height=height, sharex=True, sharey="row")
    for panel, (direction, outcome) in zip(panels, itertools.product(directions, outcomes), strict=True):
        part = rows(frame, direction=direction, outcome=outcome)
        _mask_lines(panel, part, colors, bands=True)
        stays = int(part["stays"].max() or 0) if part.height else 0  # type: ignore[arg-type]
        panel.set_title(f"{_did(direction)}, {outcome} ({stays:,} stays)")
    for panel in panels[:: len(outcomes)]:
        panel.set_ylabel("change of the logit")
    for panel in panels[-len(outcomes) :]:
        panel.set_xlabel("cells, % (most attended first)")
    canvas.legend_below(figure, panels[0], 3)
    return figure


def _did(direction: str) -> str:
    return {"erase": "Erased", "keep": "Only they kept"}.get(direction, name_of(direction).capitalize())


def faithfulness_choices(tables: Tables, settings: Settings) -> Figure | None:
    """The same curves of attention, rolled and random, for each way to erase and to treat the attention."""
    frame = tables["faithfulness"]
    ways = frame.select("fill", "attention").unique(maintain_order=True).rows()
    outcomes, directions = _shown_outcomes(frame), distinct(frame, "direction")
    if not outcomes or len(ways) < 2:
        return None
    frame = frame.filter((pl.col("mask") == "attention") | pl.col("mask").str.contains("roll|random"))
    colors = _colors_of_masks(frame)
    lines = list(itertools.product(directions, outcomes))
    figure, panels = canvas.grid(len(lines), len(ways), height=0.9 + 1.45 * len(lines), sharex=True, sharey="row")
    for panel, ((direction, outcome), way) in zip(panels, itertools.product(lines, ways), strict=True):
        part = rows(frame, direction=direction, outcome=outcome, fill=way[0], attention=way[1])
        _mask_lines(panel, part, colors, bands=True)
    for panel, (fill, attention) in zip(panels, ways, strict=False):
        filled = {"mean": "training mean", "other": "another patient"}.get(fill, fill)
        panel.set_title(f"{filled},\n{attention}")
    for panel, (direction, outcome) in zip(panels[:: len(ways)], lines, strict=True):
        panel.set_ylabel(f"{_did(direction)}\n{outcome}", fontsize=8)
    for panel in panels[-len(ways) :]:
        panel.set_xlabel("cells, %")
    canvas.legend_below(figure, panels[0], 3)
    return figure


def permutation(tables: Tables, settings: Settings) -> Figure | None:
    """Total variation of the prediction when attention is permuted, by outcome."""
    frame = tables["permutation"].filter(pl.col("total_variation").is_finite())
    if frame.is_empty():
        return None
    figure, (panel,) = canvas.grid(1, 1, height=0.9 + 0.3 * frame.height)
    for place, row in enumerate(frame.iter_rows(named=True)):
        canvas.dot(panel, place, row["total_variation"], row["low"], row["high"], color=canvas.BLUE)
    canvas.name_rows(panel, [f"{row['outcome']} ({row['stays']:,} stays)" for row in frame.iter_rows(named=True)])
    panel.set(xlabel="total variation of the prediction (0: it does not move, 1: it turns round)", xlim=(-0.01, None))
    return figure


def attributions(tables: Tables, settings: Settings) -> Figure | None:
    """Consistent, about the patient, faithful, right: one panel each, one row an attribution."""
    frame = tables["attributions"].filter(pl.col("estimate").is_finite())
    shown = [name for name in ATTRIBUTIONS if name in distinct(frame, "attribution")]
    properties = [name for name in _PROPERTIES if name in distinct(frame, "property")]
    if not shown or not properties:
        return None
    figure, panels = canvas.grid(1, len(properties), height=1.5 + 0.34 * len(shown), sharey=True)
    for panel, name in zip(panels, properties, strict=True):
        for place, attribution in enumerate(shown):
            one = rows(frame, attribution=attribution, property=name)
            color = canvas.VERMILLION if attribution == "attention" else canvas.BLUE
            canvas.dot(panel, place, first(one, "estimate"), first(one, "low"), first(one, "high"), color=color)
            canvas.dot(panel, place, first(one, "chance"), color=canvas.GREY, marker="|", label="chance")
        canvas.name_rows(panel, [name_of(attribution) for attribution in shown])
        title, unit = _PROPERTIES[name]
        panel.set(title=title, xlabel=unit)
        panel.locator_params(axis="x", nbins=4)
    canvas.legend_below(figure, panels[0], 1)
    return figure


def attributions_numbers(tables: Tables, settings: Settings) -> list[list[str]]:
    """Header and rows of the table consistent, about the patient, faithful, right."""
    frame = tables["attributions"]
    properties = [name for name in _PROPERTIES if name in distinct(frame, "property")]
    table = [["attribution", *(name_of(name) for name in properties)]]
    for attribution in distinct(frame, "attribution"):
        parts = [rows(frame, attribution=attribution, property=name) for name in properties]
        cells = [f"{decimals(first(part, 'estimate'))} {interval_of(part)}".strip() for part in parts]
        table.append([name_of(attribution), *cells])
    return table


def planted(tables: Tables, settings: Settings) -> Figure | None:
    """Average precision of finding the planted cells, a dot a variant, beside chance."""
    frame = tables["planted"].filter(pl.col("average_precision").is_finite())
    shown = [name for name in ATTRIBUTIONS if name in distinct(frame, "attribution")]
    if not shown:
        return None
    figure, (panel,) = canvas.grid(1, 1, height=1.3 + 0.42 * len(shown))
    for place, attribution in enumerate(shown):
        values = rows(frame, attribution=attribution)["average_precision"].to_numpy()
        shift = 0.28 * np.sin(2.4 * np.arange(len(values)))
        color = canvas.VERMILLION if attribution == "attention" else canvas.BLUE
        panel.plot(
            values, place + shift, ".", color=color, alpha=0.5, markersize=4, rasterized=len(values) > 300,
            label="a variant",
        )  # fmt: skip
    panel.axvline(
        float(frame["chance"].drop_nulls().to_numpy().mean()),
        color=canvas.BLACK,
        linestyle=":",
        label="chance: a random order of the cells, in the mean",
    )
    canvas.name_rows(panel, [name_of(name) for name in shown])
    panel.set(xlabel="average precision of finding the planted cells", xlim=(0, None))
    canvas.legend_below(figure, panel, 2)
    return figure


def learned_mask(tables: Tables, settings: Settings) -> Figure | None:
    """Overlap of learned masks of the best variants beside that of their attention, a dot a stay."""
    frame = rows(tables["learned_mask"], measure="overlap").filter(pl.col("value").is_finite())
    counts = sorted(distinct(frame, "k"))
    if not counts:
        return None
    shown = distinct(frame, "attribution")
    figure, panels = canvas.grid(1, len(counts), height=1.5 + 0.42 * len(shown), sharey=True, sharex=True)
    for panel, k in zip(panels, counts, strict=True):
        for place, attribution in enumerate(shown):
            part = rows(frame, k=k, attribution=attribution)
            quantities = (("permuted", -0.15, canvas.ORANGE), ("value", 0.15, canvas.VERMILLION))
            for quantity, shift, color in quantities:
                values = part[quantity].drop_nulls().to_numpy()
                panel.plot(
                    values, np.full(len(values), place + shift), "o", color=color, alpha=0.6, markersize=4.5,
                    markeredgewidth=0, label=name_of(quantity),
                )  # fmt: skip
            chance = part["chance"].drop_nulls().to_numpy()
            if len(chance):
                canvas.dot(panel, place, float(chance.mean()), color=canvas.GREY, marker="|", label="chance")
        canvas.name_rows(panel, [name_of(name) for name in shown])
        panel.set(title=shares_of_k(settings).get(k, f"k = {k:,}"), xlabel="overlap of the top k", xlim=(-0.03, 1.03))
    canvas.legend_below(figure, panels[0], 3)
    return figure
