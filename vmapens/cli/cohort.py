"""Commands about cohorts: `import` and `describe`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmapens.cli.options import Json, Out, app, to_json

if TYPE_CHECKING:
    from vmapens.cohort.write import Imported

importers = typer.Typer(rich_markup_mode=None)
app.add_typer(importers, name="import")


@importers.callback()
def sources() -> None:
    """Turn data of another layout into a cohort folder.

    Example: vmapens import physionet2012 set-a.tar.gz Outcomes-a.txt --out cohorts/set-a
    """


@importers.command("physionet2012")
def import_physionet2012(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders or archives, one or more sets.")],
    out: Out,
) -> None:
    """Read PhysioNet/CinC 2012 as published: set-?/*.txt and Outcomes-?.txt, in folders or archives.

    Example: vmapens import physionet2012 set-a.tar.gz Outcomes-a.txt --out cohorts/set-a
    """
    from vmapens.cohort.importers.physionet2012 import read_physionet2012

    _write(out, lambda: read_physionet2012(paths))


@importers.command("tensors")
def import_tensors(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="A .pt pair (x and y), one .pt, or .npz.")],
    out: Out,
    task: Annotated[str, typer.Option(help="Name of the label column.")] = "outcome",
    minutes_per_step: Annotated[float, typer.Option(help="Minutes between two steps.")] = 60.0,
) -> None:
    """Read tensors x [N, T, F] and y [N], as notebooks save them.

    Example: vmapens import tensors x.pt y.pt --out cohorts/mine --minutes-per-step 5
    """
    from vmapens.cohort.importers.tensors import read_tensors

    _write(out, lambda: read_tensors(paths, task=task, minutes_per_step=minutes_per_step))


@importers.command("synthetic")
def import_synthetic(
    out: Out,
    samples: Annotated[int, typer.Option(help="Stays.")] = 2000,
    steps: Annotated[int, typer.Option(help="Even steps over 48 hours.")] = 48,
    features: Annotated[int, typer.Option(help="Vitals and labs.")] = 24,
    seed: Annotated[int, typer.Option(help="Draws everything.")] = 0,
) -> None:
    """Make a cohort whose outcome is caused by known cells: truth.parquet and bayes.parquet say which.

    Example: vmapens import synthetic --samples 2000 --seed 0 --out cohorts/synthetic
    """
    from vmapens.cohort.synthetic import make_synthetic

    make_synthetic(out, samples=samples, steps=steps, features=features, seed=seed)
    _describe(out)


def _write(out: Path, read: "Callable[[], Imported]") -> None:
    """Read a source, write the cohort, and say what it holds."""
    from vmapens.cohort.write import require_no_cohort, write_cohort

    require_no_cohort(out)  # before the work
    write_cohort(out, *read())
    _describe(out)


@app.command()
def describe(
    cohort: Annotated[Path, typer.Argument(help="A cohort folder or a mapping.toml.")], as_json: Json = False
) -> None:
    """Print samples, splits, prevalence per task and missing share per feature.

    Example: vmapens describe cohorts/set-a
    """
    _describe(cohort, as_json)


def _describe(cohort: Path, as_json: bool = False) -> None:
    from vmapens.cohort.describe import describe_cohort

    description = describe_cohort(cohort)
    typer.echo(to_json(description.table()) if as_json else description.text())
