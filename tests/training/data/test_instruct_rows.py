"""Prompts and answers in four formats, and what is refused in them by name."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.conftest import messages, problem_of, problems, rows_of, said, write_jsonl
from training.data.dataset import read_dataset
from training.errors import ConfigError

TALK = messages("system: Be brief.", "user: Hi", "assistant: Hello", "user: Bye", "assistant: Goodbye")
EXPECTED = [
    ([("system", "Be brief."), ("user", "Hi")], "Hello", 1.0),
    ([("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")], "Goodbye", 1.0),
]


def read_row(folder: Path, row: dict[str, Any]) -> list[Any]:
    [read] = rows_of("instruct", write_jsonl(folder / "row.jsonl", [row]))
    return [said(exchange) for exchange in read.exchanges]


def test_messages_give_an_exchange_for_each_answer(tmp_path: Path) -> None:
    assert read_row(tmp_path, {"messages": TALK}) == EXPECTED


def test_sharegpt_is_the_same_conversation(tmp_path: Path) -> None:
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in TALK]
    assert read_row(tmp_path, {"conversations": turns}) == EXPECTED


def test_weights_of_answers(tmp_path: Path) -> None:
    talk: list[dict[str, Any]] = [dict(turn) for turn in TALK]
    talk[2]["weight"], talk[4]["weight"] = 0, 0.5
    assert [weight for _, _, weight in read_row(tmp_path, {"messages": talk})] == [0.0, 0.5]


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "are you?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Well."}]
    assert read_row(tmp_path, {"messages": turns}) == [([("user", "How are you?")], "Well.", 1.0)]


def test_prompt_and_completion_as_strings_are_an_instruction(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Say it.", "completion": " It."}])
    [row] = rows_of("instruct", file)
    assert row.exchanges[0].prompt.as_instruction() == ("Say it.", "")
    assert row.exchanges[0].answer == " It."


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (TALK[:2], TALK[2:3], EXPECTED[:1]),
        (TALK[:4], TALK[4:], EXPECTED[1:]),  # what the assistant says in the prompt is no answer to learn
        (TALK[:2], TALK[2:], EXPECTED),
        (TALK[:2], "Hello", EXPECTED[:1]),
        ("Hi", TALK[2:3], [([("user", "Hi")], "Hello", 1.0)]),
    ],
)
def test_prompt_and_completion_as_messages(tmp_path: Path, prompt: Any, completion: Any, expected: Any) -> None:
    assert read_row(tmp_path, {"prompt": prompt, "completion": completion}) == expected


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([], "'messages' is empty"),
        ("Hi", "'messages' is a string, not a list"),
        (messages("user: Hi"), "'messages' ends with user, not with assistant"),
        (messages("system: Hi"), "'messages' ends with system, not with assistant"),
        (messages("assistant: Hi"), "'messages' 1: assistant where user should speak"),
        (messages("user: a", "user: b", "assistant: c"), "'messages' 2: user where assistant should speak"),
        (messages("user: a", "system: b", "assistant: c"), "'messages' 2: system where assistant should speak"),
        (messages("system: a", "assistant: b"), "'messages' 2: assistant where user should speak"),
        (["Hi"], "'messages' 1: a string, not an object"),
        ([{"role": "user"}], "'messages' 1: no 'content'"),
        ([{"role": "tool", "content": "x"}], "'messages' 1: the role 'tool' is not learned from"),
        ([{"role": ["user"], "content": "x"}], "'messages' 1: the role ['user'] is not learned from"),
        ([{"role": "user", "content": None}], "'messages' 1: 'content' is null, not a string"),
        ([{"role": "user", "content": " "}], "'messages' 1: 'content' is empty"),
        ([{"role": "user", "content": []}], "'messages' 1: 'content' is empty"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "'messages' 1: 'content' holds image_url: only text is learned from",
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "'messages' 1: 'tool_calls': calls of tools are not learned from",
        ),
        ([{"role": "user", "content": "x", "audio": {}}], "'messages' 1: 'audio' is not learned from"),
        ([{"role": "user", "content": "x", "weight": 1}], "'messages' 1: 'weight' on a user message"),
        ([{"role": "assistant", "content": "x", "weight": -1}], "'messages' 1: 'weight' is -1"),
        ([{"role": "assistant", "content": "x", "weight": True}], "'messages' 1: 'weight' is True"),
        ([{"role": "assistant", "content": "x", "weight": "1"}], "'messages' 1: 'weight' is '1'"),
        ([{"role": "user", "content": "\ud83d"}], "'messages' 1: 'content' holds half a character (a lone surrogate)"),
    ],
)
def test_what_is_refused_in_messages(tmp_path: Path, turns: Any, what: str) -> None:
    assert problem_of("instruct", tmp_path, {"messages": turns}) == [what]


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([{"from": "tool", "value": "x"}], "'conversations' 1: the speaker 'tool' is not learned from"),
        ([{"from": 1, "value": "x"}], "'conversations' 1: the speaker 1 is not learned from"),
        ([{"from": "gpt", "value": None}], "'conversations' 1: 'value' is null, not a string"),
        ([{"from": "human"}], "'conversations' 1: no 'value'"),
        ([{"from": "human", "value": "x", "image": "y"}], "'conversations' 1: 'image' is not learned from"),
        ([{"from": "human", "value": "x"}], "'conversations' ends with user, not with assistant"),
    ],
)
def test_what_is_refused_in_sharegpt(tmp_path: Path, turns: Any, what: str) -> None:
    assert problem_of("instruct", tmp_path, {"conversations": turns}) == [what]


def test_every_bad_message_of_a_row_is_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": ""}, {"role": "bot", "content": "x"}, {"role": "assistant", "content": 3}]
    assert problem_of("instruct", tmp_path, {"messages": turns}) == [
        "'messages' 1: 'content' is empty",
        "'messages' 2: the role 'bot' is not learned from",
        "'messages' 3: 'content' is a number, not a string",
    ]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": None}, "'completion' is null, not a list"),
        ({"prompt": TALK[:3], "completion": "x"}, "'prompt' ends with assistant, not with user"),
        ({"prompt": "a", "completion": TALK[1:3]}, "'completion' 2: user where assistant should speak"),
        ({"prompt": "a"}, "no column 'completion'"),
    ],
)
def test_what_is_refused_in_prompt_and_completion(tmp_path: Path, row: Any, what: str) -> None:
    assert problem_of("instruct", tmp_path, row) == [what]


def test_a_file_may_mix_formats(tmp_path: Path) -> None:
    rows = [{"messages": TALK}, {"instruction": "Say it.", "output": "It."}, {"messages": TALK}]
    dataset = read_dataset("instruct", {"data": write_jsonl(tmp_path / "rows.jsonl", rows)})
    assert dataset.formats == {"messages": 2, "instruction": 1}
    assert [len(row.exchanges) for row in dataset.parts["data"]] == [2, 1, 2]


def test_columns_are_renamed_before_anything_else(tmp_path: Path) -> None:
    rows = [{"question": "Say it.", "answer": "It.", "output": "an old one"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = {"question": "instruction", "answer": "output"}
    assert problems("instruct", file, columns=columns) == [
        (1, "two columns are to be 'output': the file's own, and the one that --columns renames")
    ]
    [row] = rows_of("instruct", file, columns=columns, ignore=["output"])
    assert (row.exchanges[0].prompt.instruction, row.exchanges[0].answer) == ("Say it.", "It.")


def test_two_columns_may_change_places(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "It.", "output": "Say it."}])
    [row] = rows_of("instruct", file, columns={"instruction": "output", "output": "instruction"})
    assert (row.exchanges[0].prompt.instruction, row.exchanges[0].answer) == ("Say it.", "It.")


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"a": "label"}, "--columns a=label: instruct rows have no 'label', but instruction, output, input, messages"),
        ({"a": "output", "b": "output"}, "--columns names 'output' for two columns"),
    ],
)
def test_bad_column_maps(tmp_path: Path, columns: dict[str, str], what: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(ConfigError, match=what):
        rows_of("instruct", file, columns=columns)


def test_columns_of_no_format_name_all_formats(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "reply": "b"}])
    with pytest.raises(Exception, match=r"instruction, output \(input\); or messages; or prompt, completion; or conv"):
        rows_of("instruct", file)
