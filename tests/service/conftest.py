"""One base, a store of adapters written by PEFT, and one server for most tests."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from adapters.base import BaseSource, resolve_base
from adapters.config import HEAD_ONLY
from adapters.names import AdapterName
from adapters.store import Store
from adapters.templates import PromptTemplate
from service.gate.checks import Checker
from service.gate.keeper import Gatekeeper
from tests.service.running import RunningServer, running
from tests.support.tiny import tiny_base, write_peft_adapter

ACME, ZETA, ADMIN = "sk-acme-key", "sk-zeta-key", "sk-admin-key"
KEYS = {ACME: "acme", ZETA: "zeta", ADMIN: "*"}


HEAD_ALONE: dict[str, Any] = {"targets": HEAD_ONLY, "exclude_modules": None}
BETA: tuple[tuple[str, int, dict[str, Any], dict[str, Any]], ...] = (
    ("tags", 3, {"labels": ("bill", "late", "rude"), "multi_label": True}, {"r": 3, "use_rslora": True}),
    ("head", 2, {"labels": ("no", "yes")}, HEAD_ALONE),
    ("reward", 1, {"score": True, "template": PromptTemplate.named("alpaca")}, {"r": 5}),
)


@dataclass(frozen=True)
class Home:
    """What servers of this room are started on."""

    base: BaseSource
    store: Path
    folders: Path
    """Adapters in plain PEFT folders, not published."""

    def copied(self, target: Path) -> Path:
        """A copy of the store. Its database is made anew: the one here is written to while servers run on it."""
        return Path(shutil.copytree(self.store, target, ignore=shutil.ignore_patterns("tenora.db*")))

    @property
    def settings(self) -> dict[str, object]:
        return {"base": str(self.base.path), "store": str(self.store), "adapter_folders": [str(self.folders)]}


def unguarded(store: Store) -> Gatekeeper:
    """The keeper of a store whose aliases demand nothing: it has nobody to check with."""
    return Gatekeeper(store, cast(Checker, None))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """acme/write, acme/chat and zeta/write generate; acme/label (2 labels) and zeta/label (3) classify.

    Of the tenant beta: tags gives several of three labels at once, head is a head alone (2 labels), reward scores.
    """
    root = tmp_path_factory.mktemp("home")
    base = resolve_base(str(tiny_base("llama", root / "tiny-llama")))
    folders = root / "folders"
    store = Store(root / "store")
    for seed, name in enumerate(["acme/write", "acme/chat", "zeta/write"]):
        folder = write_peft_adapter(base.path, folders / name.replace("/", "-"), r=2 + 2 * seed, alpha=8, seed=seed)
        template = PromptTemplate.named("chat" if name == "acme/chat" else "alpaca")
        store.publish(folder, AdapterName.parse(name), base, template=template)
    for seed, (name, labels) in enumerate([("acme/label", ("bad", "good")), ("zeta/label", ("a", "b", "c"))]):
        folder = write_peft_adapter(
            base.path, folders / name.replace("/", "-"), task="classify", num_labels=len(labels), seed=10 + seed
        )
        store.publish(folder, AdapterName.parse(name), base, labels=labels)
    for seed, (name, count, stated, lora) in enumerate(BETA):
        folder = write_peft_adapter(
            base.path, folders / f"beta-{name}", task="classify", num_labels=count, seed=20 + seed, **lora
        )
        store.publish(folder, AdapterName("beta", name), base, **stated)
    return Home(base, store.root, folders)


@pytest.fixture(scope="session")
def server(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with keys; its client carries the admin's."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running(log, key=ADMIN, api_keys=KEYS, **home.settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


@pytest.fixture(scope="session")
def publisher(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with keys whose store is there to be changed; it has what `home` has. What is deleted stays 1.5 s."""
    root = tmp_path_factory.mktemp("publisher")
    home.copied(root / "store")
    settings = {**home.settings, "store": str(root / "store")}
    with running(root / "log", key=ADMIN, api_keys=KEYS, delete_grace=1.5, **settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


@pytest.fixture(scope="session")
def published(publisher: RunningServer) -> Path:
    """The store of that server."""
    return publisher.log.parent / "store"
