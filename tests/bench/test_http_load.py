"""The client that puts load on servers, against a server of a few lines."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.http_load import Connection, Request, gaps_ms, send_all
from bench.processes import ServerError


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    together = 0
    most = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with Handler.lock:
            Handler.together += 1
            Handler.most = max(Handler.most, Handler.together)
        time.sleep(0.01)
        with Handler.lock:
            Handler.together -= 1
        if self.path == "/stream":
            events = b"".join(b'data: {"n": %d}\n\n' % number for number in range(body["n"])) + b"data: [DONE]\n\n"
            self._answer(200, "text/event-stream", events)
        elif self.path == "/broken":
            self._answer(500, "application/json", b'{"error": "broken"}')
        else:
            self._answer(200, "application/json", json.dumps(body).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_replies_come_in_the_order_of_sending(port: int) -> None:
    Handler.most = 0
    replies = send_all(port, [Request("/echo", {"n": number}) for number in range(12)], 4)
    assert [reply.value["n"] for reply in replies] == list(range(12))
    assert 2 <= Handler.most <= 4
    assert all(reply.sent < reply.done for reply in replies)


def test_a_refusal_is_an_error(port: int) -> None:
    with pytest.raises(ServerError, match="/broken answered 500"):
        send_all(port, [Request("/echo", {}), Request("/broken", {})], 2)


def test_nobody_listens() -> None:
    with pytest.raises(ServerError):
        send_all(1, [Request("/echo", {})], 1)


def test_events_of_a_stream(port: int) -> None:
    with Connection(port) as connection:
        times = connection.events(Request("/stream", {"n": 3}))
        assert len(times) == 3
        assert connection.first_event_ms(Request("/stream", {"n": 2})) > 0
    assert gaps_ms([1.0, 1.5, 1.75]) == [500.0, 250.0]
