"""Writers killed at any instant leave the old version or the new one, never half of one."""

import itertools
import random
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from adapters.adapter import load_adapter
from adapters.base import BaseSource
from adapters.names import AdapterName, AdapterRef
from adapters.store import Store
from tests.adapters.store_writers import CRASHED, crash_at, process, publish_all, store_at, write_for_ever
from tests.adapters.test_store import scaled

ROUNDS = {"sqlite": 100, "postgresql": 40}
OTHERS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
NAMES = (AdapterName("acme", "support"), AdapterName("acme", "other"))


def _check(store: Store, base: BaseSource, loaded: set[tuple[str, int]]) -> None:
    """Every pointer leads to a version that is whole."""
    for name in store.names():
        versions = {version.digest: version for version in store.versions(name)}
        for alias, digest in store.aliases(name).items():
            assert store.resolve(AdapterRef(name, alias=alias)) == versions[digest]
        for version in versions.values():
            identity = (version.digest, version.path.stat().st_ino)
            if identity not in loaded:
                load_adapter(version.path, base, digest=version.digest)
                loaded.add(identity)


def _strays(store: Store) -> set[str]:
    """Folders of versions that no pointer knows."""
    known = {version.path for name in store.names() for version in store.versions(name)}
    return {str(path) for path in store.root.glob("*/*/versions/*")} - {str(path) for path in known}


@pytest.mark.parametrize("change", ["publish", "delete version", "delete", "alias"])
def test_a_crash_at_every_step(
    peft_folders: dict[str, Path], bases: dict[str, BaseSource], tmp_path: Path, change: str
) -> None:
    base, name = bases["gpt2"], NAMES[0]
    folders = [scaled(peft_folders["gpt2-generate"], tmp_path / f"v{n}", n) for n in range(3)]
    before = Store(tmp_path / "before")
    old = [before.publish(folder, name, base).digest for folder in folders[:2]]
    states = set()
    for step in itertools.count(1):
        store = Store(Path(shutil.copytree(before.root, tmp_path / str(step))))
        writer = process(crash_at, step, store.root, base, change, folders[2], name, old[1])
        writer.start()
        writer.join()
        _check(store, base, set())
        found = [version.digest for version in store.versions(name)] if store.names() else []
        states.add((len(found), *sorted(store.aliases(name) if found else {})))
        store.database.close()
        if writer.exitcode == 0:
            break
        assert writer.exitcode == CRASHED
        # The next writer gets its work done over what lies there, and recovery takes away the rest.
        store.publish(folders[2], name, base)
        _check(store, base, set())
        store.recover()
        assert not _strays(store)
        assert not list((store.root / ".staging").iterdir())
        _check(store, base, set())
    assert step > 4
    # What a reader can find is the state before or the one after.
    after = {
        "publish": (3, "canary", "latest"),
        "delete version": (1, "latest"),
        "delete": (0,),
        "alias": (2, "latest", "stable"),
    }
    assert states == {(2, "latest"), after[change]}


@pytest.mark.parametrize(("kind", "rounds"), ROUNDS.items())
def test_kill_at_random_instants(
    peft_folders: dict[str, Path],
    bases: dict[str, BaseSource],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    kind: str,
    rounds: int,
) -> None:
    base = bases["gpt2"]
    folders = [scaled(peft_folders["gpt2-generate"], tmp_path / f"v{n}", n) for n in range(4)]
    url = request.getfixturevalue("new_postgres")() if kind == "postgresql" else None
    store = store_at(tmp_path / "store", url)
    with closing(store.database):
        _kill_writers(store, url, base, folders, rounds)
        store.publish(folders[0], NAMES[0], base)
        assert store.resolve(AdapterRef(NAMES[0])).manifest.task == "generate"


def _kill_writers(store: Store, url: str | None, base: BaseSource, folders: list[Path], rounds: int) -> None:
    chance = random.Random(20)
    loaded: set[tuple[str, int]] = set()
    first = process(publish_all, store.root, base, folders[:1], NAMES[0], 0, url)  # starts the server they fork from
    first.start()
    first.join()
    leftovers = 0
    for seed in range(rounds):
        writers = [process(write_for_ever, store.root, base, folders, NAMES, 2 * seed + n, url) for n in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(chance.uniform(0.03, 0.2) if url is None else chance.uniform(0.1, 0.6))  # a server is further away
        for writer in writers:
            writer.kill()
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        _wait_for_server(store)
        if seed % 3 == 2:  # writers have to get along with what others left, too
            leftovers += len(store.recover())
            assert not list((store.root / ".staging").iterdir())
            assert not _strays(store)
        _check(store, base, loaded)
    assert leftovers > rounds // 20  # the kills did hit writers at work
    assert len(loaded) > rounds // 20


def _wait_for_server(store: Store) -> None:
    """Until a database server has noticed who is dead: what they had sent is done or undone by then."""
    store.database.close()
    with store.database.reading() as connection:
        if connection.dialect.name == "postgresql":
            end = time.monotonic() + 10
            while connection.execute(OTHERS).scalar_one():
                assert time.monotonic() < end, "the server keeps connections of the dead"
                time.sleep(0.01)
