"""Turn functions of this package into machine code, kept on disk under the hash of all its sources.

Numba by itself looks for changes in a function's own file only, and would go on using what was compiled from another
file's older text.
"""

import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def _cache_folder() -> Path | None:
    """Beside the sources, or where the user keeps caches; None if neither can be written."""
    here = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))
    name = hashlib.sha256(sources).hexdigest()[:16]
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    for place in (here / "__pycache__", Path(caches) / "vmapens"):
        try:
            folder = place.expanduser() / name
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # not to be written; no home
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


_FOLDER = _cache_folder()


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, without Python's lock while it runs; sums are never reordered."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = "" if _FOLDER is None else str(_FOLDER)
    try:
        # A checker of shapes, as tests have it, may have wrapped the function.
        return numba.njit(nogil=True, cache=_FOLDER is not None, error_model="numpy")(inspect.unwrap(function))
    finally:
        config.CACHE_DIR = before
