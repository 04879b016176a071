"""Commands about cohorts: `import` and `describe`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vmapens.cli.options import Json, app, to_json
from vmapens.errors import SpecError
from vmapens.terminal import Progress, say

if TYPE_CHECKING:
    from vmapens.cohort.write import Imported
    from vmapens.listener import Listener

importers = typer.Typer(rich_markup_mode=None)
app.add_typer(importers, name="import")

Out = Annotated[Path, typer.Option("--out", help="Folder to write the cohort to; must hold none yet.")]
Short = Annotated[
    Literal["drop", "fill"], typer.Option(help="Stays that end before the window does: left out, or kept.")
]
Without = Annotated[list[str] | None, typer.Option(help="A feature to leave out; may be repeated.")]
LabelFile = Annotated[Path | None, typer.Option("--labels", help="A table (CSV, Parquet) with a label more.")]
LabelColumn = Annotated[str | None, typer.Option(help="Its column that is the label.")]
LabelTask = Annotated[str | None, typer.Option(help="What to call that label (default: as the column).")]
LabelId = Annotated[str | None, typer.Option(help="Its column of ids (default: sample, else the first other one).")]
LabelGroup = Annotated[str | None, typer.Option(help="Its column that names the patient.")]
LabelTime = Annotated[str | None, typer.Option(help="Its column of the outcome's time, in hours from the start.")]


@importers.callback()
def sources() -> None:
    """Turn data of another layout into a cohort folder.

    Example: vmapens import physionet2012 set-a.tar.gz Outcomes-a.txt --out cohorts/set-a
    """


@importers.command("physionet2012")
def import_physionet2012(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders or archives, one or more sets.")],
    out: Out,
    without: Without = None,
) -> None:
    """Read PhysioNet/CinC 2012 as published: set-?/*.txt and Outcomes-?.txt, in folders or archives.

    Example: vmapens import physionet2012 set-a.tar.gz Outcomes-a.txt --out cohorts/set-a
    """
    from vmapens.cohort.importers.physionet2012 import read_physionet2012

    _write(out, without, lambda _: read_physionet2012(paths))


@importers.command("yaib")
def import_yaib(
    folder: Annotated[Path, typer.Argument(help="With dyn.parquet, sta.parquet and outc.parquet.")],
    out: Out,
    steps: Annotated[int, typer.Option(help="Hours of the window.")] = 24,
    short: Short = "drop",
    task: Annotated[str, typer.Option(help="What to call the label of outc.parquet.")] = "label",
    labels: LabelFile = None,
    label_column: LabelColumn = None,
    label_task: LabelTask = None,
    label_id: LabelId = None,
    label_group: LabelGroup = None,
    label_time: LabelTime = None,
    without: Without = None,
) -> None:
    """Read a cohort of Yet Another ICU Benchmark: one label a stay, on an hourly grid.

    With --labels, labels of outc.parquet that are one an hour, or real numbers, are passed over.

    Example: vmapens import yaib mortality24/eicu --task mortality --out cohorts/eicu
    """
    from vmapens.cohort.importers.yaib import read_yaib

    join = _join(labels, label_column, label_task, label_id, label_group, label_time)
    outcomes: Literal["require", "optional"] = "require" if labels is None else "optional"
    _write(out, without, lambda _: join(read_yaib(folder, steps=steps, short=short, task=task, outcomes=outcomes)))


@importers.command("hirid-benchmark")
def import_hirid_benchmark(
    path: Annotated[Path, typer.Argument(help="The file ml_stage_12h.h5.")],
    out: Out,
    steps: Annotated[int, typer.Option(help="Steps of the window, of 5 minutes; labels stand at its last.")] = 288,
    without: Without = None,
) -> None:
    """Read the ML stage of HiRID-ICU-Benchmark: mortality and APACHE groups at 24 hours (needs the extra hdf5).

    Example: vmapens import hirid-benchmark ml_stage/ml_stage_12h.h5 --out cohorts/hirid
    """
    from vmapens.cohort.importers.hirid_benchmark import read_hirid_benchmark

    _write(out, without, lambda listener: read_hirid_benchmark(path, steps=steps, listener=listener))


@importers.command("meds")
def import_meds(
    folder: Annotated[Path, typer.Argument(help="A MEDS data set, or its events alone (folder or file).")],
    out: Out,
    labels: Annotated[Path, typer.Option(help="Labels in the MEDS label schema: a Parquet file, or a folder of them.")],
    window: Annotated[str, typer.Option(help="Up to and with the prediction time: 48h, 30m, 7d.")] = "48h",
    every: Annotated[str, typer.Option(help="Length of a step.")] = "1h",
    codes: Annotated[
        list[str] | None, typer.Option(help="A code, @FILE, re:PATTERN, or 5%: of the samples; may be repeated.")
    ] = None,
    aggregate: Annotated[Literal["last", "mean"], typer.Option(help="Of several values in a step.")] = "last",
    task: Annotated[str, typer.Option(help="What to call the label.")] = "label",
    without: Without = None,
) -> None:
    """Read events and labels of the Medical Event Data Standard, 0.4.

    Example: vmapens import meds mimic-meds --labels mortality.parquet --codes 5% --out cohorts/mimic
    """
    from vmapens.cohort.importers.meds import read_meds

    _write(
        out,
        without,
        lambda listener: read_meds(
            folder,
            labels=labels,
            window=window,
            every=every,
            codes=codes or ("5%",),
            aggregate=aggregate,
            task=task,
            listener=listener,
        ),
        unit="events, read twice",
    )


@importers.command("mimic3-benchmarks")
def import_mimic3_benchmarks(
    folder: Annotated[Path, typer.Argument(help="The folder of the task, or the one above it.")],
    out: Out,
    task: Annotated[Literal["ihm", "phenotyping"], typer.Option(help="In-hospital mortality, or 25 phenotypes.")],
    steps: Annotated[int, typer.Option(help="Hours of the window.")] = 48,
    short: Short = "drop",
    without: Without = None,
) -> None:
    """Read episodes and listfiles of mimic3-benchmarks, with its splits.

    Example: vmapens import mimic3-benchmarks data/in-hospital-mortality --task ihm --out cohorts/ihm
    """
    from vmapens.cohort.importers.mimic3_benchmarks import read_mimic3_benchmarks

    _write(
        out,
        without,
        lambda listener: read_mimic3_benchmarks(folder, task=task, steps=steps, short=short, listener=listener),
    )


@importers.command("tensors")
def import_tensors(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="A .pt pair (x and y), .pt, .npz or .h5.")],
    out: Out,
    task: Annotated[str, typer.Option(help="Name of the label column.")] = "outcome",
    minutes_per_step: Annotated[float, typer.Option(help="Minutes between two steps.")] = 60.0,
    without: Without = None,
) -> None:
    """Read tensors x [N, T, F] and y [N], as notebooks, NumPy and PyPOTS save them.

    Example: vmapens import tensors x.pt y.pt --out cohorts/mine --minutes-per-step 5
    """
    from vmapens.cohort.importers.tensors import read_tensors

    _write(out, without, lambda _: read_tensors(paths, task=task, minutes_per_step=minutes_per_step))


@importers.command("cohort")
def import_cohort(
    cohort: Annotated[Path, typer.Argument(help="A cohort folder or a mapping.toml.")],
    out: Out,
    labels: LabelFile = None,
    label_column: LabelColumn = None,
    label_task: LabelTask = None,
    label_id: LabelId = None,
    label_group: LabelGroup = None,
    label_time: LabelTime = None,
    drop_split: Annotated[
        bool, typer.Option("--drop-split", help="Leave its split out, so that training draws one.")
    ] = False,
    without: Without = None,
) -> None:
    """Write a cohort or a mapping as a cohort of its own, with a label more.

    Example: vmapens import cohort cohorts/eicu --labels groups.csv --label-column group --out cohorts/groups
    """
    from vmapens.cohort.importers.cohort import read_cohort

    join = _join(labels, label_column, label_task, label_id, label_group, label_time)
    _write(out, without, lambda listener: join(read_cohort(cohort, drop_split=drop_split, listener=listener)))


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


def _join(
    file: Path | None, column: str | None, task: str | None, ids: str | None, group: str | None, time: str | None
) -> "Callable[[Imported], Imported]":
    """What adds the labels of a table, if one is given.

    Raises:
        SpecError: If an option about the table is given without it, or the table without its column.
    """
    if file is None:
        named = {"--label-column": column, "--label-task": task, "--label-id": ids}
        named |= {"--label-group": group, "--label-time": time}
        lost = [option for option, value in named.items() if value is not None]
        if lost:
            raise SpecError(f"{', '.join(lost)} says something of a table, but --labels names none: give both.")
        return lambda imported: imported
    if column is None:
        raise SpecError(f"--labels {file} has no --label-column: name the column that is the label.")
    from vmapens.cohort.label_table import join_labels

    return lambda imported: join_labels(
        imported, file, column=column, task=task, id_column=ids, group_column=group, time_column=time
    )


def _write(
    out: Path, without: list[str] | None, read: "Callable[[Listener], Imported]", *, unit: str = "stays"
) -> None:
    """Read a source, write the cohort without some of its features, and say what it holds."""
    from vmapens.cohort.write import require_no_cohort, write_cohort

    require_no_cohort(out)  # before the work
    progress = Progress(unit)
    try:
        info = write_cohort(out, *read(progress).without(without or []))
    finally:
        progress.stop()
    for note in info.notes:
        if note.startswith("warning: "):
            say(note)
    try:
        _describe(out)
    except KeyboardInterrupt:
        say(f"{out} is written, and whole: `vmapens describe {out}` says what it holds.")
        raise


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
