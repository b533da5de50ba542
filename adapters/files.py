"""Files of an adapter, read as strangers' files: regular files only, no links, nothing larger than it may be."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from adapters.errors import AdapterFormatError

MAX_JSON = 4 * 2**20  # bytes
_CHUNK = 2**20


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; a link, a pipe or a folder is refused, and none of them can hang."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise AdapterFormatError(f"{path.name} is missing in {path.parent}", key=path.name) from error
    except OSError as error:
        message = f"{path.name} cannot be read ({error.strerror}); links are not followed: copy the file"
        raise AdapterFormatError(message, key=path.name) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterFormatError(f"{path.name} is not a regular file", key=path.name)
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def read_text(path: Path) -> str:
    """Read a small UTF-8 file."""
    with open_regular(path) as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise AdapterFormatError(f"{path.name} is larger than {MAX_JSON} bytes", key=path.name)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise AdapterFormatError(f"{path.name} is not UTF-8: {error}", key=path.name) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file that holds an object; NaN and Infinity are not JSON."""
    try:
        value = json.loads(read_text(path), parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{path.name} is not valid JSON: {error}", key=path.name) from error
    if not isinstance(value, dict):
        raise AdapterFormatError(f"{path.name} must hold a JSON object", key=path.name)
    return value


def copy_regular(source: Path, target: Path, *, most: int | None = None) -> None:
    """Copy a regular file, of at most so many bytes, and sync the copy to disk."""
    copied = 0
    with open_regular(source) as stream, target.open("xb") as copy:
        while chunk := stream.read(_CHUNK):
            copied += len(chunk)
            if most is not None and copied > most:
                raise AdapterFormatError(f"{source.name} is larger than {most} bytes: make it smaller", key=source.name)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())


_CHUNK = 8 << 20  # large, so that a thread that hashes seldom asks for the interpreter


def content_digest(folder: Path, names: tuple[str, ...], read: Mapping[str, memoryview] | None = None) -> str:
    """sha256 over the sorted (file name, sha256 of its bytes) of those files; 64 hex digits.

    Args:
        folder: Where they are.
        names: Their names.
        read: The bytes of those that were read already, which are then not read again.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        inner = hashlib.sha256(read[name]) if read and name in read else _file_digest(folder / name)
        digest.update(f"{name} {inner.hexdigest()}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> "hashlib._Hash":
    inner = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            inner.update(chunk)
    return inner


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands there twice")
    return value
