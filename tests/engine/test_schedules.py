"""Whatever arrives, leaves, loads or is evicted: the tokens of each request never change, and nothing leaks."""

import random
from collections import defaultdict

import pytest

from service.engine.sequence import Sequence
from tests.engine.conftest import Zoo
from tests.engine.driving import Outcome, assert_idle, drain, generation, text

SCHEDULES = {"torch": 40, "native": 160}
WORDS = ["the quick brown fox jumps", "It was good.", "a", "lazy dog " * 12, "é 🙂"]


@pytest.fixture(scope="module")
def isolated(llama: Zoo) -> dict[str, Outcome]:
    """What each request says when it is alone in an engine."""
    engine = llama.engine(kernels="torch", prefix_reuse=False)
    return {key: drain(engine, make(llama, key))[key] for key in keys(llama)}


def keys(zoo: Zoo) -> list[str]:
    return [f"{name}/{i}" for name in ("base", *zoo.generators, *zoo.classifiers) for i in range(len(WORDS))]


def make(zoo: Zoo, key: str, request_id: str | None = None) -> Sequence:
    name, i = key.split("/")
    adapter = zoo.adapters.get(name)
    ids = zoo.ids(WORDS[int(i)])
    if name in zoo.classifiers:
        assert adapter is not None
        return text(request_id or key, ids, adapter)
    return generation(request_id or key, ids, adapter)


def test_random_schedules(llama: Zoo, isolated: dict[str, Outcome], cpu_kernels: str) -> None:
    # Fewer slots and cache rows than adapters and requests: admission, eviction and reloading are the rule.
    engine = llama.engine(adapter_slots=2, max_running=4, max_step_tokens=20, kernels=cpu_kernels)
    schedules = SCHEDULES[cpu_kernels]
    for seed in range(schedules):
        run_schedule(llama, engine, isolated, random.Random(seed))
    stats = engine.stats()
    assert stats.adapter_evictions > schedules
    assert stats.adapter_loads > schedules
    assert stats.max_adapters_in_step == 2
    assert stats.max_kinds_in_step == 2


def run_schedule(zoo: Zoo, engine: object, isolated: dict[str, Outcome], rng: random.Random) -> None:
    from service.engine.engine import Engine

    assert isinstance(engine, Engine)
    arriving = [(f"{i}:{key}", key) for i, key in enumerate(rng.choices(keys(zoo), k=rng.randint(1, 10)))]
    live, aborted = set(), set()
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    while arriving or engine.has_work():
        while arriving and rng.random() < 0.5:
            request_id, key = arriving.pop()
            engine.submit(make(zoo, key, request_id))
            live.add(request_id)
        if live and rng.random() < 0.05:
            victim = rng.choice(sorted(live))
            engine.abort(victim)
            aborted.add(victim)
        for event in engine.step():
            assert event.request_id not in aborted, "an aborted request still spoke"
            outcomes[event.request_id].add(event)
        engine.check_integrity()
    assert_idle(engine)
    for request_id in live - aborted:
        want, got = isolated[request_id.split(":")[1]], outcomes[request_id]
        assert (got.tokens, got.text) == (want.tokens, want.text)
        if want.classified is not None:
            assert got.probabilities.allclose(want.probabilities, atol=1e-5)
