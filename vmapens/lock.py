"""One process at a time on a run directory."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmapens.errors import OutputError, RunError

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems: go on without


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of the block; the system lets go of it when the process ends, however it ends.

    Args:
        folder: Exists.

    Raises:
        RunError: If another process holds it; the line says which.
        OutputError: If nothing can be written there.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = _locked(path)
    except BlockingIOError:
        raise RunError(
            f"{folder} is in use by {_holder(path)}: wait for it, or stop it; nothing was changed."
        ) from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): choose another --out.") from error
    try:
        with suppress(OSError):  # a courtesy, for which a full disk has no room
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Open and lock the file that stands at `path` once it is locked: its last holder removes it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, path):
                return descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
