"""The arrays of `.pt`, `.npz` and HDF5 files, by name, with whatever lies beside them.

Files are read without running code from them: `torch.load(weights_only=True)`, `numpy.load(allow_pickle=False)`, and
HDF5 as in `hdf5`. Dictionaries and groups may be nested; `train/X` is X in train.
"""

import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmapens.cohort.importers.hdf5 import open_hdf5
from vmapens.cohort.tables import SPLIT_NAMES
from vmapens.errors import CohortError, first_line
from vmapens.machine import free_memory

_HDF5 = {".h5", ".hdf5"}
_SUFFIXES = {".pt", ".pth", ".npz"} | _HDF5
_WANTED = "wanted .pt, .npz or .h5 files"
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")
_NAMES_OF_FEATURES = ("feature_names", "features", "columns")
# Of x until it is written, rounded up from imports of 300 MiB with 1 to 231 features. A cell of float64 is held as it
# is, as float32 and by feature (16.5), one of float32 by feature, as read or without NaN, and sorted (13); each row, a
# step of a sample, takes 33 more where ids are numbers, and 86 where they are text.
_CELL_BYTES = 17
_ROW_BYTES = 90


@dataclass(frozen=True)
class NamedArray:
    """One array of a file; `name` is what the file calls it, or the file's own stem; `where` is for messages."""

    name: str
    where: str
    split: str | None
    values: NDArray[np.generic]

    @property
    def plain_name(self) -> str:
        """The name in lower case without its groups and the word of its split: `train_X` and `val/X` are `x`."""
        parts = [_SPLIT_WORD.sub("", part).strip("_.- ") for part in self.name.lower().split("/")]
        return next((part for part in reversed(parts) if part), "")


@dataclass
class Found:
    """What the files hold: arrays of one axis or more, lists of feature names, and the places of all else."""

    arrays: list[NamedArray] = field(default_factory=list)
    names: list[tuple[str, ...]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_arrays(paths: Sequence[Path]) -> Found:
    """Read all files; [n, 1] becomes [n].

    Args:
        paths: `.pt`, `.pth`, `.npz`, `.h5` or `.hdf5` files, or folders of them.

    Raises:
        CohortError: If a path is of another kind, or cannot be read without running code from it, or does not fit in
            memory.
    """
    found, free = Found(), free_memory()
    for path in _files(paths):
        free -= _read(path, found, free)
    return found


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += sorted(inside for inside in path.iterdir() if inside.suffix in _SUFFIXES) if path.is_dir() else [path]
    for path in files:
        if not path.is_file():
            raise CohortError(f"{path} does not exist: {_WANTED}, or a folder of them.")
        if path.suffix not in _SUFFIXES:
            raise CohortError(f"{path}: got `{path.suffix}`, {_WANTED}; save x and y with torch.save.")
    if not files:
        where = ", ".join(map(str, paths)) or "no path"
        raise CohortError(f"no tensors in {where}: {_WANTED}; name them one by one.")
    return files


def _read(path: Path, found: Found, free: int) -> int:
    """Add what one file holds; how many of the free bytes importing it takes."""
    try:
        unpacked = _unpacked_bytes(path)
        _require_memory(path, "unpacks to", unpacked, free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn of old files that they may not read, then read or fail
            content = _load(path)
    except CohortError:
        raise
    except Exception as error:  # a broken or hostile pickle raises whatever it makes the reader stumble on
        reason = first_line(error)[:120]
        raise CohortError(
            f"{path} is cut short or holds more than plain arrays, and code in a file is never run ({reason}); "
            "save tensors alone: torch.save({'x': x, 'y': y}, path)."
        ) from error
    named = list(_named(content, path.stem))
    needed = max(unpacked, sum(_importing_bytes(values) for _, values in named))
    _require_memory(path, "takes, until it is written,", needed, free)
    for name, values in named:
        where = path.name + (f"[{name}]" if name != path.stem else "")
        try:
            array = _as_array(values)
        except Exception as error:  # what torch and NumPy raise for types that are no numbers or texts
            raise CohortError(
                f"{path}: `{name}` is no plain array ({first_line(error)[:120]}); save it as dense floats or integers."
            ) from error
        if array is None or array.ndim == 0:
            found.left_out.append(where)
            continue
        flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        entry = NamedArray(name, where, _split_of(name) or _split_of(path.stem), flat)
        if flat.ndim == 1 and flat.dtype.kind == "U" and entry.plain_name in _NAMES_OF_FEATURES:
            found.names.append(tuple(flat.tolist()))
        else:
            found.arrays.append(entry)
    return needed


def _require_memory(path: Path, what: str, needed: int, free: int) -> None:
    if needed > free:
        raise CohortError(
            f"{path} {what} {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free; is it the right file? "
            "Save fewer samples, or use a machine with more memory."
        )


def _importing_bytes(values: object) -> int:
    """What importing may take for an array that could be x, or for a tensor: a view of one number may have any size."""
    if isinstance(values, Tensor) or (isinstance(values, np.ndarray) and values.ndim == 3):
        rows = math.prod(values.shape[:2]) if values.ndim == 3 else 0
        return _CELL_BYTES * math.prod(values.shape) + _ROW_BYTES * rows
    return 0


def _unpacked_bytes(path: Path) -> int:
    if path.suffix in _HDF5:
        with open_hdf5(path) as file:
            return sum(array.nbytes for array in file.arrays())
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _load(path: Path) -> object:
    if path.suffix in _HDF5:
        with open_hdf5(path) as file:
            return {array.name: array.read() if array.shape else None for array in file.arrays()}
    if path.suffix != ".npz":
        return torch.load(path, map_location="cpu", weights_only=True)
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _named(content: object, stem: str) -> Iterator[tuple[str, object]]:
    """Each value of nested dictionaries with its path; a dictionary that is there twice is entered once."""
    if isinstance(content, list | tuple):
        yield from ((f"{stem}.{place}", values) for place, values in enumerate(content))
        return
    if not isinstance(content, Mapping):
        yield stem, content
        return
    seen, waiting = {id(content)}, [("", content)]
    while waiting:
        where, table = waiting.pop()
        for key, values in table.items():
            name = f"{where}{key}"
            if not isinstance(values, Mapping):
                yield name, values
            elif id(values) not in seen:
                seen.add(id(values))
                waiting.append((f"{name}/", values))


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
    return SPLIT_NAMES[match[1]] if match else None
