"""What the README shows is run: its curl pair on a real server, its files and targets against the tree."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base import resolve_base
from adapters.names import AdapterName
from adapters.store import Store
from adapters.templates import PromptTemplate
from tests.service.running import RunningServer, running
from tests.support.tiny import write_peft_adapter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The embedded base with two adapters of the names that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    base, store = resolve_base("embedded"), Store(folder / "store")
    instruct = write_peft_adapter(base.path, folder / "instruct")
    store.publish(instruct, AdapterName.parse("demo/instruct"), base, template=PromptTemplate.named("alpaca"))
    sentiment = write_peft_adapter(base.path, folder / "sentiment", task="classify")
    store.publish(sentiment, AdapterName.parse("demo/sentiment"), base, labels=("negative", "positive"))
    with running(folder / "log", base="embedded", store=store.root) as server:
        yield server


def curl_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [command for block in blocks for command in block.split("\n\n") if command.startswith("curl")]


def test_the_curl_pair_hits_two_adapters(demo_server: RunningServer) -> None:
    replies = []
    for command in curl_commands():
        # Read as the shell would; sent without curl, which not every machine has.
        words = shlex.split(command)
        path = next(word for word in words if word.startswith("localhost:8000")).removeprefix("localhost:8000")
        body, header = words[words.index("-d") + 1], words[words.index("-H") + 1].split(": ")
        reply = demo_server.http.post(path, content=body, headers={header[0]: header[1]})
        assert reply.status_code == 200, reply.text
        replies.append(reply.json())
    written, classified = replies
    assert written["model"] == "demo/instruct"
    assert written["choices"][0]["text"]
    assert [row["label"] in ("negative", "positive") for row in classified["data"]] == [True, True]


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
