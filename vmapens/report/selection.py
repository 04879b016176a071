"""Rows of the tables, and how a reader calls what is in them."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from vmapens.analysis.tables import TABLES

Tables = Mapping[str, pl.DataFrame]
Settings = Mapping[str, Any]

NAMES = {
    "attention": "attention a",
    "gated_input": "a * x",
    "gated_input_size": "|a * x|",
    "input_size": "|x|",
    "rolled": "attention, rolled in time",
    "random": "random cells",
    "other_variant": "attention of another variant",
    "other_patient": "attention on another patient",
    "cell": "one feature at one step",
    "near": "one feature, a few steps to and fro",
    "feature": "feature, over all steps",
    "window": "window of time, over all features",
    "group": "group of features, over all steps",
    "value": "same stay",
    "permuted": "features permuted within each step",
    "cross_patient": "another stay (cross-patient)",
    "initialisation": "before training",
    "own_initialisation": "each against its own initialisation",
    "corrected": "same stay, corrected for chance",
    "about_patient": "about the patient",
    "patient_share": "about the patient, share of what is beyond chance",
    "init": "initialisation",
    "order": "order of the data",
    "bootstrap": "choice of the training stays",
    "auroc": "AUROC",
    "macro_auroc": "macro AUROC",
    "brier": "Brier score",
    "spearman": "Spearman",
    "patient": "about the patient",
}
"""Values of text columns whose reading is more than their letters."""


def name_of(value: str) -> str:
    """The words for a value of a text column, by themselves where none are known: `held_out` is "held out"."""
    return NAMES.get(value, value.replace("_", " "))


def completed(tables: Tables) -> dict[str, pl.DataFrame]:
    """Every table of the analysis by name; one that is absent is empty."""
    return {name: tables.get(name, schema.to_frame()) for name, schema in TABLES.items()}


def rows(frame: pl.DataFrame, **equal: str | int | float) -> pl.DataFrame:
    """The rows whose columns have these values."""
    return frame.filter(*(pl.col(column) == value for column, value in equal.items()))


def distinct(frame: pl.DataFrame, column: str) -> list[Any]:
    """Distinct values of a column, in the order in which they come."""
    return frame[column].drop_nulls().unique(maintain_order=True).to_list()


def middle(counts: list[int]) -> int:
    """The middle one of the numbers of cells; the upper one of two."""
    return sorted(counts)[len(counts) // 2]


def at_middle_k(frame: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The rows at the middle k of the settings, or of the frame itself where it has other ones (coarser grains)."""
    counts = [int(k) for k in distinct(frame, "k") if k > 0]
    if not counts:
        return frame  # of a measure that knows no k
    wanted = middle(list(settings["k"])) if settings.get("k") else None
    return rows(frame, k=wanted if wanted in counts else middle(counts))


def main_metric(settings: Settings) -> str:
    """The score that speaks for a task of this kind."""
    return "auroc" if settings.get("kind", "binary") == "binary" else "balanced_accuracy"


def first(frame: pl.DataFrame, column: str) -> float | None:
    """The number in the first row, None if there is no row, no number or not a finite one."""
    if frame.is_empty() or frame[column][0] is None or not math.isfinite(frame[column][0]):
        return None
    return float(frame[column][0])


def decimals(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number for reading; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no "-0"


def interval_of(frame: pl.DataFrame, low: str = "low", high: str = "high", *, digits: int = 3) -> str:
    """`[low, high]` of the first row; empty if it has no interval."""
    ends = first(frame, low), first(frame, high)
    return "" if None in ends else f"[{decimals(ends[0], digits)}, {decimals(ends[1], digits)}]"


def shares_of_k(settings: Settings) -> dict[int, str]:
    """Each number of cells with its share of them: `{27: "k = 27 (1.5 %)"}`."""
    counts, shares = list(settings.get("k", [])), list(settings.get("k_shares") or [])
    return {
        k: f"k = {k:,}" + (f" ({100 * share:.3g} %)" if share is not None else "")
        for k, share in zip(counts, shares + [None] * (len(counts) - len(shares)), strict=False)
    }
