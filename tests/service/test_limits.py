"""Keys, the bound on the queue, deadlines and disconnects, on a server that takes its time."""

import concurrent.futures
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.service.conftest import ADMIN, KEYS, Home
from tests.service.running import RunningServer, eventually, running

BODY: dict[str, Any] = {"model": "tiny-llama", "prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True}
QUICK: dict[str, Any] = {**BODY, "max_tokens": 1}


@pytest.fixture(scope="module")
def slow(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """20 ms a step, at most 4 sequences in flight."""
    log = tmp_path_factory.mktemp("slow") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTY_PAUSE_S", "0.02")
        module = {"module": "tests.service.faulty_server", "arguments": ()}
        limits = {"max_queue": 4, "request_timeout": 20, "max_body_bytes": 100_000, "body_timeout": 1, "max_running": 2}
        with running(log, key=ADMIN, api_keys=KEYS, **module, **limits, **home.settings) as started:
            yield started
            os.killpg(started.process.pid, signal.SIGTERM)  # as a service manager does, not to the main process alone
            assert started.process.wait(30) == 0
            assert "Traceback" not in started.output(), started.output()


def in_flight(server: RunningServer) -> float:
    return server.metric("tenora_queue_length")


def free(server: RunningServer) -> bool:
    """Nothing is owed, nothing runs, every block is back."""
    return (
        in_flight(server) == 0
        and server.metric("tenora_sequences_running") == 0
        and server.metric("tenora_sequences_waiting") == 0
        and server.metric("tenora_kv_blocks_free") == server.metric("tenora_kv_blocks_total") > 0
    )


@pytest.fixture(autouse=True)
def leaves_nothing(slow: RunningServer) -> Iterator[None]:
    yield
    eventually(lambda: free(slow), 10, "an idle server")
    assert slow.metric("tenora_response_buffer_entries") == 1
    assert slow.http.post("/v1/completions", json=QUICK).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": "Bearer wrong-key"}, {"Authorization": ADMIN}, {"Authorization": f"Basic {ADMIN}"},
        {"X-API-Key": "wrong"}, {"Authorization": "Bearer"}, {"X-API-Key": ""}, {"Authorization": f"Bearer {ADMIN}x"},
    ],
)  # fmt: skip
def test_401(slow: RunningServer, headers: dict[str, str]) -> None:
    for method, path in [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/completions"), ("GET", "/nowhere")]:
        response = httpx.request(method, slow.url + path, headers=headers, timeout=10)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {ADMIN}"}, {"authorization": f"bearer {ADMIN}"}, {"X-API-Key": ADMIN}]
)
def test_keys_in_either_header(slow: RunningServer, headers: dict[str, str]) -> None:
    assert httpx.get(f"{slow.url}/v1/models", headers=headers, timeout=10).status_code == 200


def test_probes_and_documentation_are_open(slow: RunningServer) -> None:
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert httpx.get(slow.url + path, timeout=10).status_code == 200


def test_429_with_retry_after(slow: RunningServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        body = {**BODY, "max_tokens": 60}
        running_requests = [pool.submit(slow.http.post, "/v1/completions", json=body) for _ in range(4)]
        eventually(lambda: in_flight(slow) == 4, what="a full queue")
        refused = slow.http.post("/v1/completions", json=QUICK)
        also = slow.http.post("/v1/classify", json={"model": "acme/label", "input": "a"})
        models = slow.http.get("/v1/models")  # questions are not work
        for response in (refused, also):
            assert response.status_code == 429
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert int(response.headers["retry-after"]) >= 1
        assert models.status_code == 200
        assert [request.result().status_code for request in running_requests] == [200] * 4
    assert slow.metric("tenora_rejected_total") >= 2


def test_a_request_larger_than_the_queue_is_not_told_to_come_back(slow: RunningServer) -> None:
    response = slow.http.post("/v1/completions", json={**QUICK, "n": 5})
    assert response.status_code == 400
    assert "4" in response.json()["error"]["message"]


def test_504_while_running_and_while_waiting(slow: RunningServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        requests = [
            pool.submit(slow.http.post, "/v1/completions", json={**BODY, "timeout": 0.5}) for _ in range(4)
        ]  # two of them wait: there is room for two
        responses = [request.result() for request in requests]
    assert time.monotonic() - began < 3
    for response in responses:
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"


def test_a_deadline_inside_a_stream_is_an_error_event(slow: RunningServer) -> None:
    with slow.http.stream("POST", "/v1/completions", json={**BODY, "stream": True, "timeout": 0.6}) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert lines[-2] == "event: error"
    assert "deadline_exceeded" in lines[-1]
    assert "data: [DONE]" not in lines


def test_the_official_client_raises_on_an_error_event(slow: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key=ADMIN, max_retries=0) as client:
        stream = client.completions.create(
            model="tiny-llama",
            prompt=[5, 6, 7],
            max_tokens=200,
            stream=True,
            extra_body={"timeout": 0.6, "ignore_eos": True},
        )
        with pytest.raises(openai.APIError, match="deadline"):
            list(stream)


def test_413_closes_without_reading_on(slow: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", slow.port), timeout=10) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {ADMIN}\r\nContent-Type: application/json\r\n"
        raw.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        answer = b""
        for _ in range(4):  # never the end of the body: the answer must not wait for it
            raw.sendall(chunk)
        while b"body_too_large" not in answer and (more := raw.recv(65536)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413")


def test_408_for_a_body_that_does_not_come(slow: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", slow.port), timeout=10) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-API-Key: {ADMIN}\r\nContent-Type: application/json\r\n"
        raw.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
        answer, began = b"", time.monotonic()
        while more := raw.recv(65536):  # until the server closes the connection
            answer += more
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in answer
    assert 0.5 < time.monotonic() - began < 5


def cancelled(server: RunningServer) -> float:
    return server.metric("tenora_cancelled_total")


def test_disconnect_from_a_stream_frees_the_sequence(slow: RunningServer) -> None:
    before = cancelled(slow)
    with slow.http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        assert in_flight(slow) == 1
    eventually(lambda: free(slow), 3, "a freed sequence")
    assert cancelled(slow) == before + 1


def test_disconnect_from_a_plain_request_frees_the_sequence(slow: RunningServer) -> None:
    before = cancelled(slow)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow.url}/v1/completions", json=BODY, headers={"X-API-Key": ADMIN}, timeout=0.4)
    eventually(lambda: free(slow), 3, "a freed sequence")
    assert cancelled(slow) == before + 1


def test_many_clients_that_hang_up_leak_nothing(slow: RunningServer) -> None:
    def hang_up(number: int) -> None:
        stream = number % 2 == 0
        try:
            with httpx.stream(
                "POST", f"{slow.url}/v1/completions", json={**BODY, "stream": stream},
                headers={"X-API-Key": ADMIN}, timeout=0.02 * (number % 5 + 1),
            ) as response:  # fmt: skip
                next(response.iter_lines(), None)
        except httpx.TransportError:
            pass

    threads = [threading.Thread(target=hang_up, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join(10)
