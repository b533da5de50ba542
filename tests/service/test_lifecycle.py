"""Promote, roll back, pin and delete over HTTP, under load; the audit log; and that a tenant sees only its own."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.cache import HostCache
from adapters.names import AdapterName
from adapters.store import Store
from service.janitor import Janitor
from service.lifecycle import Lifecycle
from tests.service.conftest import ACME, ADMIN, ZETA, Home, unguarded
from tests.service.running import RunningServer, eventually
from tests.service.uploading import parts, upload
from tests.support.tiny import write_peft_adapter


@pytest.fixture(scope="module")
def folders(home: Home, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that differ."""
    root = tmp_path_factory.mktemp("versions")
    return [write_peft_adapter(home.base.path, root / str(seed), seed=50 + seed) for seed in range(3)]


def brought(server: RunningServer, name: str, *folders: Path, **fields: Any) -> list[str]:
    """Publish folders as versions of one adapter; their digests."""
    made = [upload(server, parts(folder), name, template="alpaca", **fields) for folder in folders]
    assert all(response.is_success for response in made), [response.text for response in made]
    return [response.json()["digest"] for response in made]


def post(server: RunningServer, path: str, key: str = ADMIN, **body: Any) -> httpx.Response:
    return server.http.post(f"/v1/adapters/{path}", json=body, headers={"Authorization": f"Bearer {key}"})


def refused(response: httpx.Response, status: int, param: str | None, *words: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert all(word in error["message"] for word in words), error


def latest(server: RunningServer, name: str) -> str:
    return str(server.http.get(f"/v1/adapters/{name}").json()["aliases"]["latest"])


def test_versions_aliases_promote_and_roll_back(publisher: RunningServer, folders: list[Path]) -> None:
    one, two, three = brought(publisher, "acme/turns", *folders)
    shown = publisher.http.get("/v1/adapters/acme/turns").json()
    assert [version["digest"] for version in shown["data"]] == [one, two, three]
    assert [version["number"] for version in shown["data"]] == [1, 2, 3]
    assert [version["aliases"] for version in shown["data"]] == [[], [], ["latest"]]
    assert (shown["id"], shown["versions"], shown["served"]) == ("acme/turns", 3, True)
    moved = post(publisher, "acme/turns/promote", version=one[:8]).json()
    assert (moved["alias"], moved["digest"], moved["before"]) == ("latest", one, three)
    assert post(publisher, "acme/turns/promote", alias="stable", version=two).json()["before"] is None
    assert post(publisher, "acme/turns/rollback").json()["digest"] == three
    assert latest(publisher, "acme/turns") == three
    refused(post(publisher, "acme/turns/rollback", alias="stable"), 404, "alias", "nothing else")
    refused(post(publisher, "acme/turns/promote", version="0" * 8), 404, "version", "no version")
    refused(post(publisher, "acme/turns/promote", version="xyz"), 400, "version", "hex digits")
    refused(post(publisher, "acme/turns/promote", version=one, alias="A b"), 400, "alias", "lower-case")
    refused(post(publisher, "acme/turns/promote", digest=one), 400, "version", "required")
    listed = publisher.http.get("/v1/adapters").json()["data"]
    assert next(one for one in listed if one["id"] == "acme/turns")["aliases"] == {"latest": three, "stable": two}
    gone = publisher.http.delete("/v1/adapters/acme/turns/aliases/stable")
    assert gone.json()["deleted"] is True
    refused(publisher.http.delete("/v1/adapters/acme/turns/aliases/stable"), 404, "alias")
    refused(publisher.http.delete("/v1/adapters/acme/turns/aliases/latest"), 409, "alias")


def stream(server: RunningServer, model: str, began: threading.Event) -> tuple[str, str]:
    """What answers a long stream in full, and its text; ``began`` is set at its first piece."""
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 120, "temperature": 0, "stream": True}
    text = ""
    with server.http.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                began.set()
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert "[DONE]" in line or not line, line
    return response.headers["x-tenora-adapter"].partition("@")[2], text


def test_what_is_in_flight_finishes_on_its_version(publisher: RunningServer, folders: list[Path]) -> None:
    one, two = brought(publisher, "acme/flight", *folders[:2])
    alone = {digest: stream(publisher, f"acme/flight@{digest}", threading.Event())[1] for digest in (one, two)}
    assert alone[one] != alone[two]
    done = threading.Event()
    answers: list[tuple[str, str]] = []

    def go_on() -> None:
        while not done.is_set():
            answers.append(stream(publisher, "acme/flight", threading.Event()))

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(go_on) for _ in range(3)]
        for _ in range(3):
            post(publisher, "acme/flight/promote", version=one).raise_for_status()
            time.sleep(0.15)
            post(publisher, "acme/flight/rollback").raise_for_status()
            time.sleep(0.15)
        done.set()
        for future in running:
            future.result()
    assert {digest for digest, _ in answers} == {one, two}
    assert all(text == alone[digest] for digest, text in answers)


def test_deleting_leaves_time_to_what_is_in_flight(
    publisher: RunningServer, published: Path, folders: list[Path]
) -> None:
    (digest,) = brought(publisher, "acme/going", folders[0])
    folder = published / "acme/going/versions" / digest
    alone = stream(publisher, "acme/going", threading.Event())
    began = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, publisher, "acme/going", began)
        assert began.wait(20)
        gone = publisher.http.delete("/v1/adapters/acme/going")
        assert gone.json() == {
            "id": "acme/going", "object": "adapter.deleted", "deleted": True, "grace_seconds": 1.5
        }  # fmt: skip
        assert folder.exists()
        assert publisher.http.get("/v1/adapters/acme/going").status_code == 404
        assert post(publisher, "acme/going/promote", version=digest).status_code == 404
        asked = publisher.http.post("/v1/completions", json={"model": "acme/going", "prompt": [5]})
        assert asked.status_code == 404
        assert running.result() == alone
    eventually(lambda: not folder.exists(), 20, "the end of the grace")
    assert publisher.http.delete("/v1/adapters/acme/going").status_code == 404


def test_deleting_versions(publisher: RunningServer, folders: list[Path]) -> None:
    one, two, three = brought(publisher, "acme/fewer", *folders)
    post(publisher, "acme/fewer/promote", alias="stable", version=one)
    refused(publisher.http.delete(f"/v1/adapters/acme/fewer/versions/{one}"), 409, "version", "stable")
    assert publisher.http.delete(f"/v1/adapters/acme/fewer/versions/{three[:10]}").is_success
    assert latest(publisher, "acme/fewer") == two
    refused(publisher.http.delete(f"/v1/adapters/acme/fewer/versions/{three}"), 404, "version")


def test_what_is_pinned_cannot_be_deleted(publisher: RunningServer, folders: list[Path]) -> None:
    one, _ = brought(publisher, "acme/kept", *folders[:2])
    assert post(publisher, "acme/kept/pin", version=one).json()["pinned"] is True
    refused(publisher.http.delete(f"/v1/adapters/acme/kept/versions/{one}"), 409, "version", "unpin")
    refused(publisher.http.delete("/v1/adapters/acme/kept"), 409, "version", "unpin")
    assert post(publisher, "acme/kept/unpin", version=one).json()["pinned"] is False
    assert publisher.http.delete("/v1/adapters/acme/kept").is_success


def calls(name: str, digest: str) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Every route that speaks of an adapter."""
    at = f"/v1/adapters/{name}"
    yield "GET", at, None
    yield "POST", f"{at}/promote", {"version": digest}
    yield "POST", f"{at}/rollback", {}
    yield "POST", f"{at}/pin", {"version": digest}
    yield "POST", f"{at}/unpin", {"version": digest}
    yield "DELETE", f"{at}/versions/{digest}", None
    yield "DELETE", f"{at}/aliases/stable", None
    yield "DELETE", at, None
    yield "GET", f"/v1/events?adapter={name}", None


def test_another_tenants_adapter_does_not_exist(publisher: RunningServer, folders: list[Path]) -> None:
    (digest,) = brought(publisher, "zeta/hidden", folders[0], alias=["latest", "stable"])
    headers = {"Authorization": f"Bearer {ACME}"}
    for there, absent in zip(calls("zeta/hidden", digest), calls("zeta/absent", digest), strict=True):
        one, other = (publisher.http.request(m, url, json=body, headers=headers) for m, url, body in (there, absent))
        assert one.status_code == other.status_code == 404, (there, one.text)
        assert one.content == other.content.replace(b"zeta/absent", b"zeta/hidden"), there
        own = publisher.http.request(*absent[:2], json=absent[2], headers={"Authorization": f"Bearer {ZETA}"})
        if "events" not in absent[1]:
            assert own.content == other.content, absent
    listed = publisher.http.get("/v1/adapters", headers=headers).json()["data"]
    assert {one["id"].partition("/")[0] for one in listed} == {"acme"}
    assert latest(publisher, "zeta/hidden") == digest
    copies = [upload(publisher, parts(folders[1]), f"zeta/{name}", key=ACME) for name in ("hidden", "absent")]
    assert [response.status_code for response in copies] == [404, 404]
    assert copies[0].content == copies[1].content.replace(b"zeta/absent", b"zeta/hidden")


def test_scopes(publisher: RunningServer, folders: list[Path]) -> None:
    (digest,) = brought(publisher, "acme/scoped", folders[0])

    def key_for(*scopes: str) -> dict[str, str]:
        made = publisher.http.post("/admin/v1/keys", json={"tenant": "acme", "scopes": scopes}).json()
        return {"Authorization": f"Bearer {made['key']}"}

    reader, writer, trainer = key_for("infer"), key_for("publish"), key_for("train")
    for method, url, body in calls("acme/scoped", digest):
        statuses = [
            publisher.http.request(method, url, json=body, headers=who).status_code for who in (reader, trainer)
        ]
        assert statuses == [200 if method == "GET" else 403, 403], (method, url)
    assert publisher.http.get("/v1/adapters", headers=writer).is_success
    pinned = publisher.http.post("/v1/adapters/acme/scoped/pin", json={"version": digest}, headers=writer)
    assert pinned.is_success
    event = publisher.http.get("/v1/events?adapter=acme/scoped&limit=1").json()["data"][0]
    assert (event["action"], event["digest"]) == ("pin", digest)
    assert len(event["actor"]) == 12  # the key's id, which says nothing of the key


def test_events(publisher: RunningServer, folders: list[Path]) -> None:
    one, two = brought(publisher, "acme/told", *folders[:2])
    post(publisher, "acme/told/promote", ACME, version=one)
    as_acme = {"Authorization": f"Bearer {ACME}"}
    publisher.http.post("/v1/unload_lora_adapter", json={"lora_name": "told"}, headers=as_acme).raise_for_status()
    url = "/v1/events?adapter=acme/told"
    found = publisher.http.get(url).json()
    assert [event["action"] for event in found["data"]] == ["hide", "promote", "publish", "publish"]
    assert found["has_more"] is False
    promoted = found["data"][1]
    assert (promoted["digest"], promoted["alias"], promoted["detail"]) == (one, "latest", {"before": two})
    assert (promoted["tenant"], promoted["adapter"]) == ("acme", "acme/told")
    assert promoted["actor"] == found["data"][0]["actor"] != found["data"][2]["actor"]
    page = publisher.http.get(f"{url}&limit=3").json()
    assert page["has_more"] is True
    rest = publisher.http.get(f"{url}&before={page['data'][-1]['id']}").json()["data"]
    assert page["data"] + rest == found["data"]
    own = publisher.http.get("/v1/events", headers=as_acme).json()["data"]
    assert {event["tenant"] for event in own} == {"acme"}
    assert publisher.http.get("/v1/events?tenant=zeta").json()["data"][0]["tenant"] == "zeta"
    elsewhere = publisher.http.get("/v1/events?tenant=zeta", headers=as_acme)
    refused(elsewhere, 403, "tenant", "operators")
    refused(publisher.http.get("/v1/events?limit=0"), 400, "limit")


def test_what_is_pinned_elsewhere_is_known_soon(home: Home, tmp_path: Path) -> None:
    """The cache asks which versions are to stay; a pin by the command line reaches it with the next round."""
    store = Store(tmp_path / "store")
    version = store.publish(home.folders / "acme-write", AdapterName("acme", "write"), home.base)
    cache = HostCache(0, lambda _: None)  # type: ignore[arg-type,return-value]
    lifecycle = Lifecycle(home.base, store, cache, unguarded(store), max_lora_rank=64, delete_grace=0.0)
    janitor = Janitor(lifecycle.keep_house, every=0.05)
    janitor.start()
    store.set_pinned(version.name, version.digest, True)
    eventually(lambda: lifecycle.is_pinned(version.digest))
    store.set_pinned(version.name, version.digest, False)
    store.delete(version.name, grace=0.2)
    assert version.path.exists()
    eventually(lambda: not version.path.exists() and not lifecycle.is_pinned(version.digest))
    janitor.stop()
