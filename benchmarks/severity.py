"""The figures of docs/severity.md, from the two runs that it trains: one JSON line, and curves of attention drop."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from vmapens.report import canvas
from vmapens.run import open_run

_CUTS = [2, 10, 100]


def measure(run: Path, honest: Path) -> dict[str, object]:
    """Scores of both runs, and the attention drop in each severity group of the first, which has been analysed.

    Args:
        run: Trained as docs/severity.md says, and analysed there.
        honest: The same with `--select-on valid`.

    Returns:
        `groups` and `groups-valid`: `select_on` and `summary`; `drop`: rows of `group`, `k`, `n`, `stays` and the means
        of `exact` and `chance`; `samples` of each split, `variants`, `commands`, `versions`.
    """
    first, second = open_run(run), open_run(honest)
    rows = drop_of_groups(run).filter(pl.col("n").is_in(_CUTS))
    rows = rows.sort("k", "n", "stays", "group", descending=[False, False, True, False])
    scores = {
        name: {"select_on": one.spec.train.select_on, "summary": one.summary().to_dicts()}
        for name, one in (("groups", first), ("groups-valid", second))
    }
    splits = pl.read_parquet(run / "splits.parquet")["split"].to_list()
    return {
        "benchmark": "severity",
        **scores,
        "drop": rows.to_dicts(),
        "samples": {name: splits.count(name) for name in ("train", "valid", "test")},
        "variants": len(first.variants),
        "commands": [" ".join(["vmapens", *one.manifest["command"][1:]]) for one in (first, second)],
        "versions": first.manifest["versions"],
    }


def drop_of_groups(run: Path) -> pl.DataFrame:
    """Attention drop in each group, the mean of its test stays: `group`, `k`, `n`, `stays`, `exact`, `chance`."""
    opened = open_run(run)
    group_of = dict(enumerate(opened.manifest["task"]["classes"]))
    of_stays = opened.predictions.filter(split="test").select("sample", "y").unique()
    groups = of_stays.select("sample", group=pl.col("y").replace_strict(group_of))
    drop = pl.read_parquet(run / "analysis" / "drop.parquet").join(groups, on="sample")
    return drop.group_by("group", "k", "n").agg(pl.len().alias("stays"), pl.col("exact", "chance").mean())


def draw(drop: pl.DataFrame, path: Path, *, k: int = 187, least: int = 20) -> None:
    """Draw a curve for each group of so many test stays, and chance.

    Args:
        drop: `drop_of_groups`.
        path: An .svg file.
        k: Size of the sets of most-attended cells.
        least: Test stays.
    """
    shown = drop.filter((pl.col("k") == k) & (pl.col("stays") >= least)).sort("n")
    with canvas.style("severity"):
        figure, (panel,) = canvas.grid(1, 1, height=4.4)
        groups = shown.filter(n=2).sort("stays", descending=True)["group"].to_list()
        for group, color in zip(groups, canvas.CYCLE, strict=False):
            part = shown.filter(group=group)
            panel.plot(part["n"].to_numpy(), part["exact"].to_numpy(), color=color, label=group)
        chance = shown.filter(group=groups[0])
        panel.plot(chance["n"].to_numpy(), chance["chance"].to_numpy(), color="black", linestyle=":", label="chance")
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=1)
        panel.set(
            xlabel="variants, n", ylabel=f"cells in the top {k} of all n variants", xlim=(0.95, None), ylim=(0, None)
        )
        canvas.counts_axis(panel.xaxis)
        canvas.counts_axis(panel.yaxis)
        panel.grid()
        canvas.legend_below(figure, panel, 3)
        canvas.write(figure, path, "svg")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run severity", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/groups"), help="default: %(default)s")
    parser.add_argument("honest", type=Path, nargs="?", default=Path("runs/groups-valid"), help="default: %(default)s")
    parser.add_argument("--figure", type=Path, help="draw the curves into this .svg file")
    options = parser.parse_args(arguments)
    if options.figure:
        draw(drop_of_groups(options.run), options.figure)
    sys.stdout.write(json.dumps(measure(options.run, options.honest)) + "\n")
