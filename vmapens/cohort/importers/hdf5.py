"""HDF5 files, read with errors that say which file and what is wrong with it.

A file is hostile input: only numbers and texts that lie in the file itself are read. Links, virtual data sets and data
in other files lead elsewhere and are refused, as are types that are neither number nor text, and all compression but
what such files are kept in. Reading needs the extra `hdf5`: h5py, and hdf5plugin for blosc and zstd.

The library itself is trusted: chunks have no checksum unless their writer asked for one (fletcher32), so damaged values
may pass for values, and how much memory one chunk unpacks to is known only when it has been unpacked.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmapens.errors import CohortError, first_line
from vmapens.machine import free_memory

MAX_OBJECTS = 10_000
"""Groups and arrays of one file; a table of tensors has a few dozen."""

FILTERS = {1: 0, 2: 0, 3: 0, 32000: 0, 32001: 4, 32015: 0}
"""gzip, shuffle, fletcher32, lzf, blosc and zstd, each with how many parameters it must have: blosc relies on them."""

_TEXT_SECONDS = 60.0
_READ_TEXTS = """
import json, sys, h5py
with h5py.File(sys.argv[1], "r") as file:
    json.dump(file[sys.argv[2]].asstr("utf-8")[int(sys.argv[3]) : int(sys.argv[4])].tolist(), sys.stdout)
"""
_CACHE_BYTES = 2**24  # of each array: neighbouring windows share a chunk, which is then decompressed once
_SMALL_BYTES = 2**26  # reading less is not worth asking how much memory is free
_TEXT_TIMES = 8  # a text is held as bytes, as `str` and as fixed-width characters of 4 bytes


@dataclass(frozen=True)
class Hdf5Array:
    """An array of an open file; nothing of it is in memory.

    Args:
        path: The file, for messages.
        name: Its groups and its own name, joined by `/`.
        shape: () for a single value, and for none.
        dtype: Of what `read` returns; for texts of any kind `<U0`, that is kind "U".
        row_bytes: Of one row (one entry along the first axis) in memory.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    row_bytes: int
    _dataset: Any = field(repr=False)
    _in_heap: bool = False  # texts of variable length

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in memory."""
        return self.row_bytes * (self.shape[0] if self.shape else 1)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """Rows `start` to `stop` (half-open; None = to the end).

        Raises:
            CohortError: If they cannot be read or decompressed, are no UTF-8, or need more memory than is free.
        """
        if not self.shape:
            raise CohortError(f"{self.path}: `{self.name}` is a single value, wanted an array.")
        stop = self.shape[0] if stop is None else stop
        _require_memory(self.path, self.name, self.row_bytes * (stop - start))
        with _one_line(self.path, f"`{self.name}`"):
            if self._in_heap:
                return np.array(self._texts_of_heap(start, stop), dtype=str)
            if self.dtype.kind == "U":
                return np.array(self._dataset.asstr("utf-8")[start:stop], dtype=str)
            return np.asarray(self._dataset[start:stop])

    def _texts_of_heap(self, start: int, stop: int) -> list[object]:
        """Read in another process: in a damaged heap of texts the library may search for ever."""
        command = [sys.executable, "-P", "-c", _READ_TEXTS, str(self.path), self.name, str(start), str(stop)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TEXT_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError(f"no answer in {_TEXT_SECONDS:g} s") from None
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(reason or f"the library ended with status {done.returncode}")
        texts: list[object] = json.loads(done.stdout)
        return texts


class Hdf5File:
    """An open file, read by the names of its arrays.

    Args:
        path: For messages.
        root: Its group `/`, as h5py has opened it.
    """

    def __init__(self, path: Path, root: Any) -> None:
        self.path, self._root = path, root

    def array(self, name: str) -> Hdf5Array:
        """The array of that name, groups and all.

        Raises:
            CohortError: If there is none, or it may not be read.
        """
        found = self._root
        for place, part in enumerate(name.split("/")):
            found = self._child(found, part, "/".join(name.split("/")[:place]))
        if (array := self._array(found, name)) is None:
            raise CohortError(f"{self.path}: `{name}` is no array; is it the right file?")
        return array

    def arrays(self) -> list[Hdf5Array]:
        """All arrays, sorted by name; a group that is its own ancestor is entered once.

        Raises:
            CohortError: If one of them may not be read, or there are more than `MAX_OBJECTS`.
        """
        found: list[Hdf5Array] = []
        with _one_line(self.path, "it"):
            seen: set[object] = {self._root}
            waiting: list[tuple[str, Any]] = [("", self._root)]
            while waiting:
                where, group = waiting.pop()
                names = [part if isinstance(part, str) else part.decode() for part in group]
                if len(found) + len(seen) + len(names) > MAX_OBJECTS:
                    raise CohortError(f"{self.path} holds more than {MAX_OBJECTS:,} arrays; is it the right file?")
                for part in names:
                    child, name = self._child(group, part, where), f"{where}/{part}".lstrip("/")
                    if (array := self._array(child, name)) is not None:
                        found.append(array)
                    elif child not in seen:
                        seen.add(child)
                        waiting.append((name, child))
        return sorted(found, key=lambda array: array.name)

    def _child(self, group: Any, part: str, where: str) -> Any:
        """What lies in a group under that name, not followed anywhere else."""
        import h5py

        name = f"{where}/{part}".lstrip("/")
        with _one_line(self.path, f"`{name}`"):
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if link is None:
                there = ", ".join(map(str, list(group)[:10])) if isinstance(group, h5py.Group) else "no group"
                raise CohortError(f"{self.path} has no `{name}` (`/{where}` has {there}); is it the right file?")
            if not isinstance(link, h5py.HardLink):
                raise CohortError(f"{self.path}: `{name}` is a link to elsewhere, which is not followed; copy it in.")
            return group[part]

    def _array(self, found: Any, name: str) -> Hdf5Array | None:
        """An array that may be read; None if it is a group."""
        import h5py

        with _one_line(self.path, f"`{name}`"):
            if isinstance(found, h5py.Group):
                return None
            if not isinstance(found, h5py.Dataset):
                raise CohortError(f"{self.path}: `{name}` is a type, wanted an array; leave it out.")
            # Before anything else is asked: the shape of a virtual array may be that of another file.
            if found.is_virtual or found.external:
                raise CohortError(
                    f"{self.path}: the data of `{name}` are in another file, which is not read; copy it in."
                )
            text = h5py.check_string_dtype(found.dtype)
            is_text = text is not None
            if not is_text and found.dtype.kind not in "iufb":
                raise CohortError(
                    f"{self.path}: `{name}` is of type {found.dtype}, wanted numbers or texts; leave it out."
                )
            plist = found.id.get_create_plist()
            for place in range(plist.get_nfilters()):
                code, _, parameters, said = plist.get_filter(place)
                if len(parameters) < FILTERS.get(code, math.inf) or not h5py.h5z.filter_avail(code):
                    raise CohortError(
                        f"{self.path}: `{name}` is compressed by filter {code} ({said.decode(errors='replace')}), "
                        "which is not known here; save it with gzip or blosc."
                    )
            if found.chunks:
                _require_memory(self.path, name, math.prod(found.chunks) * found.dtype.itemsize)
            shape = tuple(map(int, found.shape or ()))
            row_bytes = math.prod(shape[1:]) * found.dtype.itemsize * (_TEXT_TIMES if is_text else 1)
            dtype = np.dtype(str) if is_text else found.dtype
            return Hdf5Array(self.path, name, shape, dtype, row_bytes, found, text is not None and text.length is None)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """Open a file for reading; its arrays can be read inside the block.

    Args:
        path: An HDF5 file, whatever its suffix.

    Yields:
        The open file.

    Raises:
        CohortError: If the extra `hdf5` is not installed, or the path is no whole HDF5 file.
    """
    try:
        import h5py
        import hdf5plugin  # noqa: F401  # makes its filters known to HDF5
    except ImportError as error:
        raise CohortError(
            f"{path}: HDF5 is read by h5py and hdf5plugin, and {first_line(error)}: pip install 'vmapens[hdf5]'."
        ) from error
    if not path.is_file():  # a pipe would be waited for
        raise CohortError(f"{path} {'is no file' if path.exists() else 'does not exist'}: name an HDF5 file.")
    with _one_line(path, "it"):
        file = h5py.File(path, "r", rdcc_nbytes=_CACHE_BYTES)
    with file:
        with _one_line(path, "it"):
            root = file["/"]
        yield Hdf5File(path, root)


@contextmanager
def _one_line(path: Path, what: str) -> Iterator[None]:
    """Turn whatever the library raises, of which it promises nothing, into one line."""
    try:
        yield
    except CohortError:
        raise
    except Exception as error:
        raise CohortError(
            f"{path}: {what} cannot be read as HDF5 ({first_line(error)[:200]}): of another kind, damaged or cut "
            "short; copy it again."
        ) from error


def _require_memory(path: Path, name: str, needed: int) -> None:
    if needed > _SMALL_BYTES and needed > (free := free_memory()):
        raise CohortError(
            f"{path}: `{name}` unpacks to {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free; is it the "
            "right file? Save fewer samples, or use a machine with more memory."
        )
