"""Canary, A/B and shadow on a running server: what clients see of it, and what they do not."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import Any

import httpx
import pytest

from adapters.names import LATEST, AdapterName
from adapters.store import Store
from adapters.templates import PromptTemplate
from tests.service.conftest import ACME, ADMIN, KEYS, ZETA, Home
from tests.service.running import RunningServer, eventually, running

NAME = AdapterName("acme", "write")
SPLIT = "/v1/adapters/acme/write/splits/latest"


@dataclass(frozen=True)
class Place:
    """A server, and the versions of its acme/write."""

    server: RunningServer
    store: Store
    own: str
    other: str
    twin: str
    """The same weights as the own, in other clothes: continued texts come out alike."""
    broken: str
    """Its weights were damaged in the store."""

    def say(self, model: str = "acme/write", key: str = ACME, **changes: Any) -> httpx.Response:
        body = {"model": model, "prompt": "It was", "max_tokens": 2, "temperature": 0, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {key}"}
        return self.server.http.post("/v1/completions", json=body | changes, headers=headers)

    def many(self, count: int, **changes: Any) -> list[httpx.Response]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: self.say(**changes), range(count)))

    def put(self, versions: dict[str, float], **rules: Any) -> dict[str, Any]:
        reply = self.server.http.put(SPLIT, json={"versions": versions, **rules})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def table(self) -> dict[str, dict[str, Any]]:
        """The rows of the comparison: by digest, with `shadow` as a key of its own."""
        rows = self.server.http.get(SPLIT).json()["data"]
        return {"shadow" if row["role"] == "shadow" else row["digest"]: row for row in rows}

    def events(self, action: str) -> list[dict[str, Any]]:
        found = self.server.http.get("/v1/events", params={"adapter": "acme/write"}).json()["data"]
        return [event for event in found if event["action"] == action]


@pytest.fixture(scope="module")
def place(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("splits")
    home.copied(folder / "store")
    store = Store(folder / "store")

    def publish(source: str, template: str) -> str:
        made = store.publish(
            home.folders / source, NAME, home.base, aliases=(), template=PromptTemplate.named(template)
        )
        return made.digest

    other, twin, broken = (
        publish("zeta-write", "alpaca"),
        publish("acme-write", "plain"),
        publish("acme-chat", "plain"),
    )
    weights = store.folder_of(NAME, broken) / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 0x55
    weights.write_bytes(damaged)
    settings = {**home.settings, "store": str(store.root), "delete_grace": 0}
    with running(folder / "log", key=ADMIN, api_keys=KEYS, **settings) as server:
        yield Place(server, store, store.aliases(NAME)[LATEST], other, twin, broken)
        assert "Traceback" not in server.output(), server.output()


@pytest.fixture(autouse=True)
def no_split_left(place: Place) -> Iterator[None]:
    yield
    place.server.http.delete(SPLIT)


def digests(replies: list[httpx.Response]) -> Counter[str]:
    assert {reply.status_code for reply in replies} == {200}
    return Counter(reply.headers["x-tenora-digest"] for reply in replies)


def test_nine_of_ten(place: Place) -> None:
    shown = place.put({place.own: 90, place.other[:10]: 10})
    assert shown["rules"]["versions"] == {place.own: 90, place.other: 10}
    assert (shown["digest"], shown["rules"]["sticky"], shown["backed_out"]) == (place.own, None, {})
    counts = digests(place.many(300))
    assert abs(counts[place.other] - 30) <= 5 * sqrt(300 * 0.1 * 0.9)
    assert counts[place.own] == 300 - counts[place.other]
    table = eventually(
        lambda: (rows := place.table()) and sum(row["requests"] for row in rows.values()) == 300 and rows
    )
    assert {digest: row["requests"] for digest, row in table.items()} == counts
    assert {digest: row["role"] for digest, row in table.items()} == {place.own: "own", place.other: "candidate"}
    for digest, row in table.items():
        assert row["generated_tokens"] == 2 * counts[digest]
        assert row["finish_reasons"] == {"length": counts[digest]}
        assert (row["errors"], row["error_rate"], row["aborted"]) == ({}, 0, 0)
        assert 0 < row["ttft_ms"]["p50"] <= row["ttft_ms"]["p95"] <= row["total_ms"]["p95"]
    assert digests(place.many(5, model=f"acme/write@{place.own[:8]}")) == {place.own: 5}


def test_a_user_stays_with_a_version(place: Place) -> None:
    place.put({place.own: 1, place.other: 1}, sticky="user")
    users = [f"user-{number}" for number in range(12)]
    first = {user: digests(place.many(3, user=user)) for user in users}
    assert {len(counts) for counts in first.values()} == {1}
    assert {digest for counts in first.values() for digest in counts} == {place.own, place.other}
    place.put({place.own: 1, place.other: 3}, sticky="user")
    for user in users:
        now = digests(place.many(2, user=user))
        assert len(now) == 1
        assert place.other in now or place.other not in first[user]  # nobody leaves what grew
    assert len(digests(place.many(40, user=""))) == 2  # an empty name is nobody's
    assert place.say(user="x" * 257).json()["error"]["param"] == "user"


def test_a_user_stays_on_every_route_that_knows_one(place: Place, home: Home) -> None:
    label, reward = AdapterName("acme", "label"), AdapterName("beta", "reward")
    versions = {
        label: place.store.publish(home.folders / "acme-label", label, home.base, aliases=(), labels=("x", "y")).digest,
        reward: place.store.publish(
            home.folders / "beta-reward",
            reward,
            home.base,
            aliases=(),
            score=True,
            template=PromptTemplate.named("plain"),
        ).digest,
    }
    for name, path, body in (
        (label, "/v1/classify", {"input": "good"}),
        (reward, "/v1/score", {"items": {"prompt": "a", "answer": "b"}}),
    ):
        split = f"/v1/adapters/{name}/splits/latest"
        rules = {"versions": {place.store.aliases(name)[LATEST]: 1, versions[name]: 1}, "sticky": "user"}
        assert place.server.http.put(split, json=rules).status_code == 200
        got = {
            user: digests(
                [place.server.http.post(path, json={"model": str(name), "user": user, **body}) for _ in range(3)]
            )
            for user in ("a", "b", "c", "d", "e", "f")
        }
        assert {len(counts) for counts in got.values()} == {1}
        assert place.server.http.delete(split).status_code == 200


def test_a_shadow_changes_no_reply(place: Place) -> None:
    def tokens(reply: httpx.Response) -> tuple[Any, ...]:
        (choice,) = reply.json()["choices"]
        return choice["text"], tuple(choice["logprobs"]["tokens"]), reply.headers["x-tenora-digest"]

    def used(adapter: str) -> dict[str, int]:
        rows = place.server.http.get("/v1/usage", params={"by": "digest", "adapter": adapter}).json()["data"]
        return {row["digest"]: row["requests"] for row in rows if row["requests"]}

    def charged() -> dict[str, int]:
        """What all requests so far were charged to: once a later one is in the ledger, they are."""
        before = used("tiny-llama").get("", 0)
        assert place.say("tiny-llama").status_code == 200
        eventually(lambda: used("tiny-llama").get("", 0) > before)
        return used("acme/write")

    before = tokens(place.say(logprobs=0, max_tokens=6))
    first = charged()
    for shadow, equal in ((place.twin, 1.0), (place.other, 0.0)):
        place.put({place.own: 1}, shadow=shadow)
        replies = place.many(10, logprobs=0, max_tokens=6)
        assert {tokens(reply) for reply in replies} == {before}
        row = eventually(lambda: (row := place.table()["shadow"]) and row["requests"] + row["dropped"] == 10 and row)
        assert (row["digest"], row["weight"], row["errors"]) == (shadow, None, {})
        assert row["compared"] == row["requests"] > 0
        assert row["equal"] == equal
    assert charged() == first | {place.own: first[place.own] + 20}


def test_a_shadow_of_a_classifier_is_compared_by_label(place: Place, home: Home) -> None:
    name = AdapterName("acme", "label")
    twin = place.store.publish(home.folders / "acme-label", name, home.base, aliases=(), labels=("poor", "good"))
    own = place.store.aliases(name)[LATEST]
    path = "/v1/adapters/acme/label/splits/latest"
    assert place.server.http.put(path, json={"versions": {own: 1}, "shadow": twin.digest}).status_code == 200
    texts = [f"text {number}" for number in range(12)]
    replies = [place.server.http.post("/v1/classify", json={"model": "acme/label", "input": text}) for text in texts]
    labels = Counter(reply.json()["data"][0]["label"] for reply in replies)
    row = eventually(lambda: (row := place.server.http.get(path).json()["data"][-1])["requests"] == len(texts) and row)
    assert row["equal"] == labels["good"] / len(texts)  # the other label has another name there
    assert place.server.http.delete(path).status_code == 200


def test_a_broken_shadow_hurts_nobody(place: Place) -> None:
    place.put({place.own: 1}, shadow=place.broken)
    assert digests(place.many(10)) == {place.own: 10}
    row = eventually(lambda: (row := place.table()["shadow"]) and row["requests"] == 10 and row)
    assert row["errors"] == {"adapter_invalid": 10}
    assert row["error_rate"] == 1.0


def test_a_version_that_fails_is_taken_out(place: Place) -> None:
    rules = {"back_out": {"error_rate": 0.2, "min_requests": 5, "window_s": 60}}
    before = place.server.metric("tenora_back_outs_total")
    place.put({place.own: 1, place.broken: 1}, **rules)
    failed = 0
    while place.server.http.get(SPLIT).json()["rules"]["versions"][place.broken]:
        codes = Counter(reply.status_code for reply in place.many(8))
        assert set(codes) <= {200, 422}
        failed += codes[422]
        assert failed < 500, "it was not taken out"
    assert failed >= 5
    assert digests(place.many(20)) == {place.own: 20}
    (event, *_) = place.events("back_out")
    assert (event["digest"], event["alias"], event["actor"]) == (place.broken, LATEST, "back-out")
    assert event["detail"]["reason"] == "error_rate"
    assert event["detail"]["error_rate"] == 1.0
    assert event["detail"]["requests"] >= 5
    shown = place.server.http.get(SPLIT).json()
    assert shown["backed_out"][place.broken].items() >= event["detail"].items()
    eventually(lambda: place.server.metric("tenora_back_outs_total") == before + 1)
    assert "acme/write:latest sends no more requests to " + place.broken[:12] in place.server.output()
    assert place.put({place.own: 1, place.broken: 1})["backed_out"] == {}
    assert {reply.status_code for reply in place.many(30)} == {200, 422}


def test_a_version_in_a_split_cannot_be_deleted(place: Place, home: Home) -> None:
    version = place.store.publish(
        home.folders / "acme-chat", NAME, home.base, aliases=(), template=PromptTemplate.named("chat")
    )
    place.put({place.own: 1, version.digest: 0})
    path = f"/v1/adapters/acme/write/versions/{version.digest}"
    refused = place.server.http.delete(path)
    assert refused.status_code == 409
    assert "acme/write:latest" in refused.json()["error"]["message"]
    assert place.server.http.delete(SPLIT).json()["deleted"] is True
    assert place.server.http.delete(path).status_code == 200


def test_promoting_ends_a_split(place: Place) -> None:
    place.put({place.other: 1})
    assert digests([place.say()]) == {place.other: 1}
    reply = place.server.http.post("/v1/adapters/acme/write/promote", json={"version": place.own})
    assert reply.status_code == 200, reply.text
    assert digests([place.say()]) == {place.own: 1}
    assert place.server.http.get(SPLIT).status_code == 404
    assert place.events("end_split")[0]["detail"] == {"why": "promote"}


def test_nobody_else_sees_a_split_and_the_granted_follow_it(place: Place) -> None:
    place.put({place.other: 1})
    theirs = {"Authorization": f"Bearer {ZETA}"}
    for method, body in (("GET", None), ("PUT", {"versions": {place.own: 1}}), ("DELETE", None)):
        answers = [
            place.server.http.request(method, f"/v1/adapters/acme/{name}/splits/latest", json=body, headers=theirs)
            for name in ("write", "none")
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace("write", "none") == answers[1].text
        missing = place.server.http.request(method, "/v1/adapters/acme/none/splits/latest", json=body)
        assert missing.text == answers[1].text
    assert place.say(key=ZETA).status_code == 404
    grant = "/admin/v1/adapters/acme/write/grants/zeta"
    assert place.server.http.put(grant).status_code == 200
    assert digests([place.say(key=ZETA)]) == {place.other: 1}
    assert place.server.http.get(SPLIT, headers=theirs).status_code == 404
    assert place.server.http.delete(grant).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (SPLIT, {"versions": {"0123456789": 1}}, 404, "version"),
        (SPLIT, {"versions": {}}, 400, "versions"),
        (SPLIT, {"versions": {"0123456789": 1}, "colour": 1}, 400, "colour"),
        (SPLIT.replace("latest", "stable"), {"versions": {"0123456789": 1}}, 404, "alias"),
        (SPLIT.replace("latest", "Not!"), {"versions": {"0123456789": 1}}, 400, "alias"),
    ],
)
def test_what_is_wrong_is_named(place: Place, path: str, body: dict[str, Any], status: int, param: str) -> None:
    reply = place.server.http.put(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
    assert place.server.http.get(SPLIT).json()["error"]["code"] == "split_not_found"


def test_who_may_not_publish_may_look(place: Place) -> None:
    made = place.server.http.post("/admin/v1/keys", json={"tenant": "acme", "scopes": ["infer"]}).json()
    key = {"Authorization": f"Bearer {made['key']}"}
    place.put({place.own: 1})
    assert place.server.http.get(SPLIT, headers=key).status_code == 200
    for method in ("PUT", "DELETE"):
        refused = place.server.http.request(method, SPLIT, headers=key)
        assert refused.json()["error"]["code"] == "permission_denied"
