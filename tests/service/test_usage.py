"""The usage ledger: every token is counted once, for whom it was generated, whatever dies."""

import csv
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import astuple
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

import adapters.database.schema as schema
from adapters.database.database import Database, now
from adapters.errors import StateError
from service.engine.events import ClassifiedEvent, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.sequence import Sequence
from service.errors import InvalidRequestError
from service.ledger import Ledger, _is_new, _rows
from service.ready import Ready
from service.usage import Query, Used, read_usage
from tests.service.conftest import ACME, ADMIN, KEYS, ZETA, Home
from tests.service.running import RunningServer, eventually, running

DAY = date(2030, 1, 31)


def ledger_of(database: Database, day: date = DAY) -> Ledger:
    return Ledger(database, "base", list, lambda: day)


def generating(request_id: str, prompts: int = 1, answers: int = 1, tenant: str = "acme") -> Ready:
    """A request with prompts of 5, 6, … tokens."""
    sequences = [
        Sequence(
            request_id, [1] * (5 + index // answers), index=index, sampling=SamplingParams(max_tokens=9), scope=tenant
        )
        for index in range(prompts * answers)
    ]
    return Ready(request_id, sequences, answers, cold=False)


def counted(database: Database, **query: Any) -> dict[str, int]:
    """The sums of everything, without what is in memory."""
    (row,) = read_usage(database, Query(by=(), **query))
    facts = row.as_dict()
    facts.pop("resident_byte_seconds")
    return {name: value for name, value in facts.items() if value}


def test_tokens_count_when_they_are_generated(database: Database) -> None:
    ledger = ledger_of(database)
    ledger.open(generating("a", prompts=2, answers=2))
    ledger.note([TokenEvent("a", 0, "x", (7,)), TokenEvent("a", 1, "x", (7,)), TokenEvent("a", 0, "x", (8, 9))])
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 5, "generated_tokens": 4}
    ledger.note([TokenEvent("a", 2, "x", (7,)), FinishedEvent("a", 2, "stop", 6, 0, 1, 0.0, "base")])
    ledger.note([FailedEvent("a", 3, "deadline_exceeded", "late"), TokenEvent("unknown", 0, "x", (7,))])
    ledger.close("a")
    ledger.note([TokenEvent("a", 0, "x", (7,))])
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 11, "generated_tokens": 5}
    assert not ledger._open


def test_a_finished_request_is_forgotten(database: Database) -> None:
    ledger = ledger_of(database)
    ledger.open(generating("a", prompts=2))
    finished = [FinishedEvent("a", index, "stop", 5, 0, 1, 0.0, "base") for index in range(2)]
    ledger.note([TokenEvent("a", 0, "x", (7,)), finished[0], TokenEvent("a", 1, "x", (7,)), finished[1]])
    assert not ledger._open


def test_texts_and_cold_starts(database: Database) -> None:
    ledger = ledger_of(database)
    texts = [Sequence("a", [1] * 4, index=index, scope="acme") for index in range(2)]
    ledger.open(Ready("a", texts, 1, cold=True))
    ledger.note([ClassifiedEvent("a", index, (1.0,), 4, 0.0, "host") for index in range(2)])
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 8, "classifications": 2, "cold_starts": 1}


def test_rows_are_by_tenant_adapter_version_and_day(database: Database) -> None:
    for day, tenant in ((DAY, "acme"), (DAY, "acme"), (DAY, ""), (DAY.replace(day=30), "zeta")):
        ledger = ledger_of(database, day)
        ledger.open(generating("a", tenant=tenant))
        ledger.flush()
    rows = read_usage(database, Query())
    assert [(*row.about.values(), row.counts.requests) for row in rows] == [
        (DAY.replace(day=30), "zeta", "base", "", 1),
        (DAY, "*", "base", "", 1),
        (DAY, "acme", "base", "", 2),
    ]
    assert [row.about for row in read_usage(database, Query(by=("tenant",), first=DAY))] == [
        {"tenant": "*"},
        {"tenant": "acme"},
    ]
    assert counted(database, tenant="acme") == {"requests": 2}
    assert counted(database, last=DAY.replace(day=30)) == {"requests": 1}
    assert counted(database, adapter="none") == {}
    with pytest.raises(InvalidRequestError, match="colour"):
        read_usage(database, Query(by=("colour",)))


def test_what_cannot_be_written_is_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(database)
    ledger.open(generating("a"))
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise StateError("gone")

        broken.setattr("service.ledger._write", fail)
        ledger.flush()
        ledger.note([TokenEvent("a", 0, "x", (7,))])
        ledger.flush()
    ledger.flush()
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 5, "generated_tokens": 1}


def test_a_flush_ends_however_much_is_charged_meanwhile(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, writes = ledger_of(database), 0

    def charge_too(*args: Any) -> None:
        nonlocal writes
        writes += 1
        assert writes < 3
        ledger.note([TokenEvent("a", 0, "x", (7,))])

    monkeypatch.setattr("service.ledger._write", charge_too)
    ledger.open(generating("a"))
    ledger.flush()
    assert writes == 1
    ledger.flush()
    assert writes == 2


def broken_after_commit(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Commits happen, and break before anybody is told; the list has an entry for each of them."""
    database.prepare()
    assert database._engines is not None
    dialect, broken = database._engines.writing.dialect, list[int]()
    commit = dialect.do_commit

    def break_off(connection: Any) -> None:
        commit(connection)
        broken.append(1)
        connection.driver_connection.close()
        raise dialect.dbapi.OperationalError("the connection is closed")  # type: ignore[union-attr]

    monkeypatch.setattr(dialect, "do_commit", break_off)
    return broken


def test_what_was_written_when_the_connection_broke_counts_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_of(database)
    ledger.open(generating("a"))
    with monkeypatch.context() as patch:
        broken = broken_after_commit(database, patch)
        ledger.flush()
        assert counted(database) == {"requests": 1}  # it was committed, and the ledger was told that it failed
        ledger.note([TokenEvent("a", 0, "x", (7,))])
        ledger.flush()
        assert len(broken) == 2  # the second try commits as well, and adds nothing
    assert counted(database) == {"requests": 1}
    ledger.note([TokenEvent("a", 0, "x", (8, 9))])
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 5, "generated_tokens": 3}
    ledger.flush()
    assert counted(database) == {"requests": 1, "prompt_tokens": 5, "generated_tokens": 3}


def test_what_a_dead_server_is_still_committing_is_waited_for(new_postgres: Callable[[], str]) -> None:
    """A connection that broke may have left its transaction open on the server: it is decided before we go on."""
    with closing(Database(new_postgres())) as database:
        ledger = ledger_of(database)
        ledger.open(generating("a"))
        pending = ledger._unsure = ledger._gathered()
        assert pending is not None
        again = threading.Thread(target=ledger.flush)
        with database.writing() as connection:
            assert _is_new(connection, pending)
            connection.execute(schema.usage.insert().values(_rows(pending.counts)))
            again.start()
            again.join(0.5)
            assert again.is_alive()
        again.join(10)
        assert counted(database) == {"requests": 1}


def test_writers_of_long_ago_are_forgotten(database: Database) -> None:
    long_ago = now() - timedelta(days=31)
    with database.writing() as connection:
        for writer, at in (("old", long_ago), ("recent", now())):
            connection.execute(schema.usage_writers.insert().values(id=writer, written=7, at=at))
    ledger = ledger_of(database)
    for request in ("a", "b"):
        ledger.open(generating(request))
        ledger.flush()
    with database.reading() as connection:
        found = dict(connection.execute(select(schema.usage_writers.c.id, schema.usage_writers.c.written)).all())
    assert found == {"recent": 7, ledger._writer: 2}


# On a real server


@pytest.fixture(scope="module")
def counting(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("counting")
    home.copied(folder / "store")
    settings = {**home.settings, "store": str(folder / "store")}
    with running(folder / "log", key=ADMIN, api_keys=KEYS, **settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


def usage(server: RunningServer, key: str = ADMIN, **query: str) -> list[dict[str, Any]]:
    reply = server.http.get("/v1/usage", params=query, headers={"Authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]  # type: ignore[no-any-return]


def total(server: RunningServer, field: str, **query: str) -> int:
    return sum(row[field] for row in usage(server, **query))


def complete(server: RunningServer, model: str, key: str, **more: Any) -> dict[str, int]:
    body = {"model": model, "prompt": "hello there", "max_tokens": 7, "ignore_eos": True, **more}
    reply = server.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]  # type: ignore[no-any-return]


def test_the_ledger_says_what_the_replies_say(counting: RunningServer) -> None:
    told = [
        complete(counting, "acme/write", ACME),
        complete(counting, "acme/write", ACME, n=3, temperature=1.0),
        complete(counting, "acme/write", ACME, prompt=["a b", "c d e f"], n=2, temperature=1.0),
    ]
    other = complete(counting, "zeta/write", ZETA)
    texts = {"model": "acme/label", "input": ["good", "bad", "so so"]}
    reply = counting.http.post("/v1/classify", json=texts, headers={"Authorization": f"Bearer {ACME}"}).json()
    eventually(lambda: total(counting, "requests") == 5, what="five requests in the ledger")
    (written,) = usage(counting, adapter="acme/write", by="tenant,adapter,digest")
    assert written["tenant"] == "acme"
    assert written["requests"] == 3
    assert written["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in told)
    assert written["generated_tokens"] == sum(usage["completion_tokens"] for usage in told)
    assert written["cold_starts"] == 1
    assert len(written["digest"]) == 64
    (labelled,) = usage(counting, adapter="acme/label", by="tenant")
    assert labelled["prompt_tokens"] == reply["usage"]["prompt_tokens"]
    assert (labelled["classifications"], labelled["generated_tokens"]) == (3, 0)
    assert total(counting, "generated_tokens", tenant="zeta") == other["completion_tokens"]
    before = total(counting, "resident_byte_seconds", adapter="acme/write")
    eventually(lambda: total(counting, "resident_byte_seconds", adapter="acme/write") > before, what="residency")


def test_tenants_see_their_own_alone(counting: RunningServer) -> None:
    complete(counting, "acme/write", ACME)
    complete(counting, "zeta/write", ZETA)
    eventually(lambda: usage(counting, ACME) and usage(counting, ZETA), what="usage of both")
    assert {row["tenant"] for row in usage(counting, ACME)} == {"acme"}
    assert "acme" not in str(usage(counting, ZETA))
    refused = counting.http.get("/v1/usage?tenant=acme", headers={"Authorization": f"Bearer {ZETA}"})
    assert refused.status_code == 404


def test_csv_and_bad_questions(counting: RunningServer) -> None:
    complete(counting, "acme/write", ACME)
    eventually(lambda: usage(counting), what="usage")
    reply = counting.http.get("/v1/usage", params={"format": "csv", "by": "day,tenant"})
    assert reply.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert {row["tenant"] for row in rows} >= {"acme"}
    assert list(rows[0]) == ["day", "tenant", "requests", "prompt_tokens", "generated_tokens", "classifications",
                             "cold_starts", "resident_byte_seconds"]  # fmt: skip
    for query, param in (("from=yesterday", "from"), ("by=colour", "by"), ("format=xml", "format")):
        refused = counting.http.get(f"/v1/usage?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_an_abandoned_stream_is_charged_for_what_was_generated(counting: RunningServer) -> None:
    before = total(counting, "generated_tokens", tenant="acme")
    body = {"model": "acme/write", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream(
        "POST", f"{counting.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {ACME}"}, timeout=30
    ) as stream:
        lines = (line for line in stream.iter_lines() if line)
        for _ in range(3):
            next(lines)
    eventually(lambda: counting.metric("tenora_queue_length") == 0, what="the end of the request")
    time.sleep(1.5)
    assert 1 <= total(counting, "generated_tokens", tenant="acme") - before <= 200


def test_a_killed_engine_loses_a_second_at_most(counting: RunningServer) -> None:
    complete(counting, "acme/write", ACME)
    eventually(lambda: usage(counting), what="usage")
    time.sleep(1.5)
    before = [astuple_of(row) for row in usage(counting, by="tenant,adapter,digest")]
    os.kill(counting.engine_pid(), signal.SIGKILL)
    counting.wait_ready()
    after = [astuple_of(row) for row in usage(counting, by="tenant,adapter,digest")]
    assert after == before


def astuple_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """A row without what grows by the second."""
    return tuple(value for name, value in row.items() if name != "resident_byte_seconds")


def test_rows_are_plain(database: Database, tmp_path: Path) -> None:
    ledger = ledger_of(database)
    ledger.open(generating("a"))
    ledger.flush()
    (row,) = read_usage(database, Query())
    assert isinstance(row, Used)
    assert [type(value) for value in astuple(row.counts)] == [int, int, int, int, int, float]
