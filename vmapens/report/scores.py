"""Figures of how well the variants do: their scores, the controls, and how reliable a score is.

Each function draws from the tables and gives None where they hold nothing to draw.
"""

import polars as pl
from matplotlib.figure import Figure

from vmapens.report import canvas
from vmapens.report.selection import (
    Settings,
    Tables,
    decimals,
    distinct,
    first,
    interval_of,
    main_metric,
    name_of,
    rows,
)

_PIXELS_FROM = 400  # points; more than these are drawn as pixels, not as shapes


def scores(tables: Tables, settings: Settings) -> Figure | None:
    """Above: histograms. Below: every variant, and the mean of this one and all before it."""
    # A variant that failed keeps the scores of its best epoch.
    frame = rows(tables["scores"], split="test", status="ok").filter(pl.col("value").is_finite())
    second = "average_precision" if settings.get("kind") == "binary" else "macro_auroc"
    metrics = [metric for metric in (main_metric(settings), second) if metric in distinct(frame, "metric")]
    if not metrics:
        return None
    figure, panels = canvas.grid(2, len(metrics), height=4.6, height_ratios=(2, 3))
    for column, metric in enumerate(metrics):
        part = rows(frame, metric=metric).sort("variant")
        histogram, trace = panels[column], panels[len(metrics) + column]
        histogram.hist(part["value"].to_numpy(), bins=min(40, max(6, part.height // 12)), color=canvas.SKY, ec="white")
        histogram.axvline(part["running_mean"][-1], color=canvas.VERMILLION)
        histogram.set(title=name_of(metric), xlabel=f"{name_of(metric)}, test stays", ylabel="variants")
        trace.plot(
            part["variant"].to_numpy(), part["value"].to_numpy(), ".", color=canvas.SKY, markersize=4,
            rasterized=part.height > _PIXELS_FROM, label="one variant",
        )  # fmt: skip
        trace.plot(
            part["variant"].to_numpy(), part["running_mean"].to_numpy(), color=canvas.VERMILLION,
            label="mean of this one and all before it",
        )  # fmt: skip
        trace.set(xlabel="variant", ylabel=name_of(metric))
        trace.grid(axis="y")
    canvas.legend_below(figure, panels[-1], 2)
    return figure


def _compared(tables: Tables, settings: Settings) -> pl.DataFrame:
    """The runs at the main score on the test split; empty where there is only one."""
    frame = rows(tables["controls"], split="test", metric=main_metric(settings))
    return frame if frame["run"].n_unique() > 1 else frame.clear()


def controls(tables: Tables, settings: Settings) -> Figure | None:
    """Left: each run's mean score. Right: its difference from the first run."""
    frame = _compared(tables, settings)
    if frame.is_empty():
        return None
    figure, (left, right) = canvas.grid(1, 2, height=1.3 + 0.32 * frame.height, sharey=True)
    for place, row in enumerate(frame.iter_rows(named=True)):
        color = canvas.BLACK if place == 0 else canvas.BLUE
        canvas.dot(left, place, row["mean"], row["low"], row["high"], color=color)
        if place:
            ends = row["difference_low"], row["difference_high"]
            canvas.dot(right, place, row["difference"], *ends, color=color)
    names = [f"{form} ({v:,})" for form, v in zip(frame["form"], frame["variants"], strict=True)]
    canvas.name_rows(left, names)
    right.grid(axis="y")
    right.axvline(0, color=canvas.GREY, linestyle=":")
    metric = name_of(main_metric(settings))
    left.set(xlabel=f"{metric}, mean over variants", title="Score")
    right.set(xlabel=f"difference from {frame['form'][0]}", title="Difference")
    return figure


def controls_numbers(tables: Tables, settings: Settings) -> list[list[str]]:
    """Header and rows of the controls' table."""
    frame = _compared(tables, settings)
    metric = name_of(main_metric(settings))
    table = [["attention", "run", "variants", f"mean {metric}", "SD", "interval", "difference", "interval"]]
    for place, row in enumerate(frame.iter_slices(1)):
        difference = decimals(first(row, "difference"), sign=True) if place else "-"
        ends = interval_of(row, "difference_low", "difference_high") if place else ""
        names = [row["form"][0], row["run"][0], f"{row['variants'][0]:,}"]
        table.append(
            [*names, decimals(first(row, "mean")), decimals(first(row, "sd")), interval_of(row), difference, ends]
        )
    return table


def reliability(tables: Tables, settings: Settings) -> Figure | None:
    """Left: each variant's score on the validation and the test split. Right: rank correlation of every score."""
    correlations = tables["reliability"].filter(pl.col("correlation").is_finite())
    if correlations.is_empty():
        return None
    figure, (left, right) = canvas.grid(1, 2, height=3.0)
    metric = main_metric(settings)
    both = (
        rows(tables["scores"], metric=metric, status="ok")
        .filter(pl.col("value").is_finite())
        .pivot(on="split", index="variant", values="value")
    )
    if {"valid", "test"} <= set(both.columns):
        left.plot(
            both["valid"].to_numpy(), both["test"].to_numpy(), ".", color=canvas.BLUE, alpha=0.6, markersize=4,
            rasterized=both.height > _PIXELS_FROM,
        )  # fmt: skip
    left.set(xlabel=f"{name_of(metric)}, validation stays", ylabel=f"{name_of(metric)}, test stays", title="Variants")
    for place, row in enumerate(correlations.iter_rows(named=True)):
        canvas.dot(right, place, row["correlation"], row["low"], row["high"], color=canvas.BLUE)
    canvas.name_rows(right, [name_of(name) for name in correlations["metric"]])
    right.axvline(0, color=canvas.GREY, linestyle=":")
    right.set(xlabel="rank correlation, validation with test", title="Reliability of a score")
    return figure
