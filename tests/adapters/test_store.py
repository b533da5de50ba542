"""The store: immutable versions, pointers, and a stranger's folder that gets in only as plain files."""

import itertools
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.adapter import load_adapter
from adapters.audit import read_events
from adapters.base import BaseSource, resolve_base
from adapters.database.database import Database
from adapters.errors import (
    AdapterExistsError,
    AdapterFormatError,
    AdapterMismatchError,
    AdapterNameError,
    AdapterNotFoundError,
    StateError,
)
from adapters.names import AdapterName, AdapterRef
from adapters.registry import Registry
from adapters.store import Store, Version
from adapters.templates import PromptTemplate
from tests.adapters.conftest import Break
from tests.adapters.store_writers import process, publish_all, set_aliases
from tests.support.tiny import peft_model

NAME = AdapterName("acme", "support")
FILE = "adapter_model.safetensors"
OWN = {"adapter_config.json", FILE, "tenora.json"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def variants(peft_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four adapters that differ in one value."""
    return [scaled(peft_folders["gpt2-generate"], tmp_path_factory.mktemp("variants") / str(n), n) for n in range(4)]


def scaled(source: Path, target: Path, number: int) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / FILE)
    first = min(tensors)
    tensors[first] = tensors[first] + number
    save_file(tensors, target / FILE)
    os.utime(target / FILE, (1_700_000_000, 1_700_000_000))
    return target


def ref(text: str) -> AdapterRef:
    return AdapterRef.parse(text)


def tree(folder: Path) -> set[str]:
    """What lies in a folder, but for the database's files, which come and go."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()
    return {path for path in found if not path.startswith("tenora.db")}


# Publishing


def test_a_published_folder_is_found_and_loads(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"], template=PromptTemplate.named("alpaca"))
    assert store.resolve(ref("acme/support")) == version
    assert store.resolve(ref(f"acme/support@{version.digest[:8]}")) == version
    assert store.resolve(ref("acme/support:latest")) == version
    assert {path.name for path in version.path.iterdir()} - set(version.extras) == OWN
    adapter = load_adapter(version.path, bases["gpt2"], digest=version.digest)
    assert adapter.template == PromptTemplate.named("alpaca")
    assert PeftModel.from_pretrained(peft_model(bases["gpt2"].path, task="generate"), version.path)
    assert not tree(store.root / ".staging")


def test_the_same_content_is_the_same_version(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    first = store.publish(variants[0], NAME, bases["gpt2"])
    second = store.publish(variants[0], NAME, bases["gpt2"], aliases=("stable",))
    assert first == second
    assert [version.digest for version in store.versions(NAME)] == [first.digest]
    assert store.aliases(NAME) == {"latest": first.digest, "stable": first.digest}
    # A published version can itself be published, under another name.
    other = store.publish(first.path, AdapterName("zeta", "copy"), bases["gpt2"])
    assert other.digest == first.digest


def test_latest_moves_and_other_aliases_stay(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    old = store.publish(variants[0], NAME, bases["gpt2"], aliases=("latest", "stable"))
    new = store.publish(variants[1], NAME, bases["gpt2"])
    assert store.resolve(ref("acme/support")) == new
    assert store.resolve(ref("acme/support:stable")) == old
    assert store.versions(NAME) == [old, new]
    canary = store.publish(variants[2], NAME, bases["gpt2"], aliases=("canary",))
    assert store.resolve(ref("acme/support")) == new
    store.set_alias(NAME, "stable", canary.digest[:8])
    assert store.resolve(ref("acme/support:stable")) == canary
    store.set_alias(NAME, "latest", old.digest)
    assert store.resolve(ref("acme/support")) == old


def test_only_the_adapters_own_files_are_copied(store: Store, copy_of: Break, bases: dict[str, BaseSource]) -> None:
    folder = copy_of("gpt2-generate")
    (folder / "training_args.bin").write_bytes(b"\x80\x02")
    (folder / "run.py").write_text("1/0")
    (folder / "checkpoint-1").mkdir()
    names = {path.name for path in store.publish(folder, NAME, bases["gpt2"]).path.iterdir()}
    assert names == {*OWN, "README.md"}  # PEFT writes a card


def test_a_folder_with_a_manifest_states_its_own_template(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    with pytest.raises(AdapterExistsError, match="already"):
        store.publish(version.path, NAME, bases["gpt2"], template=PromptTemplate.named("plain"))


@pytest.mark.parametrize("what", ["nan", "wrong base", "pickle", "no config", "no folder", "bad manifest"])
def test_what_is_refused_leaves_nothing_behind(
    store: Store, variants: list[Path], copy_of: Break, bases: dict[str, BaseSource], what: str
) -> None:
    kept = store.publish(variants[0], NAME, bases["gpt2"])
    before = tree(store.root)
    folder, base = copy_of("gpt2-generate"), bases["gpt2"]
    if what == "nan":
        tensors = load_file(folder / FILE)
        tensors[min(tensors)][0, 0] = torch.nan
        save_file(tensors, folder / FILE)
    elif what == "wrong base":
        base = bases["llama"]
    elif what == "pickle":
        (folder / FILE).rename(folder / "adapter_model.bin")
    elif what == "no config":
        (folder / "adapter_config.json").unlink()
    elif what == "no folder":
        folder /= "nowhere"
    else:
        (folder / "tenora.json").write_text("{}")
    with pytest.raises((AdapterFormatError, AdapterMismatchError)):
        store.publish(folder, NAME, base)
    assert tree(store.root) == before
    assert store.resolve(ref("acme/support")) == kept


def test_a_version_of_another_base_is_refused(
    store: Store, variants: list[Path], bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    with pytest.raises(AdapterMismatchError, match=r"'gpt2'.*'tenora-base'"):
        store.publish(version.path, NAME, resolve_base("embedded"))


# Links and pipes


@pytest.mark.parametrize("file", ["adapter_config.json", FILE, "tenora.json"])
@pytest.mark.parametrize("target", ["real", "/etc/passwd", "/no/such/file", "/dev/zero"])
def test_links_inside_the_folder_are_refused(
    store: Store, copy_of: Break, bases: dict[str, BaseSource], tmp_path: Path, file: str, target: str
) -> None:
    folder = copy_of("gpt2-generate")
    if (folder / file).exists():
        (folder / file).rename(tmp_path / "real")
    else:
        (tmp_path / "real").write_text("{}")
    (folder / file).symlink_to(tmp_path / "real" if target == "real" else target)
    with pytest.raises(AdapterFormatError, match="links are not followed") as caught:
        store.publish(folder, NAME, bases["gpt2"])
    assert caught.value.key == file
    assert store.names() == []


@pytest.mark.parametrize("file", ["adapter_config.json", FILE])
def test_a_pipe_or_a_folder_does_not_hang_a_publisher(
    store: Store, copy_of: Break, bases: dict[str, BaseSource], file: str
) -> None:
    folder = copy_of("gpt2-generate")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(AdapterFormatError, match="not a regular file"):
        store.publish(folder, NAME, bases["gpt2"])
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(AdapterFormatError, match="not a regular file"):
        store.publish(folder, NAME, bases["gpt2"])


def test_links_inside_the_store_are_not_followed(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    store.publish(variants[0], NAME, bases["gpt2"])
    (store.root / "acme" / "linked").symlink_to(store.root / "acme" / "support")
    (store.root / "zeta").symlink_to(store.root / "acme")
    assert store.names() == [NAME]
    for text in ("acme/linked", "zeta/support"):
        with pytest.raises(AdapterNameError, match="link"):
            store.resolve(ref(text))
    with pytest.raises(AdapterNameError, match="link"):
        store.publish(variants[0], AdapterName("zeta", "support"), bases["gpt2"])


@pytest.mark.parametrize("tenant", ["..", ".staging", ".locks", "/etc", "", "a/b"])
def test_a_tenant_cannot_be_a_path(store: Store, tenant: str) -> None:
    with pytest.raises(AdapterNameError):
        store.names(tenant)


# Finding


def test_what_is_not_there(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    for text in ("acme/support", "acme/support:stable", "acme/support@00000000"):
        with pytest.raises(AdapterNotFoundError):
            store.resolve(ref(text))
    assert store.names() == []
    assert store.recover() == []
    store.publish(variants[0], NAME, bases["gpt2"], aliases=("canary",))
    for text in ("acme/support", "acme/support:stable", "acme/support@00000000", "zeta/support", "acme/other"):
        with pytest.raises(AdapterNotFoundError):
            store.resolve(ref(text))
    assert (store.names(), store.names("acme"), store.names("zeta")) == ([NAME], [NAME], [])


def test_asking_for_names_makes_no_files(store: Store) -> None:
    for change in (
        lambda: store.delete(NAME),
        lambda: store.set_served(NAME, False),
        lambda: store.delete_alias(NAME, "x"),
    ):
        with pytest.raises(AdapterNotFoundError):
            change()
    assert not store.root.exists()


def test_unserved_names_are_hidden_and_come_back(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    store.set_served(NAME, False)
    assert not store.is_served(NAME)
    for text in ("acme/support", f"acme/support@{version.digest}"):
        with pytest.raises(AdapterNotFoundError, match="not served"):
            store.resolve(ref(text))
    assert store.versions(NAME) == [version]
    assert store.names() == [NAME]
    store.set_served(NAME, True)
    assert store.resolve(ref("acme/support")) == version


def test_what_requests_may_name(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    other = AdapterName("acme", "other")
    first, second = (store.publish(variants[n], name, bases["gpt2"]) for n, name in enumerate((NAME, other)))
    hidden = store.publish(variants[2], AdapterName("zeta", "hidden"), bases["gpt2"])
    store.publish(variants[2], AdapterName("zeta", "unnamed"), bases["gpt2"], aliases=("canary",))
    store.set_served(hidden.name, False)
    assert store.served() == [(other, second.digest), (NAME, first.digest)]
    assert store.served("zeta") == []


# Going back, and holding


def test_rolling_back_goes_the_way_that_an_alias_came(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    first, second, third = (store.publish(variants[n], NAME, bases["gpt2"]).digest for n in range(3))
    store.set_alias(NAME, "latest", first)
    store.set_alias(NAME, "latest", first)  # moves nothing, so there is nothing to take back
    for expected in (third, second, first):
        assert store.roll_back(NAME) == expected
        assert store.aliases(NAME) == {"latest": expected}
    with pytest.raises(AdapterNotFoundError, match="nothing else"):
        store.roll_back(NAME)
    with pytest.raises(AdapterNotFoundError, match="no alias"):
        store.roll_back(NAME, "stable")


def test_rolling_back_passes_over_what_was_deleted(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    first, second, third = (store.publish(variants[n], NAME, bases["gpt2"]).digest for n in range(3))
    store.delete_version(NAME, second)
    assert store.roll_back(NAME) == first
    assert store.versions(NAME)[-1].digest == third


def test_a_pinned_version_cannot_be_deleted(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    store.set_pinned(NAME, version.digest[:8], True)
    assert store.pinned(NAME) == {version.digest}
    for delete in (lambda: store.delete_version(NAME, version.digest), lambda: store.delete(NAME)):
        with pytest.raises(AdapterExistsError, match="unpin"):
            delete()
    store.set_pinned(NAME, version.digest, False)
    store.delete(NAME)
    assert store.names() == []


def test_every_change_is_in_the_audit_log(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    first, second = (store.publish(variants[n], NAME, bases["gpt2"], by="key-1").digest for n in range(2))
    store.set_alias(NAME, "stable", first, by="key-2")
    store.roll_back(NAME)
    store.delete_alias(NAME, "stable")
    store.set_served(NAME, False)
    store.delete_version(NAME, second)
    with pytest.raises(AdapterNotFoundError):
        store.set_alias(NAME, "stable", second)
    told = [(event.action, event.digest, event.alias, event.actor) for event in read_events(store.database)]
    assert told[::-1] == [
        ("create_tenant", None, None, "key-1"),
        ("publish", first, None, "key-1"),
        ("publish", second, None, "key-1"),
        ("promote", first, "stable", "key-2"),
        ("roll_back", first, "latest", "operator"),
        ("remove_alias", first, "stable", "operator"),
        ("hide", None, None, "operator"),
        ("delete_version", second, None, "operator"),
    ]
    newest = read_events(store.database, tenant="acme", name="support", most=1)[0]
    assert (newest.tenant, newest.name, newest.at.tzinfo) == ("acme", "support", UTC)
    older = read_events(store.database, before=newest.id, most=1)[0]
    assert older.action == "hide"
    assert read_events(store.database, tenant="zeta") == []


# Deleting


def test_deleting_a_version(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    first, second, third = (store.publish(variants[n], NAME, bases["gpt2"]) for n in range(3))
    store.set_alias(NAME, "stable", first.digest)
    with pytest.raises(AdapterExistsError, match="stable points at"):
        store.delete_version(NAME, first.digest)
    store.delete_version(NAME, third.digest)
    assert store.resolve(ref("acme/support")) == second
    assert not third.path.exists()
    store.delete_alias(NAME, "stable")
    store.delete_version(NAME, second.digest[:10])
    assert store.versions(NAME) == [first]
    assert store.resolve(ref("acme/support")) == first
    store.delete_version(NAME, first.digest)
    assert store.versions(NAME) == []
    with pytest.raises(AdapterNotFoundError):
        store.resolve(ref("acme/support"))
    assert not tree(store.root / ".staging")


def test_an_adapter_in_memory_outlives_its_version(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    adapter = load_adapter(version.path, bases["gpt2"])
    total = sum(float(pair.a.sum()) for pair in adapter.weights.pairs.values())
    store.delete(NAME)
    assert sum(float(pair.a.sum()) for pair in adapter.weights.pairs.values()) == total
    assert store.names() == []
    assert not (store.root / "acme" / "support").exists()


def test_latest_cannot_be_removed(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    store.publish(variants[0], NAME, bases["gpt2"])
    with pytest.raises(AdapterExistsError, match="latest"):
        store.delete_alias(NAME, "latest")
    with pytest.raises(AdapterNotFoundError):
        store.delete_alias(NAME, "stable")


def test_a_deleted_version_can_be_published_again(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    first = store.publish(variants[0], NAME, bases["gpt2"])
    store.delete_version(NAME, first.digest)
    assert store.publish(variants[0], NAME, bases["gpt2"]) == first
    assert store.resolve(ref("acme/support")) == first


# Recovery


def test_leftovers_are_removed_and_nothing_else(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    shutil.copytree(version.path, store.root / ".staging" / "half")
    # Announced, put in place and never published; announced, and no more.
    half, unborn = "f" * 64, AdapterName("acme", "unborn")
    registry = Registry(store.database)
    registry.announce(NAME, half, "x")
    shutil.copytree(version.path, version.path.parent / half)
    registry.announce(unborn, version.digest, "x")
    with pytest.raises(AdapterNotFoundError):
        store.resolve(ref(f"acme/support@{half}"))
    assert store.names() == [NAME]
    removed = store.recover()
    assert set(removed) == {".staging/half", f"{NAME}@{half}", f"{unborn}@{version.digest}"}
    assert not (version.path.parent / half).exists()
    assert not tree(store.root / ".staging")
    assert store.resolve(ref("acme/support")) == version
    assert store.recover() == []


def test_bytes_outlast_a_deletion_by_its_grace(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    first, second = (store.publish(variants[n], NAME, bases["gpt2"]) for n in range(2))
    store.delete_version(NAME, second.digest, grace=0.3)
    store.delete(NAME, grace=0.3)
    assert store.names() == []
    with pytest.raises(AdapterNotFoundError):
        store.resolve(ref(f"acme/support@{second.digest}"))
    assert store.purge() == []
    load_adapter(second.path, bases["gpt2"], digest=second.digest)
    store.publish(variants[1], NAME, bases["gpt2"])  # comes back before its time is up
    time.sleep(0.35)
    assert store.purge() == [f"{NAME}@{first.digest}"]
    assert not first.path.exists()
    assert [version.digest for version in store.versions(NAME)] == [second.digest]
    assert store.resolve(ref("acme/support")).digest == second.digest


def test_what_nobody_deleted_is_never_removed(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    """Folders that the database does not know may come from a backup; they are no leftovers."""
    version = store.publish(variants[0], NAME, bases["gpt2"])
    stranger = version.path.parent / ("f" * 64)
    shutil.copytree(version.path, stranger)
    assert store.recover() == []
    assert stranger.exists()


# A database that is gone, or was never there


def test_a_lost_database_loses_no_version(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    first, second = (store.publish(variants[n], NAME, bases["gpt2"]) for n in range(2))
    store.database.close()
    for file in store.root.glob("tenora.db*"):
        file.unlink()
    again = Store(store.root)
    assert again.recover() == []
    assert {version.digest for version in again.versions(NAME)} == {first.digest, second.digest}
    assert again.resolve(ref("acme/support")) == again.versions(NAME)[-1]
    assert [event.action for event in read_events(again.database)] == ["adopt", "create_tenant"]


def test_a_store_from_before_the_database_is_taken_over(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    first, second = (store.publish(variants[n], NAME, bases["gpt2"]).digest for n in range(2))
    store.database.close()
    for file in store.root.glob("tenora.db*"):
        file.unlink()
    pointers = store.root / "acme" / "support" / "pointers.json"
    old = {"format": 1, "versions": [second, first], "aliases": {"latest": first, "stable": second}, "served": False}
    pointers.write_text(json.dumps(old))
    again = Store(store.root)
    assert [version.digest for version in again.versions(NAME)] == [second, first]
    assert again.aliases(NAME) == old["aliases"]
    assert not again.is_served(NAME)
    assert not pointers.exists()


def test_recovery_leaves_living_writers_alone(
    store: Store, variants: list[Path], bases: dict[str, BaseSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(*args: object, **options: object) -> object:
        inside.set()
        assert go.wait(5)
        return load_adapter(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("adapters.staging.load_adapter", slow)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(store.publish, variants[0], NAME, bases["gpt2"])
        assert inside.wait(5)
        assert Store(store.root).recover() == []
        go.set()
        version = publishing.result(5)
    assert store.resolve(ref("acme/support")) == version


def test_a_store_has_one_database(
    store: Store, variants: list[Path], bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    elsewhere = Database(f"sqlite:///{tmp_path / 'elsewhere' / 'names.db'}")
    version = Store(store.root, elsewhere).publish(variants[0], NAME, bases["gpt2"])
    with pytest.raises(StateError, match=r"kept in sqlite.*TENORA_DATABASE"):
        store.publish(variants[1], NAME, bases["gpt2"])
    with pytest.raises(StateError):
        store.names()
    assert not list(store.root.glob("tenora.db*"))
    assert Store(store.root, elsewhere).resolve(ref("acme/support")) == version


# Several writers and readers


def test_publishers_in_several_processes_lose_nothing(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    base = bases["gpt2"]
    writers = [process(publish_all, store.root, base, variants, NAME, start) for start in range(4)]
    for writer in writers:
        writer.start()
    seen: set[str] = set()
    while any(writer.is_alive() for writer in writers):
        try:
            version = store.resolve(ref("acme/support"))
        except AdapterNotFoundError:
            continue
        if version.digest not in seen:
            load_adapter(version.path, base, digest=version.digest)
            seen.add(version.digest)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    versions = store.versions(NAME)
    assert len(versions) == len(variants)
    assert store.resolve(ref("acme/support")) in versions
    assert store.recover() == []


def test_no_alias_is_lost_between_processes(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    digest = store.publish(variants[0], NAME, bases["gpt2"]).digest
    aliases = [[f"{writer}-{number}" for number in range(25)] for writer in "abcd"]
    writers = [process(set_aliases, store.root, NAME, digest, part) for part in aliases]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.aliases(NAME) == dict.fromkeys(["latest", *itertools.chain(*aliases)], digest)


def test_readers_never_see_half_of_anything(store: Store, variants: list[Path], bases: dict[str, BaseSource]) -> None:
    versions = [store.publish(variant, NAME, bases["gpt2"]) for variant in variants[:2]]
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            version: Version = store.resolve(ref("acme/support"))
            assert version in versions
            seen.add(version.digest)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for index in range(60):
            store.set_alias(NAME, "latest", versions[index % 2].digest)
        stop.set()
        for reader in readers:
            reader.result(5)
    assert len(seen) == 2
