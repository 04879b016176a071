"""Commands about a finished run: `attend`, `verify` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from vmapens.cli.options import Json, Moved, OwnModel, app, to_json
from vmapens.errors import RunError


@app.command()
def attend(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    samples: Annotated[str, typer.Option(help="test, test:N, test:CLASS, all, @FILE, or ids separated by commas.")],
    cohort: Moved = None,
    model: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Write the attention of further samples under all variants, recomputed from the kept weights.

    Example: vmapens attend runs/set-a --samples test:32
    """
    from vmapens.attention import attend_samples

    written = attend_samples(run, samples, cohort, model=model)
    if as_json:
        typer.echo(to_json({"run": str(run), "samples": written}))
    else:
        typer.echo(f"attention of {len(written)} more samples is in {run / 'attention'}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    cohort: Moved = None,
    as_json: Json = False,
) -> None:
    """Check a run: checksums, counts, schemas, sums of attention, and a few variants' predictions from their weights.

    Example: vmapens verify runs/set-a
    """
    from vmapens.verify import verify

    findings = []
    for finding in verify(run, cohort):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{'ok   ' if finding.holds else 'wrong'} {finding.what}: {finding.note}")
            typer.echo("".join(f"      {fault}\n" for fault in finding.faults), nl=False)
    if as_json:
        typer.echo(to_json([vars(finding) for finding in findings]))
    wrong = sum(len(finding.faults) for finding in findings)
    if wrong:
        raise RunError(f"{run} has {wrong} faults, listed above.")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    variant: Annotated[int, typer.Option(help="Its number in the table of variants, never its seed.")],
    out: Annotated[Path, typer.Option("--out", help="A .pt or .safetensors file; must not exist.")],
) -> None:
    """Write one variant as a state_dict that plain PyTorch modules load.

    Example: vmapens export runs/set-a --variant 17 --out variant17.safetensors
    """
    from vmapens.run import export_variant

    export_variant(run, variant, out)
    typer.echo(f"variant {variant} is in {out}")
