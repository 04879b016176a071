"""Probabilities and attention of chosen samples under all variants, recomputed from the kept weights, as a stream."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from vmapens import arrow
from vmapens.atomic import atomic_path
from vmapens.checksum import LIST_FILE, checksums, damaged, read_list, write_list
from vmapens.cohort.load import Cohort, load_cohort, raw_values
from vmapens.directory import finish_run, occupy, write_parquet
from vmapens.ensemble import metrics
from vmapens.ensemble.memory import ATTENTION_PASS_MIB
from vmapens.ensemble.seeds import Factory, construct
from vmapens.ensemble.stack import Stack, columns_of
from vmapens.ensemble.step import attend, predict
from vmapens.errors import RunError, SpecError, StackError
from vmapens.nn.kernels import compute_device, use_kernel
from vmapens.nn.threads import spread_over
from vmapens.run import Run, open_run
from vmapens.spec import BUILT_IN

_EVALUATED = ("valid", "test")
_GROUP = 16  # variants per pass over the samples, fewer where their results would take more than ATTENTION_PASS_MIB


def choose_samples(cohort: Cohort, which: str, *, seed: int = 0) -> Tensor:
    """Rows of the samples that `--save-attention` and `--samples` name.

    Args:
        cohort: Where they are.
        which: `none`; a split (`train`, `valid`, `test`); `SPLIT:N`, N samples stratified by label; `SPLIT:CLASS` or
            `SPLIT:CLASS:N`, those of a class (its name, `class=NAME` if that is a number, or `positive` for class 1 of
            a binary task); `all`; `@FILE`, one id a line; or ids separated by commas.
        seed: Draws the samples where a number is given.

    Returns:
        Row numbers, increasing.

    Raises:
        SpecError: If the text means nothing, or an id is not in the cohort.
    """
    split, _, rest = which.partition(":")
    if which == "none":
        return torch.zeros(0, dtype=torch.int64)
    if which == "all":
        return torch.arange(len(cohort.samples))
    if split in ("train", "valid", "test"):
        return _of_split(cohort, split, rest, seed) if rest else cohort.rows(split)
    if which.startswith("@"):
        try:
            lines = Path(which[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no name of a file
            raise SpecError(f"{which[1:]} cannot be read as a list of ids ({error}); write one id a line.") from None
        ids = [line.strip() for line in lines if line.strip()]
    else:
        ids = which.split(",")
    places = {sample: row for row, sample in enumerate(cohort.samples)}
    unknown = sorted(set(ids) - places.keys())
    if unknown or not ids:
        raise SpecError(
            f"{len(unknown)} samples are not in the cohort ({', '.join(unknown[:5])}): "
            "give ids, none, all, test, test:N, test:CLASS, or @FILE with one id a line."
        )
    return torch.tensor(sorted({places[sample] for sample in ids}))


def _of_split(cohort: Cohort, split: str, rest: str, seed: int) -> Tensor:
    """Rows of `SPLIT:N`, `SPLIT:CLASS` or `SPLIT:CLASS:N`; a number is always N, a class by that name is `class=N`."""
    rows, classes = cohort.rows(split), cohort.task.classes
    named = {**({"positive": 1} if cohort.task.kind == "binary" else {}), **{name: c for c, name in enumerate(classes)}}
    named = {f"class={name}" if name.isdecimal() else name: code for name, code in named.items()}
    if rest.isdecimal():
        name, number = "", rest
    else:
        name, number = (rest, "") if rest in named else rest.rpartition(":")[::2]
    is_number = name == rest or (number.isdecimal() and len(number) <= 18 and int(number) >= 1)
    if not is_number or (name and name not in named):
        raise SpecError(
            f"`{split}:{rest}` cannot be read: write {split}:N with N of 1 or more, or a class of task "
            f"`{cohort.task.name}` ({', '.join(named)}), alone or with :N."
        )
    if name:
        rows = rows[cohort.y[rows] == named[name]]
        if not len(rows):
            raise SpecError(f"`{split}:{rest}` is empty: no sample of the {split} split is {name}; take another.")
    return _stratified(rows, cohort.y[rows], int(number), seed) if number else rows


def _stratified(rows: Tensor, y: Tensor, count: int, seed: int) -> Tensor:
    """As many of each class as its share asks, by largest remainders, at least one of each if there is room."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(rows))
    classes, sizes = torch.unique(y, return_counts=True)
    shares = sizes.double() * count / len(rows)
    wanted = shares.floor().long()
    if count >= len(classes):
        wanted = wanted.clamp(min=1)
    while int(wanted.sum()) != count:
        missing = count - int(wanted.sum())
        gap = shares - wanted if missing > 0 else torch.where(wanted > 1, wanted - shares, -torch.inf)
        wanted[gap.argmax()] += 1 if missing > 0 else -1
    chosen = []
    for label, n in zip(classes, wanted.tolist(), strict=True):
        own = rows[y == label]
        chosen.append(own[torch.randperm(len(own), generator=generator)[:n]])
    return torch.cat(chosen).sort().values


def attention_sizes(model: torch.nn.Module, x: Tensor) -> tuple[int, ...]:
    """Lengths of the axes of the model's attention.

    Raises:
        StackError: If the model does not name its axes, or names another number of them.
    """
    with torch.no_grad(), use_kernel("reference"):  # the others start slowly
        sizes = tuple(model(x)[1].shape[1:])
    axes = getattr(model, "attention_axes", None)
    if axes is None or len(axes) != len(sizes):
        raise StackError(
            f"{type(model).__name__}.attention_axes is {axes}, but its attention has shape {('B', *sizes)}: "
            'name each axis, as ("step", "feature"), or use --save-attention none.'
        )
    return sizes


def _groups(run: Run, blocks: list[tuple[int, int]], device: torch.device, mib: float) -> Iterator[tuple[int, Stack]]:
    """Kept weights in groups of variants, with the first one's number; `mib` is what a pass over one variant gives."""
    size = max(1, min(_GROUP, int(ATTENTION_PASS_MIB / mib)))
    for block in blocks:
        stack = run.weights(block=block).to(device)
        for start in range(0, len(stack.theta), size):
            yield block[0] + start, stack.rows(start, start + size)


def write_predictions(run: Run, model: torch.nn.Module, cohort: Cohort, device: torch.device) -> None:
    """Write predictions.parquet and metrics.parquet of the valid and test splits, from the kept weights.

    Every metric is computed from the float32 probabilities that are written.
    """
    kind = cohort.task.kind
    rows = {split: cohort.rows(split).to(device) for split in _EVALUATED}
    x = cohort.x.to(device)
    y = {split: cohort.y[own.cpu()].numpy() for split, own in rows.items()}
    samples = [cohort.samples[row] for own in rows.values() for row in own.tolist()]
    splits = [split for split, own in rows.items() for _ in range(len(own))]
    labels = np.concatenate(list(y.values())).astype(np.int32)
    probability_type = arrow.probability_type(cohort.task.outputs)
    names = ("variant", "sample", "split", "y", "probability")
    schema = pa.schema(list(zip(names, (pa.int32(), pa.utf8(), pa.utf8(), pa.int32(), probability_type), strict=True)))
    scores: list[pl.DataFrame] = []
    with atomic_path(run.paths.predictions) as path, pyarrow.parquet.ParquetWriter(path, schema) as writer:
        mib = 4 * len(samples) * len(cohort.task.classes) / 2**20
        for first, stack in _groups(run, run.blocks, device, mib):
            count = len(stack.theta)
            variants = np.arange(first, first + count, dtype=np.int32)
            probability = {split: predict(model, kind, stack, x, own).cpu().numpy() for split, own in rows.items()}
            together = np.concatenate(list(probability.values()), axis=1)
            columns = [
                pa.array(np.repeat(variants, len(samples))),
                pa.array(samples * count, pa.utf8()),
                pa.array(splits * count),
                pa.array(np.tile(labels, count)),
                arrow.nested(together.reshape(-1, *together.shape[2:])),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            scores += [
                pl.DataFrame({"variant": variants, "value": metrics.score(name, y[split], probability[split])}).select(
                    "variant", pl.lit(split).alias("split"), pl.lit(name).alias("metric"), "value"
                )
                for split in rows
                for name in metrics.metrics_for(kind)
            ]
    status = run.variants.select("variant", "status")
    write_parquet(run.paths.metrics, pl.concat(scores).sort("variant", "split", "metric").join(status, on="variant"))


def write_missing(
    run: Run, model: torch.nn.Module, cohort: Cohort, rows: Tensor, device: torch.device
) -> dict[str, str]:
    """Bring the attention files of a run that was just trained up to date with its weights.

    Args:
        run: A run whose blocks are done. A part stays if it has the checksum that is listed and is of the weights that
            the block has now; each that is written is listed at once, so that a crash costs one.
        model: One module of its architecture.
        cohort: The cohort it was trained on.
        rows: Row numbers of the samples to save, if none are saved yet.
        device: Where to compute.

    Returns:
        Checksums of the attention files by name.
    """
    parts = run.samples_of_parts
    if not parts and len(rows):
        parts = {0: [cohort.samples[row] for row in rows.tolist()]}
    _remove_parts(run, but=parts)
    root = run.paths.root
    listed = read_list(root) if (root / LIST_FILE).exists() else {}
    sums: dict[str, str] = {}
    for part, samples in parts.items():
        for block in run.blocks:
            name = str(run.paths.attention(*block, part).relative_to(root))
            if not _is_current(run, block, part, samples, listed.get(name, "")):
                _write_part(run, model, cohort, samples, block, part, device)
                listed |= checksums(root, [name])
                write_list(root, listed)
            sums[name] = listed[name]
    if parts:
        _write_index(run, cohort, {sample: part for part, samples in parts.items() for sample in samples})
    return sums


def write_samples(run: Run, model: torch.nn.Module, cohort: Cohort, rows: Tensor, device: torch.device) -> list[str]:
    """Write the attention of samples that are not saved yet, as one more part of each block, and what they look like.

    Args:
        run: A finished run.
        model: One module of its architecture.
        cohort: The cohort it was trained on.
        rows: Row numbers of the samples.
        device: Where to compute.

    Returns:
        Ids of the samples written; none if all were there.
    """
    before = run.attention_parts
    samples = [cohort.samples[row] for row in rows.tolist() if cohort.samples[row] not in before]
    _remove_parts(run, but=before.values())
    if samples:
        part = max(before.values(), default=-1) + 1
        try:
            for block in run.blocks:
                _write_part(run, model, cohort, samples, block, part, device)
        except BaseException:
            _remove_parts(run, but=before.values())
            raise
        _write_index(run, cohort, {**before, **dict.fromkeys(samples, part)})
    return samples


def _remove_parts(run: Run, *, but: Collection[int]) -> None:
    """Remove the attention files that no index names, of an `attend` that did not come to its end."""
    named = {f"part-{part}.arrow" for part in but}
    for path in run.paths.inputs.parent.glob("block=*/part-*.arrow"):
        if path.name not in named:
            path.unlink()


def _is_current(run: Run, block: tuple[int, int], part: int, samples: list[str], checksum: str) -> bool:
    """Whether a file is as it was written, and holds these samples under the weights that the block has now."""
    (start, stop), path = block, run.paths.attention(*block, part)
    if damaged(path.parent, {path.name: checksum}):
        return False
    try:
        file = arrow.AttentionFile(path, start, stop - start)
        return file.metadata.get("weights") == run.paths.finished(block).weights and file.samples == samples
    except RunError:
        return False


def _write_part(
    run: Run,
    model: torch.nn.Module,
    cohort: Cohort,
    samples: list[str],
    block: tuple[int, int],
    part: int,
    device: torch.device,
) -> None:
    places = {sample: row for row, sample in enumerate(cohort.samples)}
    rows = torch.tensor([places[sample] for sample in samples])
    y, x = cohort.y[rows].numpy(), cohort.x[rows].to(device)
    sizes = attention_sizes(model, cohort.x[:1])
    metadata = {**_metadata(run), "weights": run.paths.finished(block).weights}
    schema = arrow.attention_schema(sizes, run.manifest["model"]["outputs"], metadata)
    mib = 4 * len(rows) * np.prod(sizes) / 2**20
    written, predictions = _written_probabilities(run, samples, block)
    others = np.setdiff1d(np.arange(len(samples)), written)
    with arrow.write_attention(run.paths.attention(*block, part), schema) as writer:
        for first, stack in _groups(run, [block], device, float(mib)):
            count, at = len(stack.theta), first - block[0]
            probability = np.empty((count, len(samples), *predictions.shape[2:]), np.float32)
            probability[:, written] = predictions[at : at + count]
            if len(others):
                probability[:, others] = predict(model, cohort.task.kind, stack, x[others], batch=1).cpu().numpy()
            step = len(samples) if count > 1 else arrow.BATCH_ROWS  # a pass over one variant may still be too much
            for begin in range(0, len(samples), step):
                own = slice(begin, begin + step)
                weights = attend(model, stack, x[own]).cpu().numpy()
                writer.write(first, samples[own], y[own], probability[:, own], weights)


def _write_index(run: Run, cohort: Cohort, index: dict[str, int]) -> None:
    """Write what the saved samples look like, and, last, which part holds which."""
    saved = torch.tensor([row for row, sample in enumerate(cohort.samples) if sample in index], dtype=torch.int64)
    _write_inputs(run, cohort, saved)
    frame = pl.DataFrame(
        {"sample": list(index), "part": list(index.values())}, schema={"sample": pl.String, "part": pl.Int32}
    )
    write_parquet(run.paths.attention_index, frame)


def _written_probabilities(run: Run, samples: list[str], block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which of the samples predictions.parquet holds, and their probabilities [v, S, ...] under a block's variants."""
    start, stop = block
    own = run.predictions.filter(pl.col("sample").is_in(samples), pl.col("variant").is_between(start, stop - 1))
    places = {sample: place for place, sample in enumerate(samples)}
    own = own.with_columns(place=pl.col("sample").replace_strict(places, return_dtype=pl.Int32)).sort(
        "variant", "place"
    )
    written = own["place"].unique().sort().to_numpy()
    values = own["probability"].to_numpy()
    return written, values.reshape(stop - start, len(written), *values.shape[1:])


def _metadata(run: Run) -> dict[str, object]:
    """What a reader of one Arrow file alone would want; all of it stands in run.json or features.parquet as well."""
    return {
        "format_version": run.manifest["format_version"],
        "task": run.manifest["task"],
        "model": run.manifest["model"],
        "cohort": run.manifest["cohort"],
        "features": run.features["feature"].to_list(),
    }


def _write_inputs(run: Run, cohort: Cohort, rows: Tensor) -> None:
    columns = {
        "sample": pa.array([cohort.samples[row] for row in rows.tolist()], pa.utf8()),
        "y": pa.array(cohort.y[rows].numpy().astype(np.int32)),
        "value": arrow.nested(raw_values(cohort, rows).numpy()),
        "scaled": arrow.nested(cohort.x[rows].numpy()),
        "measured": arrow.nested(cohort.observed[rows].numpy()),
    }
    arrow.write_table(run.paths.inputs, pa.table(columns))


def cohort_of(run: Run, path: Path | None = None) -> Cohort:
    """Load the cohort that a run was trained on.

    Args:
        run: The run.
        path: Where the cohort is now, if not where it was.

    Raises:
        RunError: If it is not there, or is another one.
    """
    spec = run.spec.cohort if path is None else replace(run.spec.cohort, path=str(path))
    if not Path(spec.path).exists():
        where = run.paths.root
        raise RunError(f"the cohort of {where} was {spec.path}, which is not there: say where it is with --cohort.")
    cohort = load_cohort(spec)
    if cohort.fingerprint != run.manifest["cohort"]["fingerprint"]:
        raise RunError(f"{run.paths.root} was trained on another cohort: its fingerprint differs; give the same files.")
    return cohort


def attend_samples(
    path: Path, which: str, cohort_path: Path | None = None, *, model: Factory | str | None = None
) -> list[str]:
    """Add samples to the attention files of a finished run; those that are there already are left alone.

    Args:
        path: The run directory.
        which: As in `choose_samples`.
        cohort_path: Where the cohort is now, if not where it was.
        model: What the run was trained with, if not a built-in model: the name of a class, or a factory.

    Returns:
        Ids of the samples written.
    """
    run = open_run(path)
    cohort = cohort_of(run, cohort_path)
    rows = choose_samples(cohort, which, seed=run.spec.attention_seed)
    module = run.model(model or BUILT_IN) if model is None or isinstance(model, str) else construct(model, 0)[0]
    if columns_of(module) != run.columns:
        raise RunError(f"{path} holds weights of other names or shapes than {type(module).__name__} has: give its own.")
    with occupy(path, overwrite=False, resume=True), spread_over():
        run, listed = open_run(path), read_list(path)  # as they are now that no other process can change them
        kept = {f"part-{part}.arrow" for part in run.attention_parts.values()}
        written = write_samples(run, module, cohort, rows, compute_device(run.spec.train))
        index = run.paths.attention_index
        if written or damaged(path, {name: listed[name] for name in (str(index.relative_to(path)),) if name in listed}):
            unchanged = {n: s for n, s in listed.items() if not n.startswith("attention/") or Path(n).name in kept}
            finish_run(run.paths, run.manifest, unchanged=unchanged)
    return written
