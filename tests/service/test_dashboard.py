"""The dashboard and the Prometheus configuration: valid, and about metrics that a real server has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service.running import RunningServer

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/tenora.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OPERATIONS = (ROOT / "docs/operations.md").read_text("utf-8")


def expressions() -> Iterator[str]:
    for panel in PANELS:
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture(scope="module")
def series(server: RunningServer) -> dict[str, set[str]]:
    """{name of a series: its labels}, after every kind of request."""
    body = {"model": "acme/write", "prompt": "a", "max_tokens": 3, "ignore_eos": True}
    for asked in (body, {**body, "model": "acme/nothing"}):
        server.http.post("/v1/completions", json=asked)
    found: dict[str, set[str]] = {}
    for line in server.http.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            found.setdefault(name.split(" ")[0], set()).update(re.findall(r"(\w+)=\"", rest))
    return found


def test_every_metric_of_an_expression_exists(series: dict[str, set[str]]) -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\btenora_\w+", expression)}
    asked |= set(re.findall(r"\btenora_[a-z_]+", json.dumps(DASHBOARD["templating"])))
    asked |= set(re.findall(r"\btenora_[a-z_]+", OPERATIONS))
    assert len(asked) > 20
    assert asked <= set(series)


def test_every_label_of_an_expression_exists(series: dict[str, set[str]]) -> None:
    scraped = {"job", "instance"}
    for expression in expressions():
        for name, selector in re.findall(r"\b(tenora_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)(?==~|!=|=\")", selector)) <= series[name] | scraped, expression
        names = re.findall(r"\btenora_\w+", expression)
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= series[names[0]] | scraped, expression
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= set(re.findall(r"\w+", "".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))


def test_what_counts_is_asked_for_as_a_rate() -> None:
    for expression in expressions():
        for name, before in (
            (m[2], m[1]) for m in re.finditer(r"(\w*\(?)(tenora_\w+_(?:total|bucket|sum|count))\b", expression)
        ):
            assert before in ("rate(", "increase(") or name == "tenora_kv_blocks_total", expression


def test_panels() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles) and all(titles)
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]}
    assert len(places) == len(ids)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_variables() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([PANELS, DASHBOARD["templating"]])))
    assert used == set(variables)


def test_brackets_close() -> None:
    for expression in expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


def test_prometheus_is_told_where_to_look() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["job_name"] == "tenora"
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert "metrics_path" not in job  # /metrics is Prometheus' own default
