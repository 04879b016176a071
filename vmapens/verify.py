"""Whether a run directory holds what was written: bytes, counts, schemas, sums, and the predictions themselves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vmapens import arrow
from vmapens.attention import cohort_of
from vmapens.checksum import LIST_FILE, damaged, read_list
from vmapens.ensemble import metrics
from vmapens.ensemble.block import FAILED, OK
from vmapens.ensemble.step import predict
from vmapens.errors import RunError, VmapensError, first_line
from vmapens.nn.kernels import compute_device
from vmapens.nn.threads import spread_over
from vmapens.run import Run, open_run
from vmapens.spec import BUILT_IN

SUM_TOLERANCE = 1e-4
"""Of a row of attention, float32 over up to some hundred weights."""
PREDICTION_TOLERANCE = 1e-4
"""Of a probability: 0 on the machine and versions of the training, rounding elsewhere."""

_RECOMPUTED = 3
_COLUMNS = {
    "variants": [
        *("variant", "init_seed", "order_seed", "bootstrap_seed", "lr", "weight_decay"),
        *("status", "kept_epoch", "trained_epochs"),
    ],
    "splits": ["sample", "split"],
    "features": ["index", "feature", "unit", "group", "mean", "std"],
    "metrics": ["variant", "split", "metric", "value", "status"],
    "predictions": ["variant", "sample", "split", "y", "probability"],
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: In a word or two.
        faults: What is wrong, a clause each; none if it holds.
        note: What was seen.
    """

    what: str
    faults: tuple[str, ...]
    note: str

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify(path: Path, cohort: Path | None = None, *, variants: int = _RECOMPUTED) -> Iterator[Finding]:
    """Check a finished run directory; nothing in it is changed.

    Args:
        path: The run directory.
        cohort: Where its cohort is now, if not where it was.
        variants: So many variants' predictions are computed again from their weights, evenly over the table.

    Yields:
        A finding after each look: checksums, and, if all are right, tables, blocks, attention and predictions.

    Raises:
        RunError: If it is not a finished run.
    """
    run = open_run(path)
    checks: dict[str, Callable[[Run], tuple[list[str], str]]] = {
        "checksums": _checksums,
        "tables": _tables,
        "blocks": _blocks,
        "attention": _attention,
        "predictions": lambda run: _predictions(run, cohort, variants),
    }
    for what, check in checks.items():
        try:
            faults, note = check(run)
        except Exception as error:  # contents that were changed with their checksums can break anything
            faults, note = [first_line(error)], "cannot be read"
        yield Finding(what, tuple(faults), note)
        if what == "checksums" and faults:
            return


def _checksums(run: Run) -> tuple[list[str], str]:
    root = run.paths.root
    wanted = read_list(root)
    faults = damaged(root, wanted)
    more = set(run.paths.files()) - wanted.keys()
    faults += [f"{root / name} is not in {LIST_FILE}" for name in sorted(more)]
    return faults, f"{len(wanted)} files"


def _tables(run: Run) -> tuple[list[str], str]:
    """Columns and numbers of rows of the Parquet files."""
    count, model, task = run.blocks[-1][1], run.manifest["model"], run.task
    samples: dict[str, int] = run.manifest["cohort"]["samples"]
    evaluated = samples["valid"] + samples["test"]
    rows = {
        "variants": count,
        "splits": sum(samples.values()),
        "features": model["features"],
        "metrics": count * 2 * len(metrics.metrics_for(task.kind)),
        "predictions": count * evaluated,
    }
    faults = []
    for name, columns in _COLUMNS.items():
        try:
            frame: pl.DataFrame = getattr(run, name)
        except RunError as error:
            faults.append(str(error))
            continue
        if frame.columns != columns:
            faults.append(f"{name}.parquet has columns {', '.join(frame.columns)}, wanted {', '.join(columns)}")
        if len(frame) != rows[name]:
            faults.append(f"{name}.parquet has {len(frame)} rows, wanted {rows[name]}")
    return faults, f"{count} variants, {evaluated} samples with predictions"


def _blocks(run: Run) -> tuple[list[str], str]:
    """Weights of all variants, finite where a variant did not fail, and one row of history a trained epoch."""
    faults = []
    for start, stop in run.blocks:
        folder, done = run.paths.block(start, stop), run.paths.finished((start, stop))
        for which in (path.stem for path in sorted(folder.glob("*.safetensors"))):
            theta = run.weights(which, block=(start, stop)).theta
            if len(theta) != stop - start:
                faults.append(f"{folder / which}.safetensors holds {len(theta)} variants, wanted {stop - start}")
            elif which == "best" and not theta[[status == OK for status in done.status]].isfinite().all():
                faults.append(f"{folder / which}.safetensors holds infinite weights or NaN of variants that are ok")
        own = run.history.filter(pl.col("variant").is_between(start, stop - 1))
        rows = own.group_by("variant").len().sort("variant")
        if rows["len"].to_list() != list(done.trained_epochs):
            faults.append(f"{folder / 'history.parquet'} does not hold one row for each trained epoch of each variant")
        failed = set(own.filter(status=FAILED)["variant"].to_list())
        if failed != {start + row for row, status in enumerate(done.status) if status == FAILED}:
            faults.append(f"{folder / 'done.json'} and history.parquet say that other variants failed")
    return faults, f"{len(run.blocks)} blocks"


def _attention(run: Run) -> tuple[list[str], str]:
    """Sums of the rows of attention, and that they are those of the weights that stand there."""
    axis = {"time": 0}.get(run.spec.model.attend_over, -1)  # of [steps, features] or [steps]
    faults, largest, count = [], 0.0, 0
    parts = sorted(run.samples_of_parts.items())
    for start, stop in run.blocks:
        for part, samples in parts:
            path = run.paths.attention(start, stop, part)
            file = arrow.AttentionFile(path, start, stop - start, whole=True)
            if file.metadata.get("weights") != run.paths.finished((start, stop)).weights:
                faults.append(f"{path} is not of its block's weights: --resume the training, which writes it again")
            for variant in range(start, stop):
                rows = np.stack(file.rows(variant, samples))
                count += len(rows)
                if run.spec.model.name == BUILT_IN:
                    largest = float(
                        np.maximum(largest, np.abs(rows.sum(axis=axis, dtype=np.float64) - 1).max())
                    )  # keeps NaN
                elif not np.isfinite(rows).all():
                    faults.append(f"{path} holds attention of variant {variant} that is not finite")
    if not largest <= SUM_TOLERANCE:
        faults.append(f"{run.paths.root / 'attention'}: a row of attention is {largest:.1e} off its sum 1")
    sums = f", sums off 1 by {largest:.1e} at most" if run.spec.model.name == BUILT_IN else ""
    return faults, f"{count} rows{sums}"


def _predictions(run: Run, cohort_path: Path | None, count: int) -> tuple[list[str], str]:
    try:
        cohort, model = cohort_of(run, cohort_path), run.model()
    except VmapensError as error:
        return [], f"not computed again: {error}"
    device, kind = compute_device(run.spec.train), cohort.task.kind
    total = run.blocks[-1][1]
    chosen = sorted({total * place // count for place in range(min(count, total))})
    x = cohort.x.to(device)
    rows = {split: cohort.rows(split).to(device) for split in ("valid", "test")}
    faults, largest = [], 0.0
    with spread_over():
        for variant in chosen:
            start, stop = run.block_of(variant)
            stack = run.weights(block=(start, stop)).rows(variant - start, variant - start + 1).to(device)
            own = run.predictions.filter(variant=variant)
            for split in rows:
                got = predict(model, kind, stack, x, rows[split])[0].cpu().numpy()
                written = own.filter(split=split)["probability"].to_numpy()
                if got.shape != written.shape:
                    return [f"predictions.parquet holds {written.shape} of variant {variant}, wanted {got.shape}"], ""
                largest = float(np.maximum(largest, np.abs(got - written).max(initial=0.0)))  # keeps NaN
    if not largest <= PREDICTION_TOLERANCE:
        faults.append(f"{run.paths.predictions} differs by {largest:.1e} from what the weights give")
    return faults, f"of variants {', '.join(map(str, chosen))} computed again, off by {largest:.1e} at most"
