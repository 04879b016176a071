"""From a plan to a run directory: blocks of variants x epochs, the best epoch of each variant kept.

A variant's arithmetic never meets another's, so blocks change no byte of a result (on a CPU, for built-in models), and
neither does going on from a checkpoint: a block's state between two epochs is all that its next epoch depends on.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vmapens import attention as attention_room
from vmapens.checkpoint import restore, trained_epochs, write_checkpoint
from vmapens.checksum import checksums, damaged
from vmapens.cohort.load import Cohort
from vmapens.directory import (
    BEST,
    DONE,
    HISTORY,
    LAST,
    STATE,
    finish_run,
    occupy,
    read_manifest,
    snapshot_name,
    write_json,
    write_parquet,
)
from vmapens.ensemble.block import FAILED, Block
from vmapens.ensemble.epoch import Data, train_epoch
from vmapens.ensemble.memory import Width
from vmapens.ensemble.seeds import Factory, construct, orders
from vmapens.ensemble.stack import stack_modules
from vmapens.errors import RunError, SpecError
from vmapens.listener import Listener, Silence
from vmapens.manifest import go_on, manifest_of
from vmapens.nn.kernels import use_precision
from vmapens.nn.threads import spread_over
from vmapens.plan import Plan, plan
from vmapens.run import Run, open_run
from vmapens.spec import RunSpec
from vmapens.weights import write_weights

_CUT = "warning: memory ran out; going on with {value} variants at once, which changes no result."


@dataclass(frozen=True)
class Care:
    """How a training is looked after; none of it changes a result.

    Args:
        checkpoint_minutes: A block's state is written at the first epoch's end so long after the last time; 0: at each.
        max_failed: Stop once more variants of the run than this have diverged; None: never.
        drop_state: Keep no state of a finished block; the run cannot be given more epochs then.
    """

    checkpoint_minutes: float | int = 5
    max_failed: int | None = None
    drop_state: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_minutes < float("inf"):
            raise SpecError(f"--checkpoint-every is {self.checkpoint_minutes}, but must be minutes, 0 or more.")
        if self.max_failed is not None and self.max_failed < 0:
            raise SpecError(f"--max-failed is {self.max_failed}, but must be a number of variants, 0 or more.")


def train(
    model: Factory | None,
    cohort: Cohort | str | Path | None,
    spec: RunSpec,
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    care: Care | None = None,
    listener: Listener | None = None,
) -> Run:
    """Train all variants of a spec and write the run directory.

    Args:
        model: A factory of one module, or None for the model that the spec names.
        cohort: A loaded cohort, a path, or None for the one that the spec names.
        spec: Everything that decides the results.
        out: The run directory, which must not exist.
        overwrite: Replace a run that is there.
        resume: Go on with a run that is there, from its checkpoints; `spec` may ask for more epochs or more variants
            than it was begun with, and nothing else may differ.
        care: Checkpoints, and when to give up.
        listener: Hears of progress.

    Returns:
        The finished run.

    Raises:
        VmapensError: If the input is wrong (nothing is written then), the disk refuses, or too many variants diverge
            (what is trained is kept then).
    """
    if isinstance(cohort, str | Path):
        spec = dataclasses.replace(spec, cohort=dataclasses.replace(spec.cohort, path=str(cohort)))
        cohort = None
    ready = plan(spec, model=model, cohort=cohort)
    return execute(ready, Path(out), overwrite=overwrite, resume=resume, care=care, listener=listener)


def execute(
    ready: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    care: Care | None = None,
    listener: Listener | None = None,
) -> Run:
    """Carry out a plan; see `train`."""
    listener = listener or Silence()
    with occupy(out, overwrite=overwrite, resume=resume) as paths, spread_over():
        manifest, there = manifest_of(ready), None
        if paths.manifest.exists():
            there = read_manifest(paths)
            manifest = go_on(there, manifest, out)
        elif resume:
            listener.say(f"there is no run in {out} yet: it begins.")
        finished = there["blocks"] if there is not None and there["state"] == "done" else []
        work = _Training(ready, Run(paths, manifest), care or Care(), listener)
        work.finish(expected={(start, stop) for start, stop in finished})
    return open_run(out)


class _Training:
    """One call of `execute`."""

    def __init__(self, ready: Plan, run: Run, care: Care, listener: Listener) -> None:
        self._ready, self._run, self._paths, self._care, self._listener = ready, run, run.paths, care, listener
        self._spec = ready.spec.train
        self._failed: list[int] = []  # variants of finished blocks

    def finish(self, expected: set[tuple[int, int]]) -> None:
        """Train what is not trained, then write what follows from the weights.

        Args:
            expected: Blocks that were finished once.
        """
        ready, paths, listener = self._ready, self._paths, self._listener
        unfinished = []
        for block in self._run.blocks:
            if block in expected and not (paths.block(*block) / DONE).exists():
                listener.say(f"warning: {paths.block(*block)} is missing or not whole: it is trained again.")
            if not self._is_done(*block):
                unfinished.append(block)
        _ = self._run.attention_parts  # readable, or nothing is changed
        write_json(paths.manifest, {**self._run.manifest, "state": "running"})
        write_parquet(paths.splits, pl.DataFrame({"sample": list(ready.cohort.samples), "split": ready.cohort.split}))
        write_parquet(paths.features, ready.cohort.features)
        states = {block: paths.block(*block) / STATE for block in unfinished}
        left = ((self._spec.epochs - trained_epochs(states[a, b])) * (b - a) for a, b in unfinished)
        listener.start(sum(left))
        if unfinished:
            with use_precision(self._spec.precision):
                data = Data.of(ready.cohort, self._spec, ready.device)
                width = Width(ready.needs.width, on_cut=lambda value: listener.say(_CUT.format(value=value)))
                for block in unfinished:
                    self._train_block(*block, data, width)
                del data
        self._write_variants()
        attention_room.write_predictions(self._run, ready.model, ready.cohort, ready.device)
        sums = attention_room.write_missing(self._run, ready.model, ready.cohort, ready.saved, ready.device)
        finish_run(paths, self._run.manifest, unchanged=sums)

    def _is_done(self, start: int, stop: int) -> bool:
        """Whether a block's files are there, whole, and of all epochs.

        Raises:
            RunError: If they are damaged, or more epochs are wanted and its state was not kept.
        """
        folder = self._paths.block(start, stop)
        if not (folder / DONE).exists():
            return False
        done = self._paths.finished((start, stop))
        if faults := damaged(folder, done.sha256):
            raise RunError(
                f"{'; '.join(faults)}: remove {folder}, and --resume trains variants {start} to {stop - 1} from their "
                "beginning; all others stay."
            )
        kept = STATE in done.sha256
        if not kept:
            (folder / STATE).unlink(missing_ok=True)
        if done.epochs < self._spec.epochs:
            if kept:
                return False
            raise RunError(f"{folder} kept no state (--drop-state): it cannot be given more epochs; train another run.")
        self._failed += [start + row for row, status in enumerate(done.status) if status == FAILED]
        return True

    def _train_block(self, start: int, stop: int, data: Data, width: Width) -> None:
        ready, spec, listener = self._ready, self._spec, self._listener
        folder, count = self._paths.block(start, stop), stop - start
        (folder / DONE).unlink(missing_ok=True)  # of fewer epochs
        table = ready.table[start:stop]
        modules = (construct(ready.factory, seed)[0] for seed in table["init_seed"])
        stack = stack_modules(modules, count).to(ready.device)
        block = Block.start(stack, table, list(orders(ready.factory, table, len(data.train))))
        if (folder / STATE).exists():
            restore(folder / STATE, block)
            before = (snapshot_name(epoch) for epoch in spec.snapshots if epoch <= block.epoch)
            if missing := [name for name in before if not (folder / name).exists()]:
                raise RunError(f"{folder / missing[0]} is missing: remove {folder}, and --resume begins it anew.")
        elif 0 in spec.snapshots:
            write_weights(folder / snapshot_name(0), stack)
        saved = time.monotonic()
        for epoch in range(block.epoch + 1, spec.epochs + 1):
            self._check_failed(folder, block)
            block.retire(spec.patience)
            listener.advance(count - block.running)
            if block.running:
                train_epoch(ready.model, block, data, spec, width=width, on_variants=listener.advance)
            block.sort()
            if epoch in spec.snapshots:
                write_weights(folder / snapshot_name(epoch), block.stack)
            if epoch < spec.epochs and time.monotonic() - saved >= 60 * self._care.checkpoint_minutes:
                write_checkpoint(folder / STATE, block)
                saved = time.monotonic()
        self._check_failed(folder, block)
        self._write_block(folder, block)
        listener.say(f"variants {start} to {stop - 1} are trained: {folder}")

    def _check_failed(self, folder: Path, block: Block) -> None:
        """Stop, with a checkpoint, if more variants have diverged than the user wants to see.

        Raises:
            RunError: If so.
        """
        failed = sorted([*self._failed, *block.variants[block.failed].tolist()])
        most = self._care.max_failed
        if most is not None and len(failed) > most:
            write_checkpoint(folder / STATE, block)
            raise RunError(
                f"{len(failed)} variants have diverged by epoch {block.epoch} of {folder} (the first: "
                f"{', '.join(map(str, failed[:5]))}), more than --max-failed {most}: train another run with a lower "
                "--lr or with --clip-norm, or --resume this one with a higher --max-failed."
            )

    def _write_block(self, folder: Path, block: Block) -> None:
        """Write a block's results; done.json, the last, makes them count."""
        if not self._care.drop_state:
            write_checkpoint(folder / STATE, block)
        write_weights(folder / BEST, block.best)
        write_weights(folder / LAST, block.stack)
        write_parquet(folder / HISTORY, block.scores())
        names = [BEST, LAST, HISTORY, *(snapshot_name(epoch) for epoch in self._spec.snapshots)]
        names += [] if self._care.drop_state else [STATE]
        done = {
            "epochs": self._spec.epochs,
            "status": block.status(),
            "kept_epoch": block.kept_epoch.tolist(),
            "trained_epochs": block.epochs.tolist(),
            "sha256": checksums(folder, names),
        }
        write_json(folder / DONE, done)
        if self._care.drop_state:
            (folder / STATE).unlink(missing_ok=True)
        self._failed += block.variants[block.failed].tolist()

    def _write_variants(self) -> None:
        blocks = [self._paths.finished(block) for block in self._run.blocks]
        kinds = (("status", pl.String), ("kept_epoch", pl.Int32), ("trained_epochs", pl.Int32))
        columns = {
            name: pl.Series([value for block in blocks for value in getattr(block, name)], dtype=kind)
            for name, kind in kinds
        }
        write_parquet(self._paths.variants, self._ready.table.with_columns(**columns))
