"""The page on data: its examples are read, and it names every finding and every kind of file."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.training.data.conftest import rows_of, write_jsonl
from training.data.columns import FORMATS, KINDS, Kind
from training.data.findings import FindingKind
from training.data.tables import FILE_KINDS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text("utf-8")


def examples(kind: Kind) -> list[str]:
    section = PAGE.split(f"### {kind}:")[1].split("\n##")[0]
    return re.findall(r"```json\n(.*?)\n```", section)


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_is_a_row_of_its_kind(tmp_path: Path, kind: Kind) -> None:
    labels = ("delivery", "damage")
    for example in examples(kind):
        file = write_jsonl(tmp_path / "rows.jsonl", [json.loads(example)])
        assert len(rows_of(kind, file, labels=labels if kind == "classify" else ())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_has_an_example(kind: Kind) -> None:
    found = [set(json.loads(example)) for example in examples(kind)]
    for form in FORMATS[kind]:
        if form.name != "preferred completion":  # named in the words above its twin
            assert any(set(form.needed) <= columns for columns in found), form


def test_every_finding_and_every_kind_of_file_is_named() -> None:
    assert [kind for kind in get_args(FindingKind) if f"\n| {kind} |" not in PAGE] == []
    assert [kind for kind in FILE_KINDS if f"| `.{kind}` |" not in PAGE] == []
