"""Tiny bases and PEFT-written adapters, made once; tests that break an adapter break a copy."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseSource, resolve_base
from tests.support.tiny import CONFIGS, tiny_base, write_peft_adapter

Break = Callable[[str], Path]
TARGETS: Mapping[str, list[str]] = {
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "bert": ["query", "value", "dense"],
    "roberta": ["query", "value"],
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseSource]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: resolve_base(str(tiny_base(kind, root / kind))) for kind in CONFIGS}


@pytest.fixture(scope="session")
def peft_folders(bases: dict[str, BaseSource], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`<base>-<task>` to a folder as PEFT wrote it; classifiers have three labels."""
    root = tmp_path_factory.mktemp("peft")
    folders = {}
    for kind in ("gpt2", "llama", "distilbert", "bert", "roberta"):
        for task in ("generate", "classify") if kind in ("gpt2", "llama") else ("classify",):
            options: dict[str, Any] = {"targets": TARGETS[kind]} if kind in TARGETS else {}
            key = f"{kind}-{task}"
            folders[key] = write_peft_adapter(bases[kind].path, root / key, task=task, num_labels=3, **options)
    return folders


@pytest.fixture
def copy_of(peft_folders: dict[str, Path], tmp_path: Path) -> Break:
    """A copy of one of the PEFT folders, to be broken."""

    def copy(key: str) -> Path:
        return Path(shutil.copytree(peft_folders[key], tmp_path / key))

    return copy
