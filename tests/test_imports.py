"""Imports go one way: service -> adapters <- training. The engine knows torch and nothing of the web."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("service", "adapters", "training")
ALLOWED = {"service": {"adapters"}, "adapters": set(), "training": {"adapters"}}
FORBIDDEN = {
    "service": {"peft"},
    "service/engine": {"fastapi", "starlette", "pydantic", "pydantic_settings", "litserve", "uvicorn", "httpx", "peft"},
}


def imports(path: Path) -> Iterator[str]:
    """Every imported module, wherever in the file, with the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(room)
        for module in imports(path)
        if top(module) in set(ROOMS) - {room} - ALLOWED[room] or top(module) in ("tests", "bench", "examples")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_libraries_stay_where_they_belong(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(folder)
        for module in imports(path)
        if top(module) in FORBIDDEN[folder] or module.startswith("transformers.Trainer")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_knows_nothing_of_the_service() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files("service/engine")
        for module in imports(path)
        if top(module) == "service" and not module.startswith("service.engine")
    ]
    assert not wrong, "\n".join(wrong)


def test_what_runs_without_a_model_loads_no_torch() -> None:
    """The main and the HTTP process, and `tenora --help`, start quickly and stay small."""
    import subprocess
    import sys

    code = "import sys, service.cli, service.server, service.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
