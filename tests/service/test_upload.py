"""Adapters brought over HTTP: what is published answers, the same is the same, a dry run leaves nothing."""

import json
import shutil
from pathlib import Path

import httpx
import pytest

from adapters.adapter import load_adapter
from adapters.names import AdapterName
from adapters.store import Store
from tests.service.conftest import ACME, ADMIN, Home
from tests.service.running import RunningServer
from tests.service.uploading import CONFIG, MANIFEST, WEIGHTS, archive, contents, parts, tarred, tree, upload, zipped
from tests.support.tiny import write_peft_adapter


@pytest.fixture
def folder(home: Home, tmp_path: Path) -> Path:
    """A plain PEFT folder that nobody has published."""
    return write_peft_adapter(home.base.path, tmp_path / "adapter", r=6, seed=77)


def ask(server: RunningServer, model: str, **body: object) -> httpx.Response:
    body = {"model": model, "instruction": "Say it.", "input": "It was good.", "max_tokens": 4, "temperature": 0} | body
    return server.http.post("/v1/instruct", json=body)


def test_an_upload_answers_at_once(publisher: RunningServer, published: Path, home: Home, folder: Path) -> None:
    response = upload(publisher, parts(folder), "acme/fresh", template="alpaca", alias=["latest", "stable"])
    assert response.status_code == 201, response.text
    made = response.json()
    assert made["id"] == f"acme/fresh@{made['digest']}"
    assert (made["task"], made["rank"], made["labels"], made["base"]) == ("generate", 6, None, home.base.id)
    assert made["aliases"] == ["latest", "stable"]
    assert (made["number"], made["pinned"], made["new"]) == (1, False, True)
    version = Store(published).versions(AdapterName("acme", "fresh"))[0]
    assert version.digest == made["digest"] == load_adapter(version.path, home.base).digest
    assert made["size"] == sum((version.path / name).stat().st_size for name in (CONFIG, WEIGHTS, MANIFEST))
    answer = ask(publisher, "acme/fresh:stable")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tenora-adapter"] == made["id"]
    assert not list((published / ".uploads").iterdir())


def test_the_same_bytes_are_the_same_version(publisher: RunningServer, folder: Path) -> None:
    first = upload(publisher, parts(folder), "acme/twice", template="alpaca")
    again = upload(publisher, parts(folder), "acme/twice", template="alpaca")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["digest"] == first.json()["digest"]
    assert again.json()["new"] is False
    dated = upload(publisher, parts(folder), "acme/twice", template="alpaca", created="2026-01-31T12:00:00+00:00")
    assert (dated.status_code, dated.json()["number"]) == (201, 2)
    assert dated.json()["digest"] != first.json()["digest"]


def test_a_dry_run_says_what_would_be_and_leaves_nothing(
    publisher: RunningServer, published: Path, folder: Path
) -> None:
    before = tree(published)
    tried = upload(publisher, parts(folder), "acme/tried", template="alpaca", dry_run="true")
    assert tried.status_code == 200, tried.text
    assert tried.json()["dry_run"] is True
    assert (tried.json()["number"], tried.json()["rank"]) == (None, 6)
    assert tree(published) == before
    assert publisher.http.get("/v1/adapters/acme/tried").status_code == 404
    made = upload(publisher, parts(folder), "acme/tried", template="alpaca").json()
    assert made["digest"] == tried.json()["digest"]
    assert made["size"] == tried.json()["size"]


def test_a_version_of_a_store_keeps_its_digest(publisher: RunningServer, published: Path) -> None:
    version = Store(published).versions(AdapterName("acme", "label"))[0]
    response = upload(publisher, parts(version.path), "acme/copied")
    assert response.status_code == 201, response.text
    assert response.json()["digest"] == version.digest
    assert response.json()["labels"] == ["bad", "good"]
    assert publisher.http.post("/v1/classify", json={"model": "acme/copied", "input": "a"}).status_code == 200


def test_a_classifier_with_labels(publisher: RunningServer, home: Home) -> None:
    response = upload(publisher, parts(home.folders / "acme-label"), "acme/labelled", labels=["no, never", "yes"])
    assert response.json()["labels"] == ["no, never", "yes"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
@pytest.mark.parametrize("inside", ["", "./", "adapter/"])
def test_archives(publisher: RunningServer, published: Path, kind: str, inside: str) -> None:
    version = Store(published).versions(AdapterName("acme", "write"))[0]
    members = {inside + name: data for name, data in contents(version.path).items()}
    made = zipped(members) if kind == "zip" else tarred(members, "w:gz" if kind == "tar.gz" else "w")
    response = upload(publisher, archive(made), "acme/packed")
    assert response.status_code in (200, 201), response.text
    assert response.json()["digest"] == version.digest


def test_a_plain_archive_has_the_date_of_its_files(publisher: RunningServer, published: Path, folder: Path) -> None:
    response = upload(publisher, archive(tarred(contents(folder))), "acme/dated", template="plain")
    assert response.status_code == 201, response.text
    manifest = json.loads((published / f"acme/dated/versions/{response.json()['digest']}/{MANIFEST}").read_text())
    assert manifest["created"] == "2026-02-02T02:40:00+00:00"
    assert upload(publisher, archive(tarred(contents(folder))), "acme/dated", template="plain").status_code == 200


def test_card_and_plots_travel_along(publisher: RunningServer, published: Path, folder: Path) -> None:
    (folder / "README.md").write_text("# a card")
    files = [*parts(folder), ("report", ("r.json", b"{}")), *(("plot", (f"{n}.png", b"png")) for n in range(2))]
    response = upload(publisher, files, "acme/carded")
    assert response.status_code == 201, response.text
    names = {path.name for path in (published / "acme/carded/versions" / response.json()["digest"]).iterdir()}
    assert names == {CONFIG, WEIGHTS, MANIFEST, "README.md", "report.json", "0.png", "1.png"}


def test_a_tenants_key_need_not_name_its_tenant(publisher: RunningServer, folder: Path) -> None:
    response = upload(publisher, parts(folder), "short", key=ACME)
    assert response.json()["adapter"] == "acme/short"
    assert response.json()["published_by"].startswith("fixed-")


def test_what_a_dead_server_left_is_cleared_away(home: Home, tmp_path: Path) -> None:
    from service.uploads import Uploads

    shutil.copytree(home.folders / "acme-write", tmp_path / ".uploads" / "dead" / "adapter")
    Uploads(tmp_path).clean()
    assert not list((tmp_path / ".uploads").iterdir())
    assert ADMIN
