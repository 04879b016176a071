"""Figures of why the variants differ: their seeds, their training, and whether the good ones are alike.

Each function draws from the tables and gives None where they hold nothing to draw.
"""

import math

import polars as pl
from matplotlib.figure import Figure

from vmapens.report import canvas
from vmapens.report.selection import Settings, Tables, at_middle_k, distinct, name_of, rows

_COMPONENTS = {"init": 0, "order": 1, "bootstrap": 2, "residual": 9}


def _measures(frame: pl.DataFrame) -> list[str]:
    """Those that say more alike by more; the divergence has another scale."""
    present = distinct(frame, "measure")
    return [name for name in ("overlap", "spearman") if name in present] or present


def decomposition(tables: Tables, settings: Settings) -> Figure | None:
    """Share of the disagreement that each factor explains, one panel a measure."""
    frame = tables["decomposition"].filter(pl.col("share").is_finite())
    measures = _measures(frame)
    if not measures:
        return None
    components = sorted(distinct(frame, "component"), key=lambda name: (_COMPONENTS.get(name, 5), name))
    figure, panels = canvas.grid(1, len(measures), height=1.0 + 0.36 * len(components), sharey=True)
    for panel, measure in zip(panels, measures, strict=True):
        part = at_middle_k(rows(frame, measure=measure), settings)
        for row in part.iter_rows(named=True):
            place = components.index(row["component"])
            canvas.dot(panel, place, row["share"], row["low"], row["high"], color=canvas.BLUE)
        panel.axvline(0, color=canvas.GREY, linestyle=":")
        canvas.name_rows(panel, [_factors(component) for component in components])
        panel.set(title=_with_k(measure, part), xlabel="share of the disagreement")
    return figure


def _factors(component: str) -> str:
    """The words for a component: `init x order` is "initialisation x order of the data"."""
    return " x ".join(name_of(factor) for factor in component.split(" x "))


def _with_k(measure: str, part: pl.DataFrame) -> str:
    k = part["k"].drop_nulls()
    name = name_of(measure)
    return name[0].upper() + name[1:] + (f", k = {k[0]:,}" if len(k) and k[0] else "")


def epochs(tables: Tables, settings: Settings) -> Figure | None:
    """Agreement of the variants against the epoch of their snapshots; the last and the kept epoch apart."""
    frame = tables["epochs"].filter(pl.col("estimate").is_finite())
    measures = _measures(frame)
    if not measures or rows(frame, which="snapshot").is_empty():
        return None
    figure, panels = canvas.grid(1, len(measures), height=3.0, sharex=True)
    kinds = {"snapshot": ("o", canvas.BLUE), "last": ("s", canvas.BLACK), "kept": ("D", canvas.VERMILLION)}
    for panel, measure in zip(panels, measures, strict=True):
        part = at_middle_k(rows(frame, measure=measure), settings).sort("epoch")
        walk = part.filter(pl.col("which") != "kept")
        panel.plot(walk["epoch"].to_numpy(), walk["estimate"].to_numpy(), color=canvas.BLUE)
        for row in part.iter_rows(named=True):
            marker, color = kinds.get(row["which"], kinds["snapshot"])
            if row["low"] is not None and row["high"] is not None:
                panel.vlines(row["epoch"], row["low"], row["high"], color=color, linewidth=1.3)
            panel.plot([row["epoch"]], [row["estimate"]], marker, color=color, label=_which(row["which"]))
        panel.set(title=_with_k(measure, part), xlabel="epoch (0: before training)", ylabel="agreement")
        panel.grid(axis="y")
    canvas.legend_below(figure, panels[0], 3)
    return figure


def _which(which: str) -> str:
    return {"kept": "kept epoch of each variant (at their mean)", "last": "last epoch"}.get(which, which)


def rashomon(tables: Tables, settings: Settings) -> Figure | None:
    """Within epsilon of the lowest loss: how alike, how many, how often a decision flips; and each one's p-value."""
    frame = tables["rashomon"].filter(pl.col("epsilon").is_finite())
    if frame.is_empty():
        return None
    figure, (alike, many, flips, tested) = canvas.grid(2, 2, height=5.2)
    measure = _measures(frame)[0]
    part = at_middle_k(rows(frame, measure=measure), settings).sort("epsilon")
    epsilon = part["epsilon"].to_numpy()
    alike.plot(epsilon, _floats(part["estimate"]), marker="o", color=canvas.VERMILLION, label="within epsilon")
    alike.vlines(epsilon, _floats(part["low"]), _floats(part["high"]), color=canvas.VERMILLION, linewidth=1.2)
    random_ends = _floats(part["random_low"]), _floats(part["random_high"])
    alike.fill_between(epsilon, *random_ends, color=canvas.GREY, alpha=0.25, linewidth=0)
    alike.plot(epsilon, _floats(part["at_random"]), "--", color=canvas.GREY, label="as many at random")
    alike.set(title="How alike they are", ylabel=_with_k(measure, part))
    alike.legend()
    many.plot(epsilon, part["variants"].to_numpy(), marker="o", color=canvas.BLUE)
    many.set(title="How many they are", ylabel="variants", ylim=(0, None))
    flips.plot(epsilon, _floats(part["ambiguity"]), marker="o", color=canvas.BLUE, label="ambiguity: by some variant")
    flips.plot(
        epsilon, _floats(part["discrepancy"]), marker="s", color=canvas.ORANGE, label="discrepancy: by one variant"
    )
    flips.set(title="Decisions they flip", ylabel="share of the test stays", ylim=(0, None))
    flips.legend()
    for panel in (alike, many, flips):
        panel.set_xlabel("epsilon (validation loss above the lowest)")
        panel.grid(axis="y")
        panel.locator_params(axis="x", nbins=5)
    good = tables["good"].filter(pl.col("p_value").is_finite())
    tested.plot(
        good["gap"].to_numpy(), good["p_value"].to_numpy(), ".", color=canvas.BLUE, rasterized=good.height > 400
    )
    tested.axhline(0.05, color=canvas.GREY, linestyle=":")
    tested.set(
        title="As good as the best?", xlabel="validation loss above the lowest", ylabel="p-value", ylim=(-0.03, 1.03)
    )
    return figure


def _floats(column: pl.Series) -> list[float]:
    return column.fill_null(math.nan).to_list()
