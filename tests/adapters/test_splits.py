"""The rows of splits, on both kinds of database: set, ended with what they are about, versions taken out once."""

from datetime import timedelta
from typing import Any

import pytest

from adapters.audit import read_events
from adapters.database.database import Database, now
from adapters.errors import AdapterExistsError
from adapters.names import LATEST, AdapterName
from adapters.registry import Registry
from adapters.splits import BackOut, Rules, Split, end_splits, put_split, read_split, read_splits, take_out

NAME = AdapterName("acme", "support")
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def registry(database: Database) -> Registry:
    """acme/support with the versions A, which is `latest` and `stable`, then B and C, which nothing points at."""
    made = Registry(database)
    for digest, aliases in ((A, (LATEST, "stable")), (B, ()), (C, ())):
        made.announce(NAME, digest, "test")
        made.publish(NAME, digest, aliases, "test")
    return made


def put(registry: Registry, rules: Rules, alias: str = LATEST) -> Split:
    with registry.changing(NAME) as (connection, _):
        put_split(connection, NAME, alias, rules, "key")
    found = read_split(registry.database, NAME, alias)
    assert found is not None
    return found


def actions(registry: Registry) -> list[tuple[str, str, Any]]:
    events = read_events(registry.database, name=NAME.name)
    return [(event.action, event.actor, event.detail) for event in events if event.action in ("split", "end_split")]


def test_rules_come_back_as_they_were_set(registry: Registry) -> None:
    assert read_splits(registry.database) == []
    rules = Rules({A: 90.0, B: 10.0}, "user", C, BackOut(0.05, 1.5, 30, 300.0))
    split = put(registry, rules)
    assert (split.rules, split.own, split.name, split.backed_out) == (rules, A, NAME, {})
    assert split.digests == {A, B, C}
    plain = put(registry, Rules({B: 1.0}), "stable")
    assert plain.rules == Rules({B: 1.0}, None, None, None)
    assert sorted(read_splits(registry.database), key=lambda one: one.alias) == [split, plain]
    again = put(registry, Rules({A: 1.0}))
    assert again.rules == Rules({A: 1.0})
    assert again.set_at > split.set_at
    assert [action for action, by, _ in actions(registry) if by == "key"] == ["split"] * 3


@pytest.mark.parametrize("what", ["promote", "publish", "roll_back", "remove_alias", "delete"])
def test_moving_an_alias_ends_its_split_and_no_other(registry: Registry, what: str) -> None:
    registry.point(NAME, "stable", B, "test")
    put(registry, Rules({A: 1.0, C: 1.0}), "stable")
    other = put(registry, Rules({A: 1.0, B: 1.0}))
    match what:
        case "promote":
            registry.point(NAME, "stable", B, "key")  # where it is already: that is what everybody gets
        case "publish":
            registry.publish(NAME, C, ("stable",), "key")
        case "roll_back":
            registry.roll_back(NAME, "stable", "key")
        case "remove_alias":
            registry.remove_alias(NAME, "stable", "key")
        case "delete":
            registry.delete(NAME, now() + timedelta(days=1), "key")
    assert read_splits(registry.database) == ([] if what == "delete" else [other])
    ended = [(by, detail) for action, by, detail in actions(registry) if action == "end_split"]
    assert ended == [("key", {"why": what})] * (2 if what == "delete" else 1)


def test_a_version_in_a_split_cannot_be_deleted(registry: Registry) -> None:
    put(registry, Rules({A: 1.0, B: 0.0}, shadow=C))
    for digest in (A, B, C):
        with pytest.raises(AdapterExistsError, match=r"stable|acme/support:latest are split") as refused:
            registry.delete_version(NAME, digest, now(), "key")
        assert refused.value.key == "version"
    with registry.changing(NAME) as (connection, _):
        assert end_splits(connection, NAME, "key", "asked", LATEST) == 1
        assert end_splits(connection, NAME, "key", "asked", LATEST) == 0
    for digest in (B, C):
        registry.delete_version(NAME, digest, now(), "key")


def test_latest_that_falls_back_ends_its_split(registry: Registry) -> None:
    registry.point(NAME, LATEST, C, "test")
    put(registry, Rules({A: 1.0, B: 1.0}))
    registry.delete_version(NAME, C, now(), "key")
    assert read_splits(registry.database) == []


def test_a_version_is_taken_out_once_and_under_the_rules_that_it_broke(registry: Registry) -> None:
    rules = Rules({A: 90.0, B: 10.0}, back_out=BackOut(0.05))
    old, split = put(registry, rules), put(registry, rules)
    with registry.changing(NAME) as (connection, _):
        assert not take_out(connection, old, B, {"reason": "error_rate"})
        assert take_out(connection, split, B, {"reason": "error_rate", "error_rate": 0.5})
        assert not take_out(connection, split, B, {"reason": "error_rate"})
    found = read_split(registry.database, NAME, LATEST)
    assert found is not None
    assert found.rules.weights == {A: 90.0, B: 0.0}
    assert found.set_at == split.set_at
    assert found.backed_out[B].items() >= {"reason": "error_rate", "error_rate": 0.5}.items()
    (event,) = [event for event in read_events(registry.database) if event.action == "back_out"]
    assert (event.digest, event.alias, event.detail["error_rate"]) == (B, LATEST, 0.5)
    assert put(registry, rules).backed_out == {}
    with registry.changing(NAME) as (connection, _):
        end_splits(connection, NAME, "key", "asked")
        assert not take_out(connection, split, B, {})
