"""The wanted files of folders and archives, in memory and within a limit.

An archive is hostile input. Nothing is unpacked to disk, no name in it is used as a path; links, devices and sparse
files are passed over and counted; what comes out of a decompressor is capped; an archive that ends early is an error.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vmapens.errors import CohortError

MAX_BYTES = 2**30
"""The default limit: twelve times the whole of PhysioNet/CinC 2012."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CHUNK_BYTES = 2**20
_TAR_MAGIC_AT = 257
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # a zip member compressed in a way Python does not know
    RuntimeError,  # an encrypted zip member
)


@runtime_checkable
class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@runtime_checkable
class _Stream(_Readable, Protocol):
    def close(self) -> None: ...


_DECOMPRESSORS: dict[bytes, Callable[[Path], _Stream]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"BZh": bz2.BZ2File,
}


def read_files(
    paths: Sequence[Path], *, heads: Sequence[bytes], left_out: Counter[str], max_bytes: int = MAX_BYTES
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each regular file that begins with one of `heads`.

    A folder is searched to any depth, an archive (tar, plain or compressed by gzip, xz or bzip2; zip) is read once from
    front to back, any other path is taken as one file. What a file is follows from its content, never from its name.
    Archives inside folders or archives are not opened.

    Args:
        paths: Folders, archives and single files.
        heads: First bytes of wanted files, after a byte order mark if there is one; other files are not read further.
        left_out: Counts, by a sentence, what was passed over.
        max_bytes: The most bytes to read or decompress, all paths together.

    Yields:
        The name inside its folder or archive (for messages, not for opening), and the whole content.

    Raises:
        CohortError: If a path does not exist or cannot be read, an archive is cut short, or the limit is hit.
    """
    if not paths:
        raise CohortError("no path given: name the folders, archives or files to import.")
    budget = _Budget(max_bytes, max_bytes)
    wanted = _Wanted(tuple(heads), left_out)
    for path in paths:
        try:
            yield from _read_path(path, wanted, budget)
        except FileNotFoundError:
            raise CohortError(f"{path} does not exist: name a folder, an archive or a file.") from None
        except _DAMAGE as error:
            why = str(error) or type(error).__name__
            raise CohortError(
                f"{path} cannot be read to its end ({why}): damaged or cut short; fetch it again."
            ) from error


def is_utf8(data: bytes) -> bool:
    """Whether bytes are text; the quick way for those that are ASCII."""
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


@dataclass
class _Budget:
    """Bytes that may still be read."""

    left: int
    limit: int

    def spend(self, amount: int, path: Path) -> None:
        self.left -= amount
        self.require(0, path)

    def require(self, amount: int, path: Path) -> None:
        if amount > self.left:
            raise CohortError(
                f"{path} holds more than the {self.limit:,} bytes that one import reads; is it the right file? "
                "Import its sets one by one."
            )


@dataclass
class _Wanted:
    """The choice of files by their first bytes, and the count of the others."""

    heads: tuple[bytes, ...]
    left_out: Counter[str]

    def whole(self, stream: _Readable, size: int, budget: _Budget, path: Path) -> bytes | None:
        """All `size` bytes of an opened file, which archives may lie about, if it begins as a wanted one, else None."""
        head = stream.read(min(size, len(BYTE_ORDER_MARK) + max(map(len, self.heads))))
        if not head.removeprefix(BYTE_ORDER_MARK).startswith(self.heads):
            self.left_out["files of another kind (told by their first line): left out"] += 1
            return None
        budget.require(size - len(head), path)
        return head + stream.read(size - len(head))

    def pass_over(self) -> None:
        self.left_out["links, devices and other members that are no plain file: left out"] += 1


@dataclass
class _Capped:
    """A decompressed stream that may give no more than the budget."""

    stream: _Readable
    budget: _Budget
    path: Path

    def read(self, size: int, /) -> bytes:
        data = self.stream.read(size)
        self.budget.spend(len(data), self.path)
        return data


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is broken or cut short is an error; `tarfile` would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # the zeros that end an archive
                raise
            raise tarfile.ReadError(str(error)) from error


def _read_path(path: Path, wanted: _Wanted, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from _read_folder(path, wanted, budget)
        return
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        magic = file.read(_TAR_MAGIC_AT + 5)
    if magic.startswith(_ZIP_MAGIC):
        yield from _read_zip(path, wanted, budget)
        return
    for start, decompress in _DECOMPRESSORS.items():
        if magic.startswith(start):
            yield from _read_tar(path, decompress, wanted, budget)
            return
    if magic[_TAR_MAGIC_AT:] == b"ustar" or path.suffix == ".tar":
        yield from _read_tar(path, _open, wanted, budget)
        return
    yield from _read_file(path, path.name, wanted, budget)


def _open(path: Path) -> _Stream:
    return path.open("rb")


def _read_folder(folder: Path, wanted: _Wanted, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in folders:
            if Path(parent, name).is_symlink():  # and not walked into
                raise CohortError(
                    f"{Path(parent, name)} is a link to a folder, and links are not followed; put the folder itself "
                    "there, or name it as a path of its own."
                )
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield from _read_file(path, path.relative_to(folder).as_posix(), wanted, budget)
            else:
                wanted.pass_over()


def _read_file(path: Path, name: str, wanted: _Wanted, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if (data := wanted.whole(_Capped(file, budget, path), size, budget, path)) is not None:
            yield name, data


def _read_tar(
    path: Path, decompress: Callable[[Path], _Stream], wanted: _Wanted, budget: _Budget
) -> Iterator[tuple[str, bytes]]:
    with closing(decompress(path)) as stream:
        capped = _Capped(stream, budget, path)
        with tarfile.open(fileobj=capped, mode="r|", tarinfo=_StrictTarInfo) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # a stream is read once: a million tiny members need not be remembered
                if member.isdir():
                    continue
                file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is None:
                    wanted.pass_over()
                elif (data := wanted.whole(file, member.size, budget, path)) is not None:
                    yield member.name, data
        while capped.read(_CHUNK_BYTES):  # to the end, so that the decompressor checks its own checksum
            pass


def _read_zip(path: Path, wanted: _Wanted, budget: _Budget) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.filename.endswith("/"):
                continue
            if kind not in (0, stat.S_IFREG):
                wanted.pass_over()
                continue
            with archive.open(member) as file:
                if (data := wanted.whole(_Capped(file, budget, path), member.file_size, budget, path)) is not None:
                    yield member.filename, data
