"""SHA-256 of files, as a list that `sha256sum --check` reads, too."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmapens.atomic import write_text
from vmapens.errors import RunError

LIST_FILE = "SHA256SUMS"


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Of files in a folder, by name.

    Raises:
        OSError: If one cannot be read.
    """
    found = {}
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def damaged(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Which files of a folder are missing or have other bytes than they should: a clause each."""
    found = []
    for name, checksum in wanted.items():
        try:
            if checksums(folder, [name])[name] != checksum:
                found.append(f"{folder / name} has changed")
        except OSError as error:
            found.append(f"{folder / name} cannot be read ({error.strerror})")
    return found


def write_list(root: Path, sums: Mapping[str, str]) -> None:
    """Write `SHA256SUMS` atomically; names are relative to `root`."""
    write_text(root / LIST_FILE, "".join(f"{checksum}  {name}\n" for name, checksum in sorted(sums.items())))


def read_list(root: Path) -> dict[str, str]:
    """Read `SHA256SUMS`.

    Raises:
        RunError: If it is missing or no such list.
    """
    try:
        lines = (root / LIST_FILE).read_text(encoding="utf-8").splitlines()
        return {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise RunError(
            f"{root / LIST_FILE} cannot be read ({error}): --resume the training, which writes it."
        ) from error
