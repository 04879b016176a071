"""Commands about explanations: `analyze` and `report`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vmapens.analysis.settings import DEFAULT_SAMPLES, PARTS, Settings
from vmapens.cli.options import Json, Moved, OwnModel, app, to_json
from vmapens.errors import SpecError
from vmapens.spec import Device
from vmapens.terminal import Progress, say

Figures = Literal["svg", "png", "pdf"]


@app.command()
def analyze(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [OTHER...]", help="The run, then controls and crossed designs.")
    ],
    samples: Annotated[
        str, typer.Option(help="saved, test, test:N, test:CLASS, test:positive, all, @FILE, or ids.")
    ] = DEFAULT_SAMPLES,
    top_k: Annotated[str, typer.Option(help="Shares of the cells, or counts: 100,1000.")] = "0.0015,0.015,0.15",
    tolerance: Annotated[int, typer.Option(help="Steps by which near cells may lie apart.")] = 1,
    window: Annotated[int, typer.Option(help="Steps of a window of time (default: a twelfth of the stay).")] = 0,
    threshold: Annotated[float | None, typer.Option(help="Of decisions (default: the prevalence).")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    without: Annotated[str, typer.Option(help=f"What to leave out: {', '.join(PARTS)}.")] = "",
    mask_variants: Annotated[int, typer.Option(help="Best variants that learn masks.")] = 8,
    mask_stays: Annotated[int, typer.Option(help="Stays on which they do.")] = 8,
    device: Annotated[Device | None, typer.Option(help="Where to compute (default: as the training).")] = None,
    cohort: Moved = None,
    model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Measure how far explanations agree, against chance, and whether they are faithful: tables in RUN/analysis.

    Example: vmapens analyze runs/set-a runs/set-a-uniform runs/set-a-crossed
    """
    settings = Settings(
        samples=samples,
        top_k=_numbers(top_k),
        tolerance=tolerance,
        window=window,
        threshold=threshold,
        seed=seed,
        without=tuple(part for part in without.split(",") if part),
        mask_variants=mask_variants,
        mask_stays=mask_stays,
    )
    carry_out(runs, settings, cohort=cohort, model=model, device=device, as_json=as_json)


def carry_out(
    runs: list[Path],
    settings: Settings,
    *,
    cohort: Path | None = None,
    model: str | None = None,
    device: Device | None = None,
    as_json: bool = False,
) -> None:
    """Analyse, and print the answer in four sentences."""
    from vmapens.analysis.study import analyze, read_analysis
    from vmapens.report.sentences import sentences

    progress = Progress("stays")
    try:
        tables = analyze(*runs, settings=settings, cohort=cohort, model=model, device=device, listener=progress)
    finally:
        progress.stop()
    _, description = read_analysis(runs[0])
    for note in description["notes"]:
        say(f"note: {note}")
    answer = sentences(tables, description)
    if as_json:
        rows = {name: len(frame) for name, frame in tables.items()}
        typer.echo(to_json({"run": str(runs[0]), "answer": answer, "rows": rows, "settings": description}))
    else:
        typer.echo("\n".join([*answer, f"tables are in {runs[0] / 'analysis'}; a page: vmapens report {runs[0]}"]))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="An analysed run.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page (default RUN/report.html).")] = None,
    figures: Annotated[Figures | None, typer.Option(help="Write the figures as files, too, beside the page.")] = None,
) -> None:
    """Draw the analysis of a run as one HTML page that needs nothing else.

    Example: vmapens report runs/set-a --figures svg
    """
    from vmapens.analysis.study import read_analysis
    from vmapens.report.page import write_report

    page = out or run / "report.html"
    if page.suffix != ".html":
        raise SpecError(f"{page} ends in `{page.suffix}`: name an .html file.")
    tables, description = read_analysis(run)
    write_report(tables, description, page, figures=figures)
    typer.echo(f"the report is in {page}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"--top-k `{text}` cannot be read: write shares or counts, as 0.0015,0.015 or 100.") from None
