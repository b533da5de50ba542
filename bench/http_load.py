"""The client that puts load on a server: the same code for Tenora and for its rivals.

A thread a request, each with a connection of its own that stays open, so the client costs as little as it can: it
shares the cores with the server that it measures.
"""

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from bench.processes import ServerError

TIMEOUT_S = 600
KEPT_S = 2.0
"""Servers hang up on connections that nobody has used for a few seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """A POST, ready to be sent."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and when, on the clock of ``time.perf_counter``."""

    value: Any
    sent: float
    done: float


class Connection:
    """One connection to a server, opened at once, kept, and opened anew where it was idle for long.

    Raises:
        ServerError: Nobody listens, the connection broke, or the status was not 200.
    """

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._used = time.monotonic()
        with _told():
            self._http.connect()

    def post(self, request: Request) -> Reply:
        """Send a request and read the whole answer."""
        sent = time.perf_counter()
        with _told():
            response = self._send(request)
            body = response.read()
        done = time.perf_counter()
        self._used = time.monotonic()
        if response.status != 200:
            raise ServerError(f"{request.path} answered {response.status}: {body[:300].decode(errors='replace')}")
        kind = response.headers.get_content_type()
        return Reply(json.loads(body) if kind == "application/json" else body.decode(), sent, done)

    def events(self, request: Request) -> list[float]:
        """Send a request for a stream; the time of each event that carried a piece of the answer."""
        times = []
        with _told():
            response = self._send(request)
            if response.status != 200:
                raise ServerError(f"{request.path} answered {response.status}: {response.read(300).decode()}")
            while line := response.readline():
                if line.startswith(b"event: error"):
                    raise ServerError(f"the stream broke: {response.readline()[:300].decode()}")
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter())
            response.read()  # marks it as read, so that the connection takes another request
        self._used = time.monotonic()
        return times

    def first_event_ms(self, request: Request) -> float:
        """Send a request for a stream; milliseconds until its first piece. The rest is read too."""
        start = time.perf_counter()
        return (self.events(request)[0] - start) * 1e3

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def _send(self, request: Request) -> http.client.HTTPResponse:
        payload = json.dumps(request.body).encode()
        if time.monotonic() - self._used > KEPT_S:
            self._http.close()
        self._http.request("POST", request.path, payload, {"content-type": "application/json"})
        return self._http.getresponse()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong on the line is told as one kind of error."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the connection to the server broke: {error!r}") from error


def send_all(port: int, requests: Iterable[Request], at_once: int) -> list[Reply]:
    """Send requests, so many at once, each as soon as one before it is answered; replies in order of sending.

    All connections are open before the first request goes out.
    """
    waiting = iter(enumerate(requests))
    replies: dict[int, Reply] = {}
    errors: list[ServerError] = []
    lock = threading.Lock()

    def work(connection: Connection) -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                replies[item[0]] = connection.post(item[1])
            except ServerError as error:
                errors.append(error)

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(port)) for _ in range(at_once)]
        threads = [threading.Thread(target=work, args=(connection,), daemon=True) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [replies[index] for index in sorted(replies)]


def gaps_ms(times: Iterable[float]) -> list[float]:
    """Milliseconds between one event and the next."""
    stamps = list(times)
    return [(after - before) * 1e3 for before, after in itertools.pairwise(stamps)]
