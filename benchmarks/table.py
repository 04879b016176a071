"""The README's tables, made from the lines of `results/`: a figure that was not measured cannot stand there."""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_SHOWN = {"auroc": "AUROC", "average_precision": "average precision", "log_loss": "log loss", "brier": "Brier score"}


_ARMS = {"train_step": "bde", "epoch": "bc", "train_to_end": "bc"}
_PLANNED = [
    *(("train_step", "small", V, "cpu") for V in (1, 4, 16, 64, 256, 1000)),
    ("train_step", "paper", 4, "cpu"),
    *(("train_step", "paper", V, "cuda") for V in (64, 256, 1000)),
    ("epoch", "small", 64, "cpu"),
    ("train_to_end", "small", 64, "cpu"),
]
_NOT_MEASURED = "not measured yet"


def lines_of(name: str) -> list[dict[str, Any]]:
    """The results of one benchmark, oldest first; none if it was never measured."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


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


def training_table() -> str:
    """How many times as long the other ways of training take, per variant, as Markdown.

    The newest line counts for each case, size, number of variants and kind of device. A cell is the median over the
    rounds, with the smallest and the largest; above 1 this project is faster.
    """
    newest = dict.fromkeys(_PLANNED) | {
        (case, line["size"], line["variants"], line["device"]["kind"]): line
        for case in _ARMS
        for line in lines_of(case)
    }
    head = ["timed", "size", "V", "device", "(b) sequential", "(c) notebooks' way", "(d) vmap over a loop", "(e) JAX"]
    rows = [[*head, "cost of a variant, 1 at V = 16"], ["---"] * (len(head) + 1)]
    for (case, size, V, kind), line in newest.items():
        device = "GPU" if kind == "cuda" else "CPU"
        if line is not None:
            device = line["device"]["name"] if kind == "cuda" else f"CPU, {line['cores']} cores"
        ratios = [_ratio(line, letter) if letter in _ARMS[case] else "" for letter in "bcde"]
        cost = _spread(line["cost_over_v16"]) if line is not None and "cost_over_v16" in line else ""
        rows.append([case, size, str(V), device, *ratios, cost])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def answer() -> str:
    """The four sentences about set a, as they came out, as a Markdown quotation."""
    line = lines_of("explanations")[-1]
    return "\n>\n".join(f"> {sentence}" for sentence in line["answer"])


def severity_scores() -> str:
    """Balanced accuracy of the variants on the severity groups, as Markdown."""
    line = lines_of("severity")[-1]
    chosen = {"groups": "test split (the preset, as the paper)", "groups-valid": "valid split (`--select-on valid`)"}
    rows = [["epochs chosen on", "balanced accuracy on the test split", "SD", "min", "max", "chance"], ["---"] * 6]
    for run, name in chosen.items():
        of_test = {row["metric"]: row for row in line[run]["summary"] if row["split"] == "test"}
        score = of_test["balanced_accuracy"]
        rows.append([name, *(f"{score[key]:.3f}" for key in ("mean", "sd", "min", "max")), f"{1 / 15:.3f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def severity_drop(least: int = 20) -> str:
    """Cells in the top k of all of n variants, by severity group, as Markdown.

    Args:
        least: Test stays that a group needs to stand in the table.
    """
    found = {(row["group"], row["k"], row["n"]): row for row in lines_of("severity")[-1]["drop"]}
    columns = [(19, 2), (187, 2), (187, 10)]
    groups = {group: row["stays"] for (group, *which), row in found.items() if which == [19, 2]}
    rows = [["group", "test stays", *(f"k = {k}, n = {n}" for k, n in columns)], ["---"] * (2 + len(columns))]
    for group, stays in groups.items():
        if stays >= least:
            rows.append([group, str(stays), *(f"{found[group, *column]['exact']:.1f}" for column in columns)])
    chance = next(iter(groups))
    rows.append(["chance", "", *(f"{found[chance, *column]['chance']:.1f}" for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def analysis_table() -> str:
    """What analysing costs, as Markdown: as ratios where arms are compared, else in CPU seconds of one stay.

    The newest line of each size counts. GPU projections are no measurements, and are left out.
    """
    newest = {line["size"]: line for line in lines_of("analysis")}
    small, paper = newest.get("small"), newest.get("paper")
    ratios = {"(b) careful script": "b", "(c) notebooks' way": "c"}
    rows = [["measured", "size", "variants", "result"], ["---"] * 4]
    for name, letter in ratios.items():
        what = f"{name}, times as long as this project"
        rows.append([what, *_size(small, ("48 x 37", "200")), _ratio(small, letter)])
    for name, key in (("all that is asked of the attention", "all_grains"), ("the grain of cells alone", "cells")):
        result = _NOT_MEASURED if paper is None else f"{paper[key][0]['cpu_s']:.1f} s"
        rows.append([f"CPU time of one stay: {name}", *_size(paper, ("288 x 231", "1000")), result])
    peak = _NOT_MEASURED if paper is None else f"{paper['peak_mib'] / 1024:.1f} GiB"
    rows.append(["peak memory of that", *_size(paper, ("288 x 231", "1000")), peak])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _size(line: dict[str, Any] | None, planned: tuple[str, str]) -> tuple[str, str]:
    return planned if line is None else (f"{line['steps']} x {line['features']}", str(line["variants"]))


def _ratio(line: dict[str, Any] | None, letter: str) -> str:
    found = None if line is None else line["ratios"].get(letter)
    return _NOT_MEASURED if found is None else _spread(found)


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def main() -> None:
    """Print all tables."""
    sys.stdout.write(f"{training_table()}\n\n{analysis_table()}\n\n{variants_table()}\n\n{splits_table()}\n")
