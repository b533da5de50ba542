"""Processes that die, and servers that are told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Home
from tests.service.faulty_server import POISON
from tests.service.running import ROOT, RunningServer, alive, environment, eventually, free_port, running

FAULTY: dict[str, Any] = {"module": "tests.service.faulty_server", "arguments": ()}
BODY: dict[str, Any] = {"model": "tiny-llama", "prompt": [5, 6, 7], "max_tokens": 100, "ignore_eos": True}
QUICK: dict[str, Any] = {**BODY, "max_tokens": 1}


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTY_PAUSE_S", "0.02")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def port_is_free(server: RunningServer) -> bool:
    try:
        httpx.get(f"{server.url}/healthz", timeout=2)
    except httpx.ConnectError:
        return True
    return False


class Background:
    """A request in a thread; ``lines`` fills as a stream arrives."""

    def __init__(self, server: RunningServer, **body: Any) -> None:
        self.status: int | None = None
        self.lines: list[str] = []
        self._url, self._body = server.url, {**BODY, **body}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.stream("POST", f"{self._url}/v1/completions", json=self._body, timeout=60) as response:
            self.status = response.status_code
            self.lines.extend(line for line in response.iter_lines() if line)

    def wait(self) -> "Background":
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self


def started(server: RunningServer, count: int) -> None:
    eventually(lambda: server.metric("tenora_sequences_running") == count, what=f"{count} running sequences")


def serves(server: RunningServer) -> bool:
    return server.http.post("/v1/completions", json=QUICK).status_code == 200


@pytest.mark.usefixtures("paused")
def test_a_dead_engine_gives_503_and_is_replaced(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        plain, stream = Background(server), Background(server, stream=True)
        eventually(lambda: stream.status == 200, what="a begun stream")
        started(server, 2)
        first = server.engine_pid()
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        assert plain.wait().status == 503
        assert stream.wait().lines[-2] == "event: error"
        assert "engine_unavailable" in stream.lines[-1]
        assert time.monotonic() - killed < 5

        meanwhile = server.http.post("/v1/completions", json=QUICK)
        assert meanwhile.status_code in (200, 503)
        if meanwhile.status_code == 503:
            assert int(meanwhile.headers["retry-after"]) >= 1
            assert server.http.get("/readyz").status_code == 503
            assert server.http.get("/healthz").status_code == 200
        eventually(lambda: server.http.get("/readyz").status_code == 200, 40, "a fresh engine")
        assert serves(server)
        assert server.engine_pid() != first
        assert server.metric("tenora_worker_restarts_total") == 1
        assert server.metric("tenora_queue_length") == 0
        assert server.metric("tenora_response_buffer_entries") == 1

        # A step that raises takes down what was in it, and the process with it; the next one is clean.
        other = Background(server)
        started(server, 1)
        assert server.http.post("/v1/completions", json={**QUICK, "prompt": [POISON]}).status_code == 503
        assert other.wait().status == 503
        eventually(lambda: server.metric("tenora_worker_restarts_total") == 2, 40, "a fresh engine")
        assert serves(server)
        assert server.stop() == 0


@pytest.mark.usefixtures("paused")
def test_sigterm_drains_and_leaves_nothing(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        family = server.descendants()
        assert len(family) >= 4, family
        stream, plain = Background(server, stream=True), Background(server)
        eventually(lambda: stream.status == 200, what="a begun stream")
        started(server, 2)
        assert server.stop() == 0
        assert stream.wait().lines[-1] == "data: [DONE]"
        assert len(stream.lines) >= 50
        assert plain.wait().status == 200
        eventually(lambda: not alive(family), 5, "the end of every process")
        assert port_is_free(server)
        assert "Traceback" not in server.output()


def answered_or_refused(server: RunningServer) -> str:
    """What happens to a new connection; a server that neither answers nor refuses shows as a timeout."""
    try:
        return str(httpx.get(f"{server.url}/healthz", timeout=2).status_code)
    except httpx.TransportError as error:
        return type(error).__name__


@pytest.mark.usefixtures("paused")
def test_new_connections_are_refused_during_the_drain(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        stream = Background(server, stream=True)
        eventually(lambda: stream.status == 200, what="a begun stream")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: answered_or_refused(server) == "ConnectError", 2, "a refusal")
        assert server.process.poll() is None
        assert answered_or_refused(server) == "ConnectError"
        assert server.process.wait(30) == 0
        assert stream.wait().lines[-1] == "data: [DONE]"
        assert "Traceback" not in server.output(), server.output()


def test_what_outlasts_the_drain_gets_an_error(home: Home, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTY_PAUSE_S", "0.2")
    with running(log, drain_timeout=1, **FAULTY, **home.settings) as server:
        family = server.descendants()
        stream, plain = Background(server, stream=True), Background(server)
        eventually(lambda: stream.status == 200, what="a begun stream")
        started(server, 2)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        assert stream.wait().lines[-2] == "event: error"
        assert "stopping" in stream.lines[-1]
        assert plain.wait().status == 503
        eventually(lambda: not alive(family), 5, "the end of every process")


@pytest.mark.usefixtures("paused")
def test_interrupt_drains_too(home: Home, log: Path) -> None:
    """^C reaches every process of the terminal's group. The server is bound beyond loopback, told so explicitly."""
    with running(log, host="0.0.0.0", allow_no_auth=True, **FAULTY, **home.settings) as server:
        family = server.descendants()
        stream = Background(server, stream=True, max_tokens=40)
        eventually(lambda: stream.status == 200, what="a begun stream")
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(30) == 0
        assert stream.wait().lines[-1] == "data: [DONE]"
        eventually(lambda: not alive(family), 5, "the end of every process")
        assert "Traceback" not in server.output(), server.output()


def test_no_process_outlives_a_killed_main(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        family = server.descendants()
        server.process.kill()
        server.process.wait(5)
        eventually(lambda: not alive(family), 10, "the end of every process")
        assert port_is_free(server)


def test_a_dead_http_process_ends_the_server(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        family = server.descendants()
        os.kill(server.http_pid(), signal.SIGKILL)
        assert server.process.wait(20) == 1
        eventually(lambda: not alive(family), 10, "the end of every process")


def test_dead_queues_end_the_server(home: Home, log: Path) -> None:
    with running(log, **FAULTY, **home.settings) as server:
        family = server.descendants()
        os.kill(server.manager_pid(), signal.SIGKILL)
        assert server.process.wait(20) == 1
        eventually(lambda: not alive(family), 10, "the end of every process")
        assert "Traceback (most recent call last)" not in server.output(), server.output()


def test_main_killed_while_the_base_loads(
    home: Home, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "loading"
    monkeypatch.setenv("FAULTY_SETUP", "slow")
    monkeypatch.setenv("FAULTY_MARKER", str(marker))
    with running(log, wait=False, **FAULTY, **home.settings) as server:
        eventually(marker.exists, 40, "setup")
        family = server.descendants()
        server.process.kill()
        server.process.wait(5)
        eventually(lambda: not alive(family), 10, "the end of every process")


def test_stopped_while_the_base_loads(home: Home, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "loading"
    monkeypatch.setenv("FAULTY_SETUP", "slow")
    monkeypatch.setenv("FAULTY_MARKER", str(marker))
    with running(log, wait=False, **FAULTY, **home.settings) as server:
        eventually(marker.exists, 40, "setup")
        family = server.descendants()
        assert server.stop(15) == 0
        eventually(lambda: not alive(family), 10, "the end of every process")


def test_an_engine_killed_while_it_loads_ends_the_start(home: Home, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTY_SETUP", "killed")
    with running(log, wait=False, **FAULTY, **home.settings) as server:
        assert server.process.wait(40) == 2
        assert "was killed while it loaded the base" in server.output()


@pytest.fixture
def start_fails(tmp_path: Path) -> Iterator[Any]:
    def start(**settings: Any) -> str:
        """One sentence on stderr, exit code 2, quickly, nothing left."""
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve"],
            env=environment(**{"store": str(tmp_path / "store"), "port": free_port(), **settings}),
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("tenora: ")
        assert done.stdout == ""
        return done.stderr

    yield start


def test_a_missing_base_is_told_in_one_sentence(start_fails: Any, tmp_path: Path) -> None:
    assert "nowhere" in start_fails(base=str(tmp_path / "nowhere"))


def test_settings_that_cannot_work(start_fails: Any) -> None:
    assert "TENORA_API_KEYS" in start_fails(host="0.0.0.0")
    assert "TENORA_API_KEYS is not valid JSON" in start_fails(api_keys="{oops")


def test_a_taken_port_is_told_in_one_sentence(start_fails: Any, server: RunningServer) -> None:
    assert str(server.port) in start_fails(port=server.port)


def test_idle_costs_nearly_nothing(server: RunningServer) -> None:
    def spent() -> float:
        ticks = 0
        for pid in server.descendants():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    before, began = spent(), time.monotonic()
    time.sleep(5)
    assert (spent() - before) / (time.monotonic() - began) < 0.03


def test_banner(server: RunningServer, home: Home) -> None:
    lines = eventually(lambda: server.output().splitlines(), what="the banner")
    assert f"is ready at {server.url}" in lines[0]
    shown = dict(line.split(maxsplit=1) for line in lines[1:5])
    assert shown["base"].startswith("tiny-llama (decoder, context 256)")
    assert shown["store"] == str(home.store)
    assert shown["adapters"] == "8"
    assert shown["docs"] == f"{server.url}/docs"
