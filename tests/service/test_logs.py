"""Logs: one line per request, for machines if that is wanted, and never a prompt or a key."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.logs import JsonLines, TextLines
from tests.service.conftest import ACME, KEYS, Home
from tests.service.running import ROOT, eventually, running

SECRET = "the-secret-prompt"


def test_a_line_per_request_as_json(home: Home, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings: dict[str, Any] = {"api_keys": KEYS, "log_level": "info", "log_format": "json", **home.settings}
    with running(log, key=ACME, **settings) as server:
        body = {"model": "acme/write", "prompt": SECRET, "max_tokens": 3, "ignore_eos": True}
        reply = server.http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
        server.http.post("/v1/completions", json={**body, "model": "acme/nothing"})
        server.http.post(f"/{SECRET}", json=body)
        server.http.get("/v1/models", headers={"Authorization": "Bearer wrong-key"})
        server.http.post("/v1/completions", json={**body, "stream": True, "temperature": SECRET})
        text = eventually(lambda: (out := server.output()).count('"route": "/v1/completions"') == 3 and out)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
    requests = [line for line in lines if line["logger"] == "service.requests" and line["route"] not in ("/readyz",)]
    first, unknown, nowhere, stranger, wrong = requests
    assert reply.status_code == 200
    assert first["request_id"] == "mine"
    assert (first["tenant"], first["route"], first["status"], first["level"]) == (
        "acme",
        "/v1/completions",
        200,
        "info",
    )
    assert first["adapter"] == reply.headers["x-tenora-adapter"]
    assert first["tokens"] == reply.json()["usage"]["total_tokens"]
    assert first["queue_ms"] >= 0 and first["compute_ms"] > 0
    assert (unknown["status"], unknown["adapter"], wrong["status"]) == (404, None, 400)
    assert (nowhere["status"], nowhere["route"]) == (404, "unmatched")
    assert (stranger["status"], stranger["tenant"]) == (401, None)
    assert SECRET not in text
    assert not any(key in text for key in (*KEYS, "wrong-key"))


def record(**extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "service.x", "levelname": "WARNING", "msg": "it is %s", "args": ("so",), **extra}
    )


def test_json_lines() -> None:
    line = json.loads(JsonLines().format(record(request_id="r", tokens=3, adapter=None, created=0.0)))
    assert line == {
        "time": "1970-01-01T00:00:00.000+00:00", "level": "warning", "logger": "service.x", "message": "it is so",
        "request_id": "r", "tokens": 3, "adapter": None,
    }  # fmt: skip


def test_a_traceback_is_part_of_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        line = JsonLines().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: why" in json.loads(line)["exc_info"]


def test_text_lines() -> None:
    line = TextLines().format(record(request_id="r", tokens=3, adapter=None))
    assert line.endswith("WARNING service.x: it is so request_id=r tokens=3")


@pytest.mark.parametrize(("form", "begins"), [("json", "{"), ("text", "20")])
def test_configured_once_for_all_loggers(form: str, begins: str) -> None:
    code = (
        "import logging; from service.logs import configure_logging\n"
        f"configure_logging('info', '{form}'); configure_logging('info', '{form}')\n"
        "logging.getLogger('uvicorn.error').info('up'); logging.getLogger('a').debug('quiet')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    (line,) = done.stderr.splitlines()
    assert line.startswith(begins) and "up" in line
