"""Tiny bases, made once, and small files of rows."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_base

THINGS = ("bread", "soup", "cake", "rice", "tea", "milk", "fish", "corn", "jam", "salt")
INSTRUCTIONS = [
    {"instruction": f"Name the {thing}.", "input": "" if index % 2 else f"It is {thing}.", "output": f"The {thing}."}
    for index, thing in enumerate(THINGS * 2)
]
REVIEWS = [
    {"text": f"{'good' if index % 2 else 'bad'} {thing}", "label": "positive" if index % 2 else "negative"}
    for index, thing in enumerate(THINGS * 4)
]
TAGGED = [
    {
        "text": f"{thing} {index}",
        "labels": [name for name, applies in (("even", not index % 2), ("low", index < 10)) if applies],
    }
    for index, thing in enumerate(THINGS * 2)
]
PAIRS = [
    {"prompt": f"Name the {thing}.", "chosen": f"The good {thing}.", "rejected": f"No {thing}, bad."}
    for thing in THINGS * 2
]
TEXTS = [
    {"text": f"Once there was {thing}. The chef cooked it, and it was good. {index}"}
    for index, thing in enumerate(THINGS)
]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models of a few numbers are no work for two threads, which only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny base of an architecture."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("bases")

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_base(kind, root / f"tiny-{kind}")
        return made[kind]

    return get


def write_jsonl(file: Path, rows: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "instructions.jsonl", INSTRUCTIONS)


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "reviews.jsonl", REVIEWS)


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "tagged.jsonl", TAGGED)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "texts.jsonl", TEXTS)


@pytest.fixture
def data_of(instructions: Path, reviews: Path, texts: Path, pairs: Path) -> dict[str, Path]:
    """Rows for every task."""
    return {"instruct": instructions, "classify": reviews, "text": texts, "reward": pairs, "dpo": pairs}
