"""Writers killed at any instant leave the old version or the new one, never half of one."""

import random
import signal
import time
from pathlib import Path

from adapters.adapter import load_adapter
from adapters.base import BaseSource
from adapters.names import AdapterName, AdapterRef
from adapters.store import Store
from tests.adapters.store_writers import process, publish_all, write_for_ever
from tests.adapters.test_store import scaled

KILLS = 30
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


def test_kill_at_random_instants(peft_folders: dict[str, Path], bases: dict[str, BaseSource], tmp_path: Path) -> None:
    base = bases["gpt2"]
    folders = [scaled(peft_folders["gpt2-generate"], tmp_path / f"v{n}", n) for n in range(4)]
    store = Store(tmp_path / "store")
    chance = random.Random(20)
    loaded: set[tuple[str, int]] = set()
    first = process(publish_all, store.root, base, folders[:1], NAMES[0], 0)  # starts the server they are forked from
    first.start()
    first.join()
    leftovers = 0
    for seed in range(KILLS):
        writers = [process(write_for_ever, store.root, base, folders, NAMES, 2 * seed + n) for n in range(2)]
        for writer in writers:
            writer.start()
        time.sleep(chance.uniform(0.05, 0.25))
        for writer in writers:
            writer.kill()
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        if seed % 3 == 2:  # writers have to get along with what others left, too
            leftovers += len(store.recover())
            assert not list((store.root / ".staging").iterdir())
            assert not _strays(store)
        _check(store, base, loaded)
    assert leftovers > 5  # the kills did hit writers at work
    assert len(loaded) > 10
    store.publish(folders[0], NAMES[0], base)
    assert store.resolve(AdapterRef(NAMES[0])).manifest.task == "generate"
