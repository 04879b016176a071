"""What `vmapens analyze` writes: the columns of each table of `analysis/`, as code.

Every estimate stands beside its chance level and an interval `low` to `high` of nominally 95 %. What the interval is
over, the other things one could have drawn, is said in the column `over`, or here:

| question | over | how |
|---|---|---|
| would other stays of this kind say the same? | stays | bootstrap, whole patients at a time |
| would other seeds say the same? | variants | jackknife, one variant left out at a time |
| would other initialisations or orders say the same? | levels | jackknife, one level of a factor left out at a time |

Where stays are compared with one another, the bootstrap draws pairs of patients (`pairing.in_pairs`).

Axes of maps: T steps, F features (1 where the attention has no such axis). Shares are in [0, 1]. `k` is a number of
cells (or features, windows, groups). Failed variants are left out of every table but `scores`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

_INT, _FLOAT, _TEXT = pl.Int32(), pl.Float64(), pl.String()
_INTERVAL = {"low": _FLOAT, "high": _FLOAT}
_WHAT = {"attribution": _TEXT, "grain": _TEXT, "cells": _TEXT, "measure": _TEXT, "k": _INT}

ATTRIBUTIONS = {
    "attention": "the attention weight a",
    "gated_input": "a * x, what passes the gate, with its sign",
    "gated_input_size": "|a * x|",
    "gradient_x_input": "gradient of the logit, times x",
    "integrated_gradients": "integrated gradients from the training mean",
}
"""What is compared, in the order of the report. Gradients are ranked by their size, `gated_input` by its value."""
GRAINS = {
    "cell": "one feature at one step",
    "near": "one feature within a few steps",
    "feature": "a feature, over all steps",
    "window": "a window of time, over all features",
    "group": "a group of features, over all steps",
}
MEASURES = {
    "overlap": "share of their k largest that two variants have in common; more is alike",
    "spearman": "rank correlation of two variants, mean over all pairs; more is alike",
    "divergence": "generalised Jensen-Shannon divergence over the entropy of the mixture; less is alike",
}
REFERENCES = {
    "chance": "unrelated rankings",
    "permuted": "each variant's features permuted within each step, which keeps its time stripes",
    "cross_patient": "variant u on this stay against variant v on another stay",
    "initialisation": "the variants before any training, on this stay",
    "own_initialisation": "each variant against itself before training, on this stay",
}
QUANTITIES = {
    "value": "the agreement of the variants on one stay, mean over stays",
    **REFERENCES,
    "corrected": "(value - chance) / (1 - chance): 0 is chance, 1 is all alike",
    "about_patient": "value - cross_patient (divergence: the other way round), the part that is about the patient",
    "patient_share": "(value - cross_patient) / (value - chance), the part of what is beyond chance",
}
"""Quantities of the table `consistency`."""

TABLES: dict[str, pl.Schema] = {
    # The stays that were analysed; `patient` numbers the groups that the bootstrap keeps together. Probability: of
    # class 1, or of the true class. `measured`: share of the cells.
    "samples": pl.Schema(
        {"sample": _TEXT, "split": _TEXT, "y": _INT, "outcome": _TEXT, "patient": _INT, "probability_mean": _FLOAT}
        | {"probability_sd": _FLOAT, "measured": _FLOAT}
    ),
    # Scores of every variant, failed ones with their status; the mean over this variant and all ok ones before it.
    "scores": pl.Schema(
        {"variant": _INT, "split": _TEXT, "metric": _TEXT, "value": _FLOAT, "running_mean": _FLOAT, "status": _TEXT}
    ),
    # Each stay: `cells` is all or measured (k then stands for the same share of these); n of them; `variants` have a
    # ranking (a constant map has none); value and the five references; `se` is the jackknife's over variants.
    "agreement": pl.Schema(
        {"sample": _TEXT, **_WHAT, "n": _INT, "variants": _INT, "value": _FLOAT}
        | dict.fromkeys(REFERENCES, _FLOAT)
        | {"se": _FLOAT}
    ),
    # The same over stays; `quantity` is a key of QUANTITIES, `over` is stays or variants.
    "consistency": pl.Schema(
        {**_WHAT, "stays": _INT, "quantity": _TEXT, "estimate": _FLOAT, **_INTERVAL, "over": _TEXT}
    ),
    # Share of the k largest cells that were measured in that very step, mean over variants; chance: of all cells.
    "measured": pl.Schema({"sample": _TEXT, "attribution": _TEXT, "k": _INT, "value": _FLOAT, "chance": _FLOAT}),
    # Attention drop: cells that n variants all have in their top k, for one random order of the variants (a new one
    # for each stay and k), for all orders in the mean, and by chance.
    "drop": pl.Schema({"sample": _TEXT, "k": _INT, "n": _INT, "random_order": _INT, "exact": _FLOAT, "chance": _FLOAT}),
    # Share of the cells whose mean rank over the first n variants is in a bin, mean over stays, and what no agreement
    # would give. Ranks: 1 is most attended.
    "rank_histogram": pl.Schema({"n": _INT, "left": _FLOAT, "right": _FLOAT, "share": _FLOAT, "expected": _FLOAT}),
    # Smallest and largest population SD of a cell's rank over the first n variants, and by chance (its mean).
    "rank_spread": pl.Schema({"sample": _TEXT, "n": _INT, "smallest": _FLOAT, "largest": _FLOAT, "chance": _FLOAT}),
    # Cells in the top k of at least this share of the variants, and by chance.
    "held": pl.Schema({"sample": _TEXT, "k": _INT, "share": _FLOAT, "cells": _INT, "chance": _FLOAT}),
    # Maps [T, F] of a stay: kind is mean, sd, rank_mean, rank_sd (over variants), held (share of the variants that have
    # the cell in their top k, k as in `settings.map_k`), value (raw units, NaN: never measured), measured (1 or 0), or
    # variant (the attention of that one). Row by row of steps.
    "maps": pl.Schema({"sample": _TEXT, "kind": _TEXT, "variant": _INT, "values": pl.List(pl.Float32)}),
    # Variants shown alone: role is best, median, worst (by validation loss) or most different (least agreement).
    "chosen": pl.Schema({"role": _TEXT, "variant": _INT, "valid_loss": _FLOAT, "agreement": _FLOAT}),
    # The attention's weight matrix: mean and SD over variants, of the best variant, and places of rows and columns
    # after Ward clustering of the mean. Empty where the model has none.
    "weights": pl.Schema(
        {"row": _INT, "column": _INT, "mean": _FLOAT, "sd": _FLOAT, "best": _FLOAT, "row_place": _INT}
        | {"column_place": _INT}
    ),
    # Runs against the first one; `form` is feature, time, pool, uniform, frozen feature, ..., of a crossed design with
    # `, crossed`; mean over variants of the score on all stays of the split, its interval and that of the difference
    # (this run - first run) over stays.
    "controls": pl.Schema(
        {"run": _TEXT, "form": _TEXT, "variants": _INT, "split": _TEXT, "metric": _TEXT, "mean": _FLOAT, "sd": _FLOAT}
        | {**_INTERVAL, "difference": _FLOAT, "difference_low": _FLOAT, "difference_high": _FLOAT}
    ),
    # Change of the signed logit (log-odds of class 1, or of the true class) when the top q of the cells by `mask` are
    # erased (logit of x - logit of the rest), or only they are kept (logit of x - logit of them); mean over variants
    # and stays of an outcome. fill: mean (the training mean) or other (another patient's value); attention: recomputed
    # or held. `size` is the mean of the change's absolute value.
    "faithfulness": pl.Schema(
        {"mask": _TEXT, "fill": _TEXT, "attention": _TEXT, "direction": _TEXT, "q": _FLOAT, "outcome": _TEXT}
        | {"stays": _INT, "change": _FLOAT, **_INTERVAL, "size": _FLOAT}
    ),
    # Total variation of the prediction when the attention is permuted within each step, mean over variants and stays.
    "permutation": pl.Schema({"outcome": _TEXT, "stays": _INT, "total_variation": _FLOAT, **_INTERVAL}),
    # Average precision of finding the planted cells, mean over the stays in which the cause acts; chance: random order.
    "planted": pl.Schema({"attribution": _TEXT, "variant": _INT, "average_precision": _FLOAT, "chance": _FLOAT}),
    # Consistent, faithful, right: `property` is consistent (corrected overlap of cells at the middle k), patient (the
    # same, the part about the patient), faithful (by how much erasing a tenth of the cells moves the logit, either
    # way, more than the attention's mask rolled in time does) or right (average precision on planted cells).
    "attributions": pl.Schema(
        {"attribution": _TEXT, "property": _TEXT, "estimate": _FLOAT, **_INTERVAL, "chance": _FLOAT}
    ),
    # Shares of the disagreement (1 - agreement of variants that share nothing): component is init, order, bootstrap,
    # a product such as "init x order", or residual (the highest product, and chance).
    "decomposition": pl.Schema(
        {"run": _TEXT, "measure": _TEXT, "k": _INT, "component": _TEXT, "levels": _INT, "share": _FLOAT, **_INTERVAL}
        | {"over": _TEXT}
    ),
    # Agreement of cells against training: which is initialisation, snapshot, last or kept (epoch: their mean).
    "epochs": pl.Schema(
        {"which": _TEXT, "epoch": _FLOAT, "measure": _TEXT, "k": _INT, "estimate": _FLOAT, **_INTERVAL}
    ),
    # Variants within epsilon of the lowest validation loss: how many, how alike (test stays), and how alike as many
    # drawn at random are: the mean, and the range of 95 % of the draws; share of test stays on which one flips the best
    # one's decision, largest share by one.
    "rashomon": pl.Schema(
        {"epsilon": _FLOAT, "variants": _INT, "measure": _TEXT, "k": _INT, "estimate": _FLOAT, **_INTERVAL}
        | {
            "at_random": _FLOAT,
            "random_low": _FLOAT,
            "random_high": _FLOAT,
            "ambiguity": _FLOAT,
            "discrepancy": _FLOAT,
            "threshold": _FLOAT,
        }
    ),
    # Each variant's validation loss, its distance to the best, and the p-value of being as good as the best,
    # corrected for choosing the best of V by noise.
    "good": pl.Schema({"variant": _INT, "valid_loss": _FLOAT, "gap": _FLOAT, "p_value": _FLOAT}),
    # Rank correlation over variants of a score on the validation and the test split.
    "reliability": pl.Schema({"metric": _TEXT, "variants": _INT, "correlation": _FLOAT, **_INTERVAL}),
    # Learned masks of the best variants: agreement as in `agreement` (cells), and of attention on the same variants.
    "learned_mask": pl.Schema(
        {"sample": _TEXT, "attribution": _TEXT, "measure": _TEXT, "k": _INT, "variants": _INT, "value": _FLOAT}
        | {"chance": _FLOAT, "permuted": _FLOAT}
    ),
}


def table(name: str, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pl.DataFrame:
    """Make a table of that name from its rows, or from its columns; what is left out or not a number becomes null."""
    schema = TABLES[name]
    frame = pl.DataFrame(rows, schema_overrides=schema) if len(rows) else schema.to_frame()
    frame = frame.with_columns(
        pl.lit(None, kind).alias(column) for column, kind in schema.items() if column not in frame
    )
    return frame.select(pl.col(column).cast(kind) for column, kind in schema.items()).with_columns(
        pl.col(pl.Float64).fill_nan(None)
    )
