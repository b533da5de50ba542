"""Every setting, route, status and metric is on its page, and nothing else is."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import PydanticUndefined
from starlette.types import ASGIApp, Receive, Scope, Send

from service import errors
from service.engine.stats import EngineStats
from service.messages import WorkerStats
from service.metrics import Metrics, RequestMetrics
from service.settings import ClientSettings, Settings
from service.spec import ROUTES
from tests.service.running import RunningServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
API, SETTINGS = (DOCS / "api.md").read_text("utf-8"), (DOCS / "settings.md").read_text("utf-8")


def test_every_setting_is_documented_with_its_default() -> None:
    for kind in (Settings, ClientSettings):
        for name, field in kind.model_fields.items():
            row = next((line for line in SETTINGS.splitlines() if line.startswith(f"| `TENORA_{name.upper()}`")), None)
            assert row is not None, name
            assert field.description
            assert row.endswith(f"{field.description} |"), name
            default = field.get_default(call_default_factory=True)
            assert default is not PydanticUndefined
            if isinstance(default, int | float | str) and not isinstance(default, bool):
                assert f"`{default}`" in row


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {f"TENORA_{name.upper()}" for kind in (Settings, ClientSettings) for name in kind.model_fields}
    assert set(re.findall(r"TENORA_[A-Z_]+[A-Z]", SETTINGS + API)) <= known


def test_every_setting_is_used() -> None:
    """A setting that nothing reads would be a promise that nobody keeps."""
    service = DOCS.parent / "service"
    code = "".join(path.read_text("utf-8") for path in service.rglob("*.py") if path.name != "settings.py")
    own = (service / "settings.py").read_text("utf-8")
    for kind in (Settings, ClientSettings):
        for name in kind.model_fields:
            assert re.search(rf"settings\.{name}\b", code) or f"self.{name}" in own, name


def test_every_route_is_documented() -> None:
    headings = "\n".join(re.findall(r"^### .*$", API, re.MULTILINE))
    documented = re.findall(r"(GET|POST|PUT|PATCH|DELETE) (/[^\s,]*)", headings)
    assert len(documented) == len(set(documented))
    assert set(documented) == {(route.method, route.path.replace(":path", "")) for route in ROUTES}


def test_every_metric_is_documented(server: RunningServer) -> None:
    families = set(re.findall(r"^# TYPE (\S+)", server.http.get("/metrics").text, re.MULTILINE))
    documented = set(re.findall(r"`(tenora_[a-z_]+)", API))
    assert families == documented


def test_every_code_is_documented() -> None:
    codes = {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and hasattr(kind, "code") and "code" in vars(kind)
    }
    codes |= (
        {code for _, code in errors._ADAPTER_ERRORS.values()}
        | set(errors._ENGINE_FAILURES)
        | set(errors._HTTP_CODES.values())
    )
    documented = set(re.findall(r"`([a-z]+_[a-z_]+)`", API[API.index("## Statuses") :]))
    assert {code for code in codes if isinstance(code, str)} <= documented


def test_metrics_before_the_first_report() -> None:
    metrics = Metrics()
    assert b"tenora_requests" in metrics.render()
    metrics.observe_worker(WorkerStats(EngineStats(), 0, 0, 0))
    assert b"tenora_batch_size_count 0.0" in metrics.render()


async def _fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a defect")


async def _hangs_up(scope: Scope, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(("app", "status"), [(_fails, "500"), (_hangs_up, "499")])
def test_a_defect_is_counted_as_ours(app: ASGIApp, status: str) -> None:
    metrics = Metrics()
    counted = RequestMetrics(app, metrics, {"/known"})
    scope = {"type": "http", "path": "/known"}

    async def unused(*_: Any) -> Any:
        raise AssertionError

    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        asyncio.run(counted(scope, unused, unused))
    assert f'tenora_requests_total{{route="/known",status="{status}"}} 1.0' in metrics.render().decode()


def test_openapi(server: RunningServer) -> None:
    schema = server.http.get("/openapi.json").json()
    paths = set(schema["paths"])
    assert paths == {route.path.replace(":path", "") for route in ROUTES}
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert operation["description"]
            assert "422" not in operation["responses"]
    fields = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert all("description" in field for field in fields.values())
    assert "Tenora" in server.http.get("/docs").text


def test_the_page_loads_nothing_from_elsewhere(server: RunningServer) -> None:
    page = httpx.get(f"{server.url}/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/docs-assets/")
        assert httpx.get(f"{server.url}{link}").status_code == 200
