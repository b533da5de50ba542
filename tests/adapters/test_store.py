"""The store: immutable versions, pointers, and a stranger's folder that gets in only as plain files."""

import itertools
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapters.adapter import load_adapter
from adapters.base import BaseSource, resolve_base
from adapters.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterFormatError,
    AdapterMismatchError,
    AdapterNameError,
    AdapterNotFoundError,
)
from adapters.names import AdapterName, AdapterRef
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
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


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


def test_broken_pointers_concern_one_adapter_only(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    store.publish(variants[0], NAME, bases["gpt2"])
    other = store.publish(variants[1], AdapterName("acme", "other"), bases["gpt2"])
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "versions": 5, "aliases": {}, "served": true}'):
        (store.root / "acme" / "support" / "pointers.json").write_text(text)
        with pytest.raises(AdapterFormatError, match="restore"):
            store.resolve(ref("acme/support"))
        assert store.resolve(ref("acme/other")) == other
        assert store.recover() == []
        assert len(store.names()) == 2


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
    (store.root / ".staging" / "pointers-x").write_text("{")
    orphan = version.path.parent / ("f" * 64)
    shutil.copytree(version.path, orphan)
    unborn = store.root / "acme" / "unborn"
    shutil.copytree(version.path, unborn / "versions" / version.digest)
    with pytest.raises(AdapterNotFoundError):
        store.resolve(ref(f"acme/support@{'f' * 64}"))
    removed = store.recover()
    assert len(removed) == 4
    assert not orphan.exists()
    assert not unborn.exists()
    assert not tree(store.root / ".staging")
    assert store.resolve(ref("acme/support")) == version
    assert store.recover() == []


def test_recovery_leaves_living_writers_alone(
    store: Store, variants: list[Path], bases: dict[str, BaseSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(*args: object, **options: object) -> object:
        inside.set()
        assert go.wait(5)
        return load_adapter(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("adapters.store.load_adapter", slow)
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(store.publish, variants[0], NAME, bases["gpt2"])
        assert inside.wait(5)
        assert Store(store.root).recover() == []
        go.set()
        version = publishing.result(5)
    assert store.resolve(ref("acme/support")) == version


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


def test_every_pointer_file_is_json_with_a_format(
    store: Store, variants: list[Path], bases: dict[str, BaseSource]
) -> None:
    version = store.publish(variants[0], NAME, bases["gpt2"])
    raw = json.loads((store.root / "acme" / "support" / "pointers.json").read_text())
    assert raw == {"format": 1, "versions": [version.digest], "aliases": {"latest": version.digest}, "served": True}
    assert issubclass(AdapterNotFoundError, AdapterError)
