"""The command `demo`: from nothing to a report."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from vmapens.analysis.settings import Settings
from vmapens.cli import analysis, train
from vmapens.cli.options import Overwrite, app
from vmapens.spec import Table, resolve
from vmapens.terminal import say

_SAMPLES = "test:16"
_OTHERS: dict[str, Table] = {
    "uniform": {"model": {"attend_over": "uniform"}, "variants": {"init_seeds": "0:16"}},
    "crossed": {"variants": {"design": "crossed", "init_seeds": "0:5", "order_seeds": "0:4"}},
}
"""What the run is compared with: a control without attention, and a design that tells why variants differ."""


@app.command()
def demo(
    variants: Annotated[int, typer.Option(help="Seeds 0..N-1.")] = 64,
    out: Annotated[
        Path, typer.Option("--out", help="The run directory; others go beside it, as OUT-cohort, OUT-uniform.")
    ] = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic cohort on the spot, train 64 variants and their controls on it, and report, in two minutes.

    Example: vmapens demo --variants 64 --out runs/demo
    """
    from vmapens.cohort.schema import INFO_FILE, read_info
    from vmapens.cohort.synthetic import SOURCE, make_synthetic
    from vmapens.directory import require_no_run
    from vmapens.training import Care

    cohort = Path(f"{out}-cohort")
    line: Table = {"cohort": {"path": str(cohort), "task": "outcome"}, "train": {"epochs": 10, "lr": 2e-3}}
    own = {**line, "train": {**line["train"], "snapshots": [1, 3]}, "variants": train.variant_options(variants)}
    specs = {out: own} | {Path(f"{out}-{name}"): {**line, **other} for name, other in _OTHERS.items()}
    for path in specs:
        require_no_run(path, overwrite=overwrite)
    if overwrite and (cohort / INFO_FILE).exists() and read_info(cohort).source.startswith(SOURCE):
        shutil.rmtree(cohort)
    make_synthetic(cohort, samples=2000, steps=48, features=24, seed=0)
    say(f"a synthetic cohort of 2000 stays is in {cohort}")
    for path, table in specs.items():
        train.carry_out(resolve(train.given(table)), path, care=Care(), overwrite=overwrite, as_json=False)
    analysis.carry_out(list(specs), Settings(samples=_SAMPLES))
    analysis.report(out)
