"""`tenora usage` and `tenora events` on a database, without a server."""

import csv
import io
import json
from datetime import date
from pathlib import Path

import pytest

from adapters.database.database import Database
from adapters.names import AdapterName
from adapters.registry import Registry
from service.tenants.directory import Directory
from service.usage import GROUPS
from tests.service.test_cli import in_process
from tests.service.test_usage import generating, ledger_of


@pytest.fixture
def url(database: Database) -> str:
    """A database in which things were used and done."""
    for day, tenant in ((30, "acme"), (31, "acme"), (31, "zeta")):
        ledger = ledger_of(database, date(2030, 1, day))
        ledger.open(generating("a", tenant=tenant))
        ledger.flush()
    Directory(database).create("acme", {"share": 2.0}, by="key-1")
    registry = Registry(database)
    for name in ("one", "two"):
        adapter = AdapterName("acme", name)
        registry.announce(adapter, "a" * 64, "key-2")
        registry.publish(adapter, "a" * 64, ("latest",), "key-2")
    registry.point(adapter, "stable", "a" * 64, "key-3")
    registry.announce(adapter, "b" * 64, "key-3")
    registry.publish(adapter, "b" * 64, ("stable",), "key-3")
    registry.roll_back(adapter, "stable", "key-3")
    return database.url


def good(*arguments: str) -> str:
    done = in_process(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def bad(*arguments: str) -> str:
    done = in_process(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_usage_as_csv(url: str) -> None:
    rows = list(csv.DictReader(io.StringIO(good("usage", "--database", url, "--csv"))))
    assert [(row["day"], row["tenant"], row["requests"]) for row in rows] == [
        ("2030-01-30", "acme", "1"),
        ("2030-01-31", "acme", "1"),
        ("2030-01-31", "zeta", "1"),
    ]
    assert list(rows[0])[:4] == list(GROUPS)
    some = good("usage", "--database", url, "--csv", "--by", "tenant", "--from", "2030-01-31", "--to", "2030-01-31")
    assert [line.split(",")[:2] for line in some.splitlines()[1:]] == [["acme", "1"], ["zeta", "1"]]
    assert "zeta" not in good("usage", "--database", url, "--csv", "--tenant", "acme")


def test_usage_as_a_table(url: str) -> None:
    head, *rows = [line.split() for line in good("usage", "--database", url, "--by", "tenant").splitlines()]
    assert head[:2] == ["tenant", "requests"]
    assert rows == [["acme", "2", "0", "0", "0", "0", "0"], ["zeta", "1", "0", "0", "0", "0", "0"]]


def test_events(url: str) -> None:
    def told(*arguments: str) -> list[list[str]]:
        return [line.split(maxsplit=6) for line in good("events", "--database", url, *arguments).splitlines()[1:]]

    (back, *_), events = told("--limit", "1"), told("--before", "4")
    assert (back[4:6], json.loads(back[6])) == (["roll_back", "acme/two:stable@aaaaaaaaaaaa"], {"before": "b" * 12})
    assert [(event[3], event[4], event[5]) for event in events] == [
        ("key-2", "publish", "acme/two@aaaaaaaaaaaa"),
        ("key-2", "publish", "acme/one@aaaaaaaaaaaa"),
        ("key-1", "create_tenant", "acme"),
    ]
    assert json.loads(events[2][6]) == {"share": 2.0}
    assert told("--adapter", "acme/one") == [events[1]]
    assert told("--limit", "1", "--before", events[0][0]) == [events[1]]
    assert told("--tenant", "zeta") == []


def test_what_is_refused(url: str, tmp_path: Path) -> None:
    assert "'colour' is nothing to group by" in bad("usage", "--database", url, "--by", "colour")
    assert "--from soon is no day" in bad("usage", "--database", url, "--from", "soon")
    assert "leave --tenant out" in bad("events", "--database", url, "--adapter", "acme/one", "--tenant", "zeta")
    for command in ("usage", "events"):
        assert "there is no store" in bad(command, "--store", str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()
