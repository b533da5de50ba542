"""Requests made from the OpenAPI document, right and wrong ones: nothing of them is our own fault."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from service.spec import ROUTES, Route
from tests.service.conftest import ADMIN, KEYS, Home
from tests.service.running import RunningServer, running

EXAMPLES = {"sqlite": 10, "postgresql": 2}
"""Requests of each kind to each route, by what the server keeps its rows in."""


@pytest.fixture(scope="module", params=list(EXAMPLES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def strained(
    home: Home, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, kind: str
) -> Iterator[RunningServer]:
    """A server on a store of its own, for whatever is deleted in it."""
    folder = tmp_path_factory.mktemp("strained")
    home.copied(folder / "store")
    configured = {**home.settings, "store": str(folder / "store"), "request_timeout": 5.0}
    if kind == "postgresql":
        configured["database"] = request.getfixturevalue("postgres_url")
    with running(folder / "log", key=ADMIN, api_keys=KEYS, **configured) as started:
        yield started
        assert "Traceback" not in started.output(), started.output()


@pytest.fixture(scope="module")
def described(strained: RunningServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(strained.http.get("/openapi.json").json())


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_no_request_is_our_own_fault(
    route: Route, described: schemathesis.BaseSchema, strained: RunningServer, kind: str
) -> None:
    operation = described[route.path.replace(":path", "")][route.method]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=strained.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30)
        assert response.status_code != 500, response.text

    ask()
