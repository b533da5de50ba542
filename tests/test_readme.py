"""What the README shows is run: its curl commands on a real server, its files and targets against the tree."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.running import RunningServer, running

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """What `make serve` starts."""
    folder = tmp_path_factory.mktemp("readme")
    with running(folder / "log", arguments=("serve", "--examples"), store=folder / "store") as server:
        yield server


def curl_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [command for block in blocks for command in block.split("\n\n") if command.startswith("curl")]


def test_the_curl_commands_are_answered(fresh_server: RunningServer) -> None:
    replies = []
    for command in curl_commands():
        # Read as the shell would; sent without curl, which not every machine has.
        words = shlex.split(command)
        path = next(word for word in words if word.startswith("localhost:8000")).removeprefix("localhost:8000")
        body, header = words[words.index("-d") + 1], words[words.index("-H") + 1].split(": ")
        reply = fresh_server.http.post(path, content=body, headers={header[0]: header[1]})
        assert reply.status_code == 200, reply.text
        replies.append(reply.json())
    written, reviews, tickets = replies
    assert written["model"] == "tenora/instruct"
    assert written["choices"][0]["text"]
    assert {row["label"] for row in reviews["data"]} <= {"negative", "positive"}
    assert {row["label"] for row in tickets["data"]} <= {"account", "billing", "delivery", "sales", "technical"}


def test_the_tree_and_the_links_exist() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/", tree, re.MULTILINE))
    assert all((ROOT / link).exists() for link in re.findall(r"\]\(([\w./]+)\)", README))


def test_no_placeholder_is_left() -> None:
    assert not re.findall(r"^[A-Z_]{6,}$", README, re.MULTILINE)


def test_the_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"them"}
    assert {"demo", "test"} <= named <= targets
