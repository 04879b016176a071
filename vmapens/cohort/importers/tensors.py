"""Tensors as notebooks and PyPOTS keep them: `x [N, T, F]` with `y [N]`, from `.pt`, `.npz` or HDF5 files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from vmapens.cohort.importers.tensor_files import SPLITS, NamedArray, read_arrays
from vmapens.cohort.schema import MINUTES, CohortInfo, Feature, Task
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError

MAX_CLASSES = 1000
"""More are taken for something that is no label."""

_ROLE_WORD = re.compile(r"(?<![a-z])(x|data|inputs?|features|y|labels?|targets?|outcomes?|ids?|samples?)(?![a-z])")
_ROLES = {"x": "x", "data": "x", "input": "x", "inputs": "x", "y": "y"}
_ROLES |= dict.fromkeys(("label", "labels", "target", "targets", "outcome", "outcomes"), "y")
_ROLES |= dict.fromkeys(("id", "ids", "sample", "samples"), "ids")
_RESERVED = ("sample", "step", "group", "split")
_MOST_NAMED = 20


@dataclass(frozen=True)
class _Part:
    """The arrays of one split (or of all samples), checked and of one length."""

    split: str | None
    x: Float32[np.ndarray, "N T F"]
    y: Int64[np.ndarray, "N"]
    ids: NDArray[np.generic] | None
    splits: tuple[str, ...] | None
    where: str
    left_out: tuple[str, ...]


def read_tensors(paths: Sequence[Path], *, task: str = "outcome", minutes_per_step: float | int = 60.0) -> Imported:
    """Read `x [N, T, F]` and `y [N]`.

    Files: two `.pt` (one each), or one `.pt` with a dict, tuple or list of them, or `.npz`, or HDF5 as PyPOTS saves it;
    a folder stands for such files in it. The array with three axes is x, the one with one axis (or [N, 1]) is y; where
    several could be meant, names decide (`x`, `y`, `labels`, `ids`, `split`, `feature_names`, ...), and what is called
    just `X` is x, whatever is beside it (`X_ori`, `missing_mask`). Names of files, groups or arrays with a word
    `train`, `val` (`valid`) or `test` make several pairs, and their split becomes the column `split`.

    Args:
        paths: `.pt`, `.pth`, `.npz`, `.h5` or `.hdf5` files, or folders of them.
        task: Name of the task. Two classes make it binary, more multiclass; C is the largest label + 1.
        minutes_per_step: Minutes between two steps, > 0.

    Returns:
        The cohort, not written yet. NaN in x is "not measured". Features without names are `feature_000`, ...;
        samples without ids are 0, 1, ... in the order train, valid, test. What was left out is named in `info.notes`.

    Raises:
        CohortError: If a file cannot be read without running code from it; x or y is not found or of another shape or
            type; x holds infinities (as float32); a label is no integer in 0..C-1; ids are not unique.
    """
    if task in _RESERVED or not task:
        raise CohortError(f"the task cannot be called `{task}`: the cohort has a column of that name; choose another.")
    if not MINUTES[0] <= minutes_per_step <= MINUTES[1]:
        raise CohortError(f"minutes per step: got {minutes_per_step}, wanted {MINUTES[0]:g} to {MINUTES[1]:g}.")
    found = read_arrays(paths)
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
        notes=_notes([*found.left_out, *(where for part in parts for where in part.left_out)]),
    )
    labels = pl.DataFrame({"sample": ids, task: pl.Series(y, dtype=pl.Int32)})
    if (splits := _splits(parts)) is not None:
        labels = labels.with_columns(split=pl.Series(splits, dtype=pl.String))
    return Imported(info, _series(parts, ids, names), labels)


def _notes(left_out: Sequence[str]) -> tuple[str, ...]:
    notes = ["NaN in the tensors is a cell that was not measured; nothing was changed."]
    if left_out:
        some = ", ".join(sorted(left_out)[:_MOST_NAMED]) + (", ..." if len(left_out) > _MOST_NAMED else "")
        notes.append(
            f"{len(left_out)} entries of the files are neither x nor y, ids, names or splits: left out ({some})."
        )
    return tuple(notes)


def _role_of(array: NamedArray) -> str | None:
    if array.plain_name in ("split", "splits"):
        return "split"
    match = _ROLE_WORD.search(array.plain_name)
    return _ROLES.get(match[1]) if match else None


def _by_split(arrays: Sequence[NamedArray]) -> Iterator[tuple[str | None, list[NamedArray]]]:
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


def _part(split: str | None, arrays: Sequence[NamedArray]) -> _Part:
    """Find x, y, ids and split among the arrays of one pair, and check them against each other."""
    x = _choose("x", arrays, [array for array in arrays if array.values.ndim == 3])
    flat = [array for array in arrays if array.values.ndim == 1]
    special = {role: [array for array in flat if _role_of(array) == role] for role in ("ids", "split")}
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
    # What float32 cannot hold becomes an infinity, which is refused later; some kinds of NaN are "invalid".
    with np.errstate(over="ignore", invalid="ignore"):
        dense = x.values.astype(np.float32, copy=False)
    return _Part(
        split=split,
        x=dense,
        y=_labels(y),
        ids=None if ids is None else _checked_ids(ids),
        splits=None if splits is None else _checked_splits(splits),
        where=x.where,
        left_out=tuple(array.where for array in arrays if not any(array is taken for taken in (x, y, ids, splits))),
    )


def _choose(role: str, arrays: Sequence[NamedArray], candidates: Sequence[NamedArray]) -> NamedArray:
    """The one candidate, or the one whose name is the role, or says it."""
    if len(candidates) > 1:
        candidates = [array for array in candidates if array.plain_name == role] or candidates
    if len(candidates) > 1:
        candidates = [array for array in candidates if _role_of(array) == role] or candidates
    if len(candidates) == 1:
        return candidates[0]
    wanted = {"x": "one x [N, T, F]", "y": "one y [N]"}.get(role, f"one `{role}` [N]")
    got = ", ".join(f"{array.where} {array.values.shape}" for array in arrays)
    raise CohortError(
        f"{len(candidates)} arrays could be {role}: got {got}; wanted {wanted}, named so if there are more."
    )


def _labels(y: NamedArray) -> Int64[np.ndarray, "N"]:
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


def _checked_ids(ids: NamedArray) -> NDArray[np.generic]:
    if ids.values.dtype.kind not in "iuU":
        raise CohortError(f"{ids.where}: ids are of type {ids.values.dtype}, wanted integers or text.")
    if ids.values.dtype.kind == "u" and ids.values.astype(np.uint64).max(initial=0) >= 2**63:
        raise CohortError(f"{ids.where}: an id is 2^63 or more; wanted smaller integers, or text.")
    return ids.values.astype(np.int64) if ids.values.dtype.kind in "iu" else ids.values


def _checked_splits(splits: NamedArray) -> tuple[str, ...]:
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
