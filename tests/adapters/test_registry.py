"""Rows of adapters on both kinds of database: what was checked may go live, and nothing else."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters.database.database import Database, now
from adapters.database.schema import gates
from adapters.errors import AdapterExistsError, AdapterNotFoundError
from adapters.names import AdapterName
from adapters.pointers import Pointers
from adapters.registry import Registry

NAME = AdapterName("acme", "support")
A, B, C = (letter * 64 for letter in "abc")


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database)


def publish(registry: Registry, *digests: str, aliases: tuple[str, ...] = ("latest",)) -> None:
    for digest in digests:
        registry.announce(NAME, digest, "test")
        registry.publish(NAME, digest, aliases, "test")


def gate(registry: Registry, alias: str = "latest") -> None:
    row = {"tenant": NAME.tenant, "name": NAME.name, "alias": alias, "rules": {}, "changed_at": now()}
    with registry.database.writing() as connection:
        connection.execute(gates.insert().values(row))


def pointers(registry: Registry) -> Pointers:
    found = registry.pointers(NAME)
    assert found is not None
    return found


def test_readers_do_not_wait_for_writers(registry: Registry) -> None:
    publish(registry, A)
    with registry.database.writing() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(gates.select())
        assert pool.submit(registry.pointers, NAME).result(5) is not None


def test_the_life_of_a_name(registry: Registry) -> None:
    publish(registry, A, B)
    registry.point(NAME, "stable", A[:8], "test")
    assert pointers(registry) == Pointers((A, B), {"latest": B, "stable": A})
    registry.point(NAME, "latest", A, "test")
    assert registry.roll_back(NAME, "latest", "test") == B
    with pytest.raises(AdapterExistsError, match="stable"):
        registry.delete_version(NAME, A, now(), "test")
    registry.delete_version(NAME, B, now(), "test")
    assert pointers(registry) == Pointers((A,), {"latest": A, "stable": A})
    registry.delete(NAME, now(), "test")
    assert registry.pointers(NAME) is None
    assert all(registry.purge(known, lambda: None) for known in registry.known(purge_before=now()))
    assert registry.known() == []


def test_going_back_moves(registry: Registry) -> None:
    """What was deleted in between must not make it go to where it is."""
    publish(registry, A, B, C)
    registry.delete_version(NAME, C, now(), "test")
    assert pointers(registry).aliases == {"latest": B}
    assert registry.roll_back(NAME, "latest", "test") == A
    with pytest.raises(AdapterNotFoundError):
        registry.roll_back(NAME, "latest", "test")
    assert pointers(registry).aliases == {"latest": A}


def test_a_gate_holds_back_what_nobody_admitted(registry: Registry) -> None:
    publish(registry, A)
    gate(registry)
    publish(registry, B, aliases=("latest", "canary"))
    assert pointers(registry).aliases == {"latest": A, "canary": B}
    with pytest.raises(AdapterExistsError, match="gate"):
        registry.point(NAME, "latest", B, "test")
    registry.point(NAME, "latest", B, "test", admitted=True)
    assert pointers(registry).aliases["latest"] == B


def test_deleting_does_not_open_a_gate(registry: Registry) -> None:
    publish(registry, A)
    gate(registry)
    publish(registry, B)  # held back
    with pytest.raises(AdapterExistsError, match="promote another first"):
        registry.delete_version(NAME, A, now(), "test")
    with pytest.raises(AdapterExistsError, match="lift it first"):
        registry.delete(NAME, now(), "test")
    assert pointers(registry).aliases == {"latest": A}
    registry.point(NAME, "latest", B, "test", admitted=True)
    publish(registry, C)
    registry.delete_version(NAME, B, now(), "test")  # back to A, which was live, and not to C
    assert pointers(registry).aliases == {"latest": A}


def test_falling_back_behind_a_gate_forgets_no_more_than_it_must(registry: Registry) -> None:
    publish(registry, A, B, C)
    gate(registry)
    registry.delete_version(NAME, C, now(), "test")
    assert pointers(registry).aliases == {"latest": B}
    assert registry.roll_back(NAME, "latest", "test") == A


def test_an_alias_that_was_moved_meanwhile_stays(registry: Registry) -> None:
    publish(registry, A, B, C, aliases=("latest",))
    with pytest.raises(AdapterExistsError, match="moved meanwhile"):
        registry.point(NAME, "latest", A, "test", unless_moved_from=(B,))
    registry.point(NAME, "latest", A, "test", unless_moved_from=(C,))
    registry.point(NAME, "new", A, "test", unless_moved_from=(None,))
    assert pointers(registry).aliases == {"latest": A, "new": A}


def test_what_comes_again_is_as_new(registry: Registry) -> None:
    publish(registry, A)
    registry.set_served(NAME, served=False, by="test")
    registry.delete(NAME, now(), "test")
    publish(registry, A)
    assert pointers(registry) == Pointers((A,), {"latest": A}, served=True)


def test_publishers_of_one_new_name_at_once(registry: Registry) -> None:
    start = threading.Barrier(6)

    def one(number: int) -> None:
        start.wait(10)
        digest = f"{number:x}" * 64
        registry.announce(NAME, digest, "test")
        registry.publish(NAME, digest, ("latest", f"v{number}"), "test")

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(one, number) for number in range(6)]:
            result.result(30)
    found = pointers(registry)
    assert sorted(found.versions) == [f"{number:x}" * 64 for number in range(6)]
    assert {alias for alias in found.aliases if alias != "latest"} == {f"v{number}" for number in range(6)}


def test_only_one_takes_a_store_in(registry: Registry) -> None:
    found = [(NAME, Pointers((A, B), {"latest": A}, served=False))]
    with ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(registry.adopt, lambda: iter(found)) for _ in range(3)]
        assert sorted(result.result(30) for result in taken) == [[], [], [NAME]]
    assert pointers(registry) == found[0][1]
