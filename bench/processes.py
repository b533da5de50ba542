"""Server processes: started on a free port, watched, and ended with everything that they started."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

START_S = 180.0


class ServerError(RuntimeError):
    """A server did not start, or answered something else than was asked."""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """One server with all its processes.

    Args:
        command: Makes the command line for a port.
        ready: Path that answers 200 once the server is ready.
        environment: Variables beside those of this process.
    """

    def __init__(
        self, command: Callable[[int], Sequence[str]], *, ready: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self._log = tempfile.NamedTemporaryFile(prefix="bench-server-", suffix=".log")  # noqa: SIM115 (close() ends it)
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command(self.port),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            self._wait(ready)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """CPU time that all its processes have used."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> int:
        """Bytes that all its processes hold; what they share is counted once."""
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def close(self) -> None:
        """Stop it; whatever is left of it after that is killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _wait(self, ready: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServerError(f"the server ended at start: {self._last_words()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}{ready}", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        raise ServerError(f"the server was not ready within {START_S:.0f} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it said nothing"


def idle_share(server: ServerProcess, seconds: float) -> float:
    """The share of one core that a server uses while nobody asks it anything."""
    before, start = server.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / (time.perf_counter() - start)
