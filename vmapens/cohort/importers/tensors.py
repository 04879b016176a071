"""Tensors as notebooks and PyPOTS keep them: `x [N, T, F]` with `y [N]`, from `.pt`, `.npz` or HDF5 files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32
from numpy.typing import NDArray

from vmapens.cohort.classes import label_task, problem_of_labels
from vmapens.cohort.importers.tensor_files import NamedArray, read_arrays
from vmapens.cohort.schema import MINUTES, RESERVED, CohortInfo, Feature, Task, require_task_name
from vmapens.cohort.tables import SPLIT_NAMES
from vmapens.cohort.write import Imported
from vmapens.errors import CohortError

_ROLE_WORD = re.compile(r"(?<![a-z])(x|data|inputs?|features|y|labels?|targets?|outcomes?|ids?|samples?)(?![a-z])")
_ROLES = {"x": "x", "data": "x", "input": "x", "inputs": "x", "y": "y"}
_ROLES |= dict.fromkeys(("label", "labels", "target", "targets", "outcome", "outcomes"), "y")
_ROLES |= dict.fromkeys(("id", "ids", "sample", "samples"), "ids")
_WHOLE_NAMES = dict.fromkeys(("split", "splits"), "split")
_WHOLE_NAMES |= dict.fromkeys(("group", "groups", "patient", "patients", "subject", "subjects"), "group")
_MOST_NAMED = 20


@dataclass(frozen=True)
class _Part:
    """The arrays of one split (or of all samples), checked and of one length."""

    split: str | None
    x: Float32[np.ndarray, "N T F"]
    y: NDArray[np.generic]
    ids: NDArray[np.generic] | None
    group: NDArray[np.generic] | None
    splits: tuple[str, ...]
    where: str
    where_y: str
    left_out: tuple[str, ...]


def read_tensors(paths: Sequence[Path], *, task: str = "outcome", minutes_per_step: float | int = 60.0) -> Imported:
    """Read `x [N, T, F]` and `y [N]`.

    Files: two `.pt` (one each), or one `.pt` with a dict, tuple or list of them, or `.npz`, or HDF5 as PyPOTS saves it;
    a folder stands for such files in it. The array with three axes is x, the one with one axis (or [N, 1]) is y; where
    several could be meant, names decide (`x`, `y`, `labels`, `ids`, `split`, `feature_names`, ...), and what is called
    just `X` is x, whatever is beside it (`X_ori`, `missing_mask`). Names of files, groups or arrays with a word
    `train`, `val` or `test`, or another of `SPLIT_NAMES`, make several pairs, and their split becomes the column
    `split`; a single split found for all samples is no split, and is ignored.

    An array [N] called `group`, `patient` or `subject` (or `groups`, ...) says by whole numbers or text whose each
    sample is, and becomes the column `group`: no group may be in two splits, and loading draws none that is.

    Args:
        paths: `.pt`, `.pth`, `.npz`, `.h5` or `.hdf5` files, or folders of them.
        task: Name of the task. y has whole numbers from 0, and C is the largest + 1, or text, whose sorted values are
            the classes; at most 100 classes. Two make it binary, more multiclass. NaN, or text that is `MISSING`, is
            no label: the sample is kept, and not in the task.
        minutes_per_step: Minutes between two steps, > 0.

    Returns:
        The cohort, not written yet. NaN in x is "not measured". Features without names are `feature_000`, ...;
        samples without ids are 0, 1, ... in the order train, valid, test. What was left out or ignored is named in
        `info.notes`.

    Raises:
        CohortError: If a file cannot be read without running code from it; x or y is not found or of another shape or
            type; x holds infinities (as float32); labels are no classes, or all the same; ids are not unique.
    """
    require_task_name(task)
    if not MINUTES[0] <= minutes_per_step <= MINUTES[1]:
        raise CohortError(f"minutes per step: got {minutes_per_step}, wanted {MINUTES[0]:g} to {MINUTES[1]:g}.")
    found = read_arrays(paths)
    parts = [_part(split, arrays) for split, arrays in _by_split(found.arrays)]
    steps, width = _same_shape(parts)
    names = _feature_names(found.names, width, parts)
    for part in parts:
        _refuse_infinities(part, names)
    ids = _ids(parts)
    codes, made = _labels(parts, task)
    splits, note = _splits(parts)
    info = CohortInfo(
        steps=steps,
        minutes_per_step=float(minutes_per_step),
        features=tuple(Feature(name) for name in names),
        tasks=(made,),
        source=f"tensors of {', '.join(sorted({part.where for part in parts}))}",
        read={"samples": len(codes), "values": sum(part.x.size for part in parts)},
        dropped={"samples without a label: kept, not in the task": codes.null_count()},
        licence="unknown to vmapens: that of the data the tensors were made from",
        notes=(*_notes([*found.left_out, *(where for part in parts for where in part.left_out)]), *note),
    )
    labels = pl.DataFrame({"sample": ids, task: codes})
    if any(part.group is not None for part in parts):
        labels = labels.with_columns(group=_joined("groups", [part.group for part in parts]))
    if splits:
        labels = labels.with_columns(split=pl.Series(splits, dtype=pl.String))
    return Imported(info, _series(parts, ids, names), labels)


def _notes(left_out: Sequence[str]) -> tuple[str, ...]:
    notes = ["NaN in the tensors is a cell that was not measured; nothing was changed."]
    if left_out:
        some = ", ".join(sorted(left_out)[:_MOST_NAMED]) + (", ..." if len(left_out) > _MOST_NAMED else "")
        notes.append(
            f"{len(left_out)} entries of the files are none of x, y, ids, groups, names and splits: left out ({some})."
        )
    return tuple(notes)


def _role_of(array: NamedArray) -> str | None:
    if array.plain_name in _WHOLE_NAMES:
        return _WHOLE_NAMES[array.plain_name]
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
    """Find x, y, ids, group and split among the arrays of one pair, and check them against each other."""
    x = _choose("x", arrays, [array for array in arrays if array.values.ndim == 3])
    flat = [array for array in arrays if array.values.ndim == 1]
    special = {role: [array for array in flat if _role_of(array) == role] for role in ("ids", "group", "split")}
    taken = [array for chosen in special.values() for array in chosen]
    y = _choose("y", arrays, [array for array in flat if not any(array is other for other in taken)])
    if x.values.dtype.kind != "f":
        raise CohortError(f"{x.where}: x is of type {x.values.dtype}, wanted float; save x.float().")
    if len(x.values) == 0 or 0 in x.values.shape:
        raise CohortError(f"{x.where}: x has shape {x.values.shape}, wanted at least one sample, step and feature.")
    ids, group, splits = (_choose(role, arrays, chosen) if chosen else None for role, chosen in special.items())
    for other in (y, ids, group, splits):
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
        y=_checked_labels(y),
        ids=None if ids is None else _checked_keys("ids", ids),
        group=None if group is None else _checked_keys("groups", group),
        splits=() if splits is None else _checked_splits(splits),
        where=x.where,
        where_y=y.where,
        left_out=tuple(a.where for a in arrays if not any(a is taken for taken in (x, y, ids, group, splits))),
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


def _checked_labels(y: NamedArray) -> NDArray[np.generic]:
    """Labels as float64 or text, whatever they are."""
    if y.values.dtype.kind not in "iubfU":
        raise CohortError(f"{y.where}: labels are of type {y.values.dtype}, wanted whole numbers from 0, or text.")
    with np.errstate(over="ignore", invalid="ignore"):
        return y.values if y.values.dtype.kind == "U" else y.values.astype(np.float64)


def _checked_keys(role: str, keys: NamedArray) -> NDArray[np.generic]:
    """Ids or groups as int64 or text."""
    kind = keys.values.dtype.kind
    if kind not in "iuU":
        raise CohortError(f"{keys.where}: {role} are of type {keys.values.dtype}, wanted integers or text.")
    if kind == "u" and keys.values.astype(np.uint64).max(initial=0) >= 2**63:
        raise CohortError(f"{keys.where}: one of the {role} is 2^63 or more; wanted smaller integers, or text.")
    return keys.values if kind == "U" else keys.values.astype(np.int64)


def _checked_splits(splits: NamedArray) -> tuple[str, ...]:
    names = [str(name).lower() for name in splits.values.tolist()]
    if unknown := sorted(set(names) - set(SPLIT_NAMES)):
        raise CohortError(f"{splits.where}: unknown split {', '.join(unknown[:5])}; wanted train, valid or test.")
    return tuple(SPLIT_NAMES[name] for name in names)


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
    if len(names) != width or len(set(names)) != width or set(names) & {*RESERVED}:
        raise CohortError(
            f"{len(names)} feature names, {len(set(names))} different, for F = {width} features in {parts[0].where}; "
            f"wanted one name each, none of {', '.join(RESERVED)}."
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
    if all(part.ids is None for part in parts):
        return pl.Series(np.arange(sum(len(part.y) for part in parts), dtype=np.int64))
    ids = _joined("ids", [part.ids for part in parts])
    if twice := ids.filter(ids.is_duplicated()).unique().sort().to_list():
        raise CohortError(
            f"{len(twice)} ids occur more than once: {', '.join(map(str, twice[:5]))}; wanted unique ids "
            "of samples, and those of patients in an array `group`."
        )
    return ids


def _joined(role: str, arrays: Sequence[NDArray[np.generic] | None]) -> pl.Series:
    """The arrays of all splits, one below another."""
    given = [array for array in arrays if array is not None]
    if len(given) < len(arrays) or len({array.dtype.kind for array in given}) > 1:
        raise CohortError(f"some splits have {role} of one type and others none or another; wanted the same in all.")
    return pl.Series(np.concatenate(given))


def _splits(parts: Sequence[_Part]) -> tuple[list[str], tuple[str, ...]]:
    """The split of each sample, if there are several; a note if there is but one."""
    named = [part.split for part in parts if part.split is not None for _ in part.y]
    found = named if len(parts) > 1 else list(parts[0].splits) or named
    if len(set(found)) == 1:
        return [], (f"All samples are said to be of one split, `{found[0]}`: ignored, as that is no split.",)
    return found, ()


def _labels(parts: Sequence[_Part], name: str) -> tuple[pl.Series, Task]:
    where = ", ".join(part.where_y for part in parts)
    y = _joined("labels", [part.y for part in parts])
    if problem := problem_of_labels(y):
        raise CohortError(f"{where}: y {problem}.")
    return label_task(y, name, where, f"Labels of {where}.")


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
