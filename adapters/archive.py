"""An adapter's files out of a zip or a tar archive, read as a stranger's: nothing it says of itself is believed.

Entries are few, of known names, in at most one folder; links, `..`, absolute paths and duplicates are refused. Bytes
are counted as they inflate, so a bomb is cut off while it goes off, and no single read is larger than its bound: the
lengths in an archive's own directory would otherwise decide how much memory it takes.
"""

import calendar
import contextlib
import gzip
import io
import math
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from adapters.errors import AdapterFormatError
from adapters.parcel import START, WEIGHTS_FILE, check_size, check_start, largest

MAX_ENTRIES = 64
MAX_READ = 128 * 1024  # bytes at once, of an archive's own tables too
_ZIP, _GZIP = b"PK", b"\x1f\x8b"
_MEND = "send a .zip, .tar or .tar.gz of the adapter's files"
# RecursionError and NotImplementedError are RuntimeErrors; OSError is what gzip raises for bytes that are not its own.
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError, ArithmeticError, LookupError,
    RuntimeError, ValueError,
)  # fmt: skip


def unpack(archive: Path, folder: Path, *, most: int) -> None:
    """Unpack an archive's files into a folder, which is there and empty.

    Args:
        archive: A zip, a tar, or a tar compressed with gzip.
        folder: Where the files go, side by side.
        most: Bytes that they may have in all.

    Raises:
        AdapterFormatError: It is no such archive, or holds what an adapter does not have; some files may be there.
    """
    with archive.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        unpacking = _Unpacking(folder, most)
        if start == _ZIP:
            _unpack_zip(file, unpacking)
        elif start == _GZIP:
            _unpack_tar(cast(IO[bytes], gzip.GzipFile(fileobj=file)), unpacking)
        else:
            _unpack_tar(file, unpacking)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """A file that gives at most `MAX_READ` bytes at once, whatever it is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and 0 <= size <= MAX_READ:
            return self._file.read(size)
        data = self._file.read(MAX_READ + 1)
        if len(data) > MAX_READ:
            raise AdapterFormatError(f"the archive's own tables are too large: {_MEND}", key="archive")
        return data

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the file open: it is its opener's."""


class _Unpacking:
    """What has been unpacked so far."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = self._left = most
        self._names: set[str] = set()
        self._parent: str | None = None
        self._entries = 0

    def count(self) -> None:
        """Note one more entry."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise AdapterFormatError(f"the archive has more than {MAX_ENTRIES} entries: {_MEND} alone", key="archive")

    def name(self, path: str, *, is_folder: bool) -> str | None:
        """The name of a file to be unpacked; None for a folder.

        Raises:
            AdapterFormatError: Its path leads elsewhere, is deeper than one folder, is no adapter's, or came before.
        """
        parts = path.removesuffix("/").split("/")
        parts = parts[1:] if parts[0] == "." else parts
        if path.startswith("/") or "\\" in path or ".." in parts or "" in parts:
            raise _refused(path, "leads out of the archive's own folder: pack the files by their names alone")
        if len(parts) > 2 - is_folder:
            raise _refused(path, "lies deeper than in one folder: pack the adapter's folder alone")
        if is_folder:
            return None
        *above, name = parts
        largest(name, self._most)
        if name in self._names:
            raise _refused(path, "is there twice: keep one of them")
        if self._names and self._parent != "/".join(above):
            raise _refused(path, "lies in another folder than the files before it: pack one adapter alone")
        self._names.add(name)
        self._parent = "/".join(above)
        return name

    def write(self, name: str, source: _Readable) -> Path:
        """Write a file from where its bytes come from; return where it is."""
        target = self._folder / name
        size = 0
        with target.open("xb") as file:
            for chunk in _chunks(source):
                if not size and name == WEIGHTS_FILE:
                    check_start(chunk[:START])
                size += len(chunk)
                self._left -= len(chunk)
                check_size(name, size, self._most)
                if self._left < 0:
                    message = f"the archive's files have more than {self._most} bytes together: make them smaller"
                    raise AdapterFormatError(message, key="archive")
                file.write(chunk)
        return target


def _chunks(source: _Readable) -> Iterator[bytes]:
    while True:
        with _legible():  # not around the yield: what goes wrong with the copy is not the archive's fault
            chunk = source.read(MAX_READ)
        if not chunk:
            return
        yield chunk


@contextmanager
def _legible() -> Iterator[None]:
    """Turn whatever a broken archive makes its reader raise into one refusal."""
    try:
        yield
    except _BROKEN as error:
        raise AdapterFormatError(f"the archive cannot be read ({str(error)[:200]}): {_MEND}", key="archive") from error


def _unpack_zip(file: IO[bytes], unpacking: _Unpacking) -> None:
    with _legible():
        opened = zipfile.ZipFile(cast(IO[bytes], _Bounded(file)))
    with opened:
        for entry in opened.infolist():
            unpacking.count()
            kind, is_folder = stat.S_IFMT(entry.external_attr >> 16), entry.filename.endswith("/")
            if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
                raise _refused(entry.filename, "is a link or no regular file: pack the files themselves")
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(entry.filename, "is encrypted, or compressed in a rare way: pack it with deflate")
            name = unpacking.name(entry.orig_filename, is_folder=is_folder)
            if name is not None:
                with _legible():
                    source = opened.open(entry)
                with source:
                    _date(unpacking.write(name, source), _zip_time(entry))


def _unpack_tar(file: IO[bytes], unpacking: _Unpacking) -> None:
    with _legible():
        opened = tarfile.TarFile(fileobj=cast(Any, _Bounded(file)))
    with opened:
        while (entry := _next(opened)) is not None:
            unpacking.count()
            plain = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and not entry.issparse()
            if not plain or entry.size < 0:
                raise _refused(entry.name, "is a link or no regular file: pack the files themselves")
            name = unpacking.name(entry.name, is_folder=entry.isdir())
            if name is not None:
                source = opened.extractfile(entry)
                assert source is not None, "a regular file has content"
                _date(unpacking.write(name, cast(io.BufferedReader, source)), _seconds(entry))


def _seconds(entry: tarfile.TarInfo) -> int:
    if not math.isfinite(entry.mtime):
        raise _refused(entry.name, "has a date that is none: pack it again")
    return int(entry.mtime)


def _next(opened: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _legible():
        return opened.next()


def _zip_time(entry: zipfile.ZipInfo) -> int:
    with contextlib.suppress(ValueError):
        return calendar.timegm((*entry.date_time, 0, 0, 0))
    return 0


def _date(path: Path, modified: int) -> None:
    """Keep when a file was made, which becomes an adapter's date: the same archive then is the same version."""
    sane = modified if 0 <= modified < 1 << 32 else 0
    os.utime(path, (sane, sane))


def _refused(path: str, why: str) -> AdapterFormatError:
    shown = ascii(path if len(path) <= 80 else path[:77] + "...")
    return AdapterFormatError(f"{shown} in the archive {why}", key=path[:200])
