"""The figures of docs/severity.md, from the two runs that it trains: one JSON line."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

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
    group_of = dict(enumerate(first.manifest["task"]["classes"]))
    groups = first.predictions.filter(split="test")
    groups = groups.select("sample", group=pl.col("y").replace_strict(group_of)).unique()
    drop = pl.read_parquet(run / "analysis" / "drop.parquet").join(groups, on="sample")
    of_group = drop.group_by("group", "k", "n").agg(pl.len().alias("stays"), pl.col("exact", "chance").mean())
    rows = of_group.filter(pl.col("n").is_in(_CUTS)).sort(
        "k", "n", "stays", "group", descending=[False, False, True, False]
    )
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the result of `measure` to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run severity", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/groups"), help="default: %(default)s")
    parser.add_argument("honest", type=Path, nargs="?", default=Path("runs/groups-valid"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(measure(options.run, options.honest)) + "\n")
