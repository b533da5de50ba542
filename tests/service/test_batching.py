"""Requests of different adapters and kinds share steps, and the metrics prove it."""

import concurrent.futures
from typing import Any

import pytest

from tests.service.running import RunningServer

WRITERS = ("tiny-llama", "acme/write", "acme/chat", "zeta/write")
TEXTS = ["It was good.", "Not a fan, don't recommend."] * 20


def shared_steps(server: RunningServer) -> float:
    """Steps with at least two adapters in them."""
    return server.metric("tenora_adapters_per_step_count") - server.metric("tenora_adapters_per_step_bucket", le="1.0")


def test_adapters_and_kinds_share_a_step(server: RunningServer) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        (
            "/v1/completions",
            {"model": name, "prompt": "It was", "max_tokens": 200, "temperature": 0, "ignore_eos": True},
        )
        for name in WRITERS
    ]
    labels = [("/v1/classify", {"model": name, "input": TEXTS}) for name in ("acme/label", "zeta/label")]
    alone = [server.http.post(path, json=body).json()["choices"] for path, body in bodies]
    label_alone = [server.http.post(path, json=body).json()["data"] for path, body in labels]
    names = (
        "steps_total",
        "generated_tokens_total",
        "classified_texts_total",
        "ttft_seconds_count",
        "itl_seconds_count",
    )
    before = {name: server.metric(f"tenora_{name}") for name in names}
    shared = shared_steps(server)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(server.http.post, path, json=body) for path, body in bodies + labels]
        replies = [future.result().json() for future in futures]

    # Batching changed nothing …
    assert [reply["choices"] for reply in replies[:4]] == alone
    for reply, expected in zip(replies[4:], label_alone, strict=True):
        for entry, other in zip(reply["data"], expected, strict=True):
            assert entry["probs"] == pytest.approx(other["probs"], abs=1e-5)
    # … and it did take place.
    assert shared_steps(server) - shared > 10
    assert server.metric("tenora_max_adapters_in_step") >= 3
    assert server.metric("tenora_max_kinds_in_step") == 2
    grown = {name: server.metric(f"tenora_{name}") - before[name] for name in names}
    assert grown["steps_total"] < 4 * 200
    assert grown["generated_tokens_total"] == 4 * 200
    assert grown["classified_texts_total"] == 2 * len(TEXTS)
    assert grown["ttft_seconds_count"] == 4
    assert grown["itl_seconds_count"] == 4 * 199
    assert server.metric("tenora_batch_size_count") == server.metric("tenora_steps_total")


def test_tiers_are_counted(server: RunningServer) -> None:
    body = {"model": "acme/write", "prompt": "a", "max_tokens": 1}
    before = server.metric("tenora_adapter_lookups_total", tier="device")
    for _ in range(3):
        assert server.http.post("/v1/completions", json=body).status_code == 200
    assert server.metric("tenora_adapter_lookups_total", tier="device") - before in (2, 3)
    assert server.metric("tenora_adapter_lookups_total", tier="store") >= 1
    assert server.metric("tenora_adapter_swaps_total") >= 1
    assert server.metric("tenora_host_cache_bytes") > 0
