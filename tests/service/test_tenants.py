"""Tenants and keys on a running server: who may do what, and that nobody sees what is not theirs."""

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Home
from tests.service.running import RunningServer, eventually, running
from tests.service.uploading import parts, upload

OPERATOR = "sk-the-operator"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def owned(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on a store of its own, with an operator's fixed key."""
    folder = tmp_path_factory.mktemp("owned")
    home.copied(folder / "store")
    settings = {**home.settings, "store": str(folder / "store")}
    with running(folder / "log", key=OPERATOR, api_keys={OPERATOR: "*"}, **settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


def make_key(server: RunningServer, tenant: str | None, *scopes: str, **more: Any) -> tuple[str, dict[str, str]]:
    """A key's id, and the header that shows it."""
    reply = server.http.post("/admin/v1/keys", json={"tenant": tenant, "scopes": scopes or ["infer"], **more})
    assert reply.status_code == 201, reply.text
    assert reply.headers["cache-control"] == "no-store"
    return reply.json()["id"], {"Authorization": f"Bearer {reply.json()['key']}"}


def new_tenant(server: RunningServer, **limits: Any) -> str:
    name = f"t{next(_numbers)}"
    assert server.http.post("/admin/v1/tenants", json={"name": name, **limits}).status_code == 201
    return name


def say(server: RunningServer, model: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/completions",
        json={"model": model, "prompt": "hello", "max_tokens": 2},
        headers=headers,
        timeout=30,
    )


# Keys


def test_a_key_works_until_it_is_revoked(owned: RunningServer) -> None:
    key_id, headers = make_key(owned, "acme", label="app")
    assert say(owned, "acme/write", headers).status_code == 200
    listed = owned.http.get("/admin/v1/keys").json()["data"]
    assert [entry["label"] for entry in listed if entry["id"] == key_id] == ["app"]
    assert headers["Authorization"].split()[1] not in owned.http.get("/admin/v1/keys").text
    assert owned.http.delete(f"/admin/v1/keys/{key_id}").json()["revoked_at"]
    refused = say(owned, "acme/write", headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert owned.http.delete(f"/admin/v1/keys/{key_id}").status_code == 400
    assert owned.http.delete("/admin/v1/keys/000000000000").json()["error"]["code"] == "key_not_found"


def test_a_key_ends_when_it_is_said_to(owned: RunningServer) -> None:
    _, headers = make_key(owned, "acme", expires_at="2090-01-31T12:00:00+02:00")
    ends = [key["expires_at"] for key in owned.http.get("/admin/v1/keys").json()["data"] if key["expires_at"]]
    assert "2090-01-31T10:00:00+00:00" in ends
    assert say(owned, "acme/write", headers).status_code == 200
    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()
    _, brief = make_key(owned, "acme", expires_at=soon)
    assert say(owned, "acme/write", brief).status_code == 200
    eventually(lambda: say(owned, "acme/write", brief).status_code == 401, within=5.0, what="the key's end")


def test_urls_with_a_nul_are_refused(owned: RunningServer) -> None:
    for path in (
        "/admin/v1/tenants/a%00b",
        "/admin/v1/keys/%00",
        "/v1/usage?adapter=%00",
        "/v1/events?before=9223372036854775808",
    ):
        assert owned.http.get(path).status_code in (400, 405), path


def test_rotating_gives_a_successor(owned: RunningServer) -> None:
    key_id, old = make_key(owned, "acme")
    reply = owned.http.post(f"/admin/v1/keys/{key_id}/rotate", json={"overlap": 60})
    new = {"Authorization": f"Bearer {reply.json()['key']}"}
    assert say(owned, "acme/write", old).status_code == say(owned, "acme/write", new).status_code == 200
    again = owned.http.post(f"/admin/v1/keys/{key_id}/rotate", json={"overlap": 60})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_rotated")
    assert reply.json()["id"] in again.json()["error"]["message"]
    assert owned.http.post(f"/admin/v1/keys/{reply.json()['id']}/rotate", json={}).status_code == 201
    assert say(owned, "acme/write", new).status_code == 401


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("infer", {"infer"}), ("publish", {"publish"}), ("train", set()), ("admin", {"infer", "publish", "admin"})],
)
def test_scopes_open_what_they_name(owned: RunningServer, scope: str, allowed: set[str]) -> None:
    _, headers = make_key(owned, "acme", scope)
    calls: dict[str, Callable[[], httpx.Response]] = {
        "infer": lambda: say(owned, "acme/write", headers),
        "publish": lambda: httpx.post(
            f"{owned.url}/v1/unload_lora_adapter", json={"lora_name": "acme/none"}, headers=headers
        ),
        "admin": lambda: httpx.get(f"{owned.url}/admin/v1/keys", headers=headers),
    }
    for needed, call in calls.items():
        reply = call()
        if needed in allowed:
            assert reply.status_code in (200, 404), (needed, reply.text)
        else:
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (403, "permission_denied"), needed
            assert f"'{needed}'" in error["message"] and scope in error["message"]


def test_a_scope_is_asked_for_before_the_body_is_read(owned: RunningServer) -> None:
    _, headers = make_key(owned, "acme", "publish")
    reply = httpx.post(f"{owned.url}/v1/completions", content=b"{ this is no JSON", headers=headers)
    assert reply.status_code == 403


def test_bad_requests_of_administrators(owned: RunningServer) -> None:
    for path, body, status, param in (
        ("keys", {"tenant": "nobody"}, 404, "tenant"),
        ("keys", {"tenant": "acme", "scopes": ["root"]}, 400, "scopes[0]"),
        ("keys", {"tenant": "acme", "scopes": []}, 400, "scopes"),
        ("keys", {"tenant": "acme", "expires_at": "2001-01-01T00:00:00Z"}, 400, "expires_at"),
        ("keys", {"tenant": "acme", "expires_at": "0001-01-01T00:00:00+14:00"}, 400, "expires_at"),
        ("keys", {"tenant": "acme", "expires_at": "9999-12-31T23:59:59-14:00"}, 400, "expires_at"),
        ("keys", {"tenant": "acme", "label": "a\0b"}, 400, "label"),
        ("keys", {"tenant": "acme", "expires_at": "2031-01-01T00:00:00"}, 400, "expires_at"),
        ("keys", {"tenant": "acme", "colour": 1}, 400, "colour"),
        ("tenants", {"name": "../x"}, 400, "tenant"),
        ("tenants", {"name": "acme"}, 409, "name"),
        ("tenants", {"name": "ok", "share": 0}, 400, "share"),
        ("tenants", {}, 400, "name"),
    ):
        reply = owned.http.post(f"/admin/v1/{path}", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), (body, reply.text)


# Tenants


def test_a_disabled_tenant_is_locked_out_and_comes_back(owned: RunningServer) -> None:
    tenant = new_tenant(owned)
    _, headers = make_key(owned, tenant)
    models = lambda: httpx.get(f"{owned.url}/v1/models", headers=headers).status_code
    assert models() == 200
    assert owned.http.patch(f"/admin/v1/tenants/{tenant}", json={"disabled": True}).json()["disabled_at"]
    assert models() == 401
    assert owned.http.patch(f"/admin/v1/tenants/{tenant}", json={"disabled": False}).json()["disabled_at"] is None
    assert models() == 200


def test_limits_are_set_and_taken_away(owned: RunningServer) -> None:
    tenant = new_tenant(owned, requests_per_minute=10)
    changed = owned.http.patch(
        f"/admin/v1/tenants/{tenant}", json={"requests_per_minute": None, "concurrent": 2}
    ).json()
    assert (changed["requests_per_minute"], changed["concurrent"], changed["share"]) == (None, 2, 1.0)
    assert owned.http.get(f"/admin/v1/tenants/{tenant}").json() == changed
    assert changed in owned.http.get("/admin/v1/tenants").json()["data"]


def test_a_tenants_administrator_sees_that_tenant_alone(owned: RunningServer) -> None:
    tenant = new_tenant(owned)
    _, headers = make_key(owned, tenant, "admin")
    other_id, _ = make_key(owned, "acme")
    with httpx.Client(base_url=owned.url, headers=headers) as http:
        mine = http.post("/admin/v1/keys", json={"scopes": ["infer"]}).json()
        assert mine["tenant"] == tenant
        assert {key["tenant"] for key in http.get("/admin/v1/keys").json()["data"]} == {tenant}
        assert [entry["name"] for entry in http.get("/admin/v1/tenants").json()["data"]] == [tenant]
        for call, status in (
            (lambda: http.post("/admin/v1/keys", json={"tenant": "acme"}), 404),
            (lambda: http.delete(f"/admin/v1/keys/{other_id}"), 404),
            (lambda: http.post(f"/admin/v1/keys/{other_id}/rotate", json={}), 404),
            (lambda: http.get("/admin/v1/tenants/acme"), 404),
            (lambda: http.put(f"/admin/v1/adapters/acme/write/grants/{tenant}"), 404),
            (lambda: http.get("/admin/v1/adapters/acme/write/grants"), 404),
            (lambda: http.post("/admin/v1/tenants", json={"name": "mine-too"}), 403),
            (lambda: http.patch(f"/admin/v1/tenants/{tenant}", json={"share": 100}), 403),
        ):
            assert call().status_code == status
        # What is another's and what does not exist look alike.
        there, nowhere = (http.get(f"/admin/v1/tenants/{name}").text for name in ("acme", "zzzz"))
        assert there.replace("acme", "zzzz") == nowhere


# What is whose


def test_anothers_adapter_is_nowhere(owned: RunningServer) -> None:
    tenant = new_tenant(owned)
    _, headers = make_key(owned, tenant, "infer", "publish")
    with httpx.Client(base_url=owned.url, headers=headers, timeout=30) as http:
        bodies: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
            ("/v1/completions", lambda model: {"model": model, "prompt": "x", "max_tokens": 1}),
            ("/v1/chat/completions", lambda model: {"model": model, "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/instruct", lambda model: {"model": model, "instruction": "x"}),
            ("/v1/classify", lambda model: {"model": model, "input": "x"}),
            ("/v1/unload_lora_adapter", lambda model: {"lora_name": model}),
        ]
        for path, body in bodies:
            there, nowhere = (http.post(path, json=body(model)) for model in ("acme/write", "acme/nope"))
            assert there.status_code == nowhere.status_code == 404, path
            assert there.text.replace("acme/write", "acme/nope") == nowhere.text
        assert http.get("/v1/models/acme/write").status_code == 404
        assert "acme" not in http.get("/v1/models").text
        assert "acme/" not in http.get("/metrics").text


def test_what_was_granted_can_be_used_and_not_changed(owned: RunningServer) -> None:
    tenant = new_tenant(owned)
    _, headers = make_key(owned, tenant, "infer", "publish")
    assert say(owned, "acme/write", headers).status_code == 404
    grants = f"/admin/v1/adapters/acme/write/grants/{tenant}"
    assert tenant in owned.http.put(grants).json()["grantees"]
    assert say(owned, "acme/write", headers).status_code == 200
    listed = [model["id"] for model in httpx.get(f"{owned.url}/v1/models", headers=headers).json()["data"]]
    assert "acme/write" in listed and "acme/chat" not in listed
    unload = httpx.post(f"{owned.url}/v1/unload_lora_adapter", json={"lora_name": "acme/write"}, headers=headers)
    assert unload.status_code == 404
    assert tenant not in owned.http.delete(grants).json()["grantees"]
    assert say(owned, "acme/write", headers).status_code == 404
    assert owned.http.put(f"/admin/v1/adapters/acme/none/grants/{tenant}").status_code == 404


def test_granting_does_not_tell_who_there_is(owned: RunningServer, home: Home) -> None:
    tenant, other = new_tenant(owned), new_tenant(owned)
    _, headers = make_key(owned, tenant, "admin")
    brought = upload(owned, parts(home.folders / "acme-write"), f"{tenant}/shared", template="alpaca")
    assert brought.status_code == 201, brought.text
    _, other_headers = make_key(owned, other, "infer")
    nobody = f"{other}-to-be"
    grants = f"{owned.url}/admin/v1/adapters/{tenant}/shared/grants"
    for method in ("PUT", "PUT", "DELETE", "DELETE"):
        there, nowhere = (httpx.request(method, f"{grants}/{name}", headers=headers) for name in (other, nobody))
        assert there.status_code == nowhere.status_code == 200, there.text + nowhere.text
    both = [httpx.put(f"{grants}/{name}", headers=headers) for name in (other, nobody)]
    assert both[1].json()["grantees"] == sorted([other, nobody])
    assert say(owned, f"{tenant}/shared", other_headers).status_code == 200
    # An operator, who may see every tenant, is told of a name that is nobody's.
    refused = owned.http.put(f"/admin/v1/adapters/{tenant}/shared/grants/{nobody}2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "tenant_not_found")
    # The grant holds once there is such a tenant.
    assert owned.http.post("/admin/v1/tenants", json={"name": nobody}).status_code == 201
    _, headers = make_key(owned, nobody, "infer")
    assert say(owned, f"{tenant}/shared", headers).status_code == 200


# From open to closed, and several replicas


def test_the_first_key_closes_an_open_server(home: Home, tmp_path: Path) -> None:
    settings = {**home.settings, "store": str(tmp_path / "store")}
    with running(tmp_path / "log", **settings) as server:
        eventually(lambda: "ready at" in server.output(), what="the banner")
        assert "everybody on this machine may do everything" in server.output()
        assert server.http.get("/v1/models").status_code == 200
        _, headers = make_key(server, None, "admin")
        assert server.http.get("/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
    with running(tmp_path / "log", **settings) as server:
        eventually(lambda: "ready at" in server.output(), what="the banner")
        assert "keys" not in server.output()
        assert server.http.get("/v1/models").status_code == 401


def test_servers_share_a_postgresql(home: Home, new_postgres: Callable[[], str], tmp_path: Path) -> None:
    """A key made on one holds on the other, and ends there within a second of its end here."""
    home.copied(tmp_path / "store")
    settings = {
        **home.settings, "store": str(tmp_path / "store"), "database": new_postgres(), "api_keys": {OPERATOR: "*"}
    }  # fmt: skip
    with (
        running(tmp_path / "one", key=OPERATOR, **settings) as one,
        running(tmp_path / "two", key=OPERATOR, **settings) as two,
    ):
        key_id, headers = make_key(one, "acme")
        assert say(two, "acme/write", headers).status_code == 200
        assert one.http.delete(f"/admin/v1/keys/{key_id}").status_code == 200
        eventually(lambda: say(two, "acme/write", headers).status_code == 401, within=3.0, what="the key's end")
        assert "Traceback" not in one.output() + two.output()
