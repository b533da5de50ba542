"""A prompt with a better and a worse answer, in TRL's formats and in OpenAI's."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.conftest import messages, problem_of, rows_of, write_jsonl

ASKED = messages("system: Be brief.", "user: Hi")
BETTER, WORSE = messages("assistant: Hello"), messages("assistant: What?")


def read_row(folder: Path, row: dict[str, Any]) -> Any:
    [read] = rows_of("preference", write_jsonl(folder / "row.jsonl", [row]))
    return read


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": BETTER, "rejected": WORSE},
        {"prompt": ASKED, "chosen": "Hello", "rejected": "What?"},
        {"chosen": ASKED + BETTER, "rejected": ASKED + WORSE},
        {"prompt": ASKED, "chosen": ASKED + BETTER, "rejected": ASKED + WORSE},
        {"prompt": "Hi", "chosen": ASKED + BETTER, "rejected": ASKED + WORSE},
        {"input": {"messages": ASKED, "tools": None}, "preferred_output": BETTER, "non_preferred_output": WORSE},
        {
            "input": {"messages": ASKED, "tools": None},
            "preferred_completion": BETTER,
            "non_preferred_completion": WORSE,
        },
    ],
)
def test_every_format_is_the_same_row(tmp_path: Path, row: dict[str, Any]) -> None:
    read = read_row(tmp_path, row)
    assert [(turn.role, turn.content) for turn in read.prompt.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert (read.chosen, read.rejected) == ("Hello", "What?")


def test_strings_are_an_instruction(tmp_path: Path) -> None:
    read = read_row(tmp_path, {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"})
    assert read.prompt.as_instruction() == ("Hi", "")
    assert (read.chosen, read.rejected) == ("Hello", "What?")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"chosen": "Hello", "rejected": "What?"}, "no prompt: 'chosen' holds only the answer"),
        (
            {"chosen": ASKED + BETTER, "rejected": ASKED[1:] + WORSE},
            "'chosen' and 'rejected' differ before the answer",
        ),
        (
            {"prompt": "Bye", "chosen": ASKED + BETTER, "rejected": ASKED + WORSE},
            "'prompt' and what stands before the answer in 'chosen' differ",
        ),
        ({"prompt": "Hi", "chosen": ASKED, "rejected": WORSE}, "'chosen' ends with user, not with assistant"),
        ({"prompt": "Hi", "chosen": BETTER * 2, "rejected": WORSE}, "'chosen' 1: assistant where user should speak"),
        ({"prompt": BETTER, "chosen": "a", "rejected": "b"}, "'prompt' 1: assistant where user should speak"),
        ({"prompt": "Hi", "chosen": None, "rejected": "b"}, "'chosen' is null, not a list"),
        ({"prompt": "Hi", "chosen": "a"}, "no column 'rejected'"),
        (
            {"input": "Hi", "preferred_output": BETTER, "non_preferred_output": WORSE},
            "'input' is a string, not an object",
        ),
        ({"input": {}, "preferred_output": BETTER, "non_preferred_output": WORSE}, "no 'messages' in 'input'"),
        (
            {"input": {"messages": ASKED, "tools": [1]}, "preferred_output": BETTER, "non_preferred_output": WORSE},
            "'input': 'tools' is not learned from",
        ),
        ({"instruction": "Hi", "output": "Hello"}, "no column 'prompt', 'chosen', 'rejected'"),
    ],
)
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    assert problem_of("preference", tmp_path, row) == [what]


def test_both_answers_are_checked(tmp_path: Path) -> None:
    assert problem_of("preference", tmp_path, {"prompt": "", "chosen": "", "rejected": 3}) == [
        "'prompt' is empty",
        "'chosen' is empty",
        "'rejected' is a number, not a list",
    ]
