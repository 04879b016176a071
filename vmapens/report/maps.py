"""Figures of single cells: their ranks over the variants, the maps of single variants, and the attention's weights.

Each function draws from the tables and gives None where they hold nothing to draw. Maps are shown for the first stay,
features from the top down, time from left to right.
"""

import math
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from vmapens.report import canvas
from vmapens.report.selection import Settings, Tables, distinct, rows

_NAMED_FEATURES = 48  # more of them than these have no room for their names
_PANELS = 10
_SQUARES = 300  # more marked cells than these are marked by points


def read_map(tables: Tables, settings: Settings, **which: str | int) -> Float[np.ndarray, "T F"] | None:
    """The map of that sample, kind and variant, NaN for null; None if there is none."""
    found = rows(tables["maps"], **which)
    steps = int(settings["steps"])
    if found.is_empty() or found["values"][0] is None or len(found["values"][0]) % steps:
        return None
    values = found["values"][0].cast(pl.Float64).fill_null(math.nan).to_numpy()
    return np.asarray(values).reshape(steps, -1)


def top_cells(values: Float[np.ndarray, "T F"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and features of the k largest cells; ties go to the earlier cell."""
    order = np.argsort(-values.ravel(), kind="stable")[:k]
    steps, features = np.unravel_index(order, values.shape)
    return steps, features


def first_stay(tables: Tables) -> str | None:
    """The stay that is shown where there is room for one."""
    stays = distinct(tables["maps"], "sample")
    return str(stays[0]) if stays else None


def _show(panel: Axes, values: Float[np.ndarray, "T F"], settings: Settings, **options: Any) -> AxesImage:
    steps, features = values.shape
    hours = steps * float(settings["minutes_per_step"]) / 60
    extent = (0.0, hours, features - 0.5, -0.5)
    image = panel.imshow(values.T, aspect="auto", interpolation="none", extent=extent, **options)
    names = [feature["feature"] for feature in settings["features"]]
    if len(names) == features <= _NAMED_FEATURES:
        panel.set_yticks(range(features), [name if len(name) < 22 else name[:20] + ".." for name in names])
        panel.tick_params(axis="y", labelsize=5.5 if features > 12 else 8, length=0, pad=2)
    else:
        panel.set_ylabel(f"{features:,} features")
    panel.set_xlabel("hours")
    panel.spines[:].set_visible(False)
    return image


def _map_height(settings: Settings) -> float:
    return min(4.2, max(2.0, 0.9 + 0.078 * len(settings["features"])))


def rank_maps(tables: Tables, settings: Settings) -> Figure | None:
    """Mean and SD over the variants of the rank of each cell."""
    stay = first_stay(tables)
    if stay is None:
        return None
    mean, sd = (read_map(tables, settings, sample=stay, kind=kind) for kind in ("rank_mean", "rank_sd"))
    if mean is None or sd is None or mean.shape[1] < 2:
        return None
    figure, panels = canvas.grid(1, 2, height=_map_height(settings), sharey=True)
    titles = ("Mean rank (1: most attended)", "SD of the rank")
    for panel, values, title, colors in zip(panels, (mean, sd), titles, ("cividis_r", "viridis"), strict=True):
        image = _show(panel, values, settings, cmap=colors)
        panel.set_title(title)
        bar = figure.colorbar(image, ax=panel, fraction=0.05, pad=0.02)
        canvas.counts_axis(bar.ax.yaxis)
        bar.outline.set_visible(False)
    return figure


def rank_histograms(tables: Tables, settings: Settings) -> Figure | None:
    """Share of the cells by their mean rank over the first n variants, for growing n."""
    frame = tables["rank_histogram"]
    counts = sorted(distinct(frame, "n"))
    if not counts:
        return None
    if len(counts) > _PANELS:
        counts = [counts[round(i)] for i in np.linspace(0, len(counts) - 1, _PANELS)]
    columns = min(5, len(counts))
    lines = math.ceil(len(counts) / columns)
    empty = lines * columns - len(counts)
    figure, panels = canvas.grid(lines, columns, height=0.9 + 1.55 * lines, empty=empty, sharex=True)
    for panel, n in zip(panels, counts, strict=True):
        part = rows(frame, n=n).sort("left")
        edges = np.append(part["left"].to_numpy(), part["right"][-1])
        panel.stairs(part["share"].fill_null(0), edges, fill=True, color=canvas.SKY, label="the variants")
        panel.stairs(part["expected"].fill_null(0), edges, color=canvas.VERMILLION, linewidth=1.3, label="no agreement")
        panel.set_title(f"n = {n:,}")
        panel.set_yticks([])
        panel.tick_params(axis="x", labelsize=7)
        panel.set_xticks([round(edges[0]), round((edges[0] + edges[-1]) / 2), round(edges[-1])])
        canvas.counts_axis(panel.xaxis)
    panels[-columns + empty].set_ylabel("share of the cells")
    panels[-((columns - empty + 1) // 2)].set_xlabel("mean rank (1: most attended)")
    canvas.legend_below(figure, panels[0], 2)
    return figure


def rank_spread(tables: Tables, settings: Settings) -> Figure | None:
    """Smallest and largest SD of a cell's rank over the first n variants."""
    frame = tables["rank_spread"].filter(pl.col("n") > 1).sort("sample", "n")
    if frame.is_empty():
        return None
    figure, (panel,) = canvas.grid(1, 1, height=3.6)
    mean = frame.group_by("n").agg(pl.col("smallest", "largest", "chance").mean()).sort("n")
    n = mean["n"].to_numpy()
    for column, color in (("largest", canvas.VERMILLION), ("smallest", canvas.BLUE)):
        canvas.thin_lines(panel, frame, "n", column, color)
        panel.plot(n, mean[column].to_numpy(), color=color, linewidth=2.4, label=f"{column} SD, mean of the stays")
    panel.plot(n, mean["chance"].to_numpy(), color=canvas.BLACK, linestyle=":", label="no agreement (its mean)")
    panel.set_xscale("log")
    if frame["smallest"].min() == 0:
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(bottom=0)
    else:
        panel.set_yscale("log")
    panel.set(xlabel="variants, n", ylabel="SD of a cell's rank")
    canvas.counts_axis(panel.xaxis)
    canvas.counts_axis(panel.yaxis)
    panel.grid()
    canvas.legend_below(figure, panel, 3)
    return figure


def maps(tables: Tables, settings: Settings) -> Figure | None:
    """The attention of the best, the median, the worst and the most different variant, top cells marked."""
    stay = first_stay(tables)
    if stay is None:
        return None
    shown = [
        (row, values)
        for row in tables["chosen"].iter_rows(named=True)
        if (values := read_map(tables, settings, sample=stay, kind="variant", variant=row["variant"])) is not None
    ]
    if not shown or shown[0][1].shape[1] < 2:
        return None
    lines = math.ceil(len(shown) / 2)
    figure, panels = canvas.grid(
        lines, 2, height=_map_height(settings) * lines, empty=lines * 2 - len(shown), sharex=True, sharey=True
    )
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(np.nanmax(values)) for _, values in shown))
    hour = float(settings["minutes_per_step"]) / 60
    for panel, (row, values) in zip(panels, shown, strict=True):
        image = _show(panel, values, settings, cmap="viridis", norm=scale)
        steps, features = top_cells(values, int(settings["map_k"]))
        size, edge = (5.5, 1.3) if len(steps) <= _SQUARES else (0.8, 0.8)
        panel.plot(
            (steps + 0.5) * hour, features, "s", markersize=size, markeredgewidth=edge,
            markerfacecolor="none", markeredgecolor=canvas.VERMILLION, rasterized=len(steps) > _SQUARES,
        )  # fmt: skip
        panel.label_outer()
        loss = "" if row["valid_loss"] is None else f" (loss {row['valid_loss']:.4g})"
        panel.set_title(f"{row['role'].capitalize()}: variant {row['variant']}{loss}")
    bar = figure.colorbar(image, ax=panels, fraction=0.03, pad=0.015, label="attention (colours by its square root)")
    bar.outline.set_visible(False)
    return figure


def weights(tables: Tables, settings: Settings) -> Figure | None:
    """The attention's weight matrix: of the best variant, the mean, the mean clustered, and the SD."""
    frame = tables["weights"]
    if frame.is_empty():
        return None
    size = frame["row"].n_unique(), frame["column"].n_unique()
    figure, panels = canvas.grid(2, 2, height=7.2)
    drawn = (
        ("Best variant", "best", "row", "column"),
        ("Mean of the variants", "mean", "row", "column"),
        ("Mean, clustered (Ward)", "mean", "row_place", "column_place"),
        ("SD over variants, in that order", "sd", "row_place", "column_place"),
    )
    for panel, (title, values, row, column) in zip(panels, drawn, strict=True):
        matrix = np.full(size, math.nan)
        matrix[frame[row].to_numpy(), frame[column].to_numpy()] = frame[values].to_numpy()
        largest = float(np.nanmax(np.abs(matrix)))
        least, colors = (0.0, "viridis") if values == "sd" else (-largest, "PuOr")
        image = panel.imshow(matrix, interpolation="none", vmin=least, vmax=largest, cmap=colors)
        axis = "step" if size[0] == settings["steps"] != len(settings["features"]) else "feature"
        panel.set(title=title, xlabel=f"from {axis}", ylabel=f"to {axis}")
        if row == "row_place":
            panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        figure.colorbar(image, ax=panel, fraction=0.045, pad=0.02).outline.set_visible(False)
    return figure
