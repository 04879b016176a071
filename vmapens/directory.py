"""The run directory: where each file stands, how it is written, and by one process at a time."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vmapens.atomic import atomic_path, is_leftover, remove_leftovers, write_text
from vmapens.checksum import LIST_FILE, checksums, write_list
from vmapens.errors import OutputError, RunError, first_line
from vmapens.lock import LOCK_FILE, hold
from vmapens.spec import MOST_NUMBERS

FORMAT_VERSION = 1
BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.safetensors"
HISTORY, DONE = "history.parquet", "done.json"
"""Files of a block; done.json is written last."""
STUDY_FILE = "study.json"
"""Where this stands, the folder is no run but a study: `vmapens.study`."""
REPLACED = "being replaced"
"""State of what an `--overwrite` has not removed yet."""


def block_name(start: int, stop: int) -> str:
    """Folder name of variants start..stop-1; the last number is inclusive.

    >>> block_name(0, 256)
    '000000-000255'
    """
    return f"{start:06d}-{stop - 1:06d}"


def snapshot_name(epoch: int) -> str:
    """File name of the weights after an epoch.

    >>> snapshot_name(5)
    'epoch-0005.safetensors'
    """
    return f"epoch-{epoch:04d}.safetensors"


@dataclass(frozen=True)
class Finished:
    """What done.json says of a block whose training has ended.

    Args:
        epochs: Asked for.
        status: `ok` or `failed`, of each variant.
        kept_epoch: Of each variant.
        trained_epochs: Of each variant: fewer than `epochs` if it stopped early or failed.
        sha256: Checksum of each file.
    """

    epochs: int
    status: tuple[str, ...]
    kept_epoch: tuple[int, ...]
    trained_epochs: tuple[int, ...]
    sha256: dict[str, str]

    @property
    def weights(self) -> str:
        """Checksum of the kept weights, which attention files repeat."""
        return self.sha256[BEST]


@dataclass(frozen=True)
class RunPaths:
    """The names of a run directory's files."""

    root: Path

    @property
    def manifest(self) -> Path:
        """run.json: resolved spec, versions, cohort fingerprint, command, state."""
        return self.root / "run.json"

    @property
    def variants(self) -> Path:
        """The table of variants, and for each its status and kept epoch."""
        return self.root / "variants.parquet"

    @property
    def splits(self) -> Path:
        """Columns sample, split."""
        return self.root / "splits.parquet"

    @property
    def features(self) -> Path:
        """Columns index, feature, unit, group, mean, std (of the training split)."""
        return self.root / "features.parquet"

    @property
    def metrics(self) -> Path:
        """Columns variant, split, metric, value, of the kept epoch."""
        return self.root / "metrics.parquet"

    @property
    def predictions(self) -> Path:
        """Columns variant, sample, split, y, probability."""
        return self.root / "predictions.parquet"

    @property
    def attention_index(self) -> Path:
        """Columns sample, part: which part of each block's folder holds which sample."""
        return self.root / "attention" / "index.parquet"

    @property
    def inputs(self) -> Path:
        """What the saved samples looked like."""
        return self.root / "attention" / "inputs.arrow"

    def block(self, start: int, stop: int) -> Path:
        """Folder of one block."""
        return self.root / "blocks" / block_name(start, stop)

    def attention(self, start: int, stop: int, part: int) -> Path:
        """One attention file."""
        return self.root / "attention" / f"block={block_name(start, stop)}" / f"part-{part}.arrow"

    def files(self) -> list[str]:
        """Names of all files that vmapens has written, relative to the root."""
        folders = (self.block(0, 1).parent, self.inputs.parent)
        inside = (path for folder in folders for path in folder.rglob("*") if not is_leftover(path))
        every = (*(self.root / name for name in self.single_files()), *inside)
        return [str(path.relative_to(self.root)) for path in every if path.is_file()]

    def single_files(self) -> list[str]:
        """Names of those that stand in the root itself, but for the list of checksums."""
        tables = (self.variants, self.splits, self.features, self.metrics, self.predictions)
        return [path.name for path in (self.manifest, *tables)]

    def finished(self, block: tuple[int, int]) -> Finished:
        """What is known of a block whose training has ended.

        Raises:
            RunError: If it has not, or done.json cannot be read.
        """
        path = self.block(*block) / DONE
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            lists: dict[str, Any] = {
                name: tuple(values.pop(name)) for name in ("status", "kept_epoch", "trained_epochs")
            }
            if not isinstance(values["sha256"][BEST], str):
                raise ValueError("it has no checksums")
            for name, kind in (("status", str), ("kept_epoch", int), ("trained_epochs", int)):
                if len(lists[name]) != block[1] - block[0] or not all(type(entry) is kind for entry in lists[name]):
                    raise ValueError(f"its {name} is not that of {block[1] - block[0]} variants")
            return Finished(**lists, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(
                f"{path} cannot be read ({first_line(error)}): remove {path.parent}, and --resume trains variants "
                f"{block[0]} to {block[1] - 1} again; all others stay."
            ) from error


@contextmanager
def occupy(root: Path, *, overwrite: bool, resume: bool) -> Iterator[RunPaths]:
    """Hold a run directory for writing, as the only process: a new one, one to be replaced, or one to go on with.

    Args:
        root: Made if it is missing.
        overwrite: Remove a run that is there.
        resume: Leave a run that is there as it is, but for temporary files of a process that was killed.

    Raises:
        RunError: If another process holds it, something is there already and neither is set, it is no run, or what is
            to go on holds links.
        OutputError: If it cannot be written.
    """
    paths = RunPaths(root)

    def check() -> bool:
        goes_on = resume and paths.manifest.exists() and not _is_replaced(paths)
        if not goes_on:
            require_no_run(root, overwrite=overwrite)
        return goes_on

    check()
    with make_and_hold(root):
        if check():  # again: another process may have been here
            refuse_links(root)
        else:
            _empty(paths)
        remove_leftovers(root)
        yield paths


@contextmanager
def make_and_hold(root: Path) -> Iterator[None]:
    """Make a folder if it is missing, and hold it for writing.

    Raises:
        RunError: If another process holds it.
        OutputError: If it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root} cannot be written ({error.strerror}): choose another --out.") from error
    with hold(root):
        yield


def refuse_links(root: Path) -> None:
    """See that nothing below a folder is a link.

    Raises:
        RunError: With the links.
    """
    links = [str(path) for path in sorted(root.rglob("*")) if path.is_symlink()]
    if links:
        raise RunError(
            f"{root} holds links ({', '.join(links[:5])}), through which files elsewhere would be written: put the "
            "files themselves in their place."
        )


def _empty(paths: RunPaths) -> None:
    """Remove a run and nothing else; where this is cut short, what is left says that it was to go."""
    try:
        if paths.manifest.exists():
            write_json(paths.manifest, {"state": REPLACED})
        for folder in ("blocks", "attention", "analysis", "figures"):
            if (paths.root / folder).exists():
                shutil.rmtree(paths.root / folder)
        manifest, *tables = paths.single_files()
        for name in (*tables, "report.html", LIST_FILE, manifest):
            (paths.root / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{paths.root} cannot be emptied ({error.strerror}): choose another --out.") from error


def _is_replaced(paths: RunPaths) -> bool:
    """Whether an `--overwrite` was cut short here."""
    try:
        return bool(json.loads(paths.manifest.read_text(encoding="utf-8")) == {"state": REPLACED})
    except (OSError, ValueError, RecursionError):
        return False


def is_free(root: Path) -> bool:
    """Whether nothing stands there, but for what a process leaves that is killed before there is a run."""
    if not root.exists():
        return True
    return root.is_dir() and all(path.name == LOCK_FILE or is_leftover(path) for path in root.iterdir())


def runs_of_study(root: Path) -> str:
    """Names of the runs of a study that is there, the first five; "" if it is none."""
    if not (root / STUDY_FILE).is_file():
        return ""
    found = [path.parent.name for path in root.glob("*/run.json")]
    names = sorted(found, key=lambda name: (len(name), name))  # fold-2 before fold-10
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none yet"


def require_no_run(root: Path, *, overwrite: bool) -> None:
    """Say before any work that a run cannot go here.

    Raises:
        RunError: If something is there already and `overwrite` is not set, or it is no run.
    """
    if is_free(root):
        return
    paths = RunPaths(root)
    if not paths.manifest.exists():
        if runs_of_study(root):
            raise RunError(
                f"{root} exists already and is a study (it has no run.json): choose another --out, or give --folds or "
                "--split-seeds as it was made with."
            )
        raise RunError(f"{root} exists already and is not a run (it has no run.json): choose another --out.")
    if not overwrite and not _is_replaced(paths):
        raise RunError(f"{root} exists already: choose another --out, or --overwrite it, or --resume its training.")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, _json(value))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file atomically."""
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary)


def read_manifest(paths: RunPaths) -> dict[str, Any]:
    """Read run.json.

    Raises:
        RunError: If there is no run, or it is of another format version.
    """
    try:
        manifest: dict[str, Any] = json.loads(paths.manifest.read_text(encoding="utf-8"))
        if (version := manifest["format_version"]) != FORMAT_VERSION:
            raise RunError(f"{paths.manifest}: format version {version}, this vmapens reads {FORMAT_VERSION}.")
        if problem := _problem(manifest):
            raise ValueError(problem)
    except FileNotFoundError:
        if names := runs_of_study(paths.root):
            raise RunError(f"{paths.root} is a study of several runs, not a run: give one of them ({names}).") from None
        raise RunError(f"{paths.root} is not a run: it has no run.json; make one with `vmapens train`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{paths.manifest} cannot be read ({error}): it is damaged, or no run of vmapens.") from error
    return manifest


def _problem(manifest: dict[str, Any]) -> str:
    """What is wrong with the types and values of a manifest that was read; "" if nothing is."""
    task, model, blocks = manifest["task"], manifest["model"], manifest["blocks"]
    texts = [manifest["state"], manifest["cohort"]["fingerprint"], model["made_from"], model["class"]]
    texts += [task["name"], task["note"], *task["classes"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest["spec"], dict):
        return "state, fingerprint, task and class must be texts, and spec a table"
    if not isinstance(task["classes"], list) or task.keys() != {"name", "kind", "classes", "note"}:
        return f"task is {task}, wanted name, kind, classes and note"
    if task["kind"] not in ("binary", "multiclass") or len(task["classes"]) < 2:
        return f"task `{task['name']}` is {task['kind']} with {len(task['classes'])} classes"
    sizes = [model["features"], model["steps"], model["outputs"]]
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        return f"features, steps and outputs are {sizes}, wanted whole numbers above 0"
    samples = manifest["cohort"]["samples"]
    if samples.keys() != {"train", "valid", "test"} or not all(type(count) is int for count in samples.values()):
        return f"samples are {samples}, wanted the numbers of train, valid and test"
    ends = [0, *(number for block in blocks for number in block)]
    if len(ends) < 3 or not all(type(end) is int and end <= MOST_NUMBERS for end in ends):
        return "blocks are no ranges of variants"
    if any(len(block) != 2 or block[0] >= block[1] for block in blocks) or ends[:-1:2] != ends[1::2]:
        return "blocks are no ranges of variants, one behind the other"
    return ""


def finish_run(paths: RunPaths, manifest: dict[str, Any], *, unchanged: dict[str, str] | None = None) -> None:
    """Write the list of checksums, and, last, that the run is done.

    Args:
        paths: Of a run all files of which are written.
        manifest: What run.json is to say.
        unchanged: Checksums of files that need not be read for it.
    """
    known = dict(unchanged or {})
    for start, stop in manifest["blocks"]:
        folder = paths.block(start, stop).relative_to(paths.root)
        known |= {str(folder / name): checksum for name, checksum in paths.finished((start, stop)).sha256.items()}
    text = _json({**manifest, "state": "done"})
    known[paths.manifest.name] = hashlib.sha256(text.encode()).hexdigest()
    missing = [name for name in paths.files() if name not in known]
    write_list(paths.root, known | checksums(paths.root, missing))
    write_text(paths.manifest, text)
