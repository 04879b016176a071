"""The README's tables, made from the lines of `results/`: a figure that was not measured cannot stand there."""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_SHOWN = {"auroc": "AUROC", "average_precision": "average precision", "log_loss": "log loss", "brier": "Brier score"}


def lines_of(name: str) -> list[dict[str, Any]]:
    """The results of one benchmark, oldest first."""
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def variants_table() -> str:
    """Scores of the 1000 variants on set a, as Markdown."""
    line = next(line for line in lines_of("physionet2012") if line["variants"] == 1000)
    rows = [f"| {line['variants']} variants, test split | mean | SD | min | max |", "|---|---|---|---|---|"]
    for metric, name in _SHOWN.items():
        (score,) = (row for row in line["summary"] if row["split"] == "test" and row["metric"] == metric)
        numbers = " | ".join(f"{score[key]:.3f}" for key in ("mean", "sd", "min", "max"))
        rows.append(f"| {name} | {numbers} |")
    return "\n".join(rows)


def splits_table() -> str:
    """Test AUROC of 100 variants on each of five splits, as Markdown."""
    lines = [line for line in lines_of("physionet2012") if line["variants"] == 100]
    scores = [next(r for r in line["summary"] if (r["split"], r["metric"]) == ("test", "auroc")) for line in lines]
    means = [score["mean"] for score in scores]
    means_row = [f"{mean:.3f}" for mean in [*means, sum(means) / len(means)]]
    spread_row = [f"{score['sd']:.3f}" for score in scores]
    head = [str(line["split_seed"]) for line in lines]
    rows = [
        ["test AUROC of 100 variants, split seed", *head, "mean of splits"],
        ["---"] * (len(head) + 2),
        ["mean", *means_row],
        ["SD over variants", *spread_row, ""],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Print all tables."""
    sys.stdout.write(f"{variants_table()}\n\n{splits_table()}\n")
