"""Keys, tenants and grants in the database, of both kinds."""

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from adapters.audit import read_events
from adapters.database.database import Database, now
from adapters.database.schema import adapters, api_keys
from adapters.errors import AdapterNameError
from adapters.names import AdapterName
from adapters.pointers import Pointers
from adapters.registry import Registry
from service.errors import (
    AdapterUnknownError,
    InvalidRequestError,
    KeyNotFoundError,
    KeyRotatedError,
    PermissionDeniedError,
    TenantExistsError,
    TenantNotFoundError,
)
from service.limits import TenantLimits
from service.tenants.access import Access
from service.tenants.caller import EVERYBODY, Caller
from service.tenants.directory import Directory
from service.tenants.keys import Keys


@pytest.fixture
def keys(database: Database) -> Keys:
    Directory(database).create("acme", {}, by="test")
    return Keys(database)


@pytest.fixture
def directory(database: Database) -> Directory:
    return Directory(database)


def caller(keys: Keys, shown: str) -> Caller | None:
    found = keys.find(shown)
    return None if found is None else found[0]


# Keys


def test_a_key_is_found_by_itself_alone(keys: Keys, directory: Directory) -> None:
    directory.change("acme", {"tokens_per_minute": 9}, by="test")
    made = keys.create("acme", ["publish", "infer"], by="test", label="ci")
    assert made.secret.startswith(f"tnr_{made.key.id}_")
    assert caller(keys, made.secret) == Caller(
        "acme", frozenset({"infer", "publish"}), made.key.id, TenantLimits(tokens_per_minute=9)
    )
    other = keys.create("acme", ["infer"], by="test")
    for wrong in (
        "", "tnr_", made.secret[:-1], made.secret + "x", made.secret.upper(), "é" * 20,
        made.secret[:-4] + "AAAA", made.secret.replace(made.key.id, other.key.id),
        f"tnr_{made.key.id}_{other.secret.split('_', 2)[2]}",
    ):  # fmt: skip
        assert caller(keys, wrong) is None, wrong
    assert keys.all("acme") == [made.key, other.key]
    assert keys.all("zeta") == []


def test_no_part_of_a_secret_is_in_the_database(tmp_path: Path) -> None:
    file = tmp_path / "tenora.db"
    database = Database(f"sqlite:///{file}")
    made = Keys(database).create(None, ["admin"], by="test")
    database.close()
    with sqlite3.connect(file) as connection:
        dump = "\n".join(connection.iterdump())
    assert made.key.id in dump
    assert made.secret.split("_", 2)[2][:12] not in dump


def test_keys_end(keys: Keys, database: Database) -> None:
    made = keys.create("acme", ["infer"], by="test", expires_at=now() + timedelta(seconds=60))
    assert caller(keys, made.secret) is not None
    with database.writing() as connection:
        connection.execute(api_keys.update().values(expires_at=now()))
    assert caller(keys, made.secret) is None
    revoked = keys.create("acme", ["infer"], by="test")
    assert keys.revoke(revoked.key.id, by="test").revoked_at is not None
    assert caller(keys, revoked.secret) is None
    with pytest.raises(InvalidRequestError, match="ended"):
        keys.revoke(revoked.key.id, by="test")
    with pytest.raises(KeyNotFoundError):
        keys.revoke("000000000000", by="test")


def test_rotation_can_overlap(keys: Keys) -> None:
    old = keys.create("acme", ["infer", "train"], by="test", label="app")
    new = keys.rotate(old.key.id, by="test", overlap=60)
    assert (new.key.tenant, new.key.scopes, new.key.label) == ("acme", ("infer", "train"), "app")
    assert caller(keys, old.secret) is not None
    assert caller(keys, new.secret) is not None
    (shown,) = [key for key in keys.all("acme") if key.id == old.key.id]
    assert shown.successor == new.key.id
    third = keys.rotate(new.key.id, by="test")
    assert caller(keys, new.secret) is None
    assert caller(keys, third.secret) is not None
    with pytest.raises(KeyNotFoundError):
        keys.rotate(third.key.id, by="test", tenant="zeta")


def test_a_key_is_rotated_once(keys: Keys) -> None:
    """A second successor would end with the overlap of the first rotation."""
    old = keys.create("acme", ["infer"], by="test")
    new = keys.rotate(old.key.id, by="test", overlap=60)
    for overlap in (0, 3600):
        with pytest.raises(KeyRotatedError, match=f"its successor is {new.key.id}"):
            keys.rotate(old.key.id, by="test", overlap=overlap)
    assert caller(keys, old.secret) is not None
    keys.revoke(new.key.id, by="test")
    with pytest.raises(KeyRotatedError):
        keys.rotate(old.key.id, by="test")
    assert len(keys.all("acme")) == 2
    # What ends anyway keeps its end, and hands it on.
    ends = now() + timedelta(seconds=30)
    short = keys.create("acme", ["infer"], by="test", expires_at=ends)
    assert keys.rotate(short.key.id, by="test", overlap=3600).key.expires_at == ends
    assert {key.expires_at for key in keys.all("acme") if key.id == short.key.id} == {ends}


def test_bad_keys_are_refused(keys: Keys) -> None:
    for scopes, options, what in (
        ([], {}, "needs a scope"),
        (["root"], {}, "'root' is no scope"),
        (["infer"], {"expires_at": now()}, "passed already"),
        (["infer"], {"expires_at": now().replace(tzinfo=None)}, "time zone"),
        (["infer"], {"label": "x" * 129}, "128"),
    ):
        with pytest.raises(InvalidRequestError, match=what):
            keys.create("acme", scopes, by="test", **options)  # type: ignore[arg-type]
    with pytest.raises(TenantNotFoundError):
        keys.create("nobody", ["infer"], by="test")
    assert keys.all() == []


# Access


def test_a_server_is_open_until_there_is_a_key(keys: Keys, directory: Directory) -> None:
    access = Access(keys, directory, {}, open_without_keys=True)
    assert access.find("whatever") == access.known("") == EVERYBODY
    made = keys.create("acme", ["infer"], by="test")
    access.forget()
    assert access.known("") is None
    assert access.find("") is None
    assert access.find(made.secret) == access.known(made.secret)
    keys.revoke(made.key.id, by="test")
    access.forget()
    assert access.find("") is None, "the last key is gone, and the server is open to everybody"
    assert access.find(made.secret) is None


def test_a_server_for_others_is_never_open(keys: Keys, directory: Directory) -> None:
    access = Access(keys, directory, {}, open_without_keys=False)
    assert access.known("") is access.find("") is None


def test_fixed_keys_have_their_place(keys: Keys, directory: Directory) -> None:
    access = Access(keys, directory, {"sk-acme-key": "acme", "sk-operator": "*"}, open_without_keys=True)
    directory.change("acme", {"concurrent": 2, "share": 3.0}, by="test")
    acme, operator = access.find("sk-acme-key"), access.find("sk-operator")
    assert acme is not None and operator is not None
    assert (acme.tenant, acme.is_operator) == ("acme", False)
    assert (operator.tenant, operator.is_operator) == (None, True)
    acme.check("train")
    with pytest.raises(PermissionDeniedError, match="'admin'"):
        acme.check("admin")
    assert access.known("sk-other") is access.find("sk-other") is None
    assert "sk-acme" not in acme.key_id
    assert (acme.limits.concurrent, acme.limits.share) == (2, 3.0)
    assert access.known("sk-acme-key") == acme
    directory.set_disabled("acme", True, by="test")
    access.forget()
    assert access.known("sk-acme-key") is access.find("sk-acme-key") is None


def test_what_was_revoked_elsewhere_is_believed_for_a_second_at_most(
    keys: Keys, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tenants.access.BELIEVED_S", 0.2)
    access = Access(keys, directory, {}, open_without_keys=False)
    made = keys.create("acme", ["infer"], by="test")
    assert access.find(made.secret) is not None
    keys.revoke(made.key.id, by="elsewhere")
    while access.known(made.secret) is not None:
        pass  # the test's own limit ends it
    assert access.find(made.secret) is None


# Tenants


def test_tenants_and_their_limits(directory: Directory) -> None:
    made = directory.create("acme", {"requests_per_minute": 5, "share": 2.0}, by="test")
    assert (made.requests_per_minute, made.share, made.concurrent) == (5, 2.0, None)
    assert directory.get("acme") == made
    changed = directory.change("acme", {"requests_per_minute": None, "concurrent": 3}, by="test")
    assert (changed.requests_per_minute, changed.share, changed.concurrent) == (None, 2.0, 3)
    with pytest.raises(TenantExistsError):
        directory.create("acme", {}, by="test")
    with pytest.raises(TenantNotFoundError):
        directory.change("zeta", {}, by="test")
    with pytest.raises(AdapterNameError):
        directory.create("../x", {}, by="test")
    for limits in ({"share": None}, {"concurrent": 0}, {"colour": 1}):
        with pytest.raises(InvalidRequestError):
            directory.change("acme", limits, by="test")
    assert [tenant.name for tenant in directory.all()] == ["acme"]


def test_a_tenant_that_comes_with_an_adapter_is_in_the_audit_log(directory: Directory, database: Database) -> None:
    registry = Registry(database)
    directory.create("acme", {}, by="test")
    for name, digest in (("one", "a"), ("one", "b"), ("two", "a")):
        registry.announce(AdapterName("fresh", name), digest * 64, "key-1")
    for name in ("one", "two"):
        registry.announce(AdapterName("acme", name), "a" * 64, "key-1")
    for tenant, by in (("fresh", "key-1"), ("acme", "test")):
        (made,) = [event for event in read_events(database, tenant=tenant) if event.action == "create_tenant"]
        assert (made.actor, made.name) == (by, None)
    directory.change("fresh", {"share": 2.0}, by="test")
    with pytest.raises(TenantExistsError):
        directory.create("fresh", {}, by="test")


def test_an_adopted_tenant_is_in_the_audit_log(database: Database) -> None:
    found = [(AdapterName("fresh", name), Pointers(("a" * 64,), {"latest": "a" * 64})) for name in ("one", "two")]
    Registry(database).adopt(lambda: found)
    events = [(event.action, event.actor) for event in read_events(database, tenant="fresh")]
    assert events == [("adopt", "adoption"), ("adopt", "adoption"), ("create_tenant", "adoption")]


def test_a_disabled_tenants_keys_do_not_work(keys: Keys, directory: Directory) -> None:
    made = keys.create("acme", ["infer"], by="test")
    directory.set_disabled("acme", True, by="test")
    assert caller(keys, made.secret) is None
    directory.set_disabled("acme", False, by="test")
    assert caller(keys, made.secret) is not None


def test_everything_is_in_the_audit_log_and_no_secret(keys: Keys, directory: Directory, database: Database) -> None:
    made = keys.create("acme", ["infer"], by="key-1")
    keys.rotate(made.key.id, by="key-2")
    directory.change("acme", {"concurrent": 3}, by="key-3")
    directory.set_disabled("acme", True, by="key-4")
    events = read_events(database, tenant="acme")
    assert [(event.action, event.actor) for event in events] == [
        ("disable_tenant", "key-4"),
        ("change_tenant", "key-3"),
        ("rotate_key", "key-2"),
        ("create_key", "key-1"),
        ("create_tenant", "test"),
    ]
    assert made.secret.split("_", 2)[2] not in repr(events)


# Grants


def test_an_adapter_is_open_to_whom_it_was_granted(directory: Directory, database: Database) -> None:
    registry, name = Registry(database), AdapterName("acme", "shared")
    directory.create("zeta", {}, by="test")
    registry.announce(name, "a" * 64, "test")
    with pytest.raises(AdapterUnknownError):
        directory.grant(name, "zeta", by="test")
    registry.publish(name, "a" * 64, ("latest",), "test")
    assert registry.served("zeta") == []
    directory.grant(name, "zeta", by="test")
    directory.grant(name, "zeta", by="test")
    assert directory.grantees(name) == ["zeta"]
    assert registry.served("zeta") == [(name, "a" * 64)]
    assert registry.is_granted(name, "zeta")
    assert registry.names("zeta") == []
    with pytest.raises(TenantNotFoundError):
        directory.grant(name, "nobody", by="test")
    with pytest.raises(InvalidRequestError, match="itself"):
        directory.grant(name, "acme", by="test")
    directory.withdraw(name, "zeta", by="test")
    assert not registry.is_granted(name, "zeta")
    assert [event.action for event in read_events(database, name="shared")] == ["withdraw", "grant", "publish"]


def test_a_grant_can_come_before_its_tenant(directory: Directory, database: Database) -> None:
    registry, name = Registry(database), AdapterName("acme", "shared")
    registry.announce(name, "a" * 64, "test")
    registry.publish(name, "a" * 64, ("latest",), "test")
    directory.grant(name, "zeta", by="test", must_exist=False)
    with pytest.raises(AdapterNameError):
        directory.grant(name, "Not A Name", by="test", must_exist=False)
    directory.create("zeta", {}, by="test")
    assert registry.served("zeta") == [(name, "a" * 64)]
    assert registry.is_granted(name, "zeta")


def test_an_adapter_is_open_to_so_many_tenants(
    directory: Directory, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.tenants.directory.MOST_GRANTEES", 2)
    registry, name = Registry(database), AdapterName("acme", "shared")
    registry.announce(name, "a" * 64, "test")
    registry.publish(name, "a" * 64, ("latest",), "test")
    for grantee in ("one", "two", "two"):
        directory.grant(name, grantee, by="test", must_exist=False)
    with pytest.raises(InvalidRequestError, match="withdraw a grant"):
        directory.grant(name, "three", by="test", must_exist=False)


@pytest.mark.parametrize("purged", [True, False])
def test_grants_end_with_the_adapter(directory: Directory, database: Database, purged: bool) -> None:
    registry, name = Registry(database), AdapterName("acme", "shared")
    directory.create("zeta", {}, by="test")
    registry.announce(name, "a" * 64, "test")
    registry.publish(name, "a" * 64, ("latest",), "test")
    directory.grant(name, "zeta", by="test")
    registry.delete(name, now(), "test")
    if purged:
        for known in registry.known(purge_before=now()):
            assert registry.purge(known, lambda: None)
        with database.reading() as connection:
            assert connection.execute(select(adapters)).first() is None
    registry.announce(name, "b" * 64, "test")
    registry.publish(name, "b" * 64, ("latest",), "test")
    assert not registry.is_granted(name, "zeta")
