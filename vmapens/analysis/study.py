"""`vmapens analyze`: from a trained run, and those it is compared with, to every table of `analysis/`.

Stay by stay for all variants, in bounded memory: what is kept of a stay is rows of tables, never its arrays.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from vmapens import atomic
from vmapens.analysis.agreement import Overlap, Spearman
from vmapens.analysis.causes import (
    agreement_of,
    decomposition_rows,
    epochs_table,
    good_table,
    rashomon_table,
    sets_by_loss,
)
from vmapens.analysis.consistency import consistency_table
from vmapens.analysis.extremal_mask import extremal_masks
from vmapens.analysis.interval import RESAMPLES
from vmapens.analysis.models import (
    chosen_table,
    controls_table,
    losses_of,
    reliability_table,
    scores_table,
    weights_table,
)
from vmapens.analysis.pairing import in_pairs
from vmapens.analysis.ranking import rank_cells
from vmapens.analysis.settings import Settings
from vmapens.analysis.stay import StayStudy
from vmapens.analysis.subject import Subject, chosen_of, open_all
from vmapens.analysis.tables import TABLES, table
from vmapens.analysis.truth import planted_truth
from vmapens.analysis.worth import attributions_table, faithfulness_table, permutation_table, planted_table
from vmapens.directory import occupy, write_parquet
from vmapens.ensemble.seeds import Factory
from vmapens.errors import RunError, SpecError, first_line
from vmapens.listener import Listener, Silence
from vmapens.manifest import versions
from vmapens.nn.threads import spread_over
from vmapens.run import Run, open_run
from vmapens.spec import Device, RunSpec

SETTINGS_FILE = "analysis.json"
_NEEDED = {"run", "variants", "task", "k", "notes", "settings", "weights"}


def analyze(
    run: str | Path,
    *others: str | Path,
    settings: Settings | None = None,
    cohort: str | Path | None = None,
    model: Factory | str | None = None,
    device: Device | None = None,
    listener: Listener | None = None,
) -> dict[str, pl.DataFrame]:
    """Analyse the explanations of a run, and write the tables into its folder `analysis`.

    Args:
        run: A finished run.
        others: Finished runs on the same cohort, task and split: controls (uniform, frozen, other forms of attention)
            whose scores are compared with the first run's, and crossed designs, which say why variants differ.
        settings: Which stays, and how; the defaults if None.
        cohort: Where the cohort is now, if not where it was.
        model: What the run was trained with, if not a built-in model: the name of a class, or a factory.
        device: Where to compute, if not where the runs were trained.
        listener: Hears of progress.

    Returns:
        Polars frames by the names of `vmapens.analysis.tables.TABLES`, which says what their columns mean.

    Raises:
        VmapensError: If a run cannot be analysed, runs cannot be compared, or a setting is wrong; nothing is written.
    """
    paths = [Path(run), *map(Path, others)]
    subjects = open_all(paths, None if cohort is None else Path(cohort), model, device)
    study = Study(subjects, settings or Settings())
    with occupy(paths[0], overwrite=False, resume=True) as held, spread_over():
        tables = study.tables(listener or Silence())
        folder = held.root / "analysis"
        (folder / SETTINGS_FILE).unlink(missing_ok=True)  # what is there meanwhile is of no one analysis
        for name, frame in tables.items():
            write_parquet(folder / f"{name}.parquet", frame)
        atomic.write_text(folder / SETTINGS_FILE, json.dumps(study.description(), indent=2, ensure_ascii=False) + "\n")
    return tables


def read_analysis(run: Path) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Read the tables that `analyze` wrote, and its settings.

    Raises:
        RunError: If the run has no whole analysis.
    """
    folder = run / "analysis"
    names = [SETTINGS_FILE, *(f"{name}.parquet" for name in TABLES)]
    if missing := [name for name in names if not (folder / name).exists()]:
        open_run(run)  # which says what it is, if no finished run
        raise RunError(f"{run} has no whole analysis ({missing[0]} is missing): `vmapens analyze {run}`.")
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        wrong = [name for name, frame in tables.items() if frame.schema != TABLES[name]]
        if wrong or not isinstance(settings, dict) or not settings.keys() >= _NEEDED:
            raise ValueError(f"{', '.join(wrong) or SETTINGS_FILE} is not what vmapens writes")
        if settings["weights"] != _weights_of(open_run(run)):
            raise ValueError("the run was trained further since")
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        why = first_line(error)
        raise RunError(f"{folder} cannot be read ({why}): `vmapens analyze {run}` writes it again.") from error
    return tables, settings


def _weights_of(run: Run) -> list[str]:
    """Checksums of the kept weights, by which an analysis knows its run."""
    return [run.paths.finished(block).weights for block in run.blocks]


class Study:
    """One call of `analyze`.

    Args:
        subjects: The run, then those it is compared with.
        settings: What is asked.
    """

    def __init__(self, subjects: list[Subject], settings: Settings) -> None:
        self._subjects, self._settings = subjects, settings
        self._first = subject = subjects[0]
        rows = subject.rows(settings.samples).numpy()
        self._compared = in_pairs(subject.cohort.patient[rows], seed=settings.seed)
        self._pairs = [(int(rows[stay.place]), int(rows[stay.partner])) for stay in self._compared]
        self._rows = [row for row, _ in self._pairs]
        valid, y, probability = subject.predictions("valid")
        self._losses, self._valid = losses_of(y, probability), valid
        self._sets = sets_by_loss(self._losses.mean(axis=1))
        path = Path(subject.cohort.spec.path)
        self._truth = planted_truth(path, subject.cohort) if path.is_dir() else None
        self._stays = StayStudy(subject, settings, [chosen for _, chosen in self._sets], self._truth)
        y_train = subject.cohort.y[subject.cohort.rows("train")].double()
        self._is_binary = subject.cohort.task.kind == "binary"
        self._prevalence = float(y_train.mean()) if self._is_binary else None
        self._threshold = (settings.threshold or self._prevalence) if self._is_binary else None
        if settings.threshold is not None and not self._is_binary:
            raise SpecError(f"--threshold is for a binary task; {subject.cohort.task.name} decides for a class.")

    def tables(self, listener: Listener) -> dict[str, pl.DataFrame]:
        """Everything, by name."""
        subject, settings, stays = self._first, self._settings, self._stays
        seed, k = settings.seed, stays.map_k
        listener.start(len(self._rows))
        for _ in stays.look(self._pairs):
            listener.advance(1)
        rows, found = sorted(self._rows), stays.collected
        pairs = {measure: total / len(found.compared) for measure, total in found.pairs.items()}
        loss = self._losses.mean(axis=1)
        best = int(np.argmin(loss))
        chosen = chosen_table(subject, loss, _mean_with_others(pairs.get("spearman")))
        places = np.searchsorted(subject.variants, chosen["variant"].unique().to_numpy()).tolist()
        stays.add_variants(rows, places)
        samples = [subject.cohort.samples[row] for row in self._rows]
        patient = dict(zip(samples, subject.cohort.patient[self._rows].tolist(), strict=True))
        company = dict(zip(samples, (stay.company for stay in self._compared), strict=True))
        tables = {name: table(name, found.rows[name]) for name in ("agreement", "measured", "rank_spread", "held")}
        tables |= {
            "drop": table("drop", pl.concat(found.drops).to_dict() if found.drops else []),
            "samples": self._samples(rows),
            "scores": scores_table(subject),
            "rank_histogram": table("rank_histogram", stays.rank_histogram()),
            "maps": table("maps", found.rows["maps"]),
            "chosen": chosen,
            "weights": weights_table(stays.stack, best),
            "controls": controls_table(self._subjects, seed=seed),
            "faithfulness": faithfulness_table(found.changes, subject.cohort, seed=seed),
            "permutation": permutation_table(found.total_variation, subject.cohort, seed=seed),
            "planted": planted_table(found.planted, subject.variants),
            "decomposition": table("decomposition", self._decomposition(pairs)),
            "good": good_table(subject, self._losses, subject.cohort.patient[self._valid], seed=seed),
            "reliability": reliability_table(subject),
            "learned_mask": table("learned_mask", self._learned_masks(loss)),
            "rashomon": rashomon_table(
                self._sets,
                found.of_sets,
                pairs,
                subject.predictions("test")[2],
                best,
                subject.cohort.patient[found.compared],
                k=k,
                threshold=self._threshold,
                seed=seed,
            ),
        }
        tables["consistency"] = consistency_table(
            tables["agreement"],
            patient,
            company,
            found.without_each,
            variants_are_exchangeable=not subject.is_crossed,
            seed=seed,
        )
        tables["epochs"] = epochs_table(subject, tables["agreement"], self._rows, stays.grid, k=k, seed=seed)
        tables["attributions"] = attributions_table(
            tables["consistency"],
            found.changes,
            tables["planted"],
            subject.cohort,
            shares=settings.top_k,
            variants_are_exchangeable=not subject.is_crossed,
            seed=seed,
        )
        return {name: tables[name] for name in TABLES}

    def _samples(self, rows: list[int]) -> pl.DataFrame:
        """The table `samples`."""
        cohort = self._first.cohort
        predicted = self._first.run.predictions.filter(pl.col("variant").is_in(self._first.variants.tolist()))
        entries = []
        for row in rows:
            y = int(cohort.y[row])
            own = predicted.filter(sample=cohort.samples[row])["probability"].to_numpy()
            of_class = own if own.ndim == 1 else own[:, y]
            entries.append(
                {"sample": cohort.samples[row], "split": str(cohort.split[row]), "y": y}
                | {"outcome": cohort.task.classes[y], "patient": int(cohort.patient[row])}
                | {"probability_mean": of_class.mean(dtype=np.float64) if len(of_class) else None}
                | {"probability_sd": of_class.std(dtype=np.float64) if len(of_class) else None}
                | {"measured": float(cohort.observed[row].double().mean())}
            )
        return table("samples", entries)

    def _decomposition(self, pairs: dict[str, Float64[np.ndarray, "V V"]]) -> list[dict[str, Any]]:
        """Of every run with a crossed design, on the same stays."""
        k, seed = self._stays.map_k, self._settings.seed
        rows = decomposition_rows(self._first, pairs, k=k) if self._first.is_crossed else []
        for subject in self._subjects[1:]:
            if not subject.is_crossed or len(subject.axes) != len(self._first.axes):
                continue
            stack, totals, stays = subject.stack(), dict[str, Float64[np.ndarray, "V V"]](), 0
            for row in self._rows:
                found = agreement_of(subject, stack, row, self._stays.grid, k=k, seed=seed)
                stays += bool(found)
                for measure, own in found.items():
                    totals[measure] = totals.get(measure, 0) + own.pairs().astype(np.float64)
            rows += decomposition_rows(subject, {name: total / stays for name, total in totals.items()}, k=k)
        return rows

    def _learned_masks(self, loss: Float64[np.ndarray, "V"]) -> list[dict[str, Any]]:
        """How far the masks learned for the best variants agree, and how far their attention does."""
        if "learned_mask" in self._settings.without:
            return []
        subject, settings = self._first, self._settings
        places = np.sort(np.argsort(loss, kind="stable")[: settings.mask_variants])
        rows = sorted(self._rows[: settings.mask_stays])
        stack = chosen_of(self._stays.stack, places)
        x = subject.cohort.x[rows].to(subject.device)
        masks = extremal_masks(subject.model, subject.cohort.task.kind, stack, x, seed=settings.seed)
        entries = []
        for place, row in enumerate(rows):
            attention = self._stays.maps_of(stack, row, ["attention"])["attention"]
            for name, maps, grid in (
                ("learned_mask", masks[:, place], self._stays.full),
                ("attention", attention, self._stays.grid),
            ):
                question = self._stays.question(name, row)
                weights = maps[np.isfinite(maps).all(axis=(1, 2))].reshape(-1, grid.cells)  # no mask was learned
                ks = question.counts(grid.cells)
                ranking = rank_cells(weights, most=ks[-1], seed=question.seed)
                good = ~ranking.constant
                if good.sum() < 2:
                    continue
                step = np.repeat(np.arange(grid.steps), grid.features)
                own = ranking.variants(good)
                measures = [*(Overlap(own.top[:, :k], step) for k in ks), Spearman(own.rank, step)]
                for k, measure in zip([*ks, None], measures, strict=True):
                    named = {"sample": subject.cohort.samples[row], "attribution": name, "k": k}
                    named |= {"measure": "spearman" if k is None else "overlap", "variants": int(good.sum())}
                    numbers = {"value": measure.mean(), "chance": measure.chance}
                    entries.append({**named, **numbers, "permuted": measure.permuted})
        return entries

    def description(self) -> dict[str, Any]:
        """What analysis.json says: settings, versions, command, and what a reader of the tables must know."""
        subject, stays, cohort = self._first, self._stays, self._first.cohort
        manifest, spec = subject.run.manifest, subject.run.spec
        features = cohort.features.select("feature", "unit", "group").to_dicts()
        return {
            "run": subject.name,
            "variants": len(subject.variants),
            "failed": len(subject.run.variants) - len(subject.variants),
            "task": cohort.task.name,
            "kind": cohort.task.kind,
            "classes": list(cohort.task.classes),
            "form": subject.form,
            "axes": list(subject.axes),
            "steps": int(cohort.x.shape[1]),
            "features": features,
            "minutes_per_step": cohort.info.minutes_per_step,
            "k": stays.ks,
            "k_shares": [k / stays.grid.cells for k in stays.ks],
            "map_k": stays.map_k,
            "tolerance": self._settings.tolerance,
            "window_steps": stays.grid.window,
            "seed": self._settings.seed,
            "samples": self._settings.samples,
            "stays": len(self._rows),
            "resamples": RESAMPLES,
            "versions": versions(subject.device),
            "command": sys.argv,
            "train_command": manifest["command"],
            "select_on": spec.train.select_on,
            "cohort_source": cohort.info.source,
            "licence": cohort.info.licence,
            "design": spec.variants.design,
            "prevalence": self._prevalence,
            "threshold": self._threshold,
            "bayes_auroc": None if self._truth is None else self._truth.bayes_auroc,
            "weights": _weights_of(subject.run),
            "settings": dataclasses.asdict(self._settings),
            "runs": [other.name for other in self._subjects],
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        """What was left out, and what to keep in mind, a sentence each."""
        subject, settings = self._first, self._settings
        notes = [f"Left out (--without): {what}." for what in settings.without]
        failed = len(subject.run.variants) - len(subject.variants)
        if failed:
            notes.append(f"{failed} variants diverged in training and are left out.")
        if subject.run.spec.train.select_on == "test":
            notes.append("The kept epochs were chosen on the test split: its scores are too good.")
        if subject.is_crossed:
            notes.append(
                "The design is crossed: some pairs of variants share a seed and agree for that reason; the "
                "decomposition tells these apart, and no interval over variants is given."
            )
        lost = len(self._rows) - len(self._stays.collected.compared)
        if lost:
            notes.append(
                f"On {lost} of {len(self._rows)} stays the attention of some variant is the same everywhere and has no "
                "ranking: drop, ranks and pairs are of the other stays."
            )
        for other in self._subjects[1:]:
            if different := _other_settings(subject.run.spec, other.run.spec):
                notes.append(f"{other.name} was trained with another {', '.join(different)}, not only other attention.")
        if len({int(subject.cohort.patient[row]) for row in self._rows}) < 2:
            notes.append("All stays are of one patient: there is no interval over stays.")
        splits = sorted({str(subject.cohort.split[row]) for row in self._rows})
        if splits != ["test"]:
            notes.append(f"The stays are of the splits {', '.join(splits)}: what was trained on them may look surer.")
        return notes


def _other_settings(first: RunSpec, other: RunSpec) -> list[str]:
    """Settings, but for the form of attention, in which two runs differ and that scores depend on."""
    free = {"device", "precision", "snapshots"}
    train, against = dataclasses.asdict(first.train), dataclasses.asdict(other.train)
    found = [name for name in train if name not in free and train[name] != against[name]]
    return (["hidden"] if first.model.hidden != other.model.hidden else []) + found


def _mean_with_others(pairs: Float64[np.ndarray, "V V"] | None) -> Float64[np.ndarray, "V"] | None:
    return None if pairs is None else (pairs.sum(axis=1) - np.diag(pairs)) / (len(pairs) - 1)
