"""Files that are either whole or absent: a temporary name in the same folder, flushed, then renamed."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmapens.errors import OutputError, first_line


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error, it becomes `path`, else it is removed.

    Args:
        path: Where the finished file will stand. Its folder is made if it is missing.

    Yields:
        A path in the same folder, to be written and closed inside the block.

    Raises:
        OutputError: If the system refuses (no permission, no room, no such place), or the name is not UTF-8.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        str(path).encode()  # Polars, Arrow and safetensors write to no name that is no text
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except Exception as error:
        # Polars and safetensors have errors of their own for what the system refuses; their text ends in its number.
        if isinstance(error, OSError | UnicodeEncodeError) or "(os error" in str(error):
            raise OutputError(
                f"{path} cannot be written: {first_line(error)}; choose another --out, or make room."
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, and come before the next one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(root: Path) -> None:
    """Remove the temporary files below a folder that processes which were killed have left there."""
    for path in root.rglob(".*.tmp"):
        if is_leftover(path) and not path.is_dir():
            path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a path has the form of `atomic_path`'s temporary ones."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
