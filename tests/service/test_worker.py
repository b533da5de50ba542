"""The engine process's inside, in one process: a scripted engine stands in where timing or failure is the point."""

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.adapter import Adapter, load_adapter
from adapters.cache import HostCache
from adapters.store import Store, Version
from service.catalog import Catalog
from service.encode import Encoder, check_task
from service.engine.events import Event, FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from service.engine.stats import EngineStats
from service.errors import WrongTaskError
from service.ledger import Ledger
from service.messages import (
    Accepted,
    Answered,
    Cancel,
    Classify,
    DescribeBase,
    Generate,
    Message,
    Prepared,
    Refused,
    TextPrompt,
    WorkerStarted,
    WorkerStats,
)
from service.prepare import Preparer
from service.worker import Worker
from tests.service.conftest import Home, unguarded
from tests.service.running import eventually


class ScriptedEngine:
    """Finishes each sequence after one token, while ``go`` is set."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.submitted: list[str] = []
        self.aborted: list[str] = []
        self.steps_left = 0
        self.go = threading.Event()
        self.go.set()
        self.poison: Exception | None = None

    def submit(self, sequence: Sequence) -> None:
        if "refused" in sequence.request_id:
            raise RuntimeError("no room")
        self.submitted.append(sequence.request_id)
        self.sequences.append(sequence)

    def abort(self, request_id: str) -> int:
        self.aborted.append(request_id)
        before = len(self.sequences)
        self.sequences = [sequence for sequence in self.sequences if sequence.request_id != request_id]
        return before - len(self.sequences)

    def has_work(self) -> bool:
        return bool(self.sequences) and self.go.is_set()

    def step(self) -> list[Event]:
        events: list[Event] = []
        for sequence in self.sequences:
            events.append(TokenEvent(*sequence.key, "x", (1,)))
            events.append(FinishedEvent(*sequence.key, "length", sequence.prompt_tokens, 0, 1, 0, "base"))
        if self.steps_left > 0:  # not the last token yet
            self.steps_left -= 1
            time.sleep(0.002)
            return [event for event in events if isinstance(event, TokenEvent)]
        self.sequences = []
        return events

    def stats(self) -> EngineStats:
        return EngineStats()

    def weights_hash(self) -> str:
        return "0" * 64


class Bench:
    """A worker with its queue's two ends in the test's hands."""

    def __init__(self, home: Home, cache_bytes: int = 1 << 30) -> None:
        self.engine = ScriptedEngine()
        self.inbox: queue.Queue[tuple[str, Message]] = queue.Queue()
        self.events: list[Any] = []
        self.batches: list[list[Any]] = []
        self.hold: dict[str, threading.Event] = {}
        """Adapters whose reading waits for an event."""
        self.reads: list[str] = []
        store = Store(home.store)

        def load(version: Version) -> Adapter:
            self.reads.append(str(version.name))
            if str(version.name) in self.hold:
                self.hold[str(version.name)].wait(10)
            return load_adapter(version.path, home.base, digest=version.digest, ref=str(version.name))

        cache = HostCache(cache_bytes, load)
        catalog = Catalog(home.base, store, cache, unguarded(store), max_model_len=256, max_lora_rank=64, folders=())
        encoder = Encoder(home.base, 256)
        self.worker = Worker(
            self.engine,
            catalog,
            ledger=Ledger(store.database, home.base.id, cache.resident),
            make_preparer=lambda emit, hand_over: Preparer(catalog, cache, encoder, emit, hand_over),
            receive=lambda: self.inbox.get(timeout=0.1),
            send=self._take,
            cache_bytes=lambda: cache.stats().nbytes,
        )
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def _take(self, batch: list[Any]) -> None:
        self.batches.append(batch)
        self.events.extend(batch)

    def batches_of(self, request_id: str) -> int:
        return sum(any(getattr(event, "request_id", None) == request_id for event in batch) for batch in self.batches)

    def send(self, request_id: str, message: Message) -> None:
        self.inbox.put((request_id, message))

    def of(self, request_id: str) -> list[Any]:
        return [event for event in self.events if getattr(event, "request_id", None) == request_id]

    def finished(self, request_id: str) -> bool:
        return any(isinstance(event, FinishedEvent | Refused) for event in self.of(request_id))


@pytest.fixture
def bench(home: Home) -> Iterator[Bench]:
    made = Bench(home)
    yield made
    made.engine.go.set()
    for held in made.hold.values():
        held.set()
    made.worker.stop()
    made.thread.join(10)
    assert not made.thread.is_alive()


def generate(model: str = "tiny-llama", timeout: float = 30, **changes: Any) -> Generate:
    fields: dict[str, Any] = {
        "tenant": None, "model": model, "prompts": (TextPrompt("It was"),), "n": 1, "sampling": SamplingParams(),
        "max_tokens": 5, "default_max_tokens": 16, "deadline": time.monotonic() + timeout,
    }  # fmt: skip
    return Generate(**fields | changes)


def test_a_request_from_message_to_last_event(bench: Bench) -> None:
    bench.send("r", generate("acme/write"))
    eventually(lambda: bench.finished("r"))
    kinds = [type(event) for event in bench.of("r")]
    assert kinds == [Accepted, Prepared, TokenEvent, FinishedEvent]
    assert isinstance(bench.events[0], WorkerStarted)
    assert isinstance(bench.events[1], WorkerStats)


def test_tokens_that_nobody_waits_for_travel_together(bench: Bench) -> None:
    for name, stream in (("whole", False), ("streamed", True)):
        bench.engine.steps_left = 100
        bench.send(name, generate(stream=stream))
        eventually(lambda name=name: bench.finished(name))
        assert sum(isinstance(event, TokenEvent) for event in bench.of(name)) == 101
    assert bench.batches_of("whole") <= 5  # accepted, prepared, perhaps a heartbeat, the end
    assert bench.batches_of("streamed") > 20


def test_a_message_that_is_sent_twice_runs_once(bench: Bench) -> None:
    bench.send("r", generate())
    bench.send("r", generate())
    eventually(lambda: bench.finished("r"))
    bench.send("later", generate())
    eventually(lambda: bench.finished("later"))
    assert bench.engine.submitted == ["r", "later"]


def test_a_cold_adapter_delays_no_warm_one(bench: Bench) -> None:
    bench.hold["acme/write"] = threading.Event()
    for number in range(20):  # many requests for the cold one hold no thread
        bench.send(f"cold{number}", generate("acme/write"))
    eventually(lambda: bench.reads == ["acme/write"])
    bench.send("base", generate())
    bench.send("other", generate("zeta/write"))
    eventually(lambda: bench.finished("base") and bench.finished("other"))
    assert not bench.finished("cold0")
    bench.hold["acme/write"].set()
    eventually(lambda: all(bench.finished(f"cold{number}") for number in range(20)))
    assert bench.reads.count("acme/write") == 1
    prepared = [event for event in bench.events if isinstance(event, Prepared)]
    assert {event.cold for event in prepared if event.request_id.startswith("cold")} == {True}


def test_cancelled_while_its_adapter_is_read(bench: Bench) -> None:
    bench.hold["acme/write"] = threading.Event()
    bench.send("r", generate("acme/write"))
    eventually(lambda: bench.reads)
    bench.send("r", Cancel())
    bench.send("next", generate())
    eventually(lambda: bench.finished("next"))
    bench.hold["acme/write"].set()
    bench.send("again", generate("acme/write"))
    eventually(lambda: bench.finished("again"))
    assert "r" not in bench.engine.submitted
    assert not bench.finished("r")


def test_cancelled_in_the_engine(bench: Bench) -> None:
    bench.engine.go.clear()
    bench.send("r", generate())
    eventually(lambda: bench.engine.submitted)
    bench.send("r", Cancel())
    eventually(lambda: "r" in bench.engine.aborted)
    assert bench.engine.sequences == []


def test_cancelling_at_any_moment_leaves_nothing(bench: Bench) -> None:
    bench.engine.go.clear()
    for number in range(200):
        bench.send(f"r{number}", generate())
        if number % 3:
            time.sleep(0.0002 * (number % 3))
        bench.send(f"r{number}", Cancel())
    bench.send("last", generate())
    eventually(lambda: "last" in bench.engine.submitted)
    eventually(lambda: [sequence.request_id for sequence in bench.engine.sequences] == ["last"])


def test_a_deadline_that_passes_while_the_adapter_is_read(bench: Bench) -> None:
    bench.hold["acme/write"] = threading.Event()
    bench.send("r", generate("acme/write", timeout=0.2))
    eventually(lambda: bench.reads)
    time.sleep(0.25)
    bench.hold["acme/write"].set()
    eventually(lambda: bench.finished("r"))
    assert bench.of("r")[-1].error.status == 504


def test_an_adapter_that_cannot_be_read_fails_all_who_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.service.test_worker.load_adapter", lambda *_, **__: 1 / 0)
    for number in range(3):
        bench.send(f"r{number}", generate("acme/write"))
    eventually(lambda: all(bench.finished(f"r{number}") for number in range(3)))
    errors = {bench.of(f"r{number}")[-1].error for number in range(3)}
    assert {(error.status, error.code) for error in errors} == {(500, "internal_error")}
    monkeypatch.undo()
    bench.send("again", generate("acme/write"))
    eventually(lambda: bench.finished("again"))
    assert bench.engine.submitted == ["again"]


def test_two_tenants_with_the_same_bytes_keep_their_names(home: Home, tmp_path: Path) -> None:
    from adapters.names import AdapterName

    store = Store(tmp_path / "store")
    for tenant in ("acme", "zeta"):
        store.publish(home.folders / "acme-write", AdapterName(tenant, "same"), home.base)
    bench = Bench(Home(home.base, store.root, home.folders), cache_bytes=0)
    try:
        bench.hold = {"acme/same": threading.Event(), "zeta/same": threading.Event()}
        bench.send("a", generate("acme/same"))
        bench.send("z", generate("zeta/same"))
        eventually(lambda: bench.reads)
        for held in bench.hold.values():
            held.set()
        eventually(lambda: bench.finished("a") and bench.finished("z"))
        served = {event.request_id: event.served for event in bench.events if isinstance(event, Prepared)}
        assert served["a"].startswith("acme/same@")
        assert served["z"].startswith("zeta/same@")
    finally:
        bench.worker.stop()
        bench.thread.join(10)


def test_the_engine_may_refuse_a_sequence(bench: Bench) -> None:
    bench.send("refused", generate())
    eventually(lambda: bench.finished("refused"))
    assert bench.of("refused")[-1].error.status == 500
    assert "refused" in bench.engine.aborted
    bench.send("fine", generate())
    eventually(lambda: bench.finished("fine"))


def test_an_encoder_does_not_write(home: Home) -> None:
    encoder = dataclasses.replace(home.base, kind="encoder")
    with pytest.raises(WrongTaskError, match="/v1/classify"):
        check_task(generate(), None, encoder)


def test_questions(bench: Bench) -> None:
    bench.send("q", DescribeBase())
    eventually(lambda: any(isinstance(event, Answered) for event in bench.of("q")))
    info, digest = bench.of("q")[-1].value
    assert info.id == "tiny-llama"
    assert digest == "0" * 64


def test_a_message_of_no_known_kind_does_not_stop_the_reader(bench: Bench) -> None:
    bench.send("odd", object())  # type: ignore[arg-type]
    bench.send("fine", generate())
    eventually(lambda: bench.finished("fine"))


def test_stopping_finishes_what_is_in_flight(home: Home) -> None:
    bench = Bench(home)
    bench.hold["acme/label"] = threading.Event()
    bench.send("r", Classify(None, "acme/label", ("a",), time.monotonic() + 30))
    eventually(lambda: bench.reads)
    bench.worker.stop()
    time.sleep(0.1)
    assert bench.thread.is_alive()
    bench.hold["acme/label"].set()
    bench.thread.join(10)
    assert not bench.thread.is_alive()
    assert bench.finished("r")
