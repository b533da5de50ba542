"""What the catalog counts and lists, and what it keeps of it."""

import gc
import logging
import tracemalloc
from pathlib import Path

import pytest

from adapters.cache import HostCache
from adapters.names import LATEST, AdapterName
from adapters.registry import Registry
from adapters.store import Store
from service.catalog import Catalog
from tests.service.conftest import Home, unguarded

WRITE, CHAT, LABEL = (AdapterName("acme", name) for name in ("write", "chat", "label"))


@pytest.fixture
def store(home: Home, tmp_path: Path) -> Store:
    """Two adapters that generate and one that classifies, free to be changed."""
    made = Store(tmp_path / "store")
    for name in (WRITE, CHAT):
        made.publish(home.folders / f"acme-{name.name}", name, home.base)
    made.publish(home.folders / "acme-label", LABEL, home.base, labels=("bad", "good"))
    return made


def catalog_of(store: Store, home: Home) -> Catalog:
    cache = HostCache(0, lambda _: None)  # type: ignore[arg-type,return-value]
    return Catalog(home.base, store, cache, unguarded(store), max_model_len=256, max_lora_rank=64, folders=())


def listed(catalog: Catalog, tenant: str | None = None) -> list[str]:
    return [model.id for model in catalog.models(tenant)[1:]]


def test_a_list_says_what_each_model_says_of_itself(store: Store, home: Home) -> None:
    catalog = catalog_of(store, home)
    for _ in range(2):  # read, and remembered
        models = catalog.models(None)[1:]
        assert [model.id for model in models] == ["acme/chat", "acme/label", "acme/write"]
        assert models == [catalog.model(model.id, None) for model in models]
        assert [model.task for model in models] == ["generate", "classify", "generate"]
    assert catalog.models("zeta") == catalog.models(None)[:1]


def test_what_is_hidden_deleted_or_replaced_shows_at_once(store: Store, home: Home) -> None:
    catalog = catalog_of(store, home)
    assert catalog.describe_base().adapters == len(listed(catalog)) == 3
    store.set_served(CHAT, False)
    store.delete(LABEL)
    assert listed(catalog) == ["acme/write"]
    assert catalog.describe_base().adapters == 1
    store.publish(home.folders / "acme-label", WRITE, home.base, labels=("bad", "good"))
    assert [model.task for model in catalog.models("acme")[1:]] == ["classify"]


def test_no_version_is_opened_to_be_counted(store: Store, home: Home) -> None:
    """A manifest that cannot be read is left out of the list, where it would have to be told from."""
    catalog = catalog_of(store, home)
    (_folder(store, WRITE) / "tenora.json").write_text("{")
    assert catalog.describe_base().adapters == 3


def test_what_is_broken_is_left_out_and_named(store: Store, home: Home, caplog: pytest.LogCaptureFixture) -> None:
    (_folder(store, WRITE) / "tenora.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert listed(catalog_of(store, home)) == ["acme/chat", "acme/label"]
    assert {record.getMessage().split()[0] for record in caplog.records} == {"acme/write"}


def test_counting_keeps_nothing_and_a_list_keeps_what_is_on_it(store: Store, home: Home) -> None:
    count = 200
    digest, folder = store.aliases(WRITE)[LATEST], _folder(store, WRITE)
    names = [AdapterName("many", f"n{number}") for number in range(count)]
    registry = Registry(store.database)
    for number, name in enumerate(names):
        own = f"{number:08x}{digest[8:]}"
        versions = store.root / name.tenant / name.name / "versions"
        versions.mkdir(parents=True)
        (versions / own).symlink_to(folder)
        registry.announce(name, own, "test")
        registry.publish(name, own, (LATEST,), "test")
    catalog = catalog_of(store, home)
    tracemalloc.start()
    try:
        assert catalog.describe_base().adapters == 3 + count
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 100 * count
    finally:
        tracemalloc.stop()
    assert len(listed(catalog)) == len(catalog._summaries) == 3 + count
    for name in names:
        store.set_served(name, False)
    assert len(listed(catalog, "acme")) == 3
    assert len(catalog._summaries) == 3 + count
    assert len(listed(catalog)) == len(catalog._summaries) == 3


def _folder(store: Store, name: AdapterName) -> Path:
    return store.root / name.tenant / name.name / "versions" / store.aliases(name)[LATEST]
