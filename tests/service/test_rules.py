"""Random tenants, keys, uploads, promotions, rollbacks, deletions and requests, against a model of the rules.

Whatever happened before, a reply comes from exactly the version that the rules name for this key at this moment, or
there is none.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.service.conftest import Home
from tests.service.running import RunningServer, running
from tests.support.tiny import write_peft_adapter

OPERATOR = "sk-the-operator"
NAMES, ALIASES, SCOPES = ("one", "two"), ("latest", "stable"), ("infer", "publish", "admin")
_worlds = itertools.count()


@dataclass
class Held:
    """What the rules know of an adapter."""

    versions: list[str] = field(default_factory=list)
    """Live, in the order of publishing."""
    aliases: dict[str, str] = field(default_factory=dict)
    past: dict[str, list[str]] = field(default_factory=dict)
    grantees: set[str] = field(default_factory=set)

    def point(self, alias: str, digest: str) -> None:
        before = self.aliases.get(alias)
        if before is not None and before != digest:
            self.past.setdefault(alias, []).append(before)
        self.aliases[alias] = digest

    def meant(self, version: str | None, alias: str | None) -> str | None:
        if version is not None:
            return version if version in self.versions else None
        return self.aliases.get(alias or "latest")


@dataclass
class Key:
    secret: str
    key_id: str
    tenant: str
    scopes: frozenset[str]
    alive: bool = True


@dataclass(frozen=True)
class World:
    """The server that all runs use, and four adapters' files."""

    server: RunningServer
    variants: tuple[Path, ...]


class Machine(RuleBasedStateMachine):
    """The rules, and beside them the server."""

    world: World

    @initialize()
    def begin(self) -> None:
        number = next(_worlds)
        self.tenants = [f"w{number}a", f"w{number}b"]
        self.disabled: set[str] = set()
        self.adapters: dict[tuple[str, str], Held] = {}
        self.keys: list[Key] = []
        self.published: list[str] = []
        self.http = httpx.Client(base_url=self.world.server.url, timeout=30)
        for tenant in self.tenants:
            assert self.admin("POST", "/admin/v1/tenants", {"name": tenant}).status_code == 201
            for scopes in (["infer", "publish"], ["infer"], ["publish"]):
                self.make_key(tenant, scopes)

    def teardown(self) -> None:
        if hasattr(self, "http"):
            self.http.close()

    # Asking

    def call(self, key: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})

    def admin(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        return self.call(OPERATOR, method, path, body)

    def make_key(self, tenant: str, scopes: list[str]) -> None:
        made = self.admin("POST", "/admin/v1/keys", {"tenant": tenant, "scopes": scopes}).json()
        self.keys.append(Key(made["key"], made["id"], tenant, frozenset(scopes)))

    def key(self, data: st.DataObject) -> Key:
        return data.draw(st.sampled_from(self.keys))

    def adapter(self, data: st.DataObject) -> tuple[str, str]:
        return data.draw(st.sampled_from(self.tenants)), data.draw(st.sampled_from(NAMES))

    def digest(self, data: st.DataObject) -> str:
        """Any version that was ever published, or one that never was; chosen by its place, as digests differ by run."""
        known = [*self.published, "0" * 64]
        return known[data.draw(st.integers(0, 30)) % len(known)]

    def refused(self, key: Key, scope: str) -> int | None:
        """The status that a key gets for itself alone."""
        if not key.alive or key.tenant in self.disabled:
            return 401
        return None if scope in key.scopes or "admin" in key.scopes else 403

    # What may happen

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        held = self.adapters.get((tenant, name), Held())
        version = self.digest(data) if data.draw(st.booleans()) else None
        alias = data.draw(st.none() | st.sampled_from(ALIASES)) if version is None else None
        model = f"{tenant}/{name}" + (f"@{version[:20]}" if version else f":{alias}" if alias else "")
        reply = self.call(key.secret, "POST", "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
        if status := self.refused(key, "infer"):
            assert reply.status_code == status, reply.text
            return
        digest = held.meant(version, alias)
        if digest is None or not (tenant == key.tenant or key.tenant in held.grantees):
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found"), reply.text
        else:
            assert reply.status_code == 200, reply.text
            assert reply.headers["x-tenora-adapter"] == f"{tenant}/{name}@{digest}"

    @rule(data=st.data(), variant=st.integers(0, 3))
    def upload(self, data: st.DataObject, variant: int) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        alias = data.draw(st.sampled_from(ALIASES))
        folder = self.world.variants[variant]
        files = {
            "config": (folder / "adapter_config.json").read_bytes(),
            "weights": (folder / "adapter_model.safetensors").read_bytes(),
        }
        reply = self.http.post(
            "/v1/adapters",
            data={"name": f"{tenant}/{name}", "alias": alias},
            files=files,
            headers={"Authorization": f"Bearer {key.secret}"},
        )
        if status := self.refused(key, "publish"):
            assert reply.status_code == status, reply.text
        elif tenant != key.tenant:
            assert reply.status_code == 404, reply.text
        else:
            assert reply.status_code in (200, 201), reply.text
            digest, held = reply.json()["digest"], self.adapters.setdefault((tenant, name), Held())
            if digest not in self.published:
                self.published.append(digest)
            if digest not in held.versions:
                held.versions.append(digest)
            held.point(alias, digest)

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        held = self.adapters.get((tenant, name))
        digest, alias = self.digest(data), data.draw(st.sampled_from(ALIASES))
        body = {"alias": alias, "version": digest}
        reply = self.call(key.secret, "POST", f"/v1/adapters/{tenant}/{name}/promote", body)
        if status := self.refused(key, "publish"):
            assert reply.status_code == status
        elif tenant != key.tenant or held is None or digest not in held.versions:
            assert reply.status_code == 404, reply.text
        else:
            assert reply.status_code == 200, reply.text
            held.point(alias, digest)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        held, alias = self.adapters.get((tenant, name)), data.draw(st.sampled_from(ALIASES))
        reply = self.call(key.secret, "POST", f"/v1/adapters/{tenant}/{name}/rollback", {"alias": alias})
        if status := self.refused(key, "publish"):
            assert reply.status_code == status
            return
        past = held.past.get(alias, []) if held is not None else []
        at = held.aliases.get(alias) if held is not None else None
        depth = next((depth for depth, digest in reversed(list(enumerate(past))) if digest != at), None)
        if tenant != key.tenant or held is None or at is None or depth is None:
            assert reply.status_code == 404, reply.text
        else:
            assert reply.status_code == 200, reply.text
            held.aliases[alias] = past[depth]
            del past[depth:]

    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        held = self.adapters.get((tenant, name))
        digest = self.digest(data)
        reply = self.call(key.secret, "DELETE", f"/v1/adapters/{tenant}/{name}/versions/{digest}")
        if status := self.refused(key, "publish"):
            assert reply.status_code == status
        elif tenant != key.tenant or held is None or digest not in held.versions:
            assert reply.status_code == 404, reply.text
        elif any(at == digest for alias, at in held.aliases.items() if alias != "latest"):
            assert reply.status_code == 409, reply.text
        else:
            assert reply.status_code in (200, 202, 204), reply.text
            held.versions.remove(digest)
            held.past = {alias: [at for at in past if at != digest] for alias, past in held.past.items()}
            if held.aliases.get("latest") == digest:
                del held.aliases["latest"]
                if held.versions:
                    held.aliases["latest"] = held.versions[-1]

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key, (tenant, name) = self.key(data), self.adapter(data)
        reply = self.call(key.secret, "DELETE", f"/v1/adapters/{tenant}/{name}")
        if status := self.refused(key, "publish"):
            assert reply.status_code == status
        elif tenant != key.tenant or (tenant, name) not in self.adapters:
            assert reply.status_code == 404, reply.text
        else:
            assert reply.status_code in (200, 202, 204), reply.text
            del self.adapters[tenant, name]

    @rule(data=st.data(), withdraw=st.booleans())
    def grant(self, data: st.DataObject, withdraw: bool) -> None:
        tenant, name = self.adapter(data)
        grantee = next(other for other in self.tenants if other != tenant)
        held = self.adapters.get((tenant, name))
        path = f"/admin/v1/adapters/{tenant}/{name}/grants/{grantee}"
        reply = self.admin("DELETE" if withdraw else "PUT", path)
        assert reply.status_code == (404 if held is None else 200), reply.text
        if held is not None:
            (held.grantees.discard if withdraw else held.grantees.add)(grantee)

    @precondition(lambda self: any(key.alive for key in self.keys))
    @rule(data=st.data(), scopes=st.sets(st.sampled_from(SCOPES), min_size=1))
    def change_keys(self, data: st.DataObject, scopes: set[str]) -> None:
        key = data.draw(st.sampled_from([key for key in self.keys if key.alive]))
        if data.draw(st.booleans()):
            assert self.admin("DELETE", f"/admin/v1/keys/{key.key_id}").status_code == 200
            key.alive = False
        self.make_key(key.tenant, sorted(scopes))

    @rule(data=st.data())
    def disable(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(self.tenants))
        disabled = tenant not in self.disabled
        assert self.admin("PATCH", f"/admin/v1/tenants/{tenant}", {"disabled": disabled}).status_code == 200
        (self.disabled.add if disabled else self.disabled.discard)(tenant)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """A list holds what may be named, and nothing else."""
        key = self.key(data)
        reply = self.call(key.secret, "GET", "/v1/models")
        if not key.alive or key.tenant in self.disabled:
            assert reply.status_code == 401
            return
        expected = {
            f"{tenant}/{name}"
            for (tenant, name), held in self.adapters.items()
            if "latest" in held.aliases and (tenant == key.tenant or key.tenant in held.grantees)
        }
        assert {model["id"] for model in reply.json()["data"][1:]} == expected


@pytest.fixture(scope="module")
def world(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rules")
    home.copied(folder / "store")
    variants = tuple(write_peft_adapter(home.base.path, folder / f"v{n}", r=2, seed=50 + n) for n in range(4))
    configured = {**home.settings, "store": str(folder / "store")}
    with running(folder / "log", key=OPERATOR, api_keys={OPERATOR: "*"}, **configured) as server:
        yield World(server, variants)
        assert "Traceback" not in server.output(), server.output()


@pytest.mark.timeout(300)
def test_no_reply_comes_from_a_version_that_the_rules_forbid(world: World) -> None:
    bound = type("Bound", (Machine,), {"world": world})
    run_state_machine_as_test(
        bound,
        settings=settings(
            # Not shrunk: each attempt would take seconds, and the steps are printed.
            max_examples=10,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
