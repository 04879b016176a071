"""Several splits of one cohort as one study: a run for each in one folder, and a summary of them all.

One split is one draw: a run cannot tell how far its scores would move on another one. So a study trains the same
variants on each of several splits. Its runs are ordinary ones, trained one after the other; every command reads them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from vmapens.atomic import is_leftover
from vmapens.cohort.load import check_splits
from vmapens.directory import (
    FORMAT_VERSION,
    REPLACED,
    STUDY_FILE,
    RunPaths,
    is_free,
    make_and_hold,
    occupy,
    refuse_links,
    require_no_run,
    write_json,
    write_parquet,
)
from vmapens.ensemble.seeds import Factory
from vmapens.errors import OutputError, RunError, SpecError, VmapensError, first_line
from vmapens.listener import Listener, Silence
from vmapens.lock import hold
from vmapens.manifest import versions
from vmapens.plan import Plan, plan
from vmapens.run import Run, open_run
from vmapens.spec import CohortSpec, RunSpec, from_table
from vmapens.training import Care, execute

SUMMARY_FILE = "summary.parquet"
"""Of a study; written last."""


@dataclass(frozen=True)
class Study:
    """A finished study.

    Args:
        root: Its folder.
        manifest: What study.json says: runs, command, versions.
        runs: One for each split.
    """

    root: Path
    manifest: dict[str, Any]
    runs: list[Run]

    @cached_property
    def summary(self) -> pl.DataFrame:
        """Scores of each run, as summary.parquet has them: run, fold, split_seed, and the columns of `Run.summary`."""
        return pl.concat([_scores(run) for run in self.runs])

    @cached_property
    def common(self) -> pl.DataFrame:
        """Scores over all runs: `common_summary`."""
        return common_summary(self.summary)


def common_summary(summary: pl.DataFrame) -> pl.DataFrame:
    """How well the variants do on average, and how far that moves from split to split and from seed to seed.

    Predictions are not pooled over folds, though each sample is in the test split of one: those of each fold are by
    models of its own, and their probabilities are not on one scale, across which a pooled AUROC would compare.

    Args:
        summary: `Study.summary`.

    Returns:
        A row for each split and metric: `runs` with a variant that did not fail; `mean` of their means; `sd_of_splits`,
        the SD between these means (of the sample; null for one run); `sd_of_variants`, the mean of the SDs within a
        run; `min` and `max` of the means. The mean of V variants carries their noise, sd_of_variants / sqrt(V). Splits
        share samples, so sd_of_splits / sqrt(runs) is no standard error of `mean`, and as a rule too small for one.

    Source:
        Bengio & Grandvalet 2004, "No unbiased estimator of the variance of k-fold cross-validation", JMLR 5.
    """
    mean = pl.col("mean")
    spread = (mean.std().alias("sd_of_splits"), pl.col("sd").mean().alias("sd_of_variants"))
    numbers = (pl.len().alias("runs"), mean.mean(), *spread, mean.min().alias("min"), mean.max().alias("max"))
    return summary.group_by("split", "metric").agg(*numbers).sort("split", "metric")


def study_specs(spec: RunSpec, *, folds: int | None = None, split_seeds: Sequence[int] = ()) -> dict[str, RunSpec]:
    """The runs of a study by the names of their folders.

    Args:
        spec: Of all of them, but for the split.
        folds: So many runs, each with another fold of one draw by `spec.cohort.split_seed` as its test split.
        split_seeds: In place of folds: a run for each seed.

    Raises:
        SpecError: If both or neither are given, or one of them makes no study.
    """
    cohort = spec.cohort
    if (folds is None) == (not split_seeds):
        raise SpecError("--folds and --split-seeds make two kinds of study: give one of them.")
    if folds is not None:
        first = replace(cohort, folds=folds, fold=0)
        splits = [replace(first, fold=fold) for fold in range(folds)]
    else:
        if cohort.folds is not None:
            raise SpecError(f"the cohort's folds is {cohort.folds}, but --split-seeds draw no folds: give one of them.")
        splits = [replace(cohort, split_seed=seed) for seed in sorted(set(split_seeds))]
        if len(splits) != len(split_seeds) or len(splits) < 2:
            got = ", ".join(map(str, split_seeds[:5]))
            raise SpecError(f"--split-seeds are {got}, but must be two or more, without repeats; --split-seed is one.")
    return {_name(split): replace(spec, cohort=split) for split in splits}


def _name(cohort: CohortSpec) -> str:
    return f"split-{cohort.split_seed}" if cohort.fold is None else f"fold-{cohort.fold}"


def train_study(
    model: Factory | None,
    cohort: str | Path | None,
    spec: RunSpec,
    out: str | Path,
    *,
    folds: int | None = None,
    split_seeds: Sequence[int] = (),
    overwrite: bool = False,
    resume: bool = False,
    care: Care | None = None,
    listener: Listener | None = None,
) -> Study:
    """Train the same variants on several splits of a cohort: a run directory for each, and summary.parquet.

    The cohort is read again for each run, because imputation and scaling depend on the split; one is held at a time.

    Args:
        model: A factory of one module, or None for the model that the spec names.
        cohort: A path, or None for the one that the spec names.
        spec: Everything that decides the results, but for the split.
        out: The folder of the study, which must not exist.
        folds: As in `study_specs`.
        split_seeds: As in `study_specs`.
        overwrite: Replace a study that is there.
        resume: Go on with a study that is there; it may also get more epochs, variants or split seeds.
        care: As in `train`, for each run.
        listener: Hears of progress, of all runs together.

    Returns:
        The finished study.

    Raises:
        VmapensError: As `train`, or if a split cannot be learnt (nothing is written then).
    """
    if cohort is not None:
        spec = replace(spec, cohort=replace(spec.cohort, path=str(cohort)))
    specs, root, listener = study_specs(spec, folds=folds, split_seeds=split_seeds), Path(out), listener or Silence()
    there = _runs_that_stay(root, specs, overwrite=overwrite, resume=resume)
    check_splits([each.cohort for each in specs.values()])
    said: set[str] = set()

    def planned(name: str) -> Plan:
        try:
            ready = plan(specs[name], model=model)
        except VmapensError as error:
            raise type(error)(f"{name}: {error}") from error
        for warning in ready.cohort.warnings:
            if warning not in said:  # most are about the cohort, not about the split
                said.add(warning)
                listener.say(f"warning: {name}: {warning}")
        return ready

    first = next(iter([*there, *specs]))
    ready = {first: planned(first)}  # before anything is written
    manifest = _manifest(specs, ready[first])
    whole = _Whole(listener, root / SUMMARY_FILE, runs=len(specs), amount=len(ready[first].table) * spec.train.epochs)
    with _occupy(root, specs, overwrite=overwrite, resume=resume) as there:
        if not there:
            write_json(root / STUDY_FILE, manifest)
        for number, name in enumerate(dict.fromkeys([*there, *specs])):
            own = ready.pop(name) if name in ready else planned(name)
            execute(own, root / name, resume=resume, care=care, listener=whole)
            del own  # or two cohorts would be held
            if there and number == 0:  # with the settings that this run has taken, the study goes on
                write_json(root / STUDY_FILE, manifest)
        study = Study(root, manifest, [open_run(root / name) for name in specs])
        write_parquet(root / SUMMARY_FILE, study.summary)
    return open_study(root)


def open_study(path: Path | str) -> Study:
    """Open a finished study.

    Raises:
        RunError: If it is none, it or one of its runs is not finished, or these differ in more than the split.
    """
    root = Path(path)
    manifest = _read(root)
    if not (root / SUMMARY_FILE).exists():
        raise RunError(f"{root} is not finished (it has no {SUMMARY_FILE}): finish it with `vmapens train --resume`.")
    splits = _splits(manifest)
    runs = [open_run(root / name) for name in splits]
    for run, split in zip(runs, splits.values(), strict=True):
        if not _differ_in_split_only(run, runs[0], split):
            raise RunError(
                f"{run.paths.root} has another cohort, model, split or other settings than {STUDY_FILE} and "
                f"{runs[0].paths.root} say: --resume the training of the study, or train another."
            )
    return Study(root, manifest, runs)


def _differ_in_split_only(run: Run, other: Run, split: CohortSpec) -> bool:
    cohort = replace(other.spec.cohort, split_seed=split.split_seed, folds=split.folds, fold=split.fold)
    cohort = replace(cohort, path=run.spec.cohort.path)
    same = run.manifest["cohort"]["fingerprint"] == other.manifest["cohort"]["fingerprint"]
    return same and run.manifest["model"] == other.manifest["model"] and run.spec == replace(other.spec, cohort=cohort)


def _scores(run: Run) -> pl.DataFrame:
    cohort = run.spec.cohort
    which = {"run": pl.lit(run.paths.root.name), "fold": pl.lit(cohort.fold, pl.Int32)}
    scores = run.summary().with_columns(**which, split_seed=pl.lit(cohort.split_seed, pl.Int64))
    return scores.select("run", "fold", "split_seed", pl.exclude("run", "fold", "split_seed"))


def _manifest(specs: dict[str, RunSpec], ready: Plan) -> dict[str, Any]:
    """What study.json says."""
    cohorts = {name: spec.cohort for name, spec in specs.items()}
    return {
        "format_version": FORMAT_VERSION,
        "command": [word for word in sys.argv if word != "--resume"],
        "runs": [
            {"run": name, "split_seed": cohort.split_seed, "folds": cohort.folds, "fold": cohort.fold}
            for name, cohort in cohorts.items()
        ],
        "versions": versions(ready.device),
    }


def _read(root: Path) -> dict[str, Any]:
    """Read study.json.

    Raises:
        RunError: If there is no study, or it cannot be read.
    """
    path = root / STUDY_FILE
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (version := manifest["format_version"]) != FORMAT_VERSION:
            raise RunError(f"{path}: format version {version}, this vmapens reads {FORMAT_VERSION}.")
        if not _splits(manifest):
            raise ValueError("it has no runs")
    except FileNotFoundError:
        what = "a run, not a study" if RunPaths(root).manifest.exists() else "not a study"
        raise RunError(
            f"{root} is {what} (it has no {STUDY_FILE}); make one with `vmapens train` and --folds or --split-seeds."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError) as error:
        why = first_line(error)
        raise RunError(f"{path} cannot be read ({why}): it is damaged, or no study of vmapens.") from error
    return manifest


def _splits(manifest: dict[str, Any]) -> dict[str, CohortSpec]:
    """The splits of the runs that study.json lists, by their names, which no file can choose."""
    found = {}
    for entry in manifest["runs"]:
        split = from_table({"cohort": {key: value for key, value in entry.items() if key != "run"}}).cohort
        if entry["run"] != _name(split):
            raise ValueError(f"{_name(split)} is called {entry['run']}")
        found[_name(split)] = split
    return found


def _runs_that_stay(root: Path, specs: dict[str, RunSpec], *, overwrite: bool, resume: bool) -> list[str]:
    """The runs with which a study goes on; none where it begins.

    Raises:
        RunError: If it cannot go there.
    """
    if is_free(root):
        return []
    if not (root / STUDY_FILE).is_file():
        what = "a run" if RunPaths(root).manifest.exists() else "not a study"
        raise RunError(f"{root} exists already and is {what} (it has no {STUDY_FILE}): choose another --out.")
    manifest = _read(root)
    names, replaced = list(_splits(manifest)), manifest.get("state") == REPLACED
    if not (overwrite or resume or replaced):
        raise RunError(f"{root} exists already: choose another --out, or --overwrite it, or --resume its training.")
    for name in specs:
        require_no_run(root / name, overwrite=name in names or resume)
    if replaced or not resume:
        return []
    if gone := [name for name in names if name not in specs]:
        raise RunError(
            f"{root} cannot be resumed: it has {', '.join(names[:5])}, and {gone[0]} is not asked for. Give --folds as "
            "before, or --split-seeds as before or more of them."
        )
    return names


@contextmanager
def _occupy(root: Path, specs: dict[str, RunSpec], *, overwrite: bool, resume: bool) -> Iterator[list[str]]:
    """Hold the folder of a study for writing, as the only process, with what is to go removed.

    Yields:
        `_runs_that_stay`.
    """
    with make_and_hold(root):
        there = _runs_that_stay(root, specs, overwrite=overwrite, resume=resume)  # another process may have been here
        refuse_links(root)
        if not there and not is_free(root):
            _empty(root, specs)
        for path in root.iterdir():  # those in the runs may be of a process that adds attention there
            if is_leftover(path):
                path.unlink(missing_ok=True)
        yield there


def _empty(root: Path, specs: dict[str, RunSpec]) -> None:
    """Remove a study and nothing else; where this is cut short, what is left says that it was to go."""
    manifest = _read(root)
    try:
        (root / SUMMARY_FILE).unlink(missing_ok=True)
        write_json(root / STUDY_FILE, {**manifest, "state": REPLACED})  # it stays until the new one takes its place
        for paths in (RunPaths(root / name) for name in _splits(manifest)):
            if paths.manifest.exists() and paths.root.name in specs:
                with hold(paths.root):
                    write_json(paths.manifest, {"state": REPLACED})  # and its training removes it
            elif paths.manifest.exists():
                with occupy(paths.root, overwrite=True, resume=False):
                    pass  # emptied
                with suppress(OSError):  # files of the user's stay
                    paths.root.rmdir()
    except OSError as error:
        raise OutputError(f"{root} cannot be emptied ({error.strerror}): choose another --out.") from error


class _Whole:
    """Tells a listener of the runs of a study as of one work.

    Args:
        listener: Hears of all runs together.
        summary: Removed when a run is trained further, of which it does not tell.
        runs: How many there are.
        amount: Of one run.
    """

    def __init__(self, listener: Listener, summary: Path, *, runs: int, amount: int) -> None:
        self._listener, self._summary, self._behind, self._amount, self._begun = listener, summary, runs, amount, False

    def start(self, amount: int) -> None:
        """A run begins; so much of it is left."""
        self._behind -= 1
        if amount:
            self._summary.unlink(missing_ok=True)
        if self._begun:
            self._listener.advance(self._amount - amount)
        elif amount:  # runs before this one were finished
            self._listener.start(amount + self._behind * self._amount)
            self._begun = True

    def advance(self, amount: int) -> None:
        """So much more is done."""
        self._listener.advance(amount)

    def say(self, line: str) -> None:
        """A line of interest."""
        self._listener.say(line)
