"""The command line: what it prints and how it exits. Store commands run in this process, the others in their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.names import AdapterName
from adapters.store import Store
from service.cli import app
from tests.service.conftest import ACME, ADMIN, Home
from tests.service.running import ROOT, RunningServer, environment
from tests.support.tiny import write_peft_adapter


def tenora(*arguments: str, stdin: str | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=environment(**settings), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, input=stdin,
    )  # fmt: skip


def in_process(*arguments: str, stdin: str | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    """The same without the seconds that a fresh process takes to import torch."""
    env = {name: value for name, value in environment(**settings).items() if name.startswith("TENORA_")}
    result = CliRunner().invoke(app, arguments, input=stdin, env=env)
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def good(*arguments: str, stdin: str | None = None, **settings: object) -> str:
    run = in_process if arguments[0] == "adapters" else tenora
    done = run(*arguments, stdin=stdin, **settings)
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout


def bad(*arguments: str, **settings: object) -> str:
    """One sentence on stderr, nothing on stdout, exit code 2."""
    run = in_process if arguments[0] == "adapters" else tenora
    done = run(*arguments, **settings)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("tenora: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_help_and_version() -> None:
    text = good("--help")
    for command in ("serve", "ask", "classify", "score", "adapters", "train", "data", "report"):
        assert command in text
    assert good("--version").startswith("tenora ")
    flags = good("serve", "--help")
    for flag in (
        "--base",
        "--store",
        "--host",
        "--port",
        "--dtype",
        "--device",
        "[embedded]",
        "[./store]",
        "[127.0.0.1]",
    ):
        assert flag in flags
    assert tenora("nonsense").returncode == 2


def test_train_is_trainings_own_command() -> None:
    text = good("train", "--help")
    assert "instruct" in text
    assert "classify" in text
    assert all(flag in text for flag in ("--publish", "--template", "--labels"))
    assert tenora("train", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (("train", "instruct", "--data", "rows.jsonl"), ["instruct", "--data", "rows.jsonl"]),
        (("train", "data"), ["data"]),
        (("train",), []),
        (("train", "--help"), ["--help"]),
        (("data", "check", "rows.jsonl", "--json"), ["data", "check", "rows.jsonl", "--json"]),
        (("data", "--help"), ["data", "--help"]),
        (("report", "acme/intents:stable"), ["report", "acme/intents:stable"]),
        (("report",), ["report"]),
    ],
)
def test_what_training_is_called_with(tmp_path: Path, arguments: tuple[str, ...], passed: list[str]) -> None:
    """Training is another process: one that only says what it was given, and ends in a way of its own."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").touch()
    told = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(7)"
    (tmp_path / "training" / "__main__.py").write_text(told)
    done = subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", *arguments],
        env=environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
    assert json.loads(done.stdout) == passed


def test_score(server: RunningServer) -> None:
    settings = {"url": server.url, "api_key": ADMIN}
    answers = ("It left today.", "No idea.")
    printed = good("score", "beta/reward", "Where is it?", *answers, **settings)
    lines = [line.split("\t") for line in printed.splitlines()]
    assert [answer for _, answer in lines] == list(answers)
    assert float(lines[0][0]) != float(lines[1][0])
    with_input = good("score", "beta/reward", "Say it.", "Yes.", "--input", "It was good.", **settings)
    assert good("score", "beta/reward", "It was good.", "Yes.", "--system", "Say it.", **settings) == with_input
    assert "/v1/score" in bad("classify", "beta/reward", "a", **settings)
    assert "leave one out" in bad("score", "beta/reward", "a", "b", "--system", "c", "--input", "d", **settings)


def test_classify_with_several_labels(server: RunningServer) -> None:
    settings = {"url": server.url, "api_key": ADMIN}
    every = good("classify", "beta/tags", "It was good.", "--threshold", "0", **settings)
    labels, probabilities, text = every.strip().split("\t")
    assert labels == "bill, late, rude"
    assert len([float(number) for number in probabilities.split(", ")]) == 3
    assert text == "It was good."
    assert good("classify", "beta/tags", "It was good.", "--threshold", "1", **settings) == "-\t-\tIt was good.\n"


def test_ask_and_classify(server: RunningServer) -> None:
    settings = {"url": server.url, "api_key": ACME}
    options = ("--max-tokens", "5", "--temperature", "0")
    plain = good("ask", "chat", "It was good.", *options, **settings)
    assert good("ask", "chat", "-", *options, stdin="It was good.", **settings) == plain
    assert good("ask", "chat", "It was good.", "--stream", *options, **settings) == plain
    assert good("ask", "acme/chat", "It was good.", *options, "--url", server.url, "--key", ACME) == plain
    with_input = good("ask", "write", "Say it.", "--input", "It was good.", *options, **settings)
    assert good("ask", "write", "It was good.", "--system", "Say it.", *options, **settings) == with_input
    assert good("ask", "write", "It was", "--raw", "--seed", "1", *options, **settings)
    lines = good("classify", "label", "It was good.", "Not a fan", **settings).splitlines()
    assert len(lines) == 2
    label, probability, text = lines[0].split("\t")
    assert label in ("bad", "good")
    assert 0.5 <= float(probability) <= 1
    assert text == "It was good."


def test_what_a_server_refuses_is_one_sentence(server: RunningServer) -> None:
    assert "nothing" in bad("ask", "acme/nothing", "a", url=server.url, api_key=ACME)
    assert "/v1/classify" in bad("ask", "label", "a", url=server.url, api_key=ACME)
    assert "API key" in bad("classify", "label", "a", url=server.url)
    assert "tenora serve" in bad("ask", "a", "b", url="http://127.0.0.1:9")
    assert "--stream" in bad("ask", "a", "b", "--raw", "--stream")


def test_an_adapters_life(home: Home, tmp_path: Path) -> None:
    store = tmp_path / "store"
    where = ("--store", str(store))
    first, second = (write_peft_adapter(home.base.path, tmp_path / str(seed), seed=seed) for seed in (1, 2))
    old = good(
        "adapters", "publish", str(first), "acme/life", *where, "--base", str(home.base.path),
        "--template", "alpaca", "--alias", "stable",
    ).strip()  # fmt: skip
    new = good("adapters", "publish", str(second), "acme/life", store=store, base=home.base.path).strip()
    assert old.startswith("acme/life@")
    assert old != new
    listed = good("adapters", "list", *where)
    assert "acme/life" in listed
    assert new.partition("@")[2][:12] in listed
    assert "stable" in listed
    shown = good("adapters", "show", "acme/life:stable", *where)
    assert old in shown
    assert new not in shown
    assert "alpaca" in shown
    assert new in good("adapters", "show", "acme/life", *where)

    good("adapters", "alias", old, "latest", *where)
    assert Store(store).aliases(AdapterName("acme", "life"))["latest"] == old.partition("@")[2]
    assert "points at" in bad("adapters", "delete", old, "--yes", *where)
    assert "--remove" in bad("adapters", "delete", "acme/life:stable", "--yes", *where)
    good("adapters", "alias", "acme/life", "stable", "--remove", *where)
    good("adapters", "delete", old, "--yes", *where)
    declined = in_process("adapters", "delete", "acme/life", *where, stdin="n\n")
    assert declined.returncode == 1
    good("adapters", "delete", "acme/life", "--yes", *where)
    assert "acme" not in good("adapters", "list", *where)


def test_labels_of_a_plain_classifier(home: Home, tmp_path: Path) -> None:
    folder, store = home.folders / "acme-label", tmp_path / "store"
    good("adapters", "publish", str(folder), "acme/label", "--labels", "no, yes", store=store, base=home.base.path)
    assert "no, yes" in good("adapters", "show", "acme/label", store=store)
    message = bad(
        "adapters", "publish", str(folder), "acme/label", "--labels", "a,b,c", store=store, base=home.base.path
    )
    assert "3 labels" in message


def test_what_a_plain_head_means(home: Home, tmp_path: Path) -> None:
    where = {"store": tmp_path / "store", "base": home.base.path}
    tags, reward = str(home.folders / "beta-tags"), str(home.folders / "beta-reward")
    good("adapters", "publish", tags, "beta/tags", "--labels", "a,b,c", "--multi-label", **where)
    shown = good("adapters", "show", "beta/tags", store=tmp_path / "store")
    assert "a, b, c (several at once)" in shown
    assert "README.md" in shown  # PEFT's own card
    good("adapters", "publish", reward, "beta/reward", "--score", "--template", "alpaca", **where)
    shown = good("adapters", "show", "beta/reward", store=tmp_path / "store")
    assert "score" in shown
    assert "alpaca" in shown
    assert "head has 3" in bad("adapters", "publish", tags, "beta/x", "--score", **where)
    assert "this one scores" in bad("adapters", "publish", reward, "beta/x", "--score", "--multi-label", **where)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list",), "there is no store"),
        (("show", "acme/nothing"), "there is no store"),
        (("publish", "nowhere", "acme/x"), "is not a folder"),
        (("publish", ".", "../x"), "not a valid"),
        (("publish", ".", "acme/x", "--base", "no where"), "no folder"),
        (("publish", ".", "acme/x", "--template", "nonsense"), "not a template"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    assert words in bad("adapters", *arguments, store=tmp_path / "none")


def test_unknown_adapters(home: Home) -> None:
    assert "no adapter" in bad("adapters", "show", "acme/nothing", store=home.store)
    assert "not in the store" in bad("adapters", "show", "acme/write@00000000", store=home.store)
    assert "no adapter" in bad("adapters", "delete", "acme/nothing", "--yes", store=home.store)
    assert "name" in bad("adapters", "show", "nonsense", store=home.store)


def test_a_broken_url_is_one_sentence() -> None:
    done = in_process("ask", "tenora-base", "Hello", "--url", "http://[::1")
    assert done.returncode == 2
    assert "http://host:port" in done.stderr
