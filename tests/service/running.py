"""Real server processes for tests: started, watched and ended."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**settings: Any) -> dict[str, str]:
    """An environment without anyone's settings but these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TENORA_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TENORA_THREADS": "1", "TENORA_DTYPE": "float32"}
    for name, value in settings.items():
        env[f"TENORA_{name.upper()}"] = str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
    return env


def eventually(condition: Callable[[], Any], within: float = 10.0, what: str = "the condition") -> Any:
    """Wait until something is true and return it."""
    end = time.monotonic() + within
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"{what} did not come true within {within} s"
        time.sleep(0.02)


class RunningServer:
    """One server with all its processes."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path, key: str | None) -> None:
        self.port = port
        self.process = process
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def wait_ready(self) -> None:
        eventually(lambda: self.process.poll() is not None or self._is_ready(), START_S, f"start ({self.output()})")
        assert self.process.poll() is None, self.output()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def output(self) -> str:
        return self.log.read_text()

    def descendants(self) -> dict[int, str]:
        """{pid: command line} of the main process and of everything it started."""
        found = {self.process.pid: _command(self.process.pid)}
        for pid, parent in _parents().items():
            if parent in found:
                found[pid] = _command(pid)
        return found

    def engine_pid(self) -> int:
        """The engine process; the only one that is spawned and not forked."""
        spawned = [pid for pid, command in self.descendants().items() if "spawn_main" in command]
        assert len(spawned) == 1, spawned
        return spawned[0]

    def http_pid(self) -> int:
        """The process that listens: forked last."""
        return self._forked()[2]

    def manager_pid(self) -> int:
        """The process that holds the queues: forked first."""
        return self._forked()[1]

    def _forked(self) -> list[int]:
        """The main process and its two forks, in the order of their births."""
        family = self.descendants()
        forked = sorted(pid for pid, command in family.items() if command == family[self.process.pid])
        assert len(forked) == 3, family
        return forked

    def stop(self, within: float = 40.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry the labels."""
        total, found = 0.0, False
        for line in self.http.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            base, _, rest = series.partition("{")
            if base == name and all(f'{key}="{text}"' in rest for key, text in labels.items()):
                total, found = total + float(value), True
        return total if found else 0.0


def _parents() -> dict[int, int]:
    """{pid: parent} of every process, parents before their children."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z":
                    parents[int(folder.name)] = int(stat[1])
    return dict(sorted(parents.items()))


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def alive(pids: Sequence[int] | Mapping[int, Any]) -> list[int]:
    running = _parents()
    return [pid for pid in pids if pid in running]


@contextlib.contextmanager
def running(
    log: Path,
    *,
    key: str | None = None,
    module: str = "service.cli",
    arguments: Sequence[str] = ("serve",),
    wait: bool = True,
    **settings: Any,
) -> Iterator[RunningServer]:
    """A server process in a session of its own; whatever is left of it at the end is killed."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(port=port, **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
    server = RunningServer(port, process, log, key)
    try:
        if wait:
            server.wait_ready()
        yield server
    finally:
        server.http.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
