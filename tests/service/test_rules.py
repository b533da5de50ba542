"""Random tenants, keys, uploads, promotions, gates, splits, pins, deletions and requests, against a model of the rules.

Whatever happened before, a reply comes from exactly a version that the rules name for this key at this moment, or
there is none; and what is shown of an adapter is what the rules say of it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from safetensors.torch import load_file, save_file

from tests.service.conftest import Home
from tests.service.rules_model import Held, Key, Split
from tests.service.running import RunningServer, running
from tests.support.tiny import write_peft_adapter

OPERATOR = "sk-the-operator"
NAMES, ALIASES, SCOPES, USERS = ("one", "two"), ("latest", "stable"), ("infer", "publish", "admin"), ("ann", "bob")
UNSOUND = 3
"""The variant that no gate lets pass: it says what the base says."""
_worlds = itertools.count()


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
        self.unsound: set[str] = set()
        self.http = httpx.Client(base_url=self.world.server.url, timeout=30)
        for tenant in self.tenants:
            assert self.admin("POST", "/admin/v1/tenants", {"name": tenant}).status_code == 201
            for scopes in (["infer", "publish"], ["infer"], ["publish"], ["admin"]):
                self.make_key(tenant, scopes)
        for variant in (UNSOUND, 0, 1):
            self.bring(self.keys[0], *self.main, variant, "latest")

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

    def bring(self, key: Key, tenant: str, name: str, variant: int, alias: str) -> None:
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
            if variant == UNSOUND:
                self.unsound.add(digest)
            assert reply.json()["new"] is (digest not in held.versions)
            held.publish(alias, digest, sound=variant != UNSOUND)

    # Choosing: mostly what may be done, else anything

    @property
    def main(self) -> tuple[str, str]:
        """The adapter that most happens to."""
        return self.tenants[0], NAMES[0]

    def adapter(self, data: st.DataObject) -> tuple[str, str]:
        return data.draw(st.sampled_from([self.main] * 4 + list(itertools.product(self.tenants, NAMES))))

    def key(self, data: st.DataObject, tenant: str, scope: str) -> Key:
        able = [key for key in self.keys if key.tenant == tenant and self.refused(key, scope) is None]
        mostly = able and data.draw(st.integers(0, 4))
        return data.draw(st.sampled_from(able if mostly else self.keys))

    def digest(self, data: st.DataObject, held: Held | None) -> str:
        """A version of an adapter, any that was ever published, or one that never was.

        It is chosen by its place, as digests differ by run.
        """
        mostly = held is not None and held.versions and data.draw(st.integers(0, 4))
        known = held.versions if held is not None and mostly else [*self.published, "0" * 64]
        return known[data.draw(st.integers(0, 30)) % len(known)]

    def refused(self, key: Key, scope: str) -> int | None:
        """The status that a key gets for itself alone."""
        if not key.alive or key.tenant in self.disabled:
            return 401
        return None if key.may(scope) else 403

    def aim(self, data: st.DataObject, scope: str) -> "Aim":
        tenant, name = self.adapter(data)
        key = self.key(data, tenant, scope)
        held = self.adapters.get((tenant, name))
        refused = self.refused(key, scope) or (404 if tenant != key.tenant else None)
        return Aim(f"/v1/adapters/{tenant}/{name}", key, held, refused)

    def change(
        self, aim: "Aim", method: str, rest: str, rules: Callable[[Held], int], body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Make a change, and see whether the server says of it what the rules say."""
        reply = self.call(aim.key.secret, method, aim.path + rest, body)
        expected = aim.refused or (404 if aim.held is None else rules(aim.held))
        assert reply.status_code == expected, (expected, reply.text)
        return reply

    # What may happen

    @rule(data=st.data(), by_version=st.booleans())
    def ask(self, data: st.DataObject, by_version: bool) -> None:
        tenant, name = self.adapter(data)
        held = self.adapters.get((tenant, name), Held())
        asking = data.draw(st.sampled_from([tenant, tenant, *self.tenants]))
        key = self.key(data, asking, "infer")
        version = self.digest(data, held) if by_version else None
        alias = data.draw(st.none() | st.sampled_from(ALIASES)) if version is None else None
        user = data.draw(st.none() | st.sampled_from(USERS))
        model = f"{tenant}/{name}" + (f"@{version[:20]}" if version else f":{alias}" if alias else "")
        body = {"model": model, "prompt": "x", "max_tokens": 1} | ({"user": user} if user else {})
        reply = self.call(key.secret, "POST", "/v1/completions", body)
        if status := self.refused(key, "infer"):
            assert reply.status_code == status, reply.text
            return
        allowed = held.answering(version, alias or "latest", user)
        if not allowed or not (tenant == key.tenant or key.tenant in held.grantees):
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found"), reply.text
            return
        assert reply.status_code == 200, reply.text
        adapter, _, digest = reply.headers["x-tenora-adapter"].partition("@")
        assert adapter == f"{tenant}/{name}"
        assert digest in allowed
        split = held.splits.get(alias or "latest") if version is None else None
        if split is not None and split.sticky and user is not None:
            split.given[user] = digest

    @rule(data=st.data(), variant=st.integers(0, 3), alias=st.sampled_from(ALIASES))
    def upload(self, data: st.DataObject, variant: int, alias: str) -> None:
        tenant, name = self.adapter(data)
        self.bring(self.key(data, tenant, "publish"), tenant, name, variant, alias)

    @rule(data=st.data(), alias=st.sampled_from(ALIASES), force=st.sampled_from([False, False, True]))
    def promote(self, data: st.DataObject, alias: str, force: bool) -> None:
        aim = self.aim(data, "publish")
        digest = self.digest(data, aim.held)

        if force and aim.refused is None and not aim.key.may("admin"):
            aim = replace(aim, refused=403)
        self.change(
            aim,
            "POST",
            "/promote",
            lambda held: held.promote(alias, digest, sound=digest not in self.unsound, force=force),
            {"alias": alias, "version": digest, "force": force},
        )

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def roll_back(self, data: st.DataObject, alias: str) -> None:
        self.change(
            self.aim(data, "publish"), "POST", "/rollback", lambda held: held.roll_back(alias), {"alias": alias}
        )

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def remove_alias(self, data: st.DataObject, alias: str) -> None:
        self.change(self.aim(data, "publish"), "DELETE", f"/aliases/{alias}", lambda held: held.remove_alias(alias))

    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        aim = self.aim(data, "publish")
        digest = self.digest(data, aim.held)
        self.change(aim, "DELETE", f"/versions/{digest}", lambda held: held.delete_version(digest))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        aim = self.aim(data, "publish")
        reply = self.change(aim, "DELETE", "", lambda held: 200 if held.may_be_deleted else 409)
        if reply.status_code == 200:
            self.adapters = {name: held for name, held in self.adapters.items() if held is not aim.held}

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        aim = self.aim(data, "publish")
        digest = self.digest(data, aim.held)
        rest = "/pin" if pinned else "/unpin"
        self.change(aim, "POST", rest, lambda held: held.set_pinned(digest, pinned), {"version": digest})

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def set_gate(self, data: st.DataObject, alias: str) -> None:
        def rules(held: Held) -> int:
            held.set_gate(alias)
            return 200

        self.change(self.aim(data, "admin"), "PUT", f"/gates/{alias}", rules, {"differs": True})

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def remove_gate(self, data: st.DataObject, alias: str) -> None:
        self.change(self.aim(data, "admin"), "DELETE", f"/gates/{alias}", lambda held: held.remove_gate(alias))

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def check(self, data: st.DataObject, alias: str) -> None:
        aim = self.aim(data, "publish")
        digest = self.digest(data, aim.held)
        sound = digest not in self.unsound
        reply = self.change(
            aim,
            "POST",
            "/check",
            lambda held: held.check(alias, digest, sound=sound),
            {"alias": alias, "version": digest},
        )
        assert reply.status_code != 200 or reply.json()["passed"] is sound

    @rule(data=st.data(), alias=st.sampled_from(ALIASES), sticky=st.booleans(), shadowed=st.booleans())
    def split(self, data: st.DataObject, alias: str, sticky: bool, shadowed: bool) -> None:
        aim = self.aim(data, "publish")
        weights = {self.digest(data, aim.held): data.draw(st.integers(0, 2)) for _ in range(2)}
        weights |= {self.digest(data, aim.held): 1}
        shadow = self.digest(data, aim.held) if shadowed else None
        body = {"versions": weights, "sticky": "user" if sticky else None, "shadow": shadow}
        split = Split(weights, sticky, shadow)
        self.change(aim, "PUT", f"/splits/{alias}", lambda held: held.split(alias, split), body)

    @rule(data=st.data(), alias=st.sampled_from(ALIASES))
    def end_split(self, data: st.DataObject, alias: str) -> None:
        self.change(self.aim(data, "publish"), "DELETE", f"/splits/{alias}", lambda held: held.end_split(alias))

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

    @rule(data=st.data(), scopes=st.sets(st.sampled_from(SCOPES), min_size=1), revoke=st.booleans())
    def change_keys(self, data: st.DataObject, scopes: set[str], revoke: bool) -> None:
        key = data.draw(st.sampled_from(self.keys))
        if revoke:
            status = self.admin("DELETE", f"/admin/v1/keys/{key.key_id}").status_code
            assert status == (200 if key.alive else 400)
            key.alive = False
        self.make_key(key.tenant, sorted(scopes))

    @rule(data=st.data(), overlap=st.sampled_from([0, 3600]))
    def rotate_key(self, data: st.DataObject, overlap: int) -> None:
        old = data.draw(st.sampled_from(self.keys))
        key = self.key(data, old.tenant, "admin")
        reply = self.call(key.secret, "POST", f"/admin/v1/keys/{old.key_id}/rotate", {"overlap": overlap})
        if status := self.refused(key, "admin"):
            assert reply.status_code == status, reply.text
        elif key.tenant != old.tenant:
            assert reply.status_code == 404, reply.text
        elif not old.alive or old.rotated:
            assert reply.status_code == (409 if old.alive else 400), reply.text
        else:
            assert reply.status_code == 201, reply.text
            made = reply.json()
            assert (made["tenant"], set(made["scopes"])) == (old.tenant, old.scopes)
            old.alive, old.rotated = overlap > 0, True
            self.keys.append(Key(made["key"], made["id"], old.tenant, old.scopes))

    @rule(data=st.data())
    def disable(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(self.tenants))
        disabled = data.draw(st.integers(0, 3)) == 0
        assert self.admin("PATCH", f"/admin/v1/tenants/{tenant}", {"disabled": disabled}).status_code == 200
        (self.disabled.add if disabled else self.disabled.discard)(tenant)

    @rule(data=st.data())
    def list(self, data: st.DataObject) -> None:
        """A list holds what may be named, and nothing else."""
        key = data.draw(st.sampled_from(self.keys))
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

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        """What is shown of an adapter is what the rules say of it."""
        tenant, name = self.adapter(data)
        held, path = self.adapters.get((tenant, name)), f"/v1/adapters/{tenant}/{name}"
        found = self.admin("GET", path)
        assert found.status_code == (404 if held is None else 200), found.text
        if held is None:
            return
        versions = found.json()["data"]
        assert found.json()["aliases"] == held.aliases
        assert [version["digest"] for version in versions] == held.versions
        assert {version["digest"] for version in versions if version["pinned"]} == held.pinned
        assert {gate["alias"] for gate in self.admin("GET", f"{path}/gates").json()["data"]} == set(held.gates)
        for alias in ALIASES:
            reply, split = self.admin("GET", f"{path}/splits/{alias}"), held.splits.get(alias)
            assert reply.status_code == (404 if split is None else 200), reply.text
            if split is not None:
                rules = reply.json()["rules"]
                assert (rules["versions"], rules["shadow"]) == (split.weights, split.shadow)


@dataclass(frozen=True)
class Aim:
    """An adapter, there or not, that somebody is about to change."""

    path: str
    key: Key
    held: Held | None
    refused: int | None
    """The status that the key gets, whether there is such an adapter or not."""


def _unsound(folder: Path) -> None:
    """Make an adapter that says what the base says."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: tensor.zero_() if "lora_B" in key else tensor for key, tensor in tensors.items()}, file)


@pytest.fixture(scope="module")
def world(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rules")
    home.copied(folder / "store")
    variants = tuple(write_peft_adapter(home.base.path, folder / f"v{n}", r=2, seed=50 + n) for n in range(4))
    _unsound(variants[UNSOUND])
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
            max_examples=20,
            stateful_step_count=60,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
