"""Tensors as notebooks keep them: `x [N, T, F]` with `y [N]`, from `.pt` or `.npz` files.

Files are read without running code from them: `torch.load(weights_only=True)`, `numpy.load(allow_pickle=False)`.
"""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vmapens.cohort.schema import MINUTES, CohortInfo, Feature, Task
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError, first_line
from vmapens.machine import free_memory

MAX_CLASSES = 1000
"""More are taken for something that is no label."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
}
SPLITS |= {"test": "test", "testing": "test"}

_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")
_ROLE_WORD = re.compile(r"(?<![a-z])(x|data|inputs?|features|y|labels?|targets?|outcomes?|ids?|samples?)(?![a-z])")
_ROLES = {"x": "x", "data": "x", "input": "x", "inputs": "x", "y": "y"}
_ROLES |= dict.fromkeys(("label", "labels", "target", "targets", "outcome", "outcomes"), "y")
_ROLES |= dict.fromkeys(("id", "ids", "sample", "samples"), "ids")
_NAMES_OF_FEATURES = ("feature_names", "features", "columns")
_CELL_BYTES = 12  # of x while it is written: as it is, as float32, and by feature
_RESERVED = ("sample", "step", "group", "split")


@dataclass(frozen=True)
class _Array:
    """One array of a file; `name` is what the file calls it, or the file's own stem; `where` is for messages."""

    name: str
    where: str
    split: str | None
    values: NDArray[np.generic]


@dataclass(frozen=True)
class _Part:
    """The arrays of one split (or of all samples), checked and of one length."""

    split: str | None
    x: Float32[np.ndarray, "N T F"]
    y: Int64[np.ndarray, "N"]
    ids: NDArray[np.generic] | None
    splits: tuple[str, ...] | None
    where: str


@dataclass
class _Found:
    """What the files hold: arrays, and lists of feature names."""

    arrays: list[_Array] = field(default_factory=list)
    names: list[tuple[str, ...]] = field(default_factory=list)


def read_tensors(paths: Sequence[Path], *, task: str = "outcome", minutes_per_step: float | int = 60.0) -> Imported:
    """Read `x [N, T, F]` and `y [N]`.

    Files: two `.pt` (one each), or one `.pt` with a dict, tuple or list of them, or `.npz`; a folder stands for the
    `.pt` and `.npz` files in it. The array with three axes is x, the one with one axis is y; where several could be
    meant, names decide (`x`, `y`, `labels`, `ids`, `split`, `feature_names`, ...). Names of files or arrays with a word
    `train`, `val` (`valid`) or `test` make several pairs, and their split becomes the column `split`.

    Args:
        paths: `.pt`, `.pth` or `.npz` files, or folders of them.
        task: Name of the task. Two classes make it binary, more multiclass; C is the largest label + 1.
        minutes_per_step: Minutes between two steps, > 0.

    Returns:
        The cohort, not written yet. NaN in x is "not measured". Features without names are `feature_000`, ...;
        samples without ids are 0, 1, ... in the order train, valid, test.

    Raises:
        CohortError: If a file cannot be read without running code from it; x or y is not found or of another shape or
            type; x holds infinities (as float32); a label is no integer in 0..C-1; ids are not unique.
    """
    if task in _RESERVED or not task:
        raise CohortError(f"the task cannot be called `{task}`: the cohort has a column of that name; choose another.")
    if not MINUTES[0] <= minutes_per_step <= MINUTES[1]:
        raise CohortError(f"minutes per step: got {minutes_per_step}, wanted {MINUTES[0]:g} to {MINUTES[1]:g}.")
    found = _Found()
    for path in _files(paths):
        _read(path, found)
    parts = [_part(split, arrays) for split, arrays in _by_split(found.arrays)]
    steps, width = _same_shape(parts)
    names = _feature_names(found.names, width, parts)
    for part in parts:
        _refuse_infinities(part, names)
    y = np.concatenate([part.y for part in parts])
    ids = _ids(parts)
    info = CohortInfo(
        steps=steps,
        minutes_per_step=float(minutes_per_step),
        features=tuple(Feature(name) for name in names),
        tasks=(_task(task, y),),
        source=f"tensors of {', '.join(sorted({part.where for part in parts}))}",
        read={"samples": len(y), "values": sum(part.x.size for part in parts)},
        licence="unknown to vmapens: that of the data the tensors were made from",
        notes=("NaN in the tensors is a cell that was not measured; nothing was changed.",),
    )
    labels = pl.DataFrame({"sample": ids, task: pl.Series(y, dtype=pl.Int32)})
    if (splits := _splits(parts)) is not None:
        labels = labels.with_columns(split=pl.Series(splits, dtype=pl.String))
    return Imported(info, _series(parts, ids, names), labels)


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in {".pt", ".pth", ".npz"}) if path.is_dir() else [path]
        files += inside
    for path in files:
        if not path.is_file():
            raise CohortError(f"{path} does not exist: name .pt or .npz files, or a folder of them.")
        if path.suffix not in {".pt", ".pth", ".npz"}:
            raise CohortError(f"{path}: got `{path.suffix}`, wanted .pt or .npz; save x and y with torch.save.")
    if not files:
        where = ", ".join(map(str, paths)) or "no path"
        raise CohortError(f"no tensors in {where}: wanted .pt or .npz files; name them one by one.")
    return files


def _read(path: Path, found: _Found) -> None:
    """Add what one file holds."""
    try:
        unpacked = _unpacked_bytes(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn of old files that they may not read, then read or fail
            content = _load(path) if unpacked <= free_memory() else None
    except Exception as error:  # a broken or hostile pickle raises whatever it makes the reader stumble on
        reason = first_line(error)[:120]
        raise CohortError(
            f"{path} is cut short or holds more than plain arrays, and code in a file is never run ({reason}); "
            "save tensors alone: torch.save({'x': x, 'y': y}, path)."
        ) from error
    named = _named(content, path.stem)
    # A view of one number may have any size.
    cells = sum(values.numel() for _, values in named if isinstance(values, Tensor))
    needed, free = max(unpacked, _CELL_BYTES * cells), free_memory()
    if needed > free:
        raise CohortError(
            f"{path} unpacks to {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free; is it the right file? "
            "Save fewer samples, or use a machine with more memory."
        )
    for name, values in named:
        try:
            array = _as_array(values)
        except Exception as error:  # what torch and NumPy raise for types that are no numbers or texts
            raise CohortError(
                f"{path}: `{name}` is no plain array ({first_line(error)[:120]}); save it as dense floats or integers."
            ) from error
        if array is None:
            continue
        if array.ndim == 1 and array.dtype.kind == "U" and name.lower() in _NAMES_OF_FEATURES:
            found.names.append(tuple(array.tolist()))
        else:
            split = _split_of(name) or _split_of(path.stem)
            found.arrays.append(_Array(name, path.name + (f"[{name}]" if name != path.stem else ""), split, array))


def _unpacked_bytes(path: Path) -> int:
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _load(path: Path) -> object:
    if path.suffix != ".npz":
        return torch.load(path, map_location="cpu", weights_only=True)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _named(content: object, stem: str) -> list[tuple[str, object]]:
    if isinstance(content, Mapping):
        return [(str(name), values) for name, values in content.items()]
    if isinstance(content, list | tuple):
        return [(f"{stem}.{place}", values) for place, values in enumerate(content)]
    return [(stem, content)]


def _as_array(values: object) -> NDArray[np.generic] | None:
    """What can be an array of numbers or texts; None for all else."""
    if isinstance(values, Tensor):
        return _as_numpy(values)
    if isinstance(values, list | tuple) and values and all(isinstance(value, str) for value in values):
        values = np.array(values)
    if not isinstance(values, np.ndarray):
        return None
    if values.dtype.kind == "U":
        "".join(values.reshape(-1).tolist()).encode()  # ValueError: holds what is no text
    return values


def _as_numpy(values: Tensor) -> NDArray[np.generic]:
    if values.layout is not torch.strided:
        raise TypeError("it is sparse, and its indices may be anything")
    values = values.detach().resolve_conj().resolve_neg()
    array: NDArray[np.generic] = (values.float() if values.dtype in {torch.bfloat16, torch.float16} else values).numpy()
    return array


def _split_of(name: str) -> str | None:
    match = _SPLIT_WORD.search(name.lower())
    return SPLITS[match[1]] if match else None


def _role_of(name: str) -> str | None:
    if name.lower() == "split" or name.lower() == "splits":
        return "split"
    match = _ROLE_WORD.search(name.lower())
    return _ROLES.get(match[1]) if match else None


def _by_split(arrays: Sequence[_Array]) -> Iterator[tuple[str | None, list[_Array]]]:
    """The arrays of each split, in the order train, valid, test; all of them at once if no name tells a split."""
    splits = {array.split for array in arrays}
    if None in splits and len(splits) > 1:
        lost = ", ".join(array.where for array in arrays if array.split is None)
        raise CohortError(f"{lost}: no word train, valid or test in its name, but others have one; name all alike.")
    for split in ("train", "valid", "test", None):
        if chosen := [array for array in arrays if array.split == split]:
            yield split, chosen
    if not arrays:
        raise CohortError("the files hold no arrays: wanted x [N, T, F] and y [N].")


def _part(split: str | None, arrays: Sequence[_Array]) -> _Part:
    """Find x, y, ids and split among the arrays of one pair, and check them against each other."""
    x = _choose("x", arrays, [array for array in arrays if array.values.ndim == 3])
    flat = [array for array in arrays if array.values.ndim == 1]
    special = {role: [array for array in flat if _role_of(array.name) == role] for role in ("ids", "split")}
    taken = [array for chosen in special.values() for array in chosen]
    y = _choose("y", arrays, [array for array in flat if not any(array is other for other in taken)])
    if x.values.dtype.kind != "f":
        raise CohortError(f"{x.where}: x is of type {x.values.dtype}, wanted float; save x.float().")
    if len(x.values) == 0 or 0 in x.values.shape:
        raise CohortError(f"{x.where}: x has shape {x.values.shape}, wanted at least one sample, step and feature.")
    ids, splits = (_choose(role, arrays, chosen) if chosen else None for role, chosen in special.items())
    for other in (y, ids, splits):
        if other is not None and len(other.values) != len(x.values):
            raise CohortError(
                f"{other.where}: shape {other.values.shape}, but x in {x.where} is {x.values.shape}: "
                "both need the same number N of samples; are they a pair?"
            )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes an infinity, which is refused below
        dense = x.values.astype(np.float32, copy=False)
    return _Part(
        split=split,
        x=dense,
        y=_labels(y),
        ids=None if ids is None else _checked_ids(ids),
        splits=None if splits is None else _checked_splits(splits),
        where=x.where,
    )


def _choose(role: str, arrays: Sequence[_Array], candidates: Sequence[_Array]) -> _Array:
    """The one candidate, or the one whose name says the role."""
    if len(candidates) > 1:
        candidates = [array for array in candidates if _role_of(array.name) == role] or candidates
    if len(candidates) == 1:
        return candidates[0]
    wanted = {"x": "one x [N, T, F]", "y": "one y [N]"}.get(role, f"one `{role}` [N]")
    got = ", ".join(f"{array.where} {array.values.shape}" for array in arrays)
    raise CohortError(
        f"{len(candidates)} arrays could be {role}: got {got}; wanted {wanted}, named so if there are more."
    )


def _labels(y: _Array) -> Int64[np.ndarray, "N"]:
    values = y.values
    if values.dtype.kind not in "iubf":
        raise CohortError(f"{y.where}: labels are of type {values.dtype}, wanted integers 0..C-1.")
    numbers = values.astype(np.float64)
    wrong = ~((numbers >= 0) & (numbers < MAX_CLASSES) & (numbers == np.floor(numbers)))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise CohortError(
            f"{y.where}: {int(wrong.sum())} labels are no class, the first {values[first]} at sample {first}; "
            f"wanted integers 0..C-1, C at most {MAX_CLASSES}; leave out samples without a label."
        )
    return numbers.astype(np.int64)


def _checked_ids(ids: _Array) -> NDArray[np.generic]:
    if ids.values.dtype.kind not in "iuU":
        raise CohortError(f"{ids.where}: ids are of type {ids.values.dtype}, wanted integers or text.")
    if ids.values.dtype.kind == "u" and ids.values.astype(np.uint64).max(initial=0) >= 2**63:
        raise CohortError(f"{ids.where}: an id is 2^63 or more; wanted smaller integers, or text.")
    return ids.values.astype(np.int64) if ids.values.dtype.kind in "iu" else ids.values


def _checked_splits(splits: _Array) -> tuple[str, ...]:
    names = [str(name).lower() for name in splits.values.tolist()]
    if unknown := sorted(set(names) - set(SPLITS)):
        raise CohortError(f"{splits.where}: unknown split {', '.join(unknown[:5])}; wanted train, valid or test.")
    return tuple(SPLITS[name] for name in names)


def _same_shape(parts: Sequence[_Part]) -> tuple[int, int]:
    shapes = {part.x.shape[1:] for part in parts}
    if len(shapes) > 1:
        got = ", ".join(f"{part.where} {part.x.shape}" for part in parts)
        raise CohortError(f"the splits differ in shape: got {got}; wanted the same T and F in all.")
    steps, width = shapes.pop()
    return int(steps), int(width)


def _feature_names(found: Sequence[tuple[str, ...]], width: int, parts: Sequence[_Part]) -> tuple[str, ...]:
    if not found:
        return tuple(f"feature_{place:03d}" for place in range(width))
    names = found[0]
    if any(other != names for other in found):
        raise CohortError("the files name their features differently; wanted the same names in the same order.")
    if len(names) != width or len(set(names)) != width or set(names) & set(_RESERVED):
        raise CohortError(
            f"{len(names)} feature names, {len(set(names))} different, for F = {width} features in {parts[0].where}; "
            f"wanted one name each, none of {', '.join(_RESERVED)}."
        )
    return names


def _refuse_infinities(part: _Part, names: Sequence[str]) -> None:
    infinite = np.isinf(part.x)
    if count := int(infinite.sum()):
        sample, step, feature = (int(place) for place in np.argwhere(infinite)[0])
        raise CohortError(
            f"{part.where}: {count} values of x are infinite (as float32), the first at sample {sample}, step {step}, "
            f"`{names[feature]}`; wanted finite numbers, or NaN for what was not measured."
        )


def _ids(parts: Sequence[_Part]) -> pl.Series:
    given = [part.ids for part in parts if part.ids is not None]
    if not given:
        return pl.Series(np.arange(sum(len(part.y) for part in parts), dtype=np.int64))
    if len(given) < len(parts) or len({ids.dtype.kind for ids in given}) > 1:
        raise CohortError("some splits have ids of one type and others none or another; wanted the same in all.")
    ids = pl.Series(np.concatenate(given))
    if twice := ids.filter(ids.is_duplicated()).unique().sort().to_list():
        raise CohortError(
            f"{len(twice)} ids occur more than once: {', '.join(map(str, twice[:5]))}; wanted unique ids."
        )
    return ids


def _splits(parts: Sequence[_Part]) -> list[str] | None:
    if any(part.split is not None for part in parts):
        return [part.split for part in parts if part.split is not None for _ in part.y]
    named = parts[0].splits
    return None if named is None else list(named)


def _task(name: str, y: Int64[np.ndarray, "N"]) -> Task:
    counts = np.bincount(y, minlength=2)
    absent = ", ".join(map(str, np.flatnonzero(counts == 0)))
    return Task(
        name=name,
        kind="binary" if len(counts) == 2 else "multiclass",
        classes=tuple(map(str, range(len(counts)))),
        note=f"No sample has class {absent}." if absent else "",
    )


def _series(parts: Sequence[_Part], ids: pl.Series, names: Sequence[str]) -> pl.LazyFrame:
    """A row a sample and step; NaN becomes null."""
    steps = parts[0].x.shape[1]
    columns = {
        name: pl.Series(np.concatenate([part.x[:, :, place].reshape(-1) for part in parts]))
        for place, name in enumerate(names)
    }
    keys = {
        "sample": ids.gather(np.repeat(np.arange(len(ids)), steps)),
        "step": pl.Series(np.tile(np.arange(steps, dtype=np.int32), len(ids))),
    }
    return pl.DataFrame({**keys, **columns}).lazy().with_columns(pl.col(list(names)).fill_nan(None))
