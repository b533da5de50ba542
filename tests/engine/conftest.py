"""Tiny bases with PEFT-written adapters of every shape that is served, and engines over them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from adapters.adapter import Adapter, infer_manifest, load_adapter
from adapters.base import BaseSource, resolve_base
from adapters.manifest import write_manifest
from adapters.native import library
from adapters.templates import PromptTemplate
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from tests.engine.oracle import Oracle
from tests.support.tiny import CONFIGS, tiny_base, write_peft_adapter

# Where other processes want the cores too, a test may stand still for longer than any deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Adapters that differ in everything a LoRA may differ in. `{attention}` and `{mlp}` are one linear of each kind.
GENERATORS: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "alpha": 4},
    "wide": {"r": 16, "alpha": 8},
    "attention": {"r": 4, "alpha": 16, "targets": ["{attention}"]},
    "patterns": {"r": 4, "alpha": 8, "rank_pattern": {"{mlp}": 7}, "alpha_pattern": {"{attention}": 24}},
    "rslora": {"r": 8, "alpha": 6, "use_rslora": True},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "pair": {"r": 4, "alpha": 8, "num_labels": 2},
    "seven": {"r": 3, "alpha": 9, "num_labels": 7, "rank_pattern": {"{mlp}": 5}, "use_rslora": True},
}
LINEARS = {
    "gpt2": ("c_attn", "c_fc"),
    "opt": ("q_proj", "fc1"),
    "gpt_neox": ("query_key_value", "dense_h_to_4h"),
    "phi": ("q_proj", "fc1"),
    "distilbert": ("q_lin", "lin1"),
    "bert": ("query", "intermediate.dense"),
    "roberta": ("query", "intermediate.dense"),
}
ENCODERS = ("distilbert", "bert", "roberta")


def _named(value: Any, attention: str, mlp: str) -> Any:
    if isinstance(value, str):
        return value.format(attention=attention, mlp=mlp)
    if isinstance(value, dict):
        return {_named(key, attention, mlp): _named(item, attention, mlp) for key, item in value.items()}
    return [_named(item, attention, mlp) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Zoo:
    """One base with its adapters, read as the service reads them."""

    kind: str
    source: BaseSource
    folders: dict[str, Path]
    adapters: dict[str, Adapter]
    _oracles: dict[tuple[str | None, bool], Oracle] = field(default_factory=dict)

    @property
    def decoder(self) -> bool:
        return self.source.kind == "decoder"

    @property
    def generators(self) -> list[str]:
        return list(GENERATORS) if self.decoder else []

    @property
    def classifiers(self) -> list[str]:
        return list(CLASSIFIERS)

    def engine(self, **config: Any) -> Engine:
        return Engine(self.source, EngineConfig(**({"dtype": "float32", "device": "cpu"} | config)))

    def oracle(self, name: str | None, *, merged: bool = False) -> Oracle:
        if (name, merged) not in self._oracles:
            task = "classify" if name in CLASSIFIERS else "generate"
            labels = CLASSIFIERS[name]["num_labels"] if name in CLASSIFIERS else 2
            folder = self.folders[name] if name else None
            oracle = Oracle(self.source.path, folder, task=task, num_labels=labels, merged=merged)
            self._oracles[name, merged] = oracle
        return self._oracles[name, merged]

    def ids(self, words: str) -> list[int]:
        return list(self.source.tokenizer()(words)["input_ids"])


def read_adapter(folder: Path, source: BaseSource, **asked: Any) -> Adapter:
    """Read an adapter as PEFT wrote it, its manifest inferred."""
    write_manifest(folder, infer_manifest(folder, source, **asked))
    return load_adapter(folder, source)


def _make_zoo(kind: str, folder: Path) -> Zoo:
    source = resolve_base(str(tiny_base(kind, folder / "base")))
    recipes = {name: ("classify", recipe) for name, recipe in CLASSIFIERS.items()}
    if kind not in ENCODERS:
        recipes |= {name: ("generate", recipe) for name, recipe in GENERATORS.items()}
    folders, loaded = {}, {}
    for seed, (name, (task, recipe)) in enumerate(recipes.items()):
        filled = _named(recipe, *LINEARS.get(kind, ("q_proj", "down_proj")))
        folders[name] = write_peft_adapter(source.path, folder / name, task=task, seed=seed, **filled)
        labels = tuple(f"label {i}" for i in range(recipe.get("num_labels", 0)))
        asked = {"labels": labels} if labels else {"template": PromptTemplate.named("plain")}
        loaded[name] = read_adapter(folders[name], source, **asked)
    return Zoo(kind, source, folders, loaded)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models of a few numbers are no work for two threads, which only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["torch", "native"])
def cpu_kernels(request: pytest.FixtureRequest) -> str:
    """Each way in which a CPU computes."""
    if request.param == "native" and library.load_library() is None:
        pytest.skip("the CPU kernels could not be compiled on this machine")
    return str(request.param)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Zoo]:
    """A zoo for each architecture, made once."""
    made: dict[str, Zoo] = {}

    def get(kind: str) -> Zoo:
        assert kind in CONFIGS
        if kind not in made:
            made[kind] = _make_zoo(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def llama(zoo: Callable[[str], Zoo]) -> Zoo:
    """The zoo that tests use where the architecture does not matter."""
    return zoo("llama")
