"""The command `train`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmapens.cli.options import Json, Overwrite, app, to_json
from vmapens.errors import SpecError
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
from vmapens.terminal import Progress, say, summary_lines

if TYPE_CHECKING:
    from vmapens.plan import Plan
    from vmapens.run import Run
    from vmapens.training import Care


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
    folds: Annotated[int | None, typer.Option(help="Train on each of K folds, as a study: K runs in --out.")] = None,
    split_seeds: Annotated[str | None, typer.Option(help="A:B; train on each of these splits, as a study.")] = None,
    indicators: Annotated[bool | None, typer.Option(help="Add missing-indicator features.")] = None,
    unmatched: Annotated[Unmatched | None, typer.Option(help="Samples in one table only.")] = None,
    no_sample_ids: Annotated[
        bool | None, typer.Option("--no-sample-ids", help="Write row numbers instead of ids.")
    ] = None,
    save_attention: Annotated[
        str | None, typer.Option(help="none, all, test:N (default test:16), test:CLASS, @FILE.")
    ] = None,
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
        "variants": variant_options(variants, seeds, design, init_seeds, order_seeds, bootstrap_seeds),
        "save_attention": save_attention,
        "block": _block(block),
        "preset": preset,
    }
    spec = resolve(given(line), read_config(config) if config else None)
    if not spec.cohort.path or not spec.cohort.task:
        raise SpecError("a cohort and its --task are needed: vmapens train COHORT --task mortality --out RUN.")
    if resume and overwrite:
        raise SpecError("--resume keeps a run and --overwrite removes it: give one of them.")
    if out is None and not dry_run:
        raise SpecError("--out is missing: name the run directory to write.")
    from vmapens.training import Care

    care = Care(checkpoint_minutes=checkpoint_every, max_failed=max_failed, drop_state=drop_state)
    if folds is None and split_seeds is None:
        carry_out(spec, out, care=care, overwrite=overwrite, resume=resume, dry_run=dry_run, as_json=as_json)
        return
    if split_seed is not None and split_seeds is not None:
        raise SpecError("--split-seed names one split and --split-seeds several: give one of them.")
    carry_out_study(
        spec,
        out,
        folds=folds,
        split_seeds=() if split_seeds is None else whole_numbers(split_seeds, "--split-seeds"),
        care=care,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
    )


def given(table: Table) -> Table:
    """Only what was given on the command line."""
    nested = {key: given(value) if isinstance(value, dict) else value for key, value in table.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def variant_options(
    count: int | None,
    seeds: str | None = None,
    design: Design | None = None,
    init: str | None = None,
    order: str | None = None,
    bootstrap: str | None = None,
) -> Table:
    """What the options about variants say, as the table [variants] of a configuration file would."""
    if sum(option is not None for option in (count, seeds, init)) > 1:
        raise SpecError("--variants, --seeds and --init-seeds say the same thing: give one of them.")
    if count is not None and count < 1:
        raise SpecError(f"--variants is {count}, but must be 1 or more.")
    texts = {"--seeds": f"0:{count}" if count else seeds, "--init-seeds": init}
    texts |= {"--order-seeds": order, "--bootstrap-seeds": bootstrap}
    numbers = {option: list(whole_numbers(text, option)) if text else None for option, text in texts.items()}
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


def carry_out(
    spec: RunSpec,
    out: Path | None,
    *,
    care: "Care",
    overwrite: bool,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool,
) -> None:
    """Train as a spec says, and print the scores; or, dry, what it would take."""
    from vmapens.plan import plan
    from vmapens.training import execute

    ready = plan(spec)
    for warning in ready.cohort.warnings:
        say(f"warning: {warning}")
    _warn_of_selection(spec)
    if dry_run or out is None:
        _print_sizes(_sizes(ready), as_json=as_json)
        return
    progress = Progress("variants x epochs")
    try:
        run = execute(ready, out, overwrite=overwrite, resume=resume, care=care, listener=progress)
    finally:
        progress.stop()
    failed = _failed(run)
    summary = run.summary().to_dicts()
    if as_json:
        table = {
            "out": str(out),
            "variants": len(run.variants),
            "failed": failed,
            "spec": to_table(spec),
            "summary": summary,
        }
        typer.echo(to_json(table))
    else:
        count = f"{len(run.variants)} variants" + (f", {len(failed)} of them failed," if failed else "")
        typer.echo("\n".join([f"{count} in {out}", *summary_lines(summary)]))


def carry_out_study(
    spec: RunSpec,
    out: Path | None,
    *,
    folds: int | None,
    split_seeds: tuple[int, ...],
    care: "Care",
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train on several splits, and print what the scores are over all of them; or, dry, what each run would take."""
    from vmapens.cohort.load import check_splits
    from vmapens.plan import plan
    from vmapens.study import study_specs, train_study

    specs = list(study_specs(spec, folds=folds, split_seeds=split_seeds).values())
    _warn_of_selection(spec)
    if dry_run or out is None:
        check_splits([each.cohort for each in specs])
        _print_sizes({"runs": len(specs), **_sizes(plan(specs[0]))}, as_json=as_json)
        return
    progress = Progress("variants x epochs")
    try:
        study = train_study(
            None,
            None,
            spec,
            out,
            folds=folds,
            split_seeds=split_seeds,
            overwrite=overwrite,
            resume=resume,
            care=care,
            listener=progress,
        )
    finally:
        progress.stop()
    failed = {run.paths.root.name: _failed(run, f"{run.paths.root.name}: ") for run in study.runs}
    common = study.common.to_dicts()
    if as_json:
        table = {
            "out": str(out),
            "runs": list(failed),
            "variants": len(study.runs[0].variants),
            "failed": failed,
            "spec": to_table(spec),
            "summary": study.summary.to_dicts(),
            "common": common,
        }
        typer.echo(to_json(table))
    else:
        count = f"{len(study.runs)} runs of {len(study.runs[0].variants)} variants in {out} ({', '.join(failed)})"
        typer.echo("\n".join([count, *_common_lines(common)]))


def _warn_of_selection(spec: RunSpec) -> None:
    if spec.train.select_on == "test":
        say("warning: the kept epochs are chosen on the test split, as the paper did: its scores are too good.")


def _sizes(ready: "Plan") -> dict[str, int]:
    """What a run would take."""
    needs = ready.needs
    return {
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


def _print_sizes(sizes: dict[str, int], *, as_json: bool) -> None:
    typer.echo(to_json(sizes) if as_json else "\n".join(f"{name:<24}{size}" for name, size in sizes.items()))


def _failed(run: "Run", where: str = "") -> list[int]:
    """Numbers of the variants that diverged, said on standard error."""
    failed: list[int] = run.variants.filter(status="failed")["variant"].to_list()
    if failed:
        some = ", ".join(map(str, failed[:5]))
        say(f"warning: {where}{len(failed)} of {len(run.variants)} variants diverged and are left out below ({some}).")
    return failed


def _common_lines(common: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `Study.common` as lines of text."""
    width = max((len(row["metric"]) for row in common), default=0)
    lines = [f"{'split':<6} {'metric':<{width}}    mean  SD of splits  SD of variants     min     max"]
    for row in common:
        spread = "-" if row["sd_of_splits"] is None else f"{row['sd_of_splits']:.4f}"
        lines.append(
            f"{row['split']:<6} {row['metric']:<{width}} {row['mean']:7.4f} {spread:>13} {row['sd_of_variants']:15.4f} "
            f"{row['min']:7.4f} {row['max']:7.4f}"
        )
    return lines
