"""What a stream notices of others who load and unload adapters without pause."""

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.context import Bench
from bench.http_load import Connection, Request, gaps_ms
from bench.measuring import percentile
from bench.sections.section import Section
from bench.workloads import prompts

OTHERS = 8
SMALL_PROMPT, SMALL_ANSWER = 8, 2
"""The requests of the others are short, so that what is measured is their adapters and not their tokens."""
SHARES = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
KINDS = ("quiet", "loads", "requests", "work", "bytes")
SLOWEST = 0.25
"""Loads a second that are taken for granted: in a short window there may be none."""
LOAD_CPU_S = 0.07
"""What an adapter that is published, asked and unloaded takes of a core."""
_PROGRAM = """
import hashlib, os, pathlib, sys, tempfile, time
os.nice(19)
kind, work, period, source = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), pathlib.Path(sys.argv[4])
target = tempfile.NamedTemporaryFile()
while True:
    began, spent = time.monotonic(), time.process_time()
    while time.process_time() - spent < work:
        if kind == "bytes":
            data = source.read_bytes()
            hashlib.sha256(data).digest()
            target.seek(0)
            target.write(data)
            os.fsync(target.fileno())
    time.sleep(max(0.0, period - (time.monotonic() - began)))
"""


class Others:
    """A client that works without pause while somebody else is measured."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.cycles = 0

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._work()
                self.cycles += 1
        except Exception as error:
            self._error = error

    def __enter__(self) -> "Others":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


class Neighbours:
    """The others' requests: load an adapter, ask it something, unload it; or only ask."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._server = bench, bench.server
        self._folders = bench.adapters(OTHERS, kind="other")
        self._vocabulary = bench.base.config().vocab_size
        self._turn = 0
        self._connection = Connection(self._server.port)
        self.pause = 0.0
        self._load(self._folders[0], "kept")

    def load_ask_unload(self) -> None:
        """One adapter comes, answers and goes."""
        folder = self._folders[self._turn % OTHERS]
        self._load(folder, folder.name)
        self._ask(folder.name)
        self._connection.post(Request("/v1/unload_lora_adapter", {"lora_name": f"others/{folder.name}"}))

    @contextlib.contextmanager
    def working(self, kind: str) -> Iterator[None]:
        """A process of the lowest priority meanwhile works as long as loading does, and shares nothing with the server.

        Args:
            kind: ``work``: it counts; ``bytes``: it reads, hashes and writes an adapter.
        """
        file = self._folders[0] / "adapter_model.safetensors"
        command = [sys.executable, "-c", _PROGRAM, kind, str(LOAD_CPU_S), str(self.pause), str(file)]
        with subprocess.Popen(command) as process:
            try:
                yield
            finally:
                process.kill()

    def ask(self) -> None:
        """The same question to an adapter that stays, as often as the other way round allows."""
        time.sleep(self.pause)
        self._ask("kept")

    def _load(self, folder: Path, name: str) -> None:
        body = {"lora_name": f"others/{name}", "lora_path": str(folder), "load_inplace": True}
        self._connection.post(Request("/v1/load_lora_adapter", body))

    def _ask(self, name: str) -> None:
        self._turn += 1
        prompt = prompts(1, SMALL_PROMPT, self._vocabulary, 30_000 + self._turn)[0]
        request = self._server.request(prompt, None, SMALL_ANSWER)
        self._connection.post(Request(request.path, {**request.body, "model": f"others/{name}"}))


def run(bench: Bench) -> None:
    """Stream in turns alone, beside loads and unloads, beside requests alone, and with work of no use beside those."""
    tokens, windows = (120, 4) if bench.options.quick else (300, 10)
    neighbours, stream = Neighbours(bench), Stream(bench, tokens)
    gaps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rates: dict[str, list[float]] = {"loads": [], "requests": []}
    for number in range(windows):
        gaps["quiet"] += stream.gaps()
        for kind, work in (("loads", neighbours.load_ask_unload), ("requests", neighbours.ask)):
            start = time.perf_counter()
            with Others(work) as others:
                gaps[kind] += stream.gaps()
            rates[kind].append(others.cycles / (time.perf_counter() - start))
            if kind == "loads":
                neighbours.pause = 1 / max(SLOWEST, rates[kind][-1])
        for kind in ("work", "bytes"):
            with neighbours.working(kind), Others(neighbours.ask):
                gaps[kind] += stream.gaps()
        shown = ", ".join(f"{kind} p99 {percentile(values, 0.99):.1f} ms" for kind, values in gaps.items())
        bench.say(f"window {number + 1} of {windows}: {shown}")
    p99 = {kind: percentile(values, 0.99) for kind, values in gaps.items()}
    bench.report.figures(
        "bystander",
        {
            "itl_ms": {
                kind: {f"p{round(100 * share)}": round(percentile(values, share), 2) for share in SHARES}
                for kind, values in gaps.items()
            },
            "tokens": {kind: len(values) for kind, values in gaps.items()},
            "loads_per_second": round(statistics.mean(rates["loads"]), 2),
            "requests_per_second": round(statistics.mean(rates["requests"]), 2),
            "p99_loads_over_requests": round(p99["loads"] / p99["requests"], 3),
            **{f"p99_{kind}_over_quiet": round(p99[kind] / p99["quiet"], 3) for kind in ("work", "bytes")},
        },
    )
    bench.report.ratio("bystander_p99", p99["loads"] / p99["quiet"])


class Stream:
    """The tenant who notices: one answer after the other, streamed under one adapter."""

    def __init__(self, bench: Bench, tokens: int) -> None:
        self._server, self._tokens = bench.server, tokens
        self._name = bench.adapters(1)[0].name
        self._vocabulary = bench.base.config().vocab_size
        self._length = bench.options.prompt_tokens
        self._seed = 20_000
        self.gaps()

    def gaps(self) -> list[float]:
        """Milliseconds between the tokens of one answer.

        A token that is only part of a character is held back until the rest of it comes; an answer with such tokens
        has gaps that are none of the server's doing, and is asked for again with another prompt.
        """
        for _ in range(20):
            self._seed += 1
            prompt = prompts(1, self._length, self._vocabulary, self._seed)[0]
            with Connection(self._server.port) as connection:
                times = connection.events(self._server.request(prompt, self._name, self._tokens, stream=True))
            if len(times) == self._tokens + 1:  # the last event says why the answer ends
                return gaps_ms(times[:-1])
        raise RuntimeError("no answer came token by token")


SECTION = Section(
    "bystander",
    "inter-token latency of a stream while others load and unload adapters without pause",
    run,
    ("bystander_p99",),
    quick=True,
)
