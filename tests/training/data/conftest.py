"""Small files of rows, and how their problems read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.data.dataset import Dataset, read_dataset
from training.errors import DataError


def write_jsonl(file: Path, rows: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(kind: Any, file: Path | str, **options: Any) -> Dataset[Any]:
    dataset: Dataset[Any] = read_dataset(kind, {"data": file}, **options)
    return dataset


def rows_of(kind: Any, file: Path | str, **options: Any) -> list[Any]:
    return list(read(kind, file, **options).parts["data"])


def problems(kind: Any, parts: Path | Mapping[str, Path], **options: Any) -> list[tuple[int, str]]:
    """The number and the text of every problem; each has a mend and stands in the message."""
    files = parts if isinstance(parts, Mapping) else {"data": parts}
    with pytest.raises(DataError) as raised:
        read_dataset(kind, files, **options)
    for problem in raised.value.problems:
        assert problem.mend
        assert problem.what in str(raised.value)
    return [(problem.number, problem.what) for problem in raised.value.problems]


def problem_of(kind: Any, folder: Path, row: Mapping[str, Any], **options: Any) -> list[str]:
    """What is wrong with one row."""
    return [what for _, what in problems(kind, write_jsonl(folder / "row.jsonl", [row]), **options)]


def messages(*turns: str) -> list[dict[str, str]]:
    """``system: …``, ``user: …``, ``assistant: …`` as OpenAI's messages."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def said(exchange: Any) -> tuple[Sequence[tuple[str, str]], str, float]:
    """An exchange of a conversation in plain values."""
    return [(turn.role, turn.content) for turn in exchange.prompt.messages], exchange.answer, exchange.weight
