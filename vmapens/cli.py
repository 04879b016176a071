"""The command line: parses, calls one function of a room below, prints.

Results go to standard output, everything else to standard error. Exit status: 0 done; 2 the input is wrong (one line);
1 a fault of vmapens; 130 interrupted.
"""

import json
import math
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmapens import __version__
from vmapens.errors import RunError, SpecError, VmapensError, first_line
from vmapens.spec import (
    PRESETS,
    AttendOver,
    Design,
    Device,
    Precision,
    RunSpec,
    SelectOn,
    Table,
    Unmatched,
    read_config,
    resolve,
    to_table,
    whole_numbers,
)
from vmapens.terminal import TrainingProgress, say, summary_lines

if TYPE_CHECKING:
    from vmapens.training import Care

# The rooms below import torch and polars, which takes seconds: each command imports what it needs, when it runs.

_INTERRUPTED = 130

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
importers = typer.Typer(rich_markup_mode=None)
app.add_typer(importers, name="import")


Out = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train many seeds of one attention model as one tensor, and write what each attends to.

    Example: vmapens demo
    """
    if version:
        typer.echo(f"vmapens {__version__}")
        raise typer.Exit


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
    from vmapens.cohort.importers.physionet2012 import import_physionet2012
    from vmapens.cohort.schema import require_no_cohort

    require_no_cohort(out)
    import_physionet2012(paths, out)
    _describe(out)


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
    from vmapens.cohort.importers.tensors import import_tensors
    from vmapens.cohort.schema import require_no_cohort

    require_no_cohort(out)
    import_tensors(paths, out, task=task, minutes_per_step=minutes_per_step)
    _describe(out)


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
    typer.echo(_json(description.table()) if as_json else description.text())


def _json(value: object) -> str:
    """One line of JSON; numbers that are not finite, which JSON does not have, become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()  # a path may hold bytes that are no text


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@app.command()
def train(
    cohort: Annotated[Path | None, typer.Argument(help="A cohort folder or a mapping.toml.")] = None,
    task: Annotated[str | None, typer.Option(help="Label column to learn.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; must not exist.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = None,
    variants: Annotated[int | None, typer.Option(help="Seeds 0..N-1, init and order the same (default 64).")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds A:B (half-open), or 0,7,350.")] = None,
    design: Annotated[Design | None, typer.Option(help="How init and order seeds are combined.")] = None,
    init_seeds: Annotated[str | None, typer.Option(help="A:B; seeds of the initialisation.")] = None,
    order_seeds: Annotated[str | None, typer.Option(help="A:B; seeds of the order of the data.")] = None,
    bootstrap_seeds: Annotated[str | None, typer.Option(help="A:B; resample the training stays.")] = None,
    model: Annotated[str | None, typer.Option(help="attention-lstm, or package:Class of your own.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden units (default 32).")] = None,
    attend_over: Annotated[AttendOver | None, typer.Option(help="Axis of the softmax (default feature).")] = None,
    freeze_attention: Annotated[bool | None, typer.Option(help="Leave it as initialised.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split (default 15).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step (default 64).")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate (default 5e-4).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 term of Adam (default 1e-6).")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of a variant's gradient (default any).")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop a variant so many epochs after its best one.")] = None,
    select_by: Annotated[str | None, typer.Option(help="Metric that chooses each epoch (default auroc).")] = None,
    select_on: Annotated[SelectOn | None, typer.Option(help="Split that chooses (default valid); test leaks.")] = None,
    snapshots: Annotated[str | None, typer.Option(help="Epochs whose weights are kept as well: 1,5,15.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Draws train, valid and test (default 0).")] = None,
    indicators: Annotated[bool | None, typer.Option(help="Add missing-indicator features.")] = None,
    unmatched: Annotated[Unmatched | None, typer.Option(help="Samples in one table only.")] = None,
    no_sample_ids: Annotated[
        bool | None, typer.Option("--no-sample-ids", help="Write row numbers instead of ids.")
    ] = None,
    save_attention: Annotated[str | None, typer.Option(help="none, all, test:N (default test:16), @FILE.")] = None,
    block: Annotated[str | None, typer.Option(help="Variants per block of files: auto or N.")] = None,
    device: Annotated[Device | None, typer.Option(help="Where to compute.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Arithmetic of the kernels.")] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Minutes between checkpoints; 0: each epoch.")] = 5.0,
    max_failed: Annotated[int | None, typer.Option(help="Stop once more variants have diverged.")] = None,
    drop_state: Annotated[bool, typer.Option("--drop-state", help="Keep no optimiser state.")] = False,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; also with more epochs or variants.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say parameters, memory and disk, then stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train many variants of one model at once and write a run directory.

    Example: vmapens train cohorts/set-a --task mortality --variants 1000 --out runs/set-a
    """
    line: Table = {
        "cohort": {"path": cohort and str(cohort), "task": task, "split_seed": split_seed}
        | {"indicators": indicators, "unmatched": unmatched, "sample_ids": False if no_sample_ids else None},
        "model": {"name": model, "hidden": hidden, "attend_over": attend_over, "freeze_attention": freeze_attention},
        "train": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
        | {"clip_norm": clip_norm, "patience": patience}
        | {
            "select_by": select_by,
            "select_on": select_on,
            "snapshots": snapshots and list(whole_numbers(snapshots, "--snapshots")),
        }
        | {"device": device, "precision": precision},
        "variants": _variants(variants, seeds, design, init_seeds, order_seeds, bootstrap_seeds),
        "save_attention": save_attention,
        "block": _block(block),
        "preset": preset,
    }
    spec = resolve(_given(line), read_config(config) if config else None)
    if not spec.cohort.path or not spec.cohort.task:
        raise SpecError("a cohort and its --task are needed: vmapens train COHORT --task mortality --out RUN.")
    if resume and overwrite:
        raise SpecError("--resume keeps a run and --overwrite removes it: give one of them.")
    if out is None and not dry_run:
        raise SpecError("--out is missing: name the run directory to write.")
    from vmapens.training import Care

    care = Care(checkpoint_minutes=checkpoint_every, max_failed=max_failed, drop_state=drop_state)
    _train(spec, out, care=care, overwrite=overwrite, resume=resume, dry_run=dry_run, as_json=as_json)


def _given(table: Table) -> Table:
    """Only what was given on the command line."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def _variants(
    count: int | None,
    seeds: str | None = None,
    design: Design | None = None,
    init: str | None = None,
    order: str | None = None,
    bootstrap: str | None = None,
) -> Table:
    if sum(given is not None for given in (count, seeds, init)) > 1:
        raise SpecError("--variants, --seeds and --init-seeds say the same thing: give one of them.")
    if count is not None and count < 1:
        raise SpecError(f"--variants is {count}, but must be 1 or more.")
    given = {"--seeds": f"0:{count}" if count else seeds, "--init-seeds": init}
    given |= {"--order-seeds": order, "--bootstrap-seeds": bootstrap}
    numbers = {option: list(whole_numbers(text, option)) if text else None for option, text in given.items()}
    table = {"design": design, "init_seeds": numbers["--seeds"] or numbers["--init-seeds"]}
    table |= {"order_seeds": numbers["--order-seeds"], "bootstrap_seeds": numbers["--bootstrap-seeds"]}
    if numbers["--seeds"]:  # init and order the same, whatever a file says
        table |= {"design": design or "paired", "order_seeds": numbers["--order-seeds"] or []}
    return table


def _block(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise SpecError(f"--block is `{text}`, but must be auto, or a number of variants of 1 or more.")
    return int(text)


def _train(
    spec: RunSpec,
    out: Path | None,
    *,
    care: "Care",
    overwrite: bool,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool,
) -> None:
    from vmapens.plan import plan
    from vmapens.training import execute

    ready = plan(spec)
    for warning in ready.cohort.warnings:
        say(f"warning: {warning}")
    if spec.train.select_on == "test":
        say("warning: the kept epochs are chosen on the test split, as the paper did: its scores are too good.")
    if dry_run or out is None:
        needs = ready.needs
        sizes = {
            "variants": len(ready.table),
            "parameters_per_variant": needs.parameters,
            "blocks": math.ceil(len(ready.table) / needs.block),
            "block": needs.block,
            "width": needs.width,
            "memory_mib": round(needs.memory_mib),
            "free_mib": round(needs.free_mib),
            "attention_mib": round(needs.attention_mib),
            "disk_mib": round(needs.disk_mib),
        }
        typer.echo(_json(sizes) if as_json else "\n".join(f"{name:<24}{size}" for name, size in sizes.items()))
        return
    progress = TrainingProgress()
    try:
        run = execute(ready, out, overwrite=overwrite, resume=resume, care=care, listener=progress)
    finally:
        progress.stop()
    failed = run.variants.filter(status="failed")["variant"].to_list()
    if failed:
        some = ", ".join(map(str, failed[:5]))
        say(f"warning: {len(failed)} of {len(run.variants)} variants diverged and are left out below ({some}).")
    summary = run.summary().to_dicts()
    if as_json:
        table = {
            "out": str(out),
            "variants": len(run.variants),
            "failed": failed,
            "spec": to_table(spec),
            "summary": summary,
        }
        typer.echo(_json(table))
    else:
        count = f"{len(run.variants)} variants" + (f", {len(failed)} of them failed," if failed else "")
        typer.echo("\n".join([f"{count} in {out}", *summary_lines(summary)]))


@app.command()
def demo(
    variants: Annotated[int, typer.Option(help="Seeds 0..N-1.")] = 64,
    out: Annotated[Path, typer.Option("--out", help="The run directory; the cohort goes in OUT-cohort.")] = Path(
        "runs/demo"
    ),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a synthetic cohort on the spot and train 64 variants on it, in about a minute on two cores.

    Example: vmapens demo --variants 64 --out runs/demo
    """
    import shutil

    from vmapens.cohort.schema import INFO_FILE, read_info
    from vmapens.cohort.synthetic import SOURCE, make_synthetic
    from vmapens.directory import require_no_run
    from vmapens.training import Care

    cohort = Path(f"{out}-cohort")
    line = {"cohort": {"path": str(cohort), "task": "outcome"}, "train": {"epochs": 10, "lr": 2e-3}}
    spec = resolve({**line, "variants": _given(_variants(variants))})
    require_no_run(out, overwrite=overwrite)
    if overwrite and (cohort / INFO_FILE).exists() and read_info(cohort).source.startswith(SOURCE):
        shutil.rmtree(cohort)
    make_synthetic(cohort, samples=2000, steps=48, features=24, seed=0)
    say(f"a synthetic cohort of 2000 stays is in {cohort}")
    _train(spec, out, care=Care(), overwrite=overwrite, as_json=as_json)


@app.command()
def attend(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    samples: Annotated[str, typer.Option(help="test, test:N, all, @FILE, or ids separated by commas.")],
    cohort: Annotated[Path | None, typer.Option(help="Where the cohort is, if it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help="The package:Class of your own that the run was made with.")] = None,
    as_json: Json = False,
) -> None:
    """Write the attention of further samples under all variants, recomputed from the kept weights.

    Example: vmapens attend runs/set-a --samples test:32
    """
    from vmapens.attention import attend_samples

    written = attend_samples(run, samples, cohort, model=model)
    if as_json:
        typer.echo(_json({"run": str(run), "samples": written}))
    else:
        typer.echo(f"attention of {len(written)} more samples is in {run / 'attention'}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    cohort: Annotated[Path | None, typer.Option(help="Where the cohort is, if it has moved.")] = None,
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
        typer.echo(_json([vars(finding) for finding in findings]))
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


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    if arguments in ([], ["import"]):
        arguments = [*arguments, "--help"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a scheduler sends is an interrupt, too
    try:
        result: Any = app(arguments, standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except VmapensError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        say(f"error: {error.filename or 'a file'} cannot be read or written: {error.strerror or first_line(error)}.")
        return 2
    except (MemoryError, RuntimeError) as error:
        from vmapens.ensemble.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(f"error: not enough memory ({first_line(error)}); --dry-run says what a run needs.")
        return 2
    except typer.TyperException as error:
        say(f"error: {' '.join(error.format_message().split())} Try `vmapens --help`.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        resuming = [word for word in arguments if word not in ("--overwrite", "--resume")] + ["--resume"]
        trains = arguments[:1] == ["train"] and "--dry-run" not in arguments
        how = f" To go on: {shlex.join(['vmapens', *resuming])}" if trains else ""
        kept = " Finished blocks and the last checkpoint are kept." if how else ""
        say(f"interrupted.{kept}{how}")
    return status
