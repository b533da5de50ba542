"""A judge over real HTTP that says what a test tells it to say."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """One response. ``text`` becomes a chat completion; ``raw`` goes out as it stands; ``wait`` is in seconds."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: str | None = None
    wait: float = 0.0

    def body(self) -> bytes:
        completion = {"choices": [{"message": {"role": "assistant", "content": self.text}}]}
        return (self.raw if self.raw is not None else json.dumps(completion)).encode()


@dataclass
class JudgeServer:
    """``requests`` holds what was asked: path, headers and body, with the time of each."""

    url: str
    requests: list[dict[str, Any]]
    most_at_once: list[int]

    def prompts(self) -> list[str]:
        return [request["body"]["messages"][0]["content"] for request in self.requests]


@contextmanager
def judge_server(reply: Callable[[str, int], Say]) -> Iterator[JudgeServer]:
    """Serve ``reply(prompt, number of the request from 0)`` on a free port."""
    requests: list[dict[str, Any]] = []
    lock, now, most = threading.Lock(), [0], [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(requests)
                headers = {name.lower(): value for name, value in self.headers.items()}
                requests.append({"path": self.path, "headers": headers, "body": body, "at": time.monotonic()})
                now[0] += 1
                most[0] = max(most[0], now[0])
            say = reply(body["messages"][0]["content"], number)
            time.sleep(say.wait)
            with lock:
                now[0] -= 1
            try:
                self.send_response(say.status)
                for name, value in say.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(say.body())))
                self.end_headers()
                self.wfile.write(say.body())
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the judge's client has given up waiting

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield JudgeServer(f"http://127.0.0.1:{server.server_port}/v1", requests, most)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
