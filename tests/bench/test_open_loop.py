"""The open loop on a tiny engine: what is counted, and of which requests."""

import pytest

from adapters.base import BaseSource
from bench.systems.open_loop import OpenLoop
from bench.workloads import Arrival


@pytest.fixture(scope="module")
def loop(llama: BaseSource) -> OpenLoop:
    made = OpenLoop(
        base=str(llama.path), count=3, rank=2, device="cpu", dtype="float32", max_running=4, adapter_slots=2, threads=1
    )
    assert made.fill()["bytes"] > 0
    return made


def test_times_are_of_requests_that_came_after_the_settling(loop: OpenLoop) -> None:
    early = [Arrival(0.0, 0, 5, 4), Arrival(0.01, 1, 5, 200)]
    late = [Arrival(0.5 + 0.05 * k, k % 3, 5, 4) for k in range(6)]
    found = loop.window([*early, *late], seconds=1.4, settle=0.4)
    assert len(found["first_token_s"]) == len(found["request_s"]) == len(late)
    assert all(0 < first < whole < 0.9 for first, whole in zip(found["first_token_s"], found["request_s"], strict=True))
    assert found["tokens_per_s"] >= 4 * len(late) / 1.5
    assert found["swaps_per_s"] > 0  # three adapters, two slots
    assert found["store_reads"] == 0


def test_what_is_unfinished_at_the_end_is_dropped(loop: OpenLoop) -> None:
    found = loop.window([Arrival(0.0, 0, 5, 200) for _ in range(40)], seconds=0.2, settle=0.0)
    assert 0 < len(found["first_token_s"]) < 40
    assert len(found["request_s"]) < len(found["first_token_s"])
    assert not loop.engine.has_work()
    loop.engine.check_integrity()
