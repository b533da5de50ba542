"""Splits and shadows inside the engine process: who runs under which version, and that nobody notices a shadow."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import adapters.store
from adapters.errors import StateError
from adapters.names import LATEST, AdapterName
from adapters.splits import BackOut, Rules
from adapters.store import Store
from adapters.templates import PromptTemplate
from service.comparison import Part
from service.engine.events import FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.stats import EngineStats
from service.errors import InvalidRequestError
from service.figures import Row
from service.messages import Cancel, Prepared, Refused
from service.shadow import MOST_WAITING, SHARE
from service.split_messages import EndSplit, SetSplit, ShowSplit
from service.splits import SplitNotFoundError
from service.usage import Query, read_usage
from tests.service.conftest import Home
from tests.service.running import eventually
from tests.service.test_worker import Bench, generate

NAME = AdapterName("acme", "write")


class Split:
    """A worker whose acme/write has a second version, and what is asked of it."""

    def __init__(self, home: Home, root: Path) -> None:
        home.copied(root)
        self.store = Store(root)
        self.own = self.store.aliases(NAME)[LATEST]
        folder = home.folders / "zeta-write"
        self.other = self.store.publish(
            folder, NAME, home.base, aliases=(), template=PromptTemplate.named("alpaca")
        ).digest
        self.bench = Bench(replace(home, store=root))
        self.splits = self.bench.worker._splits
        eventually(self.splits._thread.is_alive)

    def set(self, weights: dict[str, float], sticky: str | None = "user", shadow: str | None = None) -> None:
        self.splits.ask(SetSplit(NAME, "test", LATEST, Rules(weights, sticky, shadow)))

    def run(self, request_id: str, **changes: Any) -> str:
        """The digest that a request got."""
        self.bench.send(request_id, generate(**{"model": "acme/write"} | changes))
        eventually(lambda: self.bench.finished(request_id))
        (prepared,) = [event for event in self.bench.of(request_id) if isinstance(event, Prepared)]
        return prepared.served.partition("@")[2]

    def row(self, digest: str, *, shadow: bool = False) -> Row:
        shown = self.splits.ask(ShowSplit(NAME, LATEST))
        assert shown is not None
        return shown.rows.get((digest, shadow), Row())


@pytest.fixture
def split(home: Home, tmp_path: Path) -> Iterator[Split]:
    made = Split(home, tmp_path / "store")
    yield made
    made.bench.engine.go.set()
    made.bench.worker.stop()
    made.bench.thread.join(10)
    assert not made.bench.thread.is_alive()
    assert not made.splits.comparison._open


def greedy(**changes: Any) -> dict[str, Any]:
    return {"sampling": SamplingParams(temperature=0.0), **changes}


def test_a_name_is_split_and_a_digest_is_not(split: Split) -> None:
    split.set({split.other: 1})
    assert split.run("bare") == split.run("alias", model="acme/write:latest") == split.other
    assert split.run("own", tenant="acme", model="write") == split.other
    assert split.run("digest", model=f"acme/write@{split.own[:12]}") == split.own
    assert split.row(split.other).requests == 3
    split.splits.ask(EndSplit(NAME, "test", LATEST))
    assert split.run("ended") == split.own
    with pytest.raises(SplitNotFoundError):
        split.splits.ask(EndSplit(NAME, "test", LATEST))


def test_a_user_gets_one_version_and_others_the_other(split: Split) -> None:
    split.set({split.own: 1, split.other: 1})
    got = {f"u{number}": split.run(f"r{number}", sticky=f"u{number}") for number in range(12)}
    assert set(got.values()) == {split.own, split.other}
    for user, digest in got.items():
        assert split.run(f"again-{user}", sticky=user) == digest
    assert split.row(split.own).requests == 2 * Counter(got.values())[split.own]
    nobody = {split.run(f"n{number}") for number in range(24)}
    assert nobody == {split.own, split.other}


def test_another_process_promotes_and_the_split_is_over_at_once(split: Split) -> None:
    split.set({split.other: 1})
    split.store.set_alias(NAME, LATEST, split.own)  # does not tell this process
    assert split.run("r") == split.own


def test_nobody_hears_of_a_shadow(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    for number in range(3):
        assert split.run(f"r{number}", **greedy(tenant="acme", share=2.0)) == split.own
    eventually(lambda: split.row(split.other, shadow=True).requests == 3)
    row = split.row(split.other, shadow=True)
    assert (row.compared, row.equal, row.errors) == (3, 3, {})  # the scripted engine says the same for everybody
    assert split.row(split.own).requests == 3
    assert not [event for event in split.bench.events if "shadow" in str(getattr(event, "request_id", ""))]
    split.bench.worker._ledger.flush()
    (used,) = read_usage(split.store.database, Query(by=(), tenant="acme"))
    assert used.counts.requests == 3
    assert {use.about["tenant"] for use in read_usage(split.store.database, Query(by=("tenant",)))} <= {"acme"}


def test_a_shadow_is_served_last(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    split.bench.engine.go.clear()
    split.bench.send("r", generate("acme/write", **greedy(tenant="acme", share=2.0)))
    engine = split.bench.engine
    eventually(lambda: len(engine.sequences) == 2)
    first, second = engine.sequences
    assert (first.scope, first.share) == ("acme", 2.0)
    assert (second.scope, second.share, second.request_id) == ("acme#shadow", 2.0 * SHARE, "shadow-r")
    assert second.adapter is not None and second.adapter.digest == split.other


def test_what_is_drawn_is_not_compared(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    split.run("r")
    eventually(lambda: split.row(split.other, shadow=True).requests)
    assert split.row(split.other, shadow=True).compared == 0


def test_cancelled_before_it_began_has_no_shadow_and_later_keeps_it(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    bench = split.bench
    held = bench.hold["acme/write"] = threading.Event()
    bench.send("early", generate("acme/write"))
    eventually(lambda: bench.reads)
    bench.send("early", Cancel())
    eventually(lambda: split.row(split.own).aborted == 1)
    held.set()
    bench.engine.go.clear()
    bench.send("late", generate("acme/write"))
    eventually(lambda: "shadow-late" in bench.engine.submitted)
    bench.send("late", Cancel())
    eventually(lambda: split.row(split.own).aborted == 2)
    bench.engine.go.set()
    eventually(lambda: split.row(split.other, shadow=True).requests == 1)
    assert bench.engine.submitted == ["late", "shadow-late"]
    assert "shadow-late" not in bench.engine.aborted


def test_what_the_engine_refuses_is_counted(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    split.bench.send("refused", generate("acme/write"))  # the scripted engine takes no such id
    eventually(lambda: split.row(split.other, shadow=True).requests)
    for row in (split.row(split.own), split.row(split.other, shadow=True)):
        assert (row.requests, row.errors) == (1, {"internal_error": 1})
    assert sum(isinstance(event, Refused) for event in split.bench.events) == 1


def test_shadows_are_dropped_when_there_is_much_to_do(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    split.set({split.own: 1}, shadow=split.other)
    monkeypatch.setattr(split.bench.engine, "stats", lambda: EngineStats(waiting=MOST_WAITING + 1))
    split.run("r")
    eventually(lambda: split.row(split.other, shadow=True).dropped == 1)
    assert split.row(split.other, shadow=True).requests == 0
    assert split.bench.worker._stats().shadows_dropped == 1


def test_stopping_waits_for_no_shadow(split: Split) -> None:
    split.set({split.own: 1}, shadow=split.other)
    split.bench.engine.go.clear()
    split.bench.send("r", generate("acme/write"))
    eventually(lambda: "shadow-r" in split.bench.engine.submitted)
    split.bench.send("r", Cancel())
    eventually(lambda: "r" in split.bench.engine.aborted)
    split.bench.worker.stop()
    split.bench.engine.go.set()
    split.bench.thread.join(10)
    assert "shadow-r" in split.bench.engine.aborted


def test_a_broken_shadow_is_counted_and_told_to_nobody(split: Split) -> None:
    (split.store.folder_of(NAME, split.other) / "adapter_model.safetensors").write_bytes(b"broken")
    split.set({split.own: 1}, shadow=split.other)
    assert split.run("r") == split.own
    eventually(lambda: split.row(split.other, shadow=True).errors == {"adapter_invalid": 1})
    assert not [event for event in split.bench.events if isinstance(event, Refused)]


def test_a_slow_version_is_taken_out_once(split: Split, caplog: pytest.LogCaptureFixture) -> None:
    rules = Rules({split.own: 1, split.other: 1}, back_out=BackOut(p95_ratio=2.0, min_requests=10))
    shown = split.splits.ask(SetSplit(NAME, "test", LATEST, rules))
    assert shown is not None
    began, comparison = time.monotonic(), split.splits.comparison
    for digest, ttft in ((split.own, 0.1), (split.other, 0.3)):
        for number in range(10):
            comparison.open(f"{digest}{number}", Part(shown.split, digest, began=began), [0], 1, cold=False)
            comparison.take(TokenEvent(f"{digest}{number}", 0, "x", (1,), at=began + ttft))
            comparison.take(FinishedEvent(f"{digest}{number}", 0, "stop", 5, 0, 1, 0.0, "device"))
    with caplog.at_level("WARNING"):
        for _ in range(2):  # the second time with what was known before
            split.splits.judge()
    assert [split.run(f"r{number}") for number in range(8)] == [split.own] * 8
    assert split.bench.worker._stats().back_outs == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"acme/write:latest sends no more requests to {split.other[:12]} (reason p95_ratio, ttft_p95_ms 300.0, "
        "own_ttft_p95_ms 100.0, limit 2.0, requests 10)"
    ]


def test_a_database_that_is_gone_for_a_while(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    split.set({split.other: 1})

    def fail(*_: object) -> None:
        raise StateError("gone")

    with monkeypatch.context() as broken:
        broken.setattr("service.splits.read_splits", fail)
        split.splits._watch()
        assert split.run("meanwhile") == split.other
    split.splits._watch()
    assert split.splits._thread.is_alive()


def test_versions_are_for_one_task(split: Split, home: Home) -> None:
    label = split.store.publish(home.folders / "acme-label", NAME, home.base, aliases=(), labels=("a", "b")).digest
    for param, weights, shadow in (("versions", {split.own: 1, label: 1}, None), ("shadow", {split.own: 1}, label)):
        with pytest.raises(InvalidRequestError, match="another task") as refused:
            split.set(weights, shadow=shadow)
        assert refused.value.param == param


@pytest.mark.parametrize(("damage", "code"), [("manifest", "adapter_invalid"), ("folder", "model_not_found")])
def test_a_version_that_cannot_be_found_has_failed(split: Split, damage: str, code: str) -> None:
    split.set({split.other: 1})
    folder = split.store.folder_of(NAME, split.other)
    if damage == "manifest":
        (folder / "tenora.json").write_text("{")
        adapters.store._manifest.cache_clear()  # as a fresh process finds it
    else:
        shutil.rmtree(folder)
    split.bench.send("r", generate("acme/write"))
    eventually(lambda: split.bench.finished("r"))
    row = split.row(split.other)
    assert (row.requests, row.errors) == (1, {code: 1})
    assert [sample.failed for sample in row.samples] == [True]


def test_a_name_without_a_split_pays_next_to_nothing(split: Split) -> None:
    """Two looks into a dictionary; the bound of 50 µs is for the slowest machine."""
    split.set({split.other: 1})
    catalog, work = split.bench.worker._catalog, generate("zeta/write")
    version = catalog.resolve("zeta/write", None)

    def cost() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            catalog.route(work)
        return (time.perf_counter() - began) / 1000

    with pytest.MonkeyPatch.context() as patched:  # what the split adds, without the query that is there anyway
        patched.setattr(catalog, "resolve", lambda *_: version)
        assert min(cost() for _ in range(5)) < 50e-6
