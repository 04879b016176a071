"""Which pages of a file the system holds in memory: what a reader took from the disk, read-ahead included (Linux)."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def forget(path: Path) -> None:
    """Let the system drop the file's pages; afterwards `resident` says none, unless the file lives in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(path: Path) -> np.ndarray:
    """For each page of the file whether it is in memory, as booleans; asking reads none (mincore)."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, length, pages)
        del first  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return np.array([page & 1 for page in pages], bool)
