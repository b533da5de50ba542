"""``tenora report`` on a run's folder and on adapters in a real store."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapters.base import BaseSource, resolve_base
from adapters.names import AdapterName
from adapters.store import Store
from adapters.templates import PromptTemplate
from tests.support.tiny import tiny_base, write_peft_adapter
from tests.training.reporting.runs import instruct_results, results
from training.reporting.cli import app
from training.reporting.files import write_beside
from training.reporting.results import Results, write_report, write_results

NAME = AdapterName("acme", "passive")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    return resolve_base(str(tiny_base("gpt2", tmp_path_factory.mktemp("base") / "gpt2")))


@pytest.fixture
def folder(base: BaseSource, tmp_path: Path) -> Path:
    return write_peft_adapter(base.path, tmp_path / "adapter", task="generate")


def report(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def publish(folder: Path, store: Path, base: BaseSource) -> str:
    return Store(store).publish(folder, NAME, base, template=PromptTemplate.named("alpaca")).digest


def test_a_run_s_folder(tmp_path: Path) -> None:
    write_results(tmp_path, results())
    shown = report(tmp_path)
    assert shown.exit_code == 0
    assert "distilbert-base-uncased" in shown.stdout
    assert "300 held-out rows (test)" in shown.stdout
    assert "note: The run overfits after epoch 1" in shown.stdout


def test_json_is_the_results_themselves(tmp_path: Path) -> None:
    write_results(tmp_path, results())
    shown = report(tmp_path, "--json")
    assert Results.model_validate_json(shown.stdout) == results()


def test_an_adapter_s_folder(tmp_path: Path) -> None:
    write_report(tmp_path, instruct_results())
    assert "judge after: 50.2 of 100" in report(tmp_path).stdout


def test_an_adapter_of_a_store(folder: Path, tmp_path: Path, base: BaseSource) -> None:
    write_beside(folder, instruct_results(), str(NAME))
    store = tmp_path / "store"
    digest = publish(folder, store, base)
    for subject in (NAME, f"{NAME}:latest", f"{NAME}@{digest[:8]}"):
        shown = report(subject, "--store", store)
        assert shown.exit_code == 0, shown.output
        assert f"{NAME}@{digest[:12]}" in shown.stdout
        assert "win rate 70%" in shown.stdout
    assert json.loads(report(NAME, "--json", TENORA_STORE=str(store)).stdout)["task"] == "instruct"


def test_an_adapter_without_a_report(folder: Path, tmp_path: Path, base: BaseSource) -> None:
    digest = publish(folder, tmp_path / "store", base)
    refused = report(NAME, "--store", tmp_path / "store")
    assert refused.exit_code == 2
    assert f"acme/passive@{digest[:12]} was published without a report" in refused.stderr


def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    cases = {
        ("acme/none", tmp_path / "store"): "there is no adapter acme/none",
        ("none", tmp_path / "store"): "'none' is not an adapter name: write tenant/name",
        ("acme/none", tmp_path / "nowhere"): "there is no store at",
        (str(tmp_path), tmp_path / "store"): "holds neither results.json nor report.json",
    }
    for (subject, store), message in cases.items():
        refused = report(subject, "--store", store)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert refused.stderr.startswith("tenora: ")


def test_a_broken_report_names_its_field(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"task": "juggle"}')
    refused = report(tmp_path)
    assert refused.exit_code == 2
    assert "report.json: task: " in refused.stderr
