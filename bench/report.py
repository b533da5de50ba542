"""The results while they come in: one JSON document, replaced on disk as a whole after each section."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measuring import Spread

RATIOS: Mapping[str, str] = {
    "distinct_vs_llamacpp": "distinct adapters over HTTP: output tokens/s of Tenora ÷ llama.cpp's server",
    "distinct_vs_peft_mixed": "distinct adapters: Tenora over HTTP ÷ PEFT `adapter_names`",
    "base_vs_llamacpp": "no adapters, over HTTP: Tenora ÷ llama.cpp's server",
    "distinct_vs_identical": "Tenora over HTTP: distinct adapters ÷ one adapter for all",
    "distinct_vs_base": "Tenora over HTTP: distinct adapters ÷ no adapters",
    "step_vs_floor": "a decode step: its floor ÷ what it takes",
    "http_vs_engine": "distinct adapters: Tenora over HTTP ÷ its engine called directly",
    "classify_vs_peft": "mixed texts, several classifiers: texts/s of Tenora ÷ padded PEFT `adapter_names`",
    "adapters1000_vs_5": "open loop at 0.8 of capacity: output tokens/s with 1,000 adapters ÷ with 5",
    "bystander_p99": "p99 inter-token latency of a stream while others load and unload ÷ while it is quiet",
    "cold_minus_warm_ms": "time to the first token of an adapter only on disk − of a warm one, in ms",
}
LESS_IS_BETTER = frozenset({"bystander_p99", "cold_minus_warm_ms"})


class Report:
    """Collects what sections find out.

    Args:
        path: Where the JSON goes; None keeps it in memory.
        machine: What it is measured on.
        workload: What is asked for.
    """

    def __init__(self, path: Path | None, machine: Mapping[str, Any], workload: Mapping[str, Any]) -> None:
        self._path = path
        self.document: dict[str, Any] = {
            "machine": dict(machine),
            "workload": dict(workload),
            "rates": {},
            "ratios": dict.fromkeys(RATIOS),
            "reasons": dict.fromkeys(RATIOS, "not measured in this run"),
            "figures": {},
        }

    def rate(self, key: str, name: str, spread: Spread) -> None:
        """What a system did, over the rounds."""
        self.document["rates"][key] = {"system": name, **spread.to_json()}

    def figures(self, section: str, values: Mapping[str, Any]) -> None:
        """Whatever else a section measured."""
        self.document["figures"].setdefault(section, {}).update(values)

    def ratio(self, key: str, value: float) -> None:
        """One of the ratios."""
        assert key in RATIOS, key
        self.document["ratios"][key] = float(f"{value:.4g}")
        self.document["reasons"].pop(key, None)

    def ratio_of(self, key: str, over: str, under: str) -> None:
        """A ratio of two rates; stays null where one of them is missing."""
        rates = self.document["rates"]
        if over in rates and under in rates:
            self.ratio(key, rates[over]["median"] / rates[under]["median"])

    def reason(self, key: str, text: str) -> None:
        """Why something is not there: a ratio, or a system."""
        self.document["reasons"][key] = text

    def value(self, key: str) -> float | None:
        """The median of a rate, if it was measured."""
        rate = self.document["rates"].get(key)
        return None if rate is None else float(rate["median"])

    def save(self) -> None:
        """Replace the file in one step, so that a run that is cut off leaves what it has."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.part")
        aside.write_text(json.dumps(self.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self._path)  # noqa: PTH105 (the name says that it replaces)
