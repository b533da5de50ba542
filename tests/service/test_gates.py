"""Gates over HTTP: nothing gets past them, and what they found is there to be seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from adapters.errors import AdapterExistsError
from adapters.names import AdapterName
from adapters.store import Store
from tests.service.conftest import Home
from tests.service.running import RunningServer, running
from tests.service.test_tenants import OPERATOR, make_key
from tests.service.uploading import parts, upload
from tests.support.tiny import write_peft_adapter

GATES = "/v1/adapters/acme/write/gates"


@pytest.fixture(scope="module")
def owned(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("gates")
    settings = {**home.settings, "store": str(home.copied(folder / "store"))}
    with running(folder / "log", key=OPERATOR, api_keys={OPERATOR: "*"}, **settings) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


@pytest.fixture(scope="module")
def keys(owned: RunningServer) -> dict[str, dict[str, str]]:
    return {scope: make_key(owned, "acme", scope)[1] for scope in ("publish", "admin", "infer")}


@pytest.fixture
def gate(owned: RunningServer) -> Iterator[str]:
    """`acme/write:latest` wants answers that end within two tokens, which no adapter here gives."""
    assert owned.http.put(f"{GATES}/latest", json={"stops_within": 2}).status_code == 200
    yield "latest"
    owned.http.delete(f"{GATES}/latest")


def aliases(server: RunningServer) -> dict[str, str]:
    return server.http.get("/v1/adapters/acme/write").json()["aliases"]  # type: ignore[no-any-return]


def promote(server: RunningServer, headers: dict[str, str], **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/adapters/acme/write/promote", json=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def other(home: Home, owned: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another version of acme/write, under no alias that matters."""
    folder = write_peft_adapter(home.base.path, tmp_path_factory.mktemp("other") / "adapter", r=2, seed=77)
    reply = upload(owned, parts(folder), "acme/write", template="alpaca", alias="canary")
    assert reply.status_code == 201, reply.text
    assert reply.json()["verdicts"] == []
    return str(reply.json()["digest"])


def test_what_does_not_pass_is_not_promoted(
    owned: RunningServer, keys: dict[str, dict[str, str]], gate: str, other: str
) -> None:
    before = aliases(owned)
    refused = promote(owned, keys["publish"], alias=gate, version=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gate_failed")
    assert "stops: 1 of 1 answers do not end within 2 tokens" in refused.json()["error"]["message"]
    assert aliases(owned) == before
    shown = owned.http.get(GATES).json()
    assert [entry["alias"] for entry in shown["data"]] == ["latest"]
    assert shown["verdicts"][0]["digest"] == other
    assert [finding["check"] for finding in shown["verdicts"][0]["findings"]] == ["loads", "finite", "differs", "stops"]
    forced = promote(owned, keys["publish"], alias=gate, version=other, force=True)
    assert forced.status_code == 403
    assert aliases(owned) == before


def test_force_is_for_administrators_and_logged(
    owned: RunningServer, keys: dict[str, dict[str, str]], gate: str, other: str
) -> None:
    forced = promote(owned, keys["admin"], alias=gate, version=other, force=True)
    assert forced.status_code == 200, forced.text
    assert forced.json()["verdict"]["passed"] is False
    assert aliases(owned)["latest"] == other
    events = owned.http.get("/v1/events?adapter=acme/write&limit=2").json()["data"]
    assert [event["action"] for event in events] == ["promote", "force_gate"]
    assert events[1]["detail"] == {"failed": ["stops"]}
    # Back to where it was: that has been live before, and is not checked.
    reply = httpx.post(f"{owned.url}/v1/adapters/acme/write/rollback", json={}, headers=keys["publish"])
    assert reply.status_code == 200
    assert aliases(owned)["latest"] != other


def test_what_passes_is_promoted(owned: RunningServer, keys: dict[str, dict[str, str]], other: str) -> None:
    assert owned.http.put(f"{GATES}/stable", json={"latency_ratio": 50}).status_code == 200
    moved = promote(owned, keys["publish"], alias="stable", version=other[:12])
    assert moved.status_code == 200, moved.text
    assert moved.json()["verdict"]["passed"] is True
    assert aliases(owned)["stable"] == other
    assert promote(owned, keys["publish"], alias="free", version=other).json()["verdict"] is None


def test_an_upload_is_held_back_and_says_why(
    owned: RunningServer, home: Home, tmp_path: Path, gate: str, other: str
) -> None:
    before = aliases(owned)
    folder = write_peft_adapter(home.base.path, tmp_path / "third", r=2, seed=78)
    reply = upload(owned, parts(folder), "acme/write", template="alpaca")
    assert reply.status_code == 201, reply.text
    (verdict,) = reply.json()["verdicts"]
    assert (verdict["alias"], verdict["passed"]) == ("latest", False)
    assert reply.json()["aliases"] == []
    assert aliases(owned) == before
    # vLLM's route gets no further.
    loaded = owned.http.post(
        "/v1/load_lora_adapter",
        json={"lora_name": "acme/write", "lora_path": f"acme/write@{other}", "load_inplace": True},
    )
    assert (loaded.status_code, loaded.json()["error"]["code"]) == (409, "gate_failed")
    # Nor does whoever works on the store itself.
    store = Store(Path(owned.log.parent / "store"))
    with pytest.raises(AdapterExistsError, match="has a gate"):
        store.set_alias(AdapterName("acme", "write"), "latest", other)
    store.publish(folder, AdapterName("acme", "write"), home.base)
    assert aliases(owned) == before


def test_a_version_can_be_checked_without_being_promoted(
    owned: RunningServer, keys: dict[str, dict[str, str]], other: str
) -> None:
    before = aliases(owned)
    reply = httpx.post(
        f"{owned.url}/v1/adapters/acme/write/check", json={"version": other}, headers=keys["publish"], timeout=60
    )
    assert reply.status_code == 200, reply.text
    assert (reply.json()["alias"], reply.json()["passed"]) == ("latest", True)
    assert aliases(owned) == before


def test_what_computes_nan_never_goes_live(owned: RunningServer, home: Home, tmp_path: Path) -> None:
    assert owned.http.put(f"{GATES}/latest", json={}).status_code == 200
    folder = write_peft_adapter(home.base.path, tmp_path / "huge", r=2, seed=79)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: tensor.fill_(1e38) for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (verdict,) = upload(owned, parts(folder), "acme/write", template="alpaca").json()["verdicts"]
    failed = [finding["check"] for finding in verdict["findings"] if not finding["passed"]]
    assert "finite" in failed
    assert owned.http.delete(f"{GATES}/latest").status_code == 200
    assert owned.http.delete(f"{GATES}/latest").status_code == 404


def test_gates_are_for_administrators_of_the_tenant(
    owned: RunningServer, keys: dict[str, dict[str, str]], other: str
) -> None:
    url = f"{owned.url}{GATES}"
    assert httpx.put(f"{url}/latest", json={}, headers=keys["publish"]).status_code == 403
    assert httpx.delete(f"{url}/latest", headers=keys["publish"]).status_code == 403
    assert httpx.get(url, headers=keys["infer"]).status_code == 403
    assert httpx.put(f"{url}/x", json={"stops_within": 5}, headers=keys["admin"]).status_code == 200
    assert httpx.delete(f"{url}/x", headers=keys["admin"]).status_code == 200
    _, stranger = make_key(owned, "zeta", "admin", "publish")
    for path in ("acme/write", "acme/nothing"):
        for call in (
            lambda path: httpx.put(f"{owned.url}/v1/adapters/{path}/gates/latest", json={}, headers=stranger),
            lambda path: httpx.get(f"{owned.url}/v1/adapters/{path}/gates", headers=stranger),
            lambda path: httpx.post(f"{owned.url}/v1/adapters/{path}/check", json={"version": other}, headers=stranger),
        ):
            assert (call(path).status_code, call(path).json()["error"]["code"]) == (404, "adapter_not_found")
    assert owned.http.get("/v1/adapters/acme/nothing/gates").json()["error"]["code"] == "adapter_not_found"
    for rules, param in (({"colour": 1}, "colour"), ({"latency_ratio": 0}, "latency_ratio")):
        reply = owned.http.put(f"{GATES}/latest", json=rules)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert owned.http.put(f"{GATES}/Not An Alias", json={}).status_code == 400


def test_a_split_does_not_go_round_a_gate(
    owned: RunningServer, keys: dict[str, dict[str, str]], gate: str, home: Home, tmp_path: Path
) -> None:
    folder = write_peft_adapter(home.base.path, tmp_path / "fresh", r=2, seed=81)
    fresh = upload(owned, parts(folder), "acme/write", template="alpaca", alias="beta").json()["digest"]
    url = f"{owned.url}/v1/adapters/acme/write/splits/{gate}"
    body = {"versions": {fresh: 1}}
    refused = httpx.put(url, json=body, headers=keys["publish"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "gate_failed"), refused.text
    assert httpx.put(
        url, json={"versions": {aliases(owned)["latest"]: 1}, "shadow": fresh}, headers=keys["publish"]
    ).is_success
    # Once it passes what is demanded, it may take a part.
    assert owned.http.put(f"{GATES}/{gate}", json={}).status_code == 200
    check = {"alias": gate, "version": fresh}
    passed = httpx.post(f"{owned.url}/v1/adapters/acme/write/check", json=check, headers=keys["publish"], timeout=60)
    assert passed.json()["passed"], passed.text
    assert httpx.put(url, json=body, headers=keys["publish"]).is_success
    assert httpx.delete(url, headers=keys["publish"]).is_success


def test_a_gate_ends_a_split_to_what_has_not_passed(
    owned: RunningServer, keys: dict[str, dict[str, str]], other: str
) -> None:
    url, own = f"{owned.url}/v1/adapters/acme/write/splits/latest", aliases(owned)["latest"]
    for weights, status in (({own: 1}, 200), ({own: 1, other: 0}, 200), ({own: 1, other: 1}, 404)):
        assert httpx.put(url, json={"versions": weights}, headers=keys["publish"]).is_success
        assert owned.http.put(f"{GATES}/latest", json={}).status_code == 200
        assert httpx.get(url, headers=keys["publish"]).status_code == status
        assert owned.http.delete(f"{GATES}/latest").status_code == 200
        httpx.delete(url, headers=keys["publish"])
    events = owned.http.get("/v1/events?adapter=acme/write&limit=4").json()["data"]
    assert {"end_split": {"why": "set_gate"}}.items() <= {one["action"]: one["detail"] for one in events}.items()


def test_an_adapter_with_a_gate_is_not_deleted(
    owned: RunningServer, keys: dict[str, dict[str, str]], gate: str, other: str
) -> None:
    refused = httpx.delete(f"{owned.url}/v1/adapters/acme/write", headers=keys["publish"])
    assert refused.status_code == 409
    assert "lift it first" in refused.json()["error"]["message"]
