"""Compiles the CPU kernels, once per source and machine type, into a cache folder.

    python -m adapters.native.build [FOLDER]     compile ahead of time, for instance into an image

Compiling needs a C compiler and a second or two. Where there is none, torch computes the same.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
# Without -lgomp at the link: the OpenMP symbols are torch's, and a second runtime would fight it for the cores.
FLAGS = ("-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-std=gnu11")
COMPILERS = ("gcc", "cc", "clang")
"""In the order in which they are tried; clang asks for an OpenMP runtime that torch may not have."""
TIMEOUT_S = 120


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why."""


def library_name() -> str:
    """The file name of the library that belongs to this source and this kind of machine."""
    code = b"".join(file.read_bytes() for file in (SOURCE, *HEADERS))
    key = hashlib.sha256(code + " ".join(FLAGS).encode()).hexdigest()[:16]
    return f"kernels-{platform.system().lower()}-{platform.machine()}-{key}.so"


def cache_folder() -> Path:
    """Where compiled kernels are kept.

    Raises:
        BuildError: the user has no home.
    """
    try:
        return Path.home() / ".cache" / "tenora"
    except RuntimeError as error:
        raise BuildError("this user has no home to keep them in; set HOME") from error


def find_or_build() -> Path:
    """The compiled library: beside this file if it was built ahead of time, else from the cache, else built now.

    Raises:
        BuildError: there is no compiler, or it fails, or there is nowhere to keep what it makes.
    """
    ahead = SOURCE.parent / library_name()
    if _trusted(ahead):
        return ahead
    kept = cache_folder() / library_name()
    return kept if _trusted(kept) else build(kept.parent)


def _trusted(path: Path) -> bool:
    # A library is code: one that another user put into our cache is not loaded.
    return path.is_file() and path.stat().st_uid in (os.getuid(), 0)


def build(folder: Path) -> Path:
    """Compile into ``folder`` with the first compiler whose library loads; other processes see the whole file or none.

    Raises:
        BuildError: there is no compiler, all of them fail, or the folder cannot be written.
    """
    compilers = {os.path.realpath(path): path for path in map(shutil.which, COMPILERS) if path is not None}
    if not compilers:
        raise BuildError(f"no C compiler ({', '.join(COMPILERS)}) on this machine")
    failures = []
    for compiler in compilers.values():
        try:
            return _build_with(compiler, folder)
        except BuildError as error:
            failures.append(str(error))
    raise BuildError("; ".join(failures))


def _build_with(compiler: str, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "kernels.so"
            _run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(made.with_suffix(".o"))])
            _run([compiler, "-shared", "-o", str(made), str(made.with_suffix(".o"))])
            _load(compiler, made)
            made.replace(folder / library_name())
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error}") from error
    return folder / library_name()


def _load(compiler: str, made: Path) -> None:
    """Refuse a library that lacks symbols here: a compiler may want another OpenMP runtime than torch's."""
    import torch  # noqa: F401 (its OpenMP runtime has to be loaded before)

    try:
        ctypes.CDLL(str(made))
    except OSError as error:
        raise BuildError(f"what {compiler} made does not load: {error}") from error


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{command[0]} failed: {error.stderr.strip()[-2000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} failed: {error}") from error


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE.parent)}\n")
