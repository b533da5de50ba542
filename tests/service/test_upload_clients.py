"""Uploads and what follows by the typed client and the command line, against a server and on a store's folder."""

import io
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.audit import read_events
from adapters.names import AdapterName
from adapters.parcel import WEIGHTS_FILE
from adapters.store import Store
from adapters.templates import PromptTemplate
from adapters.weights import WEIGHTS_FILE as OWN_WEIGHTS_FILE
from service.cli import app
from service.client import TenoraClient, TenoraError
from service.errors import StorageFullError
from service.publishing import room_on_disk
from tests.service.conftest import ACME, Home
from tests.service.running import RunningServer
from tests.service.uploading import contents, tarred
from tests.support.tiny import write_peft_adapter


@pytest.fixture(scope="module")
def folders(home: Home, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("client")
    return [write_peft_adapter(home.base.path, root / str(seed), seed=80 + seed) for seed in range(2)]


def test_the_client(publisher: RunningServer, home: Home, folders: list[Path], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with TenoraClient(publisher.url, ACME) as client:
        tried = client.upload(folders[0], "by-client", template="alpaca", dry_run=True)
        one = client.upload(
            folders[0], "by-client", template="alpaca", aliases=["stable"],
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
        assert (tried.number, tried.digest) == (None, one.digest)
        assert (one.adapter, one.aliases, one.number) == ("acme/by-client", ("latest", "stable"), 1)
        assert told[-1][0] == told[-1][1] > 10_000
        # The same version as a store gets from the same folder.
        own = Store(tmp_path / "store").publish(
            folders[0], AdapterName("acme", "x"), home.base, template=PromptTemplate.named("alpaca")
        )
        assert own.digest == one.digest
        packed = tmp_path / "packed.tar.gz"
        packed.write_bytes(tarred(contents(folders[1])))
        two = client.upload(packed, "by-client", template="alpaca")
        assert [version.digest for version in client.versions("acme/by-client")] == [one.digest, two.digest]
        assert client.promote("acme/by-client", one.digest[:8]) == one.digest
        assert client.rollback("acme/by-client") == two.digest
        assert client.pin("acme/by-client", two.digest).pinned
        with pytest.raises(TenoraError, match="unpin") as error:
            client.delete("acme/by-client", two.digest)
        assert (error.value.status, error.value.param) == (409, "version")
        assert not client.pin("acme/by-client", two.digest, False).pinned
        client.delete("acme/by-client", two.digest)
        client.delete("acme/by-client")
        with pytest.raises(TenoraError, match="acme/by-client"):
            client.versions("acme/by-client")


def tenora(*arguments: str, **env: Any) -> str:
    result = CliRunner().invoke(app, ["adapters", *arguments], env={f"TENORA_{k.upper()}": v for k, v in env.items()})
    assert result.exit_code == 0, (result.output, result.stderr)
    return result.stdout.strip()


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["adapters", *arguments])
    assert (result.exit_code, result.stdout) == (2, ""), result
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_the_command_line_over_http(publisher: RunningServer, folders: list[Path], tmp_path: Path) -> None:
    where = ("--url", publisher.url, "--key", ACME)
    would = tenora("upload", str(folders[0]), "by-command", "--template", "alpaca", "--dry-run", *where)
    one = tenora("upload", str(folders[0]), "by-command", "--template", "alpaca", *where)
    assert would == f"{one} would be published"
    two = tenora("upload", str(folders[1]), "acme/by-command", "--template", "alpaca", "--alias", "next", *where)
    assert tenora("promote", one, *where) == f"acme/by-command:latest -> {one.partition('@')[2][:12]}"
    assert tenora("rollback", "acme/by-command", *where).endswith(two.partition("@")[2][:12])
    assert tenora("pin", two, *where).endswith("is pinned")
    assert tenora("unpin", two, *where).endswith("no longer pinned")
    assert "no version" in refused("promote", "acme/by-command@00000000", *where)
    assert "zeta" in refused("rollback", "zeta/write", *where)
    assert "@DIGEST" in refused("pin", "acme/by-command", *where)
    (tmp_path / "empty").mkdir()
    assert "safetensors" in refused("upload", str(tmp_path / "empty"), "a", *where)
    assert "there is no" in refused("upload", str(tmp_path / "nowhere"), "a", *where)
    assert "generates" in refused("upload", str(folders[0]), "a", "--labels", "a,b", *where)


def test_the_command_line_on_a_store(home: Home, folders: list[Path], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two = (store.publish(folder, AdapterName("acme", "own"), home.base) for folder in folders)
    where = ("--store", str(store.root))
    tenora("promote", f"acme/own@{one.digest}", *where)
    assert store.aliases(one.name)["latest"] == one.digest
    tenora("rollback", "acme/own", *where)
    assert store.aliases(one.name)["latest"] == two.digest
    tenora("pin", f"acme/own@{one.digest[:8]}", *where)
    assert store.pinned(one.name) == {one.digest}
    tenora("unpin", f"acme/own@{one.digest[:8]}", *where)
    actions = [event.action for event in read_events(store.database)]
    assert actions[:4] == ["unpin", "pin", "roll_back", "promote"]
    tenora("rollback", "acme/own", *where)
    assert "nothing else" in refused("rollback", "acme/own", "--alias", "latest", *where)


def test_a_full_disk_is_said_in_one_sentence() -> None:
    with pytest.raises(StorageFullError, match="disk is full"), room_on_disk(), Path("/dev/full").open("wb") as full:
        full.write(bytes(1 << 20))
    with pytest.raises(FileNotFoundError), room_on_disk():
        Path("/nowhere/at/all").open("rb").close()
    assert StorageFullError("x").detail().status == 507


def test_a_full_disk_in_the_middle_of_an_upload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from service.upload_form import UploadForm

    form = UploadForm("multipart/form-data; boundary=x", tmp_path, 1 << 20, None)
    monkeypatch.setattr(Path, "open", lambda *_: io.FileIO("/dev/full", "w"))
    part = b'--x\r\nContent-Disposition: form-data; name="config"; filename="c"\r\n\r\n' + bytes(5000)
    with pytest.raises(StorageFullError), room_on_disk():
        form.feed(part)
    form.close()


def test_one_name_for_the_weights() -> None:
    assert WEIGHTS_FILE == OWN_WEIGHTS_FILE
