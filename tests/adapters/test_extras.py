"""What is told about an adapter goes into the store with it, bounded, and changes nothing in what it is."""

import os
import shutil
from pathlib import Path

import pytest

from adapters.adapter import load_adapter
from adapters.base import BaseSource
from adapters.errors import AdapterFormatError
from adapters.extras import MAX_EXTRA_BYTES, MAX_EXTRAS, find_extras
from adapters.names import AdapterName
from adapters.store import Store
from tests.adapters.conftest import Break

NAME = AdapterName("acme", "support")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(copy_of: Break) -> Path:
    """An adapter with a card of its own, and without PEFT's."""
    copy = copy_of("gpt2-generate")
    (copy / "README.md").write_text("# Support\n", encoding="utf-8")
    return copy


def test_card_report_and_plots_go_along(store: Store, folder: Path, bases: dict[str, BaseSource]) -> None:
    (folder / "report.json").write_text("{}")
    for name in ("loss.png", "confusion matrix (test).png"):
        (folder / name).write_bytes(PNG)
    for name in ("loss.PNG", ".hidden.png", "notes.md", "trainer_state.json", "-x.png", "run.py"):
        (folder / name).write_text("no")
    (folder / "plots").mkdir()
    (folder / "plots" / "inner.png").write_bytes(PNG)
    version = store.publish(folder, NAME, bases["gpt2"])
    extras = version.extras
    assert list(extras) == ["README.md", "confusion matrix (test).png", "loss.png", "report.json"]
    assert extras["README.md"].read_text() == "# Support\n"
    assert extras["loss.png"].read_bytes() == PNG
    assert {path.name for path in version.path.iterdir()} - set(extras) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tenora.json",
    }
    assert load_adapter(version.path, bases["gpt2"], digest=version.digest)


def test_they_are_no_part_of_the_digest(store: Store, folder: Path, bases: dict[str, BaseSource]) -> None:
    first = store.publish(folder, NAME, bases["gpt2"])
    (folder / "README.md").write_text("# Another card\n")
    (folder / "loss.png").write_bytes(PNG)
    again = store.publish(folder, NAME, bases["gpt2"])
    assert again == first
    assert again.extras["README.md"].read_text() == "# Support\n"  # a version never changes
    other = store.publish(folder, AdapterName("zeta", "copy"), bases["gpt2"])
    assert other.digest == first.digest
    assert list(other.extras) == ["README.md", "loss.png"]


def test_an_adapter_without_any(store: Store, folder: Path, bases: dict[str, BaseSource]) -> None:
    (folder / "README.md").unlink()
    assert store.publish(folder, NAME, bases["gpt2"]).extras == {}


@pytest.mark.parametrize("name", ["README.md", "report.json", "loss.png"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "large"])
def test_what_is_no_small_regular_file_is_refused(
    store: Store, folder: Path, bases: dict[str, BaseSource], name: str, kind: str
) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "dangling":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "large":
            path.write_bytes(b"x" * (MAX_EXTRA_BYTES + 1))
    with pytest.raises(AdapterFormatError, match=name) as caught:
        store.publish(folder, NAME, bases["gpt2"])
    assert caught.value.key == name
    assert store.names() == []
    assert not list((store.root / ".staging").iterdir())


def test_there_may_be_so_many_and_so_large(store: Store, folder: Path, bases: dict[str, BaseSource]) -> None:
    for number in range(MAX_EXTRAS - 1):
        (folder / f"{number}.png").write_bytes(PNG)
    (folder / "README.md").write_bytes(b"x" * MAX_EXTRA_BYTES)
    assert len(store.publish(folder, NAME, bases["gpt2"]).extras) == MAX_EXTRAS
    (folder / "one more.png").write_bytes(PNG)
    with pytest.raises(AdapterFormatError, match="more than 12 files"):
        find_extras(folder)
    copy = AdapterName("acme", "more")
    with pytest.raises(AdapterFormatError, match="remove some plots"):
        store.publish(folder, copy, bases["gpt2"])
    assert store.names() == [NAME]


def test_a_card_survives_publishing_from_the_store(
    store: Store, folder: Path, bases: dict[str, BaseSource], tmp_path: Path
) -> None:
    """A published version is a folder like any other, in another store too."""
    version = store.publish(folder, NAME, bases["gpt2"])
    elsewhere = Store(tmp_path / "elsewhere").publish(
        Path(shutil.copytree(version.path, tmp_path / "taken")), NAME, bases["gpt2"]
    )
    assert elsewhere.digest == version.digest
    assert elsewhere.extras["README.md"].read_text() == "# Support\n"
