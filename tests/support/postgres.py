"""A real PostgreSQL of the tests' own, from whatever Debian's package or a path brought."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "PostgreSQL is not installed (make postgres): its tests are skipped"


def binaries() -> Path | None:
    """The folder with initdb and postgres; None if there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    usable = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return usable[-1] if usable else None


@contextmanager
def postgres() -> Iterator[str]:
    """A server in a folder of its own, on a socket only; yields the URL of an empty database."""
    folder = binaries()
    assert folder is not None, MISSING
    # It refuses to run as root; the package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="tenora-pg-", dir="/tmp"))  # a socket's path has at most 107 characters
    if user is not None:
        shutil.chown(home, user)
    data = home / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": user, "cwd": home}
    subprocess.run([folder / "initdb", "-D", data, "-U", "tenora", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
    server = subprocess.Popen([folder / "postgres", "-D", data, *options], **quiet)
    try:
        end = time.monotonic() + 30
        while subprocess.run([folder / "pg_isready", "-h", home, "-q"], check=False, **quiet).returncode:
            assert time.monotonic() < end and server.poll() is None, "PostgreSQL did not start"
            time.sleep(0.05)
        yield f"postgresql://tenora@/postgres?host={home}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(home, ignore_errors=True)
