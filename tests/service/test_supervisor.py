"""The supervisor's delays and decisions, with processes and a clock of the test's own."""

import multiprocessing.connection
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from service.supervisor import FIRST_DELAY_S, HEALTHY_AFTER_S, LONGEST_DELAY_S, Backoff, Supervisor
from tests.service.running import eventually


def test_delays_double_up_to_a_cap_and_start_anew_after_health() -> None:
    now = 0.0
    backoff = Backoff(lambda: now)
    delays = []
    for _ in range(12):
        delays.append(backoff.delay())
        backoff.started()
    assert delays[:4] == [FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S, 8 * FIRST_DELAY_S]
    assert delays[-1] == LONGEST_DELAY_S
    now += HEALTHY_AFTER_S
    assert backoff.delay() == FIRST_DELAY_S


class House:
    """One engine and one HTTP process, each alive until its pipe is closed."""

    def __init__(self) -> None:
        self.engine, self._engine_end = multiprocessing.connection.Pipe()
        self.http, self._http_end = multiprocessing.connection.Pipe()
        self.said: list[str] = []
        self.supervisor = Supervisor(
            engine=lambda: SimpleNamespace(sentinel=self.engine),
            vital=[SimpleNamespace(sentinel=self.http)],
            replace=self._replace,
            mourn=lambda: self.said.append("mourn"),
            give_up=lambda: self.said.append("give up"),
        )
        self.supervisor.start()

    def _replace(self) -> None:
        self.said.append("replace")
        self.engine.close()
        self.engine, self._engine_end = multiprocessing.connection.Pipe()

    def kill_engine(self) -> None:
        self._engine_end.close()

    def kill_http(self) -> None:
        self._http_end.close()

    def close(self) -> None:
        self.supervisor.stop()
        for end in (self._engine_end, self._http_end):
            end.close()
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "supervisor"])
        self.engine.close()
        self.http.close()


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def test_a_dead_engine_is_mourned_then_replaced(house: House) -> None:
    house.kill_engine()
    eventually(lambda: house.said == ["mourn", "replace"])
    house.kill_engine()
    eventually(lambda: house.said == ["mourn", "replace"] * 2)


def test_a_dead_http_process_ends_the_watch(house: House) -> None:
    house.kill_http()
    eventually(lambda: house.said == ["give up"])


def test_nothing_is_started_after_stop(house: House) -> None:
    house.kill_engine()
    eventually(lambda: house.said == ["mourn"])
    house.supervisor.stop()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "supervisor"])
    assert house.said == ["mourn"]
