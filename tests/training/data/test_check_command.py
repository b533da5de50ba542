"""`tenora data check`: what it recognises, prints and returns, with the embedded base's tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.base import resolve_base
from adapters.templates import PromptInput, PromptTemplate, completion_ids
from tests.training.data.conftest import messages, write_jsonl
from training.data.cli import app

REVIEWS = [{"text": f"{'good' if n % 2 else 'bad'} {n} {'x' * n}", "label": "ny"[n % 2]} for n in range(20)]
INSTRUCTIONS = [{"instruction": f"Count to {number}.", "output": "one " * number} for number in range(1, 11)]


def run(*arguments: Any, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], input=given)


def as_json(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "reviews.jsonl", REVIEWS)


def test_it_says_what_the_rows_are(reviews: Path) -> None:
    result = run(reviews)
    assert result.exit_code == 0
    assert "classify rows, written as: text and label (20)" in result.output
    assert "tokens of tenora-base" in result.output
    assert "2 labels" in result.output
    assert "nothing else to say" in result.output


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "x"}, "classify"),
        ({"text": "a"}, "text"),
        ({"instruction": "a", "output": "b"}, "instruct"),
        ({"prompt": "a", "completion": "b"}, "instruct"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"messages": messages("user: a", "assistant: b"), "id": 7}, "instruct"),
    ],
)
def test_the_columns_tell_the_kind(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    rows = [row, {**row, "label": "y"} if kind == "classify" else row]
    assert as_json(write_jsonl(tmp_path / "rows.jsonl", rows), "--ignore-columns", "id")["kind"] == kind


def test_lengths_are_those_of_the_renderer(tmp_path: Path) -> None:
    values = as_json(write_jsonl(tmp_path / "rows.jsonl", INSTRUCTIONS), "--max-length", 40)
    tokenizer, template = resolve_base("embedded").tokenizer(), PromptTemplate.named("alpaca")
    answers = [len(completion_ids(tokenizer, row["output"])) + 1 for row in INSTRUCTIONS]
    prompts = [
        len(template.encode(tokenizer, PromptInput.from_instruction(row["instruction"]))) for row in INSTRUCTIONS
    ]
    tokens = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    measured = values["parts"]["data"]["tokens"]
    assert (measured["longest"], measured["learned"]) == (max(tokens), sum(answers))
    assert measured["median"] == sorted(tokens)[4]
    assert measured["over_max_length"] == sum(length > 40 for length in tokens) > 0
    assert values["findings"][0]["kind"] == "over-long"


def test_problems_end_with_2_and_say_every_line(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*REVIEWS, {"text": "", "label": "n"}, {"text": "a", "label": None}])
    result = run(file)
    assert result.exit_code == 2
    assert f"{file}: 2 bad rows" in result.output
    assert "line 21: 'text' is empty — write it out or remove the row" in result.output
    assert "line 22: 'label' is null" in result.output
    problems = json.loads(run(file, "--json").stdout)["problems"]
    assert [(problem["number"], problem["what"]) for problem in problems] == [
        (21, "'text' is empty"),
        (22, "'label' is null"),
    ]


def test_rows_that_the_template_cannot_write_are_problems(tmp_path: Path) -> None:
    talk = messages("user: a", "assistant: b", "user: c", "assistant: d")
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": talk}])
    result = run(file)
    assert result.exit_code == 2
    assert "line 1: the alpaca template takes [user] or [system, user]" in result.output
    assert run(file, "--template", "chat").exit_code == 0


def test_an_answer_that_holds_the_end_token_is_a_problem(tmp_path: Path) -> None:
    end = resolve_base("embedded").tokenizer().eos_token
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": f"c{end}"}])
    result = run(file)
    assert result.exit_code == 2
    assert f"an answer holds {end}, which is how the base ends an answer" in result.output


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Of the file, the rows, what the template and the tokenizer refuse; and what is worth knowing of the rest."""
    end = resolve_base("embedded").tokenizer().eos_token
    talk = messages("user: a", "assistant: b", "user: c", "assistant: d")
    file = tmp_path / "rows.jsonl"
    rows = [*INSTRUCTIONS, {"messages": talk}, {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": end}]
    lines = [json.dumps(row) for row in (*rows, INSTRUCTIONS[0])]
    file.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n{"prompt"\n')
    result = run(file)
    assert result.exit_code == 2
    said = [line.strip() for line in result.output.splitlines()]
    start = said.index(f"{file}: 5 bad rows")
    assert [line.split(" — ")[0].split(": ")[0] for line in said[start + 1 : start + 6]] == [
        "line 11", "line 12", "line 13", "line 15", "line 16",
    ]  # fmt: skip
    assert "of the rows that can be used:" in said
    assert any("1 of 11 training rows repeats an earlier one" in line for line in said), result.output
    values = json.loads(run(file, "--json").stdout)
    assert [problem["number"] for problem in values["problems"]] == [11, 12, 13, 15, 16]
    assert values["parts"]["data"]["rows"] == 11
    assert "duplicates" in [finding["kind"] for finding in values["findings"]]


@pytest.mark.parametrize(
    "content",
    ["text,label\ngood,a\nbad,b\n".encode("utf-16"), "texté,label\ngood,a\nbad,b\n".encode("latin-1")],
    ids=["utf-16", "latin-1"],
)
def test_columns_that_are_not_utf8(tmp_path: Path, content: bytes) -> None:
    """What is wrong is the encoding; nobody asks for other columns."""
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    for options in ((), ("--task", "classify")):
        result = run(file, *options)
        assert result.exit_code == 2
        assert "save the file as UTF-8" in result.output + result.stderr
        assert "fit no kind" not in result.stderr
        assert "no column" not in result.output


def test_what_cannot_be_read_is_no_label_and_no_finding(tmp_path: Path) -> None:
    file, other = tmp_path / "rows.csv", tmp_path / "validation.csv"
    rows = "".join(f"{word} {n},bar\n{word} {n} more,foo\n" for n, word in enumerate(["red", "green", "blue"] * 4))
    file.write_bytes(f"text,label\n{rows}".encode() + "olé,café\nolè,bar\n".encode("latin-1"))
    other.write_text("text,label\nnothing,café\nelse,bar\n")
    result = run(file, "--validation", other, "--json")
    assert result.exit_code == 2
    values = json.loads(result.stdout)
    assert {problem["mend"] for problem in values["problems"]} == {"save the file as UTF-8"}
    assert values["labels"] == ["bar", "foo"]
    assert values["parts"]["data"]["rows"] == 24
    places = [place["number"] for finding in values["findings"] for place in finding["places"]]
    assert not {26, 27} & set(places)


def test_problems_are_told_where_the_base_is_not_here(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [*REVIEWS, {"text": "", "label": "n"}])
    result = run(file, "--base", "somebody/large-base")
    assert result.exit_code == 2
    assert "line 21: 'text' is empty" in result.output
    values = json.loads(run(file, "--base", "somebody/large-base", "--json").stdout)
    assert (values["base"], values["max_length"], len(values["problems"])) == (None, None, 1)


def test_what_follows_the_last_learned_answer_does_not_make_a_row_too_long(tmp_path: Path) -> None:
    """Training reads nothing behind it."""
    turns = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "one " * 400, "weight": 0},
    ]  # fmt: skip
    values = as_json(write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}] * 2), "--template", "chat")
    assert values["parts"]["data"]["tokens"]["longest"] < 40


def test_rows_of_which_none_can_be_used(tmp_path: Path) -> None:
    result = run(write_jsonl(tmp_path / "rows.jsonl", [{"text": "", "label": "a"}]))
    assert result.exit_code == 2
    assert "'text' is empty" in result.output
    assert "of the rows that can be used" not in result.output


@pytest.mark.parametrize(
    ("rows", "severity", "fate"),
    [
        ([{"instruction": "a", "output": "one " * 300}, *INSTRUCTIONS], "warning", "training leaves them out"),
        ([{"text": "one " * 300, "label": "z"}, *REVIEWS], "warning", "training cuts them"),
        ([{"text": "one " * 300}, {"text": "short"}], "note", "training reads them in pieces"),
    ],
)
def test_rows_are_too_long_where_training_says_so(
    tmp_path: Path, rows: list[dict[str, str]], severity: str, fate: str
) -> None:
    """256 tokens, though the base could read more."""
    values = as_json(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert values["max_length"] == 256 < resolve_base("embedded").max_length
    (found,) = [finding for finding in values["findings"] if finding["kind"] == "over-long"]
    assert found["severity"] == severity
    assert found["mend"].startswith(fate)
    assert [place["number"] for place in found["places"]] == [1]


def test_warnings_end_with_1_only_if_asked(tmp_path: Path, reviews: Path) -> None:
    doubled = write_jsonl(tmp_path / "doubled.jsonl", [*REVIEWS, REVIEWS[0]])
    assert [run(doubled).exit_code, run(doubled, "--strict").exit_code, run(reviews, "--strict").exit_code] == [0, 1, 0]


def test_parts_are_compared(tmp_path: Path, reviews: Path) -> None:
    held_out = write_jsonl(tmp_path / "validation.jsonl", [REVIEWS[3], {"text": "quite another", "label": "n"}])
    result = run(reviews, "--validation", held_out)
    assert "1 of 2 validation rows asks what a training row asks" in result.output
    assert "validation.jsonl line 1: see reviews.jsonl line 4" in result.output


def test_renamed_columns_and_standard_input() -> None:
    rows = "review,mark,id\n" + "".join(f"{row['text']},{row['label']},1\n" for row in REVIEWS)
    options = ("--format", "csv", "--columns", "review=text,mark=label", "--ignore-columns", "id")
    result = run("-", *options, given=rows)
    assert result.exit_code == 0, result.output
    assert "classify rows, written as: text and label (20)" in result.output


def test_markup_in_rows_is_shown_as_it_stands(tmp_path: Path) -> None:
    rows = [{"text": f"a {n}", "label": f"[bold]{n % 2}[/x]"} for n in range(20)]
    assert "[bold]0[/x]" in run(write_jsonl(tmp_path / "rows.jsonl", rows)).output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "text"), "--columns text: write yours=ours"),
        (("--columns", "other=name"), "classify rows have no 'name'"),
        (("--template", "none.jinja"), "--template none.jinja: neither alpaca, chat, plain nor a file"),
        (("--base", "no/such/base"), "there is no folder 'no/such/base'"),
    ],
)
def test_arguments_that_cannot_be(reviews: Path, options: tuple[str, str], message: str) -> None:
    result = run(reviews, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_columns_that_fit_nothing_are_named(tmp_path: Path) -> None:
    result = run(write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "reply": "b"}]))
    assert result.exit_code == 2
    assert "the columns 'question', 'reply' fit no kind of rows" in result.stderr


def test_it_is_a_process_of_its_own_that_starts_quickly(reviews: Path) -> None:
    code = (
        "import sys, training.data.cli; print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"
    command = [sys.executable, "-m", "training.data", "check", str(reviews), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["parts"]["data"]["rows"] == 20


def test_a_path_that_the_system_refuses() -> None:
    result = run("a" * 300)
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "tenora: " in result.output
